package audit

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// TopicSequenced is announced when the tree has grown: see store.DB.Listen.
const TopicSequenced = "trail"

const (
	topicQueued = "event_queue" // an event waits for its leaf index

	leaseName = "sequencer"
	leaseTTL  = 5 * time.Second // a killed sequencer is replaced after it

	// batchSize bounds one transaction of the sequencer.
	batchSize = 5000
	// lookEvery is how often the sequencer looks for events of other processes;
	// it hears of those of its own at once.
	lookEvery = 100 * time.Millisecond
	// gatherFor is the least time between two checkpoints: events that come
	// together share one.
	gatherFor = 25 * time.Millisecond
	maxPause  = time.Second // after failures
)

// Config is what a Trail needs.
type Config struct {
	DB     *store.DB
	Sealer *secret.Sealer
	Log    *slog.Logger

	// Origin is the log's name in its checkpoints: a URL without its scheme, as
	// "rotunda.example.com/trail". It is used when the database has none yet.
	// Default: "rotunda/" and 16 random letters and digits.
	Origin string

	// Kept is a file outside of the database that holds the newest checkpoint
	// that this process knows. A database that is older is refused. "": none.
	Kept string
}

// Trail is the sequenced log: it gives events their leaf indexes, extends the
// tree and signs its head.
type Trail struct {
	Config
	holder string
	ttl    time.Duration // of the lease; it is renewed when 2/5 of it are over
	key    atomic.Pointer[signer]
	stats  stats

	mu    sync.Mutex // one sequencing at a time
	lease store.Lease
	taken time.Duration // DB.Tick when the lease was last had
	edge  *edge         // of the tree that this process signed last, or nil
	kept  keptFile
}

// stats are what metrics show.
type stats struct {
	size     atomic.Int64
	sequence atomic.Int64 // events given an index by this process
	failures atomic.Int64
	stopped  atomic.Bool
	holds    atomic.Bool
}

// Stats is what a process knows of the trail.
type Stats struct {
	Size      int64 // leaves, when this process last looked
	Sequenced int64 // events that this process gave an index
	Failures  int64 // of sequencing
	Stopped   bool
	Holds     bool // this process is the sequencer
}

// Stats returns what this process knows, from memory.
func (t *Trail) Stats() Stats {
	return Stats{Size: t.stats.size.Load(), Sequenced: t.stats.sequence.Load(), Failures: t.stats.failures.Load(), Stopped: t.stats.stopped.Load(), Holds: t.stats.holds.Load()}
}

// Open returns the trail of a database. The first one gives the log its origin
// and its key.
func Open(ctx context.Context, cfg Config) (*Trail, error) {
	t := &Trail{Config: cfg, holder: rand.Text(), ttl: leaseTTL, kept: keptFile{path: cfg.Kept}}
	if t.Log == nil {
		t.Log = slog.New(slog.DiscardHandler)
	}
	if t.Origin == "" {
		t.Origin = "rotunda/" + strings.ToLower(rand.Text()[:16])
	}
	if len(t.Origin) > 200 || strings.ContainsFunc(t.Origin, func(r rune) bool { return r <= ' ' || r > '~' || r == '+' || r == '~' }) {
		return nil, fault.Invalid("origin", "origin_malformed", "open the trail: the origin %q is not up to 200 printable ASCII characters without space, + and ~: use for example rotunda.example.com/trail", clip(t.Origin))
	}
	err := t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		// Replicas that start together begin one log: its row is locked before it is read.
		if err := tx.Swap(ctx, lockHead); err != nil {
			return err
		}
		h, err := readHead(ctx, tx)
		if err != nil || h.origin != "" {
			return err
		}
		s, err := t.newKey(ctx, tx, t.Origin, 0, nil)
		if err != nil {
			return err
		}
		if err := tx.Swap(ctx, `UPDATE trail SET origin = $1, key_id = $2 WHERE id = 1 AND origin = ''`, t.Origin, s.id); err != nil {
			return err
		}
		return Record(ctx, tx, Event{Actor: Rotunda, Action: "trail.start", Resource: "trail_keys/" + s.id, Detail: map[string]any{"origin": t.Origin, "key": s.vkey}})
	})
	if err != nil {
		return nil, fmt.Errorf("open the trail: %w", err)
	}
	return t, nil
}

// lockHead keeps everybody else from moving the head until the transaction ends.
const lockHead = `UPDATE trail SET size = size WHERE id = 1`

// head is the row of trail.
type head struct {
	origin  string
	size    int64
	root    tlog.Hash
	keyID   string
	pruned  int64
	stopped string
}

func readHead(ctx context.Context, tx *store.Tx) (head, error) {
	var h head
	var root []byte
	err := tx.QueryRow(ctx, `SELECT origin, size, root, key_id, pruned, stopped FROM trail WHERE id = 1`).Scan(&h.origin, &h.size, &root, &h.keyID, &h.pruned, &h.stopped)
	if err != nil {
		return h, fmt.Errorf("read the head of the trail: %w", err)
	}
	if len(root) != tlog.HashSize {
		return h, fmt.Errorf("%w: its root has %d bytes", errAltered, len(root))
	}
	copy(h.root[:], root)
	return h, nil
}

// errAltered says that the stored tree is not what was signed. The trail is
// stopped: a signature under it would vouch for somebody else's tree.
var errAltered = errors.New("the trail in the database is not the one that was signed")

// Run sequences events as they come, until ctx ends. Several processes may run
// it; the lease chooses one.
func (t *Trail) Run(ctx context.Context) error {
	woken, stop := t.DB.Listen(topicQueued)
	defer stop()
	var pause time.Duration
	for ctx.Err() == nil {
		n, err := t.Sequence(ctx)
		wait := lookEvery
		switch {
		case ctx.Err() != nil:
			continue
		case err == nil:
			if pause > 0 {
				t.Log.LogAttrs(ctx, slog.LevelInfo, "the trail is sequenced again")
			}
			pause = 0
			if n == batchSize {
				continue
			}
		case errors.Is(err, store.ErrHeld):
			pause, wait = 0, t.ttl/5
		default:
			if pause == 0 {
				t.Log.LogAttrs(ctx, slog.LevelError, "events can't be sequenced; they wait in the database", slog.Any("error", err))
			}
			t.stats.failures.Add(1)
			pause = min(max(2*pause, lookEvery), maxPause)
			wait = pause
		}
		if !sleep(ctx, min(wait, gatherFor)) || wait <= gatherFor {
			continue
		}
		hear := woken
		if err != nil {
			hear = nil // what waits can't go on yet
		}
		select {
		case <-ctx.Done():
		case <-hear:
		case <-time.After(wait - gatherFor):
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return t.Close(last)
}

// sleep reports whether it slept to its end.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Close sequences what waits and gives the lease back.
func (t *Trail) Close(ctx context.Context) error {
	for {
		n, err := t.Sequence(ctx)
		if err != nil && !errors.Is(err, store.ErrHeld) {
			t.Log.LogAttrs(ctx, slog.LevelWarn, "the last events wait for the next start to be sequenced", slog.Any("error", err))
		}
		if err != nil || n < batchSize {
			break
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	lease := t.lease
	t.lease = store.Lease{}
	t.stats.holds.Store(false)
	if err := t.kept.flush(); err != nil {
		return err
	}
	if lease.Name == "" {
		return nil
	}
	if err := t.DB.Release(ctx, lease); err != nil {
		return fmt.Errorf("release the sequencer's lease: %w", err)
	}
	return nil
}

// Sequence gives leaf indexes to events that wait, at most 5,000 of them, and
// signs the tree's new head, in one transaction. It returns how many there were.
// store.ErrHeld says that another process is the sequencer.
func (t *Trail) Sequence(ctx context.Context) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.hold(ctx); err != nil {
		t.stats.holds.Store(false)
		return 0, err
	}
	t.stats.holds.Store(true)
	var waits bool
	err := t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		h, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		t.stats.size.Store(h.size)
		t.stats.stopped.Store(h.stopped != "")
		return tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM event_queue)`).Scan(&waits)
	})
	if err != nil || !waits {
		t.keep(ctx, t.kept.pending) // what came too soon after another
		return 0, err
	}
	var made sequenced
	err = t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		made, err = t.sequence(ctx, tx)
		return err
	})
	switch {
	case errors.Is(err, errAltered):
		t.edge = nil
		return 0, errors.Join(err, t.stop(ctx, "", err))
	case errors.Is(err, fault.ErrChanged): // the lease
		t.edge, t.lease = nil, store.Lease{}
		return 0, fmt.Errorf("sequence the trail: %w", err)
	case err != nil:
		t.edge = nil // also when nobody knows whether the commit took place
		return 0, fmt.Errorf("sequence the trail: %w", err)
	}
	t.edge = made.edge
	t.stats.size.Store(made.edge.size)
	t.stats.sequence.Add(int64(made.events))
	t.keep(ctx, made.signed)
	return made.events, nil
}

// keep puts a checkpoint into the kept file.
func (t *Trail) keep(ctx context.Context, signed string) {
	if err := t.kept.save(signed, t.DB.Tick()); err != nil {
		t.Log.LogAttrs(ctx, slog.LevelWarn, "the newest checkpoint can't be kept outside of the database", slog.Any("error", err))
	}
}

// hold makes sure that this process has the lease. The caller holds mu.
func (t *Trail) hold(ctx context.Context) error {
	now := t.DB.Tick()
	if t.lease.Name != "" && now-t.taken < t.ttl*2/5 {
		return nil
	}
	fresh := t.lease.Name == ""
	lease, err := t.DB.Acquire(ctx, leaseName, t.holder, t.ttl)
	if err != nil {
		t.lease, t.edge = store.Lease{}, nil
		return fmt.Errorf("become the sequencer: %w", err)
	}
	if fresh || lease.Epoch != t.lease.Epoch {
		t.edge = nil
	}
	t.lease, t.taken = lease, now
	return nil
}

// sequenced is what one sequencing made.
type sequenced struct {
	edge   *edge
	events int
	signed string
}

// sequence is one transaction of the sequencer. Every path to a signature goes
// through it: the tree that is signed is the stored one, whose head was signed
// before, with leaves added behind its end; and the swap of the head's row lets
// only one such transaction extend a given head.
func (t *Trail) sequence(ctx context.Context, tx *store.Tx) (sequenced, error) {
	if err := tx.Snapshot(ctx); err != nil {
		return sequenced{}, err
	}
	if err := tx.Fence(ctx, t.lease); err != nil {
		return sequenced{}, err
	}
	h, err := readHead(ctx, tx)
	if err != nil {
		return sequenced{}, err
	}
	if h.stopped != "" {
		return sequenced{}, fault.New(fault.ErrUnavailable, "trail_stopped", "the trail is stopped: %s", h.stopped)
	}
	key, err := t.signer(ctx, tx, h.keyID)
	if err != nil {
		return sequenced{}, err
	}
	if key.note.Name() != h.origin {
		return sequenced{}, fmt.Errorf("%w: its origin is %q, its key is named %q", errAltered, clip(h.origin), key.note.Name())
	}
	e, err := t.extendable(ctx, tx, h)
	if err != nil {
		return sequenced{}, err
	}
	last, hashes, err := queued(ctx, tx)
	if err != nil || len(hashes) == 0 {
		return sequenced{edge: e}, err
	}

	e = e.clone()
	full := map[tile][]tlog.Hash{}
	for _, leaf := range hashes {
		e.add(leaf, func(at tile, hashes []tlog.Hash) { full[at] = hashes })
	}
	e.partial(func(at tile, hashes []tlog.Hash) { full[at] = hashes })
	for at, hashes := range full {
		if err := writeTile(ctx, tx, at, hashes); err != nil {
			return sequenced{}, err
		}
	}
	root := e.root()
	err = tx.Swap(ctx, `UPDATE trail SET size = $1, root = $2 WHERE id = 1 AND size = $3 AND root = $4 AND key_id = $5 AND stopped = ''`, e.size, root[:], h.size, h.root[:], h.keyID)
	if err != nil {
		return sequenced{}, err
	}
	if err := move(ctx, tx, h.size, last, int64(len(hashes))); err != nil {
		return sequenced{}, err
	}
	signed, err := note.Sign(&note.Note{Text: trail.Checkpoint{Origin: h.origin, Size: e.size, Root: root}.Text()}, key.note)
	if err != nil {
		return sequenced{}, fmt.Errorf("sign a checkpoint: %w", err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO checkpoints (size, root, signed, signed_at) VALUES ($1, $2, $3, $4)`, e.size, root[:], string(signed), store.Micros(tx.Now)); err != nil {
		return sequenced{}, fmt.Errorf("write a checkpoint: %w", err)
	}
	return sequenced{edge: e, events: len(hashes), signed: string(signed)}, tx.Announce(ctx, TopicSequenced)
}

// queued returns the leaf hashes of the events that wait, in order, and the
// number of the last.
func queued(ctx context.Context, tx *store.Tx) (last int64, hashes []tlog.Hash, err error) {
	rows, err := tx.Query(ctx, fmt.Sprintf(`SELECT seq, leaf_hash FROM event_queue ORDER BY seq LIMIT %d`, batchSize))
	if err != nil {
		return 0, nil, fmt.Errorf("read the events that wait: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var raw sql.RawBytes
		if err := rows.Scan(&last, &raw); err != nil {
			return 0, nil, err
		}
		if len(raw) != tlog.HashSize {
			return 0, nil, fmt.Errorf("%w: event %d, which waits, has no leaf hash", errAltered, last)
		}
		hashes = append(hashes, tlog.Hash(raw))
	}
	return last, hashes, rows.Err()
}

// move gives the events up to a number their indexes. The transaction sees one
// state of the database, so they are those whose hashes were read.
func move(ctx context.Context, tx *store.Tx, first, last, want int64) error {
	for _, statement := range []string{
		`INSERT INTO events (leaf_index, ` + eventColumns + `, salt, checks, erased)
			SELECT $1 + ROW_NUMBER() OVER (ORDER BY seq) - 1, ` + eventColumns + `, salt, checks, 0 FROM event_queue WHERE seq <= $2 ORDER BY seq`,
		`DELETE FROM event_queue WHERE seq <= $1`,
	} {
		args := []any{first, last}
		if strings.HasPrefix(statement, "DELETE") {
			args = args[1:]
		}
		res, err := tx.Exec(ctx, statement, args...)
		if err != nil {
			return fmt.Errorf("give events their leaf indexes: %w", err)
		}
		if n, err := res.RowsAffected(); err != nil || n != want {
			return errors.Join(err, fmt.Errorf("give events their leaf indexes: %d rows were moved, want %d", n, want))
		}
	}
	return nil
}

// extendable returns the edge of the stored tree after making sure that it is the
// tree that was signed last.
func (t *Trail) extendable(ctx context.Context, tx *store.Tx, h head) (*edge, error) {
	if t.edge != nil {
		if h.size != t.edge.size || h.root != t.edge.root() {
			return nil, fmt.Errorf("%w: this process signed a tree of %d leaves, and finds one of %d", errAltered, t.edge.size, h.size)
		}
		return t.edge, nil
	}
	e, err := loadEdge(ctx, tx, h.size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAltered, err)
	}
	if e.root() != h.root {
		return nil, fmt.Errorf("%w: its tiles do not hash to its root at %d leaves", errAltered, h.size)
	}
	if err := t.signedBefore(ctx, tx, h); err != nil {
		return nil, err
	}
	return e, t.kept.compare(ctx, tx, h)
}

// signedBefore checks that the newest checkpoint is the head and carries a
// signature of the log.
func (t *Trail) signedBefore(ctx context.Context, tx *store.Tx, h head) error {
	signed, err := newestCheckpoint(ctx, tx)
	if errors.Is(err, sql.ErrNoRows) {
		if h.size == 0 {
			return nil
		}
		return fmt.Errorf("%w: it has %d leaves and no checkpoint", errAltered, h.size)
	}
	if err != nil {
		return err
	}
	vkeys, _, err := readKeys(ctx, tx)
	if err != nil {
		return err
	}
	keys, err := trail.ParseKeys(strings.Join(vkeys, "\n"))
	if err != nil {
		return fmt.Errorf("%w: %w", errAltered, err)
	}
	c, err := keys.Open(signed)
	if err != nil {
		return fmt.Errorf("%w: its newest checkpoint: %w", errAltered, err)
	}
	if c.Size != h.size || c.Root != h.root {
		return fmt.Errorf("%w: its newest checkpoint is of %d leaves, its head of %d", errAltered, c.Size, h.size)
	}
	return nil
}

func newestCheckpoint(ctx context.Context, tx *store.Tx) (signed string, err error) {
	err = tx.QueryRow(ctx, `SELECT signed FROM checkpoints ORDER BY size DESC LIMIT 1`).Scan(&signed)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read the newest checkpoint: %w", err)
	}
	return signed, err
}

// Stop stops the log of an origin for a reason from outside: a place that holds a
// checkpoint, signed by it, that the stored tree does not extend. It does nothing
// once that log was restarted under another origin.
func (t *Trail) Stop(ctx context.Context, origin string, why error) error {
	return t.stop(ctx, origin, fmt.Errorf("%w: %w", errAltered, why))
}

// stop writes down that nothing may be recorded any more, and why; origin "" is
// any.
func (t *Trail) stop(ctx context.Context, origin string, why error) error {
	t.stats.stopped.Store(true)
	t.Log.LogAttrs(ctx, slog.LevelError, "the trail is stopped: changes are refused until an admin has looked (rotunda audit status)", slog.Any("error", why))
	return t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE trail SET stopped = $1 WHERE id = 1 AND stopped = '' AND (origin = $2 OR $3 = '')`, clip(why.Error()), origin, origin)
		return err
	})
}

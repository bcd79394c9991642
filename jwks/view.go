package jwks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// view is this process's copy of what is published. Documents are served from
// it and tokens are signed from it, so that a stopped database stops neither
// at once: documents are served for as long as the process lives, tokens are
// signed for SignerLease.
type view struct {
	turn    chan struct{} // holds a token while a refresh runs: one at a time
	change  int64         // how far the counter of changes was seen
	resync  bool          // the next refresh reads everything
	whole   time.Duration // DB.Tick when everything was last read
	sets    sync.Map      // name → *entry
	fresh   atomic.Int64  // DB.Tick when the last complete refresh began
	loaded  atomic.Bool
	waiters waiters
}

func newView() *view {
	return &view{turn: make(chan struct{}, 1), waiters: waiters{ch: make(chan struct{})}}
}

// entry is a keyset as of one change. It never changes, but for what the
// signing keys learn.
type entry struct {
	set     *Keyset
	doc     *Document
	active  *signing
	standby *signing
}

// waiters are told of every change.
type waiters struct {
	mu sync.Mutex
	ch chan struct{}
}

func (w *waiters) wait() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ch
}

func (w *waiters) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.ch)
	w.ch = make(chan struct{})
}

const (
	refreshBatch = 500
	// resyncEvery is how often everything is read again, whatever the counter says.
	resyncEvery = 10 * time.Minute
)

// Refresh brings this process's documents up to date with the database. It is
// called at start, after every change, and by Pass about once a second.
func (ks *Keysets) Refresh(ctx context.Context) error {
	select {
	case ks.view.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-ks.view.turn }()
	return ks.refresh(ctx)
}

// renewLease is Refresh for a signature that waits for it: it gives up soon,
// and is content with a refresh that another one made meanwhile.
func (ks *Keysets) renewLease(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	select {
	case ks.view.turn <- struct{}{}:
	case <-ctx.Done():
		return errors.New("another request is waiting for it already")
	}
	defer func() { <-ks.view.turn }()
	if ks.Staleness() <= SignerLease/2 {
		return nil
	}
	return ks.refresh(ctx)
}

func (ks *Keysets) refresh(ctx context.Context) error {
	v := ks.view
	changed := false
	defer func() {
		if changed {
			v.waiters.wake()
		}
	}()
	began := ks.db.Tick()
	from := v.change
	if v.resync || began-v.whole >= resyncEvery {
		from = 0
	}
	all := from == 0
	listed := map[string]bool{}
	for {
		var sets []*Keyset
		var total int64
		err := ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
			if err := tx.QueryRow(ctx, `SELECT changes FROM publication WHERE id = 1`).Scan(&total); err != nil {
				return err
			}
			sets, err = ks.querySets(ctx, tx, `SELECT `+keysetColumns+` FROM keysets WHERE change > $1 ORDER BY change LIMIT $2`, from, refreshBatch)
			return err
		})
		if err != nil {
			// What answers next may be another database: a standby that was behind.
			v.resync = true
			return fmt.Errorf("refresh keysets: %w", err)
		}
		if total < v.change && !all {
			// The counter went back: an older copy of the database took over.
			ks.log.LogAttrs(ctx, slog.LevelError, "the database is older than it was: an earlier copy of it took over; all keysets are read again", slog.Int64("seen", v.change), slog.Int64("found", total))
			from, all = 0, true
			continue
		}
		for _, s := range sets {
			from = s.Change
			listed[s.Name] = true
			old, _ := v.entry(s.Name)
			e, err := ks.newEntry(ctx, s, old)
			if err != nil {
				return err
			}
			if e != nil {
				v.sets.Store(s.Name, e)
				changed = changed || old == nil || old.doc.Version != e.doc.Version || old.doc.ETag != e.doc.ETag
			}
		}
		if len(sets) < refreshBatch {
			v.change, v.resync = total, false
			break
		}
	}
	if all {
		v.whole = began
		v.sets.Range(func(name, _ any) bool {
			if !listed[name.(string)] {
				v.sets.Delete(name)
				changed = true
			}
			return true
		})
	}
	v.fresh.Store(int64(began))
	v.loaded.Store(true)
	return nil
}

// newEntry makes what is served and signed with of a keyset; nil keeps what was
// there before.
func (ks *Keysets) newEntry(ctx context.Context, s *Keyset, old *entry) (*entry, error) {
	if s.Foreign {
		ks.log.LogAttrs(ctx, slog.LevelError, "the row of a keyset was changed in the database by somebody else: its document stays as it was, and it signs nothing", slog.String("keyset", s.Name))
		if old == nil {
			return nil, nil
		}
		return &entry{set: old.set, doc: old.doc}, nil
	}
	for _, k := range s.Tampered {
		ks.log.LogAttrs(ctx, slog.LevelError, "the row of a signing key was changed in the database by somebody else: it is not published; revoke it", slog.String("keyset", s.Name), slog.String("kid", k.Kid))
	}
	doc, err := render(s)
	if err != nil {
		return nil, err
	}
	return &entry{set: s, doc: doc, active: old.carry(s.Active()), standby: old.carry(s.Standby())}, nil
}

// carry returns the signing state of k, kept from e where e had it.
func (e *entry) carry(k *Key) *signing {
	if k == nil {
		return nil
	}
	if e != nil {
		for _, s := range []*signing{e.active, e.standby} {
			if s != nil && s.kid == k.Kid {
				s.learn(k.MaxTokenLife)
				return s
			}
		}
	}
	s := &signing{keysetID: k.KeysetID, kid: k.Kid, home: k.Home}
	s.learn(k.MaxTokenLife)
	return s
}

func (v *view) entry(name string) (*entry, bool) {
	e, ok := v.sets.Load(name)
	if !ok {
		return nil, false
	}
	return e.(*entry), true
}

// Loaded reports whether documents have been read from the database since the start.
func (ks *Keysets) Loaded() bool { return ks.view.loaded.Load() }

// Staleness is how long ago this process last heard from the database.
func (ks *Keysets) Staleness() time.Duration {
	return ks.db.Tick() - time.Duration(ks.view.fresh.Load())
}

// Document returns the document of a keyset from memory, or nil.
func (ks *Keysets) Document(name string) *Document {
	if e, ok := ks.view.entry(name); ok {
		return e.doc
	}
	return nil
}

// Published calls f for each keyset in memory, until f returns false. f must
// not change it.
func (ks *Keysets) Published(f func(*Keyset) bool) {
	ks.view.sets.Range(func(_, e any) bool { return f(e.(*entry).set) })
}

// Watch calls f with the keyset's document whenever it has a version larger
// than after, until ctx ends or f fails. It calls f at once when there is one
// already. The keyset must exist when Watch begins.
func (ks *Keysets) Watch(ctx context.Context, name string, after int64, f func(*Document) error) error {
	for sent := false; ; {
		changed := ks.view.waiters.wait()
		d := ks.Document(name)
		if d == nil {
			return fault.New(fault.ErrNotFound, "keyset_not_found", "watch: keyset %q does not exist: see `rotunda keyset list`", clip(name)).On("name")
		}
		// It goes back only when an older copy of the database took over.
		if d.Version > after || sent && d.Version != after {
			if err := f(d); err != nil {
				return err
			}
			after, sent = d.Version, true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// signing is what this process knows of one key in order to sign with it.
type signing struct {
	keysetID, kid, home string

	mu     sync.Mutex
	signer Signer // nil until first use

	life  atomic.Int64 // MaxTokenLife that is committed, nanoseconds
	count atomic.Int64 // tokens signed and not yet written to signing_counts
}

func (s *signing) learn(life time.Duration) {
	for {
		old := s.life.Load()
		if int64(life) <= old || s.life.CompareAndSwap(old, int64(life)) {
			return
		}
	}
}

// open returns the key's signer, opening it at its home the first time.
func (ks *Keysets) open(ctx context.Context, s *signing) (Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signer != nil {
		return s.signer, nil
	}
	home, ok := ks.homes[s.home]
	if !ok {
		return nil, outOfReach(fault.New(fault.ErrUnavailable, "signer_unreachable", "its home %q is not configured", s.home))
	}
	var k Key
	err := ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		k, err = scanKey(tx.QueryRow(ctx, `SELECT `+keyColumns+` FROM signing_keys WHERE keyset_id = $1 AND kid = $2`, s.keysetID, s.kid))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open key %s: %w", s.kid, err)
	}
	if !k.State.Published() || k.State == Retiring {
		return nil, errMoved
	}
	if s.signer, err = home.Open(ctx, k); err != nil {
		return nil, outOfReach(fmt.Errorf("its home %q: %w", s.home, err))
	}
	return s.signer, nil
}

// errMoved says that a key has left the state in which this process knew it.
var errMoved = errors.New("the key's state has changed")

package jwks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// view is this process's copy of what is published. Documents are served from
// it and tokens are signed from it, so that a stopped database stops neither
// at once: documents are served for as long as the process lives, tokens are
// signed for SignerLease.
type view struct {
	turn    chan struct{} // holds a token while a refresh runs: one at a time
	next    int64         // the leaf index up to which events were seen
	resync  bool          // the next refresh reads everything, and believes nothing in memory
	whole   time.Duration // DB.Tick when everything was last read
	nextAt  time.Time     // when the first keyset has a move, or zero
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
	odd     string // which rows of it somebody else changed
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
	// resyncEvery is how often everything is read again, whatever the trail says.
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

// readings is what one refresh has found out.
type readings struct {
	names  []string // what to read again, beside all
	all    bool
	anew   bool // what is in memory may be of another database than this one
	next   int64
	listed map[string]bool
}

func (ks *Keysets) refresh(ctx context.Context) (err error) {
	v := ks.view
	changed := false
	defer func() {
		if err != nil {
			// What answers next may be another database: a standby that was behind.
			v.resync = true
		}
		if changed {
			v.waiters.wake()
		}
	}()
	began := ks.db.Tick()
	r := readings{listed: map[string]bool{}}
	for after := ""; ; {
		var sets []*Keyset
		err := ks.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
			if after == "" {
				if err := ks.changes(ctx, tx, began, &r); err != nil {
					return err
				}
			}
			if r.all {
				sets, err = ks.querySets(ctx, tx, `SELECT `+keysetColumns+` FROM keysets WHERE name > $1 ORDER BY name LIMIT $2`, after, refreshBatch)
				return err
			}
			sets = nil
			for _, name := range r.names {
				some, err := ks.querySets(ctx, tx, `SELECT `+keysetColumns+` FROM keysets WHERE name = $1`, name)
				if err != nil {
					return err
				}
				sets = append(sets, some...)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("refresh keysets: %w", err)
		}
		for _, s := range sets {
			after, r.listed[s.Name] = s.Name, true
			old, _ := v.entry(s.Name)
			e, err := ks.newEntry(ctx, s, old, r)
			if err != nil {
				return err
			}
			if e != nil {
				v.sets.Store(s.Name, e)
				v.expect(e)
				changed = changed || old == nil || old.doc.Version != e.doc.Version || old.doc.ETag != e.doc.ETag
			}
		}
		if !r.all || len(sets) < refreshBatch {
			break
		}
	}
	if r.all {
		v.whole = began
		v.sets.Range(func(name, _ any) bool {
			if !r.listed[name.(string)] {
				v.sets.Delete(name)
				changed = true
			}
			return true
		})
	}
	v.next, v.resync = r.next, false
	v.fresh.Store(int64(began))
	v.loaded.Store(true)
	return nil
}

// changes finds out what to read again, in the transaction that then reads it.
// Of a reading of everything in several transactions it is the first, so what
// is committed between them is found by the next refresh.
func (ks *Keysets) changes(ctx context.Context, tx *store.Tx, began time.Duration, r *readings) (err error) {
	v, from := ks.view, int64(-1)
	if v.loaded.Load() && !v.resync && began-v.whole < resyncEvery {
		from = v.next
	}
	changed, next, all, err := audit.Changes(ctx, tx, from, "keysets/")
	if err != nil {
		return err
	}
	r.names, r.next, r.all = nil, next, all
	for _, c := range changed {
		name, _, _ := strings.Cut(c, "/")
		r.names = append(r.names, name)
	}
	slices.Sort(r.names)
	r.names = slices.Compact(r.names)
	r.anew = v.resync
	if r.next < v.next {
		ks.log.LogAttrs(ctx, slog.LevelError, "the database is older than it was: an earlier copy of it took over; all keysets are read again", slog.Int64("seen", v.next), slog.Int64("found", r.next))
		r.anew = true
	}
	r.names = append(r.names, v.late(tx.Now)...)
	return nil
}

// expect notes when a keyset is to be looked at again though it has no event:
// next_at may move without one.
func (v *view) expect(e *entry) {
	if at := e.set.NextAt; e.odd == "" && (v.nextAt.IsZero() || at.Before(v.nextAt)) {
		v.nextAt = at
	}
}

// late names keysets whose next move is past, as far as this process knows.
func (v *view) late(now time.Time) (names []string) {
	if v.nextAt.IsZero() || now.Before(v.nextAt) {
		return nil
	}
	v.nextAt = time.Time{}
	v.sets.Range(func(name, value any) bool {
		e := value.(*entry)
		if e.odd == "" && !now.Before(e.set.NextAt) && len(names) < refreshBatch {
			names = append(names, name.(string))
		}
		v.expect(e)
		return true
	})
	return names
}

// followPause bounds how often Follow looks.
const followPause = 50 * time.Millisecond

// Follow refreshes this process's documents whenever the trail grows, until ctx
// ends: so a change of another process is served within a fraction of a second.
// Wake-ups can be lost, and a refresh can fail; Pass, which makes up for both,
// tells of failures.
func (ks *Keysets) Follow(ctx context.Context) {
	woken, stop := ks.db.Listen(audit.TopicSequenced)
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-woken:
		}
		_ = ks.Refresh(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(followPause):
		}
	}
}

// foreign is the odd of an entry whose keyset's row somebody else changed.
const foreign = "foreign"

// newEntry makes what is served and signed with of a keyset; nil keeps what was
// there before.
func (ks *Keysets) newEntry(ctx context.Context, s *Keyset, old *entry, r readings) (*entry, error) {
	odd := ""
	if s.Foreign {
		odd = foreign
	}
	for _, k := range s.Tampered {
		odd += " " + k.Kid
	}
	if odd != "" && (old == nil || odd != old.odd || r.all) { // else it was said before
		ks.report(ctx, s)
	}
	if s.Foreign {
		if old == nil {
			return nil, nil
		}
		return &entry{set: old.set, doc: old.doc, odd: odd}, nil
	}
	doc, err := render(s)
	if err != nil {
		return nil, err
	}
	from := old
	if r.anew {
		// What another database said of a key, a longer life of its tokens above
		// all, may be lost.
		from = nil
	}
	return &entry{set: s, doc: doc, odd: odd, active: from.carry(s, s.Active()), standby: from.carry(s, s.Standby())}, nil
}

// report logs rows that somebody else changed.
func (ks *Keysets) report(ctx context.Context, s *Keyset) {
	if s.Foreign {
		ks.log.LogAttrs(ctx, slog.LevelError, "the row of a keyset was changed in the database by somebody else: its document stays as it was, and it signs nothing", slog.String("keyset", s.Name))
	}
	for _, k := range s.Tampered {
		ks.log.LogAttrs(ctx, slog.LevelError, "the row of a signing key was changed in the database by somebody else: it is not published; revoke it", slog.String("keyset", s.Name), slog.String("kid", k.Kid))
	}
}

// carry returns the signing state of a key of set, kept from e where e had it. The life is
// always the row's: what it lags behind costs one more write of the same life.
func (e *entry) carry(set *Keyset, k *Key) *signing {
	if k == nil {
		return nil
	}
	if e != nil {
		for _, s := range []*signing{e.active, e.standby} {
			if s != nil && s.kid == k.Kid {
				s.life.Store(int64(k.MaxTokenLife))
				return s
			}
		}
	}
	s := &signing{keysetID: k.KeysetID, kid: k.Kid, home: k.Home, resource: set.resource(k.Kid)}
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
	resource            string // in the trail

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

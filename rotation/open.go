package rotation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	maxOpen = 512              // open systems of one sort
	maxIdle = 10 * time.Minute // an open system that nobody asked for is closed

	// An open system that was superseded may still be in use, for as long as an effect takes.
	maxLinger = 5 * time.Minute
)

// opened are the open systems of one sort. The zero value is ready. An entry is what a row said
// at one version, with one login; when either changes the next caller opens anew.
type opened[T io.Closer] struct {
	mu      sync.Mutex
	entries map[string]*openEntry[T]
	linger  []*openEntry[T] // superseded, and not closed yet
	closed  bool
}

type openEntry[T io.Closer] struct {
	once   sync.Mutex // held while it is opened
	stamp  string     // what it was opened with
	ready  bool
	system T
	used   time.Duration // by the monotonic clock
}

// get returns the open system of a name and stamp, which it opens when there is none.
func (o *opened[T]) get(name, stamp string, now time.Duration, open func() (T, error), closeFailed func(error)) (T, error) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		var none T
		return none, fault.New(fault.ErrUnavailable, "closed", "the systems are closed")
	}
	if o.entries == nil {
		o.entries = map[string]*openEntry[T]{}
	}
	e := o.entries[name]
	if e == nil || e.stamp != stamp {
		if e != nil {
			o.linger = append(o.linger, e)
		}
		e = &openEntry[T]{stamp: stamp}
		o.entries[name] = e
	}
	e.used = now
	over := o.evict(name, now)
	o.mu.Unlock()
	for _, x := range over {
		if err := x.shut(); err != nil {
			closeFailed(err)
		}
	}

	// Whoever else wants this one waits here; those who want another one do not.
	e.once.Lock()
	defer e.once.Unlock()
	if e.ready {
		return e.system, nil
	}
	system, err := open()
	if err != nil {
		o.mu.Lock()
		if o.entries[name] == e {
			delete(o.entries, name)
		}
		o.mu.Unlock()
		return system, err
	}
	e.system, e.ready = system, true
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		e.ready = false
		return system, errors.Join(fault.New(fault.ErrUnavailable, "closed", "the systems are closed"), system.Close())
	}
	// One whose first opening failed, while we waited for it, is no longer there.
	if o.entries[name] == nil {
		o.entries[name] = e
	} else if o.entries[name] != e && !slices.Contains(o.linger, e) {
		o.linger = append(o.linger, e)
	}
	return system, nil
}

// evict takes out what nobody can be using any more.
func (o *opened[T]) evict(keep string, now time.Duration) (over []*openEntry[T]) {
	o.linger = slices.DeleteFunc(o.linger, func(e *openEntry[T]) bool {
		if now-e.used < maxLinger {
			return false
		}
		over = append(over, e)
		return true
	})
	oldest := ""
	for name, e := range o.entries {
		switch {
		case name == keep:
		case now-e.used >= maxIdle:
			over = append(over, e)
			delete(o.entries, name)
		case oldest == "" || e.used < o.entries[oldest].used:
			oldest = name
		}
	}
	if len(o.entries) > maxOpen && oldest != "" {
		o.linger = append(o.linger, o.entries[oldest])
		delete(o.entries, oldest)
	}
	return over
}

func (e *openEntry[T]) shut() error {
	e.once.Lock()
	defer e.once.Unlock()
	if !e.ready {
		return nil
	}
	e.ready = false
	return e.system.Close()
}

func (o *opened[T]) close() error {
	o.mu.Lock()
	all := slices.AppendSeq(slices.Clone(o.linger), maps.Values(o.entries))
	o.entries, o.linger, o.closed = nil, nil, true
	o.mu.Unlock()
	var errs []error
	for _, e := range all {
		errs = append(errs, e.shut())
	}
	return errors.Join(errs...)
}

// Close closes all open systems. Nothing can be opened afterwards.
func (s *Systems) Close() error {
	return errors.Join(s.openTargets.close(), s.openStores.close())
}

// openTarget returns an open target. It must not be closed: it is shared, and closed when it was
// superseded or nobody asked for it.
func (s *Systems) openTarget(ctx context.Context, name string) (providers.Target, providers.TargetKind, error) {
	cfg, logins, stamp, kindName, err := s.toOpen(ctx, TargetSort, name)
	if err != nil {
		return nil, providers.TargetKind{}, fmt.Errorf("open target %q: %w", clip(name), err)
	}
	kind, err := s.targetKind(kindName)
	if err != nil {
		return nil, kind, fmt.Errorf("open target %q: %w", clip(name), err)
	}
	t, err := s.openTargets.get(name, stamp, s.db.Tick(), func() (providers.Target, error) {
		open := func(ctx context.Context, login providers.Fields) (providers.Target, error) {
			c := cfg
			c.Login = login
			return kind.Open(ctx, c)
		}
		if logins == nil {
			return open(ctx, cfg.Login)
		}
		return newLoginTarget(ctx, logins, kind.Login, open)
	}, s.closeFailed(TargetSort, name))
	if err != nil {
		return nil, kind, fmt.Errorf("open target %q: %w", clip(name), err)
	}
	return t, kind, nil
}

// openStore is like openTarget.
func (s *Systems) openStore(ctx context.Context, name string) (providers.Store, providers.StoreKind, error) {
	cfg, logins, stamp, kindName, err := s.toOpen(ctx, StoreSort, name)
	if err != nil {
		return nil, providers.StoreKind{}, fmt.Errorf("open store %q: %w", clip(name), err)
	}
	kind, err := s.storeKind(kindName)
	if err != nil {
		return nil, kind, fmt.Errorf("open store %q: %w", clip(name), err)
	}
	st, err := s.openStores.get(name, stamp, s.db.Tick(), func() (providers.Store, error) {
		open := func(ctx context.Context, login providers.Fields) (providers.Store, error) {
			c := cfg
			c.Login = login
			return kind.Open(ctx, c)
		}
		if logins == nil {
			return open(ctx, cfg.Login)
		}
		return newLoginStore(ctx, logins, kind.Login, open)
	}, s.closeFailed(StoreSort, name))
	if err != nil {
		return nil, kind, fmt.Errorf("open store %q: %w", clip(name), err)
	}
	return st, kind, nil
}

func (s *Systems) closeFailed(sort Sort, name string) func(error) {
	return func(err error) {
		s.log.Warn("closing a system that nobody uses any more", "sort", sort, "asked_for", name, "error", err)
	}
}

// toOpen reads what a system is opened with. stamp tells two openings apart; logins are the values
// of a login credential, the one to begin with first, and nil without one.
func (s *Systems) toOpen(ctx context.Context, sort Sort, name string) (cfg providers.Config, logins []providers.Fields, stamp, kind string, err error) {
	var row *systemRow
	var versions []*CredentialVersion
	err = s.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		versions = nil
		if row, err = s.readSystem(ctx, tx, sort, name); err != nil || row.LoginCredential == "" {
			return err
		}
		if _, err := s.readCredential(ctx, tx, row.LoginCredential); err != nil {
			return err
		}
		versions, err = readLiveVersions(ctx, tx, s.key, row.LoginCredential)
		return err
	})
	if err != nil {
		return cfg, nil, "", "", err
	}
	cfg = providers.Config{Name: name, Settings: maps.Clone(row.Settings), Now: s.db.Now}
	stamp = fmt.Sprint(row.CreatedAt.UnixMicro(), " ", row.Version)
	if row.LoginCredential == "" {
		if row.login != nil {
			v, err := s.sealer.Open(ctx, loginPlace(sort, name), row.login)
			if err != nil {
				return cfg, nil, "", "", err
			}
			defer v.Destroy()
			if cfg.Login, err = providers.Decode(v); err != nil {
				return cfg, nil, "", "", err
			}
		}
		return cfg, nil, stamp, row.Kind, nil
	}
	// What consumers read, then what is about to replace it, then what it has replaced: during
	// a rotation of the login one of them is accepted.
	rank := map[VersionState]int{Current: 0, Staged: 1, Previous: 2}
	slices.SortStableFunc(versions, func(a, b *CredentialVersion) int { return rank[a.State] - rank[b.State] })
	if len(versions) > maxLogins {
		versions = versions[:maxLogins]
	}
	var b strings.Builder
	for _, v := range versions {
		f, err := openVersion(ctx, s.sealer, v)
		if err != nil {
			return cfg, nil, "", "", err
		}
		if f != nil {
			logins = append(logins, f)
			fmt.Fprintf(&b, " %d:%s", v.Generation, v.State)
		}
	}
	if len(logins) == 0 {
		return cfg, nil, "", "", fault.New(fault.ErrUnavailable, "login_without_value", "its login is credential %q, which has no value yet: rotate that first", row.LoginCredential)
	}
	return cfg, logins, stamp + b.String(), row.Kind, nil
}

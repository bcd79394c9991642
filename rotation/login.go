package rotation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// checkLoginCredential refuses a login credential that is not there, and loops: a system whose
// login is a credential of a target whose login is … of this system.
func (s *Systems) checkLoginCredential(ctx context.Context, tx *store.Tx, row *systemRow) error {
	if row.LoginCredential == "" {
		return nil
	}
	c, err := s.lockCredential(ctx, tx, row.LoginCredential)
	if errors.Is(err, fault.ErrNotFound) {
		return fault.Invalid("login_credential", "credential_not_found", "there is no credential %q to log in with", clip(row.LoginCredential))
	}
	if err != nil {
		return err
	}
	kind := providers.TargetKind{}
	if row.Sort == TargetSort && c.Target == row.Name {
		if kind, err = s.targetKind(row.Kind); err != nil {
			return err
		}
		return checkSelfReference(c.Spec, kind, row.Name)
	}
	return s.checkLoginLoop(ctx, tx, row.Sort, row.Name, c)
}

// maxLoginChain bounds the credentials that one login depends on.
const maxLoginChain = 8

// checkLoginLoop follows from a login credential to the login of its target, and so on.
func (s *Systems) checkLoginLoop(ctx context.Context, tx *store.Tx, sort Sort, name string, c *Credential) error {
	chain := []string{string(sort) + "s/" + name, c.Resource()}
	for range maxLoginChain {
		chain = append(chain, "targets/"+c.Target)
		if sort == TargetSort && c.Target == name {
			return fault.Invalid("login_credential", "login_loop", "the login depends on itself: %q: break the loop with a login of its own", chain)
		}
		target, err := s.readSystem(ctx, tx, TargetSort, c.Target)
		if err != nil {
			return err
		}
		next := target.LoginCredential
		if next == "" || next == c.Name {
			return nil
		}
		if c, err = s.readCredential(ctx, tx, next); err != nil {
			return err
		}
		chain = append(chain, c.Resource())
	}
	return fault.Invalid("login_credential", "login_loop", "the login depends on more than %d credentials, or on itself: %q", maxLoginChain, chain)
}

// maxLogins bounds the values of a login credential that are tried: each may count as a failed
// login with the other side.
const maxLogins = 3

// logins opens a system with one of several logins. When a call is denied and there is another
// login, the call is made again with that: every effect may be repeated with the same arguments.
// The login that was not denied is kept.
type logins[T io.Closer] struct {
	open       func(ctx context.Context, login providers.Fields) (T, error)
	candidates []providers.Fields

	mu     sync.Mutex
	at     int // the candidate in use
	opened map[int]T
}

func newLogins[T io.Closer](values []providers.Fields, declared []providers.Setting, open func(context.Context, providers.Fields) (T, error)) (*logins[T], error) {
	l := &logins[T]{open: open, opened: map[int]T{}}
	for _, v := range values {
		// The credential may have fields that are no part of a login: host, port.
		login := providers.Fields{}
		for _, s := range declared {
			if f, ok := v[s.Name]; ok {
				login[s.Name] = f
			}
		}
		complete, err := completeLogin(declared, login)
		if err != nil {
			return nil, fmt.Errorf("the value of its login credential: %w", err)
		}
		l.candidates = append(l.candidates, complete)
	}
	return l, nil
}

// use returns the system opened with a candidate.
func (l *logins[T]) use(ctx context.Context, i int) (T, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.opened[i]; ok {
		return t, nil
	}
	t, err := l.open(ctx, l.candidates[i])
	if err == nil {
		l.opened[i] = t
	}
	return t, err
}

// do makes a call with the login in use, and with the others while it is denied. When all are,
// the error is that of the first: what is wrong may well be no login.
func (l *logins[T]) do(ctx context.Context, call func(T) error) error {
	l.mu.Lock()
	first := l.at
	l.mu.Unlock()
	var denied error
	for n := range l.candidates {
		i := (first + n) % len(l.candidates)
		t, err := l.use(ctx, i)
		if err == nil {
			err = call(t)
		}
		if err != nil && errors.Is(err, fault.ErrDenied) && !errors.Is(err, fault.ErrUnavailable) {
			if denied == nil {
				denied = err
			}
			continue
		}
		if err != nil && denied != nil {
			return denied
		}
		l.mu.Lock()
		l.at = i
		l.mu.Unlock()
		return err
	}
	return denied
}

// Close closes what was opened with any login.
func (l *logins[T]) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, t := range l.opened {
		errs = append(errs, t.Close())
	}
	clear(l.opened)
	return errors.Join(errs...)
}

// loginTarget is a target whose login is a credential.
type loginTarget struct{ *logins[providers.Target] }

func newLoginTarget(ctx context.Context, values []providers.Fields, declared []providers.Setting, open func(context.Context, providers.Fields) (providers.Target, error)) (providers.Target, error) {
	l, err := newLogins(values, declared, open)
	if err != nil {
		return nil, err
	}
	t := loginTarget{l}
	// An adapter that logs in when it is opened falls back, too.
	var scratches bool
	err = l.do(ctx, func(inner providers.Target) error {
		_, scratches = inner.(providers.Scratcher)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if scratches {
		return scratchTarget{t}, nil
	}
	return t, nil
}

func (t loginTarget) Check(ctx context.Context, c providers.Change) (out []providers.Finding, err error) {
	err = t.do(ctx, func(t providers.Target) error { out, err = t.Check(ctx, c); return err })
	return out, err
}

func (t loginTarget) Prepare(ctx context.Context, c providers.Change) (out providers.Change, err error) {
	err = t.do(ctx, func(t providers.Target) error { out, err = t.Prepare(ctx, c); return err })
	return out, err
}

func (t loginTarget) Apply(ctx context.Context, c providers.Change) (out providers.Held, err error) {
	err = t.do(ctx, func(t providers.Target) error { out, err = t.Apply(ctx, c); return err })
	return out, err
}

func (t loginTarget) Verify(ctx context.Context, c providers.Change, h providers.Held) error {
	return t.do(ctx, func(t providers.Target) error { return t.Verify(ctx, c, h) })
}

func (t loginTarget) Applied(ctx context.Context, c providers.Change, account string) (out providers.Applied, err error) {
	err = t.do(ctx, func(t providers.Target) error { out, err = t.Applied(ctx, c, account); return err })
	return out, err
}

func (t loginTarget) Usage(ctx context.Context, c providers.Change, h providers.Held) (out providers.Evidence, err error) {
	err = t.do(ctx, func(t providers.Target) error { out, err = t.Usage(ctx, c, h); return err })
	return out, err
}

func (t loginTarget) Retire(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
	return t.do(ctx, func(t providers.Target) error { return t.Retire(ctx, c, h, end) })
}

func (t loginTarget) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	return t.do(ctx, func(t providers.Target) error { return t.Revoke(ctx, c, h) })
}

// scratchTarget is a loginTarget that can make throw-away accounts.
type scratchTarget struct{ loginTarget }

func (t scratchTarget) Scratch(ctx context.Context, c providers.Change, suffix string) (out map[string]string, err error) {
	err = t.do(ctx, func(t providers.Target) error {
		out, err = t.(providers.Scratcher).Scratch(ctx, c, suffix)
		return err
	})
	return out, err
}

func (t scratchTarget) Unscratch(ctx context.Context, c providers.Change, suffix string) error {
	return t.do(ctx, func(t providers.Target) error { return t.(providers.Scratcher).Unscratch(ctx, c, suffix) })
}

// loginStore is a store whose login is a credential.
type loginStore struct{ *logins[providers.Store] }

func newLoginStore(ctx context.Context, values []providers.Fields, declared []providers.Setting, open func(context.Context, providers.Fields) (providers.Store, error)) (providers.Store, error) {
	l, err := newLogins(values, declared, open)
	if err != nil {
		return nil, err
	}
	if err := l.do(ctx, func(providers.Store) error { return nil }); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return loginStore{l}, nil
}

func (s loginStore) Check(ctx context.Context, path string) (out []providers.Finding, err error) {
	err = s.do(ctx, func(s providers.Store) error { out, err = s.Check(ctx, path); return err })
	return out, err
}

func (s loginStore) Read(ctx context.Context, path string) (out providers.Served, err error) {
	err = s.do(ctx, func(s providers.Store) error { out, err = s.Read(ctx, path); return err })
	return out, err
}

func (s loginStore) Stage(ctx context.Context, path string, v providers.Version) error {
	return s.do(ctx, func(s providers.Store) error { return s.Stage(ctx, path, v) })
}

func (s loginStore) Publish(ctx context.Context, path string, v providers.Version, prior string) (out string, err error) {
	err = s.do(ctx, func(s providers.Store) error { out, err = s.Publish(ctx, path, v, prior); return err })
	return out, err
}

func (s loginStore) Discard(ctx context.Context, path string, v providers.Version) error {
	return s.do(ctx, func(s providers.Store) error { return s.Discard(ctx, path, v) })
}

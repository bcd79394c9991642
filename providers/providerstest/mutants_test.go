package providerstest

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// mutantTarget is an adapter with a fault: the methods that are set replace its own.
type mutantTarget struct {
	providers.Target
	check   func(ctx context.Context, c providers.Change) ([]providers.Finding, error)
	prepare func(ctx context.Context, c providers.Change) (providers.Change, error)
	apply   func(ctx context.Context, c providers.Change) (providers.Held, error)
	verify  func(ctx context.Context, c providers.Change, h providers.Held) error
	applied func(ctx context.Context, c providers.Change, account string) (providers.Applied, error)
	retire  func(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error
	revoke  func(ctx context.Context, c providers.Change, h providers.Held) error
}

func (t *mutantTarget) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	if t.check != nil {
		return t.check(ctx, c)
	}
	return t.Target.Check(ctx, c)
}

func (t *mutantTarget) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	if t.prepare != nil {
		return t.prepare(ctx, c)
	}
	return t.Target.Prepare(ctx, c)
}

func (t *mutantTarget) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	if t.apply != nil {
		return t.apply(ctx, c)
	}
	return t.Target.Apply(ctx, c)
}

func (t *mutantTarget) Verify(ctx context.Context, c providers.Change, h providers.Held) error {
	if t.verify != nil {
		return t.verify(ctx, c, h)
	}
	return t.Target.Verify(ctx, c, h)
}

func (t *mutantTarget) Applied(ctx context.Context, c providers.Change, account string) (providers.Applied, error) {
	if t.applied != nil {
		return t.applied(ctx, c, account)
	}
	return t.Target.Applied(ctx, c, account)
}

func (t *mutantTarget) Retire(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
	if t.retire != nil {
		return t.retire(ctx, c, h, end)
	}
	return t.Target.Retire(ctx, c, h, end)
}

func (t *mutantTarget) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	if t.revoke != nil {
		return t.revoke(ctx, c, h)
	}
	return t.Target.Revoke(ctx, c, h)
}

// forget takes the marker of an account away, and so its fence.
func (m *Memory) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.accounts[name].marker = providers.Applied{}
}

func (m *Memory) dropAll(name string, drop func(i int, v *value) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, i := m.accounts[name], -1
	a.values = slices.DeleteFunc(a.values, func(v *value) bool { i++; return drop(i, v) })
}

// TestTargetSuiteWhenAdapterIsWrong: each of these faults is one that an adapter could
// have and still work on a quiet day. The suite finds every one.
func TestTargetSuiteWhenAdapterIsWrong(t *testing.T) {
	for name, mutant := range map[string]struct {
		conf MemoryConfig
		make func(m *Memory, t *mutantTarget)
	}{
		"Revoke deletes the oldest": {make: func(m *Memory, t *mutantTarget) {
			t.revoke = func(_ context.Context, _ providers.Change, h providers.Held) error {
				m.dropAll(h.Account, func(i int, _ *value) bool { return i == 0 })
				return nil
			}
		}},
		"Revoke deletes all but the newest": {make: func(m *Memory, t *mutantTarget) {
			t.revoke = func(_ context.Context, _ providers.Change, h providers.Held) error {
				n := len(m.accounts[h.Account].values)
				m.dropAll(h.Account, func(i int, _ *value) bool { return i < n-1 })
				return nil
			}
		}},
		"Revoke empties the account": {make: func(m *Memory, t *mutantTarget) {
			t.revoke = func(_ context.Context, c providers.Change, h providers.Held) error {
				if c.Strategy == providers.Alternate {
					m.dropAll(h.Account, func(int, *value) bool { return true })
					return nil
				}
				return t.Target.Revoke(context.Background(), c, h)
			}
		}},
		"Revoke does nothing": {make: func(_ *Memory, t *mutantTarget) {
			t.revoke = func(context.Context, providers.Change, providers.Held) error { return nil }
		}},
		"Revoke of what is gone fails": {make: func(m *Memory, t *mutantTarget) {
			t.revoke = func(ctx context.Context, c providers.Change, h providers.Held) error {
				if !m.Accepts(h) {
					return fault.New(fault.ErrNotFound, "gone", "revoke: it is gone")
				}
				return t.Target.Revoke(ctx, c, h)
			}
		}},
		"Revoke leaves sessions in an emergency": {make: func(_ *Memory, t *mutantTarget) {
			t.revoke = func(ctx context.Context, c providers.Change, h providers.Held) error {
				c.Emergency = false
				return t.Target.Revoke(ctx, c, h)
			}
		}},
		"Apply makes another value each time": {make: func(_ *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				c.New.Fields = c.New.Fields.Set(passwordField, newUUID())
				return t.Target.Apply(ctx, c)
			}
		}},
		"Apply ends the current value": {make: func(_ *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				h, err := t.Target.Apply(ctx, c)
				if err == nil && c.Current.Account != "" {
					err = t.Target.Revoke(ctx, c, c.Current)
				}
				return h, err
			}
		}},
		"Apply can't be repeated": {make: func(m *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				if m.Accepts(c.New) {
					return providers.Held{}, fault.New(fault.ErrExists, "exists", "set a value: it is there")
				}
				return t.Target.Apply(ctx, c)
			}
		}},
		"Apply ignores the marker": {make: func(m *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				if c.New.Account != "" && m.accounts[c.New.Account] != nil {
					m.forget(c.New.Account)
				}
				return t.Target.Apply(ctx, c)
			}
		}},
		"Apply leaves no marker": {make: func(m *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				h, err := t.Target.Apply(ctx, c)
				if err == nil {
					m.forget(h.Account)
				}
				return h, err
			}
		}},
		"Apply says refused when its context ended": {make: func(_ *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				if ctx.Err() != nil {
					return providers.Held{}, fault.New(fault.ErrDenied, "ended", "set a value: the time is over")
				}
				return t.Target.Apply(ctx, c)
			}
		}},
		"Apply says the rejected value is unknown": {make: func(_ *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				h, err := t.Target.Apply(ctx, c)
				if providers.OutcomeOf(err) == providers.Rejected {
					err = fault.New(fault.ErrUnavailable, "failed", "set a value: %s", err)
				}
				return h, err
			}
		}},
		"issuing leaves what a lost reply made": {conf: MemoryConfig{Issues: true, Limit: 9}, make: func(_ *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				c.At = c.At.Add(24 * time.Hour) // everything looks older than the rotation
				return t.Target.Apply(ctx, c)
			}
		}},
		"issuing deletes the oldest at the limit": {conf: MemoryConfig{Issues: true}, make: func(m *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				if a := m.accounts[c.New.Account]; a != nil && len(a.values) == 2 {
					m.dropAll(c.New.Account, func(i int, _ *value) bool { return i == 0 })
				}
				c.At = c.At.Add(24 * time.Hour)
				return t.Target.Apply(ctx, c)
			}
		}},
		"issuing deletes what is not ours": {conf: MemoryConfig{Issues: true, Limit: 3}, make: func(_ *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				c.Before = nil
				return t.Target.Apply(ctx, c)
			}
		}},
		"issued values lack the static fields": {conf: MemoryConfig{Issues: true}, make: func(_ *Memory, t *mutantTarget) {
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				c.Static = nil
				return t.Target.Apply(ctx, c)
			}
		}},
		"an adapter remembers in the process": {make: func(_ *Memory, t *mutantTarget) {
			var mu sync.Mutex
			made := map[string]providers.Fields{}
			t.prepare = func(ctx context.Context, c providers.Change) (providers.Change, error) {
				got, err := t.Target.Prepare(ctx, c)
				mu.Lock()
				defer mu.Unlock()
				made[c.Rotation] = maps.Clone(got.New.Fields)
				return got, err
			}
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				mu.Lock()
				f, ok := made[c.Rotation]
				mu.Unlock()
				if !ok {
					return providers.Held{}, fault.New(fault.ErrInvalid, "not_prepared", "set a value: it was not prepared")
				}
				c.New.Fields = f
				return t.Target.Apply(ctx, c)
			}
		}},
		"Prepare applies": {make: func(_ *Memory, t *mutantTarget) {
			t.prepare = func(ctx context.Context, c providers.Change) (providers.Change, error) {
				got, err := t.Target.Prepare(ctx, c)
				if err == nil {
					_, err = t.Target.Apply(ctx, got)
				}
				return got, err
			}
		}},
		"Prepare makes one value for all": {make: func(_ *Memory, t *mutantTarget) {
			t.prepare = func(ctx context.Context, c providers.Change) (providers.Change, error) {
				got, err := t.Target.Prepare(ctx, c)
				if err == nil {
					got.New.Fields = got.New.Fields.Set(passwordField, "the same to everybody")
				}
				return got, err
			}
		}},
		"Prepare drops the static fields": {make: func(_ *Memory, t *mutantTarget) {
			t.prepare = func(ctx context.Context, c providers.Change) (providers.Change, error) {
				static := c.Static
				c.Static = nil
				got, err := t.Target.Prepare(ctx, c)
				got.Static = static
				return got, err
			}
		}},
		"Verify proves nothing": {make: func(_ *Memory, t *mutantTarget) {
			t.verify = func(ctx context.Context, _ providers.Change, _ providers.Held) error { return ctx.Err() }
		}},
		"Verify is not sure": {make: func(_ *Memory, t *mutantTarget) {
			t.verify = func(ctx context.Context, c providers.Change, h providers.Held) error {
				if err := t.Target.Verify(ctx, c, h); err != nil {
					return fmt.Errorf("log in: %s", err.Error())
				}
				return nil
			}
		}},
		"an error holds the password": {make: func(_ *Memory, t *mutantTarget) {
			t.verify = func(ctx context.Context, c providers.Change, h providers.Held) error {
				if err := t.Target.Verify(ctx, c, h); err != nil {
					return fmt.Errorf("log in with %q: %w", h.Fields.Text(passwordField), err)
				}
				return nil
			}
		}},
		"the marker is of another generation": {make: func(_ *Memory, t *mutantTarget) {
			t.applied = func(ctx context.Context, c providers.Change, account string) (providers.Applied, error) {
				a, err := t.Target.Applied(ctx, c, account)
				a.Generation--
				return a, err
			}
		}},
		"Retire ends at once": {make: func(m *Memory, t *mutantTarget) {
			t.retire = func(ctx context.Context, c providers.Change, h providers.Held, _ time.Time) error {
				return t.Target.Retire(ctx, c, h, m.Now())
			}
		}},
		"Retire does nothing": {make: func(_ *Memory, t *mutantTarget) {
			t.retire = func(context.Context, providers.Change, providers.Held, time.Time) error { return nil }
		}},
		"Retire knows no way back": {make: func(_ *Memory, t *mutantTarget) {
			t.retire = func(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
				if end.IsZero() {
					return nil
				}
				return t.Target.Retire(ctx, c, h, end)
			}
		}},
		"Retire of an earlier epoch sets an end again": {make: func(_ *Memory, t *mutantTarget) {
			t.retire = func(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
				if !end.IsZero() {
					c.Epoch = math.MaxInt64
				}
				return t.Target.Retire(ctx, c, h, end)
			}
		}},
		"Retire ends the account, not the value": {make: func(m *Memory, t *mutantTarget) {
			t.retire = func(_ context.Context, _ providers.Change, h providers.Held, end time.Time) error {
				m.mu.Lock()
				defer m.mu.Unlock()
				for _, v := range m.accounts[h.Account].values {
					v.until = end
				}
				return nil
			}
		}},
		"Apply keeps the end of the earlier value": {make: func(m *Memory, t *mutantTarget) {
			var mu sync.Mutex
			ends := map[string]time.Time{}
			t.retire = func(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
				mu.Lock()
				ends[h.Account] = end
				mu.Unlock()
				return t.Target.Retire(ctx, c, h, end)
			}
			t.apply = func(ctx context.Context, c providers.Change) (providers.Held, error) {
				h, err := t.Target.Apply(ctx, c)
				mu.Lock()
				end, ok := ends[h.Account]
				mu.Unlock()
				if err == nil && ok && c.Strategy == providers.Alternate {
					err = t.Target.Retire(ctx, c, h, end)
				}
				return h, err
			}
		}},
		"Check tries its luck on the real account": {make: func(m *Memory, t *mutantTarget) {
			t.check = func(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
				if c.Current.Fields != nil {
					m.dropAll(c.Current.Account, func(int, *value) bool { return true })
				}
				return t.Target.Check(ctx, c)
			}
		}},
		"Check leaves a marker behind": {make: func(m *Memory, t *mutantTarget) {
			t.check = func(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
				if a := m.accounts[c.Params[accountParam]]; a != nil {
					m.mu.Lock()
					a.values = append(a.values, &value{id: "probe", text: newUUID()})
					m.mu.Unlock()
				}
				return t.Target.Check(ctx, c)
			}
		}},
		"Check finds nothing wrong": {make: func(_ *Memory, t *mutantTarget) {
			t.check = func(context.Context, providers.Change) ([]providers.Finding, error) {
				return []providers.Finding{{Check: "account", OK: true}}, nil
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMemory(mutant.conf)
			bed := newTargetBed(m, m.System())
			bed.hurry = true
			bed.Open = func(testing.TB) providers.Target {
				wrong := &mutantTarget{Target: m.System().Target()}
				mutant.make(m, wrong)
				return wrong
			}
			wantFound(t, targetCases(bed))
		})
	}
}

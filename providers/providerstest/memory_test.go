package providerstest

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/providers"
)

var fresh atomic.Int64

// newTargetBed is a bed on m, whose adapters reach it by system.
func newTargetBed(m *Memory, system *System) TargetBed {
	bed := TargetBed{
		Kind: system.TargetKind(),
		Open: func(testing.TB) providers.Target { return system.Target() },
		Change: func(t testing.TB, _ providers.Strategy) providers.Change {
			name := fmt.Sprintf("app-%d", fresh.Add(1))
			m.Account(name)
			return providers.Change{Credential: "orders", Params: map[string]string{accountParam: name}}
		},
		Accepts: func(_ testing.TB, h providers.Held) bool { return m.Accepts(h) },
		Missing: func(testing.TB, providers.Strategy) providers.Change {
			return providers.Change{Credential: "orders", Params: map[string]string{accountParam: "nobody"}}
		},
		Marks:    !m.conf.Unmarked,
		Now:      m.Now,
		Snapshot: func(_ testing.TB, c providers.Change) string { return m.snapshot(c.Params[accountParam]) },
		Reject: func(_ testing.TB, c providers.Change) func() {
			m.Policy(c.Params[accountParam], 2000)
			return func() { m.Policy(c.Params[accountParam], 0) }
		},
		Session: func(t testing.TB, h providers.Held) func() bool {
			alive, err := m.Session(h)
			if err != nil {
				t.Fatal(err)
			}
			return alive
		},
		Retires: true,
		Pass:    func(_ testing.TB, d time.Duration) { m.Pass(d) },
	}
	if m.conf.Issues {
		bed.Keys = func(_ testing.TB, c providers.Change) []string { return m.Keys(c.Params[accountParam]) }
		bed.Foreign = func(_ testing.TB, c providers.Change) string { return m.Foreign(c.Params[accountParam]) }
	}
	return bed
}

func (m *Memory) snapshot(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for n, a := range m.accounts {
		if n == name || n == name+second {
			lines = append(lines, fmt.Sprintf("%s %+v", n, a.marker))
			for _, v := range a.values {
				lines = append(lines, fmt.Sprintf("%s %s %d %s", n, v.id, v.generation, v.until))
			}
		}
	}
	slices.Sort(lines)
	return fmt.Sprint(lines)
}

func newStoreBed(m *Memory, system *System) StoreBed {
	bed := StoreBed{
		Kind:  system.StoreKind(),
		Open:  func(testing.TB) providers.Store { return system.Store() },
		Path:  func(testing.TB) string { return fmt.Sprintf("apps/%d", fresh.Add(1)) },
		Read:  func(_ testing.TB, path string) providers.Fields { return m.Serves(path) },
		Write: func(_ testing.TB, path string, f providers.Fields) { m.Write(path, f) },
		Longest: func(testing.TB) string {
			return fmt.Sprintf("%0*d", 1024, fresh.Add(1))
		},
	}
	if !m.conf.Unstaged {
		bed.Staged = func(_ testing.TB, path string) providers.Fields { return m.Staged(path) }
	}
	return bed
}

func TestMemoryTarget(t *testing.T) {
	for name, conf := range map[string]MemoryConfig{
		"chosen":            {},
		"chosen, no marker": {Unmarked: true},
		"issued":            {Issues: true, Limit: 3},
		"issued, no marker": {Issues: true, Unmarked: true, Limit: 3},
	} {
		t.Run(name, func(t *testing.T) {
			m := NewMemory(conf)
			Target(t, newTargetBed(m, m.System()))
		})
	}
}

func TestMemoryStore(t *testing.T) {
	for name, conf := range map[string]MemoryConfig{"staging": {}, "no staging": {Unstaged: true}} {
		t.Run(name, func(t *testing.T) {
			m := NewMemory(conf)
			Store(t, newStoreBed(m, m.System()))
		})
	}
}

package crashtest_test

import (
	"context"
	"os"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
	"github.com/rotunda-dev/rotunda/rotation"
	"github.com/rotunda-dev/rotunda/rotation/crashtest"
)

func TestMain(m *testing.M) { crashtest.Main(m, memoryKinds) }

// memoryKinds are the kinds of a system that the parent keeps and serves.
func memoryKinds(ctx context.Context, o crashtest.Opening) ([]providers.TargetKind, []providers.StoreKind, error) {
	s, err := providerstest.Remote(ctx, o.Env["MEMORY_URL"])
	if err != nil {
		return nil, nil, err
	}
	return []providers.TargetKind{s.TargetKind()}, []providers.StoreKind{s.StoreKind()}, nil
}

func memoryBed(t *testing.T, name string, strategy providers.Strategy, conf providerstest.MemoryConfig) crashtest.Bed {
	m := providerstest.NewMemory(conf)
	m.Account("app")
	bed := crashtest.Bed{
		Name: name, Kinds: memoryKinds, Env: map[string]string{"MEMORY_URL": m.Serve(t)},
		Target: crashtest.System{Kind: "memory"}, Store: crashtest.System{Kind: "memory"}, Paths: []string{"kv/a", "kv/b"},
		Strategy: strategy, Params: map[string]string{"account": "app"},
		Accepts: func(_ testing.TB, f providers.Fields) bool {
			return m.Accepts(providers.Held{Account: f.Text("username"), Fields: f})
		},
		Serves: func(_ testing.TB, _ crashtest.Opening, path string) providers.Fields { return m.Serves(path) },
		Staged: func(_ testing.TB, path string) providers.Fields { return m.Staged(path) },
	}
	if conf.Issues {
		bed.Keys = func(testing.TB) []string { return m.Keys("app") }
	}
	return bed
}

// Promise: at every instant, kill -9 included, either the value in the store or a sealed value
// in our database is accepted by the target.
func TestCrashTable(t *testing.T) {
	var table crashtest.Table
	for _, staging := range []bool{true, false} {
		for _, kind := range []struct {
			name     string
			strategy providers.Strategy
			issues   bool
		}{
			{"replace", providers.Replace, false}, {"alternate", providers.Alternate, false}, {"dual", providers.Dual, false}, {"dual, issued", providers.Dual, true},
		} {
			name := kind.name + ", staged"
			if !staging {
				name = kind.name
			}
			t.Run(name, func(t *testing.T) {
				bed := memoryBed(t, name, kind.strategy, providerstest.MemoryConfig{Issues: kind.issues, Unstaged: !staging})
				bed.Quick = !staging // all of its points are also those of the other one
				table = append(table, crashtest.Run(t, bed)...)
			})
		}
	}
	t.Run("postgres database", func(t *testing.T) {
		bed := memoryBed(t, "dual, staged, PostgreSQL below", providers.Dual, providerstest.MemoryConfig{})
		bed.Database, bed.Quick = storetest.Postgres, true
		table = append(table, crashtest.Run(t, bed)...)
	})
	if path := os.Getenv("ROTUNDA_CRASH_TABLE"); path != "" && !t.Failed() {
		if err := os.WriteFile(path, []byte(table.Markdown()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Promise: the runs of a killed process are taken up within 15 seconds. By the clock it is the
// lease and a poll, which rotation's own tests prove on a clock that they set; here it is
// measured once, with a bound that a slow machine keeps.
func TestTakeOverOfAKilledProcess(t *testing.T) {
	for name, database := range map[string]func(testing.TB) string{"sqlite": storetest.SQLiteURL, "postgres": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			bed := memoryBed(t, name, providers.Dual, providerstest.MemoryConfig{})
			bed.Database = database
			took := crashtest.TakeOver(t, bed)
			t.Logf("taken over and done %s after the kill", took)
			if took > 3*rotation.DefaultLease {
				t.Errorf("it took %s", took)
			}
		})
	}
}

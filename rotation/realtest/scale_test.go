package realtest

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/rotation"
)

var (
	scaleRotations = flag.Int("scale.rotations", 24, "rotations through a real Vault and a real PostgreSQL; 10000 for the figure in docs/benchmarks.md")
	scaleRaw       = flag.Duration("scale.raw", 300*time.Millisecond, "how long each raw rate is measured")
	scaleWorkers   = flag.Int("scale.workers", 4, "workers, and clients of the raw rates")
)

// rate is how often per second f is done by as many clients as there are workers.
func rate(t testing.TB, f func(ctx context.Context, client int) error) float64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), *scaleRaw)
	defer cancel()
	var n atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for client := range *scaleWorkers {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := f(t.Context(), client); err != nil {
					t.Errorf("raw rate: %v", err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(n.Load()) / time.Since(start).Seconds()
}

// A verifier of some password: what a rotation sends, too.
const someVerifier = "SCRAM-SHA-256$4096:ZXhhbXBsZXNhbHRleGFtcGxl$WZRBIrQH5KjC7rLq8p+H5UQ8YQ3mGQx0sM3lk8Z3+qA=:mKQkqgZxXg1Dl4+VJ1YbqJwXo4v8mJf0y3Yf3uZcZ2U="

// Promise: rotations go through a real Vault KV and a real PostgreSQL about as fast as the
// slower of the two takes the same writes from a loop that remembers nothing. The log
// has the figures.
func TestRotationsThroughVaultAndPostgres(t *testing.T) {
	n := *scaleRotations
	d := newDesk(t, storetest.Open(t, storetest.Postgres(t)), func(c *rotation.RotationsConfig) { c.Workers = *scaleWorkers + 1 }) // one waits for emergencies
	target, p := postgresTarget(t, d)
	vault, mount, v := vaultStore(t, d)
	prefix := bedtest.Fresh("s")
	p.Exec(t, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE format('CREATE ROLE %s_a%%s LOGIN', i); EXECUTE format('CREATE ROLE %s_b%%s LOGIN', i); END LOOP; END $$`, n, prefix, prefix))
	names := make([]string, n)
	for i := range n {
		names[i] = d.credential(t, rotation.Spec{
			Target: target, Stores: []rotation.Placement{{Store: vault, Path: fmt.Sprintf("%s/%d", prefix, i+1)}}, Probe: -1,
			Params: map[string]string{"users": fmt.Sprintf("%s_a%d,%s_b%d", prefix, i+1, prefix, i+1)},
		})
	}

	conns := make([]*pgx.Conn, *scaleWorkers)
	for i := range conns {
		conns[i] = p.Connect(t)
		p.Exec(t, fmt.Sprintf("CREATE ROLE %s_raw%d LOGIN", prefix, i))
	}
	alter := func(ctx context.Context, client int) error {
		_, err := conns[client].Exec(ctx, fmt.Sprintf("ALTER ROLE %s_raw%d PASSWORD '%s' VALID UNTIL 'infinity'", prefix, client, someVerifier))
		return err
	}
	write := func(_ context.Context, client int) error {
		return v.Ask("POST", fmt.Sprintf("%s/data/raw/%s/%d", mount, prefix, client), map[string]any{"data": map[string]string{"username": "u", "password": rand.Text()}}, nil)
	}
	login := func(ctx context.Context, _ int) error {
		conn, err := pgx.Connect(ctx, p.URL())
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	rawAlter, rawWrite, rawLogin := rate(t, alter), rate(t, write), rate(t, login)
	rawAll := rate(t, func(ctx context.Context, client int) error {
		for _, f := range []func(context.Context, int) error{alter, login, write} {
			if err := f(ctx, client); err != nil {
				return err
			}
		}
		return nil
	})

	round := func() float64 {
		var ids []string
		for _, name := range names {
			r, err := d.rotations.Start(t.Context(), rotation.StartRequest{Credential: name})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, r.ID)
		}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		start := time.Now()
		wg.Go(func() {
			if err := d.rotations.Run(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("the workers ended: %v", err)
			}
		})
		for left := 1; left > 0; {
			time.Sleep(20 * time.Millisecond)
			open, _, err := d.rotations.List(t.Context(), rotation.RotationQuery{Unended: true, Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			left = len(open)
			if left > 0 && open[0].Step == rotation.StepFailed {
				t.Fatalf("a rotation failed at %s: %s", open[0].FailedStep, open[0].Error)
			}
		}
		took := time.Since(start)
		stop()
		wg.Wait()
		for _, id := range ids {
			if r, err := d.rotations.Get(t.Context(), id); err != nil || r.Outcome != rotation.Rotated {
				t.Fatalf("rotation %s ended %v, %v", id, r, err)
			}
		}
		return float64(n) / took.Seconds()
	}
	first, second := round(), round()
	slower := min(rawAlter, rawWrite)
	t.Logf("%d rotations twice, %d workers: %.0f/s first, %.0f/s with a value to end", n, *scaleWorkers, first, second)
	t.Logf("raw, %d clients: ALTER ROLE %.0f/s, KV write %.0f/s, login %.0f/s; all three in a row %.0f/s", *scaleWorkers, rawAlter, rawWrite, rawLogin, rawAll)
	t.Logf("ratio to the slower write %.2f; to the same three calls in a row %.2f", second/slower, second/rawAll)
}

// Promise: an emergency is picked up within a second, however many scheduled runs wait.
func TestEmergencyOvertakesScheduledRuns(t *testing.T) {
	d := newDesk(t, storetest.Open(t, storetest.Postgres(t)), func(c *rotation.RotationsConfig) { c.Workers = 2 })
	target, p := postgresTarget(t, d)
	vault, _, _ := vaultStore(t, d)
	pair := func() map[string]string {
		a, b := bedtest.Fresh("a"), bedtest.Fresh("b")
		p.Exec(t, "CREATE ROLE "+a+" LOGIN", "CREATE ROLE "+b+" LOGIN")
		return map[string]string{"users": a + "," + b}
	}
	var ids []string
	for i := range 40 {
		name := d.credential(t, rotation.Spec{Target: target, Params: pair(), Stores: []rotation.Placement{{Store: vault, Path: fmt.Sprintf("queue/%d", i)}}, Probe: -1})
		r, err := d.rotations.Start(t.Context(), rotation.StartRequest{Credential: name})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.ID)
	}
	urgent := d.credential(t, rotation.Spec{Target: target, Params: pair(), Strategy: providers.Alternate, Stores: []rotation.Placement{{Store: vault, Path: "queue/urgent"}}, Probe: -1})
	d.work(t)
	begun := time.Now()
	r, err := d.rotations.Start(t.Context(), rotation.StartRequest{Credential: urgent, Emergency: true, Reason: "leaked", Grace: new(time.Duration)})
	if err != nil {
		t.Fatal(err)
	}
	end := d.wait(t, r.ID, true)
	after := 0
	for _, id := range ids {
		o := d.wait(t, id, true)
		if o.EndedAt.After(end.EndedAt) {
			after++
		}
	}
	t.Logf("the emergency had ended after %v; %d of %d that waited before it ended later", time.Since(begun).Round(time.Millisecond), after, len(ids))
	if after < len(ids)/2 {
		t.Errorf("only %d of %d runs that waited ended after the emergency", after, len(ids))
	}
}

var (
	scaleCredentials = flag.Int("scale.credentials", 20_000, "credentials in the database while nothing is due; 1000000 for the figure in docs/benchmarks.md")
	scaleIdle        = flag.Duration("scale.idle", 2*time.Second, "for how long")
)

// What it costs to have many credentials and nothing to do: the log has the figures.
func TestIdleWhenThereAreManyCredentials(t *testing.T) {
	url := storetest.Postgres(t)
	d := newDesk(t, storetest.Open(t, url), nil)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	later := time.Now().Add(24 * time.Hour).UnixMicro()
	_, err = conn.Exec(t.Context(), `INSERT INTO credentials (name, target, spec, state, reason, generation, current, next_at, due_at, rotated_at, drift, drift_note, drift_since, probe_at, probed_at, created_at, since, version, seal)
		SELECT 'many-' || i, 'none', '{"target":"none","strategy":"dual","missed":"late","grace":0,"quiet":0,"probe":3600000000000}', 'active', '', 0, 0,
			$1::bigint + i * 1000000::bigint, $1::bigint + i * 1000000::bigint, 0, '', '', 0, $1::bigint + i * 1000::bigint, 0, 0, 0, 1, '\x00' FROM generate_series(1, $2::bigint) i`, later, *scaleCredentials)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `ANALYZE credentials`); err != nil {
		t.Fatal(err)
	}
	var scans []time.Duration
	for range 20 {
		begun := time.Now()
		if _, err := d.credentials.DuePass(t.Context(), d.db.Now()); err != nil {
			t.Fatal(err)
		}
		scans = append(scans, time.Since(begun))
	}
	slices.Sort(scans)
	d.work(t)
	usage := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before, begun := usage(), time.Now()
	for time.Since(begun) < *scaleIdle {
		for _, pass := range []func(context.Context, time.Time) (time.Time, error){d.credentials.DuePass, d.credentials.ProbePass} {
			if _, err := pass(t.Context(), d.db.Now()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
	}
	cpu := 100 * (usage() - before).Seconds() / time.Since(begun).Seconds()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d credentials: due scan, nothing due: median %v; idle %.2f %% of a core; %.1f MB in use", *scaleCredentials, scans[len(scans)/2].Round(time.Microsecond), cpu, float64(m.HeapInuse)/1e6)
}

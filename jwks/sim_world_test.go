package jwks

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// simOptions is what a simulation is made from. Equal options give equal runs,
// but for the key material, which is random.
type simOptions struct {
	seed      uint64
	years     float64
	keysets   int
	verifiers int // of each consumer that a policy names
	least     int // verifiers of a keyset, however few consumers its policy names
	calm      int // how many times rarer everything is
	plant     simPlant
	deadline  time.Time // wall clock; zero: none
}

// simPlant is a bug that the simulation puts in, to see that it is noticed.
type simPlant string

const (
	plantNone    simPlant = ""
	plantLead    simPlant = "a key signs as soon as it is published"
	plantRetire  simPlant = "the longest issued life is forgotten when a key is demoted"
	plantMaxAge  simPlant = "max-age is not shaped by the next removal"
	plantNothing simPlant = "nothing: the same world without a bug"
	plantOutage  simPlant = "time without service counts as served"
)

// simWorld is everything there is in a simulation.
type simWorld struct {
	simOptions
	t     testing.TB
	rng   *rand.Rand
	db    *store.DB
	local *Local

	now    vt
	clock  vt // what the acting replica's clock shows more
	crash  int
	queue  simQueue
	seq    int
	passAt vt
	hung   bool // nobody runs passes, though documents are served
	lastUp vt   // when served_at was last known to be written
	passed bool // whether there was a pass since nothing was served

	replicas []*simReplica
	behind   int // the replica that hears last of what happens
	outages  []simSpan
	down     vt // since when nothing is served; -1: it is

	changes int64 // of all versions, at the last look
	sets    []*simSet
	kids    map[string]int32
	names   []string
	docs    map[*Document]*simDoc
	dark    map[string]bool // kids whose signer is out of reach

	stats simStats
}

type simCrash struct{}

func simAt(t vt) time.Time { return epoch.Add(t) }

type simEvent struct {
	at  vt
	seq int
	do  func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }

func (q simQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}

func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

func (q *simQueue) Push(e any) { *q = append(*q, e.(simEvent)) }

func (q *simQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

func (w *simWorld) at(at vt, do func()) {
	w.seq++
	at = max(at, w.now)
	at = (at + time.Microsecond - 1).Truncate(time.Microsecond) // what the database can hold
	heap.Push(&w.queue, simEvent{at, w.seq, do})
}

// after schedules something at a random instant with the given mean distance,
// again and again.
func (w *simWorld) often(mean vt, do func()) {
	w.at(w.now+vt(w.rng.ExpFloat64()*float64(mean)*float64(max(1, w.calm))), func() { do(); w.often(mean, do) })
}

func (w *simWorld) between(from, to vt) vt {
	if to <= from {
		return from
	}
	return from + vt(w.rng.Int64N(int64(to-from)))
}

func (w *simWorld) chance(percent int) bool { return w.rng.IntN(100) < percent }

func pick[T any](w *simWorld, from ...T) T { return from[w.rng.IntN(len(from))] }

// newSimWorld makes a world on a database, whose clocks it takes over.
func newSimWorld(t testing.TB, db *store.DB, o simOptions) *simWorld {
	t.Helper()
	w := &simWorld{
		simOptions: o, t: t, rng: rand.New(rand.NewPCG(o.seed, 0x526f74756e6461)), db: db, local: newLocal(t),
		kids: map[string]int32{}, docs: map[*Document]*simDoc{}, dark: map[string]bool{}, down: -1, behind: -1,
		stats: simStats{kinds: map[string]*simKindStats{}, violations: map[string][]string{}, excused: map[string]int{}, ops: map[string]int{}},
	}
	db.Now = func() time.Time {
		if w.crash > 0 {
			if w.crash--; w.crash == 0 {
				panic(simCrash{})
			}
		}
		return simAt(w.now + w.clock)
	}
	db.Tick = func() time.Duration { return w.now }
	n := 1
	if o.seed%3 != 0 {
		n = 2
	}
	for range n {
		w.replicas = append(w.replicas, &simReplica{ks: w.process()})
	}
	if n > 1 {
		w.behind = 1
	}
	for i := range o.keysets {
		w.create(i)
	}
	w.setClocks()
	w.begin()
	return w
}

// run lets the world go on until its end.
func (w *simWorld) run() {
	end := vt(w.years * 365.25 * 24 * float64(time.Hour))
	for w.now < end && len(w.stats.violations) < 200 {
		if !w.deadline.IsZero() && time.Now().After(w.deadline) {
			break
		}
		if w.down < 0 && !w.hung && (len(w.queue) == 0 || w.passAt <= w.queue[0].at) {
			w.now = max(w.now, w.passAt)
			w.pass()
			continue
		}
		e := heap.Pop(&w.queue).(simEvent)
		w.now = max(w.now, e.at)
		e.do()
	}
	w.stats.virtual = w.now
	w.trail()
}

// up is a random replica that runs, or nil.
func (w *simWorld) up() *simReplica {
	var up []*simReplica
	for _, r := range w.replicas {
		if r.ks != nil {
			up = append(up, r)
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[w.rng.IntN(len(up))]
}

// do lets a replica act. A crash is a panic at the start of one of its
// transactions; the replica is gone then.
func (w *simWorld) do(r *simReplica, name string, act func(ctx context.Context, ks *Keysets) error) (err error, crashed bool) {
	w.stats.ops[name]++
	if w.chance(3) && w.plant == plantNone {
		w.crash = 1 + w.rng.IntN(10)
	}
	w.clock = r.clock
	func() {
		defer func() {
			if p := recover(); p != nil {
				if _, ok := p.(simCrash); !ok {
					panic(p)
				}
				crashed = true
			}
		}()
		err = act(context.Background(), r.ks)
	}()
	w.crash, w.clock = 0, 0
	if crashed {
		w.kill(r)
	}
	switch {
	case !crashed && (name == "hear" || name == "plan" || name == "sign" && len(w.dark) == 0):
		w.observe() // nothing has moved
	default:
		w.reconcile()
		if w.down < 0 {
			w.look()
		}
	}
	return err, crashed
}

// must is do for what can't be refused.
func (w *simWorld) must(r *simReplica, name string, act func(ctx context.Context, ks *Keysets) error) bool {
	err, crashed := w.do(r, name, act)
	if err != nil {
		w.violate("error", "%s: %v", name, err)
	}
	return !crashed && err == nil
}

// look asks the database when the next pass is due.
func (w *simWorld) look() {
	var at int64
	w.read(func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT COALESCE(MIN(next_at), 0) FROM keysets`).Scan(&at)
	})
	w.passAt = store.Time(at).Sub(epoch)
	if w.chance(25) {
		w.passAt += w.between(0, time.Second) // passes come about once a second
	}
	w.passAt = max(w.passAt, w.now).Truncate(time.Microsecond) + time.Microsecond
	if !w.passed {
		w.passAt = w.now // a process that starts begins with a pass
	}
}

// read looks into the database from outside of the world.
func (w *simWorld) read(f func(context.Context, *store.Tx) error) {
	crash := w.crash
	w.crash = 0
	if err := w.db.View(context.Background(), f); err != nil {
		w.t.Fatalf("seed %d, %s: read the database: %v", w.seed, simAt(w.now), err)
	}
	w.crash = crash
}

// write changes the database from outside of the world.
func (w *simWorld) write(query string, args ...any) {
	if err := exec(w.t, w.db, query, args...); err != nil {
		w.t.Fatalf("seed %d, %s: %s: %v", w.seed, simAt(w.now), query, err)
	}
}

package jwks

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// The simulation runs keysets for years of virtual time on a real database,
// with replicas that crash between any two transactions, policies that change,
// rotations and revocations that are asked for, and thousands of verifiers
// that behave as the profiles of their policies say and no better. A run that
// fails prints its seed and what happened; with -v, one that passes does too.
// To repeat a seed:
//
//	go test ./jwks -run TestSimulation/seed -sim.seed 4711 -sim.years 2 -v
//
// ROTUNDA_SIM_SEED does the same. ROTUNDA_SOAK=10m runs new seeds for ten minutes.
var (
	simSeed  = flag.Uint64("sim.seed", 0, "the one seed to simulate; 0: the fixed ones and a new one")
	simYears = flag.Float64("sim.years", 2, "virtual years per seed")
)

// simLeast is how many verifiers the short form runs with at once, at the least.
const simLeast = 2000

func runSimulation(t *testing.T, o simOptions) *simWorld {
	t.Helper()
	w := newSimWorld(t, storetest.SQLite(t), o)
	w.run()
	return w
}

// No gap: a token signed under a keyset is accepted, for its whole life, by
// every verifier that behaves as its consumer profile says.
func TestSimulation(t *testing.T) {
	seeds := []uint64{1, 2, rand.Uint64() >> 32} // one replica for seeds that 3 divides, else two
	if s := os.Getenv("ROTUNDA_SIM_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("ROTUNDA_SIM_SEED %q is no number", s)
		}
		*simSeed = n
	}
	if *simSeed != 0 {
		seeds = []uint64{*simSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			simulate(t, simOptions{seed: seed, years: *simYears, keysets: 2, verifiers: 250, least: simLeast / 2, calm: 4})
		})
	}
}

// The long form: new seeds until the time that ROTUNDA_SOAK gives is over, in a
// denser world with more keysets.
func TestSimulationSoak(t *testing.T) {
	text := os.Getenv("ROTUNDA_SOAK")
	if text == "" {
		t.Skip("the long form of TestSimulation runs when ROTUNDA_SOAK says for how long, such as 10m")
	}
	long, err := time.ParseDuration(text)
	if text == "1" {
		long, err = 10*time.Minute, nil
	}
	if err != nil {
		t.Fatalf("ROTUNDA_SOAK %q is neither 1 nor a duration", text)
	}
	end := time.Now().Add(long)
	for seed := *simSeed; time.Now().Before(end) && !t.Failed(); seed++ {
		if *simSeed == 0 && seed == 0 {
			seed = rand.Uint64() >> 32
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			simulate(t, simOptions{seed: seed, years: *simYears, keysets: 4, verifiers: 300, calm: 1, deadline: end})
		})
	}
}

func simulate(t *testing.T, o simOptions) {
	t.Helper()
	began := time.Now()
	w := runSimulation(t, o)
	took := time.Since(began)
	t.Logf("seed %d: %d to %d verifiers at once, %.1f s, %.2f virtual years per second\n%s", o.seed, w.stats.fewest, w.stats.most, took.Seconds(), w.stats.virtual.Hours()/24/365.25/took.Seconds(), &w.stats)
	for rule, v := range w.stats.violations {
		for _, text := range v[:min(3, len(v))] {
			t.Errorf("%s (%d times): %s", rule, len(v), text)
		}
	}
	if w.stats.fewest < o.keysets*o.least {
		t.Errorf("only %d verifiers at once, want at least %d", w.stats.fewest, o.keysets*o.least)
	}
	if o.deadline.IsZero() && *simYears >= 1 && (w.stats.rotations < 20*o.keysets || w.stats.checks < 1000*o.keysets) {
		t.Errorf("only %d rotations and %d verifications: the simulation did too little", w.stats.rotations, w.stats.checks)
	}
}

// The simulation is worth nothing if it does not notice: each planted bug must
// break the rule that it breaks.
func TestSimulationWhenBugIsPlanted(t *testing.T) {
	for _, tc := range []struct {
		plant simPlant
		rules []string // that must break
		also  []string // that may break as a consequence
	}{
		{plantLead, []string{"I2", "I8"}, nil},
		{plantRetire, []string{"I1", "I8"}, []string{"I7"}},
		{plantMaxAge, []string{"I7"}, nil},
		{plantOutage, []string{"I2"}, []string{"I8"}},
	} {
		t.Run(string(tc.plant), func(t *testing.T) {
			w := runSimulation(t, simOptions{seed: 1, years: 0.25, keysets: 2, verifiers: 20, plant: tc.plant})
			for _, rule := range tc.rules {
				if len(w.stats.violations[rule]) == 0 {
					t.Errorf("%s is not broken, though %s\n%s", rule, tc.plant, &w.stats)
				}
			}
			for rule, v := range w.stats.violations {
				if !slices.Contains(tc.rules, rule) && !slices.Contains(tc.also, rule) {
					t.Errorf("%s is broken too: %s", rule, v[0])
				}
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		w := runSimulation(t, simOptions{seed: 1, years: 0.25, keysets: 2, verifiers: 20, plant: plantNothing})
		if len(w.stats.violations) > 0 {
			t.Errorf("without a bug, rules are broken:\n%s", &w.stats)
		}
	})
}

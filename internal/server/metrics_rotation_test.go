package server

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

func TestMetricsWhenCredentialsRotate(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.system(t)
		b.failing(t, "fails")
		b.credential(t, "drifts")
		b.bring(t, b.start(t, "drifts"), rotation.StepDone)
		b.memory.Write("kv/drifts", providers.Fields{}.Set("password", "of somebody else"))
		if _, err := b.Credentials.Probe(t.Context(), "drifts"); err != nil {
			t.Fatal(err)
		}
		b.credential(t, "waits")
		b.start(t, "waits")
		b.credential(t, "scheduled", func(s *rotation.Spec) { s.Schedule.Every = time.Hour })
		b.clock.Advance(time.Hour + time.Minute)

		scrape := func(wants ...string) {
			t.Helper()
			a := b.get(t, b.admin, home, "/metrics")
			problems, err := promlint.New(strings.NewReader(a.body)).Lint()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range problems {
				t.Errorf("%s: %s", p.Metric, p.Text)
			}
			for _, want := range wants {
				if !strings.Contains(a.body, want+"\n") {
					t.Errorf("no line %s", want)
				}
			}
			if t.Failed() {
				for line := range strings.Lines(a.body) {
					if strings.HasPrefix(line, "rotunda_rot") || strings.HasPrefix(line, "rotunda_sched") || strings.HasPrefix(line, "rotunda_cred") || strings.HasPrefix(line, "rotunda_deliv") {
						t.Log(line)
					}
				}
			}
		}
		scrape(
			`rotunda_rotations{step="failed"} 1`, `rotunda_rotations{step="plan"} 1`, `rotunda_rotations{step="grace"} 0`, `rotunda_credentials_drifted 1`,
			`rotunda_schedule_late_seconds 60`, `rotunda_rotation_late_seconds 3660`, `rotunda_deliveries{state="waiting"} 0`, `rotunda_deliveries{state="dead"} 0`,
			`rotunda_rotations_recent{outcome="rotated"} 2`, `rotunda_rotations_recent{outcome="abandoned"} 0`,
			`rotunda_rotation_workers_busy 0`, `rotunda_rotation_workers 8`,
			`rotunda_rotation_effects_total{action="apply",effect="E2",outcome="ok"} 2`, `rotunda_rotation_effects_total{action="apply",effect="E2",outcome="rejected"} 3`,
			`rotunda_rotation_effect_seconds_count{effect="E4"} 2`,
		)
		// A look is good for ten seconds: whoever scrapes more often asks the database no more.
		b.exec(t, `UPDATE credentials SET drift = ''`)
		scrape(`rotunda_credentials_drifted 1`)
		b.clock.Advance(statsEvery)
		scrape(`rotunda_credentials_drifted 0`)
	})
}

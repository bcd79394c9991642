package server

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/rotation"
)

func TestMetricsWhenScraped(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "payments")
		if _, err := b.keysets(b.admin).Sign(t.Context(), connect.NewRequest(&rotundav1.SignRequest{Name: "payments", Claims: `{}`})); err != nil {
			t.Fatal(err)
		}
		b.get(t, "", home, "/keysets/payments/jwks.json")
		b.get(t, "", home, "/keysets/payments/jwks.json", "If-None-Match", "*")
		b.Observe(rotation.Outcome{Pass: "signing_keys", Took: time.Millisecond})
		b.Observe(rotation.Outcome{Pass: "signing_keys", Err: errors.New("x"), Step: time.Hour})
		b.Observe(rotation.Outcome{Pass: "signing_keys", Err: errors.New("x"), Running: true})

		// What a stranger sends is no label.
		b.get(t, "", home, "/keysets/stranger-set/jwks.json")
		b.get(t, "rk_stranger", home, "/stranger-path")
		b.post(t, b.admin, home, "/rotunda.v1.KeysetService/Sign", `{"name":"stranger-name"}`)
		b.post(t, b.admin, home, "/rotunda.v1.KeysetService/StrangerMethod", `{}`)
		b.send(t, b.admin, home, "STRANGER", "/rotunda.v1.KeysetService/Sign", "User-Agent", "stranger-agent")
		b.clock.Advance(30 * time.Second)

		a := b.get(t, b.admin, home, "/metrics")
		if a.status != http.StatusOK || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
			t.Fatalf("%d %v", a.status, a.header)
		}
		problems, err := promlint.New(strings.NewReader(a.body)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
		if m := regexp.MustCompile(`(?i).*stranger.*`).FindString(a.body); m != "" {
			t.Errorf("a label from a stranger: %s", m)
		}
		for _, want := range []string{
			`rotunda_documents_total{status="200"} 1`, `rotunda_documents_total{status="304"} 1`, `rotunda_documents_total{status="404"} 1`, `rotunda_documents_total{status="429"} 0`,
			`rotunda_tokens_signed_total{fallback="no",keyset="payments"} 1`,
			`rotunda_requests_total{code="ok",procedure="/rotunda.v1.KeysetService/Sign"} 1`,
			`rotunda_requests_total{code="not_found",procedure="/rotunda.v1.KeysetService/Sign"} 1`,
			`rotunda_requests_total{code="unauthenticated",procedure="other"} 1`,
			`rotunda_passes_total{outcome="ok",pass="signing_keys"} 1`, `rotunda_passes_total{outcome="failed",pass="signing_keys"} 1`, `rotunda_passes_total{outcome="overdue",pass="signing_keys"} 1`,
			`rotunda_clock_steps_total 1`, `rotunda_keyset_version{keyset="payments"} 1`, `rotunda_keyset_standby{keyset="payments"} 1`,
			`rotunda_keyset_fallback_seconds{keyset="payments"} 0`, `rotunda_staleness_seconds 30`, `rotunda_keyset_next_move_seconds{keyset="payments"} 3570`,
		} {
			if !strings.Contains(a.body, want+"\n") {
				t.Errorf("no line %s", want)
			}
		}
		if n := strings.Count(a.body, "rotunda_signing_key_age_seconds{"); n != 2 || !strings.Contains(a.body, `state="active"} 30`) {
			t.Errorf("%d ages of keys", n)
		}
		if t.Failed() {
			t.Log(a.body)
		}
	})
}

func TestMetricsWhenTrailAndPlacesRun(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		if a := b.get(t, b.admin, home, "/metrics"); strings.Contains(a.body, "rotunda_trail_size") || !strings.Contains(a.body, "rotunda_trail_stopped 0\n") {
			t.Errorf("before anybody looked: %s", a.body)
		}
		b.grow(t, 12)
		b.clock.Advance(10 * time.Second)
		b.record(t, audit.Event{Action: "x"})
		b.clock.Advance(20 * time.Second)
		b.Places.(*storedPlaces).running = Running{
			Sinks:     map[string]SinkState{"siem": {OK: true, LagEvents: 3, Lag: 2 * time.Second, Delivered: 9, Failures: 1}},
			Anchors:   map[string]PushState{"vault": {Size: 10, At: epoch, Pushed: 4, Failures: 2}},
			Witnesses: map[string]PushState{"w.test": {OK: true, Size: -1}},
		}
		if _, err := b.TrailPass(t.Context(), b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		a := b.get(t, b.admin, home, "/metrics")
		problems, err := promlint.New(strings.NewReader(a.body)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
		for _, want := range []string{
			`rotunda_trail_size 12`, `rotunda_trail_waiting_events 1`, `rotunda_trail_waiting_seconds 20`, `rotunda_trail_stopped 0`, `rotunda_trail_pruned 0`,
			`rotunda_trail_checkpoint_age_seconds 30`, `rotunda_trail_sequencer 1`, `rotunda_trail_sequenced_events_total 12`, `rotunda_trail_sequencing_failures_total 0`,
			`rotunda_sink_up{sink="siem"} 1`, `rotunda_sink_lag_events{sink="siem"} 3`, `rotunda_sink_lag_seconds{sink="siem"} 2`,
			`rotunda_sink_delivered_events_total{sink="siem"} 9`, `rotunda_sink_failures_total{sink="siem"} 1`,
			`rotunda_anchor_up{anchor="vault"} 0`, `rotunda_anchor_size{anchor="vault"} 10`, `rotunda_anchor_age_seconds{anchor="vault"} 30`,
			`rotunda_anchor_pushed_checkpoints_total{anchor="vault"} 4`, `rotunda_anchor_failures_total{anchor="vault"} 2`,
			`rotunda_witness_up{witness="w.test"} 1`, `rotunda_witness_size{witness="w.test"} -1`,
		} {
			if !strings.Contains(a.body, want+"\n") {
				t.Errorf("no line %s", want)
			}
		}
		if strings.Contains(a.body, "rotunda_witness_age_seconds{") {
			t.Error("a witness that took nothing has an age")
		}
		b.exec(t, `UPDATE trail SET stopped = 'drill'`)
		if _, err := b.TrailPass(t.Context(), b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		if a := b.get(t, b.admin, home, "/metrics"); !strings.Contains(a.body, "rotunda_trail_stopped 1\n") {
			t.Error("a stopped trail does not show")
		}
	})
}

package server

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rotunda-dev/rotunda/rotation"
)

// rotationMeters count what this process does to rotate.
type rotationMeters struct {
	effects *prometheus.CounterVec
	took    *prometheus.HistogramVec
}

func newRotationMeters() rotationMeters {
	return rotationMeters{
		effects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rotunda_rotation_effects_total", Help: "Tries of effects (E0 to E8) on targets and stores, by outcome: ok, rejected, refused, moved, throttled, unknown."}, []string{"effect", "action", "outcome"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rotunda_rotation_effect_seconds", Help: "Time that effects took.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}, []string{"effect"}),
	}
}

// ObserveEffect counts one try of an effect. It is the Observe of rotation.RotationsConfig.
func (s *Server) ObserveEffect(o rotation.EffectOutcome) {
	s.metrics.rotation.effects.WithLabelValues(o.Effect, o.Action, o.Outcome).Inc()
	s.metrics.rotation.took.WithLabelValues(o.Effect).Observe(o.Took.Seconds())
}

// Bounds of a look at the work for the metrics.
const (
	statsEvery = 10 * time.Second
	statsWait  = 2 * time.Second
)

// rotationStats is what the last look has found; scrapes in between get the same.
type rotationStats struct {
	mu    sync.Mutex // one looks at a time
	seen  bool
	at    time.Duration // DB.Tick
	stats rotation.Stats
}

// look returns how the work stands, as of statsEvery ago at most; ok is false when nobody
// could say. A database that does not answer is asked once in statsEvery.
func (r *rotationStats) look(s *Server) (st rotation.Stats, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := s.DB.Tick()
	if r.at != 0 && now-r.at < statsEvery {
		return r.stats, r.seen
	}
	ctx, cancel := context.WithTimeout(context.Background(), statsWait)
	defer cancel()
	st, err := s.Rotations.Stats(ctx)
	r.stats, r.seen, r.at = st, err == nil, max(now, 1)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "the metrics of rotations are missing", slog.Any("error", err))
	}
	return r.stats, r.seen
}

// rotationCollector reads how the work on rotations stands.
type rotationCollector struct{ s *Server }

var (
	rotationsOpen = prometheus.NewDesc("rotunda_rotations",
		"Rotations that have not ended, in all replicas, by step; failed: they wait for a person. At most 10,000 are counted.", []string{"step"}, nil)
	rotationsRecent = prometheus.NewDesc("rotunda_rotations_recent",
		"Of the last 1,000 rotations that were begun, those that have ended, by outcome.", []string{"outcome"}, nil)
	credentialsDrifted = prometheus.NewDesc("rotunda_credentials_drifted",
		"Credentials of which store, target and records disagree. At most 10,000 are counted.", nil, nil)
	scheduleLate = prometheus.NewDesc("rotunda_schedule_late_seconds",
		"How long the first schedule has been due that nobody looked at.", nil, nil)
	rotationLate = prometheus.NewDesc("rotunda_rotation_late_seconds",
		"How long the first rotation has been due that no worker has.", nil, nil)
	deliveriesOpen = prometheus.NewDesc("rotunda_deliveries",
		"Webhooks that wait for their next try, and that were given up (dead). At most 10,000 are counted.", []string{"state"}, nil)
	workersBusy = prometheus.NewDesc("rotunda_rotation_workers_busy", "Rotations that this process is at.", nil, nil)
	workersAll  = prometheus.NewDesc("rotunda_rotation_workers", "Rotations that this process may be at, at once.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c rotationCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{rotationsOpen, rotationsRecent, credentialsDrifted, scheduleLate, rotationLate, deliveriesOpen, workersBusy, workersAll} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c rotationCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	busy, workers := c.s.Rotations.Busy()
	gauge(workersBusy, float64(busy))
	gauge(workersAll, float64(workers))
	st, ok := c.s.stats.look(c.s)
	if !ok {
		return
	}
	for step := range steps {
		if step != rotation.StepDone {
			gauge(rotationsOpen, float64(st.Steps[step]), string(step))
		}
	}
	for outcome := range outcomes {
		gauge(rotationsRecent, float64(st.Recent[outcome]), string(outcome))
	}
	gauge(credentialsDrifted, float64(st.Drifted))
	gauge(scheduleLate, st.Overdue.Seconds())
	gauge(rotationLate, st.Unworked.Seconds())
	gauge(deliveriesOpen, float64(st.Queued), string(rotation.Waiting))
	gauge(deliveriesOpen, float64(st.Dead), string(rotation.Dead))
}

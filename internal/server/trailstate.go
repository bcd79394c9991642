package server

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TrailPass learns how the trail is doing, for the metrics and /healthz, which
// then need no database.
func (s *Server) TrailPass(ctx context.Context, _ time.Time) (time.Time, error) {
	status, err := s.Trail.Status(ctx)
	if err != nil {
		return time.Time{}, err
	}
	s.status.Store(&status)
	return time.Time{}, nil
}

// trailStopped reports whether this process knows that nothing can be recorded.
func (s *Server) trailStopped() bool {
	if status := s.status.Load(); status != nil {
		return status.Stopped != ""
	}
	return s.Trail.Stats().Stopped
}

// trailCollector reads what this process knows of the trail, and how the sinks,
// anchors and witnesses do that it runs, at the moment it is asked.
type trailCollector struct{ s *Server }

func trailDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("rotunda_"+name, help, labels, nil)
}

var (
	trailSize       = trailDesc("trail_size", "Events that have a leaf index.")
	trailWaiting    = trailDesc("trail_waiting_events", "Events that wait for their leaf index; counted up to 100001.")
	trailWaitingAge = trailDesc("trail_waiting_seconds", "Age of the oldest event that waits for its leaf index; 0: none waits.")
	trailHalted     = trailDesc("trail_stopped", "Whether the trail is stopped, and changes are refused: 1 or 0.")
	trailPruned     = trailDesc("trail_pruned", "Leaf index below which events were pruned.")
	checkpointAge   = trailDesc("trail_checkpoint_age_seconds", "Age of the newest checkpoint. It grows while nothing happens.")
	sequencer       = trailDesc("trail_sequencer", "Whether this replica is the one that sequences events: 1 or 0.")
	sequenced       = trailDesc("trail_sequenced_events_total", "Events that this replica gave a leaf index.")
	sequencingFails = trailDesc("trail_sequencing_failures_total", "Times that this replica failed to sequence events.")

	sinkUp        = trailDesc("sink_up", "Whether what was last sent to a sink was taken: 1 or 0.", "sink")
	sinkLagEvents = trailDesc("sink_lag_events", "Events that a sink has not got yet.", "sink")
	sinkLag       = trailDesc("sink_lag_seconds", "Age of the oldest event that a sink has not got yet; 0: none.", "sink")
	sinkDelivered = trailDesc("sink_delivered_events_total", "Events that a sink took, repeats included.", "sink")
	sinkFailures  = trailDesc("sink_failures_total", "Attempts to send to a sink that failed.", "sink")

	anchorDescs  = newPushDescs("anchor", "an anchor")
	witnessDescs = newPushDescs("witness", "a witness")
)

// pushDescs are the metrics of anchors and witnesses.
type pushDescs struct{ up, size, age, pushed, failures *prometheus.Desc }

func newPushDescs(name, what string) pushDescs {
	return pushDescs{
		up:       trailDesc(name+"_up", "Whether "+what+" took what it was last given: 1 or 0.", name),
		size:     trailDesc(name+"_size", "Size of the checkpoint that "+what+" took last; -1: none since the start.", name),
		age:      trailDesc(name+"_age_seconds", "Time since "+what+" took a checkpoint. It grows while nothing happens.", name),
		pushed:   trailDesc(name+"_pushed_checkpoints_total", "Checkpoints that "+what+" took.", name),
		failures: trailDesc(name+"_failures_total", "Attempts to reach "+what+" that failed.", name),
	}
}

// Describe implements prometheus.Collector.
func (c trailCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		trailSize, trailWaiting, trailWaitingAge, trailHalted, trailPruned, checkpointAge, sequencer, sequenced, sequencingFails,
		sinkUp, sinkLagEvents, sinkLag, sinkDelivered, sinkFailures,
	} {
		ch <- d
	}
	for _, p := range []pushDescs{anchorDescs, witnessDescs} {
		for _, d := range []*prometheus.Desc{p.up, p.size, p.age, p.pushed, p.failures} {
			ch <- d
		}
	}
}

// Collect implements prometheus.Collector.
func (c trailCollector) Collect(ch chan<- prometheus.Metric) {
	now := c.s.DB.Now()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	stats := c.s.Trail.Stats()
	gauge(trailHalted, bit(c.s.trailStopped()))
	gauge(sequencer, bit(stats.Holds))
	counter(sequenced, stats.Sequenced)
	counter(sequencingFails, stats.Failures)
	if status := c.s.status.Load(); status != nil {
		gauge(trailSize, float64(status.Size))
		gauge(trailPruned, float64(status.Pruned))
		gauge(trailWaiting, float64(status.Waiting))
		gauge(trailWaitingAge, age(now, status.WaitingSince))
		if !status.CheckpointAt.IsZero() {
			gauge(checkpointAge, age(now, status.CheckpointAt))
		}
	}
	running := c.s.Places.Running()
	for name, s := range running.Sinks {
		gauge(sinkUp, bit(s.OK), name)
		gauge(sinkLagEvents, float64(s.LagEvents), name)
		gauge(sinkLag, s.Lag.Seconds(), name)
		counter(sinkDelivered, s.Delivered, name)
		counter(sinkFailures, s.Failures, name)
	}
	pushes := func(d pushDescs, all map[string]PushState) {
		for name, s := range all {
			gauge(d.up, bit(s.OK), name)
			gauge(d.size, float64(s.Size), name)
			if !s.At.IsZero() {
				gauge(d.age, age(now, s.At), name)
			}
			counter(d.pushed, s.Pushed, name)
			counter(d.failures, s.Failures, name)
		}
	}
	pushes(anchorDescs, running.Anchors)
	pushes(witnessDescs, running.Witnesses)
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// age is how long ago an instant was; 0 for none, and for one to come.
func age(now, at time.Time) float64 {
	if at.IsZero() || at.After(now) {
		return 0
	}
	return now.Sub(at).Seconds()
}

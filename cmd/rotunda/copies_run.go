package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/anchors"
	"github.com/rotunda-dev/rotunda/audit/sinks"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// run starts and stops what runs, as places come and go, until ctx ends.
func (c *copies) run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	woken, stop := c.db.Listen(audit.TopicPlaces)
	defer stop()
	running := map[string]context.CancelFunc{} // by what it was started with
	begin := func(key, lease string, work func(context.Context) error) {
		// What was begun before under the same lease may not have ended yet: as another
		// holder this one waits for it.
		holder := c.holder + "/" + rand.Text()
		ctx, cancel := context.WithCancel(ctx)
		running[key] = cancel
		all.Go(func() {
			c.db.Hold(ctx, lease, holder, placeLease, func(ctx context.Context, _ store.Lease) error { return work(ctx) }, func(err error) {
				c.log.LogAttrs(ctx, slog.LevelWarn, "a copy of the trail is interrupted; it is begun again", slog.String("to", lease), slog.Any("error", err))
			})
		})
	}
	for ctx.Err() == nil {
		wanted, err := c.wanted(ctx)
		if err != nil && ctx.Err() == nil {
			c.log.LogAttrs(ctx, slog.LevelWarn, "where the trail is copied to can't be read; what runs goes on", slog.Any("error", err))
		}
		if err == nil {
			for key, cancel := range running {
				if _, ok := wanted[key]; !ok {
					cancel()
					delete(running, key)
				}
			}
			for key, w := range wanted {
				if _, ok := running[key]; !ok {
					begin(key, w.lease, w.work)
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-woken:
		case <-time.After(placeFloor):
		}
	}
}

// job is something to run under a lease.
type job struct {
	lease string
	work  func(context.Context) error
}

// wanted returns what is to run, by a text that changes with its configuration.
func (c *copies) wanted(ctx context.Context) (map[string]job, error) {
	places, err := c.sinks.List(ctx)
	if err != nil {
		return nil, err
	}
	jobs := map[string]job{}
	for _, p := range places {
		key := fmt.Sprintf("sink %s %d %s", p.Name, p.CreatedAt.UnixMicro(), p.Config)
		jobs[key] = job{"sink/" + p.Name, func(ctx context.Context) error {
			err := c.pump(ctx, p)
			if err != nil && ctx.Err() == nil { // it could not be begun: that shows until it can
				c.mu.Lock()
				defer c.mu.Unlock()
				c.pumps[p.Name] = sinks.Stats{State: sinks.StateFailing, LastError: err.Error()}
			}
			return err
		}}
	}
	where, err := c.anchors.List(ctx)
	if err != nil {
		return nil, err
	}
	witnesses, err := c.trail.Witnesses(ctx)
	if err != nil {
		return nil, err
	}
	var key strings.Builder
	for _, p := range where {
		fmt.Fprintf(&key, "anchor %s %d %s\n", p.Name, p.CreatedAt.UnixMicro(), p.Config)
	}
	for _, w := range witnesses {
		fmt.Fprintf(&key, "witness %s %s %s\n", w.Name, w.VKey, w.URL)
	}
	if key.Len() > 0 {
		status, _, err := c.trail.Checkpoint(ctx)
		if errors.Is(err, fault.ErrNotFound) {
			return jobs, nil // the first event makes one
		}
		if err != nil {
			return nil, err
		}
		// A log that was restarted has another origin, and other anchors in its name.
		jobs[status.Origin+"\n"+key.String()] = job{"anchors", func(ctx context.Context) error { return c.pushes(ctx, status.Origin, where, witnesses) }}
	}
	return jobs, nil
}

// feed is the trail as a pump reads it.
type feed struct{ *audit.Trail }

func (f feed) Read(ctx context.Context, index int64, limit int) ([]trail.Record, error) {
	return f.Next(ctx, index, limit)
}

// pump feeds one sink until ctx ends.
func (c *copies) pump(ctx context.Context, p audit.Place) error {
	var cfg sinks.Config
	if err := json.Unmarshal(p.Config, &cfg); err != nil {
		return fmt.Errorf("read the sink %s: %w", p.Name, err)
	}
	var err error
	if cfg.Secret, cfg.ClientKey, err = unseal(ctx, c.sinks, p); err != nil {
		return err
	}
	cfg.Now = c.db.Now
	if err := c.allowed(p.Kind, cfg.Address); err != nil { // also when the row was not made by CreateSink
		return err
	}
	sink, err := sinks.Open(cfg)
	if err != nil {
		return err
	}
	defer sink.Close() //nolint:errcheck // what it had not confirmed is sent again
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pumps, p.Name)
	}()
	pump := &sinks.Pump{Source: feed{c.trail}, Sink: sink, Name: audit.CursorOf(p.Name), Log: c.log, Now: c.db.Now,
		Rejected: func(ctx context.Context, r trail.Record, reason string) error {
			return c.rejected(ctx, p.Name, r, reason)
		},
		Observe: func(s sinks.Stats) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.pumps[p.Name] = s
		},
	}
	return pump.Run(ctx)
}

// rejected writes down that a sink will never have an event. The event that says
// so may be refused too, and then is only in the log: else there would be no end.
func (c *copies) rejected(ctx context.Context, sink string, r trail.Record, reason string) error {
	const action = "sink.rejected"
	c.log.LogAttrs(ctx, slog.LevelError, "a sink refuses an event for good; it goes on with the next", slog.String("sink", sink), slog.Int64("index", r.Index), slog.String("reason", reason))
	if r.Action == action {
		return nil
	}
	return c.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		return audit.Record(ctx, tx, audit.Event{Actor: audit.Rotunda, Action: action, Outcome: audit.Failed, Resource: "sinks/" + sink, Reason: reason,
			Detail: map[string]any{"index": r.Index, "event": r.ID}})
	})
}

// prover gives witnesses their consistency proofs.
type prover struct{ t *audit.Trail }

func (p prover) Consistency(ctx context.Context, old, size int64) ([]tlog.Hash, error) {
	return p.t.Consistency(ctx, old, size)
}

// pushes brings checkpoints to all anchors and witnesses until ctx ends.
func (c *copies) pushes(ctx context.Context, origin string, where []audit.Place, witnesses []audit.Witness) (err error) {
	p := &anchors.Pusher{Anchors: map[string]anchors.Anchor{}, Latest: c.latest, Prover: prover{c.trail}, Tick: c.db.Tick, Log: c.log, Save: c.cosigned}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), placeLease/2)
		defer cancel()
		err = errors.Join(err, p.Close(last))
		for a := range maps.Values(p.Anchors) {
			err = errors.Join(err, a.Close())
		}
		for _, w := range p.Witnesses {
			err = errors.Join(err, w.Close())
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.push = nil
	}()
	shows := map[string]bool{}
	for _, place := range where {
		shows[place.Name] = place.Kind != anchors.Webhook
		p.Anchors[place.Name] = &lateAnchor{
			open: func(ctx context.Context) (anchors.Anchor, error) { return c.openAnchor(ctx, origin, place) },
			compare: func(ctx context.Context, a anchors.Anchor) error {
				err := c.compare(ctx, place.Name, a)
				if errors.Is(err, fault.ErrRejected) { // garbage is no history, and what is pushed beside it is worth as much as before
					c.log.LogAttrs(ctx, slog.LevelWarn, "what an anchor holds can't be compared with the trail", slog.String("anchor", place.Name), slog.Any("error", err))
					return nil
				}
				return err
			},
		}
	}
	for _, w := range witnesses {
		if w.URL == "" {
			continue
		}
		key, err := trail.ParseWitness(w.VKey)
		if err != nil {
			return fmt.Errorf("read the witness %s: %w", w.Name, err)
		}
		client, err := anchors.OpenWitness(anchors.WitnessConfig{URL: w.URL, Key: key, Name: w.Name})
		if err != nil {
			return err
		}
		p.Witnesses = append(p.Witnesses, client)
	}
	told := ""
	for ctx.Err() == nil {
		_, err := p.Pass(ctx, c.db.Now())
		if ctx.Err() != nil {
			break
		}
		stats := p.Stats()
		if why := proven(stats, shows); why != nil {
			if err := c.halt(ctx, origin, why); err != nil {
				return err
			}
		}
		if text := fmt.Sprint(err); err != nil && text != told {
			c.log.LogAttrs(ctx, slog.LevelError, "checkpoints can't be brought to all anchors", slog.Any("error", err))
		}
		told = fmt.Sprint(err)
		c.mu.Lock()
		c.push = stats
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// proven returns why the trail must stop: an anchor showed a checkpoint that this
// log signed, and that the stored tree does not extend. What a webhook or a
// witness says is only its word: it is an alarm, and if it stopped all changes,
// whoever runs it could.
func proven(stats []anchors.Stat, shows map[string]bool) error {
	for _, s := range stats {
		if s.Alarm && !s.Witness && shows[s.Name] {
			return errors.New(s.Error)
		}
	}
	return nil
}

// halt stops the trail, unless it is stopped already or was restarted: that an
// anchor is ahead of the log before a restart is no news then, and must not stop
// the one after it.
func (c *copies) halt(ctx context.Context, origin string, why error) error {
	status, err := c.trail.Status(ctx)
	if err != nil || status.Origin != origin || status.Stopped != "" {
		return err
	}
	return c.trail.Stop(ctx, origin, why)
}

// lateAnchor is opened, and compared with the log, before the first push. When
// that fails the next push tries it again: a share may be mounted after the start.
type lateAnchor struct {
	open    func(context.Context) (anchors.Anchor, error)
	compare func(context.Context, anchors.Anchor) error

	mu      sync.Mutex
	is      anchors.Anchor // nil: not opened yet
	matches bool           // it was compared, and holds nothing else than the log
}

func (l *lateAnchor) ready(ctx context.Context) (anchors.Anchor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.is == nil {
		a, err := l.open(ctx)
		if err != nil {
			return nil, err
		}
		l.is = a
	}
	if !l.matches {
		if err := l.compare(ctx, l.is); err != nil {
			return nil, err
		}
		l.matches = true
	}
	return l.is, nil
}

// Push implements anchors.Anchor.
func (l *lateAnchor) Push(ctx context.Context, cp trail.Checkpoint, signed string) error {
	a, err := l.ready(ctx)
	if err != nil {
		return err
	}
	return a.Push(ctx, cp, signed)
}

// Newest implements anchors.Anchor.
func (l *lateAnchor) Newest(ctx context.Context) (string, error) {
	a, err := l.ready(ctx)
	if err != nil {
		return "", err
	}
	return a.Newest(ctx)
}

// Close implements anchors.Anchor.
func (l *lateAnchor) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.is == nil {
		return nil
	}
	return l.is.Close()
}

func (c *copies) openAnchor(ctx context.Context, origin string, place audit.Place) (anchors.Anchor, error) {
	var stored anchorConfig
	if err := json.Unmarshal(place.Config, &stored); err != nil {
		return nil, fmt.Errorf("read the anchor %s: %w", place.Name, err)
	}
	if err := c.allowed(place.Kind, stored.Address); err != nil {
		return nil, err
	}
	s, _, err := unseal(ctx, c.anchors, place)
	if err != nil {
		return nil, err
	}
	cfg, err := stored.open(place.Kind, origin, s, c.db.Now)
	if err != nil {
		return nil, err
	}
	cfg.Check = func(signed string) (trail.Checkpoint, error) {
		// By the keys of now: a key that was rotated signed what an anchor holds.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), placeLease)
		defer cancel()
		vkeys, _, err := c.trail.Keys(limited)
		if err != nil {
			return trail.Checkpoint{}, err
		}
		keys, err := trail.ParseKeys(strings.Join(vkeys, "\n"))
		if err != nil {
			return trail.Checkpoint{}, err
		}
		return keys.Open(signed)
	}
	return anchors.Open(cfg)
}

// compare finds out whether the log still extends what an anchor holds. Another
// process may have pushed after the newest checkpoint was read here, so a
// disagreement counts when it is found twice.
func (c *copies) compare(ctx context.Context, name string, a anchors.Anchor) error {
	for again := false; ; again = true {
		newest, _, err := c.trail.Checkpoint(ctx)
		if err != nil {
			return err
		}
		_, err = anchors.Compare(ctx, name, a, newest, c.trail.Root)
		if again || !errors.Is(err, fault.ErrChanged) {
			return err
		}
	}
}

// latest returns the newest checkpoint as the log signed it, without cosignatures.
func (c *copies) latest(ctx context.Context) (trail.Checkpoint, string, error) {
	return c.trail.Checkpoint(ctx)
}

// cosigned keeps the line of a witness.
func (c *copies) cosigned(ctx context.Context, size int64, witness, line string) error {
	return c.trail.AddCosignature(ctx, size, witness, line, c.db.Now())
}

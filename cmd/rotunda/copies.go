package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/anchors"
	"github.com/rotunda-dev/rotunda/audit/sinks"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/server"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	placeLease = 10 * time.Second // a killed replica's sinks are taken up after it
	placeFloor = 5 * time.Second  // how often places are looked at without a wake-up
)

// copies keeps the places that get copies of the trail, and runs them: each sink
// in one replica, and all anchors and witnesses in one.
type copies struct {
	db      *store.DB
	trail   *audit.Trail
	sinks   *audit.Places
	anchors *audit.Places
	log     *slog.Logger
	holder  string
	folders []string // in which file sinks and file anchors may be

	mu    sync.Mutex
	pumps map[string]sinks.Stats
	push  []anchors.Stat
}

func newCopies(db *store.DB, sealer *secret.Sealer, t *audit.Trail, log *slog.Logger, holder string, folders []string) *copies {
	return &copies{folders: folders, db: db, trail: t, sinks: audit.NewSinks(db, sealer), anchors: audit.NewAnchors(db, sealer), log: log, holder: holder, pumps: map[string]sinks.Stats{}}
}

// allowed refuses a file outside of the folders that the server's operator named:
// an admin of Rotunda is not one of its machine.
func (c *copies) allowed(kind, path string) error {
	if kind != sinks.File && kind != anchors.File {
		return nil
	}
	const reason, hint = "folder_not_allowed", "start the server with --copies-dir and a folder around it"
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil || !filepath.IsAbs(path) {
		return fault.Invalid("address", reason, "the folder of %s is not there, or not an absolute path: make it first, and %s", clipText(path), hint)
	}
	if kind == anchors.File {
		if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSymlink != 0 {
			return fault.Invalid("address", reason, "%s is a symbolic link, which could be pointed elsewhere: name the folder itself", clipText(path))
		}
	}
	real = filepath.Join(real, filepath.Base(path))
	for _, folder := range c.folders {
		if folder, err := filepath.EvalSymlinks(folder); err == nil && (real == folder || strings.HasPrefix(real, strings.TrimSuffix(folder, "/")+"/")) {
			return nil
		}
	}
	return fault.Invalid("address", reason, "the server may not write to %s: %s", clipText(path), hint)
}

func clipText(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// sinkSecrets is what is sealed of a sink.
type sinkSecrets struct {
	Secret    string `json:"secret,omitempty"`
	ClientKey string `json:"client_key,omitempty"`
}

// CreateSink implements server.Places.
func (c *copies) CreateSink(ctx context.Context, s server.NewSink) (server.Sink, error) {
	cfg := sinks.Config{Kind: s.Kind, Address: s.Address, Format: s.Format, CA: s.CA, ServerName: s.ServerName, ClientCert: s.ClientCert, Options: s.Options,
		Secret: s.Secret, ClientKey: s.ClientKey, Now: c.db.Now}
	if err := sinks.Validate(cfg); err != nil {
		return server.Sink{}, err
	}
	if err := c.allowed(s.Kind, s.Address); err != nil {
		return server.Sink{}, err
	}
	config, err := json.Marshal(cfg)
	if err != nil {
		return server.Sink{}, fmt.Errorf("encode the sink %s: %w", s.Name, err)
	}
	var sealed secret.Value
	if !s.Secret.IsZero() || !s.ClientKey.IsZero() {
		raw, err := json.Marshal(sinkSecrets{s.Secret.RevealString(), s.ClientKey.RevealString()})
		if err != nil {
			return server.Sink{}, errors.New("encode the secrets of a sink") // the cause may hold them
		}
		sealed = secret.FromString(string(raw))
		clear(raw)
		defer sealed.Destroy()
	}
	place, err := c.sinks.Create(ctx, audit.Place{Name: s.Name, Kind: s.Kind, Config: config}, sealed, s.Index)
	if err != nil {
		return server.Sink{}, err
	}
	return c.sink(ctx, place)
}

// sink is a place as the server shows it.
func (c *copies) sink(ctx context.Context, p audit.Place) (server.Sink, error) {
	var cfg sinks.Config
	if err := json.Unmarshal(p.Config, &cfg); err != nil {
		return server.Sink{}, fmt.Errorf("read the sink %s: %w", p.Name, err)
	}
	next, err := c.trail.Cursor(ctx, audit.CursorOf(p.Name))
	if err != nil {
		return server.Sink{}, err
	}
	return server.Sink{Name: p.Name, Kind: p.Kind, Address: cfg.Address, Format: cfg.Format, CA: cfg.CA, ServerName: cfg.ServerName, ClientCert: cfg.ClientCert,
		Options: cfg.Options, HasSecret: p.HasSecret, CreatedAt: p.CreatedAt, Next: next}, nil
}

// Sinks implements server.Places.
func (c *copies) Sinks(ctx context.Context) ([]server.Sink, error) {
	places, err := c.sinks.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []server.Sink
	for _, p := range places {
		s, err := c.sink(ctx, p)
		if errors.Is(err, fault.ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// DeleteSink implements server.Places.
func (c *copies) DeleteSink(ctx context.Context, name string) error { return c.sinks.Delete(ctx, name) }

// anchorConfig is how an anchor is stored.
type anchorConfig struct {
	Address    string `json:"address"`
	Prefix     string `json:"prefix,omitempty"`
	Region     string `json:"region,omitempty"`
	Endpoint   string `json:"endpoint,omitempty"`
	PathStyle  bool   `json:"path_style,omitempty"`
	AccessKey  string `json:"access_key,omitempty"`
	RetainDays int    `json:"retain_days,omitempty"`
	CA         string `json:"ca,omitempty"`
	NoLatest   bool   `json:"no_latest,omitempty"`
}

// open returns the adapter's configuration.
func (a anchorConfig) open(kind, origin string, s secret.Value, now func() time.Time) (anchors.Config, error) {
	cfg := anchors.Config{Kind: kind, Origin: origin, Address: a.Address, Secret: s, NoLatest: a.NoLatest, Prefix: a.Prefix, Region: a.Region,
		Endpoint: a.Endpoint, PathStyle: a.PathStyle, AccessKey: a.AccessKey, RetainDays: a.RetainDays, Now: now}
	if a.CA != "" {
		cfg.CAs = x509.NewCertPool()
		if !cfg.CAs.AppendCertsFromPEM([]byte(a.CA)) {
			return cfg, fault.Invalid("ca", "bad_certificates", "the anchor's certificates are not PEM")
		}
	}
	return cfg, nil
}

// CreateAnchor implements server.Places.
func (c *copies) CreateAnchor(ctx context.Context, a server.NewAnchor) (server.Anchor, error) {
	stored := anchorConfig{a.Address, a.Prefix, a.Region, a.Endpoint, a.PathStyle, a.AccessKey, a.RetainDays, a.CA, a.NoLatest}
	cfg, err := stored.open(a.Kind, c.trail.Origin, a.Secret, c.db.Now)
	if err != nil {
		return server.Anchor{}, err
	}
	if err := anchors.Validate(cfg); err != nil {
		return server.Anchor{}, err
	}
	if err := c.allowed(a.Kind, a.Address); err != nil {
		return server.Anchor{}, err
	}
	config, err := json.Marshal(stored)
	if err != nil {
		return server.Anchor{}, fmt.Errorf("encode the anchor %s: %w", a.Name, err)
	}
	place, err := c.anchors.Create(ctx, audit.Place{Name: a.Name, Kind: a.Kind, Config: config}, a.Secret, -1)
	if err != nil {
		return server.Anchor{}, err
	}
	return anchorOf(place)
}

func anchorOf(p audit.Place) (server.Anchor, error) {
	var a anchorConfig
	if err := json.Unmarshal(p.Config, &a); err != nil {
		return server.Anchor{}, fmt.Errorf("read the anchor %s: %w", p.Name, err)
	}
	return server.Anchor{Name: p.Name, Kind: p.Kind, Address: a.Address, Prefix: a.Prefix, Region: a.Region, Endpoint: a.Endpoint, PathStyle: a.PathStyle,
		AccessKey: a.AccessKey, RetainDays: a.RetainDays, CA: a.CA, NoLatest: a.NoLatest, HasSecret: p.HasSecret, CreatedAt: p.CreatedAt}, nil
}

// Anchors implements server.Places.
func (c *copies) Anchors(ctx context.Context) ([]server.Anchor, error) {
	places, err := c.anchors.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]server.Anchor, len(places))
	for i, p := range places {
		if out[i], err = anchorOf(p); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// DeleteAnchor implements server.Places.
func (c *copies) DeleteAnchor(ctx context.Context, name string) error {
	return c.anchors.Delete(ctx, name)
}

// CreateWitness implements server.Places.
func (c *copies) CreateWitness(ctx context.Context, w audit.Witness) (audit.Witness, error) {
	key, err := trail.ParseWitness(w.VKey)
	if err != nil {
		return w, fault.Invalid("vkey", "vkey_malformed", "add a witness: %w", err)
	}
	if w.URL != "" {
		client, err := anchors.OpenWitness(anchors.WitnessConfig{URL: w.URL, Key: key})
		if err != nil {
			return w, err
		}
		_ = client.Close() // it has connected to nothing yet
	}
	w.Name = key.Name()
	return c.trail.CreateWitness(ctx, w)
}

// Running implements server.Places.
func (c *copies) Running() server.Running {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := server.Running{Sinks: map[string]server.SinkState{}, Anchors: map[string]server.PushState{}, Witnesses: map[string]server.PushState{}}
	for name, s := range c.pumps {
		r.Sinks[name] = server.SinkState{OK: s.State == sinks.StateOK, LastError: s.LastError, LagEvents: s.LagEvents, Lag: s.Lag, Delivered: s.Delivered, Failures: s.Failures}
	}
	for _, s := range c.push {
		to := r.Anchors
		if s.Witness {
			to = r.Witnesses
		}
		to[s.Name] = server.PushState{OK: s.InARow == 0, LastError: s.Error, Size: s.Size, At: s.At, Pushed: s.Pushed, Failures: s.Failed}
	}
	return r
}

// run starts and stops what runs, as places come and go, until ctx ends.
func (c *copies) run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	woken, stop := c.db.Listen(audit.TopicPlaces)
	defer stop()
	running := map[string]context.CancelFunc{} // by what it was started with
	begin := func(key, lease string, work func(context.Context) error) {
		ctx, cancel := context.WithCancel(ctx)
		running[key] = cancel
		all.Go(func() {
			c.db.Hold(ctx, lease, c.holder, placeLease, func(ctx context.Context, _ store.Lease) error { return work(ctx) }, func(err error) {
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
		jobs[key] = job{"sink/" + p.Name, func(ctx context.Context) error { return c.pump(ctx, p) }}
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
	if p.HasSecret {
		sealed, err := c.sinks.Secret(ctx, p.Name)
		if err != nil {
			return err
		}
		var s sinkSecrets
		err = json.Unmarshal([]byte(sealed.RevealString()), &s)
		sealed.Destroy()
		if err != nil {
			return fmt.Errorf("read the secrets of the sink %s", p.Name) // the cause may hold them
		}
		if s.Secret != "" {
			cfg.Secret = secret.FromString(s.Secret)
		}
		if s.ClientKey != "" {
			cfg.ClientKey = secret.FromString(s.ClientKey)
		}
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
	for _, place := range where {
		a, err := c.openAnchor(ctx, origin, place)
		if err != nil {
			c.log.LogAttrs(ctx, slog.LevelError, "an anchor can't be opened; the others go on", slog.String("anchor", place.Name), slog.Any("error", err))
			continue
		}
		p.Anchors[place.Name] = a
		if err := c.compare(ctx, place.Name, a); err != nil {
			if errors.Is(err, fault.ErrChanged) {
				return errors.Join(err, c.trail.Stop(ctx, err))
			}
			c.log.LogAttrs(ctx, slog.LevelWarn, "what an anchor holds can't be compared with the trail", slog.String("anchor", place.Name), slog.Any("error", err))
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
		if errors.Is(err, fault.ErrChanged) {
			// Somebody outside holds a checkpoint that this log signed, and that the
			// stored tree does not extend.
			if err := c.trail.Stop(ctx, err); err != nil {
				return err
			}
		}
		if text := fmt.Sprint(err); err != nil && text != told {
			c.log.LogAttrs(ctx, slog.LevelError, "checkpoints can't be brought to all anchors", slog.Any("error", err))
		}
		told = fmt.Sprint(err)
		c.mu.Lock()
		c.push = p.Stats()
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

func (c *copies) openAnchor(ctx context.Context, origin string, place audit.Place) (anchors.Anchor, error) {
	var stored anchorConfig
	if err := json.Unmarshal(place.Config, &stored); err != nil {
		return nil, fmt.Errorf("read the anchor %s: %w", place.Name, err)
	}
	if err := c.allowed(place.Kind, stored.Address); err != nil {
		return nil, err
	}
	var s secret.Value
	if place.HasSecret {
		var err error
		if s, err = c.anchors.Secret(ctx, place.Name); err != nil {
			return nil, err
		}
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

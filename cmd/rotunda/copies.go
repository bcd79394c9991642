package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

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

// maxConfig is what fits into the event that says how a place was configured.
const maxConfig = 15 << 10

// fits refuses a configuration that the trail could not hold: certificates are
// all that can make one so long.
func fits(config []byte) error {
	if len(config) > maxConfig {
		return fault.Invalid("ca", "config_too_long", "the certificates make a configuration of %d bytes, and the trail records at most %d: name only the authorities that sign the other side's certificate", len(config), maxConfig)
	}
	return nil
}

func clipText(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// malformedOrigin is what audit.Open refuses, asked before anything is made.
func malformedOrigin(s string) bool {
	return len(s) > 200 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '+' || r == '~' })
}

// openTrail opens the trail, and says so when it has another name than the one given.
func openTrail(ctx context.Context, cfg audit.Config) (*audit.Trail, error) {
	t, err := audit.Open(ctx, cfg)
	if err != nil || cfg.Origin == "" {
		return t, err
	}
	status, err := t.Status(ctx)
	if err != nil {
		return nil, err
	}
	if is, _, _ := strings.Cut(status.Origin, "~"); is != cfg.Origin { // a restart adds ~ and letters
		cfg.Log.LogAttrs(ctx, slog.LevelWarn, "--trail-origin has no effect: the trail of this database has its name since the first start", slog.String("is", status.Origin), slog.String("given", cfg.Origin))
	}
	return t, nil
}

// placeSecrets is what is sealed of a sink or an anchor. The configuration stands
// in the clear beside it, so who may write to the database could point a place at
// his own server and wait for its password: with another configuration than Bound,
// the secrets are not used.
type placeSecrets struct {
	Bound     []byte `json:"bound"` // see boundTo
	Secret    string `json:"secret,omitempty"`
	ClientKey string `json:"client_key,omitempty"`
}

// boundTo is the SHA-256 of a place's kind, a zero byte and its configuration as
// it is stored. The seal itself holds table and name.
func boundTo(kind string, config []byte) []byte {
	sum := sha256.Sum256(slices.Concat([]byte(kind), []byte{0}, config))
	return sum[:]
}

// sealable returns what is to be sealed of a place; zero when it has no secrets.
func sealable(kind string, config []byte, s, clientKey secret.Value) (secret.Value, error) {
	if s.IsZero() && clientKey.IsZero() {
		return secret.Value{}, nil
	}
	raw, err := json.Marshal(placeSecrets{boundTo(kind, config), s.RevealString(), clientKey.RevealString()})
	if err != nil {
		return secret.Value{}, errors.New("encode the secrets of a place") // the cause may hold them
	}
	defer clear(raw)
	return secret.FromString(string(raw)), nil
}

// unseal returns the secrets of a place, if its configuration is the one that they
// were given for.
func unseal(ctx context.Context, places *audit.Places, p audit.Place) (s, clientKey secret.Value, err error) {
	if !p.HasSecret {
		return s, clientKey, nil
	}
	sealed, err := places.Secret(ctx, p.Name)
	if err != nil {
		return s, clientKey, err
	}
	defer sealed.Destroy()
	var opened placeSecrets
	if json.Unmarshal([]byte(sealed.RevealString()), &opened) != nil {
		return s, clientKey, fmt.Errorf("read the secrets of %s: they are not in the form in which they are sealed", p.Name) // the cause may hold them
	}
	if subtle.ConstantTimeCompare(opened.Bound, boundTo(p.Kind, p.Config)) != 1 {
		return s, clientKey, fault.New(fault.ErrRejected, "place_altered", "use the secrets of %s: its kind or its configuration was altered in the database after they were given, so they are sent nowhere: find out by whom, then remove it and add it again", p.Name)
	}
	if opened.Secret != "" {
		s = secret.FromString(opened.Secret)
	}
	if opened.ClientKey != "" {
		clientKey = secret.FromString(opened.ClientKey)
	}
	return s, clientKey, nil
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
	if err := fits(config); err != nil {
		return server.Sink{}, err
	}
	sealed, err := sealable(s.Kind, config, s.Secret, s.ClientKey)
	if err != nil {
		return server.Sink{}, err
	}
	defer sealed.Destroy()
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
	status, err := c.trail.Status(ctx)
	if err != nil {
		return server.Anchor{}, err
	}
	cfg, err := stored.open(a.Kind, status.Origin, a.Secret, c.db.Now)
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
	if err := fits(config); err != nil {
		return server.Anchor{}, err
	}
	sealed, err := sealable(a.Kind, config, a.Secret, secret.Value{})
	if err != nil {
		return server.Anchor{}, err
	}
	defer sealed.Destroy()
	place, err := c.anchors.Create(ctx, audit.Place{Name: a.Name, Kind: a.Kind, Config: config}, sealed, -1)
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

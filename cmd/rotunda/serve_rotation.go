package main

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	goredis "github.com/redis/go-redis/v9"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/server"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/builtin"
	scheduling "github.com/rotunda-dev/rotunda/rotation"
	"github.com/rotunda-dev/rotunda/rotation/sender"
)

// Bounds of what serve can be told about rotations.
const (
	maxWorkers = 256
	minLease   = 2 * time.Second
	maxLease   = 10 * time.Minute
	minEffect  = time.Second
	maxEffect  = 10 * time.Minute
)

// rotationConfig is what `rotunda serve` can be told about rotations.
type rotationConfig struct {
	workers         int
	lease, effect   durationFlag
	privateWebhooks bool
}

func (cfg *rotationConfig) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&cfg.workers, "rotation-workers", scheduling.DefaultWorkers, "how many rotations this replica works on at once; from two on, one is kept for emergencies")
	f.Var(&cfg.lease, "rotation-lease", "how long the rotations of a replica that died wait for another one (default 10s)")
	f.Var(&cfg.effect, "effect-timeout", "longest time of one effect on a target or a store (default 30s)")
	f.BoolVar(&cfg.privateWebhooks, "private-webhooks", false, "webhooks may go to private networks and to this machine")
	for _, n := range []string{"rotation-workers", "rotation-lease", "effect-timeout"} {
		_ = cmd.RegisterFlagCompletionFunc(n, cobra.NoFileCompletions)
	}
}

func (cfg *rotationConfig) check() error {
	if cfg.workers < 1 || cfg.workers > maxWorkers {
		return usagef("--rotation-workers %d is outside 1 to %d", cfg.workers, maxWorkers)
	}
	if d := cfg.lease.given; d != nil && (*d < minLease || *d > maxLease) {
		return usagef("--rotation-lease %s is outside %s to %s", formatDuration(*d), formatDuration(minLease), formatDuration(maxLease))
	}
	if d := cfg.effect.given; d != nil && (*d < minEffect || *d > maxEffect) {
		return usagef("--effect-timeout %s is outside %s to %s", formatDuration(*d), formatDuration(minEffect), formatDuration(maxEffect))
	}
	return nil
}

// rotating is what a server keeps of credentials.
type rotating struct {
	systems     *scheduling.Systems
	rotations   *scheduling.Rotations
	credentials *scheduling.Credentials
	incidents   *scheduling.Incidents
	endpoints   *scheduling.Endpoints
	builtin     *builtin.Store
	sender      *sender.Sender

	// observe is told of effects. It is set before anything runs.
	observe func(scheduling.EffectOutcome)
}

// quiet keeps go-redis from writing to stderr by itself: what it has to say is in its errors.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// openRotating opens them. Nothing is rotated before run and the passes are called.
func openRotating(ctx context.Context, cfg rotationConfig, db *store.DB, sealer *secret.Sealer, keys *apikeys.Keys, replica string, log *slog.Logger) (*rotating, error) {
	goredis.SetLogger(quiet{})
	kind, own := openBuiltin(db, sealer)
	r := &rotating{builtin: own, observe: func(scheduling.EffectOutcome) {}}
	var err error
	r.systems, err = scheduling.NewSystems(ctx, scheduling.SystemsConfig{DB: db, Sealer: sealer, Targets: targetKinds(), Stores: append([]providers.StoreKind{kind}, storeKinds()...), Log: log})
	if err != nil {
		return nil, err
	}
	runs := scheduling.RotationsConfig{
		DB: db, Sealer: sealer, Systems: r.systems, Holder: replica, Workers: cfg.workers, Log: log,
		Observe: func(o scheduling.EffectOutcome) { r.observe(o) },
	}
	if cfg.lease.given != nil {
		runs.Lease = *cfg.lease.given
	}
	if cfg.effect.given != nil {
		runs.EffectTimeout = *cfg.effect.given
	}
	r.rotations, err = scheduling.NewRotations(runs)
	if err == nil {
		r.credentials, err = scheduling.NewCredentials(scheduling.CredentialsConfig{DB: db, Systems: r.systems, Rotations: r.rotations, Log: log})
	}
	if err == nil {
		r.incidents, err = scheduling.NewIncidents(scheduling.IncidentsConfig{DB: db, Credentials: r.credentials, Log: log})
	}
	if err == nil {
		r.sender, err = sender.New(sender.Config{AllowPrivate: cfg.privateWebhooks, Now: db.Now})
	}
	if err == nil {
		r.endpoints, err = scheduling.NewEndpoints(scheduling.EndpointsConfig{DB: db, Systems: r.systems, Secrets: keys, Sender: r.sender, Log: log})
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rotating) close() error {
	if r.sender != nil {
		r.sender.Close()
	}
	return r.systems.Close()
}

func (r *rotating) passes() []scheduling.Pass {
	return []scheduling.Pass{
		{Name: "credentials_due", Run: r.credentials.DuePass},
		{Name: "incidents", Run: r.incidents.Pass},
		{Name: "drift", Run: r.credentials.ProbePass},
		{Name: "deliveries", Run: r.endpoints.DeliverPass},
		{Name: "secret_reads", Run: r.builtin.Pass},
	}
}

// configure gives the server what it serves of credentials.
func (r *rotating) configure(cfg *server.Config) {
	cfg.Systems, cfg.Credentials, cfg.Rotations, cfg.Incidents, cfg.Endpoints = r.systems, r.credentials, r.rotations, r.incidents, r.endpoints
	cfg.Secrets = builtinSecrets{r.builtin}
}

// builtinSecrets reads from the built-in store for the API.
type builtinSecrets struct{ store *builtin.Store }

// ReadSecret is that of [server.Secrets].
func (s builtinSecrets) ReadSecret(ctx context.Context, path, version string) (server.Secret, error) {
	var which builtin.Which
	switch version {
	case "", string(builtin.Current), string(builtin.Previous):
		which.Label = builtin.Label(version)
	default:
		n, err := strconv.ParseInt(version, 10, 64)
		if err != nil || n < 1 {
			return server.Secret{}, fault.Invalid("version", "version_malformed", "the version %.64q is neither current, previous nor a number", version)
		}
		which.Number = n
	}
	v, err := s.store.Get(ctx, path, which)
	if err != nil {
		return server.Secret{}, err
	}
	return server.Secret{Fields: v.Fields, Version: strconv.FormatInt(v.Number, 10), Label: string(v.Label), CreatedAt: v.Time}, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/apikeys/redis"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	scheduling "github.com/rotunda-dev/rotunda/rotation"
)

const (
	minStale = time.Second
	maxStale = time.Hour
)

// keysConfig is what `rotunda serve` can be told about partners' keys.
type keysConfig struct {
	prefix   string
	staleFor durationFlag
	redisURL string
	rateFail choice
	insecure bool // Redis may be asked in plain text, wherever it is
}

func (cfg *keysConfig) bind(c *cli, cmd *cobra.Command) {
	cfg.rateFail = choice{allowed: []string{redis.FailLocal, redis.FailOpen, redis.FailClosed}, value: redis.FailLocal}
	f := cmd.Flags()
	f.StringVar(&cfg.prefix, "key-prefix", "rk", "what the partners' API keys begin with: 2 to 12 lower-case letters; keep it, keys that begin otherwise are unknown then")
	f.Var(&cfg.staleFor, "verify-stale", "how long partners' keys are accepted without hearing of revocations, while the database is out of reach (default 60s)")
	f.StringVar(&cfg.redisURL, "redis-url", "", "redis://… or rediss://…, for rate limits that replicas share (ROTUNDA_REDIS_URL; default: each replica counts for itself)")
	f.Var(&cfg.rateFail, "rate-limit-fail", "what a rate limit means while Redis is out of reach: each replica counts for itself, there is none, or nobody who has one gets through")
	c.complete(cmd, "rate-limit-fail", cfg.rateFail.allowed...)
}

func (cfg *keysConfig) check() error {
	if d := cfg.staleFor.given; d != nil && (*d < minStale || *d > maxStale) {
		return usagef("--verify-stale %s is outside %s to %s", formatDuration(*d), formatDuration(minStale), formatDuration(maxStale))
	}
	return nil
}

// partnerKeys is what a server keeps of partners and their keys.
type partnerKeys struct {
	partners *apikeys.Partners
	keys     *apikeys.Keys
	peppers  *apikeys.Peppers
	verifier *apikeys.Verifier
	redis    *redis.Store // nil: each replica counts for itself
}

// openKeys opens them, and has heard of every change when it returns: from the first
// request on, what was revoked is refused.
func (c *cli) openKeys(ctx context.Context, cfg keysConfig, db *store.DB, sealer *secret.Sealer, peppers *apikeys.Peppers, usage *audit.Usage, log *slog.Logger) (*partnerKeys, error) {
	k := &partnerKeys{peppers: peppers, partners: apikeys.NewPartners(db, peppers)}
	var err error
	k.keys, err = apikeys.NewKeys(apikeys.KeysConfig{DB: db, Peppers: peppers, Partners: k.partners, Sealer: sealer, Brand: cfg.prefix})
	if err != nil {
		return nil, fmt.Errorf("--key-prefix: %w", err)
	}
	verify := apikeys.VerifierConfig{DB: db, Keys: k.keys, Partners: k.partners, Sealer: sealer, Usage: usage, Log: log}
	if cfg.staleFor.given != nil {
		verify.StaleFor = *cfg.staleFor.given
	}
	if k.redis, err = c.openRedis(cfg, db, log); err != nil {
		return nil, err
	}
	if k.redis != nil {
		// Nonces stay in the database: it never forgets one.
		verify.Limiter = k.redis
	}
	k.verifier, err = apikeys.NewVerifier(verify)
	if err == nil {
		err = k.verifier.Refresh(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	return k, nil
}

// openRedis returns the Redis in which replicas count together, nil when none is
// named. It is not waited for.
func (c *cli) openRedis(cfg keysConfig, db *store.DB, log *slog.Logger) (*redis.Store, error) {
	given := cfg.redisURL
	if given == "" {
		given = c.env("ROTUNDA_REDIS_URL")
	} else if u, err := url.Parse(given); err == nil && u.User != nil {
		if _, has := u.User.Password(); has {
			log.Warn("the password in --redis-url can be read by other users of this machine: use ROTUNDA_REDIS_URL")
		}
	}
	if given == "" {
		return nil, nil
	}
	if u, err := url.Parse(given); err == nil && u.Scheme == "redis" && u.Hostname() != "" && !loopback(u.Hostname()) && !cfg.insecure {
		return nil, fmt.Errorf("--redis-url (or ROTUNDA_REDIS_URL): Redis at %s would be asked in plain text, with its password: use rediss://, or --insecure if nobody else can listen", u.Host)
	}
	r, err := redis.Open(redis.Config{URL: given, Fail: cfg.rateFail.value, Now: db.Now, Tick: db.Tick, Log: log})
	if err != nil {
		return nil, fmt.Errorf("--redis-url (or ROTUNDA_REDIS_URL): %w", err)
	}
	return r, nil
}

func (k *partnerKeys) close() error {
	if k.redis == nil {
		return nil
	}
	return k.redis.Close()
}

func (k *partnerKeys) passes() []scheduling.Pass {
	return []scheduling.Pass{
		{Name: "partner_keys", Run: k.keys.Pass},
		{Name: "peppers", Run: k.peppers.Pass},
		{Name: "verifier", Run: k.verifier.Pass},
	}
}

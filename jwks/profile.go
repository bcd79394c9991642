package jwks

import (
	"cmp"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Forever is a time without end: a cache that never expires, an exposure without bound.
const Forever = time.Duration(1<<63 - 1)

// Profile describes how one kind of consumer fetches and caches a JWKS
// document, as read in its source or measured by running it. Every safe time
// of a policy is computed from the profiles that the policy names.
type Profile struct {
	Name  string
	Title string // what it is, with the version that was read

	Cache         time.Duration // longest use of a cached set before the next fetch is tried; Forever: no expiry
	HonoursMaxAge bool          // Cache is our max-age, clamped to MinInterval and MaxInterval
	MinInterval   time.Duration
	MaxInterval   time.Duration
	Late          time.Duration // how much later than Cache the next fetch may start

	Refetch  bool          // an unknown kid makes it fetch again
	Throttle time.Duration // shortest time between two such fetches
	Behind   bool          // such a fetch comes too late for the request that caused it, which is refused

	Stale   bool          // goes on with the old set when a fetch fails
	Retry   time.Duration // longest wait after a failed fetch until the next
	Backoff bool          // Retry grows with the length of the failure, up to Retry

	PerKid     bool // caches each kid on its own: a refetch evicts nothing
	TokenCache bool // accepts a token it has seen without looking at the keys again

	Algorithms []Algorithm // that it can verify; nil: all
	Note       string
}

var (
	rsaOnly   = []Algorithm{RS256, RS384, RS512, PS256, PS384, PS512}
	withoutEd = []Algorithm{ES256, ES384, ES512, RS256, RS384, RS512, PS256, PS384, PS512}
)

// Profiles is what is known about real consumers, in order of name. "unknown"
// stands for a consumer nobody has described: 24 hours cover every consumer
// of the list whose cache has an end.
var Profiles = []Profile{
	{Name: "apigee", Title: "Apigee VerifyJWT", Cache: 5 * time.Minute, Note: "caches for a fixed 300 s"},
	{Name: "auth0-go", Title: "auth0/go-jwt-middleware", HonoursMaxAge: true, MinInterval: time.Second, MaxInterval: 7 * 24 * time.Hour, Stale: true,
		Note: "refreshes in the background at 80 % of max-age"},
	{Name: "aws-http-api", Title: "AWS API Gateway HTTP API", Cache: 2 * time.Hour, Algorithms: rsaOnly, Note: "documented to cache a key for two hours; RSA only"},
	{Name: "aws-rest-api", Title: "AWS API Gateway REST API JWT authorizer", Cache: time.Hour, Refetch: true},
	{Name: "domino", Title: "HCL Domino", HonoursMaxAge: true, MinInterval: time.Second, MaxInterval: 24 * time.Hour, Stale: true, Retry: 15 * time.Minute},
	{Name: "dotnet", Title: ".NET ConfigurationManager", Cache: 12*time.Hour + 36*time.Minute, Refetch: true, Throttle: 5 * time.Minute, Behind: true, Stale: true, Retry: time.Hour,
		Note: "refreshes in the background: the request that meets a new kid is still refused"},
	{Name: "envoy", Title: "Envoy jwt_authn remote_jwks", Cache: 10 * time.Minute, Stale: true, Retry: time.Second, Algorithms: nil,
		Note: "never refetches on an unknown kid; each worker thread caches on its own; async_fetch serves a stale set for as long as fetches fail"},
	{Name: "envoy-jwt-cache", Title: "Envoy jwt_authn with jwt_cache_config", Cache: 10 * time.Minute, Stale: true, Retry: time.Second, TokenCache: true,
		Note: "a cached token is accepted without a look at the keys"},
	{Name: "get-jwks", Title: "npm get-jwks with @fastify/jwt", Cache: 10 * time.Minute, Refetch: true, PerKid: true, Algorithms: withoutEd},
	{Name: "go-oidc", Title: "coreos/go-oidc v3.21 RemoteKeySet", Cache: Forever, Refetch: true, Stale: true,
		Note: "a removed key stays trusted until an unknown kid arrives or the process restarts"},
	{Name: "hashicorp-cap", Title: "hashicorp/cap 0.15, Vault jwt auth", Cache: Forever, Refetch: true, Stale: true,
		Note: "a removed key stays trusted until an unknown kid arrives or the process restarts"},
	{Name: "hasura", Title: "Hasura GraphQL Engine", HonoursMaxAge: true, MinInterval: time.Second, MaxInterval: 24 * time.Hour, Stale: true, Retry: time.Minute},
	{Name: "istio", Title: "Istio istiod", Cache: 20 * time.Minute, Stale: true, Retry: time.Hour, Backoff: true,
		Note: "istiod pulls and pushes to Envoy; never refetches on an unknown kid; backs off up to an hour after failures"},
	{Name: "jose", Title: "npm jose 6.2 createRemoteJWKSet", Cache: 10 * time.Minute, Refetch: true, Throttle: 30 * time.Second},
	{Name: "jwks-rsa", Title: "npm jwks-rsa 4.1", Cache: 10 * time.Minute, Refetch: true, PerKid: true, Algorithms: withoutEd,
		Note: "caches each kid on its own: a refetch does not evict a revoked key"},
	{Name: "jwx", Title: "lestrrat-go/jwx v3 jwk.Cache", HonoursMaxAge: true, MinInterval: 15 * time.Minute, MaxInterval: 30 * 24 * time.Hour, Late: 2 * time.Second, Stale: true, Retry: 15 * time.Minute,
		Note: "never refetches on an unknown kid; raises a short max-age to 15 minutes"},
	{Name: "keycloak", Title: "Keycloak as identity broker", Cache: 24 * time.Hour, Refetch: true, Throttle: 10 * time.Second},
	{Name: "keyfunc", Title: "MicahParks/keyfunc v3.7", Cache: time.Hour, Refetch: true, Throttle: 5 * time.Minute, Stale: true, Retry: time.Hour},
	{Name: "ktor", Title: "Ktor JWT with its documented cache", Cache: 10 * time.Hour, PerKid: true, Algorithms: withoutEd, Note: "caches each kid for ten hours"},
	{Name: "lua-resty-openidc", Title: "lua-resty-openidc, APISIX", Cache: 24 * time.Hour, Refetch: true, PerKid: true, Algorithms: withoutEd,
		Note: "caches each kid for 24 h: a refetch does not evict a revoked key"},
	{Name: "mod_auth_openidc", Title: "Apache mod_auth_openidc 2.4", Cache: time.Hour, Refetch: true, Throttle: time.Minute, Stale: true, Algorithms: withoutEd,
		Note: "needs https"},
	{Name: "oathkeeper", Title: "Ory Oathkeeper", Cache: time.Hour, Refetch: true, Algorithms: withoutEd, Note: "set cache to its jwks_ttl"},
	{Name: "openfga", Title: "OpenFGA", Cache: time.Hour, Stale: true, Retry: time.Hour, Note: "never refetches on an unknown kid"},
	{Name: "ping-agent", Title: "Ping Java agent", Cache: time.Hour},
	{Name: "ping-gateway", Title: "PingGateway", Cache: 2 * time.Minute},
	{Name: "pyjwt", Title: "PyJWT PyJWKClient 2", Cache: 5 * time.Minute, Refetch: true,
		Note: "an unknown kid during a failed fetch wipes its good cache"},
	{Name: "spring", Title: "Spring Security NimbusJwtDecoder", Cache: 5 * time.Minute, Refetch: true, Algorithms: withoutEd},
	{Name: "spring-reactive", Title: "Spring Security ReactiveRemoteJWKSource", Cache: Forever, Refetch: true, Stale: true, Algorithms: withoutEd,
		Note: "a removed key stays trusted until an unknown kid arrives or the process restarts"},
	{Name: "step-ca", Title: "smallstep step-ca OIDC provisioner", HonoursMaxAge: true, MinInterval: time.Second, MaxInterval: 30 * 24 * time.Hour, Stale: true},
	{Name: "unknown", Title: "a consumer nobody has described", Cache: 24 * time.Hour, Stale: true, Note: "name the real consumers to get a shorter lead"},
}

// Consumer is a policy's mention of a profile, with figures of its own where
// its configuration differs from the defaults of that kind.
type Consumer struct {
	Name        string         `json:"name"`
	Cache       *time.Duration `json:"cache,omitempty"`
	Throttle    *time.Duration `json:"throttle,omitempty"`
	MinInterval *time.Duration `json:"min_interval,omitempty"`
	MaxInterval *time.Duration `json:"max_interval,omitempty"`
}

// profile returns the profile that c names, with c's own figures.
func (c Consumer) profile() (Profile, error) {
	i, ok := slices.BinarySearchFunc(Profiles, c.Name, func(p Profile, name string) int { return cmp.Compare(p.Name, name) })
	if !ok {
		return Profile{}, fault.Invalid("policy.profiles", "unknown_profile", "consumer profile %q is unknown: see `rotunda keyset profiles`, or name \"unknown\" for a lead of 24 hours", c.Name)
	}
	p := Profiles[i]
	for _, o := range []struct {
		name string
		from *time.Duration
		to   *time.Duration
		ok   bool
	}{
		{"cache", c.Cache, &p.Cache, !p.HonoursMaxAge},
		{"throttle", c.Throttle, &p.Throttle, p.Refetch},
		{"min_interval", c.MinInterval, &p.MinInterval, p.HonoursMaxAge},
		{"max_interval", c.MaxInterval, &p.MaxInterval, p.HonoursMaxAge},
	} {
		if o.from == nil {
			continue
		}
		if !o.ok {
			return Profile{}, fault.Invalid("policy.profiles", "profile_override", "consumer profile %s has no %s to set", c.Name, o.name)
		}
		if *o.from < 0 || *o.from > maxDuration {
			return Profile{}, fault.Invalid("policy.profiles", "duration_range", "consumer profile %s: %s %s is outside 0 to %s", c.Name, o.name, *o.from, maxDuration)
		}
		*o.to = *o.from
	}
	if p.HonoursMaxAge && p.MinInterval > p.MaxInterval {
		return Profile{}, fault.Invalid("policy.profiles", "profile_override", "consumer profile %s: min_interval %s is longer than max_interval %s", c.Name, p.MinInterval, p.MaxInterval)
	}
	// A retry that is as long as the refresh interval follows an interval that was set.
	if c.Cache != nil && p.Retry > *c.Cache {
		p.Retry = *c.Cache
	}
	if c.MinInterval != nil && p.Retry > *c.MinInterval {
		p.Retry = *c.MinInterval
	}
	return p, nil
}

// verifies reports whether the consumer can verify a.
func (p Profile) verifies(a Algorithm) bool {
	return p.Algorithms == nil || slices.Contains(p.Algorithms, a)
}

// cache is C of the timing rules: the longest time from one successful fetch
// to the next attempt, under the policy's max-age. A shared HTTP cache in
// between may hand out a copy that is already max-age old.
func (p Profile) cache(pol Policy) time.Duration {
	c := p.Cache
	if p.HonoursMaxAge {
		c = min(max(pol.maxAge(), p.MinInterval), p.MaxInterval)
	}
	if c == Forever {
		return Forever
	}
	c += p.Late
	if pol.CDN {
		c += pol.maxAge()
	}
	return c
}

// failure is how long a set can stay old beyond cache because fetches fail:
// the failure itself, and the wait until the consumer tries again.
func (p Profile) failure(pol Policy) time.Duration {
	if pol.FetchFailure == 0 {
		return 0
	}
	retry := p.Retry
	if p.Backoff {
		// Exponential from a minute: the wait is never longer than the failure so far.
		retry = min(retry, pol.FetchFailure+time.Minute)
	}
	return pol.FetchFailure + retry
}

// refetch is how long a consumer that fetches on an unknown kid may go without
// the new set: a shared HTTP cache answers it too, until its copy is too old.
func (p Profile) refetch(pol Policy) time.Duration {
	if pol.CDN {
		return p.Throttle + pol.maxAge()
	}
	return p.Throttle
}

// lead is how long a key must be published before it signs so that this
// consumer has it. A consumer that refetches on an unknown kid needs only its
// throttle, if its fetches can't fail; as they can, it is treated as one that
// refreshes on its timer, unless it has none.
func (p Profile) lead(pol Policy) time.Duration {
	c := p.cache(pol)
	if p.Refetch && !p.Behind && (pol.FetchFailure == 0 || c == Forever) {
		return min(p.refetch(pol), c)
	}
	return c + p.failure(pol)
}

// reach is how long a key that was withdrawn stays accepted. fresh says that a
// key with a new kid signs from then on, which makes some consumers refetch.
func (p Profile) reach(pol Policy, fresh bool) time.Duration {
	if p.TokenCache {
		return Forever
	}
	timer := p.cache(pol)
	if timer != Forever {
		timer += pol.Propagation
		if p.Stale {
			timer += p.failure(pol)
		}
	}
	if fresh && p.Refetch && !p.PerKid {
		miss := pol.Propagation + p.refetch(pol)
		if pol.FetchFailure > 0 {
			miss += pol.FetchFailure + p.Throttle // the attempt that failed last uses up a throttle
		}
		return min(timer, miss)
	}
	return timer
}

// refusal is how long good tokens of a key are refused when the key starts to
// sign after it was published for only the time aged, while fetches work.
func (p Profile) refusal(pol Policy, aged time.Duration) time.Duration {
	late := p.cache(pol)
	if p.Refetch {
		late = min(late, p.refetch(pol))
	}
	if late == Forever {
		return Forever
	}
	return max(0, pol.Propagation+late-aged)
}

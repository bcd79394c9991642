package jwks

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
)

// Bounds that no policy may leave.
const (
	maxDuration   = 2 * 365 * 24 * time.Hour
	maxMaxAge     = 5 * time.Minute
	maxPublished  = 32 // keys in one document
	unknownLead   = "unknown"
	honest        = "step-ca" // a consumer that does just what max-age says
	maxConsumers  = 32
	maxTokenSize  = 16 << 10
	maxTokenClaim = 256
	maxTokenDepth = 64
)

// SignerLease is D of the timing rules: how long a replica may go on signing
// with a key after another replica has demoted it. A replica that has not
// heard from the database for this long stops signing.
const SignerLease = 10 * time.Second

// Fallback says what signs when the active key's signer is out of reach.
type Fallback string

// The fallbacks.
const (
	FallbackNone    Fallback = "none"    // nothing: signing fails
	FallbackStandby Fallback = "standby" // the published standby, once its lead is over
)

// Overlong says what happens to a token asked for with a life longer than TokenTTL.
type Overlong string

// The ways to treat such a token.
const (
	OverlongClamp  Overlong = "clamp"  // exp is moved to the longest life
	OverlongRefuse Overlong = "refuse" // the request is refused
)

// Policy is what a keyset promises to its consumers. The zero value is not
// usable: start from [DefaultPolicy].
type Policy struct {
	Rotate          schedule.Schedule `json:"rotate"`
	TokenTTL        time.Duration     `json:"token_ttl"` // longest life of a token
	Consumers       []Consumer        `json:"consumers,omitempty"`
	PublishAhead    time.Duration     `json:"publish_ahead,omitempty"`    // 0: computed
	RetireAfter     time.Duration     `json:"retire_after,omitempty"`     // 0: computed
	EmergencyTarget time.Duration     `json:"emergency_target,omitempty"` // 0: no demand
	MaxAge          time.Duration     `json:"max_age"`
	Leeway          time.Duration     `json:"leeway"`        // L: consumers' tolerance on exp
	Skew            time.Duration     `json:"skew"`          // S: largest difference between two clocks
	Propagation     time.Duration     `json:"propagation"`   // P: until every replica serves a change
	FetchFailure    time.Duration     `json:"fetch_failure"` // F: longest failure to fetch that must do no harm
	CDN             bool              `json:"cdn,omitempty"`
	Fallback        Fallback          `json:"fallback"`
	Overlong        Overlong          `json:"overlong"`
	Home            string            `json:"home,omitempty"` // where new keys are made and kept; "": LocalHome
}

// DefaultPolicy returns the policy from which others differ: rotation every 30
// days, tokens of one hour, consumers unknown.
func DefaultPolicy() Policy {
	return Policy{
		Rotate:       schedule.Schedule{Every: 30 * 24 * time.Hour},
		TokenTTL:     time.Hour,
		MaxAge:       maxMaxAge,
		Leeway:       time.Minute,
		Skew:         30 * time.Second,
		Propagation:  10 * time.Second,
		FetchFailure: 5 * time.Minute,
		Fallback:     FallbackNone,
		Overlong:     OverlongClamp,
	}
}

// ConsumerTiming is what follows from a policy for one of its consumers.
type ConsumerTiming struct {
	Name         string
	Lead         time.Duration // time that a key must be served before it signs
	ReachStandby time.Duration // longest time that a revoked key stays accepted; may be Forever
	ReachFresh   time.Duration
	RefusalFresh time.Duration // longest time that tokens of a fresh kid are refused
	Note         string
}

// Timing is what follows from a policy.
type Timing struct {
	PublishAhead time.Duration // lead that move enforces
	RetireAfter  time.Duration // for tokens of TokenTTL; a key that signed longer ones waits longer
	MaxAge       time.Duration
	Consumers    []ConsumerTiming
	Warnings     []string
}

// consumers are the policy's profiles; an empty list means one unknown consumer.
func (p Policy) consumers() ([]Profile, error) {
	list := p.Consumers
	if len(list) == 0 {
		list = []Consumer{{Name: unknownLead}}
	}
	if len(list) > maxConsumers {
		return nil, fault.Invalid("policy.profiles", "too_many", "%d consumer profiles are more than %d", len(list), maxConsumers)
	}
	out := make([]Profile, len(list))
	for i, c := range list {
		var err error
		if out[i], err = c.profile(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// leadNeeded is P + max(C + F) + S over the consumers, and the consumer that needs it.
func (p Policy) leadNeeded(consumers []Profile) (time.Duration, Profile) {
	longest := consumers[0]
	for _, c := range consumers[1:] {
		if c.lead(p) > longest.lead(p) {
			longest = c
		}
	}
	return p.Propagation + longest.lead(p) + p.Skew, longest
}

// maxAge is the longest max-age that is served: a cache must not keep a
// document for longer than a revocation may take.
func (p Policy) maxAge() time.Duration {
	if p.EmergencyTarget > 0 {
		return min(p.MaxAge, p.EmergencyTarget)
	}
	return p.MaxAge
}

// Lead is how long a key must have been served before it signs.
func (p Policy) Lead() time.Duration {
	consumers, err := p.consumers()
	if err != nil {
		return maxDuration // a stored policy was checked; if its profile is gone, nothing is safe
	}
	needed, _ := p.leadNeeded(consumers)
	return max(needed, p.PublishAhead)
}

// retireNeeded is D + T + L + 2S: the time from demotion until the last token
// of a key, whose longest issued life is T, has expired everywhere.
func (p Policy) retireNeeded(life time.Duration) time.Duration {
	return SignerLease + life + p.Leeway + 2*p.Skew
}

// RetireDelay is how long after its demotion a key, whose longest issued life is T, is withdrawn.
func (p Policy) RetireDelay(life time.Duration) time.Duration {
	return max(p.retireNeeded(life), p.RetireAfter)
}

// Check refuses a policy that would break a promise, naming the two figures
// that disagree and what would reconcile them, and returns what follows from
// one that is safe. The error is a fault.ErrInvalid.
func (p Policy) Check(alg Algorithm) (Timing, error) {
	var t Timing
	if err := p.checkRanges(); err != nil {
		return t, err
	}
	if err := p.Rotate.Validate(); err != nil {
		if f, ok := errors.AsType[*fault.Error](err); ok {
			return t, f.On("policy.rotate." + f.Field)
		}
		return t, err
	}
	consumers, err := p.consumers()
	if err != nil {
		return t, err
	}
	for _, c := range consumers {
		if !c.verifies(alg) {
			return t, fault.Invalid("algorithm", "profile_algorithm", "algorithm %s can't be verified by consumer %s (it knows %v): choose one of those, or leave the profile out", alg, c.Name, c.Algorithms)
		}
	}

	needed, slowest := p.leadNeeded(consumers)
	if p.PublishAhead > 0 && p.PublishAhead < needed {
		return t, fault.Invalid("policy.publish_ahead", "lead_too_short", "publish_ahead %s is shorter than the %s that consumer %s needs (propagation %s + cache and failures %s + skew %s): raise publish_ahead to %[2]s or leave it out",
			p.PublishAhead, needed, slowest.Name, p.Propagation, slowest.lead(p), p.Skew)
	}
	lead := max(needed, p.PublishAhead)
	if every := p.Rotate.MinInterval(); every < lead {
		return t, fault.Invalid("policy.rotate", "rotates_too_often", "rotation %s comes %s after the last at the shortest, before a new key's lead of %s is over (consumer %s): rotate no more often than %[3]s", p.Rotate, every, lead, slowest.Name)
	}
	if delay := p.retireNeeded(p.TokenTTL); p.RetireAfter > 0 && p.RetireAfter < delay {
		return t, fault.Invalid("policy.retire_after", "retires_too_early", "token_ttl %s needs %s until the last token has expired (signer lease %s + token_ttl + leeway %s + 2 × skew %s), longer than retire_after %s: raise retire_after to %[2]s or leave it out",
			p.TokenTTL, delay, SignerLease, p.Leeway, p.Skew, p.RetireAfter)
	}
	retire := p.RetireDelay(p.TokenTTL)
	if n := 2 + int64(retire/p.Rotate.MinInterval()) + 1; n > maxPublished {
		return t, fault.Invalid("policy.rotate", "too_many_keys", "rotation %s with keys withdrawn %s after they stop signing would publish %d keys at once, more than %d: rotate less often or shorten token_ttl", p.Rotate, retire, n, maxPublished)
	}

	t = Timing{PublishAhead: lead, RetireAfter: retire, MaxAge: p.maxAge()}
	for _, c := range consumers {
		ct := p.Timing(c)
		if best := min(ct.ReachStandby, ct.ReachFresh); p.EmergencyTarget > 0 && best > p.EmergencyTarget {
			return t, fault.Invalid("policy.emergency_target", "reach_too_long", "emergency_target %s is shorter than the %s for which consumer %s may go on to accept a revoked key: shorten that consumer's cache, or raise emergency_target", p.EmergencyTarget, spell(best), c.Name)
		}
		if ct.ReachStandby == Forever && ct.ReachFresh == Forever {
			t.Warnings = append(t.Warnings, fmt.Sprintf("consumer %s never drops a revoked key by itself: restart it after a revocation", c.Name))
		} else if ct.ReachStandby == Forever {
			t.Warnings = append(t.Warnings, fmt.Sprintf("consumer %s drops a revoked key only when a fresh kid arrives: revoke with mode fresh", c.Name))
		}
		if c.Refetch && c.cache(p) == Forever {
			t.Warnings = append(t.Warnings, fmt.Sprintf("consumer %s fetches only when a new key first signs: a failure of that one fetch refuses that token, and no lead helps", c.Name))
		}
		t.Consumers = append(t.Consumers, ct)
	}
	if len(p.Consumers) == 0 {
		t.Warnings = append(t.Warnings, "no consumer profile is named, so a new key waits 24 hours: name the consumers to shorten it")
	}
	if p.MaxAge < time.Minute {
		t.Warnings = append(t.Warnings, fmt.Sprintf("max_age %s is under a minute: consumers that honour it will fetch often", p.MaxAge))
	}
	return t, nil
}

// Timing is what follows from a policy for a consumer.
func (p Policy) Timing(c Profile) ConsumerTiming {
	return ConsumerTiming{
		Name:         c.Name,
		Lead:         p.Propagation + c.lead(p) + p.Skew,
		ReachStandby: c.reach(p, false),
		ReachFresh:   c.reach(p, true),
		RefusalFresh: c.refusal(p, 0),
		Note:         c.Note,
	}
}

func (p Policy) checkRanges() error {
	for _, d := range []struct {
		field    string
		d        time.Duration
		min, max time.Duration
	}{
		{"token_ttl", p.TokenTTL, time.Second, maxDuration},
		{"publish_ahead", p.PublishAhead, 0, maxDuration},
		{"retire_after", p.RetireAfter, 0, maxDuration},
		{"emergency_target", p.EmergencyTarget, 0, maxDuration},
		{"max_age", p.MaxAge, time.Second, maxMaxAge},
		{"leeway", p.Leeway, 0, time.Hour},
		{"skew", p.Skew, 0, time.Hour},
		{"propagation", p.Propagation, 0, 24 * time.Hour},
		{"fetch_failure", p.FetchFailure, 0, 30 * 24 * time.Hour},
	} {
		if d.d < d.min || d.d > d.max {
			return fault.Invalid("policy."+d.field, "duration_range", "%s %s is outside %s to %s", d.field, d.d, d.min, d.max)
		}
	}
	if p.Fallback != FallbackNone && p.Fallback != FallbackStandby {
		return fault.Invalid("policy.fallback", "unknown_value", "fallback %q is neither %q nor %q", p.Fallback, FallbackNone, FallbackStandby)
	}
	if p.Overlong != OverlongClamp && p.Overlong != OverlongRefuse {
		return fault.Invalid("policy.overlong", "unknown_value", "overlong %q is neither %q nor %q", p.Overlong, OverlongClamp, OverlongRefuse)
	}
	return nil
}

// spell writes a duration, or "unbounded time".
func spell(d time.Duration) string {
	if d == Forever {
		return "unbounded time"
	}
	return d.String()
}

// checkName refuses a keyset name that can't stand in a URL path.
func checkName(name string) error {
	ok := name != "" && len(name) <= 63 && !strings.HasPrefix(name, "-") && !strings.HasSuffix(name, "-") &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	if !ok {
		return fault.Invalid("name", "bad_name", "keyset name %q must be 1 to 63 lower-case letters, digits and inner hyphens", clip(name))
	}
	return nil
}

// checkIssuer refuses an issuer that OpenID Connect Discovery (section 3) and
// RFC 8414 (section 2) do not allow. Plain http is let through for loopback hosts only.
func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	loopback := err == nil && u.Scheme == "http" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1")
	switch {
	case err != nil || u.Hostname() == "" || !utf8.ValidString(issuer) || u.Opaque != "" || (u.Scheme != "https" && !loopback):
		return fault.Invalid("issuer", "bad_issuer", "issuer %q must be an https URL with a host (http only for localhost)", clip(issuer))
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(issuer, "#"):
		return fault.Invalid("issuer", "bad_issuer", "issuer %q must have no query and no fragment", clip(issuer))
	case u.User != nil:
		return fault.Invalid("issuer", "bad_issuer", "issuer must hold no user name or password")
	case len(issuer) > 512:
		return fault.Invalid("issuer", "bad_issuer", "issuer is longer than 512 bytes")
	}
	return nil
}

// clip shortens what a caller sent so that it can stand in a message.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

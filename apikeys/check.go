package apikeys

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// Bounds of what callers may ask for.
const (
	maxPartnerScopes = 256
	maxKeyScopes     = 64
	maxScope         = 64
	maxRanges        = 64
	maxPairs         = 32
	maxPairKey       = 64
	maxPairValue     = 256
	maxName          = 128
	maxReason        = 200
	maxComponents    = 32
	maxComponent     = 128
	maxTag           = 64

	defaultMaxKeys = 1000
	mostMaxKeys    = 1_000_000

	maxSignatureAge  = time.Hour
	maxSignatureSkew = 5 * time.Minute

	maxQuota  = 1_000_000_000
	minWindow = time.Millisecond
	maxWindow = 24 * time.Hour
	maxRefill = 366 * 24 * time.Hour // of a burst

	minLife = time.Second
)

// isSlug says whether s is ^[a-z0-9][a-z0-9-]{0,62}$.
func isSlug(s string) bool {
	return len(s) >= 1 && len(s) <= 63 && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// isText says whether s is UTF-8 without control characters, of min to max bytes.
func isText(s string, least, most int) bool {
	return len(s) >= least && len(s) <= most && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 })
}

func isScope(s string) bool {
	return len(s) >= 1 && len(s) <= maxScope && strings.Trim(s, digits+"._:/-") == ""
}

func checkScopes(field string, scopes []string, most int) error {
	if len(scopes) > most {
		return fault.Invalid(field, "too_many", "%s: %d are too many: at most %d", field, len(scopes), most)
	}
	seen := make(map[string]bool, len(scopes))
	for _, s := range scopes {
		if !isScope(s) {
			return fault.Invalid(field, "bad_scope", "%s: %q is no scope: use 1 to %d of the characters A-Z a-z 0-9 . _ : / -", field, clip(s), maxScope)
		}
		if seen[s] {
			return fault.Invalid(field, "scope_twice", "%s: %q is there twice", field, s)
		}
		seen[s] = true
	}
	return nil
}

// within fails unless all scopes are among those allowed.
func within(field string, scopes, allowed []string, whose string) error {
	for _, s := range scopes {
		if !slices.Contains(allowed, s) {
			return fault.Invalid(field, "scope_not_allowed", "%s: %q is none of %s: ask for fewer, or add it there", field, s, whose)
		}
	}
	return nil
}

func checkMetadata(m map[string]string) error {
	if len(m) > maxPairs {
		return fault.Invalid("metadata", "too_many", "metadata: %d pairs are too many: at most %d", len(m), maxPairs)
	}
	for k, v := range m {
		if !isText(k, 1, maxPairKey) || !isText(v, 0, maxPairValue) {
			return fault.Invalid("metadata", "bad_metadata", "metadata: keys have 1 to %d bytes, values at most %d, of UTF-8 without control characters", maxPairKey, maxPairValue)
		}
	}
	return nil
}

func checkName(name string) error {
	if !isText(name, 1, maxName) || strings.TrimSpace(name) != name {
		return fault.Invalid("name", "bad_name", "a key's name is 1 to %d bytes of UTF-8 without control characters and without spaces around it", maxName)
	}
	return nil
}

func checkReason(field, reason string) error {
	if !isText(reason, 0, maxReason) {
		return fault.Invalid(field, "bad_reason", "%s is at most %d bytes of UTF-8 without control characters", field, maxReason)
	}
	return nil
}

func parseRanges(list []string) (out []netip.Prefix, err error) {
	if len(list) > maxRanges {
		return nil, fault.Invalid("cidrs", "too_many", "cidrs: %d are too many: at most %d", len(list), maxRanges)
	}
	for _, s := range list {
		p, err := parsePrefix(s)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out, nil
}

func checkRate(r RateLimit) error {
	if r == (RateLimit{}) {
		return nil
	}
	if r.Quota < 1 || r.Quota > maxQuota || r.Window < minWindow || r.Window > maxWindow || r.Window%time.Microsecond != 0 || r.Burst < 0 || r.Burst > maxQuota {
		return fault.Invalid("rate_limit", "bad_rate", "rate_limit: quota and burst are at most %d, quota at least 1, and the window %s to %s in whole microseconds", int64(maxQuota), minWindow, maxWindow)
	}
	// Counted in windows, rounded up.
	if windows := (r.Burst + r.Quota - 1) / r.Quota; windows > int64(maxRefill/r.Window) {
		return fault.Invalid("rate_limit", "bad_burst", "rate_limit: a burst of %d takes more than %s to come back at %d in %s: make it smaller", r.Burst, maxRefill, r.Quota, r.Window)
	}
	return nil
}

// lifeOf returns when a key ends that is made at now and asked for a life; zero:
// never.
func (p *Partner) lifeOf(asked time.Duration, now time.Time) (time.Time, error) {
	switch {
	case asked < 0 || asked > 0 && asked < minLife || asked > maxLife:
		return time.Time{}, fault.Invalid("expires_in", "duration_range", "expires_in %s is outside %s to %s", asked, minLife, maxLife)
	case p.MaxKeyTTL > 0 && asked > p.MaxKeyTTL:
		return time.Time{}, fault.Invalid("expires_in", "life_too_long", "expires_in %s is longer than the %s that keys of partner %q live at most: ask for less, or raise its max_key_ttl", asked, p.MaxKeyTTL, p.Name)
	case asked == 0:
		asked = p.MaxKeyTTL
	}
	if asked == 0 {
		return time.Time{}, nil
	}
	return now.Add(asked).Truncate(time.Microsecond), nil
}

func checkPolicy(p SigningPolicy) error {
	if p.MaxAge < 0 || p.MaxAge > maxSignatureAge || p.MaxAge > 0 && p.MaxAge < time.Second {
		return fault.Invalid("signing_policy.max_age", "duration_range", "signing_policy: max_age %s is outside 1s to %s", p.MaxAge, maxSignatureAge)
	}
	if p.Skew < 0 || p.Skew > maxSignatureSkew {
		return fault.Invalid("signing_policy.skew", "duration_range", "signing_policy: skew %s is outside 0 to %s", p.Skew, maxSignatureSkew)
	}
	if len(p.Components) > maxComponents {
		return fault.Invalid("signing_policy.components", "too_many", "signing_policy: %d components are too many: at most %d", len(p.Components), maxComponents)
	}
	for i, c := range p.Components {
		if slices.Contains(p.Components[:i], c) {
			return fault.Invalid("signing_policy.components", "component_twice", "signing_policy: component %q is there twice", clip(c))
		}
		if err := checkComponent(c); err != nil {
			return fault.Invalid("signing_policy.components", "bad_component", "signing_policy: %q is no component of a request that can be covered: use for example @method, content-digest or @query-param;name=\"id\" (RFC 9421, section 2): %w", clip(c), err)
		}
	}
	if !isText(p.Tag, 0, maxTag) || strings.ContainsFunc(p.Tag, func(r rune) bool { return r > '~' }) {
		return fault.Invalid("signing_policy.tag", "bad_tag", "signing_policy: the tag is at most %d characters of printable ASCII", maxTag)
	}
	return nil
}

// checkComponent has the parser of signatures read a component identifier.
func checkComponent(c string) error {
	name, params, has := strings.Cut(c, ";")
	if len(c) > maxComponent || name == "" || strings.ContainsAny(name, "\"\\ ,()") {
		return fmt.Errorf("it has no form of one")
	}
	if name == "@request-target" || name == "@status" || slices.Contains(strings.Split(params, ";"), "req") {
		return fmt.Errorf("no request can cover it")
	}
	if has {
		params = ";" + params
	}
	m := &httpsig.Message{Method: "GET", Scheme: "https", Authority: "localhost", Path: "/", Header: map[string][]string{
		"Signature-Input": {`a=("` + name + `"` + params + `);created=1;keyid="k"`},
		"Signature":       {"a=:AAAA:"},
	}}
	s, err := httpsig.Parse(m, "a")
	if err != nil {
		return err
	}
	if len(s.Components) != 1 || !s.HasCreated || s.KeyID != "k" {
		return fmt.Errorf("it is not one component")
	}
	return nil
}

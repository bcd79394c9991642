package server

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/apikeys"
)

// header is a field of the response that a gateway gives its client.
type header struct{ name, value string }

// decisionHeaders returns what a gateway answers its client about a decision: an
// HTTP status, and the fields of the response that go with it. needed are the
// scopes that the request needed.
//
//   - 200: accepted;
//   - 401: the credential is not accepted. Why is not told: who does not hold the
//     key learns nothing of it. WWW-Authenticate is RFC 6750, section 3;
//   - 403: it is accepted, and not for this: a scope, or the client's address;
//   - 429: the rate limit is used up. Retry-After is RFC 9110, section 10.2.3.
//
// A key with a rate limit has RateLimit and RateLimit-Policy
// (draft-ietf-httpapi-ratelimit-headers), as far as the limit was asked. A retiring
// one has Deprecation (RFC 9745) and Sunset (RFC 8594): when it was superseded, and
// when it ends. Only who has proved to hold the key gets these.
func decisionHeaders(d apikeys.Decision, now time.Time, needed ...string) (status int, headers []header) {
	switch d.Reason {
	case apikeys.ReasonOK:
		status = http.StatusOK
	case apikeys.ReasonScope:
		status = http.StatusForbidden
		value := `Bearer error="insufficient_scope"`
		if scopes := scopeList(needed); scopes != "" {
			value += `, scope="` + scopes + `"`
		}
		headers = append(headers, header{"WWW-Authenticate", value})
	case apikeys.ReasonAddress:
		status = http.StatusForbidden
	case apikeys.ReasonRate:
		status = http.StatusTooManyRequests
		headers = append(headers, header{"Retry-After", strconv.FormatInt(max(seconds(d.Rate.RetryAfter), 1), 10)})
	default: // a reason that is not known here is not accepted either
		return http.StatusUnauthorized, []header{{"WWW-Authenticate", `Bearer error="invalid_token"`}}
	}
	if l := d.Rate.Limit; !l.None() {
		policy := `"default";q=` + strconv.FormatInt(l.Quota, 10)
		if l.Window%time.Second == 0 { // no other window can be told: it is in whole seconds
			policy += ";w=" + strconv.FormatInt(int64(l.Window/time.Second), 10)
		}
		headers = append(headers,
			header{"RateLimit-Policy", policy},
			header{"RateLimit", `"default";r=` + strconv.FormatInt(max(d.Rate.Remaining, 0), 10) + ";t=" + strconv.FormatInt(seconds(d.Rate.Reset), 10)})
	}
	if k := d.Key; k != nil && k.State(now) == apikeys.Retiring {
		headers = append(headers, header{"Deprecation", "@" + strconv.FormatInt(k.Since.Unix(), 10)})
		if !k.GraceEndsAt.IsZero() {
			headers = append(headers, header{"Sunset", k.GraceEndsAt.UTC().Format(http.TimeFormat)})
		}
	}
	return status, headers
}

// seconds are whole seconds, rounded up: who waits for so long has waited long enough.
func seconds(d time.Duration) int64 {
	return int64((max(d, 0) + time.Second - 1) / time.Second)
}

// scopeList is the value of the scope attribute (RFC 6749, section 3.3); "" when one
// of the scopes can't be written there.
func scopeList(scopes []string) string {
	for _, s := range scopes {
		if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			return ""
		}
	}
	return strings.Join(scopes, " ")
}

package httpsig

import "time"

// Policy says what a signature must be like before it is worth checking. Its
// zero value requires no component and a created of this very second: start from
// [DefaultPolicy].
type Policy struct {
	// Required are the component identifiers that must be covered, as
	// "@method", "content-digest" or `@query-param;name="id"`. "@query" is
	// required only of a request that has a query, "content-digest" only of
	// one that has a body. "@target-uri" covers @scheme, @authority, @path and
	// @query.
	Required []string
	// MaxAge is how old created may be, Skew how far in the future. A replay
	// store that remembers a nonce for MaxAge + Skew after it was first seen
	// sees every replay.
	MaxAge, Skew time.Duration
	// RequireNonce refuses a signature without nonce.
	RequireNonce bool
	// Tag, if not empty, is the tag that a signature must have.
	Tag string
}

// The length of a nonce, in characters.
const (
	minNonce = 16
	maxNonce = 128
)

// DefaultPolicy asks for the whole request: method, authority, path, query and
// body; for a nonce; and for a signature that is at most five minutes old, by
// clocks that differ by at most 30 seconds.
func DefaultPolicy() Policy {
	return Policy{
		Required:     []string{"@method", "@authority", "@path", "@query", "content-digest"},
		MaxAge:       5 * time.Minute,
		Skew:         30 * time.Second,
		RequireNonce: true,
	}
}

// Check says whether the signature, as its fields describe it, would do for this
// request at this time if it were right. Nothing is verified yet. hasBody says
// that the request has a body of at least one byte.
//
// A nil error says nothing about the body: see [Signature.CheckBody].
func (p *Policy) Check(s *Signature, m *Message, hasBody bool, now time.Time) error {
	if err := p.window(s, now); err != nil {
		return err
	}
	if p.Tag != "" && s.Tag != p.Tag {
		return refuse(ReasonTag, "the signature needs the parameter tag with the value %s", clip(p.Tag))
	}
	switch {
	case !s.HasNonce && p.RequireNonce:
		return refuse(ReasonNonce, "the signature needs a nonce: %d to %d random characters, new for each request", minNonce, maxNonce)
	case s.HasNonce && (len(s.Nonce) < minNonce || len(s.Nonce) > maxNonce):
		return refuse(ReasonNonce, "a nonce has %d to %d characters, not %d", minNonce, maxNonce, len(s.Nonce))
	}
	if s.derived&(1<<requestTarget) != 0 {
		// It differs between versions of HTTP, so proxies change it.
		return refuseComponent(ReasonComponents, "@request-target", "cover @path and @query in its place")
	}
	for i := range s.Components {
		if c := &s.Components[i]; c.flags&flagReq != 0 && m.Method != "" {
			return refuseComponent(ReasonComponents, c.String(), "only a response can cover a part of its request")
		}
	}
	for _, want := range p.Required {
		if s.covers(want) || want == "@query" && !m.HasQuery || want == "content-digest" && !hasBody {
			continue
		}
		return refuseComponent(ReasonComponents, want, "the signature must cover it")
	}
	return nil
}

func (s *Signature) covers(identifier string) bool {
	const inTargetURI = 1<<scheme | 1<<authority | 1<<path | 1<<query
	if identifier != "" && identifier[0] == '@' {
		if k, ok := kindOf(identifier); ok {
			return s.derived&(1<<k) != 0 || s.derived&(1<<targetURI) != 0 && inTargetURI&(1<<k) != 0
		}
	}
	for i := range s.Components {
		if s.Components[i].is(identifier) {
			return true
		}
	}
	return false
}

func (p *Policy) window(s *Signature, now time.Time) error {
	if !s.HasCreated {
		return refuse(ReasonWindow, "the signature needs the parameter created")
	}
	created := time.Unix(s.Created, 0)
	age := now.Sub(created)
	if age < -p.Skew {
		return refuse(ReasonWindow, "created is %s in the future, and at most %s is accepted: set the clock", created.Sub(now).Round(time.Second), p.Skew)
	}
	if age > p.MaxAge {
		return refuse(ReasonWindow, "the signature is %s old, and at most %s is accepted: sign each request anew, and set the clock", age.Round(time.Second), p.MaxAge)
	}
	if s.HasExpires {
		if s.Expires <= s.Created {
			return refuse(ReasonWindow, "expires is not after created")
		}
		if now.After(time.Unix(s.Expires, 0)) {
			return refuse(ReasonWindow, "the signature has expired: sign each request anew")
		}
	}
	return nil
}

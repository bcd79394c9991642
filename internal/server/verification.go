package server

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// verificationService implements rotunda.v1.VerificationService. A gateway calls it
// for each of its own requests, so that it has a path of its own through what stands
// before handlers: the policy's decisions are remembered ([principal]), and messages
// are checked by hand ([plainVerification]). Nothing is left out.
type verificationService struct{ s *Server }

func (v *verificationService) VerifyApiKey(ctx context.Context, req *connect.Request[rotundav1.VerifyApiKeyRequest]) (*connect.Response[rotundav1.VerifyApiKeyResponse], error) {
	res, err := v.key(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

// VerifyApiKeys decides about each key by itself. When nobody knows about one, the
// call fails: an answer about the others would be taken for an answer about it.
func (v *verificationService) VerifyApiKeys(ctx context.Context, req *connect.Request[rotundav1.VerifyApiKeysRequest]) (*connect.Response[rotundav1.VerifyApiKeysResponse], error) {
	res := &rotundav1.VerifyApiKeysResponse{Responses: make([]*rotundav1.VerifyApiKeyResponse, 0, len(req.Msg.GetRequests()))}
	// Before anything is taken from any limit.
	for _, m := range req.Msg.GetRequests() {
		if _, err := v.need(ctx, m); err != nil {
			return nil, err
		}
	}
	for _, m := range req.Msg.GetRequests() {
		one, err := v.key(ctx, m)
		if err != nil {
			return nil, err
		}
		res.Responses = append(res.Responses, one)
	}
	return connect.NewResponse(res), nil
}

func (v *verificationService) key(ctx context.Context, m *rotundav1.VerifyApiKeyRequest) (*rotundav1.VerifyApiKeyResponse, error) {
	need, err := v.need(ctx, m)
	if err != nil {
		return nil, err
	}
	d, err := v.s.Verifier.Verify(ctx, m.GetKey(), &need)
	v.s.metrics.decided(apikeys.APIKey, d.Reason, err)
	if err != nil {
		return nil, err
	}
	now := v.s.DB.Now()
	res := &rotundav1.VerifyApiKeyResponse{Reason: reasonTo(d.Reason), Verified: verifiedTo(d, now)}
	if m.GetWantHeaders() {
		res.HttpStatus, res.Headers = headersTo(d, now, need.Scopes)
	}
	return res, nil
}

func (v *verificationService) VerifyRequest(ctx context.Context, req *connect.Request[rotundav1.VerifyRequestRequest]) (*connect.Response[rotundav1.VerifyRequestResponse], error) {
	r, err := v.request(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	d, explained, err := v.s.Verifier.VerifyRequest(ctx, r)
	if !r.Explain {
		v.s.metrics.decided(apikeys.RequestSecret, d.Reason, err)
	}
	if err != nil {
		return nil, err
	}
	now := v.s.DB.Now()
	res := &rotundav1.VerifyRequestResponse{Reason: reasonTo(d.Reason), Verified: verifiedTo(d, now)}
	if req.Msg.GetWantHeaders() {
		res.HttpStatus, res.Headers = headersTo(d, now, r.Need.Scopes)
	}
	if explained != nil && req.Msg.GetExplain() {
		text := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
		res.Explanation = &rotundav1.SignatureExplanation{
			Message: text(explained.Message), SignatureBase: text(explained.Base), Component: text(explained.Component),
			ServerLine: text(explained.ServerLine), SignerLine: text(explained.SignerLine),
		}
	}
	return connect.NewResponse(res), nil
}

// need reads what a request demands of a key. A partner's token asks about its own
// keys, whatever it says.
func (v *verificationService) need(ctx context.Context, m interface {
	GetScopes() []string
	GetAddress() string
	GetPartner() string
	GetEnvironment() string
	GetCost() int64
}) (apikeys.Need, error) {
	n := apikeys.Need{Scopes: m.GetScopes(), Partner: v.s.partner(ctx, m.GetPartner()), Environment: m.GetEnvironment(), Cost: m.GetCost()}
	if a := m.GetAddress(); a != "" {
		from, err := netip.ParseAddr(a)
		if err != nil {
			return n, fault.Invalid("address", "bad_address", "the client's address is no IP address: send it without port or brackets, as 203.0.113.9 or 2001:db8::9")
		}
		n.Address = from.Unmap().WithZone("")
	}
	return n, nil
}

// request reads a signed request.
func (v *verificationService) request(ctx context.Context, m *rotundav1.VerifyRequestRequest) (*apikeys.Request, error) {
	need, err := v.need(ctx, m)
	if err != nil {
		return nil, err
	}
	webhook := m.GetProfile() == rotundav1.SignatureProfile_SIGNATURE_PROFILE_STANDARD_WEBHOOKS
	switch {
	case webhook && need.Partner == "":
		return nil, fault.Invalid("partner", "partner_missing", "name the partner: a message of Standard Webhooks does not say whose it is")
	case webhook && m.GetSecret() == "":
		return nil, fault.Invalid("secret", "secret_missing", "name the secret: a message of Standard Webhooks does not say which one signed it")
	case m.GetBodyOmitted() && len(m.GetBody()) > 0:
		return nil, fault.Invalid("body_omitted", "body_and_omitted", "there is a body, and body_omitted says that there is none: leave one out")
	}
	fields := make(http.Header, len(m.GetHeaders()))
	for _, h := range m.GetHeaders() {
		if !isToken(h.GetName()) || strings.ContainsAny(h.GetValue(), "\r\n") {
			return nil, fault.Invalid("headers", "bad_header", "a name or value in headers can't stand in HTTP: send each field line as it was received (RFC 9110, section 5)")
		}
		fields.Add(h.GetName(), h.GetValue())
	}
	path, query, hasQuery := strings.Cut(m.GetTarget(), "?")
	r := &apikeys.Request{
		Message: httpsig.Message{Method: m.GetMethod(), Scheme: m.GetScheme(), Authority: m.GetAuthority(), Path: path, Query: query, HasQuery: hasQuery, Header: fields},
		Body:    m.GetBody(), BodyOmitted: m.GetBodyOmitted(), DigestVerified: m.GetContentDigestVerified(), Label: m.GetLabel(), Webhook: webhook, Secret: m.GetSecret(),
		Explain: m.GetExplain(), Need: need,
	}
	if base := m.GetSignerBase(); base != "" && r.Explain {
		r.SignerBase = []byte(base)
	}
	return r, nil
}

// isToken reports whether s may be the name of a field (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// reasonTo is a conversion: a test holds the names against each other.
func reasonTo(r apikeys.Reason) rotundav1.VerifyReason { return rotundav1.VerifyReason(r) }

// verifiedTo says who presented a key. It is nothing unless the key itself was
// presented, or a request that names it and was not refused for its signature: an id
// alone proves nothing, and whoever reads it must not take it for an identity.
func verifiedTo(d apikeys.Decision, now time.Time) *rotundav1.Verified {
	k := d.Key
	if k == nil || !known(d.Reason) {
		return nil
	}
	out := &rotundav1.Verified{
		Partner: k.Partner, KeyId: k.ID, Name: k.Name, Environment: k.Environment, Class: classTo(k.Class), Scopes: d.Scopes, Metadata: k.Metadata,
		State: keyStates[k.State(now)], ExpiresAt: timestamp(k.ExpiresAt), GraceEndsAt: timestamp(k.GraceEndsAt), ReplacedBy: k.ReplacedBy,
	}
	if k.Stored == apikeys.Retiring {
		out.RetiringSince = timestamp(k.Since)
	}
	if l := rateTo(d.Rate.Limit); l != nil {
		out.Rate = &rotundav1.RateState{Limit: l, Remaining: d.Rate.Remaining, Reset_: durationpb.New(d.Rate.Reset), RetryAfter: period(d.Rate.RetryAfter)}
	}
	return out
}

// known reports whether a decision tells whose key it was.
func known(r apikeys.Reason) bool {
	switch r {
	case apikeys.ReasonOK, apikeys.ReasonExpired, apikeys.ReasonRevoked, apikeys.ReasonSuspended, apikeys.ReasonScope, apikeys.ReasonAddress, apikeys.ReasonRate:
		return true
	default:
		return false
	}
}

func headersTo(d apikeys.Decision, now time.Time, needed []string) (int32, []*rotundav1.Header) {
	status, headers := decisionHeaders(d, now, needed...)
	out := make([]*rotundav1.Header, len(headers))
	for i, h := range headers {
		out[i] = &rotundav1.Header{Name: h.name, Value: h.value}
	}
	return int32(status), out
}

// plainVerification reports whether a message of VerificationService keeps the rules
// of its descriptor and holds plain text only. It is written by hand because to ask
// the descriptor costs more than all the rest of a verification; a test compares the
// two. Of what it does not report the descriptor is asked, which also says what is wrong.
func plainVerification(msg any) bool {
	switch m := msg.(type) {
	case *rotundav1.VerifyApiKeyRequest:
		return plainKeyRequest(m)
	case *rotundav1.VerifyApiKeysRequest:
		if len(m.GetRequests()) < 1 || len(m.GetRequests()) > 100 {
			return false
		}
		for _, r := range m.GetRequests() {
			if !plainKeyRequest(r) {
				return false
			}
		}
		return true
	case *rotundav1.VerifyRequestRequest:
		if len(m.GetHeaders()) > 256 || len(m.GetBody()) > 98304 || m.GetProfile() < 0 || m.GetProfile() > rotundav1.SignatureProfile_SIGNATURE_PROFILE_STANDARD_WEBHOOKS ||
			!plainUpTo(m.GetMethod(), 32) || !plainUpTo(m.GetScheme(), 8) || !plainUpTo(m.GetAuthority(), 255) || !plainUpTo(m.GetTarget(), 8192) ||
			!plainUpTo(m.GetLabel(), 64) || !plainUpTo(m.GetSecret(), 63) || !plainUpTo(m.GetSignerBase(), 16384) {
			return false
		}
		for _, h := range m.GetHeaders() {
			if !storable(h.GetName()) || !storable(h.GetValue()) {
				return false
			}
		}
		return plainNeed(m)
	}
	return false
}

func plainKeyRequest(m *rotundav1.VerifyApiKeyRequest) bool {
	return m.GetKey() != "" && plainUpTo(m.GetKey(), 1024) && plainNeed(m)
}

func plainNeed(m interface {
	GetScopes() []string
	GetAddress() string
	GetPartner() string
	GetEnvironment() string
	GetCost() int64
}) bool {
	if len(m.GetScopes()) > 64 || m.GetCost() < 0 || m.GetCost() > 1_000_000 ||
		!plainUpTo(m.GetAddress(), 64) || !plainUpTo(m.GetPartner(), 63) || !plainUpTo(m.GetEnvironment(), 16) {
		return false
	}
	for _, s := range m.GetScopes() {
		if !storable(s) {
			return false
		}
	}
	return true
}

// plainUpTo reports whether a text is plain, and has at most so many characters.
func plainUpTo(s string, most int) bool {
	return storable(s) && (len(s) <= most || utf8.RuneCountInString(s) <= most)
}

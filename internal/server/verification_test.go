package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// Promise: reasons, states and names are the same words in the domain and in the API.
func TestVerifyReasonWhenNamed(t *testing.T) {
	for r := apikeys.ReasonOK; r <= apikeys.ReasonDigest; r++ {
		if got, want := reasonTo(r).String(), "VERIFY_REASON_"+strings.ToUpper(r.String()); got != want {
			t.Errorf("%s is %s, want %s", r, got, want)
		}
	}
	if n := len(rotundav1.VerifyReason_name); n != int(apikeys.ReasonDigest)+1 {
		t.Errorf("the API has %d reasons", n)
	}
	for s, m := range keyStates {
		if got, want := m.String(), "API_KEY_STATE_"+strings.ToUpper(string(s)); got != want {
			t.Errorf("%s is %s", s, got)
		}
	}
	for m, name := range revocations {
		if got, want := m.String(), "REVOCATION_REASON_"+strings.ToUpper(name); got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
}

// Promise: the headers are those of their drafts and RFCs, and who is not known to
// hold the key gets none of what the key has.
func TestDecisionHeadersWhenDecided(t *testing.T) {
	limit := apikeys.RateLimit{Quota: 100, Window: time.Second}
	key := &apikeys.Key{ID: "k", Stored: apikeys.Active}
	retiring := &apikeys.Key{ID: "k", Stored: apikeys.Retiring, Since: epoch.Add(-time.Hour), GraceEndsAt: epoch.Add(36 * time.Hour)}
	rate := apikeys.RateState{Limit: limit, Remaining: 42, Reset: 600 * time.Millisecond}
	const invalid = `401 WWW-Authenticate: Bearer error="invalid_token"`
	for _, c := range []struct {
		name   string
		d      apikeys.Decision
		needed []string
		want   string
	}{
		{"no limit", apikeys.Decision{Reason: apikeys.ReasonOK, Key: key}, nil, "200"},
		{"limit", apikeys.Decision{Reason: apikeys.ReasonOK, Key: key, Rate: rate}, nil, `200 RateLimit-Policy: "default";q=100;w=1 | RateLimit: "default";r=42;t=1`},
		{"half a second", apikeys.Decision{Reason: apikeys.ReasonOK, Key: key, Rate: apikeys.RateState{Limit: apikeys.RateLimit{Quota: 5, Window: 1500 * time.Millisecond}, Reset: 0}}, nil, `200 RateLimit-Policy: "default";q=5 | RateLimit: "default";r=0;t=0`},
		{"used up", apikeys.Decision{Reason: apikeys.ReasonRate, Key: key, Rate: apikeys.RateState{Limit: limit, Reset: time.Second, RetryAfter: 10 * time.Millisecond}}, nil, `429 Retry-After: 1 | RateLimit-Policy: "default";q=100;w=1 | RateLimit: "default";r=0;t=1`},
		{"used up for long", apikeys.Decision{Reason: apikeys.ReasonRate, Key: key, Rate: apikeys.RateState{RetryAfter: 61*time.Second + 1}}, nil, `429 Retry-After: 62`},
		{"retiring", apikeys.Decision{Reason: apikeys.ReasonOK, Key: retiring}, nil, fmt.Sprintf("200 Deprecation: @%d | Sunset: Tue, 06 Jan 2026 12:00:00 GMT", epoch.Unix()-3600)},
		{"retired meanwhile", apikeys.Decision{Reason: apikeys.ReasonRevoked, Key: retiring}, nil, invalid},
		{"scope", apikeys.Decision{Reason: apikeys.ReasonScope, Key: key}, []string{"orders:write", "orders:read"}, `403 WWW-Authenticate: Bearer error="insufficient_scope", scope="orders:write orders:read"`},
		{"a scope that breaks out", apikeys.Decision{Reason: apikeys.ReasonScope, Key: key}, []string{`x", realm="y`}, `403 WWW-Authenticate: Bearer error="insufficient_scope"`},
		{"address", apikeys.Decision{Reason: apikeys.ReasonAddress, Key: key}, nil, "403"},
		{"malformed", apikeys.Decision{Reason: apikeys.ReasonMalformed}, nil, invalid},
		{"unknown", apikeys.Decision{Reason: apikeys.ReasonUnknown}, nil, invalid},
		{"expired", apikeys.Decision{Reason: apikeys.ReasonExpired, Key: retiring, Rate: rate}, nil, invalid},
		{"suspended", apikeys.Decision{Reason: apikeys.ReasonSuspended, Key: retiring, Rate: rate}, nil, invalid},
		{"signature", apikeys.Decision{Reason: apikeys.ReasonSignature, Key: retiring, Rate: rate}, nil, invalid},
		{"components", apikeys.Decision{Reason: apikeys.ReasonComponents, Key: retiring}, nil, invalid},
		{"window", apikeys.Decision{Reason: apikeys.ReasonWindow, Key: retiring}, nil, invalid},
		{"replay", apikeys.Decision{Reason: apikeys.ReasonReplay, Key: retiring}, nil, invalid},
		{"digest", apikeys.Decision{Reason: apikeys.ReasonDigest, Key: retiring}, nil, invalid},
		{"nothing", apikeys.Decision{}, nil, invalid},
		{"a reason of tomorrow", apikeys.Decision{Reason: 200, Key: retiring}, nil, invalid},
	} {
		status, headers := decisionHeaders(c.d, epoch, c.needed...)
		var lines []string
		for _, h := range headers {
			lines = append(lines, h.name+": "+h.value)
		}
		if got := strings.TrimSpace(fmt.Sprint(status, " ", strings.Join(lines, " | "))); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func (b *bed) key(t testing.TB, spec apikeys.KeySpec) (*apikeys.Key, string) {
	t.Helper()
	made, err := b.Keys.Create(t.Context(), apikeys.APIKey, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Value.Destroy()
	return made.Key, made.Value.RevealString()
}

// Promise: a verification is an answer, with the reason; a gateway learns whose key it
// is when the key was presented, and nothing when it was not.
func TestVerifyApiKeyWhenDecided(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme")
		gateway := b.verification(b.token(t, apikeys.Create{Role: apikeys.Gateway}))
		verify := func(req *rotundav1.VerifyApiKeyRequest) *rotundav1.VerifyApiKeyResponse {
			t.Helper()
			req.WantHeaders = true
			res, err := gateway.VerifyApiKey(t.Context(), connect.NewRequest(req))
			if err != nil {
				t.Fatal(err)
			}
			return res.Msg
		}
		plain, value := b.key(t, apikeys.KeySpec{Partner: "acme", Name: "ci", Scopes: []string{"orders:read"}, CIDRs: []string{"203.0.113.0/24"}, Rate: apikeys.RateLimit{Quota: 2, Window: time.Minute}, Metadata: map[string]string{"team": "a"}})
		here := func(r *rotundav1.VerifyApiKeyRequest) *rotundav1.VerifyApiKeyRequest {
			r.Key, r.Address = value, "203.0.113.9"
			return r
		}
		ok := verify(here(&rotundav1.VerifyApiKeyRequest{Scopes: []string{"orders:read"}, Partner: "acme", Environment: "live"}))
		want := &rotundav1.VerifyApiKeyResponse{
			Reason: rotundav1.VerifyReason_VERIFY_REASON_OK, HttpStatus: 200,
			Verified: &rotundav1.Verified{
				Partner: "acme", KeyId: plain.ID, Name: "ci", Environment: "live", Class: rotundav1.KeyClass_KEY_CLASS_SECRET, Scopes: []string{"orders:read"},
				Metadata: map[string]string{"team": "a"}, State: rotundav1.ApiKeyState_API_KEY_STATE_ACTIVE,
				Rate: &rotundav1.RateState{Limit: &rotundav1.RateLimit{Quota: 2, Window: durationpb.New(time.Minute)}, Remaining: 1, Reset_: durationpb.New(30 * time.Second)},
			},
			Headers: []*rotundav1.Header{{Name: "RateLimit-Policy", Value: `"default";q=2;w=60`}, {Name: "RateLimit", Value: `"default";r=1;t=30`}},
		}
		if d := cmp.Diff(text(t, want), text(t, ok)); d != "" {
			t.Errorf("accepted (-want +got):\n%s", d)
		}
		// None of these takes anything from the limit.
		for name, c := range map[string]struct {
			req    *rotundav1.VerifyApiKeyRequest
			reason string
			status int32
			known  bool
		}{
			"scope":       {here(&rotundav1.VerifyApiKeyRequest{Scopes: []string{"orders:write"}}), "scope", 403, true},
			"address":     {&rotundav1.VerifyApiKeyRequest{Key: value, Address: "198.51.100.1"}, "address", 403, true},
			"no address":  {&rotundav1.VerifyApiKeyRequest{Key: value}, "address", 403, true},
			"partner":     {here(&rotundav1.VerifyApiKeyRequest{Partner: "globex"}), "unknown", 401, false},
			"environment": {here(&rotundav1.VerifyApiKeyRequest{Environment: "test"}), "unknown", 401, false},
			"damaged":     {&rotundav1.VerifyApiKeyRequest{Key: value[:len(value)-1] + "!", Address: "203.0.113.9"}, "unknown", 401, false},
			"no key":      {&rotundav1.VerifyApiKeyRequest{Key: "hello world"}, "malformed", 401, false},
			"token":       {&rotundav1.VerifyApiKeyRequest{Key: b.admin}, "unknown", 401, false},
		} {
			got := verify(c.req)
			if got.GetReason().String() != "VERIFY_REASON_"+strings.ToUpper(c.reason) || got.GetHttpStatus() != c.status || (got.GetVerified() != nil) != c.known {
				t.Errorf("%s: %v", name, got)
			}
			if c.known && (got.GetVerified().GetPartner() != "acme" || got.GetVerified().GetKeyId() != plain.ID) {
				t.Errorf("%s: %v", name, got)
			}
		}
		if got := verify(here(&rotundav1.VerifyApiKeyRequest{})); got.GetHttpStatus() != 200 || got.GetVerified().GetRate().GetRemaining() != 0 {
			t.Errorf("the last of the limit: %v", got)
		}
		if got := verify(here(&rotundav1.VerifyApiKeyRequest{})); got.GetHttpStatus() != 429 || got.GetVerified().GetRate().GetRetryAfter().AsDuration() != 30*time.Second || !slices.ContainsFunc(got.GetHeaders(), func(h *rotundav1.Header) bool { return h.GetName() == "Retry-After" && h.GetValue() == "30" }) {
			t.Errorf("beyond the limit: %v", got)
		}
		for _, bad := range []string{"203.0.113.9:443", "[2001:db8::1]", "localhost"} {
			_, err := gateway.VerifyApiKey(t.Context(), connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: value, Address: bad}))
			wantProblem(t, err, connect.CodeInvalidArgument, "bad_address")
		}

		// A rolled key says so, and to when.
		spare, old := b.key(t, apikeys.KeySpec{Partner: "acme", Name: "rolls"})
		grace := time.Hour
		made, _, err := b.Keys.Roll(t.Context(), apikeys.Roll{Kind: apikeys.APIKey, Partner: "acme", ID: spare.ID, Grace: &grace})
		if err != nil {
			t.Fatal(err)
		}
		got := verify(&rotundav1.VerifyApiKeyRequest{Key: old})
		if got.GetVerified().GetState() != rotundav1.ApiKeyState_API_KEY_STATE_RETIRING || got.GetVerified().GetReplacedBy() != made.Key.ID || !got.GetVerified().GetGraceEndsAt().AsTime().Equal(epoch.Add(time.Hour)) || !got.GetVerified().GetRetiringSince().AsTime().Equal(epoch) ||
			len(got.GetHeaders()) != 2 || got.GetHeaders()[0].GetName() != "Deprecation" || got.GetHeaders()[1].GetName() != "Sunset" {
			t.Errorf("a retiring key: %v", got)
		}
		if _, err := b.Keys.Revoke(t.Context(), apikeys.APIKey, "acme", spare.ID, apikeys.KeyCompromise, ""); err != nil {
			t.Fatal(err)
		}
		if got := verify(&rotundav1.VerifyApiKeyRequest{Key: old}); got.GetReason() != rotundav1.VerifyReason_VERIFY_REASON_REVOKED || got.GetHttpStatus() != 401 || got.GetVerified().GetKeyId() != spare.ID || len(got.GetHeaders()) != 1 {
			t.Errorf("a revoked key: %v", got)
		}

		batch, err := gateway.VerifyApiKeys(t.Context(), connect.NewRequest(&rotundav1.VerifyApiKeysRequest{Requests: []*rotundav1.VerifyApiKeyRequest{
			{Key: made.Value.RevealString()}, {Key: old}, {Key: "x y"}, {Key: made.Value.RevealString(), Scopes: []string{"orders:read"}},
		}}))
		if err != nil {
			t.Fatal(err)
		}
		var reasons []string
		for _, r := range batch.Msg.GetResponses() {
			reasons = append(reasons, strings.TrimPrefix(r.GetReason().String(), "VERIFY_REASON_"))
		}
		if d := cmp.Diff([]string{"OK", "REVOKED", "MALFORMED", "SCOPE"}, reasons); d != "" {
			t.Errorf("a batch (-want +got):\n%s", d)
		}
		metrics := b.get(t, b.admin, home, "/metrics").body
		for _, line := range []string{
			`rotunda_verifications_total{kind="api_key",reason="ok"} 4`, `rotunda_verifications_total{kind="api_key",reason="revoked"} 2`, `rotunda_verifications_total{kind="api_key",reason="rate"} 1`,
			`rotunda_verifications_total{kind="api_key",reason="scope"} 2`, `rotunda_verifications_total{kind="request_secret",reason="ok"} 0`, `rotunda_verifier_behind_seconds 0`, `rotunda_verifier_keys 3`,
		} {
			if !strings.Contains(metrics, line+"\n") {
				t.Errorf("the metrics lack %s", line)
			}
		}
		if strings.Contains(metrics, plain.ID) || strings.Contains(metrics, "acme") {
			t.Error("the metrics name a key or a partner")
		}
		if strings.Contains(b.log.String(), secretOf(value)) || strings.Contains(b.log.String(), secretOf(old)) {
			t.Error("the log has a key")
		}
	})
}

// text is a message as JSON without the spaces that protojson puts in at will.
func text(t testing.TB, m proto.Message) string {
	t.Helper()
	raw, err := strictJSON{"json"}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		t.Fatal(err)
	}
	out, err := json.MarshalIndent(tree, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Promise: an explanation is for who may have it, spends nothing, and a nonce is
// accepted once.
func TestVerifyRequestWhenSigned(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.partner(t, "acme")
		made, err := b.Keys.Create(t.Context(), apikeys.RequestSecret, apikeys.KeySpec{Partner: "acme", Name: "orders", Scopes: []string{"orders:read"}})
		if err != nil {
			t.Fatal(err)
		}
		tokens := map[string]string{
			"admin": b.admin, "operator": b.token(t, apikeys.Create{Role: apikeys.Operator}), "gateway": b.token(t, apikeys.Create{Role: apikeys.Gateway}), "partner": b.manager(t, "acme"),
		}
		procedure := v1connect.VerificationServiceVerifyRequestProcedure
		send := func(token string, tree map[string]any, with ...any) answer {
			t.Helper()
			body := map[string]any{}
			for k, v := range tree {
				body[k] = v
			}
			for i := 0; i < len(with); i += 2 {
				body[with[i].(string)] = with[i+1]
			}
			raw, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			return b.post(t, token, home, procedure, string(raw))
		}
		request := signedBy(t, made.Key.ID, made.Value.RevealString(), "nonce-of-a-request", epoch)
		for role, token := range tokens {
			a := send(token, request, "explain", true, "authority", "elsewhere.test")
			if role == "gateway" {
				if a.code != "permission_denied" || a.problem.GetReason() != "role" {
					t.Errorf("explain by a gateway: %d %s", a.status, a.body)
				}
				continue
			}
			if a.status != http.StatusOK || !strings.Contains(a.body, "VERIFY_REASON_SIGNATURE") || !strings.Contains(a.body, `\"@authority\": elsewhere.test`) || strings.Contains(a.body, "verified") {
				t.Errorf("explain by %s: %d %s", role, a.status, a.body)
			}
			if a := send(token, request, "explain", true); !strings.Contains(a.body, "VERIFY_REASON_OK") {
				t.Errorf("explain of a good one by %s: %s", role, a.body)
			}
		}
		if a := send(tokens["gateway"], request); !strings.Contains(a.body, "VERIFY_REASON_OK") || !strings.Contains(a.body, made.Key.ID) {
			t.Errorf("a good one: %s", a.body)
		}
		for role, token := range tokens {
			if a := send(token, request); !strings.Contains(a.body, "VERIFY_REASON_REPLAY") || strings.Contains(a.body, "verified") || strings.Contains(a.body, "explanation") {
				t.Errorf("again by %s: %s", role, a.body)
			}
		}
		for reason, c := range map[string][]any{
			"partner_missing":  {"profile", "SIGNATURE_PROFILE_STANDARD_WEBHOOKS", "secret", "orders"},
			"secret_missing":   {"profile", "SIGNATURE_PROFILE_STANDARD_WEBHOOKS", "partner", "acme"},
			"body_and_omitted": {"body", "eA==", "bodyOmitted", true},
			"bad_header":       {"headers", []map[string]any{{"name": "content-digest ", "value": "x"}}},
			"bytes_max_len":    {"body", strings.Repeat("AAAA", 98304/3+1)},
		} {
			if a := send(b.admin, request, c...); a.code != "invalid_argument" || a.problem.GetReason() != reason {
				t.Errorf("%s: %d %.300s", reason, a.status, a.body)
			}
		}
		if a := send(b.admin, request, "headers", []map[string]any{{"name": "x", "value": "a\r\nsignature: b"}}); a.problem.GetReason() != "bad_header" {
			t.Errorf("a header in a header: %d %s", a.status, a.body)
		}
		largest := signedBy(t, made.Key.ID, made.Value.RevealString(), "nonce-of-another-one", epoch)
		if a := send(b.admin, largest, "body", strings.Repeat("AAAA", 98304/3)); a.status != http.StatusOK || !strings.Contains(a.body, "VERIFY_REASON_") {
			t.Errorf("the largest body in JSON: %d %.300s", a.status, a.body)
		}
		made.Value.Destroy()
	})
}

// Promise: when nobody knows whether a key was revoked, the answer is an error and no
// decision, and the metrics tell.
func TestVerifyWhenChangesAreNotHeard(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.partner(t, "acme")
	_, value := b.key(t, apikeys.KeySpec{Partner: "acme", Name: "ci"})
	client := b.verification(b.token(t, apikeys.Create{Role: apikeys.Gateway}))
	ask := func() error {
		_, err := client.VerifyApiKey(t.Context(), connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: value}))
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	b.clock.Advance(61 * time.Second)
	wantProblem(t, ask(), connect.CodeUnavailable, "stale")
	batch := func() error {
		_, err := client.VerifyApiKeys(t.Context(), connect.NewRequest(&rotundav1.VerifyApiKeysRequest{Requests: []*rotundav1.VerifyApiKeyRequest{{Key: "no key"}, {Key: value}}}))
		return err
	}
	wantProblem(t, batch(), connect.CodeUnavailable, "stale")
	warnings := func() int { return strings.Count(b.log.String(), `"level":"WARN","msg":"a request failed because`) }
	if n := warnings(); n != 1 {
		t.Errorf("%d lines in one second", n)
	}
	b.clock.Advance(time.Second)
	for range 3 {
		wantProblem(t, ask(), connect.CodeUnavailable, "stale")
	}
	if n := warnings(); n != 2 {
		t.Errorf("%d lines in two seconds", n)
	}
	if a := b.get(t, b.admin, home, "/metrics"); !strings.Contains(a.body, `rotunda_verifications_total{kind="api_key",reason="unavailable"} 5`+"\n") || !strings.Contains(a.body, "rotunda_verifier_behind_seconds 62\n") {
		t.Error("the metrics do not tell")
	}
	if err := b.Verifier.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ask(); err != nil {
		t.Error(err)
	}
}

// Promise: what the policy said is remembered for one reading of a token, and no longer:
// a revoked token's decisions go with it.
func TestPrincipalWhenTokenIsReadAnew(t *testing.T) {
	a, err := newAuthorizer()
	if err != nil {
		t.Fatal(err)
	}
	var ps principals
	verifyOne := v1connect.VerificationServiceVerifyApiKeyProcedure
	gateway := &apikeys.Token{ID: "t", Role: apikeys.Gateway}
	p := ps.find(gateway)
	if !p.may(a, verifyOne, "") || !p.may(a, verifyOne, "acme") || p.may(a, explainAction, "acme") || ps.find(gateway) != p {
		t.Fatal("a gateway may not verify, or may have explanations")
	}
	demoted := &apikeys.Token{ID: "t", Role: apikeys.Signer}
	if ps.find(demoted).may(a, verifyOne, "") {
		t.Error("what was said of a token is believed of another reading of it")
	}
	own := ps.find(&apikeys.Token{ID: "p", Role: apikeys.Manager, Partner: "acme"})
	for range 2 { // decided, and remembered
		for name, want := range map[string]bool{"acme": true, "globex": false, "": false, "ACME": false} {
			if own.may(a, verifyOne, name) != want {
				t.Errorf("acme's token on %q: %v", name, !want)
			}
		}
	}
	for i := range 2 * maxVerdicts {
		if own.may(a, verifyOne, fmt.Sprint("other-", i)) {
			t.Fatal("acme's token works on others")
		}
	}
	if n := len(*own.said.Load()); n > maxVerdicts {
		t.Errorf("%d decisions are remembered", n)
	}
	if none := (&principal{subject: newSubject(&apikeys.Token{ID: "x", Role: apikeys.Manager})}); none.may(a, verifyOne, "") {
		t.Error("a partner's token without a partner works on none, and so on all")
	}
	for i := range maxPrincipals + 10 {
		ps.find(&apikeys.Token{ID: fmt.Sprint("t", i), Role: apikeys.Signer})
	}
	if len(ps.of) > maxPrincipals {
		t.Errorf("%d callers are remembered", len(ps.of))
	}
}

// Promise: many requests of one token at once, and of tokens that are read anew, get the
// policy's answer each.
func TestPrincipalWhenManyAskAtOnce(t *testing.T) {
	a, err := newAuthorizer()
	if err != nil {
		t.Fatal(err)
	}
	var ps principals
	tokens := []*apikeys.Token{{ID: "p", Role: apikeys.Manager, Partner: "acme"}, {ID: "p", Role: apikeys.Manager, Partner: "globex"}}
	var asking sync.WaitGroup
	for i := range 8 {
		asking.Go(func() {
			token := tokens[i%2]
			for j := range 300 {
				for _, name := range []string{"acme", "globex", fmt.Sprint("other-", j%50)} {
					if ps.find(token).may(a, v1connect.VerificationServiceVerifyApiKeyProcedure, name) != (name == token.Partner) {
						t.Errorf("the token of %s on %s", token.Partner, name)
					}
				}
			}
		})
	}
	asking.Wait()
}

// Promise: a call of the hot path writes no line and no row.
func TestVerifyWhenCalledOften(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.partner(t, "acme")
	_, value := b.key(t, apikeys.KeySpec{Partner: "acme", Name: "ci"})
	client := b.verification(b.token(t, apikeys.Create{Role: apikeys.Gateway}))
	events := len(b.events(t, audit.Query{}))
	for range 20 {
		if _, err := client.VerifyApiKey(context.WithoutCancel(t.Context()), connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: value})); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(b.log.String(), `"level":"INFO"`); n != 0 {
		t.Errorf("%d lines were logged: %s", n, b.log)
	}
	if n := len(b.events(t, audit.Query{})); n != events {
		t.Errorf("%d events were written", n-events)
	}
}

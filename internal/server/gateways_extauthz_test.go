package server

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// gateBed is a bed with a gateway's token and a partner, acme.
type gateBed struct {
	*bed
	gateway string
}

func newGateBed(t testing.TB, db *store.DB) *gateBed {
	t.Helper()
	b := newBedWith(t, db, func(c *Config) { c.TrustedProxies = nil })
	b.partner(t, "acme")
	return &gateBed{b, b.token(t, apikeys.Create{Role: apikeys.Gateway})}
}

// key makes a key of acme that may read orders.
func (b *gateBed) key(t testing.TB, adjust func(*apikeys.KeySpec)) (value string, k *apikeys.Key) {
	t.Helper()
	spec := apikeys.KeySpec{Partner: "acme", Name: "ci", Scopes: []string{"orders:read"}}
	adjust(&spec)
	made, err := b.Keys.Create(t.Context(), apikeys.APIKey, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Value.Destroy()
	return made.Value.RevealString(), made.Key
}

func plain(*apikeys.KeySpec) {}

// signer makes a request secret of acme.
func (b *gateBed) signer(t testing.TB) (*httpsig.Key, string) {
	t.Helper()
	made, err := b.Keys.Create(t.Context(), apikeys.RequestSecret, apikeys.KeySpec{Partner: "acme", Name: "signing", Scopes: []string{"orders:read"}})
	if err != nil {
		t.Fatal(err)
	}
	defer made.Value.Destroy()
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(made.Value.RevealString(), "whsec_"))
	if err != nil {
		t.Fatal("the secret is not whsec_ and base64")
	}
	k, err := httpsig.NewHMACKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return k, made.Key.ID
}

// signed are the header fields of a signed request to https://api.example.com.
func (b *gateBed) signed(t testing.TB, k *httpsig.Key, id, method, target, body string) map[string]string {
	t.Helper()
	m := &httpsig.Message{Method: method, Scheme: "https", Authority: "api.example.com", Header: http.Header{}}
	m.Path, m.Query, m.HasQuery = strings.Cut(target, "?")
	components := []string{"@method", "@authority", "@path"}
	if m.HasQuery {
		components = append(components, "@query")
	}
	fields := map[string]string{}
	if body != "" {
		components = append(components, "content-digest")
		fields["content-digest"] = httpsig.Digest([]byte(body))
		m.Header["Content-Digest"] = []string{fields["content-digest"]}
	}
	var err error
	fields["signature-input"], fields["signature"], err = httpsig.Sign(m, k, httpsig.Params{Components: components, Created: b.clock.Now(), KeyID: id, Nonce: rand.Text()})
	if err != nil {
		t.Fatal(err)
	}
	return fields
}

// checkRequest is what Envoy sends about a GET of https://api.example.com, in the
// shape in which it sends it.
func checkRequest(target string, fields, extensions map[string]string) *authv3.CheckRequest {
	headers := map[string]string{
		":authority": "api.example.com", ":method": "GET", ":path": target, ":scheme": "https", "accept": "*/*", "user-agent": "curl/8.5.0",
		"x-forwarded-proto": "https", "x-request-id": "9e1c0d8e-8b44-4b7e-b6f0-2d2f5f1a7c11", "x-forwarded-for": "198.51.100.7",
	}
	maps.Copy(headers, fields)
	peer := func(address string, port uint32) *authv3.AttributeContext_Peer {
		return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
		}}}}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: peer("203.0.113.9", 51234), Destination: peer("10.0.0.5", 8443),
		Request: &authv3.AttributeContext_Request{
			Time: timestamppb.New(epoch),
			Http: &authv3.AttributeContext_HttpRequest{
				Id: "4615932466846532109", Method: "GET", Headers: headers, Path: target, Host: "api.example.com", Scheme: "https", Protocol: "HTTP/2",
			},
		},
		ContextExtensions: extensions, MetadataContext: &corev3.Metadata{}, RouteMetadataContext: &corev3.Metadata{},
	}}
}

// envoy asks as Envoy does, with its token as initial metadata.
func (b *gateBed) envoy(t testing.TB, token string, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	t.Helper()
	conn, err := grpc.NewClient(b.http.Listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	return authv3.NewAuthorizationClient(conn).Check(ctx, req)
}

// envoyAnswer is a CheckResponse as Envoy acts on it.
type envoyAnswer struct {
	status   int // 200: it goes on
	code     grpccodes.Code
	body     string
	upstream map[string]string // headers set
	remove   []string
	query    []string
	client   map[string]string // headers of the response
	meta     map[string]any
}

func (b *gateBed) check(t testing.TB, req *authv3.CheckRequest) envoyAnswer {
	t.Helper()
	res, err := b.envoy(t, b.gateway, req)
	if err != nil {
		t.Fatal(err)
	}
	set := func(options []*corev3.HeaderValueOption) map[string]string {
		out := map[string]string{}
		for _, o := range options {
			name := o.GetHeader().GetKey()
			if _, twice := out[name]; twice || name != strings.ToLower(name) || o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD || o.GetHeader().GetValue() == "" {
				t.Errorf("header %v: want it once, with a value, overwriting", o)
			}
			out[name] = o.GetHeader().GetValue()
		}
		return out
	}
	a := envoyAnswer{code: grpccodes.Code(res.GetStatus().GetCode()), meta: res.GetDynamicMetadata().AsMap()}
	if ok := res.GetOkResponse(); ok != nil {
		a.status, a.upstream, a.client = http.StatusOK, set(ok.GetHeaders()), set(ok.GetResponseHeadersToAdd())
		a.remove, a.query = ok.GetHeadersToRemove(), ok.GetQueryParametersToRemove()
	} else if denied := res.GetDeniedResponse(); denied != nil {
		a.status, a.client, a.body = int(denied.GetStatus().GetCode()), set(denied.GetHeaders()), denied.GetBody()
	}
	if (a.status == http.StatusOK) != (a.code == grpccodes.OK) || a.status == 0 {
		t.Errorf("status %d with code %s: Envoy goes by the code", a.status, a.code)
	}
	return a
}

func TestExtAuthzWhenKeyIsAccepted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newGateBed(t, db)
		value, k := b.key(t, func(s *apikeys.KeySpec) { s.Rate = apikeys.RateLimit{Quota: 10, Window: time.Minute} })
		a := b.check(t, checkRequest("/orders?page=2", map[string]string{
			"authorization": "Bearer " + value, "x-rotunda-partner": "evil", "x_rotunda_scopes": "evil", "x-rotunda-anything": "evil", "x-api-key": "",
		}, map[string]string{"scope": "orders:read", "partner": "acme", "environment": "live", "require": "key", "cost": "3"}))
		want := envoyAnswer{
			status:   http.StatusOK,
			upstream: map[string]string{"x-rotunda-partner": "acme", "x-rotunda-key-id": k.ID, "x-rotunda-scopes": "orders:read", "x-rotunda-environment": "live", "x-rotunda-class": "secret"},
			remove:   []string{"authorization", "x-api-key", "x-rotunda-anything", "x-rotunda-token", "x_rotunda_scopes"},
			client:   map[string]string{"ratelimit-policy": `"default";q=10;w=60`, "ratelimit": `"default";r=7;t=18`},
			meta: map[string]any{"code": "ok", "reason": "ok", "partner": "acme", "key_id": k.ID, "environment": "live", "class": "secret",
				"scopes": []any{"orders:read"}},
		}
		if d := cmp.Diff(want, a, cmp.AllowUnexported(envoyAnswer{})); d != "" {
			t.Error(d)
		}

		none, k := b.key(t, func(s *apikeys.KeySpec) { s.Scopes = []string{} })
		a = b.check(t, checkRequest("/", map[string]string{"x-api-key": none}, nil))
		if _, set := a.upstream["x-rotunda-scopes"]; set || !slices.Contains(a.remove, "x-rotunda-scopes") || a.upstream["x-rotunda-key-id"] != k.ID {
			t.Errorf("a key without scopes: set %v, remove %v: want the client's removed", a.upstream, a.remove)
		}

		grace := time.Hour
		made, old, err := b.Keys.Roll(t.Context(), apikeys.Roll{Kind: apikeys.APIKey, Partner: "acme", ID: k.ID, Grace: &grace})
		if err != nil {
			t.Fatal(err)
		}
		made.Value.Destroy()
		a = b.check(t, checkRequest("/", map[string]string{"x-api-key": none}, nil))
		if a.status != http.StatusOK || a.client["deprecation"] != "@"+strconv.FormatInt(old.Since.Unix(), 10) || a.client["sunset"] != old.GraceEndsAt.UTC().Format(http.TimeFormat) || a.meta["retiring"] != true {
			t.Errorf("a retiring key: %+v", a)
		}
	})
}

func TestExtAuthzWhenKeyIsElsewhere(t *testing.T) {
	b := newGateBed(t, storetest.SQLite(t))
	value, _ := b.key(t, plain)
	for _, c := range []struct {
		name, target       string
		fields, extensions map[string]string
		status             int
		remove             string
	}{
		{"its own header", "/", map[string]string{"x-acme-key": value, "authorization": "Bearer of-somebody-else"}, map[string]string{"key_header": "x-ACME-key"}, 200, "x-acme-key x-rotunda-token"},
		{"its own header is not there", "/", map[string]string{"x-api-key": value}, map[string]string{"key_header": "x-acme-key"}, 401, ""},
		{"bearer only", "/", map[string]string{"authorization": "Bearer " + value}, map[string]string{"key_header": "authorization"}, 200, "authorization x-rotunda-token"},
		{"bearer only, and elsewhere", "/", map[string]string{"x-api-key": value}, map[string]string{"key_header": "Authorization"}, 401, ""},
		{"query, and not asked for", "/?api_key=" + value, nil, nil, 401, ""},
		{"query", "/?a=1&api_key=" + value, nil, map[string]string{"key_query": "api_key"}, 200, "x-api-key x-rotunda-token"},
		{"query, name with an escape", "/?api%5Fkey=" + value, nil, map[string]string{"key_query": "api_key"}, 401, ""},
		{"query, twice", "/?api_key=" + value + "&api_key=x", nil, map[string]string{"key_query": "api_key"}, 401, ""},
		{"query and header", "/?api_key=" + value, map[string]string{"x-api-key": value}, map[string]string{"key_query": "api_key"}, 401, ""},
		{"two lines, as Envoy joins them", "/", map[string]string{"authorization": "Bearer " + value + ",Bearer " + value}, nil, 401, ""},
		{"two lines, the first of another scheme", "/", map[string]string{"authorization": "Basic eA==,Bearer " + value}, nil, 401, ""},
		{"Basic beside it", "/", map[string]string{"authorization": "Basic eA==", "x-api-key": value}, nil, 200, "x-api-key x-rotunda-token"},
	} {
		a := b.check(t, checkRequest(c.target, c.fields, c.extensions))
		if a.status != c.status || strings.Join(a.remove, " ") != c.remove {
			t.Errorf("%s: %d %s, removes %q; want %d, %q", c.name, a.status, a.body, a.remove, c.status, c.remove)
		}
		if (c.status == 200 && c.extensions["key_query"] != "") != slices.Equal(a.query, []string{"api_key"}) {
			t.Errorf("%s: removes query parameters %q", c.name, a.query)
		}
	}
	// With encode_raw_headers, lines come one by one.
	raw := checkRequest("/", nil, nil)
	raw.Attributes.Request.Http.Headers = nil
	line := func(name, value string) {
		m := raw.Attributes.Request.Http
		if m.HeaderMap == nil {
			m.HeaderMap = &corev3.HeaderMap{}
		}
		m.HeaderMap.Headers = append(m.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
	}
	line(":authority", "api.example.com")
	line("x-latin", "caf\xe9")
	line("authorization", "Bearer "+value)
	if a := b.check(t, raw); a.status != http.StatusOK {
		t.Errorf("raw headers: %d %s", a.status, a.body)
	}
	line("authorization", "Bearer "+value)
	if a := b.check(t, raw); a.status != http.StatusUnauthorized || !strings.Contains(a.body, "several_credentials") {
		t.Errorf("raw headers, twice: %d %s", a.status, a.body)
	}
}

// Promise: a client is told 401, 403, 429 or 503, and of a bad key not why it is bad.
func TestExtAuthzWhenKeyIsDenied(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newGateBed(t, db)
		b.partner(t, "globex")
		good, _ := b.key(t, plain)
		expired, _ := b.key(t, func(s *apikeys.KeySpec) { s.ExpiresIn = time.Minute })
		b.clock.Advance(time.Minute)
		if err := b.Verifier.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		revoked, k := b.key(t, plain)
		if _, err := b.Keys.Revoke(t.Context(), apikeys.APIKey, "acme", k.ID, apikeys.KeyCompromise, ""); err != nil {
			t.Fatal(err)
		}
		near, _ := b.key(t, func(s *apikeys.KeySpec) { s.CIDRs = []string{"203.0.113.0/24"} })
		far, _ := b.key(t, func(s *apikeys.KeySpec) { s.CIDRs = []string{"198.51.100.0/24", "2001:db8::/32"} })
		scarce, _ := b.key(t, func(s *apikeys.KeySpec) { s.Rate = apikeys.RateLimit{Quota: 1, Window: time.Minute} })
		if a := b.check(t, checkRequest("/", map[string]string{"x-api-key": scarce}, nil)); a.status != http.StatusOK {
			t.Fatalf("the first of one: %+v", a)
		}
		bad := `{"error":"invalid_key","message":"the key is not accepted"}` + "\n"
		for _, c := range []struct {
			name, value string
			extensions  map[string]string
			status      int
			code        grpccodes.Code
			body        string
			headers     string // challenge, Retry-After
			reason      string // for the operator
		}{
			{"none", "", nil, 401, grpccodes.Unauthenticated, "missing_credentials", "Bearer", ""},
			{"malformed", "nonsense\x01", nil, 401, grpccodes.Unauthenticated, bad, `Bearer error="invalid_token"`, "malformed"},
			{"far too long", strings.Repeat("k", 20_000), nil, 401, grpccodes.Unauthenticated, bad, `Bearer error="invalid_token"`, "malformed"},
			{"unknown", good[:len(good)-1] + "_", nil, 401, grpccodes.Unauthenticated, bad, `Bearer error="invalid_token"`, "unknown"},
			{"expired", expired, nil, 401, grpccodes.Unauthenticated, bad, `Bearer error="invalid_token"`, "expired"},
			{"revoked", revoked, nil, 401, grpccodes.Unauthenticated, bad, `Bearer error="invalid_token"`, "revoked"},
			{"of another partner", good, map[string]string{"partner": "globex"}, 401, grpccodes.Unauthenticated, bad, `Bearer error="invalid_token"`, "unknown"},
			{"of another environment", good, map[string]string{"environment": "test"}, 401, grpccodes.Unauthenticated, bad, `Bearer error="invalid_token"`, "unknown"},
			{"scope", good, map[string]string{"scope": "orders:read,orders:write"}, 403, grpccodes.PermissionDenied, "insufficient_scope", `Bearer error="insufficient_scope", scope="orders:read orders:write"`, "scope"},
			{"address", far, nil, 403, grpccodes.PermissionDenied, "address_not_allowed", "", "address"},
			{"address by hops", near, map[string]string{"trusted_hops": "1"}, 403, grpccodes.PermissionDenied, "address_not_allowed", "", "address"},
			{"address by too many hops", far, map[string]string{"trusted_hops": "2"}, 403, grpccodes.PermissionDenied, "address_not_allowed", "", "address"},
			{"rate", scarce, nil, 429, grpccodes.ResourceExhausted, "rate_limited", "60", "rate"},
			{"signature needed", good, map[string]string{"require": "signature"}, 401, grpccodes.Unauthenticated, "missing_credentials", "Bearer", ""},
		} {
			fields := map[string]string{}
			if c.value != "" {
				fields["authorization"] = "Bearer " + c.value
			}
			a := b.check(t, checkRequest("/orders", fields, c.extensions))
			if a.status != c.status || a.code != c.code || !strings.Contains(a.body, c.body) || a.client["content-type"] != "application/json" || a.client["cache-control"] != "no-store" ||
				a.client["www-authenticate"]+a.client["retry-after"] != c.headers {
				t.Errorf("%s: %+v\nwant %d %s %s %s", c.name, a, c.status, c.code, c.body, c.headers)
			}
			if got, _ := a.meta["reason"].(string); got != c.reason {
				t.Errorf("%s: metadata %v, want the reason %q", c.name, a.meta, c.reason)
			}
		}
		for name, a := range map[string]envoyAnswer{
			"in its range":         b.check(t, checkRequest("/", map[string]string{"x-api-key": near}, nil)),
			"in its range by hops": b.check(t, checkRequest("/", map[string]string{"x-api-key": far}, map[string]string{"trusted_hops": "1"})),
			"by two hops":          b.check(t, checkRequest("/", map[string]string{"x-api-key": far, "x-forwarded-for": "10.1.1.1, 2001:db8::7 ,10.0.0.1"}, map[string]string{"trusted_hops": "2"})),
		} {
			if a.status != http.StatusOK {
				t.Errorf("%s: %+v", name, a)
			}
		}
	})
}

func TestExtAuthzWhenRequestIsSigned(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newGateBed(t, db)
		k, id := b.signer(t)
		value, _ := b.key(t, plain)
		const body = `{"order":7}`
		extensions := map[string]string{"require": "signature", "scope": "orders:read", "body": "buffered"}
		get := func(target string, adjust func(*authv3.AttributeContext)) envoyAnswer {
			req := checkRequest(target, b.signed(t, k, id, "GET", target, ""), maps.Clone(extensions))
			adjust(req.Attributes)
			return b.check(t, req)
		}
		post := func(adjust func(a *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest)) envoyAnswer {
			req := checkRequest("/orders", b.signed(t, k, id, "POST", "/orders", body), maps.Clone(extensions))
			h := req.Attributes.Request.Http
			h.Method, h.Body = "POST", body
			h.Headers[":method"], h.Headers[partialBody] = "POST", "false"
			h.Headers["content-length"] = strconv.Itoa(len(body))
			h.Headers = lowered(h.Headers)
			adjust(req.Attributes, h)
			return b.check(t, req)
		}
		for _, target := range []string{"/", "/orders/a%2Fb?x=%20&&y", "/orders?"} {
			a := get(target, func(*authv3.AttributeContext) {})
			if a.status != http.StatusOK || a.upstream["x-rotunda-key-id"] != id || a.upstream["x-rotunda-partner"] != "acme" || a.upstream["x-rotunda-class"] == "" {
				t.Errorf("%s: %+v", target, a)
			}
		}
		for name, a := range map[string]envoyAnswer{
			"a body": post(func(*authv3.AttributeContext, *authv3.AttributeContext_HttpRequest) {}),
			"a body as bytes": post(func(_ *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) {
				h.Body, h.RawBody = "", []byte(body)
			}),
			"a body without a length": post(func(_ *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) {
				delete(h.Headers, "content-length")
			}),
			"authority and scheme from the configuration": get("/orders", func(a *authv3.AttributeContext) {
				a.Request.Http.Host, a.Request.Http.Scheme = "10.0.0.5:8080", "http"
				a.ContextExtensions["authority"], a.ContextExtensions["scheme"] = "api.example.com", "https"
			}),
			"a key beside it, not needed":                  get("/orders", func(a *authv3.AttributeContext) { a.Request.Http.Headers["authorization"] = "Bearer " + value }),
			"a body is not handed over, and there is none": get("/orders", func(a *authv3.AttributeContext) { delete(a.ContextExtensions, "body") }),
		} {
			if a.status != http.StatusOK {
				t.Errorf("%s: %+v", name, a)
			}
		}
		drop := func(a *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) { h.Body = "" }
		for name, c := range map[string]struct {
			a    envoyAnswer
			code string
		}{
			"another path":      {get("/orders", func(a *authv3.AttributeContext) { a.Request.Http.Path = "/orders/2" }), "invalid_signature"},
			"another query":     {get("/orders?a=1", func(a *authv3.AttributeContext) { a.Request.Http.Path = "/orders?a=2" }), "invalid_signature"},
			"another method":    {get("/orders", func(a *authv3.AttributeContext) { a.Request.Http.Method = "DELETE" }), "invalid_signature"},
			"another authority": {get("/orders", func(a *authv3.AttributeContext) { a.Request.Http.Host = "evil.example.com" }), "invalid_signature"},
			"another body":      {post(func(_ *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) { h.Body = `{"order":8}` }), "invalid_signature"},
			"a body cut short": {post(func(_ *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) {
				h.Headers["x-envoy-auth-partial-body"] = "true"
			}), "body_not_verifiable"},
			"a body cut short, and the client says it is not": {post(func(_ *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) {
				h.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "x-envoy-auth-partial-body", RawValue: []byte("true")}}}
			}), "body_not_verifiable"},
			"no body where a length says so": {post(drop), "body_not_verifiable"},
			"not handed over": {post(func(a *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) {
				drop(a, h)
				delete(a.ContextExtensions, "body")
			}), "body_not_verifiable"},
			"not handed over, and no length": {post(func(a *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) {
				drop(a, h)
				delete(h.Headers, "content-length")
				delete(a.ContextExtensions, "body")
			}), "body_not_verifiable"},
			"kept back": {post(func(a *authv3.AttributeContext, h *authv3.AttributeContext_HttpRequest) {
				drop(a, h)
				delete(h.Headers, "x-envoy-auth-partial-body")
			}), "body_not_verifiable"},
			"only half of a signature": {get("/orders", func(a *authv3.AttributeContext) { delete(a.Request.Http.Headers, "signature") }), "invalid_signature"},
			"a scope that it has not":  {get("/orders", func(a *authv3.AttributeContext) { a.ContextExtensions["scope"] = "orders:write" }), "insufficient_scope"},
			"wrong, and a good key": {get("/orders", func(a *authv3.AttributeContext) {
				a.ContextExtensions["require"] = "either"
				a.Request.Http.Headers["authorization"] = "Bearer " + value
				a.Request.Http.Path = "/orders/2"
			}), "invalid_signature"},
		} {
			if c.a.status != http.StatusUnauthorized && c.a.status != http.StatusForbidden || !strings.Contains(c.a.body, `"`+c.code+`"`) {
				t.Errorf("%s: %+v, want %s", name, c.a, c.code)
			}
		}
		again := checkRequest("/orders", b.signed(t, k, id, "GET", "/orders", ""), extensions)
		if first, second := b.check(t, again), b.check(t, again); first.status != 200 || second.status != 401 || second.meta["reason"] != "replay" || strings.Contains(second.body, "replay") {
			t.Errorf("sent twice: %+v, then %+v", first, second)
		}
	})
}

func lowered(h map[string]string) map[string]string {
	out := map[string]string{}
	for name, value := range h {
		out[strings.ToLower(name)] = value
	}
	return out
}

// Promise: a misspelt word in Envoy's configuration denies; it does not ask for less.
func TestExtAuthzWhenConfigurationIsWrong(t *testing.T) {
	b := newGateBed(t, storetest.SQLite(t))
	value, _ := b.key(t, plain)
	for _, extensions := range []map[string]string{
		{"scopes": "orders:read"}, {"Scope": "orders:read"}, {"scope": ""}, {"scope": `a"b`}, {"scope": strings.Repeat("a ", 65)}, {"partner": ""}, {"environment": ""},
		{"require": "keys"}, {"require": ""}, {"cost": "0"}, {"cost": "-1"}, {"cost": "1e3"}, {"scheme": "ftp"}, {"authority": ""}, {"authority": "a\nb"}, {"key_header": "a b"}, {"key_header": ""},
		{"key_query": "a=b"}, {"key_query": ""}, {"trusted_hops": "0"}, {"trusted_hops": "17"}, {"trusted_hops": "x"}, {"body": "forwarded"}, {"body": ""}, {"virtual_host": "x"},
	} {
		a := b.check(t, checkRequest("/", map[string]string{"x-api-key": value}, extensions))
		if a.status != http.StatusInternalServerError || !strings.Contains(a.body, "gateway_misconfigured") {
			t.Errorf("%v: %+v", extensions, a)
		}
	}
	if log := b.log.String(); !strings.Contains(log, `parameter \"scopes\" is not known`) || strings.Contains(log, value) {
		t.Error("the log does not say which word is not known, or holds the key")
	}
	for name, a := range map[string]*authv3.CheckRequest{"nothing": {}, "no request": {Attributes: &authv3.AttributeContext{}}} {
		if got := b.check(t, a); got.status != http.StatusUnauthorized {
			t.Errorf("%s: %+v", name, got)
		}
	}
	many := map[string]string{"x-api-key": value}
	for i := range 300 {
		many["x-"+strconv.Itoa(i)] = "x"
	}
	for name, req := range map[string]*authv3.CheckRequest{
		"many headers":  checkRequest("/", many, nil),
		"long path":     checkRequest("/"+strings.Repeat("a", 9000), map[string]string{"x-api-key": value}, nil),
		"absolute form": checkRequest("http://evil.example.com/", map[string]string{"x-api-key": value}, nil),
		"a line feed":   checkRequest("/a\nb", map[string]string{"x-api-key": value}, nil),
	} {
		if got := b.check(t, req); got.status != http.StatusForbidden || !strings.Contains(got.body, "bad_request") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Promise: only gateways, operators and admins may ask; every attempt of another is
// in the trail.
func TestExtAuthzWhenCallerIsNotAGateway(t *testing.T) {
	b := newGateBed(t, storetest.SQLite(t))
	value, _ := b.key(t, plain)
	req := checkRequest("/", map[string]string{"x-api-key": value}, nil)
	for name, c := range map[string]struct {
		token string
		code  grpccodes.Code
	}{
		"none": {"", grpccodes.Unauthenticated}, "nonsense": {"nonsense", grpccodes.Unauthenticated}, "a key": {value, grpccodes.Unauthenticated},
		"auditor": {b.token(t, apikeys.Create{Role: apikeys.Auditor}), grpccodes.PermissionDenied},
		"signer":  {b.token(t, apikeys.Create{Role: apikeys.Signer}), grpccodes.PermissionDenied},
		"partner": {b.manager(t, "acme"), grpccodes.PermissionDenied},
		"gateway": {b.gateway, grpccodes.OK}, "admin": {b.admin, grpccodes.OK}, "operator": {b.token(t, apikeys.Create{Role: apikeys.Operator}), grpccodes.OK},
	} {
		res, err := b.envoy(t, c.token, req)
		if status.Code(err) != c.code || (err == nil) != (res.GetOkResponse() != nil) {
			t.Errorf("%s: %v, %v, want %s", name, res, err, c.code)
		}
		if c.code == grpccodes.PermissionDenied {
			if n := len(b.events(t, audit.Query{Actor: idOf(c.token), Outcome: audit.Denied})); n != 1 {
				t.Errorf("%s: %d denied attempts in the trail", name, n)
			}
		}
	}
}

// Promise: when nobody knows whether a key was revoked, it does not pass, and not by
// failure_mode_allow either.
func TestExtAuthzWhenVerifierHasNotHeard(t *testing.T) {
	b := newGateBed(t, storetest.SQLite(t))
	value, _ := b.key(t, plain)
	req := checkRequest("/", map[string]string{"x-api-key": value}, nil)
	if a := b.check(t, req); a.status != http.StatusOK {
		t.Fatalf("%+v", a)
	}
	b.clock.Advance(2 * time.Minute)
	if a := b.check(t, req); a.status != http.StatusServiceUnavailable || a.code != grpccodes.Unavailable || a.client["retry-after"] != "1" || !strings.Contains(a.body, `"unavailable"`) {
		t.Errorf("%+v", a)
	}
	if err := b.Verifier.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := b.check(t, req); a.status != http.StatusOK {
		t.Errorf("%+v", a)
	}
}

package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

func TestEdgeWhenDomainFails(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	stranger := audit.WithActor(t.Context(), audit.Actor{ID: "x", RequestID: "REQ7"})
	ctx := context.WithValue(stranger, callerKey{}, caller{token: &apikeys.Token{ID: "x"}})
	const procedure = v1connect.KeysetServiceSignProcedure
	for kind, want := range map[error]connect.Code{
		fault.ErrInvalid:     connect.CodeInvalidArgument,
		fault.ErrNotFound:    connect.CodeNotFound,
		fault.ErrExists:      connect.CodeAlreadyExists,
		fault.ErrTransition:  connect.CodeFailedPrecondition,
		fault.ErrChanged:     connect.CodeAborted,
		fault.ErrStale:       connect.CodeAborted,
		fault.ErrRejected:    connect.CodeFailedPrecondition,
		fault.ErrDenied:      connect.CodePermissionDenied,
		fault.ErrLimited:     connect.CodeResourceExhausted,
		fault.ErrUnavailable: connect.CodeUnavailable,
	} {
		err := b.edge(ctx, procedure, fmt.Errorf("sign: %w", fault.New(kind, "some_reason", "it is so").On("claims")))
		p := wantProblem(t, err, want, "some_reason")
		if p.GetField() != "claims" || p.GetRequestId() != "REQ7" || !strings.Contains(err.Error(), "sign: it is so") {
			t.Errorf("%v: %v, detail %v", kind, err, p)
		}
		// A sentinel by itself has no reason, and a code all the same.
		if got := connect.CodeOf(b.edge(ctx, procedure, fmt.Errorf("x: %w", kind))); got != want {
			t.Errorf("bare %v: %s, want %s", kind, got, want)
		}
	}
	if err := b.edge(ctx, procedure, nil); err != nil {
		t.Errorf("no failure became %v", err)
	}
	if got := connect.CodeOf(b.edge(ctx, procedure, fmt.Errorf("x: %w", context.Canceled))); got != connect.CodeCanceled {
		t.Errorf("canceled: %s", got)
	}
	wantProblem(t, b.edge(ctx, procedure, fmt.Errorf("x: %w", context.DeadlineExceeded)), connect.CodeDeadlineExceeded, "deadline")
	slow := fault.New(fault.ErrUnavailable, "database_slow", "slow: %w", context.DeadlineExceeded)
	wantProblem(t, b.edge(ctx, procedure, slow), connect.CodeUnavailable, "database_slow")

	// Where the database is, and as whom Rotunda goes there, is for the log; what
	// else is out of reach is told to callers with a token.
	for i, c := range []struct {
		ctx    context.Context
		kind   error
		reason string
		hidden bool
	}{
		{stranger, fault.ErrUnavailable, "some_reason", true},
		{ctx, fault.ErrUnavailable, "some_reason", false},
		{stranger, fault.ErrUnavailable, "database_unavailable", true},
		{ctx, fault.ErrUnavailable, "database_unavailable", true},
		{ctx, fault.ErrRejected, "database_denied", true},
		{ctx, fault.ErrUnavailable, "lease_over", true},
		{stranger, fault.ErrInvalid, "some_reason", false},
	} {
		secret := fmt.Sprintf("host=db-%d.internal", i)
		plain := fault.New(c.kind, c.reason, "connect to %s", secret)
		for _, err := range []error{plain, fmt.Errorf("get: %w", plain), errors.Join(errors.New("two failures"), plain), fault.New(c.kind, c.reason, "again: %w", plain)} {
			got := b.edge(c.ctx, procedure, err)
			_, p := problemOf(t, got)
			if strings.Contains(got.Error(), secret) == c.hidden || p.GetReason() != c.reason {
				t.Errorf("%+v: the caller sees %v, detail %v", c, got, p)
			}
			if c.hidden && (!strings.HasSuffix(got.Error(), "something that Rotunda needs is out of reach: try again; the log has it under request id REQ7") || !strings.Contains(b.log.String(), secret)) {
				t.Errorf("%+v: the caller sees %v, or the log lacks it", c, got)
			}
		}
	}
	around := fault.New(fault.ErrUnavailable, "token_unknown", "nobody knows: %w", fault.New(fault.ErrUnavailable, "database_unavailable", "host=db.internal"))
	if err := b.edge(ctx, procedure, around); strings.Contains(err.Error(), "db.internal") {
		t.Errorf("a failure of the database inside another reaches the caller: %v", err)
	}

	err := b.edge(ctx, procedure, errors.New("dial tcp 10.1.2.3: password=hunter2"))
	wantProblem(t, err, connect.CodeInternal, "internal")
	if err.Error() != "internal: internal error: the server's log has it under request id REQ7" {
		t.Errorf("an unknown failure shows %q", err)
	}
	if log := b.log.String(); !strings.Contains(log, "hunter2") || !strings.Contains(log, "REQ7") {
		t.Errorf("the log does not have it: %s", log)
	}
}

// Promise: what Rotunda did not foresee reaches the log and never a caller.
func TestGetKeysetWhenTableIsMissing(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "payments")
		err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Exec(ctx, `ALTER TABLE signing_keys RENAME TO hidden`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		a := b.post(t, b.admin, home, v1connect.KeysetServiceGetKeysetProcedure, `{"name":"payments"}`)
		id := a.header.Get("X-Request-Id")
		if a.status != http.StatusInternalServerError || a.code != "internal" || a.message != "internal error: the server's log has it under request id "+id || a.problem.GetReason() != "internal" {
			t.Errorf("got %d %s %q", a.status, a.code, a.body)
		}
		if log := b.log.String(); !strings.Contains(log, "signing_keys") || !strings.Contains(log, id) {
			t.Errorf("the log does not have it: %s", log)
		}
	})
}

func TestRequestWhenNotValid(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "payments")
		before := len(b.events(t, audit.Query{}))
		for _, c := range []struct{ procedure, body, field, reason string }{
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"Bad Name","issuer":"https://x.example","policy":{}}`, "name", "bad_name"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"` + strings.Repeat("a", 64) + `","issuer":"https://x.example","policy":{}}`, "name", "string_max_len"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"x","policy":{}}`, "issuer", "string_min_len"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"x","issuer":"https://x.example"}`, "policy", "required"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"x","issuer":"ftp://x.example","policy":{}}`, "issuer", "bad_issuer"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"x","issuer":"https://x.example","algorithm":"none","policy":{}}`, "algorithm", "unknown_algorithm"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"x","issuer":"https://x.example","policy":{"profiles":[{"name":"envoy"},{"name":""}]}}`, "policy.profiles[1].name", "string_min_len"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"x","issuer":"https://x.example","policy":{"profiles":[{"name":"nobody"}]}}`, "policy.profiles", "unknown_profile"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"x","issuer":"https://x.example","policy":{"tokenTtl":"315000000000s"}}`, "policy.token_ttl", "duration_range"},
			{v1connect.KeysetServiceCreateKeysetProcedure, `{"name":"x","issuer":"https://x.example","policy":{"fallback":7}}`, "policy.fallback", "unknown_value"},
			{v1connect.KeysetServiceUpdatePolicyProcedure, `{"name":"payments","policy":{},"policyVersion":"-1"}`, "policy_version", "int64_gte"},
			{v1connect.KeysetServiceRevokeKeyProcedure, `{"name":"payments","kid":"k","mode":9}`, "mode", "enum_defined_only"},
			{v1connect.KeysetServiceSignProcedure, `{"name":"payments","ttl":"-1s"}`, "ttl", "duration_range"},
			{v1connect.KeysetServiceSignProcedure, `{"name":"payments","claims":"` + strings.Repeat("x", 16385) + `"}`, "claims", "string_max_len"},
			{v1connect.KeysetServiceSignProcedure, `{"name":"payments","claims":"[]"}`, "claims", "bad_claims"},
			{v1connect.KeysetServiceListKeysetsProcedure, `{"pageToken":"!"}`, "page_token", "bad_page_token"},
			{v1connect.KeysetServiceListKeysetsProcedure, `{"pageSize":201}`, "page_size", "int32_gte_lte"},
			{v1connect.KeysetServiceListKeysProcedure, `{"name":"payments","pageToken":"x"}`, "page_token", "bad_page_token"},
			{v1connect.KeysetServiceListHistoryProcedure, `{"name":"payments","pageToken":"!"}`, "page_token", "bad_page_token"},
			{v1connect.KeysetServiceWatchProcedure, `{"name":"payments","afterVersion":"-1"}`, "after_version", "int64_gte"},
			{v1connect.AuditServiceListEventsProcedure, `{"pageSize":1001}`, "page_size", "int32_gte_lte"},
			{v1connect.AuditServiceListEventsProcedure, `{"pageToken":"AAAA"}`, "page_token", "bad_page_token"},
			{v1connect.TokenServiceListTokensProcedure, `{"pageToken":"AAAA"}`, "page_token", "bad_page_token"},
			{v1connect.TokenServiceCreateTokenProcedure, `{"name":"x"}`, "role", "enum_not_in"},
			{v1connect.TokenServiceCreateTokenProcedure, `{"name":"x","role":"ROLE_ADMIN","keysets":["payments"]}`, "keysets", "keysets_not_for_role"},
			{v1connect.TokenServiceCreateTokenProcedure, `{"name":"x","role":"ROLE_GATEWAY","cidrs":["10.0.0.0/33"]}`, "cidrs", "bad_cidr"},
			{v1connect.TokenServiceRevokeTokenProcedure, `{"id":""}`, "id", "string_min_len"},
		} {
			var a answer
			if c.procedure == v1connect.KeysetServiceWatchProcedure {
				stream, err := b.keysets(b.admin).Watch(t.Context(), connect.NewRequest(&rotundav1.WatchRequest{Name: "payments", AfterVersion: -1}))
				if err != nil {
					t.Fatal(err)
				}
				stream.Receive()
				code, p := problemOf(t, stream.Err())
				a = answer{code: code.String(), problem: p}
			} else {
				a = b.post(t, b.admin, home, c.procedure, c.body)
			}
			if a.code != "invalid_argument" || a.problem.GetField() != c.field || a.problem.GetReason() != c.reason {
				t.Errorf("%s %.80s: %s, field %q, reason %q (%s), want field %q, reason %q", c.procedure, c.body, a.code, a.problem.GetField(), a.problem.GetReason(), a.message, c.field, c.reason)
			}
		}
		if after := len(b.events(t, audit.Query{})); after != before {
			t.Errorf("%d events more: something was stored", after-before)
		}
	})
}

func TestRequestWhenNotReadable(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	send := func(method, path, kind, coding string, body []byte) answer {
		req, err := http.NewRequestWithContext(t.Context(), method, b.http.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if kind != "" {
			req.Header.Set("Content-Type", kind)
		}
		if coding != "" {
			req.Header.Set("Content-Encoding", coding)
		}
		return do(t, as(b.admin, home), req)
	}
	big := []byte(`{"name":"` + strings.Repeat("a", maxBody) + `"}`)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 64 { // 8 MiB of a few KiB
		if _, err := z.Write(bytes.Repeat([]byte(" "), maxBody)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	get := v1connect.KeysetServiceGetKeysetProcedure
	for _, c := range []struct {
		name string
		a    answer
		want int
		code string
	}{
		{"too large", send("POST", get, "application/json", "", big), http.StatusTooManyRequests, "resource_exhausted"},
		{"small, but large when unpacked", send("POST", get, "application/json", "gzip", bomb.Bytes()), http.StatusTooManyRequests, "resource_exhausted"},
		{"no JSON", send("POST", get, "application/json", "", []byte("{")), http.StatusBadRequest, "invalid_argument"},
		{"unknown coding", send("POST", get, "application/json", "br", []byte("{}")), http.StatusNotImplemented, "unimplemented"},
		{"text", send("POST", get, "text/plain", "", []byte("{}")), http.StatusUnsupportedMediaType, ""},
		{"no type", send("POST", get, "", "", []byte("{}")), http.StatusUnsupportedMediaType, ""},
		{"PUT", send("PUT", get, "application/json", "", []byte("{}")), http.StatusMethodNotAllowed, ""},
		{"GET of what has effects", send("GET", v1connect.KeysetServiceRotateKeysetProcedure+"?connect=v1&encoding=json&message=%7B%7D", "", "", nil), http.StatusMethodNotAllowed, ""},
		{"no such procedure", send("POST", "/rotunda.v1.KeysetService/Nothing", "application/json", "", []byte("{}")), http.StatusNotFound, ""},
	} {
		if c.a.status != c.want || c.a.code != c.code {
			t.Errorf("%s: %d %s %.200s, want %d %s", c.name, c.a.status, c.a.code, c.a.body, c.want, c.code)
		}
		if c.a.header.Get("X-Request-Id") == "" {
			t.Errorf("%s: no request id", c.name)
		}
	}
}

// h2c speaks HTTP/2 without TLS.
func h2c(token string) *http.Client {
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &identity{token: token, from: home, next: &http.Transport{Protocols: &only}}}
}

type methodSeen struct {
	next http.RoundTripper
	last string
}

func (m *methodSeen) RoundTrip(r *http.Request) (*http.Response, error) {
	m.last = r.Method
	return m.next.RoundTrip(r)
}

// Promise: every protocol of the API works, with the same errors.
func TestProtocolsWhenEachIsSpoken(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	set := b.keyset(t, "payments")
	for _, c := range []struct {
		name    string
		http2   bool
		method  string
		options []connect.ClientOption
	}{
		{"Connect JSON over HTTP/1.1", false, "POST", []connect.ClientOption{connect.WithProtoJSON()}},
		{"Connect over HTTP/1.1", false, "POST", nil},
		{"Connect over h2c", true, "POST", nil},
		{"Connect GET", false, "GET", []connect.ClientOption{connect.WithHTTPGet()}},
		{"Connect GET, JSON", false, "GET", []connect.ClientOption{connect.WithHTTPGet(), connect.WithProtoJSON()}},
		{"gRPC over h2c", true, "POST", []connect.ClientOption{connect.WithGRPC()}},
		{"gRPC-Web", false, "POST", []connect.ClientOption{connect.WithGRPCWeb()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := func(token string) (v1connect.KeysetServiceClient, *methodSeen) {
				hc := as(token, home)
				if c.http2 {
					hc = h2c(token)
				}
				seen := &methodSeen{next: hc.Transport}
				hc.Transport = seen
				return v1connect.NewKeysetServiceClient(hc, b.http.URL, c.options...), seen
			}
			keysets, seen := client(b.admin)
			got, err := keysets.GetKeyset(t.Context(), connect.NewRequest(&rotundav1.GetKeysetRequest{Name: "payments"}))
			if err != nil {
				t.Fatal(err)
			}
			if got.Msg.GetKeyset().GetId() != set.ID || seen.last != c.method {
				t.Errorf("got keyset %s by %s", got.Msg.GetKeyset().GetId(), seen.last)
			}
			_, err = keysets.GetKeyset(t.Context(), connect.NewRequest(&rotundav1.GetKeysetRequest{Name: "absent"}))
			if p := wantProblem(t, err, connect.CodeNotFound, "keyset_not_found"); p.GetField() != "name" || p.GetRequestId() == "" {
				t.Errorf("detail %v", p)
			}
			signed, err := keysets.Sign(t.Context(), connect.NewRequest(&rotundav1.SignRequest{Name: "payments", Claims: `{}`, Ttl: durationpb.New(time.Minute)}))
			if err != nil || signed.Msg.GetKid() != set.Active().Kid {
				t.Errorf("sign: %v %v", signed, err)
			}
			stream, err := keysets.Watch(t.Context(), connect.NewRequest(&rotundav1.WatchRequest{Name: "payments"}))
			if err != nil || !stream.Receive() || stream.Msg().GetVersion() != set.Version {
				t.Errorf("watch: %v %v", stream.Msg(), err)
			}
			if err := stream.Close(); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}

			stranger, _ := client("")
			_, err = stranger.GetKeyset(t.Context(), connect.NewRequest(&rotundav1.GetKeysetRequest{Name: "payments"}))
			wantProblem(t, err, connect.CodeUnauthenticated, "unauthenticated")
			stream, err = stranger.Watch(t.Context(), connect.NewRequest(&rotundav1.WatchRequest{Name: "payments"}))
			if err != nil {
				t.Fatal(err)
			}
			if stream.Receive() {
				t.Error("a stranger watches")
			}
			wantProblem(t, stream.Err(), connect.CodeUnauthenticated, "unauthenticated")
		})
	}
}

func TestHealthWhenAsked(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	for body, want := range map[string]string{
		`{}`: "SERVING_STATUS_SERVING", `{"service":"rotunda.v1.KeysetService"}`: "SERVING_STATUS_SERVING", `{"service":"nothing"}`: "not_found",
	} {
		if a := b.post(t, "", home, "/grpc.health.v1.Health/Check", body); !strings.Contains(a.body, want) && !strings.Contains(a.body, strings.TrimPrefix(want, "SERVING_STATUS_")) {
			t.Errorf("%s: %s, want %s", body, a.body, want)
		}
	}
	for _, path := range []string{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/debug/pprof/", "/", "/metrics"} {
		if a := b.get(t, "", home, path); a.status != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d", path, a.status)
		}
	}
}

func withKey[T any](m *T, key string) *connect.Request[T] {
	r := connect.NewRequest(m)
	r.Header().Set("Idempotency-Key", key)
	return r
}

// Promise: a create that is sent twice makes one thing.
func TestCreatesWhenRepeated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ctx := t.Context()
		one := b.keysets(b.token(t, apikeys.Create{Role: apikeys.Operator}))
		two := b.keysets(b.token(t, apikeys.Create{Role: apikeys.Operator}))
		create := func(name string) *rotundav1.CreateKeysetRequest {
			return &rotundav1.CreateKeysetRequest{Name: name, Issuer: "https://auth.example.com", Policy: &rotundav1.Policy{TokenTtl: durationpb.New(time.Minute)}}
		}
		first, err := one.CreateKeyset(ctx, withKey(create("a"), "K1"))
		if err != nil {
			t.Fatal(err)
		}
		again, err := one.CreateKeyset(ctx, withKey(create("a"), "K1"))
		if err != nil {
			t.Fatal(err)
		}
		if f, a := first.Msg.GetKeyset(), again.Msg.GetKeyset(); f.GetId() != a.GetId() || f.GetVersion() != a.GetVersion() || f.GetKeys()[0].GetKid() != a.GetKeys()[0].GetKid() {
			t.Errorf("the repetition made another:\n%v\n%v", f, a)
		}
		_, err = one.CreateKeyset(ctx, withKey(create("b"), "K1"))
		wantProblem(t, err, connect.CodeInvalidArgument, "idempotency_key_reused")
		if _, err := two.CreateKeyset(ctx, withKey(create("b"), "K1")); err != nil {
			t.Errorf("another caller's key is in the way: %v", err)
		}
		_, err = two.CreateKeyset(ctx, withKey(create("a"), "K2"))
		wantProblem(t, err, connect.CodeAlreadyExists, "name_taken")
		_, err = one.CreateKeyset(ctx, withKey(create("c"), strings.Repeat("k", 256)))
		wantProblem(t, err, connect.CodeInvalidArgument, "idempotency_key_invalid")

		bring := &rotundav1.ImportKeyRequest{Name: "a", Key: newJWK(t, true), State: rotundav1.KeyState_KEY_STATE_RETIRING, MaxTokenLife: durationpb.New(time.Hour)}
		key := bring.GetKey()
		imported, err := one.ImportKey(ctx, withKey(bring, "K1"))
		if err != nil {
			t.Fatal(err)
		}
		bring.Key = key
		repeated, err := one.ImportKey(ctx, withKey(bring, "K1"))
		if err != nil || repeated.Msg.GetKid() != imported.Msg.GetKid() || repeated.Msg.GetKeyset().GetVersion() != imported.Msg.GetKeyset().GetVersion() {
			t.Errorf("the repeated import: %v, %v", repeated, err)
		}
		bring.Key = newJWK(t, true)
		_, err = one.ImportKey(ctx, withKey(bring, "K1"))
		wantProblem(t, err, connect.CodeInvalidArgument, "idempotency_key_reused")

		token := &rotundav1.CreateTokenRequest{Name: "x", Role: rotundav1.Role_ROLE_AUDITOR}
		made, err := b.tokens(b.admin).CreateToken(ctx, withKey(token, "K1"))
		if err != nil {
			t.Fatal(err)
		}
		if got := made.Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("a response with a secret has Cache-Control %q", got)
		}
		_, err = b.tokens(b.admin).CreateToken(ctx, withKey(token, "K1"))
		if p := wantProblem(t, err, connect.CodeAlreadyExists, "value_shown_once"); p.GetField() != "idempotency_key" || !strings.Contains(err.Error(), made.Msg.GetToken().GetId()) {
			t.Errorf("detail %v of %v", p, err)
		}

		counts := map[string]int{}
		for _, e := range b.events(t, audit.Query{Outcome: audit.OK}) {
			counts[e.Action+" "+e.Resource]++
		}
		for _, e := range []string{"keyset.create keysets/a", "keyset.create keysets/b", "keyset.import_key keysets/a/keys/" + imported.Msg.GetKid(), "token.create tokens/" + made.Msg.GetToken().GetId()} {
			if counts[e] != 1 {
				t.Errorf("%d events %q, want 1", counts[e], e)
			}
		}
	})
}

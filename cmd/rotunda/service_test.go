package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

var update = flag.Bool("update", false, "write the goldens in testdata")

// testNow is the time of every run.
var testNow = time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)

// testToken is as long as a real one, so that a leak of it is noticed.
const testToken = "rk_live_0123456789_this-value-must-stay-secret"

// service answers calls and records them.
type service struct {
	v1connect.UnimplementedKeysetServiceHandler
	v1connect.UnimplementedTokenServiceHandler
	v1connect.UnimplementedAuditServiceHandler
	v1connect.UnimplementedTrailServiceHandler
	v1connect.UnimplementedPartnerServiceHandler
	v1connect.UnimplementedApiKeyServiceHandler
	v1connect.UnimplementedRequestSecretServiceHandler
	v1connect.UnimplementedPepperServiceHandler
	v1connect.UnimplementedVerificationServiceHandler
	v1connect.UnimplementedStoreServiceHandler
	v1connect.UnimplementedTargetServiceHandler
	v1connect.UnimplementedCredentialServiceHandler
	v1connect.UnimplementedRotationServiceHandler
	v1connect.UnimplementedEndpointServiceHandler

	URL string
	// reply overrides the answers; nil, nil means the usual one.
	reply func(ctx context.Context, req proto.Message) (proto.Message, error)
	watch func(*v1.WatchRequest, *connect.ServerStream[v1.WatchResponse]) error
	ready func(http.ResponseWriter)
	// rotation answers who watches a rotation.
	rotation func(context.Context, *v1.WatchRotationRequest, *connect.ServerStream[v1.WatchRotationResponse]) error
	// metrics answers instead of the usual ones.
	metrics func(http.ResponseWriter)
	// follow and export answer with streams.
	follow func(context.Context, *v1.FollowEventsRequest, *connect.ServerStream[v1.FollowEventsResponse]) error
	export func(*v1.ExportEventsRequest, *connect.ServerStream[v1.ExportEventsResponse]) error

	mu      sync.Mutex
	calls   []proto.Message
	headers []http.Header
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{}
	srv := httptest.NewServer(s.mux())
	t.Cleanup(srv.Close)
	s.URL = srv.URL
	return s
}

func (s *service) mux() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(v1connect.NewKeysetServiceHandler(s))
	mux.Handle(v1connect.NewTokenServiceHandler(s))
	mux.Handle(v1connect.NewAuditServiceHandler(s))
	mux.Handle(v1connect.NewTrailServiceHandler(s))
	mux.Handle(v1connect.NewPartnerServiceHandler(s))
	mux.Handle(v1connect.NewApiKeyServiceHandler(s))
	mux.Handle(v1connect.NewRequestSecretServiceHandler(s))
	mux.Handle(v1connect.NewPepperServiceHandler(s))
	mux.Handle(v1connect.NewVerificationServiceHandler(s))
	mux.Handle(v1connect.NewStoreServiceHandler(s))
	mux.Handle(v1connect.NewTargetServiceHandler(s))
	mux.Handle(v1connect.NewCredentialServiceHandler(s))
	mux.Handle(v1connect.NewRotationServiceHandler(s))
	mux.Handle(v1connect.NewEndpointServiceHandler(s))
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if s.metrics != nil {
			s.metrics(w)
		} else if r.Header.Get("Authorization") != "" {
			_, _ = io.WriteString(w, "# HELP rotunda_verifier_behind_seconds How long ago.\n# TYPE rotunda_verifier_behind_seconds gauge\nrotunda_verifier_behind_seconds 0.25\n")
		}
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", testNow.Format(http.TimeFormat))
		if s.ready != nil {
			s.ready(w)
		}
	})
	return mux
}

func (s *service) record(msg proto.Message, h http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, msg)
	s.headers = append(s.headers, h)
}

// last returns the last request, and its header.
func (s *service) last(t *testing.T) (proto.Message, http.Header) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.calls) == 0 {
		t.Fatal("the server was not called")
	}
	return s.calls[len(s.calls)-1], s.headers[len(s.headers)-1]
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func respond[Req, Res any](ctx context.Context, s *service, req *connect.Request[Req]) (*connect.Response[Res], error) {
	msg := req.Any().(proto.Message)
	s.record(msg, req.Header())
	var res proto.Message
	var err error
	if s.reply != nil {
		res, err = s.reply(ctx, msg)
	}
	if err != nil {
		return nil, err
	}
	if res == nil {
		res = usual(msg)
	}
	return connect.NewResponse(any(res).(*Res)), nil
}

func (s *service) CreateKeyset(ctx context.Context, r *connect.Request[v1.CreateKeysetRequest]) (*connect.Response[v1.CreateKeysetResponse], error) {
	return respond[v1.CreateKeysetRequest, v1.CreateKeysetResponse](ctx, s, r)
}

func (s *service) GetKeyset(ctx context.Context, r *connect.Request[v1.GetKeysetRequest]) (*connect.Response[v1.GetKeysetResponse], error) {
	return respond[v1.GetKeysetRequest, v1.GetKeysetResponse](ctx, s, r)
}

func (s *service) ListKeysets(ctx context.Context, r *connect.Request[v1.ListKeysetsRequest]) (*connect.Response[v1.ListKeysetsResponse], error) {
	return respond[v1.ListKeysetsRequest, v1.ListKeysetsResponse](ctx, s, r)
}

func (s *service) UpdatePolicy(ctx context.Context, r *connect.Request[v1.UpdatePolicyRequest]) (*connect.Response[v1.UpdatePolicyResponse], error) {
	return respond[v1.UpdatePolicyRequest, v1.UpdatePolicyResponse](ctx, s, r)
}

func (s *service) RotateKeyset(ctx context.Context, r *connect.Request[v1.RotateKeysetRequest]) (*connect.Response[v1.RotateKeysetResponse], error) {
	return respond[v1.RotateKeysetRequest, v1.RotateKeysetResponse](ctx, s, r)
}

func (s *service) RevokeKey(ctx context.Context, r *connect.Request[v1.RevokeKeyRequest]) (*connect.Response[v1.RevokeKeyResponse], error) {
	return respond[v1.RevokeKeyRequest, v1.RevokeKeyResponse](ctx, s, r)
}

func (s *service) ImportKey(ctx context.Context, r *connect.Request[v1.ImportKeyRequest]) (*connect.Response[v1.ImportKeyResponse], error) {
	return respond[v1.ImportKeyRequest, v1.ImportKeyResponse](ctx, s, r)
}

func (s *service) ListKeys(ctx context.Context, r *connect.Request[v1.ListKeysRequest]) (*connect.Response[v1.ListKeysResponse], error) {
	return respond[v1.ListKeysRequest, v1.ListKeysResponse](ctx, s, r)
}

func (s *service) ListHistory(ctx context.Context, r *connect.Request[v1.ListHistoryRequest]) (*connect.Response[v1.ListHistoryResponse], error) {
	return respond[v1.ListHistoryRequest, v1.ListHistoryResponse](ctx, s, r)
}

func (s *service) ListProfiles(ctx context.Context, r *connect.Request[v1.ListProfilesRequest]) (*connect.Response[v1.ListProfilesResponse], error) {
	return respond[v1.ListProfilesRequest, v1.ListProfilesResponse](ctx, s, r)
}

func (s *service) Sign(ctx context.Context, r *connect.Request[v1.SignRequest]) (*connect.Response[v1.SignResponse], error) {
	return respond[v1.SignRequest, v1.SignResponse](ctx, s, r)
}

func (s *service) Watch(_ context.Context, r *connect.Request[v1.WatchRequest], stream *connect.ServerStream[v1.WatchResponse]) error {
	s.record(r.Msg, r.Header())
	if s.watch == nil {
		return connect.NewError(connect.CodeNotFound, errors.New("no such keyset"))
	}
	return s.watch(r.Msg, stream)
}

func (s *service) CreateToken(ctx context.Context, r *connect.Request[v1.CreateTokenRequest]) (*connect.Response[v1.CreateTokenResponse], error) {
	return respond[v1.CreateTokenRequest, v1.CreateTokenResponse](ctx, s, r)
}

func (s *service) ListTokens(ctx context.Context, r *connect.Request[v1.ListTokensRequest]) (*connect.Response[v1.ListTokensResponse], error) {
	return respond[v1.ListTokensRequest, v1.ListTokensResponse](ctx, s, r)
}

func (s *service) RevokeToken(ctx context.Context, r *connect.Request[v1.RevokeTokenRequest]) (*connect.Response[v1.RevokeTokenResponse], error) {
	return respond[v1.RevokeTokenRequest, v1.RevokeTokenResponse](ctx, s, r)
}

func (s *service) WhoAmI(ctx context.Context, r *connect.Request[v1.WhoAmIRequest]) (*connect.Response[v1.WhoAmIResponse], error) {
	return respond[v1.WhoAmIRequest, v1.WhoAmIResponse](ctx, s, r)
}

func (s *service) ListEvents(ctx context.Context, r *connect.Request[v1.ListEventsRequest]) (*connect.Response[v1.ListEventsResponse], error) {
	return respond[v1.ListEventsRequest, v1.ListEventsResponse](ctx, s, r)
}

const (
	activeKid  = "M1nZb8mN0p7fKq3w2xYd5sRt9uVc4bLe6aGhJkTiOoQ"
	pendingKid = "-kQ2w9ErTyUiOpAsDfGhJkLzXcVbNm1234567890abc"
	edgeID     = "4fKq3w2xYd5sRt9u"
)

func at(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(testNow.Add(d)) }

func dur(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

func payments() *v1.Keyset {
	return &v1.Keyset{
		Id: "ks_1", Name: "payments", Issuer: "https://auth.example.com", Algorithm: "ES256",
		Version: 4, PolicyVersion: 7, CreatedAt: at(-75 * time.Hour), NextAt: at(29*day + 23*time.Hour),
		Policy: &v1.Policy{
			Rotate: &v1.Schedule{Every: dur(720 * time.Hour)}, TokenTtl: dur(time.Hour),
			Profiles: []*v1.Profile{{Name: "envoy", Cache: dur(5 * time.Minute)}, {Name: "go-oidc"}},
		},
		Timing: &v1.Timing{
			PublishAhead: dur(16*time.Minute + 35*time.Second), RetireAfter: dur(62 * time.Minute), MaxAge: dur(5 * time.Minute),
			Profiles: []*v1.ProfileTiming{
				{Name: "envoy", Lead: dur(16*time.Minute + 35*time.Second), ReachStandby: dur(5*time.Minute + 11*time.Second), ReachFresh: dur(5*time.Minute + 11*time.Second), RefusalFresh: dur(5*time.Minute + 11*time.Second), Note: "never refetches on an unknown kid; each worker thread caches on its own"},
				{Name: "go-oidc", Lead: dur(15 * time.Minute), RefusalFresh: dur(0), Note: "a removed key stays trusted until an unknown kid arrives or the process restarts"},
			},
			Warnings: []string{"consumer go-oidc drops a revoked key only when it meets an unknown kid"},
		},
		Keys: []*v1.Key{
			{Kid: activeKid, State: v1.KeyState_KEY_STATE_ACTIVE, Algorithm: "ES256", Since: at(-time.Hour), ServedSince: at(-75 * time.Hour), Origin: "generated", Home: "local",
				Next: &v1.NextMove{State: v1.KeyState_KEY_STATE_RETIRING, At: at(29*day + 23*time.Hour), Why: "when its successor signs"}},
			{Kid: pendingKid, State: v1.KeyState_KEY_STATE_PENDING, Algorithm: "ES256", Since: at(-30 * time.Second), ServedSince: at(-20 * time.Second), Origin: "generated", Home: "local",
				Next: &v1.NextMove{State: v1.KeyState_KEY_STATE_ACTIVE, At: at(29*day + 23*time.Hour), Why: "rotates every 720h0m0s; its lead of 16m35s ends at 2026-11-22T03:16:15Z"}},
			{Kid: "old-2023", State: v1.KeyState_KEY_STATE_RETIRING, Algorithm: "ES256", Since: at(-3 * time.Hour), Origin: "imported", Home: "none", Reason: "moved from the old issuer",
				Next: &v1.NextMove{State: v1.KeyState_KEY_STATE_RETIRED, At: at(-2 * time.Minute), Why: "its tokens live up to 1h"}},
		},
	}
}

func revokePlan(req *v1.RevokeKeyRequest) *v1.RevokeKeyResponse {
	res := &v1.RevokeKeyResponse{
		OutstandingTokens: 1204, SignRate: 3.25,
		Plans: []*v1.RevokeModePlan{
			{Mode: v1.RevokeMode_REVOKE_MODE_STANDBY, Possible: true, Predictions: []*v1.RevokePrediction{
				{Profile: "envoy", Exposure: dur(5*time.Minute + 11*time.Second), Refusal: dur(4*time.Minute + 51*time.Second), RefusedNewTokens: 945.75, Note: "refreshes on a timer"},
				{Profile: "go-oidc", ExposureUnbounded: true, Refusal: dur(200 * time.Millisecond), RefusedNewTokens: 0.67},
			}},
			{Mode: v1.RevokeMode_REVOKE_MODE_FRESH, Possible: true, Predictions: []*v1.RevokePrediction{
				{Profile: "envoy", Exposure: dur(5*time.Minute + 11*time.Second), Refusal: dur(5*time.Minute + 11*time.Second), RefusedNewTokens: 1010.75, Note: "refreshes on a timer"},
				{Profile: "go-oidc", ExposureUnbounded: true, Refusal: dur(0)},
			}},
		},
	}
	if req.GetKid() != activeKid { // it does not sign, so nothing else changes
		res.Plans[0].Mode, res.OutstandingTokens = v1.RevokeMode_REVOKE_MODE_UNSPECIFIED, 1
		for _, p := range res.Plans[0].Predictions {
			p.Refusal, p.RefusedNewTokens = dur(0), 0
		}
	}
	if !req.GetDryRun() {
		res.Keyset = payments()
	}
	return res
}

func edgeToken() *v1.Token {
	return &v1.Token{Id: edgeID, Name: "edge-1", Role: v1.Role_ROLE_GATEWAY, State: "active", Cidrs: []string{"10.0.0.0/8"}, CreatedAt: at(-day), ExpiresAt: at(90 * day), LastUsedAt: at(-5 * time.Second)}
}

// usual answers a request as a server with one keyset would.
func usual(req proto.Message) proto.Message {
	switch req := req.(type) {
	case *v1.CreateKeysetRequest:
		return &v1.CreateKeysetResponse{Keyset: payments()}
	case *v1.GetKeysetRequest:
		return &v1.GetKeysetResponse{Keyset: payments()}
	case *v1.ListKeysetsRequest:
		return &v1.ListKeysetsResponse{Keysets: []*v1.Keyset{payments()}}
	case *v1.UpdatePolicyRequest:
		k := payments()
		k.Policy = req.GetPolicy()
		k.Timing.RetireAfter = dur(32 * time.Minute)
		k.Timing.Profiles[0].Lead = dur(12 * time.Minute)
		k.Timing.Profiles[1] = &v1.ProfileTiming{Name: "jose", Lead: dur(11 * time.Minute), ReachStandby: dur(10 * time.Minute), ReachFresh: dur(30 * time.Second), RefusalFresh: dur(30 * time.Second)}
		k.PolicyVersion++
		return &v1.UpdatePolicyResponse{Keyset: k}
	case *v1.RotateKeysetRequest:
		return &v1.RotateKeysetResponse{Keyset: payments()}
	case *v1.RevokeKeyRequest:
		return revokePlan(req)
	case *v1.ImportKeyRequest:
		return &v1.ImportKeyResponse{Keyset: payments(), Kid: "old-2023"}
	case *v1.ListKeysRequest:
		return &v1.ListKeysResponse{Keys: payments().Keys}
	case *v1.ListHistoryRequest:
		return &v1.ListHistoryResponse{Keys: []*v1.Key{
			{Kid: "gone", State: v1.KeyState_KEY_STATE_RETIRED, Algorithm: "ES256", ActivatedAt: at(-40 * day), WithdrawnAt: at(-10 * day)},
			{Kid: "stolen", State: v1.KeyState_KEY_STATE_REVOKED, Algorithm: "ES256", ActivatedAt: at(-50 * day), WithdrawnAt: at(-40 * day), Reason: "key_compromise"},
		}}
	case *v1.ListProfilesRequest:
		return &v1.ListProfilesResponse{Profiles: []*v1.ProfileInfo{
			{Name: "envoy", Title: "Envoy jwt_authn remote_jwks", Cache: dur(10 * time.Minute), Note: "never refetches on an unknown kid", Timing: payments().Timing.Profiles[0]},
			{Name: "go-oidc", Title: "coreos/go-oidc v3.21 RemoteKeySet", RefetchesOnUnknownKid: true, Timing: payments().Timing.Profiles[1]},
			{Name: "step-ca", Title: "smallstep step-ca", HonoursMaxAge: true, RefetchesOnUnknownKid: true, Throttle: dur(30 * time.Second), Timing: &v1.ProfileTiming{Lead: dur(time.Minute)}},
		}}
	case *v1.SignRequest:
		return &v1.SignResponse{Token: "e30.e30.c2ln", Kid: activeKid, ExpiresAt: at(10 * time.Minute)}
	case *v1.CreateTokenRequest:
		return &v1.CreateTokenResponse{Token: edgeToken(), Value: "rk_live_new-value"}
	case *v1.ListTokensRequest:
		return &v1.ListTokensResponse{Tokens: []*v1.Token{edgeToken()}}
	case *v1.RevokeTokenRequest:
		t := edgeToken()
		t.State, t.RevokedAt, t.Reason = "revoked", at(0), req.GetReason()
		return &v1.RevokeTokenResponse{Token: t}
	case *v1.WhoAmIRequest:
		return &v1.WhoAmIResponse{Token: edgeToken()}
	case *v1.ListEventsRequest:
		return &v1.ListEventsResponse{Events: []*v1.Event{
			{Id: "2", Index: 2, Time: at(-time.Minute), Actor: "tok_09", Action: "keyset.rotate", Resource: "keysets/payments", Outcome: "denied", Reason: "role_too_small", Count: 3},
			{Id: "1", Index: 1, Time: at(-time.Hour), Actor: "rotunda", Action: "signing_key.active", Resource: "keysets/payments/keys/" + activeKid, Outcome: "ok"},
		}}
	default:
		return usualTrail(req)
	}
}

// result is what a run left behind.
type result struct {
	code           int
	stdout, stderr string
}

// newProcess is a process without a terminal, an environment or files.
func newProcess(t *testing.T, s *service) (process, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	env := map[string]string{"ROTUNDA_TOKEN": testToken, "ROTUNDA_DATA_DIR": filepath.Join(t.TempDir(), "none")}
	if s != nil {
		env["ROTUNDA_SERVER"] = s.URL
	}
	return process{
		env:   func(name string) string { return env[name] },
		now:   func() time.Time { return testNow },
		stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr,
	}, &stdout, &stderr
}

// execute runs a command line; change adapts the process.
func execute(t *testing.T, s *service, change func(*process), args ...string) result {
	t.Helper()
	p, stdout, stderr := newProcess(t, s)
	if change != nil {
		change(&p)
	}
	code := run(t.Context(), args, p)
	r := result{code, stdout.String(), stderr.String()}
	if strings.Contains(r.stdout+r.stderr, testToken) {
		t.Errorf("%q printed the access token:\n%s%s", args, r.stdout, r.stderr)
	}
	return r
}

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got); if this is meant, run: go test ./cmd/rotunda -update\n%s", file, diff)
	}
}

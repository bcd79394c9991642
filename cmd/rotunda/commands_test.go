package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func TestOutputWhenCommandSucceeds(t *testing.T) {
	s := newService(t)
	for name, args := range map[string][]string{
		"create":               {"keyset", "create", "payments", "--issuer", "https://auth.example.com", "--token-ttl", "1h", "--dry-run"},
		"list":                 {"keyset", "list"},
		"show":                 {"keyset", "show", "payments"},
		"show.json":            {"keyset", "show", "payments", "-o", "json"},
		"show.yaml":            {"keyset", "show", "payments", "-o", "yaml"},
		"policy":               {"keyset", "policy", "payments"},
		"policy-dry-run":       {"keyset", "policy", "payments", "--token-ttl", "30m", "--profile", "envoy", "--profile", "jose", "--dry-run"},
		"policy-changed":       {"keyset", "policy", "payments", "--token-ttl", "30m"},
		"rotate":               {"keyset", "rotate", "payments"},
		"revoke-dry-run":       {"keyset", "revoke", "payments", activeKid, "--dry-run"},
		"revoke-dry-idle":      {"keyset", "revoke", "payments", "old-2023", "--dry-run"},
		"revoke-idle":          {"keyset", "revoke", "payments", "old-2023", "--reason", "superseded", "--yes"},
		"revoke-dry-hyphen":    {"keyset", "revoke", "payments", pendingKid, "--mode", "fresh", "--reason", "superseded", "--comment", "it's gone", "--dry-run"},
		"revoke":               {"keyset", "revoke", "payments", activeKid, "--mode", "fresh", "--reason", "key_compromise"},
		"keys":                 {"keyset", "keys", "payments"},
		"history":              {"keyset", "history", "payments"},
		"profiles":             {"keyset", "profiles"},
		"sign":                 {"sign", "payments", "--claims", `{"sub":"order-7"}`, "--ttl", "10m"},
		"token-create":         {"token", "create", "edge-1", "--role", "gateway"},
		"token-list":           {"token", "list"},
		"token-revoke":         {"token", "revoke", edgeID, "--reason", "superseded"},
		"whoami":               {"token", "whoami"},
		"audit":                {"audit", "list", "--since", "30d"},
		"audit-index":          {"audit", "list", "--index"},
		"audit-status":         {"audit", "status"},
		"audit-key":            {"audit", "key", "--all"},
		"audit-checkpoint":     {"audit", "checkpoint"},
		"audit-prove":          {"audit", "prove", "0191f3c2-7a64-7c0e-8a55-000000000002"},
		"audit-open-intents":   {"audit", "open-intents"},
		"audit-evidence":       {"audit", "evidence", "tokens/4fKq3w2xYd5sRt9u", "--since", "30d"},
		"audit-sinks":          {"audit", "sink", "list"},
		"audit-anchors":        {"audit", "anchor", "list"},
		"audit-witnesses":      {"audit", "witness", "list"},
		"audit-retention":      {"audit", "retention", "show"},
		"audit-retention-dry":  {"audit", "retention", "set", "400d", "--dry-run"},
		"audit-holds":          {"audit", "hold", "list"},
		"audit-erase-dry":      {"audit", "erase", "--field", "address", "--actor", "4fKq3w2xYd5sRt9u", "--reason", "DSR-31", "--dry-run"},
		"audit-restart":        {"audit", "restart", "--reason", "restored the backup", "--yes"},
		"partner-create":       {"partner", "create", "acme", "--scope", "orders:read"},
		"partner-get":          {"partner", "get", "acme"},
		"partner-list":         {"partner", "list"},
		"partner-suspend":      {"partner", "suspend", "acme", "--reason", "their CI was broken into"},
		"token-create-partner": {"token", "create", "--role", "partner", "--partner", "acme"},
		"key-create":           {"key", "create", "--name", "ci", "--scope", "orders:read"},
		"key-list":             {"key", "list"},
		"key-get":              {"key", "get", keyID},
		"key-roll":             {"key", "roll", keyID, "--grace", "72h"},
		"key-revoke":           {"key", "revoke", keyID, "--reason", "key_compromise", "--text", "it was in a log"},
		"key-verify":           {"key", "verify", testKey, "--scope", "orders:read", "--address", "203.0.113.9"},
		"secret-create":        {"secret", "create", "--name", "orders-signing"},
		"secret-create.json":   {"secret", "create", "--name", "orders-signing", "-o", "json"},
		"secret-list":          {"secret", "list"},
		"secret-get":           {"secret", "get", "orders-signing"},
		"secret-roll":          {"secret", "roll", "orders-signing", "--grace", "72h"},
		"pepper-list":          {"pepper", "list"},
		"pepper-rotate":        {"pepper", "rotate"},
		"pepper-stragglers":    {"pepper", "stragglers", "2"},
		"pepper-retire":        {"pepper", "retire", "2"},
		"help-key":             {"key", "--help"},
		"help-key-create":      {"key", "create", "--help"},
		"help-key-import":      {"key", "import", "--help"},
		"help-partner-update":  {"partner", "update", "--help"},
		"help-secret-explain":  {"secret", "explain", "--help"},
		"help-audit":           {"audit", "--help"},
		"help-audit-verify":    {"audit", "verify", "--help"},
		"help-audit-export":    {"audit", "export", "--help"},
		"help":                 {"--help"},
		"help-create":          {"keyset", "create", "--help"},
		"help-revoke":          {"keyset", "revoke", "--help"},
	} {
		t.Run(name, func(t *testing.T) {
			r := execute(t, s, nil, args...)
			if r.code != exitDone {
				t.Fatalf("exit code %d:\n%s", r.code, r.stderr)
			}
			out := r.stdout
			if r.stderr != "" {
				out += "--- stderr\n" + r.stderr
			}
			golden(t, name, out)
		})
	}
}

func TestShowWhenTerminalIsNarrowAndColoured(t *testing.T) {
	s := newService(t)
	s.reply = func(context.Context, proto.Message) (proto.Message, error) {
		k := payments()
		k.FallbackSince = at(-5 * time.Minute)
		return &v1.GetKeysetResponse{Keyset: k}, nil
	}
	r := execute(t, s, func(p *process) { p.width, p.colour = 100, true }, "keyset", "show", "payments")
	golden(t, "show-terminal", r.stdout)
}

func TestJSONWhenComparedWithTheAPI(t *testing.T) {
	s := newService(t)
	want, err := protojson.Marshal(&v1.GetKeysetResponse{Keyset: payments()})
	if err != nil {
		t.Fatal(err)
	}
	var wantAny, gotJSON, gotYAML any
	if err := json.Unmarshal(want, &wantAny); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(execute(t, s, nil, "keyset", "show", "payments", "-o", "json").stdout), &gotJSON); err != nil {
		t.Fatal(err)
	}
	gotYAML = fromYAML(t, execute(t, s, nil, "keyset", "show", "payments", "-o", "yaml").stdout)
	if diff := cmp.Diff(wantAny, gotJSON); diff != "" {
		t.Error("json differs from the API's own:\n", diff)
	}
	if diff := cmp.Diff(wantAny, gotYAML); diff != "" {
		t.Error("yaml has other content than the API's JSON:\n", diff)
	}
}

// fromYAML returns what encoding/json makes of the same content.
func fromYAML(t *testing.T, text string) (out any) {
	t.Helper()
	var doc any
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestYAMLWhenTextHasControlCharacters(t *testing.T) {
	text := "a\x01\x7f\u0085\u2028\ufeff \"yes\" 🔑 0x1F no: null\n"
	raw, err := json.Marshal(map[string]any{"a": text, "n": 12, "f": 1.5, "t": true, "z": nil, "s": "12"})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := jsonToYAML(&b, raw); err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	got = fromYAML(t, b.String())
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRequestWhenFlagsAreGiven(t *testing.T) {
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "old.pem")
	if err := os.WriteFile(keyFile, []byte("a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	claims := filepath.Join(dir, "claims.json")
	if err := os.WriteFile(claims, []byte(" {\"sub\":\"f\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	changed := payments().Policy
	changed.TokenTtl = dur(30 * time.Minute)
	cron := payments().Policy
	cron.Rotate = &v1.Schedule{Cron: "0 3 * * 1", Zone: "Europe/Berlin"}
	cron.Profiles = nil
	for _, test := range []struct {
		name, stdin string
		args        []string
		want        proto.Message
	}{
		{"create with the fewest", "", []string{"keyset", "create", "p", "--issuer", "https://a.example", "--token-ttl", "1h"},
			&v1.CreateKeysetRequest{Name: "p", Issuer: "https://a.example", Policy: &v1.Policy{TokenTtl: dur(time.Hour)}}},
		{"create with the tour's", "", []string{"keyset", "create", "payments", "--issuer", "https://auth.example.com", "--algorithm", "ES256", "--rotate-every", "720h", "--token-ttl", "1h", "--profile", "envoy", "--profile", "jose"},
			&v1.CreateKeysetRequest{Name: "payments", Issuer: "https://auth.example.com", Algorithm: "ES256", Policy: &v1.Policy{
				Rotate: &v1.Schedule{Every: dur(720 * time.Hour)}, TokenTtl: dur(time.Hour), Profiles: []*v1.Profile{{Name: "envoy"}, {Name: "jose"}}}}},
		{"create with all", "", []string{"keyset", "create", "p", "--issuer", "i", "--rotate-cron", "0 3 * * 1", "--zone", "Europe/Berlin", "--jitter", "1h", "--token-ttl", "1d12h",
			"--publish-ahead", "2h", "--retire-after", "3d", "--max-age", "1m", "--emergency-target", "20m", "--leeway", "0", "--skew", "0s", "--propagation", "1s", "--fetch-failure", "4m", "--cdn",
			"--fallback", "standby", "--overlong", "refuse", "--profile", "envoy,cache=5m,throttle=10s,min_interval=15s,max_interval=1h", "--dry-run"},
			&v1.CreateKeysetRequest{Name: "p", Issuer: "i", DryRun: true, Policy: &v1.Policy{
				Rotate: &v1.Schedule{Cron: "0 3 * * 1", Zone: "Europe/Berlin", Jitter: dur(time.Hour)}, TokenTtl: dur(36 * time.Hour),
				PublishAhead: dur(2 * time.Hour), RetireAfter: dur(72 * time.Hour), MaxAge: dur(time.Minute), EmergencyTarget: dur(20 * time.Minute), Leeway: dur(0), Skew: dur(0),
				Propagation: dur(time.Second), FetchFailure: dur(4 * time.Minute), Cdn: true, Fallback: v1.Fallback_FALLBACK_STANDBY, Overlong: v1.Overlong_OVERLONG_REFUSE,
				Profiles: []*v1.Profile{{Name: "envoy", Cache: dur(5 * time.Minute), Throttle: dur(10 * time.Second), MinInterval: dur(15 * time.Second), MaxInterval: dur(time.Hour)}}}}},
		{"create with jitter alone", "", []string{"keyset", "create", "p", "--issuer", "i", "--token-ttl", "1h", "--jitter", "1h"},
			&v1.CreateKeysetRequest{Name: "p", Issuer: "i", Policy: &v1.Policy{Rotate: &v1.Schedule{Jitter: dur(time.Hour)}, TokenTtl: dur(time.Hour)}}},
		{"policy changes one thing", "", []string{"keyset", "policy", "payments", "--token-ttl", "30m", "--dry-run"},
			&v1.UpdatePolicyRequest{Name: "payments", Policy: changed, DryRun: true, PolicyVersion: 7}},
		{"policy swaps every for cron and empties profiles", "", []string{"keyset", "policy", "payments", "--rotate-cron", "0 3 * * 1", "--zone", "Europe/Berlin", "--profile", "none", "--leeway", "default"},
			&v1.UpdatePolicyRequest{Name: "payments", Policy: cron, PolicyVersion: 7}},
		{"rotate", "", []string{"keyset", "rotate", "payments", "--override-lead", "--reason", "no consumer yet"},
			&v1.RotateKeysetRequest{Name: "payments", OverrideLead: true, Reason: "no consumer yet"}},
		{"revoke a kid like a flag", "", []string{"keyset", "revoke", "payments", pendingKid, "--mode", "standby", "--reason", "superseded", "--comment", "c"},
			&v1.RevokeKeyRequest{Name: "payments", Kid: pendingKid, Mode: v1.RevokeMode_REVOKE_MODE_STANDBY, Reason: "superseded", Comment: "c"}},
		{"import from a file", "", []string{"keyset", "import", "payments", "--key-file", keyFile, "--state", "retiring", "--max-token-life", "1h"},
			&v1.ImportKeyRequest{Name: "payments", Key: []byte("a key"), State: v1.KeyState_KEY_STATE_RETIRING, MaxTokenLife: dur(time.Hour)}},
		{"import from stdin", "from stdin", []string{"keyset", "import", "payments", "--key-file", "-", "--state", "active", "--max-token-life", "2h", "--kid", "k1", "--reason", "moved"},
			&v1.ImportKeyRequest{Name: "payments", Key: []byte("from stdin"), State: v1.KeyState_KEY_STATE_ACTIVE, MaxTokenLife: dur(2 * time.Hour), Kid: "k1", Reason: "moved"}},
		{"sign", "", []string{"sign", "payments", "--claims", `{"sub":"a"}`, "--ttl", "10m", "--typ", "at+jwt"},
			&v1.SignRequest{Name: "payments", Claims: `{"sub":"a"}`, Ttl: dur(10 * time.Minute), Typ: "at+jwt"}},
		{"sign from a file", "", []string{"sign", "payments", "--claims", "@" + claims}, &v1.SignRequest{Name: "payments", Claims: `{"sub":"f"}`}},
		{"sign from stdin", `{"sub":"s"}`, []string{"sign", "payments", "--claims", "-"}, &v1.SignRequest{Name: "payments", Claims: `{"sub":"s"}`}},
		{"token create", "", []string{"token", "create", "o", "--role", "signer", "--keyset", "a", "--keyset", "b", "--cidr", "10.0.0.0/8", "--expires-in", "90d"},
			&v1.CreateTokenRequest{Name: "o", Role: v1.Role_ROLE_SIGNER, Keysets: []string{"a", "b"}, Cidrs: []string{"10.0.0.0/8"}, ExpiresIn: dur(90 * day)}},
		{"token create of a partner", "", []string{"token", "create", "--role", "partner", "--partner", "acme"},
			&v1.CreateTokenRequest{Name: "acme", Role: v1.Role_ROLE_PARTNER, Partner: "acme"}},
		{"token create of a partner with a name", "", []string{"token", "create", "portal", "--role", "partner", "--partner", "acme"},
			&v1.CreateTokenRequest{Name: "portal", Role: v1.Role_ROLE_PARTNER, Partner: "acme"}},
		{"token revoke", "", []string{"token", "revoke", edgeID, "--reason", "superseded"}, &v1.RevokeTokenRequest{Id: edgeID, Reason: "superseded"}},
		{"audit list", "", []string{"audit", "list", "--action", "signing_key.", "--actor", "rotunda", "--resource", "keysets/", "--outcome", "denied", "--since", "30d", "--until", "2026-11-22T04:00:00+02:00", "--limit", "7", "--request-id", "r", "--address", "::1", "--partner", "p", "-o", "json"},
			&v1.ListEventsRequest{PageSize: 7, Action: "signing_key.", Actor: "rotunda", Resource: "keysets/", Outcome: "denied", Since: at(-30 * day), Until: at(-time.Hour), RequestId: "r", Address: "::1", Partner: "p"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newService(t)
			r := execute(t, s, func(p *process) { p.stdin = strings.NewReader(test.stdin) }, test.args...)
			if r.code != exitDone {
				t.Fatalf("exit code %d:\n%s", r.code, r.stderr)
			}
			got, h := s.last(t)
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if want := "Bearer " + testToken; h.Get("Authorization") != want {
				t.Error("the token was not sent")
			}
		})
	}
}

func TestIdempotencyKeyWhenCreating(t *testing.T) {
	s := newService(t)
	create := []string{"keyset", "create", "p", "--issuer", "i", "--token-ttl", "1h"}
	seen := map[string]bool{}
	for range 2 {
		execute(t, s, nil, create...)
		_, h := s.last(t)
		seen[h.Get("Idempotency-Key")] = true
	}
	if len(seen) != 2 || seen[""] {
		t.Errorf("two runs without a key sent %v, want two random ones", seen)
	}
	for _, args := range [][]string{create, {"token", "create", "n", "--role", "admin"},
		{"partner", "create", "acme"}, {"key", "create", "--name", "ci"}, {"key", "roll", keyID}, {"secret", "create", "--name", "s"}, {"secret", "roll", "s"},
		{"keyset", "import", "p", "--key-file", "-", "--state", "retiring", "--max-token-life", "1h"}} {
		execute(t, s, func(p *process) { p.stdin = strings.NewReader("k") }, append(args, "--idempotency-key", "mine")...)
		if _, h := s.last(t); h.Get("Idempotency-Key") != "mine" {
			t.Errorf("%q sent the key %q, want mine", args[:2], h.Get("Idempotency-Key"))
		}
	}
}

func TestListWhenItHasPages(t *testing.T) {
	s := newService(t)
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		r := req.(*v1.ListKeysetsRequest)
		switch {
		case r.GetPageToken() == "":
			return &v1.ListKeysetsResponse{Keysets: []*v1.Keyset{{Name: "a"}, {Name: "b"}}, NextPageToken: "2"}, nil
		case r.GetPageSize() == 1:
			return &v1.ListKeysetsResponse{Keysets: []*v1.Keyset{{Name: "c"}}, NextPageToken: "3"}, nil
		default:
			return &v1.ListKeysetsResponse{Keysets: []*v1.Keyset{{Name: "c"}, {Name: "d"}}}, nil
		}
	}
	r := execute(t, s, nil, "keyset", "list", "-o", "json")
	if n := strings.Count(r.stdout, `"name"`); n != 4 || r.stderr != "" {
		t.Errorf("got %d keysets and %q, want all 4 and nothing on stderr", n, r.stderr)
	}
	r = execute(t, s, nil, "keyset", "list", "-o", "json", "--limit", "3")
	if n := strings.Count(r.stdout, `"name"`); n != 3 || !strings.Contains(r.stderr, "raise --limit") {
		t.Errorf("got %d keysets and %q, want 3 and a word that there are more", n, r.stderr)
	}
	s.reply = func(context.Context, proto.Message) (proto.Message, error) {
		return &v1.ListKeysetsResponse{Keysets: []*v1.Keyset{{Name: "a"}}, NextPageToken: "same"}, nil
	}
	if r = execute(t, s, nil, "keyset", "list"); r.code != exitRefused || !strings.Contains(r.stderr, "same page twice") {
		t.Errorf("a server that repeats itself: %+v", r)
	}
}

func TestAuditWhenAnAdminReads(t *testing.T) {
	s := newService(t)
	role, listed := v1.Role_ROLE_ADMIN, 0
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		switch req.(type) {
		case *v1.WhoAmIRequest:
			return &v1.WhoAmIResponse{Token: &v1.Token{Id: "x", Role: role}}, nil
		case *v1.ListTokensRequest:
			listed++
			return &v1.ListTokensResponse{Tokens: []*v1.Token{{Id: "tok_09", Name: "ann\x1b"}}}, nil
		default:
			return nil, nil
		}
	}
	if r := execute(t, s, nil, "audit", "list"); listed != 1 || !strings.Contains(r.stdout, `  ann\u001b (tok_09)  keyset.rotate`) || !strings.Contains(r.stdout, "  rotunda ") {
		t.Errorf("%d lists of tokens, and no name of the actor in:\n%s", listed, r.stdout)
	}
	role = v1.Role_ROLE_AUDITOR
	if r := execute(t, s, nil, "audit", "list"); listed != 1 || !strings.Contains(r.stdout, "  tok_09 ") {
		t.Errorf("an auditor listed tokens, which would stand in the trail as denied, or has no id in:\n%s", r.stdout)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestSignWhenLifeIsClamped(t *testing.T) {
	s := newService(t)
	s.reply = func(context.Context, proto.Message) (proto.Message, error) {
		return &v1.SignResponse{Token: "a.b.c", Clamped: true, ExpiresAt: at(time.Hour)}, nil
	}
	r := execute(t, s, nil, "sign", "payments", "--claims", "{}")
	if r.stdout != "a.b.c\n" || !strings.Contains(r.stderr, "in 1h (2026-11-22 04:00Z)") {
		t.Errorf("%+v", r)
	}
}

func TestOutputWhenTextHoldsEscapeSequences(t *testing.T) {
	s := newService(t)
	evil := "\x1b]0;owned\x07\r\u202e\nactive"
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		switch req.(type) {
		case *v1.GetKeysetRequest:
			k := payments()
			k.Issuer, k.Keys[0].Kid, k.Keys[0].Next.Why, k.Keys[2].Reason = evil, evil, evil, evil
			k.Timing.Profiles[0].Note, k.Timing.Warnings[0] = evil, evil
			return &v1.GetKeysetResponse{Keyset: k}, nil
		case *v1.ListEventsRequest:
			return &v1.ListEventsResponse{Events: []*v1.Event{{Actor: evil, Resource: evil, Reason: evil, Time: at(0)}}}, nil
		default:
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New(evil))
		}
	}
	for _, args := range [][]string{{"keyset", "show", "p"}, {"audit", "list"}, {"keyset", "list"}} {
		for _, width := range []int{0, 80} {
			r := execute(t, s, func(p *process) { p.width = width }, args...)
			if strings.ContainsAny(r.stdout+r.stderr, "\x1b\x07\r\u202e") {
				t.Errorf("%q at width %d lets escape sequences through:\n%q", args, width, r.stdout+r.stderr)
			}
			if !strings.Contains(r.stdout+r.stderr, `\u001b`) {
				t.Errorf("%q hides what it escaped", args)
			}
		}
	}
}

func TestWatchWhenTwoVersionsCome(t *testing.T) {
	s := newService(t)
	s.watch = func(req *v1.WatchRequest, stream *connect.ServerStream[v1.WatchResponse]) error {
		for v := req.GetAfterVersion() + 1; v < req.GetAfterVersion()+3; v++ {
			if err := stream.Send(&v1.WatchResponse{Version: v, Etag: `"e"`, MaxAge: dur(5 * time.Minute), Jwks: `{"keys":[{"kid":"a"},{"kid":"b"}]}`}); err != nil {
				return err
			}
		}
		return nil
	}
	r := execute(t, s, nil, "keyset", "watch", "payments", "--after-version", "4", "-o", "json")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if r.code != exitDone || len(lines) != 2 || !strings.Contains(lines[0], `"version":"5"`) || !strings.Contains(lines[1], `"version":"6"`) {
		t.Errorf("json: %+v", r)
	}
	r = execute(t, s, nil, "keyset", "watch", "payments")
	if want := "2026-11-22 03:00:00Z  version 1  max-age 5m  etag \"e\"  kids a b\n"; !strings.HasPrefix(r.stdout, want) {
		t.Errorf("table:\n%s\nwant it to begin with\n%s", r.stdout, want)
	}
	s.watch = nil
	if r = execute(t, s, nil, "keyset", "watch", "nope"); r.code != exitRefused || !strings.Contains(r.stderr, "no such keyset") {
		t.Errorf("refused: %+v", r)
	}
}

func TestWatchWhenInterrupted(t *testing.T) {
	s := newService(t)
	ctx, cancel := context.WithCancel(t.Context())
	p, _, stderr := newProcess(t, s)
	p.stdout = writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil })
	s.watch = func(_ *v1.WatchRequest, stream *connect.ServerStream[v1.WatchResponse]) error {
		for {
			if err := stream.Send(&v1.WatchResponse{Version: 1, Jwks: "{}"}); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Millisecond):
			}
		}
	}
	if code := run(ctx, []string{"keyset", "watch", "payments"}, p); code != exitDone {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestCompletionWhenTheServerAnswers(t *testing.T) {
	s := newService(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"keyset", "show", ""}, "payments\thttps://auth.example.com"},
		{[]string{"sign", ""}, "payments\thttps://auth.example.com"},
		{[]string{"keyset", "revoke", "payments", ""}, activeKid + "\tactive"},
		{[]string{"keyset", "revoke", "payments", "k", "--mode", ""}, "standby\nfresh"},
		{[]string{"keyset", "revoke", "payments", "k", "--reason", "key"}, "key_compromise"},
		{[]string{"keyset", "create", "p", "--profile", "st"}, "step-ca\tsmallstep step-ca"},
		{[]string{"keyset", "create", "p", "--algorithm", "Ed"}, "Ed25519"},
		{[]string{"keyset", "list", "-o", "y"}, "yaml"},
		{[]string{"token", "revoke", ""}, edgeID + "\tedge-1"},
		{[]string{"token", "create", "x", "--keyset", ""}, "payments\thttps://auth.example.com"},
		{[]string{"key"}, "keyset\t"},
		{[]string{"key", "roll", ""}, keyID + "\tci of acme, active"},
		{[]string{"key", "revoke", "k", "--reason", "key"}, "key_compromise"},
		{[]string{"key", "create", "--scope", ""}, "orders:read\norders:write"},
		{[]string{"key", "create", "--partner", ""}, "acme\tactive"},
		{[]string{"key", "create", "--class", ""}, "secret\npublishable"},
		{[]string{"key", "import", ""}, "csv\n:8"},
		{[]string{"partner", "suspend", ""}, "webshop\tsuspended"},
		{[]string{"token", "create", "--role", "partner", "--partner", ""}, "acme\tactive"},
		{[]string{"secret", "roll", ""}, "orders-signing\tacme\n:4"},
		{[]string{"secret", "revoke", ""}, secretID + "\torders-signing of acme, active"},
		{[]string{"pepper", "retire", ""}, "2\t3 keys, 0 tokens\n:4"},
	} {
		r := execute(t, s, nil, append([]string{"__complete"}, test.args...)...)
		if r.code != exitDone || !strings.Contains(r.stdout, test.want) {
			t.Errorf("%q: exit code %d, want %q in:\n%s", test.args, r.code, test.want, r.stdout)
		}
	}
}

func TestCompletionWhenTheServerFails(t *testing.T) {
	s := newService(t)
	s.reply = func(context.Context, proto.Message) (proto.Message, error) {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("denied"))
	}
	for name, server := range map[string]string{"denied": s.URL, "away": "http://127.0.0.1:1", "no URL": "::"} {
		r := execute(t, s, nil, "__complete", "keyset", "show", "--server", server, "")
		if r.code != exitDone || !strings.HasPrefix(r.stdout, ":4") || strings.Contains(r.stderr, "rotunda:") {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestVersionWhenTheServerIsAway(t *testing.T) {
	r := execute(t, nil, nil, "version")
	if r.code != exitDone || r.stdout != "rotunda "+buildVersion()+"\n" {
		t.Errorf("%+v", r)
	}
}

func TestExamplesWhenTheyAreRun(t *testing.T) {
	t.Chdir(t.TempDir()) // some of them write files
	s := newService(t)
	s.watch = func(*v1.WatchRequest, *connect.ServerStream[v1.WatchResponse]) error { return nil }
	p, _, _ := newProcess(t, s)
	count := 0
	for _, cmd := range all(newRoot(&cli{process: p})) {
		if cmd.Runnable() && !cmd.HasSubCommands() && cmd.Name() != "serve" {
			if cmd.Example == "" || cmd.Short == "" {
				t.Errorf("%s has no example or no description", cmd.CommandPath())
			}
			for _, args := range examples(t, cmd.Example) {
				if slices.Contains(args, "-f") || args[0] == "doctor" {
					continue // these are tested on their own
				}
				count++
				r := execute(t, s, func(p *process) { p.stdin = strings.NewReader("{}") }, args...)
				// A file that is not here is no wrong usage, and nobody is asked here.
				if r.code == exitUsage && strings.Contains(r.stderr, "\nusage: ") && !strings.Contains(r.stderr, "nobody is here to ask") {
					t.Errorf("the example %q is wrong usage:\n%s", args, r.stderr)
				}
			}
		}
	}
	if count < 60 {
		t.Errorf("only %d examples were found", count)
	}
}

package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func TestCredentialOutputWhenCommandSucceeds(t *testing.T) {
	s := newService(t)
	for name, args := range map[string][]string{
		"store-list":            {"store", "list"},
		"store-show":            {"store", "show", "vault-prod"},
		"store-kinds":           {"store", "kinds"},
		"store-kind":            {"store", "kinds", "vault-kv"},
		"store-test":            {"store", "test", "vault-prod", "--path", "orders/db"},
		"target-show":           {"target", "show", "orders-pg"},
		"target-kinds":          {"target", "kinds"},
		"credential-list":       {"credential", "list"},
		"credential-show":       {"credential", "show", "orders-db"},
		"credential-show.json":  {"credential", "show", "orders-db", "-o", "json"},
		"credential-preflight":  {"credential", "preflight", "orders-db"},
		"credential-plan":       {"credential", "plan", "orders-db"},
		"credential-probe":      {"credential", "probe", "orders-db"},
		"credential-rotate":     {"credential", "rotate", "orders-db"},
		"credential-rotate-dry": {"credential", "rotate", "--emergency", "--store", "vault-prod", "--dry-run"},
		"credential-emergency":  {"credential", "rotate", "--emergency", "--reason", "laptop stolen", "--store", "vault-prod", "--yes"},
		"credential-rollback":   {"credential", "rollback", "orders-db"},
		"credential-abandon":    {"credential", "abandon", "orders-db", "--yes"},
		"rotation-show":         {"rotation", "show", runID},
		"credential-history":    {"credential", "history", "orders-db"},
		"credential-history-all": {
			"credential", "history"},
		"credential-pause":    {"credential", "pause", "orders-db", "--reason", "it moves tonight"},
		"credential-delete":   {"credential", "delete", "orders-db", "--yes"},
		"forecast":            {"forecast", "--days", "90"},
		"incident-list":       {"incident", "list"},
		"incident-show":       {"incident", "show", incidentID},
		"incident-stop":       {"incident", "stop", incidentID},
		"endpoint-list":       {"endpoint", "list"},
		"endpoint-test":       {"endpoint", "test", "orders"},
		"endpoint-deliveries": {"endpoint", "deliveries"},
		"endpoint-redeliver":  {"endpoint", "redeliver", messageID},
		"read":                {"read", "orders/db"},
		"read-field":          {"read", "orders/db", "--field", "password"},
		"help-credential":     {"credential", "--help"},
		"help-rotate":         {"credential", "rotate", "--help"},
		"help-store-create":   {"store", "create", "--help"},
		"help-drill":          {"drill", "crash", "--help"},
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

func TestCredentialRequestWhenFlagsAreGiven(t *testing.T) {
	dir := t.TempDir()
	secretFile := filepath.Join(dir, "token.txt")
	write(t, secretFile, "hvs.fromfile\n", 0o600)
	for _, test := range []struct {
		name, stdin string
		args        []string
		want        proto.Message
	}{
		{"store update keeps what is not named", "", []string{"store", "update", "vault-prod", "--set", "mount=kv", "--login-file", "token=" + secretFile},
			&v1.UpdateStoreRequest{Store: "vault-prod", Version: 2, Settings: map[string]string{"address": "https://vault.example.com:8200", "mount": "kv"}, Login: map[string]string{"token": "hvs.fromfile"}}},
		{"store update asks for its login", "hvs.asked\n", []string{"store", "update", "vault-prod", "--login-ask", "token"},
			&v1.UpdateStoreRequest{Store: "vault-prod", Version: 2, Settings: map[string]string{"address": "https://vault.example.com:8200", "mount": "secret"}, Login: map[string]string{"token": "hvs.asked"}}},
		{"target update to a login that is rotated", "", []string{"target", "update", "orders-pg", "--login-credential", "other"},
			&v1.UpdateTargetRequest{Target: "orders-pg", Version: 1, Settings: map[string]string{"address": "db.example.com:5432", "sslmode": "verify-full"}, LoginCredential: "other"}},
		{"list", "", []string{"credential", "list", "--store", "vault-prod", "--label", "tier=1", "--drifted"},
			&v1.ListCredentialsRequest{PageSize: 200, Store: "vault-prod", Labels: map[string]string{"tier": "1"}, Drifted: true}},
		{"rotate", "", []string{"credential", "rotate", "orders-db", "--grace", "0", "--reason", "r", "--overwrite"},
			&v1.StartRotationRequest{Credential: "orders-db", Reason: "r", Grace: dur(0), Overwrite: true}},
		{"emergency of the issue", "", []string{"credential", "rotate", "orders-db", "--emergency", "--reason", "leaked", "--grace", "0"},
			&v1.StartRotationRequest{Credential: "orders-db", Reason: "leaked", Grace: dur(0), Emergency: true}},
		{"emergency by label", "", []string{"credential", "rotate", "--emergency", "--label", "tier=1", "--reason", "leaked", "--yes"},
			&v1.StartEmergencyRequest{Selector: &v1.Selector{Labels: map[string]string{"tier": "1"}}, Reason: "leaked", PlanHash: "h1"}},
		{"emergency of all", "", []string{"credential", "rotate", "--emergency", "--all", "--reason", "leaked", "--grace", "1h", "--yes"},
			&v1.StartEmergencyRequest{Selector: &v1.Selector{All: true}, Reason: "leaked", Grace: dur(time.Hour), PlanHash: "h1"}},
		{"emergency of two names", "", []string{"credential", "rotate", "a", "b", "--emergency", "--reason", "leaked", "--yes"},
			&v1.StartEmergencyRequest{Selector: &v1.Selector{Credentials: []string{"a", "b"}}, Reason: "leaked", PlanHash: "h1"}},
		{"plan of an emergency", "", []string{"credential", "rotate", "a", "--emergency", "--dry-run"},
			&v1.PlanEmergencyRequest{Selector: &v1.Selector{Credentials: []string{"a"}}}},
		{"retry by name", "", []string{"credential", "retry", "orders-db", "--reason", "r"}, &v1.RetryRotationRequest{Rotation: runID, Reason: "r"}},
		{"rollback by id", "", []string{"credential", "rollback", runID}, &v1.RollbackRotationRequest{Rotation: runID}},
		{"history", "", []string{"credential", "history", "orders-db", "--failed", "--limit", "7"}, &v1.ListRotationsRequest{Credential: "orders-db", Failed: true, PageSize: 7}},
		{"forecast", "", []string{"forecast", "--days", "30"}, &v1.ForecastRequest{Days: 30}},
		{"read the previous", "", []string{"read", "orders/db", "--version", "previous"}, &v1.ReadSecretRequest{Path: "orders/db", Version: "previous"}},
		{"reader's token", "", []string{"token", "create", "orders", "--role", "reader", "--path", "orders/*", "--path", "mail"},
			&v1.CreateTokenRequest{Name: "orders", Role: v1.Role_ROLE_READER, Paths: []string{"orders/*", "mail"}}},
		{"endpoint", "", []string{"endpoint", "create", "orders", "--url", "https://o.example/h", "--partner", "acme", "--secret", "hooks"},
			&v1.CreateEndpointRequest{Name: "orders", Url: "https://o.example/h", Partner: "acme", Secret: "hooks"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newService(t)
			r := execute(t, s, func(p *process) { p.stdin = strings.NewReader(test.stdin) }, test.args...)
			if r.code != exitDone {
				t.Fatalf("exit code %d:\n%s", r.code, r.stderr)
			}
			got, _ := s.last(t)
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if strings.Contains(r.stdout+r.stderr, "hvs.") {
				t.Errorf("a login was printed:\n%s%s", r.stdout, r.stderr)
			}
		})
	}
}

func TestCredentialCommandWhenUsageIsWrong(t *testing.T) {
	s := newService(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"credential", "rotate"}, "NAME is missing"},
		{[]string{"credential", "rotate", "a", "b"}, "are an --emergency"},
		{[]string{"credential", "rotate", "--store", "v"}, "are for --emergency"},
		{[]string{"credential", "rotate", "--emergency", "--store", "v"}, "needs a --reason"},
		{[]string{"credential", "rotate", "a", "--emergency", "--store", "v", "--reason", "r"}, "not several of them"},
		{[]string{"credential", "rotate", "--emergency", "--store", "v", "--reason", "r"}, "nobody is here to ask"},
		{[]string{"credential", "delete", "a"}, "nobody is here to ask"},
		{[]string{"credential", "abandon", "a"}, "nobody is here to ask"},
		{[]string{"credential", "create"}, "--file must be given"},
		{[]string{"store", "create", "v"}, "--kind must be given"},
		{[]string{"store", "create", "V!", "--kind", "vault-kv"}, "is not a name"},
		{[]string{"store", "create", "v", "--kind", "vault-kv", "--login-file", "token"}, "is not of the form name=value"},
		{[]string{"store", "update", "v"}, "nothing to change"},
		{[]string{"token", "create", "n", "--role", "reader"}, "needs a --path"},
		{[]string{"token", "create", "n", "--role", "admin", "--path", "a"}, "goes with --role reader only"},
		{[]string{"forecast", "--days", "400"}, "outside 1 to 366"},
		{[]string{"endpoint", "redeliver"}, "give the ID"},
	} {
		r := execute(t, s, nil, test.args...)
		if r.code != exitUsage || !strings.Contains(r.stderr, test.want) {
			t.Errorf("%q: exit %d, want 2 and %q\n%s", test.args, r.code, test.want, r.stderr)
		}
	}
	if n := s.count(); n != 0 {
		t.Errorf("the server was called %d times", n)
	}
}

// What a check or a plan finds decides the exit code.
func TestCredentialExitCodeWhenSomethingWouldFail(t *testing.T) {
	s := newService(t)
	for name, test := range map[string]struct {
		args  []string
		reply proto.Message
	}{
		"preflight": {[]string{"credential", "preflight", "orders-db"}, &v1.PreflightCredentialResponse{Findings: []*v1.Finding{
			{Check: "self_reference", Detail: "orders-pg logs in with what this credential changes", Remedy: "give the target another login", Where: "target orders-pg"}, {Check: "permission", Ok: true}}}},
		"plan": {[]string{"credential", "plan", "orders-db"}, &v1.PlanCredentialResponse{Strategy: "alternate", Generation: 8, Obstacles: []string{"a rotation failed and waits for a person"},
			Effects: []*v1.PlannedEffect{{Effect: "E4", Where: "store vault-prod orders/db", What: "puts it there", Blocked: "somebody else put version 13 there"}}}},
		"probe":    {[]string{"credential", "probe", "orders-db"}, &v1.ProbeCredentialResponse{Complete: true, Credential: &v1.Credential{Name: "orders-db", Drift: v1.Drift_DRIFT_BOTH, DriftNote: "orders/db has version 13"}}},
		"forecast": {[]string{"forecast"}, &v1.ForecastResponse{Rotations: 9000, Credentials: 1, Systems: []*v1.ForecastSystem{{Sort: "store", Name: "sm", Peak: 9000, Quota: 60, HoursOver: 2}}}},
	} {
		s.reply = func(context.Context, proto.Message) (proto.Message, error) { return test.reply, nil }
		r := execute(t, s, nil, test.args...)
		if r.code != exitRefused {
			t.Errorf("%s: exit %d, want 1\n%s%s", name, r.code, r.stdout, r.stderr)
		}
		golden(t, "credential-"+name+"-bad", r.stdout+"--- stderr\n"+r.stderr)
	}
}

// watched answers who watches with these states, one after the other.
func watched(s *service, runs ...*v1.Rotation) {
	s.rotation = func(_ context.Context, _ *v1.WatchRotationRequest, stream *connect.ServerStream[v1.WatchRotationResponse]) error {
		for _, r := range runs {
			if err := stream.Send(&v1.WatchRotationResponse{Rotation: r}); err != nil {
				return err
			}
		}
		return nil
	}
}

func steps() []*v1.Rotation {
	retried := runAt(v1.RotationStep_ROTATION_STEP_PUBLISH)
	retried.Attempt, retried.Error, retried.NextAt = 2, "store vault-prod: Vault is sealed", at(4*time.Second)
	return []*v1.Rotation{
		runAt(v1.RotationStep_ROTATION_STEP_PLAN), runAt(v1.RotationStep_ROTATION_STEP_ISSUE), runAt(v1.RotationStep_ROTATION_STEP_VERIFY),
		runAt(v1.RotationStep_ROTATION_STEP_PUBLISH), retried, inGrace(),
	}
}

func TestWatchWhenRotationGoesOn(t *testing.T) {
	s := newService(t)
	watched(s, steps()...)
	r := execute(t, s, nil, "credential", "rotate", "orders-db", "--watch")
	if r.code != exitDone || r.stderr != "" {
		t.Errorf("exit %d, want 0\n%s", r.code, r.stderr)
	}
	golden(t, "credential-watch", r.stdout)

	r = execute(t, s, nil, "credential", "rotate", "orders-db", "--watch", "-o", "json")
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != 6 {
		t.Errorf("json has %d lines, want one for each of 6 changes:\n%s", len(lines), r.stdout)
	}
	for _, l := range lines {
		if !json.Valid([]byte(l)) {
			t.Errorf("not JSON: %s", l)
		}
	}

	// At a terminal there is a bar too, and nothing of it is left.
	r = execute(t, s, func(p *process) { p.barWidth = 80 }, "credential", "rotate", "orders-db", "--watch")
	if !strings.Contains(r.stderr, "rotating  [") || !strings.HasSuffix(r.stderr, "\r\x1b[K") {
		t.Errorf("the bar is %q", r.stderr)
	}
	for _, part := range strings.Split(r.stderr, "\r\x1b[K") {
		if len(part) >= 80 {
			t.Errorf("a bar of %d columns on a terminal of 80: %q", len(part), part)
		}
	}
}

func TestWatchWhenRotationEnds(t *testing.T) {
	s := newService(t)
	done := runAt(v1.RotationStep_ROTATION_STEP_DONE)
	done.Outcome, done.EndedAt = v1.RotationOutcome_ROTATION_OUTCOME_ROTATED, at(0)
	watched(s, append(steps(), runAt(v1.RotationStep_ROTATION_STEP_REVOKE), done)...)
	r := execute(t, s, nil, "credential", "watch", "orders-db") // to the end, through the grace
	if r.code != exitDone || !strings.Contains(r.stdout, "done      rotated, after 1h") {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}

	watched(s, runAt(v1.RotationStep_ROTATION_STEP_PUBLISH), failedRun())
	r = execute(t, s, nil, "credential", "rotate", "orders-db", "--watch")
	if r.code != exitRefused {
		t.Errorf("exit %d of a rotation that failed, want 1", r.code)
	}
	golden(t, "credential-watch-failed", r.stdout+"--- stderr\n"+r.stderr)
}

// Steps that go by between two messages are shown too, up to what was surely passed.
func TestWatchWhenStepsAreFast(t *testing.T) {
	s := newService(t)
	done := runAt(v1.RotationStep_ROTATION_STEP_DONE)
	done.Outcome, done.EndedAt = v1.RotationOutcome_ROTATION_OUTCOME_ROTATED, at(0)
	watched(s, runAt(v1.RotationStep_ROTATION_STEP_ISSUE), done)
	var got []string
	for line := range strings.Lines(execute(t, s, nil, "credential", "rotate", "orders-db", "--watch").stdout) {
		got = append(got, strings.Fields(line)[1])
	}
	if diff := cmp.Diff([]string{"plan", "issue", "verify", "publish", "done"}, got); diff != "" {
		t.Error(diff)
	}
	// Of one that was under way before, and of one that failed, nothing is made up.
	watched(s, runAt(v1.RotationStep_ROTATION_STEP_PUBLISH), failedRun())
	if n := strings.Count(execute(t, s, nil, "credential", "watch", "orders-db").stdout, "\n"); n != 2 {
		t.Errorf("%d lines, want 2", n)
	}
}

// A server that is replaced in the middle is asked again, and nothing is told twice.
func TestWatchWhenServerIsReplaced(t *testing.T) {
	s := newService(t)
	all := steps()
	calls := 0
	s.rotation = func(_ context.Context, _ *v1.WatchRotationRequest, stream *connect.ServerStream[v1.WatchRotationResponse]) error {
		calls++
		if calls == 1 {
			for _, r := range all[:3] {
				if err := stream.Send(&v1.WatchRotationResponse{Rotation: r}); err != nil {
					return err
				}
			}
			return connect.NewError(connect.CodeUnavailable, context.Canceled)
		}
		for _, r := range all[2:] {
			if err := stream.Send(&v1.WatchRotationResponse{Rotation: r}); err != nil {
				return err
			}
		}
		return nil
	}
	r := execute(t, s, nil, "credential", "rotate", "orders-db", "--watch")
	if r.code != exitDone || calls != 2 || strings.Count(r.stdout, "a login proves it") != 1 {
		t.Errorf("exit %d after %d calls\n%s%s", r.code, calls, r.stdout, r.stderr)
	}
}

func TestEmergencyWhenAPersonIsAsked(t *testing.T) {
	s := newService(t)
	args := []string{"credential", "rotate", "--emergency", "--reason", "leaked", "--store", "vault-prod"}
	at := func(answer string) func(*process) {
		return func(p *process) { p.person, p.stdin = true, strings.NewReader(answer) }
	}
	r := execute(t, s, at("no\n"), args...)
	if last, _ := s.last(t); r.code != exitRefused || !strings.Contains(r.stderr, "passed over") {
		t.Errorf("exit %d after %T, want 1 and the plan\n%s", r.code, last, r.stderr)
	} else if _, planned := last.(*v1.PlanEmergencyRequest); !planned {
		t.Errorf("%T was sent without a yes", last)
	}
	r = execute(t, s, at("3\n"), args...)
	if last, _ := s.last(t); r.code != exitDone {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	} else if got, _ := last.(*v1.StartEmergencyRequest); got.GetPlanHash() != "h1" {
		t.Errorf("%T was sent, without the hash of the plan that was shown", last)
	}
}

func TestIncidentWatchWhenOneFails(t *testing.T) {
	s := newService(t)
	polls := 0
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		if _, ok := req.(*v1.GetIncidentRequest); !ok {
			return nil, nil
		}
		x := incident()
		if polls++; polls == 1 {
			x.Begun, x.Rotated, x.InGrace, x.Failed = 1, 0, 0, 0
		}
		return &v1.GetIncidentResponse{Incident: x}, nil
	}
	r := execute(t, s, nil, "incident", "watch", incidentID)
	if r.code != exitRefused || polls != 2 || !strings.Contains(r.stderr, "1 rotation waits for you") || strings.Count(r.stdout, "\n") != 2 {
		t.Errorf("exit %d after %d calls\n%s%s", r.code, polls, r.stdout, r.stderr)
	}
}

// What is to be noticed stands in the list, and what to type in the view.
func TestCredentialWhenItDrifted(t *testing.T) {
	s := newService(t)
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		x := ordersDB()
		x.Drift, x.DriftNote, x.DriftSince = v1.Drift_DRIFT_STORE, "orders/db has version 13, which is not ours", at(-time.Hour)
		switch req.(type) {
		case *v1.ListCredentialsRequest:
			return &v1.ListCredentialsResponse{Credentials: []*v1.Credential{x}}, nil
		case *v1.GetCredentialRequest:
			return &v1.GetCredentialResponse{Credential: x}, nil
		}
		return nil, nil
	}
	golden(t, "credential-drifted", execute(t, s, nil, "credential", "list").stdout+execute(t, s, nil, "credential", "show", "orders-db").stdout)
}

func TestReadWhenWrittenToAFile(t *testing.T) {
	s := newService(t)
	file := filepath.Join(t.TempDir(), "db.json")
	write(t, file, "old", 0o644)
	r := execute(t, s, nil, "read", "orders/db", "--out", file)
	if r.code != exitDone || r.stdout != "" || strings.Contains(r.stderr, "p<&>w") {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	wantMode(t, file, 0o600)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(raw, &got); err != nil || got["password"] != "p<&>w" || !strings.Contains(string(raw), "p<&>w") {
		t.Errorf("%v: %s", err, raw)
	}
	r = execute(t, s, nil, "read", "orders/db", "--field", "nope")
	if r.code != exitRefused || !strings.Contains(r.stderr, "there are password, username") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
}

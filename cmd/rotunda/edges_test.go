package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// all returns cmd and every command below it.
func all(cmd *cobra.Command) []*cobra.Command {
	out := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		out = append(out, all(c)...)
	}
	return out
}

// examples returns the command lines of a help text, split as a shell would.
func examples(t *testing.T, text string) [][]string {
	t.Helper()
	var out [][]string
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		before, line, ok := strings.Cut(" "+strings.TrimSpace(line), "rotunda ")
		if !ok {
			continue
		}
		if strings.HasSuffix(before, "$(") {
			line = strings.TrimSuffix(line, ")")
		}
		line, _, _ = strings.Cut(line, " < ")
		line, _, _ = strings.Cut(line, " > ")
		var args []string
		word, quoted, open := "", rune(0), false
		for _, r := range line + " " {
			switch {
			case quoted == 0 && (r == '\'' || r == '"'):
				quoted, open = r, true
			case r == quoted && quoted != 0:
				quoted = 0
			case r == ' ' && quoted == 0:
				if word != "" || open {
					args = append(args, word)
				}
				word, open = "", false
			default:
				word += string(r)
			}
		}
		if quoted != 0 {
			t.Fatalf("the example %q has an open quote", line)
		}
		out = append(out, args)
	}
	return out
}

// problem is an error as the server sends it.
func problem(t *testing.T, code connect.Code, text, reason, field, id string) error {
	t.Helper()
	d, err := connect.NewErrorDetail(&v1.Problem{Reason: reason, Field: field, RequestId: id})
	if err != nil {
		t.Fatal(err)
	}
	e := connect.NewError(code, errors.New(text))
	e.AddDetail(d)
	return e
}

func TestRunWhenUsageIsWrong(t *testing.T) {
	s := newService(t)
	create := []string{"keyset", "create", "p", "--issuer", "i", "--token-ttl", "1h"}
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing", nil, "rotunda needs a command"},
		{"unknown command", []string{"keysets"}, `unknown command "keysets"`},
		{"unknown command like two others", []string{"keys"}, "Did you mean this?\n  key\n  keyset\n"},
		{"group alone", []string{"keyset"}, "rotunda keyset needs a command"},
		{"unknown command of a group", []string{"keyset", "crate"}, `unknown command "crate": did you mean "create"?`},
		{"unknown flag", []string{"keyset", "show", "p", "--nope"}, "unknown flag: --nope"},
		{"argument missing", []string{"keyset", "revoke", "p"}, "KID is missing"},
		{"arguments missing", []string{"keyset", "revoke"}, "NAME and KID is missing"},
		{"argument too many", []string{"keyset", "show", "a", "b"}, `"b" is one argument too many`},
		{"argument empty", []string{"keyset", "show", ""}, "NAME is empty"},
		{"flag missing", []string{"keyset", "create", "p", "--issuer", "i"}, "--token-ttl must be given"},
		{"flags missing", []string{"keyset", "import", "p"}, "--key-file and --state and --max-token-life must be given"},
		{"claims missing", []string{"sign", "p"}, "--claims must be given"},
		{"role missing", []string{"token", "create", "n"}, "--role must be given"},
		{"role unknown", []string{"token", "create", "n", "--role", "king"}, "it must be one of admin, operator"},
		{"output unknown", []string{"keyset", "list", "-o", "xml"}, "it must be one of table, json, yaml"},
		{"duration", append(create, "--leeway", "1 hour"), `"1 hour" is not a length of time`},
		{"negative duration", append(create, "--leeway", "-1h"), `"-1h" is not a length of time`},
		{"profile", append(create, "--profile", "envoy,cash=5m"), `profile envoy has no figure "cash"`},
		{"profile twice", append(create, "--profile", "envoy", "--profile", "envoy"), `profile "envoy" is given twice`},
		{"two schedules", append(create, "--rotate-every", "1d", "--rotate-cron", "* * * * *"), "--rotate-every or --rotate-cron, not both"},
		{"two schedules of a policy", []string{"keyset", "policy", "p", "--rotate-every", "1d", "--rotate-cron", "* * * * *"}, "--rotate-every or --rotate-cron, not both"},
		{"override without reason", []string{"keyset", "rotate", "p", "--override-lead"}, "--override-lead needs a --reason"},
		{"mode unknown", []string{"keyset", "revoke", "p", "k", "--mode", "new"}, "it must be one of standby, fresh"},
		{"revoke by a script without mode", []string{"keyset", "revoke", "p", "k", "--reason", "superseded"}, "give --mode, or --yes"},
		{"revoke without reason", []string{"keyset", "revoke", "p", "k", "--mode", "fresh", "--yes"}, "one of unspecified, key_compromise, affiliation_changed, superseded, "},
		{"life of nothing", []string{"sign", "p", "--claims", "{}", "--ttl", "0s"}, "--ttl must be longer than 0"},
		{"claims no JSON", []string{"sign", "p", "--claims", "sub=me-and-my-secret"}, "--claims is not a JSON object"},
		{"claims no object", []string{"sign", "p", "--claims", "[]"}, "--claims is not a JSON object"},
		{"limit", []string{"keyset", "list", "--limit", "0"}, "--limit 0 is outside 1 to 10000"},
		{"since", []string{"audit", "list", "--since", "yesterday"}, `--since: "yesterday" is neither a time`},
		{"follow until", []string{"audit", "list", "-f", "--until", "1d"}, "--follow goes on for ever"},
		{"after version", []string{"keyset", "watch", "p", "--after-version", "-1"}, "--after-version must not be negative"},
		{"server", []string{"keyset", "list", "--server", "localhost:8470"}, "is not a URL of a server"},
		{"server with a password", []string{"keyset", "list", "--server", "http://me:hunter2@localhost"}, "holds a user name"},
		{"two tokens", []string{"keyset", "list", "--token", "a", "--token-file", "b"}, "--token or --token-file, not both"},
		{"token with a line break", []string{"keyset", "list", "--token", "a\nb"}, "--token: the token holds a space"},
		{"timeout", []string{"keyset", "list", "--timeout", "0"}, "--timeout must be longer than 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := execute(t, s, nil, test.args...)
			if r.code != exitUsage || !strings.Contains(r.stderr, test.want) || !strings.Contains(r.stderr, "\nusage: rotunda") || r.stdout != "" {
				t.Errorf("exit code %d, want %d with %q and the usage line on stderr only:\n%s%s", r.code, exitUsage, test.want, r.stdout, r.stderr)
			}
			for _, secret := range []string{"hunter2", "my-secret"} {
				if strings.Contains(r.stderr, secret) {
					t.Errorf("it repeats what may be a secret:\n%s", r.stderr)
				}
			}
		})
	}
	if n := s.count(); n > 0 {
		t.Errorf("wrong usage led to %d calls", n)
	}
}

func TestRunWhenTheServerRefuses(t *testing.T) {
	s := newService(t)
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"everything is said", problem(t, connect.CodeFailedPrecondition, "rotate keyset payments: the standby is too young", "lead_not_over", "name", "req-1"),
			"rotunda: rotate keyset payments: the standby is too young\n  reason lead_not_over, field name, request req-1\n"},
		{"no field", problem(t, connect.CodeNotFound, `keyset "p" is unknown`, "unknown_keyset", "", "req-2"),
			"rotunda: keyset \"p\" is unknown\n  reason unknown_keyset, request req-2\n"},
		{"denied", problem(t, connect.CodePermissionDenied, "an auditor may not rotate", "denied", "", ""), "rotunda: an auditor may not rotate\n  reason denied\n"},
		{"token not accepted", problem(t, connect.CodeUnauthenticated, "the token is not known", "unauthenticated", "", ""),
			"rotunda: the token from ROTUNDA_TOKEN is not accepted: it is mistyped, revoked, expired, of a suspended partner, or of another server\n  reason unauthenticated\n"},
		{"no detail", connect.NewError(connect.CodeInternal, errors.New("internal error")), "rotunda: internal error\n  code internal\n"},
		{"no text", connect.NewError(connect.CodeAborted, nil), "rotunda: aborted\n  code aborted\n"},
		{"server says unavailable", problem(t, connect.CodeUnavailable, "the database is away", "database", "", ""), "rotunda: the database is away\n  reason database\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s.reply = func(context.Context, proto.Message) (proto.Message, error) { return nil, test.err }
			r := execute(t, s, nil, "keyset", "rotate", "payments", "-o", "json")
			if r.code != exitRefused || r.stderr != test.want || r.stdout != "" {
				t.Errorf("exit code %d, stdout %q, stderr:\n%swant %d and\n%s", r.code, r.stdout, r.stderr, exitRefused, test.want)
			}
		})
	}
}

func TestRunWhenTheServerIsOutOfReach(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	tls := httptest.NewUnstartedServer(newService(t).mux())
	tls.Config.ErrorLog = nil
	tls.StartTLS()
	t.Cleanup(tls.Close)
	plain := newService(t)
	other := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(other.Close)
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"nobody listens", []string{"--server", "http://127.0.0.1:1"}, "can't reach http://127.0.0.1:1: connection refused: is `rotunda serve` running at 127.0.0.1:1?"},
		{"no answer", []string{"--server", "http://" + mute.Addr().String(), "--timeout", "50ms"}, "no answer within 50ms"},
		{"unknown authority", []string{"--server", tls.URL}, "--ca-file"},
		{"plain server", []string{"--server", strings.Replace(plain.URL, "http:", "https:", 1)}, "it speaks plain http"},
		{"another server", []string{"--server", other.URL}, "is it `rotunda serve` that answers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := execute(t, nil, nil, append([]string{"keyset", "list"}, test.args...)...)
			if r.code != exitUnreachable || !strings.Contains(r.stderr, test.want) {
				t.Errorf("exit code %d, want %d with %q:\n%s", r.code, exitUnreachable, test.want, r.stderr)
			}
		})
	}
}

func TestRunWhenInterrupted(t *testing.T) {
	s := newService(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.reply = func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		cancel()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	p, _, stderr := newProcess(t, s)
	if code := run(ctx, []string{"keyset", "rotate", "payments"}, p); code != exitRefused || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestRunWhenStdoutIsClosed(t *testing.T) {
	s := newService(t)
	r := execute(t, s, func(p *process) {
		p.stdout = writerFunc(func([]byte) (int, error) { return 0, io.ErrClosedPipe })
	}, "sign", "payments", "--claims", "{}")
	if r.code != exitRefused || !strings.Contains(r.stderr, "writing the result") {
		t.Errorf("%+v", r)
	}
}

func TestConnectWhenTLS(t *testing.T) {
	s := newService(t)
	srv := httptest.NewTLSServer(s.mux())
	t.Cleanup(srv.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})), 0o644)
	if r := execute(t, nil, nil, "token", "whoami", "--server", srv.URL, "--ca-file", ca); r.code != exitDone {
		t.Errorf("with its authority: %+v", r)
	}
	write(t, ca, "nothing", 0o644)
	if r := execute(t, nil, nil, "token", "whoami", "--server", srv.URL, "--ca-file", ca); r.code != exitRefused || !strings.Contains(r.stderr, "holds no certificate") {
		t.Errorf("with a file of no authority: %+v", r)
	}
}

func TestTokenWhenTheServerIsAnotherMachine(t *testing.T) {
	for _, server := range []string{"http://192.0.2.1:8470", "http://rotunda.example.com", "http://[2001:db8::1]", "http://127.0.0.1.example.com", "http://localhost.example.com", "http://0.0.0.0:8470"} {
		r := execute(t, nil, nil, "keyset", "list", "--server", server, "--timeout", "20ms")
		if r.code != exitRefused || !strings.Contains(r.stderr, "the token is not sent to "+server) {
			t.Errorf("%s: exit code %d: %s", server, r.code, r.stderr)
		}
	}
	// What is asked for goes out (and finds nobody); what is secure is not refused.
	for _, args := range [][]string{{"--server", "http://192.0.2.1:8470", "--insecure"}, {"--server", "https://192.0.2.1:8470"}} {
		if r := execute(t, nil, nil, append([]string{"keyset", "list", "--timeout", "20ms"}, args...)...); r.code != exitUnreachable {
			t.Errorf("%q: exit code %d: %s", args, r.code, r.stderr)
		}
	}
}

func TestGuardWhenANameLeadsToAnotherMachine(t *testing.T) {
	for address, refused := range map[string]bool{
		"127.0.0.1:80": false, "127.9.9.9:80": false, "[::1]:80": false, "[::ffff:127.0.0.1]:80": false,
		"192.0.2.1:80": true, "[2001:db8::1]:80": true, "0.0.0.0:80": true, "nonsense": true,
	} {
		if err := guard(true)("tcp", address, nil); (err != nil) != refused {
			t.Errorf("guard of %s: %v, want refused %v", address, err, refused)
		}
		if err := guard(false)("tcp", address, nil); err != nil {
			t.Errorf("guard that is off, of %s: %v", address, err)
		}
	}
	to := &conn{timeout: time.Second}
	why := (&callError{to, &plainError{"192.0.2.1:80"}}).unreachable(connect.NewError(connect.CodeUnavailable, nil))
	if !strings.Contains(why, "a token is not sent there in plain text") {
		t.Error(why)
	}
}

func TestTokenWhenTheServerRedirects(t *testing.T) {
	reached := false
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	t.Cleanup(elsewhere.Close)
	srv := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	t.Cleanup(srv.Close)
	r := execute(t, nil, nil, "keyset", "rotate", "p", "--server", srv.URL)
	if r.code != exitUnreachable || reached {
		t.Errorf("exit code %d, followed: %v: %s", r.code, reached, r.stderr)
	}
}

func TestTokenWhenItComesFromSeveralPlaces(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	write(t, file, "from-file\n", 0o600)
	write(t, dataDir(dir).adminToken(), "from-data-dir\n", 0o600)
	for _, test := range []struct {
		name string
		env  map[string]string
		args []string
		want string
	}{
		{"data directory by flag", nil, []string{"--data-dir", dir}, "Bearer from-data-dir"},
		{"data directory by environment", map[string]string{"ROTUNDA_DATA_DIR": dir}, nil, "Bearer from-data-dir"},
		{"environment", map[string]string{"ROTUNDA_TOKEN": "from-env"}, []string{"--data-dir", dir}, "Bearer from-env"},
		{"file", map[string]string{"ROTUNDA_TOKEN": "from-env"}, []string{"--data-dir", dir, "--token-file", file}, "Bearer from-file"},
		{"flag", map[string]string{"ROTUNDA_TOKEN": "from-env"}, []string{"--data-dir", dir, "--token", "from-flag"}, "Bearer from-flag"},
		{"nowhere", nil, []string{"--data-dir", filepath.Join(dir, "none")}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newService(t)
			r := execute(t, nil, func(p *process) { p.env = func(name string) string { return test.env[name] } },
				append([]string{"token", "whoami", "--server", s.URL}, test.args...)...)
			if r.code != exitDone {
				t.Fatalf("%+v", r)
			}
			if _, h := s.last(t); h.Get("Authorization") != test.want {
				t.Errorf("sent %q, want %q", h.Get("Authorization"), test.want)
			}
		})
	}
}

func TestTokenWhenItsFileIsWrong(t *testing.T) {
	s := newService(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "admin.token")
	noEnv := func(p *process) { p.env = func(string) string { return "" } }
	for _, test := range []struct {
		name, content string
		mode          os.FileMode
		want          string
	}{
		{"group may read", "secret-of-the-file", 0o640, "mode 0640), so its token may be known: run: chmod 600 " + file},
		{"world may read", "secret-of-the-file", 0o604, "run: chmod 600"},
		{"empty", "\n", 0o600, "there is no token in it"},
		{"two lines", "secret-of-the-file\nb", 0o600, "the token holds a space, a line break"},
		{"not a token", strings.Repeat("a", maxTokenFile+1), 0o600, "more than 4096 bytes"},
	} {
		write(t, file, test.content, test.mode)
		for _, flags := range [][]string{{"--data-dir", dir}, {"--token-file", file}} {
			r := execute(t, s, noEnv, append([]string{"keyset", "list", "--server", s.URL}, flags...)...)
			if r.code != exitRefused || !strings.Contains(r.stderr, test.want) || strings.Contains(r.stderr, "secret-of-the-file") {
				t.Errorf("%s, %s: exit code %d: %s", test.name, flags[0], r.code, r.stderr)
			}
		}
	}
	r := execute(t, s, noEnv, "keyset", "list", "--server", s.URL, "--token-file", filepath.Join(dir, "none"))
	if r.code != exitRefused || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("missing: %+v", r)
	}
	if n := s.count(); n > 0 {
		t.Errorf("%d calls were made with a token that is not safe", n)
	}
}

func TestImportWhenTheFileIsWrong(t *testing.T) {
	s := newService(t)
	file := filepath.Join(t.TempDir(), "key")
	args := []string{"keyset", "import", "p", "--key-file", file, "--state", "active", "--max-token-life", "1h"}
	for content, want := range map[string]string{"": "there is nothing in it", strings.Repeat("k", maxKeyFile+1): "more than 32768 bytes"} {
		write(t, file, content, 0o600)
		if r := execute(t, s, nil, args...); r.code != exitRefused || !strings.Contains(r.stderr, "reading --key-file: ") || !strings.Contains(r.stderr, want) {
			t.Errorf("%+v, want %q", r, want)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if r := execute(t, s, nil, args...); r.code != exitRefused || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("%+v", r)
	}
	if s.count() > 0 {
		t.Error("the server was called")
	}
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // the file may be there already, and there is a umask
		t.Fatal(err)
	}
}

// newDataDir is a data directory as a server leaves it.
func newDataDir(t *testing.T) dataDir {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := dataDir(dir)
	write(t, d.adminToken(), "the-admin-token", 0o600)
	write(t, d.kek(), "{}", 0o600)
	write(t, d.db(), "", 0o600)
	return d
}

func TestDoctorWhenOneThingIsWrong(t *testing.T) {
	chmod := func(path func(dataDir) string, mode os.FileMode) func(*testing.T, dataDir, *service) {
		return func(t *testing.T, d dataDir, _ *service) {
			if err := os.Chmod(path(d), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	keyset := func(change func(*v1.Keyset)) func(*testing.T, dataDir, *service) {
		return func(_ *testing.T, _ dataDir, s *service) {
			s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
				if _, ok := req.(*v1.GetKeysetRequest); !ok {
					return nil, nil
				}
				k := payments()
				change(k)
				return &v1.GetKeysetResponse{Keyset: k}, nil
			}
		}
	}
	status := func(change func(*v1.GetTrailStatusResponse)) func(*testing.T, dataDir, *service) {
		return func(_ *testing.T, _ dataDir, s *service) {
			s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
				if _, ok := req.(*v1.GetTrailStatusRequest); !ok {
					return nil, nil
				}
				res := &v1.GetTrailStatusResponse{Size: 9}
				change(res)
				return res, nil
			}
		}
	}
	answer := func(answers ...proto.Message) func(*testing.T, dataDir, *service) {
		return func(_ *testing.T, _ dataDir, s *service) {
			s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
				want := strings.TrimSuffix(string(req.ProtoReflect().Descriptor().Name()), "Request") + "Response"
				for _, a := range answers {
					if string(a.ProtoReflect().Descriptor().Name()) == want {
						return a, nil
					}
				}
				return nil, nil
			}
		}
	}
	orders := func(change func(*v1.Credential)) func(*testing.T, dataDir, *service) {
		x := ordersDB()
		change(x)
		return answer(&v1.ListCredentialsResponse{Credentials: []*v1.Credential{x}})
	}
	keys := func(list ...*v1.ApiKey) func(*testing.T, dataDir, *service) {
		return func(_ *testing.T, _ dataDir, s *service) {
			s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
				if _, ok := req.(*v1.ListApiKeysRequest); ok {
					return &v1.ListApiKeysResponse{Keys: list}, nil
				}
				return nil, nil
			}
		}
	}
	retiring := func(ends, used time.Duration) *v1.ApiKey {
		k := oldKey()
		k.GraceEndsAt, k.LastUsedAt = at(ends), at(-used)
		return k
	}
	rolledWeak := weakKey()
	rolledWeak.ReplacedBy, rolledWeak.State = keyID, v1.ApiKeyState_API_KEY_STATE_RETIRING
	peppers := func(list ...*v1.Pepper) func(*testing.T, dataDir, *service) {
		return func(_ *testing.T, _ dataDir, s *service) {
			s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
				if _, ok := req.(*v1.ListPeppersRequest); ok {
					return &v1.ListPeppersResponse{Peppers: list}, nil
				}
				return nil, nil
			}
		}
	}
	metrics := func(code int, text string) func(*testing.T, dataDir, *service) {
		return func(_ *testing.T, _ dataDir, s *service) {
			s.metrics = func(w http.ResponseWriter) {
				w.WriteHeader(code)
				_, _ = io.WriteString(w, text)
			}
		}
	}
	date := func(away time.Duration) func(*testing.T, dataDir, *service) {
		return func(_ *testing.T, _ dataDir, s *service) {
			s.ready = func(w http.ResponseWriter) { w.Header().Set("Date", testNow.Add(away).Format(http.TimeFormat)) }
		}
	}
	for _, test := range []struct {
		name         string
		spoil        func(*testing.T, dataDir, *service)
		check, state string
		detail       string
	}{
		{"nothing", func(*testing.T, dataDir, *service) {}, "", "", ""},
		{"directory mode", chmod(func(d dataDir) string { return string(d) }, 0o755), "data directory", "fail", "run: chmod 700"},
		{"token mode", chmod(dataDir.adminToken, 0o640), "admin token", "fail", "run: chmod 600"},
		{"key mode", chmod(dataDir.kek, 0o604), "key file", "fail", "run: chmod 600"},
		{"database mode", chmod(dataDir.db, 0o644), "database", "fail", "run: chmod 600"},
		{"key missing", func(t *testing.T, d dataDir, _ *service) {
			if err := os.Remove(d.kek()); err != nil {
				t.Fatal(err)
			}
		}, "key file", "fail", "restore it from a backup"},
		{"log mode", func(t *testing.T, d dataDir, _ *service) { write(t, d.db()+"-wal", "", 0o644) }, "database log", "fail", "run: chmod 600"},
		{"key is a link", func(t *testing.T, d dataDir, _ *service) {
			if err := errors.Join(os.Rename(d.kek(), d.kek()+".real"), os.Symlink(d.kek()+".real", d.kek())); err != nil {
				t.Fatal(err)
			}
		}, "key file", "fail", "is not a regular file"},
		{"not ready", func(_ *testing.T, _ dataDir, s *service) {
			s.ready = func(w http.ResponseWriter) { http.Error(w, "database: locked", http.StatusServiceUnavailable) }
		}, "ready", "fail", "503 Service Unavailable database: locked"},
		{"clock a little off", date(12 * time.Second), "clock", "warn", "differ by 13s"},
		{"clock far off", date(-2 * time.Minute), "clock", "fail", "differ by 2m"},
		{"clock agrees", date(0), "", "", ""},
		{"token denied", func(t *testing.T, _ dataDir, s *service) {
			s.reply = func(context.Context, proto.Message) (proto.Message, error) {
				return nil, problem(t, connect.CodeUnauthenticated, "the token is not known", "unauthenticated", "", "")
			}
		}, "token", "fail", "the token from --token is not accepted: it is mistyped"},
		{"token ends soon", func(_ *testing.T, _ dataDir, s *service) {
			s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
				if _, ok := req.(*v1.WhoAmIRequest); !ok {
					return nil, nil
				}
				k := edgeToken()
				k.ExpiresAt = at(2 * day)
				return &v1.WhoAmIResponse{Token: k}, nil
			}
		}, "token", "warn", "ends in 2d"},
		{"trail stopped", status(func(s *v1.GetTrailStatusResponse) { s.Stopped = "an older copy of it took over" }), "trail", "fail", "it is stopped, and changes are refused: an older copy of it took over: look at `rotunda audit status"},
		{"an event waits", status(func(s *v1.GetTrailStatusResponse) { s.Waiting, s.WaitingSince = 1, at(-time.Minute) }), "trail", "warn", "1 event waits for a place in it, the oldest for 1m"},
		{"events wait shortly", status(func(s *v1.GetTrailStatusResponse) { s.Waiting, s.WaitingSince = 2, at(-time.Second) }), "", "", ""},
		{"sink fails", status(func(s *v1.GetTrailStatusResponse) {
			s.Sinks = []*v1.Sink{{Name: "siem", State: "failing", LastError: "403 Forbidden"}}
		}), "sink siem", "warn", "it fails: 403 Forbidden"},
		{"anchor fails", status(func(s *v1.GetTrailStatusResponse) {
			s.Anchors = []*v1.Anchor{{Name: "worm", State: "failing", LastError: "anchor_fork"}}
		}), "anchor worm", "warn", "it fails: anchor_fork"},
		{"a rotation is overdue", orders(func(x *v1.Credential) { x.NextAt = at(-time.Hour) }), "credentials", "fail", "overdue of orders-db"},
		{"a rotation is due", orders(func(x *v1.Credential) { x.NextAt = at(-time.Minute) }), "", "", ""},
		{"drift", orders(func(x *v1.Credential) { x.Drift = v1.Drift_DRIFT_TARGET }), "credentials", "warn", "do not agree on orders-db"},
		{"a row is tampered with", orders(func(x *v1.Credential) { x.Tampered = true }), "credentials", "fail", "changed the rows of orders-db"},
		{"a rotation failed", answer(&v1.ListRotationsResponse{Rotations: []*v1.Rotation{failedRun()}}), "rotations", "fail", "1 rotation waits for a person: orders-db"},
		{"a webhook is dead", answer(&v1.ListDeliveriesResponse{Deliveries: []*v1.Delivery{message("dead")}}), "webhooks", "warn", "redeliver --all-dead"},
		{"a store is away", answer(&v1.TestStoreResponse{Findings: []*v1.Finding{{Check: "reachable", Detail: "Vault is sealed", Remedy: "unseal it"}}}), "store vault-prod", "fail", "Vault is sealed"},
		{"a target is away", answer(&v1.TestTargetResponse{Findings: []*v1.Finding{{Check: "reachable", Detail: "no route"}}}), "target orders-pg", "fail", "no route"},
		{"witness fails", status(func(s *v1.GetTrailStatusResponse) {
			s.Witnesses = []*v1.Witness{{Name: "w", State: "failing"}}
		}), "witness w", "warn", "the server's log says why"},
		{"move late", keyset(func(k *v1.Keyset) { k.NextAt = at(-6 * time.Minute) }), "keyset payments", "fail", "late by 6m"},
		{"move due", keyset(func(k *v1.Keyset) { k.NextAt = at(-time.Minute) }), "", "", ""},
		{"no standby", keyset(func(k *v1.Keyset) { k.Keys = k.Keys[:1] }), "keyset payments", "fail", "there is no standby"},
		{"standby in the making", keyset(func(k *v1.Keyset) { k.Keys = k.Keys[:1]; k.Keys[0].Since = at(-time.Minute) }), "keyset payments", "warn", "being made"},
		{"no active key", keyset(func(k *v1.Keyset) { k.Keys = k.Keys[1:] }), "keyset payments", "fail", "no key is active"},
		{"weak key", keys(weakKey()), "API keys", "warn", "1 key is imported and too easy to guess: 5wEaK0000000000k (legacy of acme): roll them before they end: rotunda key roll"},
		{"weak key that was rolled", keys(rolledWeak), "", "", ""},
		{"grace ends and it is used", keys(retiring(23*time.Hour, time.Hour)), "API keys", "warn", "the grace of 1 retiring key ends within a day, and somebody still uses them: " + oldKeyID},
		{"grace ends and it is not used", keys(retiring(23*time.Hour, 25*time.Hour)), "", "", ""},
		{"grace goes on", keys(retiring(25*time.Hour, time.Hour)), "", "", ""},
		{"stragglers", peppers(&v1.Pepper{Generation: 2, CreatedAt: at(-31 * day)}, &v1.Pepper{Generation: 1, CreatedAt: at(-90 * day), Keys: 3, Tokens: 1}), "pepper", "warn",
			"3 keys and 1 token were not used since generation 1 was superseded 31d ago: roll or revoke what rotunda pepper stragglers 1 lists"},
		{"stragglers of a new pepper", peppers(&v1.Pepper{Generation: 2, CreatedAt: at(-29 * day)}, &v1.Pepper{Generation: 1, CreatedAt: at(-90 * day), Keys: 3}), "", "", ""},
		{"verifier behind", metrics(http.StatusOK, "a 1\nrotunda_verifier_behind_seconds 61.5\n"), "verifier", "warn", "it has heard of no revocation of a key for 1m 2s: look at the server's log"},
		{"verifier hears", metrics(http.StatusOK, "rotunda_verifier_behind_seconds 9.9\n"), "", "", ""},
		{"metrics denied", metrics(http.StatusForbidden, ""), "verifier", "skip", "/metrics says 403 Forbidden: use a token of an auditor"},
		{"metrics without it", metrics(http.StatusOK, "rotunda_verifier_behind_seconds_x 1\n"), "verifier", "skip", "/metrics does not say"},
		{"metrics of nonsense", metrics(http.StatusOK, "rotunda_verifier_behind_seconds NaN\n"), "verifier", "skip", `is "NaN"`},
		{"pepper that nothing needs", peppers(&v1.Pepper{Generation: 2, CreatedAt: at(-31 * day)}, &v1.Pepper{Generation: 1, CreatedAt: at(-90 * day)}), "", "", ""},
		{"fallback", keyset(func(k *v1.Keyset) { k.FallbackSince = at(-time.Minute) }), "keyset payments", "warn", "signer is out of reach"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, d := newService(t), newDataDir(t)
			test.spoil(t, d, s)
			spoilt := s.reply
			s.reply = func(ctx context.Context, req proto.Message) (res proto.Message, err error) {
				if spoilt != nil {
					res, err = spoilt(ctx, req)
				}
				if res != nil || err != nil {
					return res, err
				}
				switch req.(type) {
				case *v1.GetTrailStatusRequest:
					return &v1.GetTrailStatusResponse{Size: 9}, nil // a witness of the sample fails
				case *v1.ListApiKeysRequest:
					return &v1.ListApiKeysResponse{Keys: []*v1.ApiKey{ciKey(), oldKey()}}, nil // one of the sample is weak
				case *v1.ListPeppersRequest:
					return &v1.ListPeppersResponse{Peppers: []*v1.Pepper{{Generation: 1, CreatedAt: at(-day), Keys: 2}}}, nil
				}
				return nil, nil
			}
			r := execute(t, s, nil, "doctor", "--data-dir", string(d), "--token", "the-admin-token", "-o", "json")
			want := exitDone
			if test.state == "fail" {
				want = exitRefused
			}
			if r.code != want {
				t.Errorf("exit code %d, want %d: %s", r.code, want, r.stderr)
			}
			bad := findings(t, r.stdout)
			if test.state == "" {
				if len(bad) > 0 {
					t.Errorf("found %+v although all is well", bad)
				}
				return
			}
			if len(bad) != 1 || bad[0].Check != test.check || bad[0].State != test.state || !strings.Contains(bad[0].Detail+": "+bad[0].Advice, test.detail) {
				t.Errorf("found %+v, want only %s %s with %q", bad, test.check, test.state, test.detail)
			}
			if strings.Contains(r.stdout+r.stderr, "the-admin-token") {
				t.Error("it printed the token")
			}
		})
	}
}

// findings returns what is not ok.
func findings(t *testing.T, text string) []finding {
	t.Helper()
	var doc struct{ Checks []finding }
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if len(doc.Checks) < 2 {
		t.Errorf("only %d checks were made: %s", len(doc.Checks), text)
	}
	return slices.DeleteFunc(doc.Checks, func(f finding) bool { return f.State == "ok" })
}

func TestDoctorWhenTheServerIsAway(t *testing.T) {
	d := newDataDir(t)
	r := execute(t, nil, nil, "doctor", "--data-dir", string(d), "--server", "http://127.0.0.1:1")
	if r.code != exitRefused || !strings.Contains(r.stdout, "is `rotunda serve` running") || !strings.Contains(r.stdout, "  ok     key file ") {
		t.Errorf("%+v", r)
	}
	// Wrong modes are found even where they keep the token from being used.
	if err := os.Chmod(d.adminToken(), 0o644); err != nil {
		t.Fatal(err)
	}
	r = execute(t, nil, func(p *process) { p.env = func(string) string { return "" } }, "doctor", "--data-dir", string(d))
	if r.code != exitRefused || strings.Count(r.stdout, "chmod 600") != 2 {
		t.Errorf("%+v", r)
	}
}

func TestDoctorWhenTLS(t *testing.T) {
	s := newService(t)
	srv := httptest.NewTLSServer(s.mux())
	t.Cleanup(srv.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})), 0o644)
	d := newDataDir(t)
	end := srv.Certificate().NotAfter
	for before, state := range map[time.Duration]string{30 * day: "", 3 * day: "warn"} {
		now := end.Add(-before)
		s.ready = func(w http.ResponseWriter) { w.Header().Set("Date", now.UTC().Format(http.TimeFormat)) }
		s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
			switch req.(type) {
			case *v1.WhoAmIRequest:
				return &v1.WhoAmIResponse{Token: &v1.Token{Id: "t"}}, nil
			case *v1.GetTrailStatusRequest:
				return &v1.GetTrailStatusResponse{}, nil
			case *v1.ListApiKeysRequest:
				return &v1.ListApiKeysResponse{}, nil
			case *v1.ListPeppersRequest:
				return &v1.ListPeppersResponse{}, nil
			case *v1.ListKeysetsRequest:
				return &v1.ListKeysetsResponse{}, nil
			case *v1.ListCredentialsRequest:
				return &v1.ListCredentialsResponse{}, nil
			}
			return nil, nil
		}
		r := execute(t, nil, func(p *process) { p.now = func() time.Time { return now } }, "doctor", "--data-dir", string(d), "--server", srv.URL, "--ca-file", ca, "-o", "json")
		bad := findings(t, r.stdout)
		if state == "" && len(bad) > 0 || state != "" && (len(bad) != 1 || bad[0].Check != "certificate" || bad[0].State != state) {
			t.Errorf("%s before its end: %+v", before, bad)
		}
		if !strings.Contains(r.stdout, `"certificate"`) {
			t.Error("the certificate was not looked at")
		}
	}
}

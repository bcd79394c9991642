package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/awstest"
)

func TestOpenWhenConfigurationIsUnsafe(t *testing.T) {
	isolate(t)
	good := func() providers.Config {
		return providers.Config{
			Name:     "test",
			Settings: map[string]string{"region": "eu-central-1", "plaintext": "refuse"},
			Login:    providers.Fields{}.Set("access_key_id", "AKIA0000000000000000").Set("secret_access_key", strings.Repeat("s", 40)),
			Now:      time.Now,
		}
	}
	for name, row := range map[string]struct {
		change func(t *testing.T, c *providers.Config)
		reason string
	}{
		"AWS itself": {func(*testing.T, *providers.Config) {}, ""},
		"no region":  {func(_ *testing.T, c *providers.Config) { delete(c.Settings, "region") }, "setting_missing"},
		"region of the environment": {func(t *testing.T, c *providers.Config) {
			delete(c.Settings, "region")
			t.Setenv("AWS_REGION", "eu-west-1")
		}, ""},
		"half a login":         {func(_ *testing.T, c *providers.Config) { delete(c.Login, "secret_access_key") }, "login_incomplete"},
		"plain text":           {func(_ *testing.T, c *providers.Config) { c.Settings["endpoint"] = "http://aws.example" }, "plaintext"},
		"plain text, loopback": {func(_ *testing.T, c *providers.Config) { c.Settings["endpoint"] = "http://127.0.0.1:4566" }, ""},
		"plain text, allowed": {func(_ *testing.T, c *providers.Config) {
			c.Settings["endpoint"], c.Settings["plaintext"] = "http://aws.example", "allow"
		}, ""},
		"plain text, environment": {func(t *testing.T, _ *providers.Config) { t.Setenv("AWS_ENDPOINT_URL", "http://aws.example") }, "plaintext"},
		"plain text, of one service": {func(t *testing.T, _ *providers.Config) {
			t.Setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://aws.example")
			t.Setenv("AWS_ENDPOINT_URL_STS", "http://aws.example")
		}, "plaintext"},
		"plain text, STS alone": {func(_ *testing.T, c *providers.Config) {
			c.Settings["sts_endpoint"], c.Settings["role_arn"] = "http://sts.example", "arn:aws:iam::123456789012:role/r"
		}, "plaintext"},
		"TLS": {func(t *testing.T, _ *providers.Config) { t.Setenv("AWS_ENDPOINT_URL", "https://aws.example") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			row.change(t, &c)
			_, serr := SecretsManagerKind().Open(t.Context(), c)
			_, terr := IAMKind().Open(t.Context(), c)
			for what, err := range map[string]error{"store": serr, "target": terr} {
				var f *fault.Error
				errors.As(err, &f)
				if (row.reason == "") != (err == nil) || (f != nil && f.Reason != row.reason) {
					t.Errorf("%s: %v, want %q", what, err, row.reason)
				}
			}
		})
	}
}

// The SDK's default chain and its variables lead to the simulator as to AWS.
func TestChainOfEnvironment(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	for _, pair := range sim.Env() {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	store := newStore(t, providers.Config{Name: "test", Settings: map[string]string{"plaintext": "refuse"}, Now: time.Now})
	v := newVersion("the first password")
	if _, err := store.Publish(t.Context(), "orders/db", v, ""); err != nil {
		t.Fatalf("publish: %v", err)
	}
	if sim.Secret("orders/db").Labelled("AWSCURRENT") != v.Rotation {
		t.Errorf("the simulator of the environment has no version")
	}
}

func TestRoleWhenAssumed(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	arn := sim.Role("rotator", "ticket-7")
	other := awstest.Start(t) // has no such role
	other.AccessKey, other.SecretKey = sim.AccessKey, sim.SecretKey
	store := newStore(t, newConfig(sim, map[string]string{"role_arn": arn, "external_id": "ticket-7"}))
	elsewhere := newStore(t, newConfig(sim, map[string]string{"role_arn": arn, "external_id": "ticket-7", "sts_endpoint": other.URL}))
	if _, err := elsewhere.Read(t.Context(), "orders/db"); err == nil || len(other.Calls()) == 0 {
		t.Errorf("sts_endpoint was not asked: %v", err)
	}
	publish := func(prior string) string {
		t.Helper()
		name, err := store.Publish(t.Context(), "orders/db", newVersion("a password"), prior)
		if err != nil {
			t.Fatalf("publish: %v", err)
		}
		return name
	}
	first := publish("")
	sim.ExpireSessions()
	publish(first) // with a session that is assumed afresh
	var assumed int
	for _, c := range sim.Calls() {
		if c.Action == "sts:AssumeRole" {
			assumed++
		} else if c.Code == "" && c.Caller != "arn:aws:sts::123456789012:assumed-role/rotator/rotunda" {
			t.Errorf("%s was signed by %s", c.Action, c.Caller)
		}
	}
	if assumed != 2 {
		t.Errorf("the role was assumed %d times, want 2", assumed)
	}
	wrong := newStore(t, newConfig(sim, map[string]string{"role_arn": arn, "external_id": "ticket-8"}))
	_, err := wrong.Publish(t.Context(), "orders/db", newVersion("a password"), first)
	wantOutcome(t, "publish with a wrong external id", err, providers.Refused)
}

// What AWS does not take of the login is tried twice, and then a person has to look.
func TestLoginWhenRefused(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	c := newConfig(sim, nil)
	c.Login = c.Login.Set("secret_access_key", strings.Repeat("wrong", 8))
	store := newStore(t, c)
	_, err := store.Read(t.Context(), "orders/db")
	wantOutcome(t, "read with a wrong secret", err, providers.Refused)
	if n := len(sim.Calls()); n != 2 || !strings.Contains(err.Error(), "request") || strings.Contains(err.Error(), "wrongwrong") {
		t.Errorf("%d calls, and the error is: %v", n, err)
	}
	c.Login = c.Login.Set("access_key_id", "AKIAUNKNOWN000000000")
	_, err = newStore(t, c).Read(t.Context(), "orders/db")
	wantOutcome(t, "read with an unknown key", err, providers.Refused)
}

// A clock that is off is corrected by AWS's own, from the second try on.
func TestClockWhenFarOff(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	sim.SetClock(func() time.Time { return time.Now().Add(20 * time.Minute) })
	store := newStore(t, newConfig(sim, nil))
	if _, err := store.Read(t.Context(), "orders/db"); err != nil {
		t.Errorf("read: %v", err)
	}
	if _, err := store.Publish(t.Context(), "orders/db", newVersion("a password"), ""); err != nil {
		t.Fatalf("publish: %v", err)
	}
	found, err := store.Check(t.Context(), "orders/db")
	if err != nil {
		t.Fatalf("check: %v", err)
	}
	if f := finding(found, "clock_skew"); f.OK || f.Warning || !strings.Contains(f.Measured, "-20m") && !strings.Contains(f.Measured, "-19m") {
		t.Errorf("the finding is %+v", f)
	}
}

func TestAnswerWhenItIsNone(t *testing.T) {
	isolate(t)
	for name, answer := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil || r.Context().Err() != nil {
					return
				}
			}
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>maintenance</html>") },
		"empty":   func(http.ResponseWriter, *http.Request) {},
		"a proxy's 502": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadGateway)
			fmt.Fprint(w, "bad gateway")
		},
		"another protocol": func(w http.ResponseWriter, _ *http.Request) {
			conn, buffer, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, _ = buffer.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			_ = buffer.Flush()
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the client waits for the end of a bare connection, which no deadline ends")
			}
		},
		"a bare 429": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
		"closed":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(answer)
			defer server.Close()
			c := providers.Config{
				Name:     "test",
				Settings: map[string]string{"region": "eu-central-1", "endpoint": server.URL, "plaintext": "refuse"},
				Login:    providers.Fields{}.Set("access_key_id", "AKIA0000000000000000").Set("secret_access_key", strings.Repeat("s", 40)),
				Now:      time.Now,
			}
			store, target := newStore(t, c), newTarget(t, c)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, perr := store.Publish(ctx, "orders/db", newVersion("the password"), "")
			change := providers.Change{Rotation: newRotation(), Params: map[string]string{"user": "bob", "marker": "none"}, At: time.Now()}
			_, aerr := target.Apply(ctx, change)
			verr := target.Verify(ctx, change, providers.Held{Account: "bob", Fields: providers.Fields{}.Set(fieldID, "AKIA0000000000000000").Set(fieldSecret, strings.Repeat("s", 40))})
			for what, err := range map[string]error{"publish": perr, "apply": aerr, "verify": verr} {
				got := providers.OutcomeOf(err)
				if err == nil || (got != providers.Unknown && got != providers.Throttled) {
					t.Errorf("%s: %v (%s)", what, err, got)
				}
				if err != nil && strings.Contains(err.Error(), strings.Repeat("s", 40)) {
					t.Errorf("%s: the error holds the login", what)
				}
			}
		})
	}
}

// Everything that says nothing about a value names the code of AWS.
func TestErrorsOfEachCode(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	store := newStore(t, newConfig(sim, nil))
	v := newVersion("the first password")
	if _, err := store.Publish(t.Context(), "orders/db", v, ""); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[awstest.Mode]string{
		awstest.Throttled: "ThrottlingException", awstest.Denied: "AccessDeniedException", awstest.FailBefore: "InternalServiceError", awstest.KeyDisabled: "EncryptionFailure",
	} {
		sim.Inject(awstest.Fault{Action: "secretsmanager:PutSecretValue", Mode: mode, Times: 1})
		err := store.Stage(t.Context(), "orders/db", newVersion("the second password"))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "(request ") {
			t.Errorf("%s: %v, want %s and a request id", mode, err, want)
		}
	}
}

func TestCallWhenContextEnded(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	store := newStore(t, newConfig(sim, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Publish(ctx, "orders/db", newVersion("a password"), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("publish with a cancelled context: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	sim.Inject(awstest.Fault{Mode: awstest.Slow, Wait: 10 * time.Second})
	if _, err := store.Publish(ctx, "orders/db", newVersion("a password"), ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("publish to an AWS that is slow: %v", err)
	}
}

package postgres_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/postgres"
)

func TestPasswordWhenServerLogsEverything(t *testing.T) {
	b := newBed(t, bedtest.NewPostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	var values []string
	for _, s := range []providers.Strategy{providers.Alternate, providers.Replace} {
		c := b.change(t, s)
		for generation := int64(1); generation <= 3; generation++ {
			c = prepare(t, target, rotation(c, generation, generation))
			if _, err := target.Check(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			h := apply(t, target, c)
			values = append(values, h.Fields.Text("password"))
			if err := target.Verify(t.Context(), c, h); err != nil {
				t.Fatal(err)
			}
			unknown := prepare(t, target, c).New // never applied
			values = append(values, unknown.Fields.Text("password"))
			if err := target.Verify(t.Context(), c, unknown); !errors.Is(err, fault.ErrRejected) {
				t.Fatalf("verify of another value: %v", err)
			}
			c.Emergency = true
			if c.Current.Account != "" {
				if err := target.Revoke(t.Context(), c, c.Current); err != nil {
					t.Fatal(err)
				}
			}
			c.Current = h
		}
		// A statement that fails is logged with its text, too.
		b.Exec(t, "DROP ROLE "+quote(c.New.Account))
		if _, err := target.Apply(t.Context(), c); !errors.Is(err, fault.ErrNotFound) {
			t.Fatalf("apply to a role that was dropped: %v", err)
		}
	}
	log := b.Log(t)
	for _, want := range []string{"ALTER ROLE \"", "PASSWORD 'SCRAM-SHA-256$4096:", "COMMENT ON ROLE", "password authentication failed"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log has no %q: it proves nothing", want)
		}
	}
	for _, v := range values {
		if strings.Contains(log, v) || strings.Contains(log, base64.StdEncoding.EncodeToString([]byte(v))) {
			t.Error("the server's log has a password")
		}
	}
}

func TestCommentWhenAPersonWroteIt(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	c := b.change(t, providers.Replace)
	role := quote(c.Params["user"])
	const text = `Ann's role \ "orders" [v2] – do not 'drop'; `
	comment := func() string {
		return b.query(t, "SELECT coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_authid WHERE rolname = $1", c.Params["user"])
	}
	b.Exec(t, "COMMENT ON ROLE "+role+" IS '"+strings.ReplaceAll(text, "'", "''")+"'")
	for generation := int64(1); generation <= 3; generation++ {
		c = prepare(t, target, rotation(c, generation, 40+generation))
		apply(t, target, c)
		want := fmt.Sprintf("%s [rotunda rotation=%s generation=%d epoch=%d]", text, c.Rotation, generation, 40+generation)
		if got := comment(); got != want {
			t.Fatalf("the comment is %q, want %q", got, want)
		}
	}
	b.Exec(t, "COMMENT ON ROLE "+role+" IS 'now Bob''s'")
	if got, err := target.Applied(t.Context(), c, c.New.Account); err != nil || got.Known {
		t.Errorf("without a marker: %+v, %v", got, err)
	}
	c = prepare(t, target, rotation(c, 4, 50))
	apply(t, target, c)
	if got, _ := strings.CutSuffix(comment(), fmt.Sprintf(" [rotunda rotation=%s generation=4 epoch=50]", c.Rotation)); got != "now Bob's" {
		t.Errorf("the comment is %q", comment())
	}
}

func TestRoleNamesWhenHostile(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	for _, name := range []string{`a"b`, `a'b`, `a\b`, `日本 "語`, `x"; ALTER ROLE super PASSWORD NULL; --`, `$1`, `%s`, `a b`, `USER`, strings.Repeat("é", 31)} {
		other := bedtest.Fresh("other")
		c := b.change(t, providers.Alternate, name, other)
		for generation := int64(1); generation <= 3; generation++ {
			c = prepare(t, target, rotation(c, generation, generation))
			h := apply(t, target, c)
			if err := target.Verify(t.Context(), c, h); err != nil || !b.accepts(t, h) {
				t.Fatalf("%q: generation %d: %v", name, generation, err)
			}
			old := c.Current
			if old.Account != "" {
				if err := errors.Join(target.Retire(t.Context(), c, old, time.Now().Add(time.Hour)), target.Revoke(t.Context(), c, old)); err != nil {
					t.Fatalf("%q: %v", name, err)
				}
				if b.accepts(t, old) {
					t.Errorf("%q: a revoked value is accepted", name)
				}
			}
			c.Current = h
		}
		if _, err := target.Usage(t.Context(), c, c.Current); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{strings.Repeat("x", 64), "a\x00b", "a\xffb"} {
		c := providers.Change{Strategy: providers.Replace, Params: map[string]string{"user": name}}
		if _, err := target.Prepare(t.Context(), c); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %v, want invalid", name, err)
		}
	}
}

// Many processes apply different generations at once: whatever comes out, the marker
// is true, and no older one ever follows a newer one.
func TestApplyWhenGenerationsRace(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	c := b.change(t, providers.Replace)
	const racers = 6
	var changes [racers]providers.Change
	var targets [racers]providers.Target
	for i := range racers {
		targets[i] = b.open(t)
		defer targets[i].Close()
		changes[i] = prepare(t, targets[i], rotation(c, int64(i+1), int64(i+1)))
	}
	for range 5 {
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				_, err := targets[i].Apply(t.Context(), changes[i])
				if o := providers.OutcomeOf(err); err != nil && o != providers.Moved {
					t.Errorf("generation %d: %v (%s)", i+1, err, o)
				}
			})
		}
		wg.Wait()
		got, err := targets[0].Applied(t.Context(), c, c.Params["user"])
		if err != nil || got.Generation != racers {
			t.Fatalf("the marker is %+v, %v: the newest generation has to win", got, err)
		}
		for i := range racers {
			if want := i == racers-1; b.accepts(t, changes[i].New) != want {
				t.Fatalf("generation %d is accepted: %v", i+1, !want)
			}
		}
	}
}

// What Apply said to be done is there after a crash of the server, also where the
// server answers a commit before it is durable.
func TestApplyWhenServerCrashes(t *testing.T) {
	server := bedtest.NewPostgreSQL(t)
	b := newBed(t, server)
	target := b.open(t)
	defer target.Close()
	c := b.change(t, providers.Alternate)
	for generation := int64(1); generation <= 3; generation++ {
		c = prepare(t, target, rotation(c, generation, generation))
		h := apply(t, target, c)
		server.Stop(t)
		err := target.Verify(t.Context(), c, h)
		if providers.OutcomeOf(err) != providers.Unknown || err == nil {
			t.Errorf("verify while the server is down: %v, want unknown", err)
		}
		if _, err := target.Apply(t.Context(), c); providers.OutcomeOf(err) != providers.Unknown || err == nil {
			t.Errorf("apply while the server is down: %v, want unknown", err)
		}
		server.Start(t)
		if err := target.Verify(t.Context(), c, h); err != nil {
			t.Fatalf("generation %d after a crash: %v", generation, err)
		}
		got, err := target.Applied(t.Context(), c, h.Account)
		if err != nil || got.Generation != generation {
			t.Fatalf("the marker after a crash: %+v, %v", got, err)
		}
		c.Current = h
	}
}

func TestRevokeWhenTheCommentIsGone(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Alternate), 1, 1))
	first := apply(t, target, c)
	c.Current = first
	c = prepare(t, target, rotation(c, 2, 2))
	second := apply(t, target, c)
	c.New = second
	for _, h := range []providers.Held{first, second} {
		b.Exec(t, "COMMENT ON ROLE "+quote(h.Account)+" IS NULL")
	}

	// Somebody has a record of another value of the second's role: in doubt it stays.
	stranger := providers.Held{Generation: 1, Rotation: "x", Account: second.Account}
	if err := target.Revoke(t.Context(), c, stranger); err != nil || !b.accepts(t, second) {
		t.Errorf("revoke of another value of the role: %v; the role's value is accepted: %v", err, b.accepts(t, second))
	}
	if err := target.Revoke(t.Context(), c, first); err != nil || b.accepts(t, first) {
		t.Errorf("revoke of the only value on record: %v; it is accepted: %v", err, b.accepts(t, first))
	}
	// The login's own role is never ended.
	if err := target.Revoke(t.Context(), c, providers.Held{Account: b.admin}); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("revoke of the login's role: %v, want invalid", err)
	}
	b.Exec(t, "DROP ROLE "+quote(first.Account))
	if err := target.Revoke(t.Context(), c, first); err != nil {
		t.Errorf("revoke of a role that is gone: %v", err)
	}
}

func TestErrorsWhenServerRefuses(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))

	weak := *b
	weak.admin = bedtest.Fresh("weak")
	b.Exec(t, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD '%s'", weak.admin, weak.password))
	defer b.Exec(t, "DROP ROLE "+weak.admin)
	wrong := b.config(t, nil)
	wrong.Login = providers.Fields{"password": secret.FromString("wrong-login")}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	superuser := c
	superuser.Params, superuser.New.Account = map[string]string{"user": "super"}, "super"
	missing := c
	missing.Params, missing.New.Account = map[string]string{"user": "nobody_here"}, "nobody_here"

	for name, x := range map[string]struct {
		config providers.Config
		change providers.Change
		kind   error
		want   providers.Outcome
	}{
		"no permission":       {weak.config(t, nil), c, fault.ErrDenied, providers.Refused},
		"a superuser":         {b.config(t, nil), superuser, fault.ErrDenied, providers.Refused},
		"a missing role":      {b.config(t, nil), missing, fault.ErrNotFound, providers.Refused},
		"a wrong login":       {wrong, c, fault.ErrDenied, providers.Refused},
		"a missing database":  {b.config(t, map[string]string{"database": "none_such"}), c, fault.ErrNotFound, providers.Refused},
		"nobody at the port":  {b.config(t, map[string]string{"address": closed}), c, fault.ErrUnavailable, providers.Unknown},
		"TLS, unknown issuer": {b.config(t, map[string]string{"sslmode": "verify-full"}), c, fault.ErrUnavailable, providers.Unknown},
	} {
		x.config.Name = "orders"
		target := b.openWith(t, x.config)
		_, err := target.Apply(t.Context(), x.change)
		if !errors.Is(err, x.kind) || providers.OutcomeOf(err) != x.want {
			t.Errorf("%s: %v (%s), want %s", name, err, providers.OutcomeOf(err), x.want)
		}
		for _, s := range []string{c.New.Fields.Text("password"), b.password, "wrong-login", "SCRAM-SHA"} {
			if err != nil && strings.Contains(err.Error(), s) {
				t.Errorf("%s: the error holds a secret", name)
			}
		}
		if err := target.Close(); err != nil {
			t.Error(err)
		}
	}
	if got, err := target.Applied(t.Context(), c, c.New.Account); err != nil || got.Known {
		t.Errorf("calls that were refused left a marker: %+v, %v", got, err)
	}
}

// passwordcheck refuses a verifier of the role's own name: the one thing that a hook
// can find out about a verifier.
func TestApplyWhenPolicyRejects(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	b.Exec(t, "ALTER ROLE "+b.admin+" SET session_preload_libraries = 'passwordcheck'")
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))
	c.New.Fields = c.New.Fields.Set("password", c.New.Account)
	_, err := target.Apply(t.Context(), c)
	if !errors.Is(err, fault.ErrRejected) || providers.OutcomeOf(err) != providers.Rejected {
		t.Fatalf("apply: %v (%s), want rejected", err, providers.OutcomeOf(err))
	}
	if got, err := target.Applied(t.Context(), c, c.New.Account); err != nil || got.Known || b.accepts(t, c.New) {
		t.Errorf("a rejected value left a marker, or is accepted: %+v, %v", got, err)
	}
	c = prepare(t, target, rotation(c, 2, 1))
	if h := apply(t, target, c); !b.accepts(t, h) {
		t.Error("the next value is not accepted")
	}
}

func TestTLSWhenAuthorityIsGiven(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.openWith(t, b.config(t, map[string]string{"sslmode": "verify-full", "sslrootcert": b.CA}))
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))
	h := apply(t, target, c)
	if err := target.Verify(t.Context(), c, h); err != nil {
		t.Error(err)
	}
	config := b.config(t, map[string]string{"address": "db.example:5432"})
	if _, err := postgres.Kind().Open(t.Context(), config); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("plain text to another machine: %v, want invalid", err)
	}
	config.Settings["plaintext"] = "allow"
	open, err := postgres.Kind().Open(t.Context(), config)
	if err != nil {
		t.Fatalf("plain text that is allowed: %v", err)
	}
	_ = open.Close()
	for _, address := range []string{"", ":5432", "db:0", "db:99999", "user@db:5432", "/var/run:5432"} {
		config.Settings["address"] = address
		if _, err := postgres.Kind().Open(t.Context(), config); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("address %q: %v, want invalid", address, err)
		}
	}
}

package mysql_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/mysql"
)

func TestPasswordWhenServerLogsEverything(t *testing.T) {
	b := newBed(t, bedtest.NewMariaDB(t))
	target := b.open(t)
	defer target.Close()
	var values []string
	for _, plugin := range []string{"default", "ed25519"} {
		c := b.change(t, providers.Alternate)
		c.Params["plugin"] = plugin
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
			if c.Current.Account != "" {
				if err := target.Revoke(t.Context(), c, c.Current); err != nil {
					t.Fatal(err)
				}
			}
			c.Current = h
		}
		name := c.New.Fields.Text("username")
		b.Exec(t, "DROP USER "+literal(name)+"@'%'")
		if _, err := target.Apply(t.Context(), c); !errors.Is(err, fault.ErrNotFound) {
			t.Fatalf("apply to an account that was dropped: %v", err)
		}
		b.users(t, name)
	}
	log := b.Log(t)
	for _, want := range []string{"IDENTIFIED VIA mysql_native_password USING '*", "IDENTIFIED VIA ed25519 USING '", "ACCOUNT LOCK", "# Time:"} {
		if !strings.Contains(log, want) {
			t.Errorf("the logs have no %q: they prove nothing", want)
		}
	}
	for _, v := range values {
		if strings.Contains(log, v) {
			t.Error("the server's logs have a password")
		}
	}
}

func TestAccountNamesWhenHostile(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	for _, name := range []string{`a"b`, `a'b`, `a\b`, `a\'b`, `日本 "語`, "x'@'%' IDENTIFIED BY ''; -- ", "a`b", `%s`, `a@b`} {
		c := b.change(t, providers.Alternate, name, bedtest.Fresh("other"))
		c.Params["users"] = name + "@%," + strings.SplitN(c.Params["users"], ",", 2)[1]
		for generation := int64(1); generation <= 3; generation++ {
			c = prepare(t, target, rotation(c, generation, generation))
			h := apply(t, target, c)
			if err := target.Verify(t.Context(), c, h); err != nil || !b.accepts(t, h) {
				t.Fatalf("%q: generation %d: %v", name, generation, err)
			}
			if old := c.Current; old.Account != "" {
				if err := target.Revoke(t.Context(), c, old); err != nil || b.accepts(t, old) {
					t.Fatalf("%q: revoke: %v", name, err)
				}
			}
			if got, err := target.Applied(t.Context(), c, h.Account); err != nil || got.Generation != generation {
				t.Errorf("%q: %+v, %v", name, got, err)
			}
			c.Current = h
		}
	}
}

func TestApplyWhenGenerationsRace(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
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
		got, err := targets[0].Applied(t.Context(), c, changes[0].New.Account)
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

func TestApplyWhenServerCrashes(t *testing.T) {
	server := bedtest.NewMariaDB(t)
	b := newBed(t, server)
	target := b.open(t)
	defer target.Close()
	c := b.change(t, providers.Alternate)
	for generation := int64(1); generation <= 2; generation++ {
		c = prepare(t, target, rotation(c, generation, generation))
		h := apply(t, target, c)
		server.Stop(t)
		if err := target.Verify(t.Context(), c, h); err == nil || providers.OutcomeOf(err) != providers.Unknown {
			t.Errorf("verify while the server is down: %v, want unknown", err)
		}
		if _, err := target.Apply(t.Context(), c); err == nil || providers.OutcomeOf(err) != providers.Unknown {
			t.Errorf("apply while the server is down: %v, want unknown", err)
		}
		server.Start(t)
		if err := target.Verify(t.Context(), c, h); err != nil {
			t.Fatalf("generation %d after a crash: %v", generation, err)
		}
		if got, err := target.Applied(t.Context(), c, h.Account); err != nil || got.Generation != generation {
			t.Fatalf("the marker after a crash: %+v, %v", got, err)
		}
		c.Current = h
	}
}

// A password hook of the server: first it refuses hashes, then what is too short.
func TestPolicyWhenServerHasOne(t *testing.T) {
	server := bedtest.NewMariaDB(t)
	b := newBed(t, server)
	c := b.change(t, providers.Replace)
	server.Exec(t, "INSTALL SONAME 'simple_password_check'", "SET GLOBAL simple_password_check_minimal_length = 60")
	finding := func(target providers.Target, check string) providers.Finding {
		t.Helper()
		found, err := target.Check(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(found, func(f providers.Finding) bool { return f.Check == check })
		if i < 0 {
			t.Fatalf("there is no finding %q: %+v", check, found)
		}
		return found[i]
	}
	target := b.open(t)
	defer target.Close()
	if f := finding(target, "password_policy"); f.OK || !strings.Contains(f.Remedy, "send=text") {
		t.Errorf("hashes are refused: %+v", f)
	}
	_, err := target.Apply(t.Context(), prepare(t, target, rotation(c, 1, 1)))
	if !errors.Is(err, fault.ErrDenied) || !strings.Contains(err.Error(), "send=text") {
		t.Errorf("apply of a hash: %v, want denied, with what to set", err)
	}

	text := openWith(t, b.config(t, map[string]string{"send": "text"}))
	defer text.Close()
	if f := finding(text, "plaintext_in_log"); f.OK || !f.Warning {
		t.Errorf("send=text: %+v", f)
	}
	short := prepare(t, text, rotation(c, 1, 1))
	if _, err := text.Apply(t.Context(), short); providers.OutcomeOf(err) != providers.Rejected || strings.Contains(err.Error(), short.New.Fields.Text("password")) {
		t.Errorf("apply of a short password: %v (%s), want rejected", err, providers.OutcomeOf(err))
	}
	c.Params["length"], c.Params["characters"] = "64", "alphanumeric_marks"
	server.Exec(t, "SET GLOBAL simple_password_check_minimal_length = 30")
	c = prepare(t, text, rotation(c, 2, 2))
	if h := apply(t, text, c); !b.accepts(t, h) {
		t.Error("a password after the policy is not accepted")
	}
}

func TestErrorsWhenServerRefuses(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))
	wrong := b.config(t, nil)
	wrong.Login = providers.Fields{"password": secret.FromString("wrong-login")}
	weak := newBed(t, bedtest.MariaDB(t))
	weak.Exec(t, "REVOKE CREATE USER ON *.* FROM '"+weak.admin+"'@'%'")
	missing := c
	missing.Params, missing.New.Account = params(t, providers.Replace, nil, "nobody_here"), "nobody_here@%"
	plugin := c
	plugin.Params = params(t, providers.Replace, map[string]string{"plugin": "caching_sha2_password"}, c.Params["user"])
	for name, x := range map[string]struct {
		config providers.Config
		change providers.Change
		kind   error
		want   providers.Outcome
	}{
		"no permission":      {weak.config(t, nil), c, fault.ErrDenied, providers.Refused},
		"a wrong login":      {wrong, c, fault.ErrDenied, providers.Refused},
		"a missing account":  {b.config(t, nil), missing, fault.ErrNotFound, providers.Refused},
		"an unknown plugin":  {b.config(t, nil), plugin, fault.ErrInvalid, providers.Refused},
		"no table":           {b.config(t, map[string]string{"marker_table": "rotunda.nothing_here"}), c, fault.ErrDenied, providers.Refused},
		"nobody at the port": {b.config(t, map[string]string{"address": "127.0.0.1:1"}), c, fault.ErrUnavailable, providers.Unknown},
		"unknown issuer":     {b.config(t, map[string]string{"tls": "verify"}), c, fault.ErrUnavailable, providers.Unknown},
	} {
		target := openWith(t, x.config)
		_, err := target.Apply(t.Context(), x.change)
		if !errors.Is(err, x.kind) || providers.OutcomeOf(err) != x.want {
			t.Errorf("%s: %v (%s), want %s", name, err, providers.OutcomeOf(err), x.want)
		}
		for _, s := range []string{c.New.Fields.Text("password"), b.password, "wrong-login"} {
			if err != nil && strings.Contains(err.Error(), s) {
				t.Errorf("%s: the error holds a secret", name)
			}
		}
		_ = target.Close()
	}
	secure := openWith(t, b.config(t, map[string]string{"tls": "verify", "ca": b.CA}))
	defer secure.Close()
	if err := secure.Verify(t.Context(), c, apply(t, secure, c)); err != nil {
		t.Errorf("over TLS: %v", err)
	}
	for _, address := range []string{"db.example:3306", "a@b:1", "127.0.0.1:0", ":3306", "127.0.0.1:99999"} {
		config := b.config(t, nil)
		config.Settings["address"] = address
		if _, err := mysql.Kind().Open(t.Context(), config); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("address %q: %v, want invalid", address, err)
		}
	}
	self := c
	self.Params = params(t, providers.Replace, nil, b.admin)
	if _, err := target.Prepare(t.Context(), self); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("rotation of the login: %v, want invalid", err)
	}
}

func TestDualWhenServerIsMariaDB(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	c := rotation(b.change(t, providers.Dual), 1, 1)
	found, err := target.Check(t.Context(), c)
	if err != nil || !slices.ContainsFunc(found, func(f providers.Finding) bool { return f.Check == "dual_passwords" && !f.OK && !f.Warning }) {
		t.Errorf("check: %+v, %v", found, err)
	}
	if _, err := target.Prepare(t.Context(), c); !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "alternate") {
		t.Errorf("prepare: %v, want invalid, with what to use", err)
	}
}

// Without markers the account's own hash says whose value it is.
func TestRevokeWhenThereIsNoMarker(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := openWith(t, b.config(t, map[string]string{"marker_table": ""}))
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Alternate), 1, 1))
	first := apply(t, target, c)
	if got, err := target.Applied(t.Context(), c, first.Account); err != nil || got.Known {
		t.Errorf("without a table: %+v, %v", got, err)
	}
	stale := c
	c.Current = first
	c = prepare(t, target, rotation(c, 2, 2))
	c.New = apply(t, target, c)

	// Somebody sets another value; Revoke of ours must not touch it.
	other := first
	other.Fields = first.Fields.Set("password", "set-by-a-person")
	name := literal(first.Fields.Text("username")) + "@'%'"
	b.Exec(t, "ALTER USER "+name+" IDENTIFIED BY 'set-by-a-person'")
	if err := target.Revoke(t.Context(), c, first); err != nil || !b.accepts(t, other) {
		t.Errorf("revoke of a value that the account no longer has: %v; the other is accepted: %v", err, b.accepts(t, other))
	}
	apply(t, target, stale) // nothing can refuse it here
	if err := target.Revoke(t.Context(), c, first); err != nil || b.accepts(t, first) || b.accepts(t, other) {
		t.Errorf("revoke: %v", err)
	}
}

func TestSessionsWhenTheLoginMayLittle(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Alternate), 1, 1))
	old := apply(t, target, c)
	alive := b.session(t, old)
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	c.Emergency = true
	c.New = apply(t, target, c)
	e, err := target.Usage(t.Context(), c, old)
	if err != nil || !e.Known || e.Sessions != 1 || time.Since(e.LastUsed) > time.Hour {
		t.Errorf("a session: %+v, %v", e, err)
	}
	user := "'" + b.admin + "'@'%'"
	b.Exec(t, "REVOKE CONNECTION ADMIN ON *.* FROM "+user)
	again := b.open(t)
	defer again.Close()
	if err := again.Revoke(t.Context(), c, old); !errors.Is(err, fault.ErrDenied) || !strings.Contains(err.Error(), "CONNECTION ADMIN") || !alive() || b.accepts(t, old) {
		t.Errorf("revoke without the right to end sessions: %v, want denied, with what to grant", err)
	}
	b.Exec(t, "REVOKE PROCESS ON *.* FROM "+user)
	blind := b.open(t)
	defer blind.Close()
	if e, err := blind.Usage(t.Context(), c, old); err != nil || e.Known {
		t.Errorf("usage without PROCESS: %+v, %v", e, err)
	}
	found, err := blind.Check(t.Context(), c)
	for _, check := range []string{"usage_evidence", "end_sessions"} {
		if err != nil || !slices.ContainsFunc(found, func(f providers.Finding) bool { return f.Check == check && f.Warning }) {
			t.Errorf("check does not warn of %s: %+v, %v", check, found, err)
		}
	}
	b.Exec(t, "GRANT PROCESS, CONNECTION ADMIN ON *.* TO "+user)
	whole := b.open(t)
	defer whole.Close()
	if err := whole.Revoke(t.Context(), c, old); err != nil || alive() {
		t.Errorf("the same again: %v; the session works: %v", err, alive())
	}
}

func TestCheckWhenAccountsDiffer(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	c := b.change(t, providers.Alternate)
	users := strings.Split(c.Params["users"], ",")
	warns := func(check string) bool {
		t.Helper()
		found, err := target.Check(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(found, func(f providers.Finding) bool { return f.Check == check && f.Warning })
	}
	if warns("grants") || warns("same_name") || warns("current_value") {
		t.Error("a sound credential has warnings")
	}
	b.Exec(t, "GRANT SELECT ON rotunda.* TO "+literal(users[0])+"@'%'")
	if !warns("grants") {
		t.Error("different grants are not found")
	}
	b.Exec(t, "GRANT SELECT ON rotunda.* TO "+literal(users[1])+"@'%'")
	if warns("grants") {
		t.Error("equal grants are said to differ")
	}
	b.Exec(t, "CREATE USER "+literal(users[0])+"@'10.0.0.1'")
	if !warns("same_name") {
		t.Error("two accounts of a name are not found")
	}
	b.Exec(t, "DROP USER "+literal(users[0])+"@'10.0.0.1'")
	c.Current = providers.Held{Account: users[0] + "@%", Fields: providers.Fields{}.Set("username", users[0]).Set("password", "not-this-one")}
	if !warns("current_value") {
		t.Error("a value that is not accepted is not found")
	}
}

func TestScratchWhenMadeAndRemoved(t *testing.T) {
	b := newBed(t, bedtest.MariaDB(t))
	target := b.open(t)
	defer target.Close()
	scratcher := target.(providers.Scratcher)
	for _, s := range []providers.Strategy{providers.Alternate, providers.Replace} {
		c := b.change(t, s)
		before := b.snapshot(t, c)
		copied := c
		for range 2 {
			p, err := scratcher.Scratch(t.Context(), c, "drill1")
			if err != nil {
				t.Fatal(err)
			}
			copied.Params = p
		}
		if fmt.Sprint(copied.Params) == fmt.Sprint(c.Params) {
			t.Fatalf("%s: the copy has the same accounts", s)
		}
		copied = prepare(t, target, rotation(copied, 1, 1))
		if err := target.Verify(t.Context(), copied, apply(t, target, copied)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		for range 2 {
			if err := scratcher.Unscratch(t.Context(), c, "drill1"); err != nil {
				t.Fatal(err)
			}
		}
		if after := b.snapshot(t, c); after != before {
			t.Errorf("%s: something was left behind: before\n%s\nafter\n%s", s, before, after)
		}
	}
}

package postgres_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
)

func finding(t testing.TB, found []providers.Finding, check string) providers.Finding {
	t.Helper()
	i := slices.IndexFunc(found, func(f providers.Finding) bool { return f.Check == check && !f.OK })
	if i < 0 {
		i = slices.IndexFunc(found, func(f providers.Finding) bool { return f.Check == check })
	}
	if i < 0 {
		t.Fatalf("there is no finding %q: %+v", check, found)
	}
	return found[i]
}

func TestCheckWhenSomethingWouldFail(t *testing.T) {
	server := bedtest.PostgreSQL(t)
	b := newBed(t, server)
	check := func(c providers.Change, config providers.Config) []providers.Finding {
		t.Helper()
		target := b.openWith(t, config)
		defer target.Close()
		found, err := target.Check(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	want := func(found []providers.Finding, name string, ok, warning bool, remedy string) {
		t.Helper()
		f := finding(t, found, name)
		if f.OK != ok || f.Warning != warning || !strings.Contains(f.Remedy, remedy) {
			t.Errorf("%s: %+v, want ok %v, warning %v, remedy with %q", name, f, ok, warning, remedy)
		}
	}
	c := b.change(t, providers.Alternate)
	users := strings.Split(c.Params["users"], ",")
	for _, f := range check(c, b.config(t, nil)) {
		if !f.OK {
			t.Errorf("a sound credential: %+v", f)
		}
	}

	group := bedtest.Fresh("group")
	b.Exec(t, "CREATE ROLE "+group, "GRANT "+group+" TO "+users[0])
	defer b.Exec(t, "DROP ROLE "+group)
	want(check(c, b.config(t, nil)), "memberships", false, true, "both")
	b.Exec(t, "GRANT "+group+" TO "+users[1])
	want(check(c, b.config(t, nil)), "memberships", true, false, "")

	table := bedtest.Fresh("table")
	b.Exec(t, "CREATE TABLE "+table+" (x int)", "ALTER TABLE "+table+" OWNER TO "+users[0])
	want(check(c, b.config(t, nil)), "ownership", false, true, "REASSIGN")
	b.Exec(t, "DROP TABLE "+table)

	b.Exec(t, "ALTER ROLE "+users[1]+" NOLOGIN")
	want(check(c, b.config(t, nil)), "role_can_login", false, false, "LOGIN")
	b.Exec(t, "ALTER ROLE "+users[1]+" LOGIN")

	b.Exec(t, "ALTER ROLE "+users[1]+" SUPERUSER")
	found := check(c, b.config(t, nil))
	want(found, "superuser", false, true, "grants")
	want(found, "permission", false, false, "superuser")
	b.Exec(t, "ALTER ROLE "+users[1]+" NOSUPERUSER")

	b.Exec(t, "ALTER ROLE "+b.admin+" NOCREATEROLE", "REVOKE pg_read_all_stats, pg_signal_backend FROM "+b.admin)
	found = check(c, b.config(t, nil))
	want(found, "permission", false, false, "CREATEROLE")
	want(found, "usage_evidence", false, true, "pg_read_all_stats")
	want(found, "end_sessions", false, true, "pg_signal_backend")
	b.Exec(t, "ALTER ROLE "+b.admin+" CREATEROLE")

	b.Exec(t, "ALTER ROLE "+b.admin+" SET password_encryption = 'md5'")
	want(check(c, b.config(t, nil)), "password_encryption", false, true, "SCRAM")

	late := b.config(t, nil)
	late.Now = func() time.Time { return time.Now().Add(5 * time.Minute) }
	want(check(c, late), "clock_skew", false, true, "NTP")

	wrong := b.config(t, nil)
	wrong.Login = providers.Fields{"password": secret.FromString("wrong-login")}
	want(check(c, wrong), "login", false, false, "pg_hba")

	self := c
	self.Params = params(t, providers.Alternate, b.admin, users[0])
	want(check(self, b.config(t, nil)), "self_reference", false, false, "params.users")
	self.Strategy, self.Params = providers.Replace, params(t, providers.Replace, b.admin)
	want(check(self, b.config(t, nil)), "self_reference", false, true, "another login")

	target := b.open(t)
	defer target.Close()
	c = prepare(t, target, rotation(c, 9, 9))
	h := apply(t, target, c)
	older := rotation(c, 3, 10)
	older.Current = h
	found = check(older, b.config(t, nil))
	want(found, "marker", false, true, "comment")
	want(found, "current_value", true, false, "")
	b.Exec(t, "ALTER ROLE "+quote(h.Account)+" PASSWORD NULL")
	want(check(older, b.config(t, nil)), "current_value", false, true, "rotate")
}

func TestSelfWhenTheLoginIsRotated(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	c := b.change(t, providers.Replace, bedtest.Fresh("unused"))
	c.Params = params(t, providers.Replace, b.admin)
	c.Current = providers.Held{Account: b.admin, Fields: providers.Fields{}.Set("username", b.admin).Set("password", b.password)}
	target := b.open(t)
	c = prepare(t, target, rotation(c, 1, 1))
	h := apply(t, target, c)
	_ = target.Close()

	// Another process has the login of before, and the change.
	again := b.open(t)
	defer again.Close()
	if _, err := again.Apply(t.Context(), c); err != nil {
		t.Errorf("apply, repeated with the login of before: %v", err)
	}
	if err := errors.Join(again.Verify(t.Context(), c, h), again.Revoke(t.Context(), c, c.Current)); err != nil {
		t.Errorf("the rest of the rotation: %v", err)
	}
	b.password = h.Fields.Text("password")
	fresh := b.open(t)
	defer fresh.Close()
	c.Current = h
	c = prepare(t, fresh, rotation(c, 2, 2))
	if err := fresh.Verify(t.Context(), c, apply(t, fresh, c)); err != nil {
		t.Error(err)
	}

	pair := c
	pair.Strategy, pair.Params = providers.Alternate, params(t, providers.Alternate, b.admin, "other")
	if _, err := fresh.Prepare(t.Context(), pair); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("alternate with the login's own role: %v, want invalid", err)
	}
}

func TestEmergencyWhenSessionsMayNotBeEnded(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	b.Exec(t, "REVOKE pg_signal_backend FROM "+b.admin)
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Alternate), 1, 1))
	old := apply(t, target, c)
	alive := b.session(t, old)
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	c.Emergency = true
	c.New = apply(t, target, c)
	err := target.Revoke(t.Context(), c, old)
	if !errors.Is(err, fault.ErrDenied) || !strings.Contains(err.Error(), "pg_signal_backend") {
		t.Errorf("revoke: %v, want denied, with what to grant", err)
	}
	if b.accepts(t, old) || !alive() {
		t.Errorf("the value is accepted: %v; its session works: %v; want false, true", b.accepts(t, old), alive())
	}
	b.Exec(t, "GRANT pg_signal_backend TO "+b.admin)
	if err := target.Revoke(t.Context(), c, old); err != nil || alive() {
		t.Errorf("the same again: %v; the session works: %v", err, alive())
	}
}

func TestUsageWhenSessionsAreOpen(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	usage := func(c providers.Change, h providers.Held) providers.Evidence {
		t.Helper()
		e, err := target.Usage(t.Context(), c, h)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	c := prepare(t, target, rotation(b.change(t, providers.Alternate), 1, 1))
	old := apply(t, target, c)
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	apply(t, target, c)
	if e := usage(c, old); !e.Known || e.Sessions != 0 {
		t.Errorf("no session: %+v", e)
	}
	from := time.Now().Add(-time.Second)
	b.session(t, old)()
	b.session(t, old)()
	if e := usage(c, old); !e.Known || e.Sessions != 2 || e.LastUsed.Before(from) {
		t.Errorf("two sessions: %+v", e)
	}
	b.Exec(t, "REVOKE pg_read_all_stats FROM "+b.admin)
	if e := usage(c, old); !e.Known || e.Sessions != 2 || !e.LastUsed.IsZero() {
		t.Errorf("two sessions, without the right to see more: %+v", e)
	}

	// With replace only sessions from before the rotation tell.
	b.Exec(t, "GRANT pg_read_all_stats TO "+b.admin)
	c = prepare(t, target, rotation(b.change(t, providers.Replace), 1, 1))
	old = apply(t, target, c)
	if e := usage(rotation(c, 1, 1), old); !e.Known {
		t.Errorf("the value that the role has: %+v", e)
	}
	b.session(t, old)()
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	c.At = time.Now().Add(time.Minute)
	h := apply(t, target, c)
	b.session(t, h)()
	if e := usage(c, old); !e.Known || e.Sessions != 2 {
		t.Errorf("sessions from before the rotation: %+v", e)
	}
	c.At = time.Now().Add(-time.Hour)
	if e := usage(c, old); e.Known {
		t.Errorf("sessions from after the rotation began prove nothing: %+v", e)
	}
}

func TestScratchWhenMadeAndRemoved(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	scratcher := target.(providers.Scratcher)
	for _, s := range []providers.Strategy{providers.Alternate, providers.Replace} {
		c := b.change(t, s)
		before := b.snapshot(t, c)
		var copied providers.Change
		for range 2 {
			p, err := scratcher.Scratch(t.Context(), c, "drill1")
			if err != nil {
				t.Fatal(err)
			}
			copied = c
			copied.Params = p
		}
		if copied.Params["users"] == c.Params["users"] && copied.Params["user"] == c.Params["user"] {
			t.Fatalf("%s: the copy has the same roles", s)
		}
		copied = prepare(t, target, rotation(copied, 1, 1))
		h := apply(t, target, copied)
		if err := target.Verify(t.Context(), copied, h); err != nil {
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

		// A role of the same name that somebody else made is left alone.
		name := strings.Split(copied.Params["users"]+copied.Params["user"], ",")[0]
		b.Exec(t, fmt.Sprintf("CREATE ROLE %s", quote(name)))
		if _, err := scratcher.Scratch(t.Context(), c, "drill1"); !errors.Is(err, fault.ErrTransition) {
			t.Errorf("%s: over a role of somebody else: %v", s, err)
		}
		if err := scratcher.Unscratch(t.Context(), c, "drill1"); err != nil {
			t.Error(err)
		}
		b.Exec(t, fmt.Sprintf("DROP ROLE %s", quote(name))) // fails if it is gone
	}
}

// A revocation that was forgotten is made up for when the role has a newer value.
func TestRevokeWhenANewerGenerationHasTheRole(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	c := b.change(t, providers.Alternate)
	var all []providers.Held
	for generation := int64(1); generation <= 3; generation++ {
		c = prepare(t, target, rotation(c, generation, generation))
		c.New = apply(t, target, c)
		all = append(all, c.New)
		c.Current = c.New
	}
	c.Epoch = 99
	if all[0].Account != all[2].Account {
		t.Fatalf("the accounts are %s and %s: the case proves nothing", all[0].Account, all[2].Account)
	}
	for _, current := range []providers.Held{all[2], all[1]} {
		c.Current = current
		for _, emergency := range []bool{false, true} {
			c.Emergency = emergency
			alive := b.session(t, all[2])
			err := errors.Join(target.Retire(t.Context(), c, all[0], time.Now().Add(-time.Hour)), target.Revoke(t.Context(), c, all[0]))
			if err != nil || !b.accepts(t, all[2]) || !alive() {
				t.Errorf("revoke of generation 1 of a role that has generation 3: %v; accepted: %v, its session works: %v", err, b.accepts(t, all[2]), alive())
			}
		}
	}
	late := c
	late.Epoch = 2
	if err := target.Revoke(t.Context(), late, all[2]); !errors.Is(err, fault.ErrStale) {
		t.Errorf("revoke by an older lease: %v, want stale", err)
	}
}

func TestPrepareWhenCredentialIsWrong(t *testing.T) {
	b := newBed(t, bedtest.PostgreSQL(t))
	target := b.open(t)
	defer target.Close()
	for name, c := range map[string]providers.Change{
		"dual":           {Strategy: providers.Dual, Params: map[string]string{"user": "a"}},
		"one user":       {Strategy: providers.Alternate, Params: map[string]string{"users": "a"}},
		"the same twice": {Strategy: providers.Alternate, Params: map[string]string{"users": "a, a"}},
		"three users":    {Strategy: providers.Alternate, Params: map[string]string{"users": "a,b,c"}},
		"no user":        {Strategy: providers.Replace},
		"a taken field":  {Strategy: providers.Replace, Params: map[string]string{"user": "a"}, Static: map[string]string{"password": "x"}},
		"a long length":  {Strategy: providers.Replace, Params: map[string]string{"user": "a", "length": "1000"}},
	} {
		if _, err := target.Prepare(t.Context(), c); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	c := providers.Change{Strategy: providers.Alternate, Params: map[string]string{"users": "a, b"}, Static: map[string]string{"host": "db"}}
	for current, want := range map[string]string{"": "a", "a": "b", "b": "a", "gone": "a"} {
		c.Current.Account = current
		got := prepare(t, target, c)
		if got.New.Account != want || got.New.Fields.Text("username") != want || got.New.Fields.Text("host") != "db" {
			t.Errorf("after %q comes %q, want %q", current, got.New.Account, want)
		}
	}
	c.Current.Account, c.Others = "", []providers.Held{{Account: "a"}}
	if got := prepare(t, target, c); got.New.Account != "b" {
		t.Errorf("a is in use by another value, and %q comes next", got.New.Account)
	}
	c.Current, c.New = providers.Held{Account: "a", Generation: 1}, providers.Held{Account: "a", Generation: 2, Fields: providers.Fields{}.Set("password", "some-password")}
	if _, err := target.Apply(t.Context(), c); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("apply to the role that consumers use: %v, want invalid", err)
	}
}

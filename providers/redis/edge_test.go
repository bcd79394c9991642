package redis_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/redis"
)

func TestCheckWhenSomethingWouldFail(t *testing.T) {
	b := newBed(t, bedtest.Redis(t))
	c := b.change(t, providers.Dual)
	want := func(b *bed, c providers.Change, config providers.Config, name string, ok, warning bool, remedy string) {
		t.Helper()
		target := openWith(t, config)
		defer target.Close()
		found, err := target.Check(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(found, func(f providers.Finding) bool { return f.Check == name })
		if i < 0 {
			t.Errorf("there is no finding %q: %+v", name, found)
			return
		}
		if f := found[i]; f.OK != ok || f.Warning != warning || !strings.Contains(f.Remedy, remedy) {
			t.Errorf("%+v, want ok %v, warning %v, remedy with %q", f, ok, warning, remedy)
		}
	}
	for _, name := range []string{"login", "permission", "persistence", "sessions"} {
		want(b, c, b.config(t, nil), name, true, false, "")
	}
	do(t, b.servers[0], "ACL", "SETUSER", c.Params["user"], "off", "nopass")
	want(b, c, b.config(t, nil), "user_can_login", false, false, "on")
	want(b, c, b.config(t, nil), "any_password", false, true, "rotate")
	do(t, b.servers[0], "ACL", "SETUSER", b.admin, "-client|kill", "-config|get", "-acl|deluser")
	want(b, c, b.config(t, nil), "sessions", false, true, "client|kill")
	want(b, c, b.config(t, nil), "persistence", false, true, "config|get")
	want(b, c, b.config(t, nil), "permission", false, false, "+acl")
	do(t, b.servers[0], "ACL", "SETUSER", b.admin, "+client|kill", "+config|get", "+acl")
	want(b, c, b.config(t, map[string]string{"persist": "config"}), "persistence", false, false, "acl")
	want(b, c, b.config(t, map[string]string{"persist": "none"}), "persistence", false, true, "aclfile")
	wrong := b.config(t, nil)
	wrong.Login = providers.Fields{"password": secret.FromString("wrong-login")}
	want(b, c, wrong, "login", false, false, "login")
	self := c
	self.Params = params(t, b.admin)
	want(b, self, b.config(t, nil), "self_reference", false, true, "another login")
	self.Strategy = providers.Replace
	want(b, self, b.config(t, nil), "self_reference", false, false, "params.user")

	for remedy, o := range map[string]bedtest.RedisOptions{"persist=config": {NoACLFile: true}, "aclfile": {NoConfigFile: true}} {
		b := newBed(t, bedtest.NewRedis(t, o))
		c := b.change(t, providers.Dual)
		want(b, c, b.config(t, map[string]string{"persist": "acl"}), "persistence", false, false, remedy[:3])
		want(b, c, b.config(t, nil), "persistence", !o.NoConfigFile, o.NoConfigFile, "")
		target := b.open(t)
		defer target.Close()
		if h := apply(t, target, prepare(t, target, rotation(c, 1, 1))); !b.accepts(t, h) {
			t.Error("a value that can't be saved is not accepted")
		}
	}
}

func TestErrorsWhenServerRefuses(t *testing.T) {
	b := newBed(t, bedtest.Redis(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Dual), 1, 1))
	wrong := b.config(t, nil)
	wrong.Login = providers.Fields{"password": secret.FromString("wrong-login")}
	missing := c
	missing.Params, missing.New.Account = params(t, "nobody_here"), "nobody_here"
	weak := *b
	weak.admin = bedtest.Fresh("weak")
	do(t, b.servers[0], "ACL", "SETUSER", weak.admin, "on", ">"+weak.password, "-@all")
	for name, x := range map[string]struct {
		config providers.Config
		change providers.Change
		kind   error
		want   providers.Outcome
	}{
		"no permission":      {weak.config(t, nil), c, fault.ErrDenied, providers.Refused},
		"a wrong login":      {wrong, c, fault.ErrDenied, providers.Refused},
		"a missing user":     {b.config(t, nil), missing, fault.ErrNotFound, providers.Refused},
		"nobody at the port": {b.config(t, map[string]string{"addresses": "127.0.0.1:1"}), c, fault.ErrUnavailable, providers.Unknown},
		"unknown issuer":     {b.config(t, map[string]string{"addresses": b.servers[0].TLSAddress(), "tls": "verify"}), c, fault.ErrUnavailable, providers.Unknown},
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
	list := b.snapshot(t, c)
	if strings.Contains(list, "nobody_here") {
		t.Error("a call for a user that is missing made it")
	}
	secure := openWith(t, b.config(t, map[string]string{"addresses": b.servers[0].TLSAddress(), "tls": "verify", "ca": b.servers[0].CA}))
	defer secure.Close()
	if err := secure.Verify(t.Context(), c, apply(t, secure, c)); err != nil {
		t.Errorf("over TLS: %v", err)
	}
	for _, addresses := range []string{"db.example:6379", "127.0.0.1:1,127.0.0.1:1", "a@b:1", "127.0.0.1:0", ":6379"} {
		config := b.config(t, nil)
		config.Settings["addresses"] = addresses
		if _, err := redis.Kind().Open(t.Context(), config); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("addresses %q: %v, want invalid", addresses, err)
		}
	}
}

func TestSelfWhenTheLoginIsRotated(t *testing.T) {
	b := newBed(t, bedtest.Redis(t))
	target := b.open(t)
	defer target.Close()
	c := providers.Change{Strategy: providers.Dual, Params: params(t, b.admin)}
	c.Current = providers.Held{Account: b.admin, Fields: providers.Fields{}.Set("username", b.admin).Set("password", b.password)}
	c = prepare(t, target, rotation(c, 1, 1))
	c.New = apply(t, target, c)
	if err := target.Revoke(t.Context(), c, c.Current); !errors.Is(err, fault.ErrTransition) {
		t.Fatalf("revoke of the login's own value: %v, want refused", err)
	}
	b.password = c.New.Fields.Text("password")
	fresh := b.open(t)
	defer fresh.Close()
	if err := errors.Join(fresh.Revoke(t.Context(), c, c.Current), fresh.Verify(t.Context(), c, c.New)); err != nil {
		t.Errorf("with the new login: %v", err)
	}
	if b.accepts(t, c.Current) {
		t.Error("the old value is accepted")
	}
	c.Strategy = providers.Replace
	if _, err := fresh.Prepare(t.Context(), c); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("replace of the login: %v, want invalid", err)
	}
}

func TestUsageWhenSessionsAreOpen(t *testing.T) {
	b := newBed(t, bedtest.Redis(t))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Dual), 1, 1))
	old := apply(t, target, c)
	alive := b.session(t, old)
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))
	c.New = apply(t, target, c)
	c.At = time.Now().Add(time.Minute)
	if e, err := target.Usage(t.Context(), c, old); err != nil || !e.Known || e.Sessions != 1 || time.Since(e.LastUsed) > time.Hour || !alive() {
		t.Errorf("a session from before the rotation: %+v, %v", e, err)
	}
	c.At = time.Now().Add(-time.Hour)
	if e, err := target.Usage(t.Context(), c, old); err != nil || e.Known {
		t.Errorf("a session from after the rotation began proves nothing: %+v, %v", e, err)
	}
}

func TestScratchWhenMadeAndRemoved(t *testing.T) {
	b := newBed(t, bedtest.Redis(t), bedtest.NewRedis(t, bedtest.RedisOptions{}))
	target := b.open(t)
	defer target.Close()
	scratcher := target.(providers.Scratcher)
	c := b.change(t, providers.Dual)
	before := b.snapshot(t, c)
	copied := c
	for range 2 {
		p, err := scratcher.Scratch(t.Context(), c, "drill1")
		if err != nil {
			t.Fatal(err)
		}
		copied.Params = p
	}
	copied = prepare(t, target, rotation(copied, 1, 1))
	if h := apply(t, target, copied); h.Account == c.Params["user"] || target.Verify(t.Context(), copied, h) != nil {
		t.Errorf("the copy's user is %q, or its value is not accepted", h.Account)
	}
	for range 2 {
		if err := scratcher.Unscratch(t.Context(), c, "drill1"); err != nil {
			t.Fatal(err)
		}
	}
	if after := b.snapshot(t, c); after != before {
		t.Errorf("something was left behind: before\n%s\nafter\n%s", before, after)
	}
	if _, err := scratcher.Scratch(t.Context(), c, "a b"); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("a suffix with a space: %v", err)
	}
}

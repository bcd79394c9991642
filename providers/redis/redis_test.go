package redis_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
	"github.com/rotunda-dev/rotunda/providers/redis"
)

// bed is some servers, and a login on them that may rotate and nothing more.
type bed struct {
	servers         []*bedtest.RedisServer
	admin, password string
}

func newBed(t testing.TB, servers ...*bedtest.RedisServer) *bed {
	t.Helper()
	b := &bed{servers: servers, admin: bedtest.Fresh("rotator"), password: bedtest.Fresh("login")}
	for _, s := range servers {
		do(t, s, "ACL", "SETUSER", b.admin, "on", ">"+b.password, "-@all", "+acl", "+client|list", "+client|kill", "+info", "+config|get", "+config|rewrite")
	}
	return b
}

func do(t testing.TB, s *bedtest.RedisServer, args ...any) any {
	t.Helper()
	reply, err := s.Client(t).Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatalf("%v: %v", args[:2], err)
	}
	return reply
}

func (b *bed) config(t testing.TB, more map[string]string) providers.Config {
	t.Helper()
	var addresses []string
	for _, s := range b.servers {
		addresses = append(addresses, s.Address())
	}
	settings := map[string]string{"addresses": strings.Join(addresses, ","), "user": b.admin, "tls": "off"}
	maps.Copy(settings, more)
	settings, err := providers.Complete("settings", redis.Kind().Settings, settings)
	if err != nil {
		t.Fatal(err)
	}
	return providers.Config{Name: "cache", Settings: settings, Login: providers.Fields{"password": secret.FromString(b.password)}, Now: time.Now}
}

func openWith(t testing.TB, c providers.Config) providers.Target {
	t.Helper()
	target, err := redis.Kind().Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func (b *bed) open(t testing.TB) providers.Target { return openWith(t, b.config(t, nil)) }

func (b *bed) change(t testing.TB, s providers.Strategy) providers.Change {
	t.Helper()
	name := bedtest.Fresh("app")
	for _, server := range b.servers {
		do(t, server, "ACL", "SETUSER", name, "on", "~*", "+@all")
	}
	return providers.Change{Credential: "cache", Strategy: s, Params: params(t, name)}
}

func params(t testing.TB, name string) map[string]string {
	t.Helper()
	p, err := providers.Complete("params", redis.Kind().Params, map[string]string{"user": name})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// acceptedBy asks one server by a client of its own.
func acceptedBy(t testing.TB, s *bedtest.RedisServer, h providers.Held) bool {
	t.Helper()
	err := s.ClientOf(t, h.Account, h.Fields.Text("password")).Ping(t.Context()).Err()
	if err != nil && !strings.HasPrefix(err.Error(), "WRONGPASS") {
		t.Fatalf("the server does not say whether it accepts a login: %v", err)
	}
	return err == nil
}

func (b *bed) accepts(t testing.TB, h providers.Held) bool {
	t.Helper()
	return !slices.ContainsFunc(b.servers, func(s *bedtest.RedisServer) bool { return !acceptedBy(t, s, h) })
}

func (b *bed) snapshot(t testing.TB, _ providers.Change) string {
	t.Helper()
	var all []string
	for _, s := range b.servers {
		list, err := s.Client(t).Do(t.Context(), "ACL", "LIST").StringSlice()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(list)
		all = append(all, list...)
	}
	return strings.Join(all, "\n")
}

func (b *bed) session(t testing.TB, h providers.Held) func() bool {
	t.Helper()
	conn := b.servers[0].ClientOf(t, h.Account, h.Fields.Text("password")).Conn()
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	id := conn.ClientID(t.Context()).Val()
	return func() bool {
		list, err := b.servers[0].Client(t).ClientList(context.Background()).Result()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(list, fmt.Sprintf("id=%d ", id))
	}
}

func TestTarget(t *testing.T) {
	two := newBed(t, bedtest.Redis(t), bedtest.NewRedis(t, bedtest.RedisOptions{NoACLFile: true}))
	for name, b := range map[string]*bed{"one node": newBed(t, bedtest.Redis(t)), "two nodes": two} {
		base := providerstest.TargetBed{
			Kind: redis.Kind(), Open: b.open, Change: b.change, Accepts: b.accepts, Marks: true, Snapshot: b.snapshot, Session: b.session,
			Missing: func(t testing.TB, _ providers.Strategy) providers.Change {
				return providers.Change{Params: params(t, bedtest.Fresh("none"))}
			},
			Public: []string{"username"},
		}
		t.Run(name, func(t *testing.T) { providerstest.Target(t, base) })
		base.Change = func(t testing.TB, s providers.Strategy) providers.Change {
			c := b.change(t, s)
			password := bedtest.Fresh("initial")
			for _, server := range b.servers {
				do(t, server, "ACL", "SETUSER", c.Params["user"], ">"+password)
			}
			c.Current = providers.Held{Account: c.Params["user"], Fields: providers.Fields{}.Set("username", c.Params["user"]).Set("password", password)}
			return c
		}
		t.Run(name+" with a value", func(t *testing.T) { providerstest.Target(t, base) })
	}
}

func rotation(c providers.Change, generation, epoch int64) providers.Change {
	c.Generation, c.Epoch, c.At = generation, epoch, time.Now().Add(-time.Second)
	c.Rotation = fmt.Sprintf("00000000-0000-4000-8000-%012d", generation)
	c.New = providers.Held{Generation: generation, Rotation: c.Rotation}
	return c
}

func prepare(t testing.TB, target providers.Target, c providers.Change) providers.Change {
	t.Helper()
	c, err := target.Prepare(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func apply(t testing.TB, target providers.Target, c providers.Change) providers.Held {
	t.Helper()
	h, err := target.Apply(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// What Apply said to be done is there after a crash of the server, however it keeps
// its users; and what was revoked is not.
func TestApplyWhenServerRestarts(t *testing.T) {
	for name, o := range map[string]bedtest.RedisOptions{"ACL file": {}, "configuration file": {NoACLFile: true}} {
		t.Run(name, func(t *testing.T) {
			server := bedtest.NewRedis(t, o)
			b := newBed(t, server)
			target := b.open(t)
			defer target.Close()
			c := b.change(t, providers.Dual)
			for generation := int64(1); generation <= 3; generation++ {
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
					t.Fatalf("generation %d after a restart: %v", generation, err)
				}
				if c.Current.Account != "" {
					if !b.accepts(t, c.Current) {
						t.Error("the current value is lost")
					}
					if err := target.Revoke(t.Context(), c, c.Current); err != nil {
						t.Fatal(err)
					}
					server.Restart(t)
					if b.accepts(t, c.Current) {
						t.Error("a revoked value came back")
					}
				}
				if got, err := target.Applied(t.Context(), c, h.Account); err != nil || got.Generation != generation {
					t.Errorf("the marker after a restart: %+v, %v", got, err)
				}
				c.Current = h
			}
		})
	}
}

// One node of two is down in the middle: the outcome is unknown, nobody is refused on
// the other, and the same call again completes it.
func TestApplyWhenANodeIsDown(t *testing.T) {
	up, down := bedtest.Redis(t), bedtest.NewRedis(t, bedtest.RedisOptions{})
	b := newBed(t, up, down)
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Dual), 1, 1))
	old := apply(t, target, c)
	c.Current = old
	c = prepare(t, target, rotation(c, 2, 2))

	// It has only what is for the first node.
	one := newBed(t, up)
	first := openWith(t, one.config(t, nil))
	defer first.Close()
	apply(t, first, c)
	if got, err := target.Applied(t.Context(), c, old.Account); err != nil || got.Generation != 1 {
		t.Errorf("one of two nodes has generation 2, all of them: %+v, %v; want 1", got, err)
	}
	if err := target.Verify(t.Context(), c, c.New); !errors.Is(err, fault.ErrRejected) {
		t.Errorf("verify when one node does not have it: %v", err)
	}
	down.Stop(t)
	for what, err := range map[string]error{
		"apply":  func() error { _, err := target.Apply(t.Context(), c); return err }(),
		"verify": target.Verify(t.Context(), c, c.New),
		"revoke": target.Revoke(t.Context(), c, old),
	} {
		if err == nil || providers.OutcomeOf(err) != providers.Unknown {
			t.Errorf("%s with one node down: %v (%s), want unknown", what, err, providers.OutcomeOf(err))
		}
	}
	down.Start(t)
	h := apply(t, target, c)
	if err := target.Verify(t.Context(), c, h); err != nil || !acceptedBy(t, down, old) {
		t.Errorf("after the node came back: %v", err)
	}
	if err := target.Revoke(t.Context(), c, old); err != nil || acceptedBy(t, up, old) || acceptedBy(t, down, old) {
		t.Errorf("revoke: %v", err)
	}
}

// A node that refuses after another was changed does not make the outcome known.
func TestApplyWhenTheSecondNodeRefuses(t *testing.T) {
	b := newBed(t, bedtest.Redis(t), bedtest.NewRedis(t, bedtest.RedisOptions{}))
	target := b.open(t)
	defer target.Close()
	c := prepare(t, target, rotation(b.change(t, providers.Dual), 1, 1))
	do(t, b.servers[1], "ACL", "SETUSER", b.admin, "-acl|setuser")
	_, err := target.Apply(t.Context(), c)
	if providers.OutcomeOf(err) != providers.Unknown || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("apply: %v (%s), want unknown, with what the node said", err, providers.OutcomeOf(err))
	}
	if !acceptedBy(t, b.servers[0], c.New) {
		t.Error("the first node does not have it: the case proves nothing")
	}
	do(t, b.servers[0], "ACL", "SETUSER", b.admin, "-acl|setuser")
	c = prepare(t, target, rotation(c, 2, 2))
	if _, err := target.Apply(t.Context(), c); !errors.Is(err, fault.ErrDenied) || providers.OutcomeOf(err) != providers.Refused {
		t.Errorf("apply when the first node refuses: %v, want denied", err)
	}
}

// Many processes apply different generations at once: whatever comes out, the marker
// is of the newest, and with replace nothing older is accepted.
func TestApplyWhenGenerationsRace(t *testing.T) {
	for _, s := range []providers.Strategy{providers.Replace, providers.Dual} {
		t.Run(string(s), func(t *testing.T) { testRace(t, s) })
	}
}

func testRace(t *testing.T, s providers.Strategy) {
	b := newBed(t, bedtest.Redis(t))
	base := b.change(t, s)
	starter := b.open(t)
	defer starter.Close()
	apply(t, starter, prepare(t, starter, rotation(base, 1, 1)))
	const racers = 6
	for round := range int64(10) {
		var changes [racers]providers.Change
		var targets [racers]providers.Target
		for i := range racers {
			targets[i] = b.open(t)
			generation := 2 + round*racers + int64(i)
			changes[i] = prepare(t, targets[i], rotation(base, generation, generation))
		}
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				defer targets[i].Close()
				for {
					_, err := targets[i].Apply(t.Context(), changes[i])
					switch providers.OutcomeOf(err) {
					case providers.Throttled:
						continue
					case providers.Moved:
					default:
						if err != nil {
							t.Errorf("generation %d: %v", changes[i].Generation, err)
						}
					}
					return
				}
			})
		}
		wg.Wait()
		newest := changes[racers-1]
		if entries := strings.Count(fmt.Sprint(do(t, b.servers[0], "ACL", "GETUSER", newest.New.Account)), "52544e44"); entries != 1 {
			t.Fatalf("the user has %d markers, want 1: calls have not seen each other", entries)
		}
		got, err := starter.Applied(t.Context(), newest, newest.New.Account)
		if err != nil || got.Generation != newest.Generation {
			t.Fatalf("the marker is %+v, %v: the newest generation has to win", got, err)
		}
		for i := range racers {
			// With dual the older ones may have come first, and stay.
			if want := i == racers-1; b.accepts(t, changes[i].New) != want && (want || s == providers.Replace) {
				t.Fatalf("generation %d of %d is accepted: %v", changes[i].Generation, newest.Generation, !want)
			}
		}
	}
}

func TestPasswordWhenServerLogsEverything(t *testing.T) {
	server := bedtest.NewRedis(t, bedtest.RedisOptions{})
	b := newBed(t, server)
	monitor, err := net.Dial("tcp", server.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	fmt.Fprintf(monitor, "AUTH %s %s\r\nMONITOR\r\n", server.User, server.Password)
	target := b.open(t)
	defer target.Close()
	c := b.change(t, providers.Dual)
	var values []string
	for generation := int64(1); generation <= 3; generation++ {
		c = prepare(t, target, rotation(c, generation, generation))
		values = append(values, c.New.Fields.Text("password"))
		c.Current = apply(t, target, c)
	}
	do(t, server, "ECHO", "the-end-of-this")
	var seen strings.Builder
	if err := monitor.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), "the-end-of-this") {
		n, err := monitor.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buf[:n])
	}
	acl, err := os.ReadFile(filepath.Join(server.Folder(), "users.acl"))
	if err != nil || !strings.Contains(string(acl), "user "+c.New.Account+" ") {
		t.Fatalf("the ACL file has no %s: %v", c.New.Account, err)
	}
	slow := fmt.Sprint(do(t, server, "SLOWLOG", "GET", 1000))
	if !strings.Contains(slow, "SETUSER") {
		t.Error("the slow log does not have the commands: it proves nothing")
	}
	for _, v := range values {
		for where, text := range map[string]string{"monitor": seen.String(), "ACL file": string(acl), "log": server.Log(t), "slow log": slow} {
			if strings.Contains(text, v) {
				t.Errorf("the server's %s has a password", where)
			}
		}
	}
}

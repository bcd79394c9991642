package realtest

import (
	"context"
	"errors"
	"flag"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/rotation"
)

var (
	continuityCredentials = flag.Int("continuity.credentials", 6, "credentials of each kind that clients hammer")
	continuityTimes       = flag.Int("continuity.times", 3, "rotations of each of them")
)

// hammered is a credential whose consumers are at work.
type hammered struct {
	name  string
	read  func(ctx context.Context) (map[string]string, error) // what a consumer reads in the store
	login func(t testing.TB, f providers.Fields) (accepted bool)
}

// continuity is what clients saw.
type continuity struct {
	logins, refused atomic.Int64

	mu      sync.Mutex
	windows []time.Duration // of refused logins, from the first to the next that was accepted
}

// hammer logs in with whatever the store serves, without a pause, until ctx ends.
func (k *continuity) hammer(ctx context.Context, t testing.TB, h hammered) {
	var since time.Time
	for ctx.Err() == nil {
		value, err := h.read(ctx)
		if err != nil {
			t.Errorf("read the store: %v", err)
			return
		}
		accepted := h.login(t, fieldsOf(value))
		k.logins.Add(1)
		switch {
		case !accepted:
			k.refused.Add(1)
			if since.IsZero() {
				since = time.Now()
			}
		case !since.IsZero():
			k.mu.Lock()
			k.windows = append(k.windows, time.Since(since))
			k.mu.Unlock()
			since = time.Time{}
		}
	}
}

// A consumer's way from reading the store to its login takes no longer than this.
const continuityGrace = 3 * time.Second

// Promise: with two values that overlap nobody is ever refused who logs in with what the
// store serves, through a thousand rotations (-continuity.credentials 50
// -continuity.times 20); with replace there is a window, and this is how long it is.
func TestContinuityUnderRotation(t *testing.T) {
	for _, kind := range continuityKinds {
		t.Run(kind.kind+" "+string(kind.strategy), func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, storetest.Open(t, storetest.Postgres(t)), nil)
			d.work(t)
			list := hammer(t, d, kind.strategy, kind.make, *continuityCredentials)
			for _, h := range list {
				d.rotate(t, h.name, false)
			}
			var k continuity
			ctx, stop := context.WithCancel(t.Context())
			var clients, rotating sync.WaitGroup
			for _, h := range list {
				clients.Go(func() { k.hammer(ctx, t, h) })
			}
			for _, h := range list {
				rotating.Go(func() {
					for range *continuityTimes {
						d.rotate(t, h.name, true)
					}
				})
			}
			rotating.Wait()
			stop()
			clients.Wait()
			n := *continuityCredentials * *continuityTimes
			t.Logf("%d rotations, %d logins, %d refused", n, k.logins.Load(), k.refused.Load())
			if k.logins.Load() < int64(n) {
				t.Errorf("only %d logins during %d rotations: the test proves little", k.logins.Load(), n)
			}
			if kind.strategy == providers.Replace {
				if len(k.windows) == 0 {
					t.Log("no window was seen")
					return
				}
				slices.Sort(k.windows)
				t.Logf("window in which consumers are refused: median %v, longest %v of %d",
					k.windows[len(k.windows)/2].Round(time.Millisecond/10), k.windows[len(k.windows)-1].Round(time.Millisecond/10), len(k.windows))
			} else if k.refused.Load() > 0 {
				t.Errorf("%d of %d logins were refused", k.refused.Load(), k.logins.Load())
			}
		})
	}
}

var continuityKinds = []struct {
	kind     string
	strategy providers.Strategy // with replace, consumers are refused for a while
	make     func(t testing.TB) subject
}{
	{"postgres", providers.Alternate, func(t testing.TB) subject { return postgresSubject(t, "users") }},
	{"postgres", providers.Replace, func(t testing.TB) subject { return postgresSubject(t, "user") }},
	{"mysql", providers.Alternate, func(t testing.TB) subject { return mariadbSubject(t, "users") }},
	{"mysql", providers.Replace, func(t testing.TB) subject { return mariadbSubject(t, "user") }},
	{"redis", providers.Dual, redisSubject},
	{"redis", providers.Replace, redisSubject},
	{"vault-approle", providers.Dual, appRoleSubject},
	{"aws-iam", providers.Dual, iamSubject},
}

// hammer makes n credentials of a kind on its server.
func hammer(t testing.TB, d *desk, strategy providers.Strategy, make func(t testing.TB) subject, n int) (list []hammered) {
	store, mount, v := vaultStore(t, d)
	for range n {
		s := make(t)
		target := d.system(t, rotation.TargetSort, s.system.Kind, s.system.Settings, s.system.Login)
		path := fresh("c")
		spec := rotation.Spec{Target: target, Strategy: strategy, Params: s.params, Stores: []rotation.Placement{{Store: store, Path: path}}, Grace: continuityGrace, Probe: -1}
		if strategy == providers.Replace {
			spec.Grace = 0
		}
		list = append(list, hammered{d.credential(t, spec), kvReader(v, mount, path), s.accepts})
	}
	return list
}

// kvReader reads a path of Vault's KV as a consumer does.
func kvReader(v *bedtest.VaultServer, mount, path string) func(context.Context) (map[string]string, error) {
	return func(context.Context) (map[string]string, error) {
		var out struct {
			Data struct {
				Data map[string]string `json:"data"`
			} `json:"data"`
		}
		err := v.Ask("GET", mount+"/data/"+path, nil, &out)
		return maps.Clone(out.Data.Data), err
	}
}

func sqlState(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

package jwks

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// drawPolicy gives a safe policy.
func drawPolicy(rt *rapid.T) Policy {
	seconds := func(name string, most int) time.Duration {
		return time.Duration(rapid.IntRange(0, most).Draw(rt, name)) * time.Second
	}
	for {
		p := DefaultPolicy()
		p.Rotate = schedule.Schedule{Every: 2*time.Minute + seconds("every", 7200)}
		p.TokenTTL = time.Second + seconds("ttl", 1800)
		p.Consumers = named(rapid.SampledFrom([]string{"jose", "go-oidc", "step-ca", "apigee", "envoy", "pyjwt"}).Draw(rt, "consumer"))
		p.MaxAge = seconds("max-age", 300)
		p.FetchFailure = seconds("failure", 300)
		p.Skew, p.Leeway, p.Propagation = seconds("skew", 60), seconds("leeway", 60), seconds("propagation", 30)
		p.CDN = rapid.Bool().Draw(rt, "cdn")
		if _, err := p.Check(ES256); err == nil {
			return p
		}
	}
}

// world is a keyset, everything that was ever signed, and the invariants.
type world struct {
	rt      *rapid.T
	t       *testing.T
	b       *bed
	name    string
	tokens  []Signed
	revoked map[string]bool
	excused map[string]bool // kids that may sign before their lead is over
	version int64
}

func (w *world) now() time.Time { return w.b.clock.Now() }

// check is called after every step.
func (w *world) check() {
	w.rt.Helper()
	set := w.b.get(w.t, w.name)
	states := kids(set)
	if len(states[Active]) != 1 || len(states[Pending]) > 1 {
		w.rt.Fatalf("I3: %v", states)
	}
	if set.Version < w.version {
		w.rt.Fatalf("I5: version %d after %d", set.Version, w.version)
	}
	w.version = set.Version
	d := w.b.Document(w.name)
	var doc struct{ Keys []struct{ Kid string } }
	if err := json.Unmarshal(d.Body, &doc); err != nil {
		w.rt.Fatal(err)
	}
	there := map[string]bool{}
	for _, k := range doc.Keys {
		if there[k.Kid] {
			w.rt.Fatalf("I6: kid %s is served twice", k.Kid)
		}
		there[k.Kid] = true
		if w.revoked[k.Kid] {
			w.rt.Fatalf("I4: revoked %s is served", k.Kid)
		}
	}
	live := w.tokens[:0]
	for _, s := range w.tokens {
		if w.now().Before(s.ExpiresAt) {
			live = append(live, s)
			if !there[s.Kid] && !w.revoked[s.Kid] {
				w.rt.Fatalf("I1: a token that lives until %s, signed by %s, which is not served at %s", s.ExpiresAt, s.Kid, w.now())
			}
		}
	}
	w.tokens = live
	// I7: the rule, from the rows and not from the document's own fields.
	age := d.MaxAge(w.now())
	if age > set.Policy.MaxAge {
		w.rt.Fatalf("I7: max-age %s, the policy says %s", age, set.Policy.MaxAge)
	}
	for _, k := range set.Keys {
		if k.State != Retiring {
			continue
		}
		life := max(k.MaxTokenLife+SignerLease+set.Policy.Leeway+2*set.Policy.Skew, set.Policy.RetireAfter)
		if left := max(time.Second, k.DemotedAt.Add(life).Sub(w.now())); age > left {
			w.rt.Fatalf("I7: max-age %s, but %s leaves in %s", age, k.Kid, left)
		}
	}
}

func (w *world) sign(ttl time.Duration) {
	set := w.b.get(w.t, w.name)
	s, err := w.b.Sign(w.t.Context(), Sign{Name: w.name, TTL: ttl})
	if err != nil {
		w.rt.Fatalf("sign: %v", err)
	}
	k := set.key(s.Kid)
	if w.revoked[s.Kid] || k == nil {
		w.rt.Fatalf("I4: withdrawn %s signs", s.Kid)
	}
	w.tokens = append(w.tokens, s)
}

// Promise: the invariants of the timing rules hold for any safe policy and any
// order of passes, rotations, revocations, policy changes and downtimes.
func TestInvariantsForAnyOrderOfEvents(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		w := &world{rt: rt, t: t, b: b, name: fmt.Sprintf("set-%d", run), revoked: map[string]bool{}, excused: map[string]bool{}}
		policy := drawPolicy(rt)
		for _, table := range []string{"signing_counts", "signing_keys", "keysets"} { // of the run before
			mustExec(t, db, `DELETE FROM `+table)
		}
		b.view.sets.Clear()
		b.create(t, w.name, ES256, policy)
		seen := map[string]State{}
		observe := func() {
			set := b.get(t, w.name)
			for _, k := range set.Keys {
				before, known := seen[k.Kid]
				if before == Pending && k.State == Active && !w.excused[k.Kid] {
					if got, want := k.ActivatedAt.Sub(k.ServedSince), set.Policy.Lead(); got < want {
						rt.Fatalf("I2: %s was served for %s before it signed, want %s", k.Kid, got, want)
					}
				}
				if known && before == Retiring && k.State != Retiring {
					rt.Fatalf("I6: %s came back as %s", k.Kid, k.State)
				}
				seen[k.Kid] = k.State
			}
			w.check()
		}
		observe()
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"wait", "wait", "wait", "sign", "sign", "pass", "rotate", "override", "revoke", "policy", "down"}).Draw(rt, "event") {
			case "wait":
				steps := rapid.IntRange(1, 12).Draw(rt, "tens of seconds")
				for range steps {
					b.clock.Advance(servedGap)
					b.pass(t)
					observe()
				}
			case "sign":
				w.sign(time.Duration(rapid.IntRange(1, 4000).Draw(rt, "life")) * time.Second)
			case "pass":
				b.clock.Advance(time.Duration(rapid.IntRange(0, 9_999_999).Draw(rt, "microseconds")) * time.Microsecond)
				b.pass(t)
			case "rotate":
				_, err := b.Rotate(t.Context(), Rotate{Name: w.name})
				if err != nil && !errors.Is(err, fault.ErrTransition) {
					rt.Fatal(err)
				}
			case "override":
				if s := b.get(t, w.name).Standby(); s != nil {
					w.excused[s.Kid] = true
				}
				if _, err := b.Rotate(t.Context(), Rotate{Name: w.name, Override: true, Reason: "drill"}); err != nil && !errors.Is(err, fault.ErrTransition) {
					rt.Fatal(err)
				}
			case "revoke":
				set := b.get(t, w.name)
				k := rapid.SampledFrom(set.Keys).Draw(rt, "key")
				mode := rapid.SampledFrom([]Mode{ModeStandby, ModeFresh}).Draw(rt, "mode")
				if s := set.Standby(); s != nil {
					w.excused[s.Kid] = true
				}
				if _, _, err := b.Revoke(t.Context(), Revoke{Name: w.name, Kid: k.Kid, Mode: mode, Reason: "superseded"}); err != nil {
					if !errors.Is(err, fault.ErrTransition) {
						rt.Fatal(err)
					}
					break
				}
				w.revoked[k.Kid] = true
			case "policy":
				policy = drawPolicy(rt)
				if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: w.name, Policy: policy}); err != nil {
					rt.Fatal(err)
				}
			case "down":
				b.clock.Advance(time.Duration(rapid.IntRange(0, 3600).Draw(rt, "seconds")) * time.Second)
				b.pass(t)
			}
			observe()
		}
	})
}

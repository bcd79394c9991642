package apikeys

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// world is a partner, all keys that were ever made for it, and what must be true of them.
type world struct {
	rt      *rapid.T
	t       *testing.T
	b       *bed
	partner string
	most    int
	keys    []*life
}

// life is what is known of a key from outside.
type life struct {
	*Key   // as it was made
	value  string
	grace  time.Time // once it was rolled
	ended  State     // once it has
	events map[string]int
}

func (w *world) now() time.Time { return w.b.clock.Now() }

func (w *world) pick() *life {
	if len(w.keys) == 0 {
		w.rt.Skip("no key yet")
	}
	return w.keys[rapid.IntRange(0, len(w.keys)-1).Draw(w.rt, "key")]
}

// may fails unless err is nil or of a kind that the caller of a correct service can get.
func (w *world) may(err error, kinds ...error) bool {
	w.rt.Helper()
	if err == nil {
		return true
	}
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return false
		}
	}
	w.rt.Fatal(err)
	return false
}

func (w *world) add(made New) *life {
	l := &life{Key: made.Key, value: made.Value.RevealString(), events: map[string]int{"create": 1}}
	w.keys = append(w.keys, l)
	return l
}

func (w *world) create(*rapid.T) {
	kind := rapid.SampledFrom([]Kind{APIKey, RequestSecret}).Draw(w.rt, "kind")
	spec := KeySpec{Partner: w.partner, Name: rapid.SampledFrom([]string{"a", "b"}).Draw(w.rt, "name")}
	spec.ExpiresIn = time.Duration(rapid.IntRange(0, 3).Draw(w.rt, "life")) * time.Hour
	var expired []*life // which the name is taken from
	for _, l := range w.keys {
		if kind == RequestSecret && l.Kind == kind && l.Name == spec.Name && l.ended == "" && w.b.get(w.t, l.Key).State(w.now()) == Expired && l.grace.IsZero() {
			expired = append(expired, l)
		}
	}
	counted := 0
	for _, l := range w.keys {
		if state := w.b.get(w.t, l.Key).State(w.now()); l.grace.IsZero() && (state == Active || state == Suspended) {
			counted++
		}
	}
	made, err := w.b.keys.Create(w.t.Context(), kind, spec)
	if w.may(err, fault.ErrLimited, fault.ErrExists) {
		if counted >= w.most {
			w.rt.Fatalf("the partner had %d keys, may have %d, and got another", counted, w.most)
		}
		w.add(made)
		for _, l := range expired {
			l.events["retire"]++
		}
	}
}

func (w *world) roll(*rapid.T) {
	l := w.pick()
	r := Roll{Kind: l.Kind, Partner: w.partner, ID: l.ID, Name: l.Name}
	r.Grace = grace(time.Duration(rapid.IntRange(0, 8).Draw(w.rt, "grace")) * 30 * time.Minute)
	r.Quiet = time.Duration(rapid.IntRange(0, 1).Draw(w.rt, "quiet")) * 10 * time.Minute
	r.ExpiresIn = time.Duration(rapid.IntRange(0, 3).Draw(w.rt, "life")) * time.Hour
	made, old, err := w.b.keys.Roll(w.t.Context(), r)
	if !w.may(err, fault.ErrTransition, fault.ErrChanged) {
		return
	}
	from := w.find(old.ID)
	if from.ended != "" || !from.grace.IsZero() || !from.ExpiresAt.IsZero() && !w.now().Before(from.ExpiresAt) {
		w.rt.Fatalf("%s was rolled, though it was over or rolled before", old.ID)
	}
	from.events["roll"]++
	from.grace = old.GraceEndsAt
	if latest := w.now().Add(*r.Grace); from.grace.After(latest) {
		w.rt.Fatalf("the grace ends at %s, after %s", from.grace, latest)
	}
	next := w.add(made)
	if r.ExpiresIn == 0 && !next.ExpiresAt.Equal(from.ExpiresAt) {
		w.rt.Fatalf("the successor ends at %s, the old one at %s", next.ExpiresAt, from.ExpiresAt)
	}
	if next.Lineage != from.Lineage {
		w.rt.Fatal("the successor is of another line")
	}
}

func (w *world) find(id string) *life {
	for _, l := range w.keys {
		if l.ID == id {
			return l
		}
	}
	w.rt.Fatalf("nobody made key %s", id)
	return nil
}

func (w *world) act(name string, do func(l *life) (*Key, error)) func(*rapid.T) {
	return func(*rapid.T) {
		l := w.pick()
		if _, err := do(l); w.may(err, fault.ErrTransition) {
			l.events[name]++
		}
	}
}

func (w *world) pass(*rapid.T) {
	if _, err := w.b.keys.Pass(w.t.Context(), w.now()); err != nil {
		w.rt.Fatal(err)
	}
	for _, l := range w.keys {
		k := w.b.get(w.t, l.Key)
		if k.Stored == Retired && l.ended == "" {
			l.events["retire"]++
		}
	}
}

func (w *world) check(*rapid.T) {
	ctx := context.WithoutCancel(w.t.Context())
	names := map[string]int{}
	for _, l := range w.keys {
		k := w.b.get(w.t, l.Key) // fails when the seal is not that of the row
		now := w.now()
		if !k.ExpiresAt.Equal(l.ExpiresAt) {
			w.rt.Fatalf("the life of %s changed from %s to %s", k.ID, l.ExpiresAt, k.ExpiresAt)
		}
		if !k.GraceEndsAt.Equal(l.grace) || !k.ExpiresAt.IsZero() && k.GraceEndsAt.After(k.ExpiresAt) {
			w.rt.Fatalf("%s: the grace ends at %s, was %s; the life at %s", k.ID, k.GraceEndsAt, l.grace, k.ExpiresAt)
		}
		if l.ended != "" && k.Stored != l.ended {
			w.rt.Fatalf("%s was %s and is %s", k.ID, l.ended, k.Stored)
		}
		if k.Ended() {
			l.ended = k.Stored
		}
		over := k.Ended() || !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt) || !k.GraceEndsAt.IsZero() && !now.Before(k.GraceEndsAt)
		usable := !over && k.Stored != Suspended
		if state := k.State(now); usable != (state == Active || state == Retiring) {
			w.rt.Fatalf("%s is %s, usable %v", k.ID, state, usable)
		}
		if k.Kind == APIKey {
			if got := w.b.accepts(w.t, k, l.value); got != usable {
				w.rt.Fatalf("%s is accepted: %v, want %v", k.ID, got, usable)
			}
		} else {
			if (k.sealed == nil) != k.Ended() {
				w.rt.Fatalf("%s is %s, and its secret is there: %v", k.ID, k.Stored, k.sealed != nil)
			}
			if k.sealed != nil {
				v, err := w.b.sealer.Open(ctx, secretPlace(k.ID), k.sealed)
				if err != nil || secretPrefix+base64.StdEncoding.EncodeToString(v.Reveal()) != l.value {
					w.rt.Fatalf("%s: what is sealed is not what was shown (%v)", k.ID, err)
				}
			}
			if !k.Ended() && k.GraceEndsAt.IsZero() {
				if names[k.Name]++; names[k.Name] > 1 {
					w.rt.Fatalf("two versions of %q were neither rolled nor ended", k.Name)
				}
			}
		}
	}
}

// trail compares a row with its events.
func (w *world) trail(l *life, k *Key) {
	got := map[string]int{}
	for _, e := range w.b.events(w.t, k.Resource()) {
		action, _, _ := strings.Cut(e, " ")
		got[strings.TrimPrefix(action, string(k.Kind)+".")]++
	}
	delete(got, "still_used")
	atOnce := got["retire"] == 0 && got["revoke"] == 0 && k.Stored == Retired // rolled without a grace
	for action, n := range l.events {
		if got[action] != n {
			w.rt.Fatalf("%s: %d events %q, want %d: %v", k.ID, got[action], action, n, got)
		}
	}
	switch {
	case got["create"] != 1, got["roll"] > 1, (got["roll"] == 1) != (k.ReplacedBy != ""), got["revoke"]+got["retire"] > 1,
		(k.Stored == Revoked) != (got["revoke"] == 1),
		(k.Stored == Retired) != (got["retire"] == 1 || atOnce),
		atOnce && got["roll"] != 1,
		!k.Ended() && (k.Stored == Suspended) != (got["suspend"] == got["resume"]+1),
		!k.Ended() && k.Stored != Suspended && got["suspend"] != got["resume"]:
		w.rt.Fatalf("%s is %s, replaced by %q, with the events %v", k.ID, k.Stored, k.ReplacedBy, got)
	}
}

// Promise: whatever is done with keys, in whatever order and whatever the clock says,
// a grace ends with the life at the latest, a life never grows, what has ended stays
// so, and the trail tells the same as the table.
func TestLifeWhateverHappens(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		n := 0
		rapid.Check(t, func(rt *rapid.T) {
			n++
			w := &world{rt: rt, t: t, b: b, partner: fmt.Sprint("p", n), most: rapid.IntRange(1, 4).Draw(rt, "max_keys")}
			b.partner(t, w.partner, PartnerSpec{MaxKeys: w.most, MaxKeyTTL: time.Duration(rapid.IntRange(0, 1).Draw(rt, "max_key_ttl")) * 4 * time.Hour})
			ctx := t.Context()
			rt.Repeat(map[string]func(*rapid.T){
				"create":  w.create,
				"roll":    w.roll,
				"suspend": w.act("suspend", func(l *life) (*Key, error) { return b.keys.Suspend(ctx, l.Kind, w.partner, l.ID, "") }),
				"resume":  w.act("resume", func(l *life) (*Key, error) { return b.keys.Resume(ctx, l.Kind, w.partner, l.ID, "") }),
				"revoke":  w.act("revoke", func(l *life) (*Key, error) { return b.keys.Revoke(ctx, l.Kind, w.partner, l.ID, "", "") }),
				"use":     func(*rapid.T) { b.use(t, w.pick().Key) },
				"pass":    w.pass,
				"time":    func(*rapid.T) { b.pass(time.Duration(rapid.IntRange(1, 90).Draw(rt, "minutes")) * time.Minute) },
				"clock": func(*rapid.T) {
					b.clock.Advance(time.Duration(rapid.IntRange(-90, 90).Draw(rt, "minutes")) * time.Minute)
				},
				"": w.check,
			})
			for _, l := range w.keys {
				w.trail(l, b.get(t, l.Key))
			}
		})
	})
}

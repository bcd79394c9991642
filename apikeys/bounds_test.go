package apikeys

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// hooked is a webhook that a secret signed, for a request secret by name.
func (d *desk) hooked(t testing.TB, partner, name string, secret webhook.Secret) *Request {
	t.Helper()
	body := []byte(`{"type":"order.created"}`)
	h, err := webhook.Sign("msg_"+rand.Text(), d.clock.Now(), body, secret)
	if err != nil {
		t.Fatal(err)
	}
	r := &Request{Webhook: true, Secret: name, Body: body, Need: Need{Partner: partner}, Message: httpsig.Message{Method: "POST", Path: "/hooks", Header: map[string][]string{}}}
	h.Set(r.Message.Header)
	return r
}

// Promise: a partner who asks for names of secrets that it has not, as fast as it
// can, is slowed down itself. Others' keys are read, and their webhooks verified.
func TestFloodWhenAPartnerMakesNamesUp(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	for _, name := range []string{"acme", "other"} {
		d.partner(t, name)
	}
	_, _, mine := d.secret(t, KeySpec{Partner: "acme", Name: "hooks"})
	_, _, theirs := d.secret(t, KeySpec{Partner: "other", Name: "hooks"})
	_, value := d.key(t, KeySpec{Partner: "other"})
	for range 2 { // the second time what was found is kept
		d.wantRequest(t, d.hooked(t, "acme", "hooks", mine), ReasonOK)
	}
	var err error
	for i := 0; err == nil && i < 2*absentRate; i++ {
		_, _, err = d.VerifyRequest(context.WithoutCancel(t.Context()), d.hooked(t, "acme", fmt.Sprintf("made-up-%d", i), mine))
	}
	wantFault(t, err, fault.ErrUnavailable, "too_many_unknown")
	d.want(t, value, nil, ReasonOK)
	d.wantRequest(t, d.hooked(t, "other", "hooks", theirs), ReasonOK)
	d.wantRequest(t, d.hooked(t, "acme", "hooks", mine), ReasonOK) // in memory
	d.pass(time.Second)
	d.wantRequest(t, d.hooked(t, "acme", "made-up", mine), ReasonUnknown)
}

// Promise: a webhook is accepted under each version of a secret that is inside its
// grace, the oldest of as many as there can be too.
func TestWebhookWhenManyVersionsAreRetiring(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme")
	_, _, oldest := d.secret(t, KeySpec{Partner: "acme", Name: "hooks"})
	for range maxRetiring {
		d.pass(time.Minute)
		made, _, err := d.keys.Roll(t.Context(), Roll{Kind: RequestSecret, Partner: "acme", Name: "hooks"})
		if err != nil {
			t.Fatal(err)
		}
		made.Value.Destroy()
	}
	d.refresh(t)
	d.wantRequest(t, d.hooked(t, "acme", "hooks", oldest), ReasonOK)
}

// Promise: what is asked inside of transactions that lock is found by an index, so
// that rows that have ended, which are never deleted, don't make it slower.
func TestQueriesWhenPlanned(t *testing.T) {
	db := storetest.SQLite(t)
	for _, q := range []struct {
		index, query string
		args         []any
	}{
		{"partner_keys_grace", slotSQL, []any{"lineage", 1}},
		{"partner_keys_weak", countWeakSQL, []any{1}},
	} {
		var plan strings.Builder
		err := db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			rows, err := tx.Query(ctx, `EXPLAIN QUERY PLAN `+q.query, q.args...)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var id, parent, unused int
				var line string
				if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
					return err
				}
				fmt.Fprintln(&plan, line)
			}
			return rows.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(strings.ReplaceAll(plan.String(), "\n", " "), "INDEX "+q.index+" ") {
			t.Errorf("it is not found by %s:\n%s", q.index, &plan)
		}
	}
}

// Promise: an imported key that moved to a newer pepper is accepted at once when the
// old one is retired, though nobody has read anew by what it is found.
func TestForeignWhenItsPepperWasJustRetired(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme")
	value := strongKey()
	results, err := d.keys.Import(t.Context(), "acme", OriginRaw, 0, items(value))
	if err != nil || results[0].Err != nil {
		t.Fatal(err, results)
	}
	d.want(t, value, nil, ReasonOK)
	if _, err := d.peppers.Rotate(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	d.pass(pepperSettles)
	d.refresh(t)
	d.want(t, value, nil, ReasonOK)
	if _, err := d.Pass(t.Context(), d.clock.Now()); err != nil { // writes its new hash
		t.Fatal(err)
	}
	if _, err := d.peppers.Retire(t.Context(), 1, ""); err != nil {
		t.Fatal(err)
	}
	d.want(t, value, nil, ReasonOK)
}

// Promise: that a value is none of the weak keys is forgotten, or not remembered at
// all, when keys were imported while it was looked for.
func TestForeignWhenImportedWhileGuessed(t *testing.T) {
	var f foreign
	f.init()
	k := cacheKey{1}
	at := f.at()
	f.putGuess(k, time.Minute, at)
	if !f.guessed(k, 0) {
		t.Error("a guess is not remembered")
	}
	f.add(imported{weak: []uint16{7}}, nil)
	f.putGuess(k, time.Minute, at)
	if f.guessed(k, 0) {
		t.Error("a guess is remembered that may be wrong")
	}
	at = f.at()
	f.add(imported{}, nil)
	f.putGuess(k, time.Minute, at)
	if !f.guessed(k, 0) {
		t.Error("a guess is not remembered though nothing was imported")
	}
}

// Promise: an imported key is accepted by a replica that did not look for new peppers
// yet, when another one has hashed it under one.
func TestForeignWhenAnotherReplicaHasANewerPepper(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme", "a")
	other := d.replica(t, d.db, VerifierConfig{})
	values := []string{strongKey(), "winter-2019", strongKey()}
	for _, v := range values[:2] {
		d.imports(t, "acme", OriginRaw, v)
	}
	other.refresh(t)
	if _, err := d.peppers.Rotate(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	d.refresh(t)
	d.imports(t, "acme", OriginRaw, values[2])
	for _, v := range values {
		d.want(t, v, nil, ReasonOK)
	}
	if _, err := d.Pass(t.Context(), d.clock.Now()); err != nil { // writes their new hashes
		t.Fatal(err)
	}
	other.want(t, values[0], nil, ReasonUnknown) // it has heard of nothing yet
	other.refresh(t)
	for _, v := range values {
		other.want(t, v, nil, ReasonOK)
	}
}

package rotation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// post is the wire of a test: it has what was sent, and answers as it is told. The real one,
// against real receivers, is tested in package sender.
type post struct {
	mu     sync.Mutex
	answer func(o Outgoing) (Answer, error) // nil: 200
	sent   []Outgoing
}

func (p *post) Check(u *url.URL) error {
	if u.Hostname() == "localhost" {
		return fault.Invalid("url", "private_address", "not there")
	}
	return nil
}

func (p *post) Send(_ context.Context, o Outgoing) (Answer, error) {
	p.mu.Lock()
	p.sent = append(p.sent, o)
	answer := p.answer
	p.mu.Unlock()
	if answer == nil {
		return Answer{Status: 200}, nil
	}
	return answer(o)
}

func (p *post) ids(host string) (ids []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.sent {
		if strings.Contains(o.URL, host) {
			ids = append(ids, o.Header["Webhook-Id"][0])
		}
	}
	return ids
}

// vault has one secret.
type vault struct {
	secret webhook.Secret
	err    error
}

func (v *vault) SigningSecrets(_ context.Context, partner, name string) ([]webhook.Secret, error) {
	if partner != "acme" || name != "hooks" {
		return nil, fault.New(fault.ErrNotFound, "request_secret_not_found", "there is none")
	}
	return []webhook.Secret{v.secret}, v.err
}

func newHooks(t testing.TB, r *rig) (*Endpoints, *post, *vault) {
	t.Helper()
	secret, err := webhook.SecretFrom(slices.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	p, v := &post{}, &vault{secret: secret}
	es, err := NewEndpoints(EndpointsConfig{DB: r.db, Systems: r.systems, Secrets: v, Sender: p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(es.Close)
	return es, p, v
}

func hook(name string) EndpointSpec {
	return EndpointSpec{URL: "https://" + name + ".example/hooks?x=1", Partner: "acme", Secret: "hooks"}
}

func addEndpoint(t testing.TB, es *Endpoints, name string) *Endpoint {
	t.Helper()
	e, err := es.Create(t.Context(), name, hook(name), store.Once{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func deliver(t testing.TB, r *rig, es *Endpoints) time.Time {
	t.Helper()
	next, err := es.DeliverPass(t.Context(), r.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func only(t testing.TB, es *Endpoints, endpoint string) *Delivery {
	t.Helper()
	list, _, err := es.Deliveries(t.Context(), ListDeliveries{Endpoint: endpoint, Limit: 100})
	if err != nil || len(list) != 1 {
		t.Fatalf("%d deliveries, %v", len(list), err)
	}
	return list[0]
}

func TestEndpointWhenMadeAndChanged(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		es, _, v := newHooks(t, r)
		once := store.Once{Scope: "s", Key: "k", Fingerprint: "f"}
		made, err := es.Create(t.Context(), "one", hook("one"), once)
		if err != nil {
			t.Fatal(err)
		}
		again, err := es.Create(t.Context(), "one", hook("one"), once)
		if err != nil || *again != *made {
			t.Errorf("the repeated request: %+v, %v", again, err)
		}
		_, err = es.Create(t.Context(), "one", hook("one"), store.Once{})
		wantReason(t, err, fault.ErrExists, "endpoint_exists")
		for what, c := range map[string]struct {
			edit          func(*EndpointSpec)
			field, reason string
		}{
			"no URL":          {func(s *EndpointSpec) { s.URL = "" }, "url", "bad_url"},
			"ftp":             {func(s *EndpointSpec) { s.URL = "ftp://a.example/" }, "url", "bad_url"},
			"no host":         {func(s *EndpointSpec) { s.URL = "https:///x" }, "url", "bad_url"},
			"a user":          {func(s *EndpointSpec) { s.URL = "https://me:hunter2@a.example/" }, "url", "bad_url"},
			"a fragment":      {func(s *EndpointSpec) { s.URL = "https://a.example/#x" }, "url", "bad_url"},
			"a long URL":      {func(s *EndpointSpec) { s.URL = "https://a.example/" + strings.Repeat("x", 1024) }, "url", "bad_url"},
			"here":            {func(s *EndpointSpec) { s.URL = "https://localhost/" }, "url", "private_address"},
			"no secret":       {func(s *EndpointSpec) { s.Secret = "" }, "secret", "secret_required"},
			"another secret":  {func(s *EndpointSpec) { s.Secret = "nosuch" }, "secret", "secret_unusable"},
			"another partner": {func(s *EndpointSpec) { s.Partner = "nosuch" }, "secret", "secret_unusable"},
		} {
			spec := hook("two")
			c.edit(&spec)
			_, err := es.Create(t.Context(), "two", spec, store.Once{})
			f, ok := errors.AsType[*fault.Error](err)
			if !ok || !errors.Is(err, fault.ErrInvalid) || f.Reason != c.reason || f.Field != c.field || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: got %v", what, err)
			}
		}
		v.err = fault.New(fault.ErrTransition, "no_signing_secret", "revoked")
		_, err = es.Create(t.Context(), "two", hook("two"), store.Once{})
		wantReason(t, err, fault.ErrInvalid, "secret_unusable")
		v.err = nil
		if _, err := es.Update(t.Context(), "one", 1, hook("uno")); err != nil {
			t.Fatal(err)
		}
		_, err = es.Update(t.Context(), "one", 1, hook("uno"))
		wantReason(t, err, fault.ErrChanged, "version_changed")

		r.credential("a", providers.Dual, func(s *Spec) { s.Notify = []string{"one"} })
		wantReason(t, es.Delete(t.Context(), "one"), fault.ErrTransition, "is_used")
		r.rotate("a")
		if only(t, es, "one").State != Waiting {
			t.Error("the webhook does not wait")
		}
		down, err := es.Disable(t.Context(), "one", "moving")
		if err != nil || down.State != EndpointDisabled || only(t, es, "one").State != Dead {
			t.Errorf("%+v, %v", down, err)
		}
		r.clock.Advance(time.Second)
		r.rotate("a")
		only(t, es, "one") // nothing was queued meanwhile
		_, err = es.Redeliver(t.Context(), only(t, es, "one").ID)
		wantReason(t, err, fault.ErrTransition, "endpoint_disabled")
		_, err = es.Test(t.Context(), "one")
		wantReason(t, err, fault.ErrTransition, "endpoint_disabled")
		if _, err := es.Enable(t.Context(), "one", ""); err != nil {
			t.Fatal(err)
		}
		if err := r.creds.Delete(t.Context(), "a", ""); err != nil {
			t.Fatal(err)
		}
		if err := es.Delete(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		if n := r.count(`SELECT COUNT(*) FROM deliveries`); n != 0 {
			t.Errorf("%d deliveries are left", n)
		}
		want := []string{"endpoint.create", "endpoint.delete", "endpoint.disable moving", "endpoint.enable", "endpoint.update"}
		if diff := cmp.Diff(want, r.heard("endpoints/one")); diff != "" {
			t.Errorf("the trail (-want +got):\n%s", diff)
		}
	})
}

func TestDeliveryWhenAllIsWell(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		es, p, v := newHooks(t, r)
		addEndpoint(t, es, "one")
		r.credential("a", providers.Dual, func(s *Spec) { s.Notify = []string{"one"} })
		if next := deliver(t, r, es); !next.IsZero() {
			t.Errorf("nothing waits, next is %v", next)
		}
		run := r.rotate("a")
		deliver(t, r, es)
		if len(p.sent) != 1 {
			t.Fatalf("%d were sent", len(p.sent))
		}
		o := p.sent[0]
		d := only(t, es, "one")
		_, id, err := webhook.Verify(o.Header, o.Body, r.clock.Now(), time.Minute, v.secret)
		if err != nil || id != d.ID || o.URL != hook("one").URL || d.State != Delivered || d.LastStatus != 200 || d.Attempts != 1 || d.DeliveredAt.IsZero() || !d.NextAt.IsZero() {
			t.Errorf("%v: %+v", err, d)
		}
		var body struct {
			Type, Timestamp string
			Data            struct {
				Credential, Target, Rotation string
				Generation                   int64
				Stores                       []struct{ Store, Path, Version string }
			}
		}
		if err := json.Unmarshal(o.Body, &body); err != nil {
			t.Fatal(err)
		}
		data := body.Data
		if body.Type != "credential.rotated" || data.Credential != "a" || data.Target != "mem" || data.Rotation != run.ID || data.Generation != 1 || len(data.Stores) != 1 || data.Stores[0].Version != "1" || data.Stores[0].Path != "kv/a" {
			t.Errorf("%s", o.Body)
		}
		if _, err := time.Parse(time.RFC3339, body.Timestamp); err != nil {
			t.Error(err)
		}
		if text := r.serves("a").Fields.Text("password"); text == "" || strings.Contains(string(o.Body), text) {
			t.Error("the webhook holds the value")
		}
		deliver(t, r, es)
		if len(p.sent) != 1 {
			t.Error("it was sent again")
		}
	})
}

func TestDeliveryWhenItFails(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		es, p, v := newHooks(t, r)
		addEndpoint(t, es, "one")
		r.credential("a", providers.Dual, func(s *Spec) { s.Notify = []string{"one"} })
		r.rotate("a")
		p.answer = func(Outgoing) (Answer, error) { return Answer{Status: 500}, nil }
		begin := r.clock.Now()
		for tries := 0; only(t, es, "one").State == Waiting; tries++ {
			if tries > 100 {
				t.Fatal("it is never given up")
			}
			r.clock.Set(later(r.clock.Now(), deliver(t, r, es)))
		}
		d := only(t, es, "one")
		took := r.clock.Now().Sub(begin)
		if d.State != Dead || d.Attempts != maxTries || d.LastStatus != 500 || !strings.Contains(d.LastError, "500") || took < 66*time.Hour || took > 96*time.Hour {
			t.Errorf("given up after %s: %+v", took, d)
		}
		ids := p.ids("one")
		if len(ids) != maxTries || len(slices.Compact(ids)) != 1 {
			t.Errorf("%d tries", len(ids))
		}
		// The last try is signed for its own time.
		if _, _, err := webhook.Verify(p.sent[maxTries-1].Header, p.sent[maxTries-1].Body, r.clock.Now().Add(-time.Second), 10*time.Hour, v.secret); err != nil {
			t.Error(err)
		}
		if p.sent[0].Header["Webhook-Timestamp"][0] == p.sent[maxTries-1].Header["Webhook-Timestamp"][0] {
			t.Error("all tries have one timestamp")
		}
		dead, _, err := es.Deliveries(t.Context(), ListDeliveries{State: Dead, Limit: 10})
		if err != nil || len(dead) != 1 {
			t.Errorf("%d dead, %v", len(dead), err)
		}
		p.answer = nil
		if _, err := es.Redeliver(t.Context(), d.ID); err != nil {
			t.Fatal(err)
		}
		deliver(t, r, es)
		if d = only(t, es, "one"); d.State != Delivered || d.Attempts != 1 || p.ids("one")[maxTries] != d.ID {
			t.Errorf("%+v", d)
		}
		_, err = es.Redeliver(t.Context(), "nosuch")
		wantReason(t, err, fault.ErrNotFound, "delivery_not_found")
		r.clock.Set(begin.Add(keepDeliveries - time.Hour))
		deliver(t, r, es)
		only(t, es, "one")
		r.clock.Advance(2 * time.Hour)
		deliver(t, r, es)
		if n := r.count(`SELECT COUNT(*) FROM deliveries`); n != 0 {
			t.Errorf("%d are never forgotten", n)
		}
	})
}

func later(now, next time.Time) time.Time {
	if next.After(now) {
		return next
	}
	return now.Add(time.Second)
}

func TestDeliveryWhenAnswered(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer Answer
		err    error
		state  DeliveryState
		wait   time.Duration // at least
		off    bool
	}{
		{"204", Answer{Status: 204}, nil, Delivered, 0, false},
		{"301", Answer{Status: 301}, nil, Waiting, firstRetry, false},
		{"400", Answer{Status: 400}, nil, Waiting, firstRetry, false},
		{"429, later", Answer{Status: 429, RetryAfter: time.Hour}, nil, Waiting, time.Hour, false},
		{"503, much later", Answer{Status: 503, RetryAfter: 1000 * time.Hour}, nil, Waiting, maxRetryAfter, false},
		{"503, at once", Answer{Status: 503, RetryAfter: time.Nanosecond}, nil, Waiting, firstRetry, false},
		{"no answer", Answer{}, fault.New(fault.ErrUnavailable, "no_answer", "%s", "nobody\x00 there "+strings.Repeat("x", 1000)), Waiting, firstRetry, false},
		{"410", Answer{Status: 410}, nil, Dead, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, storetest.SQLite(t), rigConfig{})
			es, p, _ := newHooks(t, r)
			addEndpoint(t, es, "one")
			r.credential("a", providers.Dual, func(s *Spec) { s.Notify = []string{"one"} })
			r.rotate("a")
			p.answer = func(Outgoing) (Answer, error) { return c.answer, c.err }
			deliver(t, r, es)
			d := only(t, es, "one")
			if d.State != c.state || len(d.LastError) > maxSendError+10 || strings.Contains(d.LastError, "\x00") {
				t.Errorf("%+v", d)
			}
			if c.state == Waiting {
				if wait := d.NextAt.Sub(r.clock.Now()); wait < c.wait || wait > c.wait+c.wait/4 {
					t.Errorf("the next try is in %s, want %s", wait, c.wait)
				}
			}
			e, err := es.Get(t.Context(), "one")
			if err != nil || (e.State == EndpointDisabled) != c.off {
				t.Errorf("the endpoint is %s, %v", e.State, err)
			}
		})
	}
}

// A dead endpoint holds up nobody.
func TestDeliveryWhenAnotherEndpointHangs(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	es, p, _ := newHooks(t, r)
	addEndpoint(t, es, "dead")
	addEndpoint(t, es, "well")
	free := make(chan struct{})
	hung := make(chan struct{}, 100)
	p.answer = func(o Outgoing) (Answer, error) {
		if strings.Contains(o.URL, "dead") {
			hung <- struct{}{}
			<-free
			return Answer{}, errors.New("no answer")
		}
		return Answer{Status: 200}, nil
	}
	r.credential("a", providers.Dual, func(s *Spec) { s.Notify = []string{"dead", "well"} })
	for i := range 3 {
		r.rotate("a")
		deliver(t, r, es)
		if n := len(p.ids("well")); n != i+1 {
			t.Fatalf("%d of %d came through while the other endpoint hangs", n, i+1)
		}
	}
	if n := len(hung); n != 1 {
		t.Errorf("%d calls hang at once with one endpoint", n)
	}
	close(free)
	es.Close()
	// It rests for a while, and is then tried again with all that waits.
	sent := len(p.ids("dead"))
	deliver(t, r, es)
	if n := len(p.ids("dead")) - sent; n != 0 {
		t.Errorf("it was tried %d times while it rests", n)
	}
}

// Promise: a webhook is delivered at least once, also when the process that was sending it dies.
func TestDeliveryWhenTheProcessDies(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		es, p, _ := newHooks(t, r)
		addEndpoint(t, es, "one")
		r.credential("a", providers.Dual, func(s *Spec) { s.Notify = []string{"one"} })
		r.rotate("a")
		d := only(t, es, "one")
		if ok, err := es.claimDelivery(t.Context(), d); !ok || err != nil { // and it dies
			t.Fatal(err)
		}
		other, err := NewEndpoints(EndpointsConfig{DB: db, Systems: r.systems, Secrets: es.secrets, Sender: p})
		if err != nil {
			t.Fatal(err)
		}
		deliver(t, r, other)
		if len(p.sent) != 0 {
			t.Error("another process sent it at the same time")
		}
		if ok, err := other.claimDelivery(t.Context(), &Delivery{ID: d.ID, NextAt: d.NextAt}); ok || err != nil {
			t.Errorf("it was claimed twice: %v", err)
		}
		r.clock.Advance(sendLease)
		deliver(t, r, other)
		if ids := p.ids("one"); len(ids) != 1 || ids[0] != d.ID {
			t.Errorf("sent: %v", ids)
		}
	})
}

func TestDeliveryWhenTamperedWith(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	es, p, _ := newHooks(t, r)
	addEndpoint(t, es, "one")
	r.credential("a", providers.Dual, func(s *Spec) { s.Notify = []string{"one"} })
	r.rotate("a")
	body := only(t, es, "one").Body
	r.exec(`UPDATE deliveries SET body = REPLACE(body, '"a"', '"b"')`)
	deliver(t, r, es)
	if d := only(t, es, "one"); d.State != Dead || len(p.sent) != 0 {
		t.Errorf("%s; %d were sent", d.State, len(p.sent))
	}
	r.exec(`UPDATE deliveries SET body = $1`, body)
	if _, err := es.Redeliver(t.Context(), only(t, es, "one").ID); err != nil {
		t.Fatal(err)
	}
	r.exec(`UPDATE endpoints SET url = 'https://evil.example/'`)
	deliver(t, r, es)
	if d := only(t, es, "one"); d.State != Dead || len(p.sent) != 0 {
		t.Errorf("%s; %d were sent", d.State, len(p.sent))
	}
}

// Paths may be long, and no webhook is a reason not to publish.
func TestDeliveryWhenItIsLong(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	es, p, _ := newHooks(t, r)
	addEndpoint(t, es, "one")
	r.credential("a", providers.Dual, func(s *Spec) {
		s.Notify, s.Stores = []string{"one"}, nil
		for i := range maxStores {
			s.Stores = append(s.Stores, Placement{Store: "mem", Path: fmt.Sprint(i, strings.Repeat("\x01", 1000))})
		}
	})
	run := r.rotate("a")
	deliver(t, r, es)
	if len(p.sent) != 1 || len(p.sent[0].Body) > maxBody || !strings.Contains(string(p.sent[0].Body), `"shortened":true`) || !strings.Contains(string(p.sent[0].Body), run.ID) {
		t.Errorf("%d were sent: %.300s", len(p.sent), p.sent[0].Body)
	}
}

func TestEndpointWhenTested(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	es, p, _ := newHooks(t, r)
	addEndpoint(t, es, "one")
	d, err := es.Test(t.Context(), "one")
	if err != nil || d.State != Delivered || d.Type != "endpoint.test" {
		t.Errorf("%+v, %v", d, err)
	}
	p.answer = func(Outgoing) (Answer, error) { return Answer{Status: 403}, nil }
	d, err = es.Test(t.Context(), "one")
	if err != nil || d.State != Dead || d.LastStatus != 403 {
		t.Errorf("%+v, %v", d, err)
	}
	r.clock.Advance(time.Hour)
	deliver(t, r, es)
	if len(p.sent) != 2 {
		t.Errorf("%d were sent", len(p.sent))
	}
}

func TestDeliveriesWhenMany(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		r := newRig(t, db, rigConfig{})
		es, p, _ := newHooks(t, r)
		var names []string
		for i := range 3 {
			names = append(names, fmt.Sprint("e", i))
			addEndpoint(t, es, names[i])
		}
		r.credential("a", providers.Dual, func(s *Spec) { s.Notify = names; s.Schedule = schedule.Schedule{} })
		c, err := r.creds.Get(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		const each = 2*sendBatch + 3
		for range each {
			err := db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				return r.systems.enqueue(ctx, tx, c, "credential.test", nil)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			deliver(t, r, es)
		}
		for _, name := range names {
			ids := p.ids(name + ".")
			slices.Sort(ids)
			if len(slices.Compact(ids)) != each || len(ids) != each {
				t.Errorf("%s got %d, %d of them different, want %d", name, len(ids), len(slices.Compact(ids)), each)
			}
		}
		seen := map[string]bool{}
		for page := ""; ; {
			list, next, err := es.Deliveries(t.Context(), ListDeliveries{Page: page, Limit: 40, State: Delivered})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range list {
				seen[d.ID] = true
			}
			if page = next; page == "" {
				break
			}
		}
		if len(seen) != 3*each {
			t.Errorf("%d are listed, want %d", len(seen), 3*each)
		}
	})
}

// Those that were given up are few among millions that arrived, and a look for them reads no other.
func TestListOfDeadDeliveriesReadsNoOther(t *testing.T) {
	r := newRig(t, storetest.SQLite(t), rigConfig{})
	for name, q := range map[string]ListDeliveries{
		"deliveries_dead": {State: Dead}, "deliveries_endpoint": {Endpoint: "one"},
	} {
		where, args := q.where("g")
		for i, v := range args {
			where = strings.ReplaceAll(where, fmt.Sprintf("$%d", i+1), fmt.Sprintf("'%v'", v))
		}
		if plan := r.explain(`SELECT id FROM deliveries ` + where + ` ORDER BY id DESC LIMIT 10`); !strings.Contains(plan, name) || strings.Contains(plan, "TEMP B-TREE") {
			t.Errorf("%+v is done by %s", q, plan)
		}
	}
}

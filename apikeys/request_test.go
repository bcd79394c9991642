package apikeys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// secret makes a request secret, and returns it with what signs under it.
func (d *desk) secret(t testing.TB, spec KeySpec) (*Key, *httpsig.Key, webhook.Secret) {
	t.Helper()
	if spec.Name == "" {
		spec.Name = "orders-signing"
	}
	made, err := d.keys.Create(t.Context(), RequestSecret, spec)
	if err != nil {
		t.Fatal(err)
	}
	if spec.PublicKey != "" {
		return made.Key, nil, webhook.Secret{}
	}
	return signers(t, made)
}

func signers(t testing.TB, made New) (*Key, *httpsig.Key, webhook.Secret) {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(made.Value.RevealString(), secretPrefix))
	if err != nil {
		t.Fatal(err)
	}
	k, err := httpsig.NewHMACKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	hook, err := webhook.SecretFrom(raw)
	if err != nil {
		t.Fatal(err)
	}
	return made.Key, k, hook
}

// signed makes a POST with a query and a body of 1 KiB, rightly signed.
func signed(t testing.TB, keyID string, key *httpsig.Key, now time.Time, edit func(r *Request, p *httpsig.Params)) *Request {
	t.Helper()
	r := &Request{Body: bytes.Repeat([]byte("0123456789abcdef"), 64), Message: httpsig.Message{
		Method: "POST", Scheme: "https", Authority: "api.example.com", Path: "/v1/orders", Query: "limit=10", HasQuery: true, Header: map[string][]string{"Content-Type": {"application/json"}},
	}}
	r.Message.Header["Content-Digest"] = []string{httpsig.Digest(r.Body)}
	p := httpsig.Params{Components: httpsig.DefaultPolicy().Required, Created: now, KeyID: keyID, Nonce: rand.Text()}
	if edit != nil {
		edit(r, &p)
	}
	input, signature, err := httpsig.Sign(&r.Message, key, p)
	if err != nil {
		t.Fatal(err)
	}
	r.Message.Header["Signature-Input"], r.Message.Header["Signature"] = []string{input}, []string{signature}
	return r
}

func (d *desk) wantRequest(t testing.TB, r *Request, want Reason) Decision {
	t.Helper()
	got, ex, err := d.VerifyRequest(context.WithoutCancel(t.Context()), r)
	if err != nil {
		t.Fatalf("verify request: %v", err)
	}
	if got.Reason != want {
		t.Fatalf("verify request: %s, want %s", got.Reason, want)
	}
	if (ex != nil) != r.Explain {
		t.Fatalf("explanation: %v", ex)
	}
	return got
}

// nonces returns how many nonces are spent.
func (d *desk) nonces(t testing.TB) int64 {
	t.Helper()
	return number(t, d.db, `SELECT COUNT(*) FROM nonces`)
}

// Promise: a request is accepted once, as it was signed, and in no other form. What
// is refused before its signature was found right spends nothing.
func TestRequestWhenAttacked(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		d.partner(t, "acme", "orders:read")
		d.partner(t, "other", "orders:read")
		k, key, _ := d.secret(t, KeySpec{Partner: "acme", Scopes: []string{"orders:read"}, CIDRs: []string{"192.0.2.0/24"}, Rate: RateLimit{Quota: 1000, Window: time.Hour}})
		_, otherKey, _ := d.secret(t, KeySpec{Partner: "other"})
		now := d.clock.Now()
		good := func(edit func(r *Request, p *httpsig.Params)) *Request {
			r := signed(t, k.ID, key, now, edit)
			r.Need.Address = here
			return r
		}
		sound := good(nil)
		got := d.wantRequest(t, sound, ReasonOK)
		if got.Key.ID != k.ID || got.Rate.Remaining != 999 || d.nonces(t) != 1 {
			t.Fatalf("%+v, %d nonces", got, d.nonces(t))
		}
		d.wantRequest(t, sound, ReasonReplay)
		if got := d.wantRequest(t, good(nil), ReasonOK); got.Rate.Remaining != 998 || d.nonces(t) != 2 {
			t.Fatalf("%+v after a replay, %d nonces", got.Rate, d.nonces(t))
		}
		stripped := func(name string) func(*Request, *httpsig.Params) {
			return func(_ *Request, p *httpsig.Params) {
				p.Components = nil
				for _, c := range httpsig.DefaultPolicy().Required {
					if c != name {
						p.Components = append(p.Components, c)
					}
				}
			}
		}
		// after changes a request that is signed already.
		after := func(edit func(r *Request)) *Request {
			r := good(nil)
			edit(r)
			return r
		}
		attacks := []struct {
			name string
			r    *Request
			want Reason
		}{
			{"other method", after(func(r *Request) { r.Message.Method = "DELETE" }), ReasonSignature},
			{"other path", after(func(r *Request) { r.Message.Path = "/v1/refunds" }), ReasonSignature},
			{"path spelled in another way", after(func(r *Request) { r.Message.Path = "/v1/%6Frders" }), ReasonSignature},
			{"other query", after(func(r *Request) { r.Message.Query = "limit=1000" }), ReasonSignature},
			{"query taken away", after(func(r *Request) { r.Message.Query, r.Message.HasQuery = "", false }), ReasonSignature},
			{"other authority", after(func(r *Request) { r.Message.Authority = "api.example.org" }), ReasonSignature},
			{"other body", after(func(r *Request) { r.Body = append(bytes.Clone(r.Body), '!') }), ReasonDigest},
			{"no body", after(func(r *Request) { r.Body = nil }), ReasonDigest},
			{"body not handed over", after(func(r *Request) { r.Body, r.BodyOmitted = nil, true }), ReasonDigest},
			{"other body and digest", after(func(r *Request) {
				r.Body = []byte("{}")
				r.Message.Header["Content-Digest"] = []string{httpsig.Digest(r.Body)}
			}), ReasonSignature},
			{"digest taken away", after(func(r *Request) { delete(r.Message.Header, "Content-Digest") }), ReasonComponents},
			{"body where none was signed", good(func(r *Request, p *httpsig.Params) { stripped("content-digest")(r, p) }), ReasonComponents},
			{"method not covered", good(stripped("@method")), ReasonComponents},
			{"path not covered", good(stripped("@path")), ReasonComponents},
			{"query not covered", good(stripped("@query")), ReasonComponents},
			{"authority not covered", good(stripped("@authority")), ReasonComponents},
			{"no nonce", good(func(_ *Request, p *httpsig.Params) { p.Nonce = "" }), ReasonComponents},
			{"no created", good(func(_ *Request, p *httpsig.Params) { p.Created = time.Time{} }), ReasonWindow},
			{"too old", good(func(_ *Request, p *httpsig.Params) { p.Created = now.Add(-5*time.Minute - time.Second) }), ReasonWindow},
			{"from the future", good(func(_ *Request, p *httpsig.Params) { p.Created = now.Add(31 * time.Second) }), ReasonWindow},
			{"expired", good(func(_ *Request, p *httpsig.Params) {
				p.Created, p.Expires = now.Add(-time.Minute), now.Add(-time.Second)
			}), ReasonWindow},
			{"another partner's key", func() *Request { r := signed(t, k.ID, otherKey, now, nil); r.Need.Address = here; return r }(), ReasonSignature},
			{"made-up keyid", good(func(_ *Request, p *httpsig.Params) { p.KeyID = strings.Repeat("A", idLength) }), ReasonUnknown},
			{"no keyid", good(func(_ *Request, p *httpsig.Params) { p.KeyID = "" }), ReasonUnknown},
			{"two signatures", after(func(r *Request) {
				second := good(func(_ *Request, p *httpsig.Params) { p.Label = "sig2" })
				r.Message.Header["Signature-Input"] = append(r.Message.Header["Signature-Input"], second.Message.Header["Signature-Input"]...)
				r.Message.Header["Signature"] = append(r.Message.Header["Signature"], second.Message.Header["Signature"]...)
			}), ReasonMalformed},
			{"signature twice", after(func(r *Request) {
				r.Message.Header["Signature"] = append(r.Message.Header["Signature"], r.Message.Header["Signature"]...)
			}), ReasonMalformed},
			{"no signature", after(func(r *Request) { delete(r.Message.Header, "Signature") }), ReasonMalformed},
			{"swapped alg", after(func(r *Request) {
				in := r.Message.Header["Signature-Input"]
				in[0] += `;alg="ed25519"`
			}), ReasonSignature},
			{"nonce of another request", after(func(r *Request) {
				in := r.Message.Header["Signature-Input"]
				in[0] = in[0][:strings.Index(in[0], `;nonce="`)] + `;nonce="0123456789abcdefghij"`
			}), ReasonSignature},
			{"asked for another partner", after(func(r *Request) { r.Need.Partner = "other" }), ReasonUnknown},
			{"asked for another environment", after(func(r *Request) { r.Need.Environment = "test" }), ReasonUnknown},
			{"wrong address", after(func(r *Request) { r.Need.Address = there }), ReasonAddress},
			{"wrong scope", after(func(r *Request) { r.Need.Scopes = []string{"orders:write"} }), ReasonScope},
		}
		before, loads := d.nonces(t), d.Stats().Loads
		for _, a := range attacks {
			t.Run(a.name, func(t *testing.T) {
				got := d.wantRequest(t, a.r, a.want)
				if a.want == ReasonUnknown && got.Key != nil {
					t.Error("it tells whose key it was")
				}
				explained := *a.r
				explained.Explain = true
				d.wantRequest(t, &explained, a.want)
			})
		}
		if n := d.Stats().Loads - loads; n != 0 {
			t.Errorf("the database was read %d times for keys that are made up or in memory", n)
		}
		if n := d.nonces(t); n != before {
			t.Errorf("%d nonces were spent on refused requests", n-before)
		}
		if got := d.wantRequest(t, good(nil), ReasonOK); got.Rate.Remaining != 997 {
			t.Errorf("refused requests were taken from the rate limit: %+v", got.Rate)
		}
		// A gateway that has compared the body itself needs not hand it over.
		r := after(func(r *Request) { r.Body, r.BodyOmitted, r.DigestVerified = nil, true, true })
		d.wantRequest(t, r, ReasonOK)
		// A secret's id is good for no API key, and an API key's for no signature.
		_, v := writeKey(brand, keyString{env: "live", id: k.ID, secret: random(secretLength, 32)})
		d.want(t, v.RevealString(), nil, ReasonUnknown)
		apiKey, value := d.key(t, KeySpec{Partner: "acme"})
		d.want(t, value, nil, ReasonOK)
		d.wantRequest(t, good(func(_ *Request, p *httpsig.Params) { p.KeyID = apiKey.ID }), ReasonUnknown)
	})
}

// What ends a key ends its signatures, too.
func TestRequestWhenTheSecretChanges(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		d.partner(t, "acme")
		k, key, _ := d.secret(t, KeySpec{Partner: "acme"})
		sign := func() *Request { return signed(t, k.ID, key, d.clock.Now(), nil) }
		d.wantRequest(t, sign(), ReasonOK)
		if _, err := d.keys.Suspend(t.Context(), RequestSecret, "acme", k.ID, "looks odd"); err != nil {
			t.Fatal(err)
		}
		d.wantRequest(t, sign(), ReasonSuspended)
		if _, err := d.keys.Resume(t.Context(), RequestSecret, "acme", k.ID, ""); err != nil {
			t.Fatal(err)
		}
		d.wantRequest(t, sign(), ReasonOK)
		grace := time.Hour
		made, _, err := d.keys.Roll(t.Context(), Roll{Kind: RequestSecret, Partner: "acme", Name: k.Name, Grace: &grace})
		if err != nil {
			t.Fatal(err)
		}
		k2, key2, _ := signers(t, made)
		if got := d.wantRequest(t, sign(), ReasonOK); got.Key.State(d.clock.Now()) != Retiring || got.Key.ReplacedBy != k2.ID || !got.Key.GraceEndsAt.Equal(d.clock.Now().Add(grace)) {
			t.Errorf("%+v", got.Key)
		}
		d.wantRequest(t, signed(t, k2.ID, key2, d.clock.Now(), nil), ReasonOK)
		d.pass(grace)
		d.refresh(t)
		d.wantRequest(t, sign(), ReasonRevoked)
		if _, err := d.keys.Revoke(t.Context(), RequestSecret, "acme", k2.ID, KeyCompromise, ""); err != nil {
			t.Fatal(err)
		}
		d.wantRequest(t, signed(t, k2.ID, key2, d.clock.Now(), nil), ReasonRevoked)
		// Anybody can write a keyid: that its secret is revoked says nothing of who asks.
		forged := signed(t, k2.ID, key, d.clock.Now(), nil)
		if got := d.wantRequest(t, forged, ReasonRevoked); got.Key != nil || got.Partner != nil || got.Scopes != nil {
			t.Errorf("a forged signature is told to be that of %+v", got)
		}
	})
}

// A partner's policy is the one that counts, and public keys verify too.
func TestRequestWhenThePartnerHasAPolicyAndAPublicKey(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	_, err := d.partners.Create(t.Context(), "acme", PartnerSpec{Signing: SigningPolicy{Components: []string{"@method", "@path", "x-tenant"}, MaxAge: time.Minute, Skew: 5 * time.Second, Tag: "acme-orders"}}, store.Once{})
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	k, _, _ := d.secret(t, KeySpec{Partner: "acme", PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))})
	key, err := httpsig.NewPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(edit func(r *Request, p *httpsig.Params)) *Request {
		return signed(t, k.ID, key, d.clock.Now(), func(r *Request, p *httpsig.Params) {
			r.Message.Header["X-Tenant"] = []string{"7"}
			p.Components, p.Tag, p.Alg = []string{"@method", "@path", "x-tenant"}, "acme-orders", true
			if edit != nil {
				edit(r, p)
			}
		})
	}
	d.wantRequest(t, sign(nil), ReasonOK)
	d.wantRequest(t, sign(func(_ *Request, p *httpsig.Params) { p.Components = p.Components[:2] }), ReasonComponents)
	d.wantRequest(t, sign(func(_ *Request, p *httpsig.Params) { p.Tag = "" }), ReasonComponents)
	d.wantRequest(t, sign(func(_ *Request, p *httpsig.Params) { p.Created = d.clock.Now().Add(-61 * time.Second) }), ReasonWindow)
	d.wantRequest(t, sign(func(_ *Request, p *httpsig.Params) { p.Created = d.clock.Now().Add(6 * time.Second) }), ReasonWindow)
	// The public key is no secret, so it is no HMAC key.
	hmacKey, err := httpsig.NewHMACKey(public)
	if err != nil {
		t.Fatal(err)
	}
	forged := signed(t, k.ID, hmacKey, d.clock.Now(), func(r *Request, p *httpsig.Params) {
		r.Message.Header["X-Tenant"] = []string{"7"}
		p.Components, p.Tag = []string{"@method", "@path", "x-tenant"}, "acme-orders"
	})
	d.wantRequest(t, forged, ReasonSignature)
}

// Promise: a request is accepted once, also when the partner's policy allows older
// ones after it was forgotten that it came.
func TestRequestWhenThePolicyAllowsOlderOnes(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		p := d.partner(t, "acme")
		k, key, _ := d.secret(t, KeySpec{Partner: "acme"})
		r := signed(t, k.ID, key, d.clock.Now(), nil)
		d.wantRequest(t, r, ReasonOK)
		pass := func(by time.Duration) {
			t.Helper()
			d.pass(by)
			d.refresh(t)
			if _, err := d.Pass(t.Context(), d.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		pass(10 * time.Minute)
		d.wantRequest(t, r, ReasonWindow)
		if _, err := d.partners.Update(t.Context(), "acme", p.Version, PartnerSpec{Signing: SigningPolicy{MaxAge: maxSignatureAge}}); err != nil {
			t.Fatal(err)
		}
		d.wantRequest(t, r, ReasonReplay)
		d.wantRequest(t, signed(t, k.ID, key, d.clock.Now().Add(-40*time.Minute), nil), ReasonOK)
		pass(50 * time.Minute)
		d.wantRequest(t, r, ReasonReplay)
		pass(2 * time.Minute)
		d.wantRequest(t, r, ReasonWindow)
		if n := d.nonces(t); n != 0 {
			t.Errorf("%d nonces are kept for nothing", n)
		}
	})
}

// Promise: an explanation tells the signer what to change; it costs nothing, and
// holds nothing that helps to forge.
func TestRequestWhenExplained(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme")
	k, key, _ := d.secret(t, KeySpec{Partner: "acme", Rate: RateLimit{Quota: 10, Window: time.Hour}})
	r := signed(t, k.ID, key, d.clock.Now(), nil)
	sig, err := httpsig.Parse(&r.Message, "")
	if err != nil {
		t.Fatal(err)
	}
	base, err := sig.Base(nil, &r.Message)
	if err != nil {
		t.Fatal(err)
	}
	r.Explain, r.SignerBase = true, base
	r.Message.Path = "/v1/refunds"
	got, ex, err := d.VerifyRequest(t.Context(), r)
	if err != nil || got.Reason != ReasonSignature || ex.Component != "@path" || ex.ServerLine != `"@path": /v1/refunds` || ex.SignerLine != `"@path": /v1/orders` {
		t.Errorf("%s, %+v, %v", got.Reason, ex, err)
	}
	r.Message.Path = "/v1/orders"
	for range 3 { // as often as one likes
		got, ex, err = d.VerifyRequest(t.Context(), r)
		if err != nil || got.Reason != ReasonOK || ex.Message != "the signature is right" {
			t.Errorf("%s, %+v, %v", got.Reason, ex, err)
		}
	}
	if n := d.nonces(t); n != 0 {
		t.Errorf("%d nonces were spent on explanations", n)
	}
	r.Explain = false
	if got := d.wantRequest(t, r, ReasonOK); got.Rate.Remaining != 9 {
		t.Errorf("%+v", got.Rate)
	}
	r.Explain, r.Need.Partner = true, "other"
	if got, ex, err = d.VerifyRequest(t.Context(), r); err != nil || got.Reason != ReasonUnknown || ex.Base != "" || ex.Component != "" {
		t.Errorf("another partner is told %s, %+v, %v", got.Reason, ex, err)
	}
}

// Promise: of one request that arrives many times at two replicas at once, one is
// accepted.
func TestRequestWhenReplayedAtTwoReplicas(t *testing.T) {
	url := storetest.Postgres(t)
	d := newDesk(t, storetest.Open(t, url))
	other := d.replica(t, storetest.Open(t, url), VerifierConfig{})
	d.partner(t, "acme")
	k, key, _ := d.secret(t, KeySpec{Partner: "acme"})
	for round := range 30 {
		r := signed(t, k.ID, key, d.clock.Now(), nil)
		var ok, replay atomic.Int64
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				at := []*desk{d, other}[i%2]
				copied := *r
				copied.Message.Header = maps.Clone(r.Message.Header)
				got, _, err := at.VerifyRequest(context.WithoutCancel(t.Context()), &copied)
				switch {
				case err != nil:
					t.Error(err)
				case got.Reason == ReasonOK:
					ok.Add(1)
				case got.Reason == ReasonReplay:
					replay.Add(1)
				}
			})
		}
		wg.Wait()
		if ok.Load() != 1 || replay.Load() != 7 {
			t.Fatalf("round %d: accepted %d times, refused as a replay %d times", round, ok.Load(), replay.Load())
		}
	}
}

// Promise: a webhook is accepted once, under any version that is in force.
func TestRequestWhenItIsAWebhook(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		d.partner(t, "acme")
		k, _, first := d.secret(t, KeySpec{Partner: "acme", Name: "hooks"})
		body := []byte(`{"type":"order.created"}`)
		hook := func(secrets ...webhook.Secret) *Request {
			h, err := webhook.Sign("msg_"+rand.Text(), d.clock.Now(), body, secrets...)
			if err != nil {
				t.Fatal(err)
			}
			r := &Request{Webhook: true, Secret: "hooks", Body: body, Need: Need{Partner: "acme"}, Message: httpsig.Message{Method: "POST", Path: "/hooks", Header: map[string][]string{}}}
			h.Set(r.Message.Header)
			return r
		}
		r := hook(first)
		if got := d.wantRequest(t, r, ReasonOK); got.Key.ID != k.ID {
			t.Errorf("%+v", got.Key)
		}
		d.wantRequest(t, r, ReasonReplay)
		// A sender that tries again keeps the id, and signs it anew.
		again, err := webhook.Sign(r.Message.Header["Webhook-Id"][0], d.clock.Now().Add(time.Second), body, first)
		if err != nil {
			t.Fatal(err)
		}
		again.Set(r.Message.Header)
		d.wantRequest(t, r, ReasonOK)
		d.wantRequest(t, r, ReasonReplay)
		r = hook(first)
		r.Body = []byte(`{"type":"order.paid"}`)
		d.wantRequest(t, r, ReasonSignature)
		r.Body, r.BodyOmitted = nil, true
		d.wantRequest(t, r, ReasonDigest)
		r = hook(first)
		r.Secret = "nothing"
		d.wantRequest(t, r, ReasonUnknown)
		r.Secret, r.Need.Partner = "hooks", "nobody"
		d.wantRequest(t, r, ReasonUnknown)
		grace := time.Hour
		made, _, err := d.keys.Roll(t.Context(), Roll{Kind: RequestSecret, Partner: "acme", Name: "hooks", Grace: &grace})
		if err != nil {
			t.Fatal(err)
		}
		k2, _, second := signers(t, made)
		if got := d.wantRequest(t, hook(second), ReasonOK); got.Key.ID != k2.ID {
			t.Errorf("%+v", got.Key)
		}
		d.wantRequest(t, hook(first), ReasonOK)
		both := hook(first, second)
		d.wantRequest(t, both, ReasonOK)
		all := both.Message.Header["Webhook-Signature"][0]
		both.Message.Header["Webhook-Signature"] = []string{all[:strings.Index(all, " ")]}
		d.wantRequest(t, both, ReasonReplay) // under the other version alone
		late := hook(second)
		d.pass(5*time.Minute + time.Second)
		d.refresh(t)
		d.wantRequest(t, late, ReasonWindow)
		d.pass(grace)
		d.refresh(t)
		d.wantRequest(t, hook(first), ReasonRevoked)
		d.wantRequest(t, hook(second), ReasonOK)
		if _, _, err := d.VerifyRequest(t.Context(), &Request{Webhook: true, Secret: "hooks"}); err == nil {
			t.Error("a webhook of no partner was looked for")
		}
	})
}

// Who has used his rate up can write nothing more into the database.
func TestRequestWhenItsRateIsUsedUp(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		d.partner(t, "acme")
		k, key, _ := d.secret(t, KeySpec{Partner: "acme", Rate: RateLimit{Quota: 2, Window: time.Hour}})
		sound := signed(t, k.ID, key, d.clock.Now(), nil)
		d.wantRequest(t, sound, ReasonOK)
		d.wantRequest(t, signed(t, k.ID, key, d.clock.Now(), nil), ReasonOK)
		for range 5 {
			if got := d.wantRequest(t, signed(t, k.ID, key, d.clock.Now(), nil), ReasonRate); got.Rate.RetryAfter <= 0 {
				t.Errorf("%+v", got.Rate)
			}
		}
		d.wantRequest(t, sound, ReasonRate) // that it is a replay would cost a look
		if n := d.nonces(t); n != 2 {
			t.Errorf("%d nonces of 2 accepted requests", n)
		}
		d.pass(31 * time.Minute)
		d.refresh(t)
		d.wantRequest(t, signed(t, k.ID, key, d.clock.Now(), nil), ReasonOK)
	})
}

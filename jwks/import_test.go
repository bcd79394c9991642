package jwks

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func p256(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// rsaKeys are made once: the search for primes takes long.
var rsaKeys = sync.OnceValue(func() [2]*rsa.PrivateKey {
	var out [2]*rsa.PrivateKey
	for i := range out {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		out[i] = k
	}
	return out
})

func block(t testing.TB, kind string, der []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(t testing.TB, k any) string {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	return block(t, "PRIVATE KEY", der, err)
}

func pkix(t testing.TB, k any) string {
	der, err := x509.MarshalPKIXPublicKey(k)
	return block(t, "PUBLIC KEY", der, err)
}

// jwk renders a key, with members changed; a nil value removes one.
func jwk(t testing.TB, k any, kid string, change map[string]any) string {
	t.Helper()
	b, err := jose.JSONWebKey{Key: k, KeyID: kid}.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for name, v := range change {
		if m[name] = v; v == nil {
			delete(m, name)
		}
	}
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (b *bed) importKey(t testing.TB, req Import) (*Keyset, string) {
	t.Helper()
	if req.MaxTokenLife == 0 {
		req.MaxTokenLife = time.Hour
	}
	if req.State == Active && req.Reason == "" {
		req.Reason = "every verifier has it"
	}
	set, kid, err := b.Import(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return set, kid
}

// thumb is the RFC 7638 thumbprint of a key.
func thumb(t testing.TB, pub crypto.PublicKey) string {
	t.Helper()
	sum, err := (&jose.JSONWebKey{Key: pub}).Thumbprint(crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// Each form of key comes in as an active key and signs.
func TestImportEveryForm(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		_, ed, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		sec1 := func(k *ecdsa.PrivateKey) string {
			der, err := x509.MarshalECPrivateKey(k)
			return block(t, "EC PRIVATE KEY", der, err)
		}
		ec, r := p256(t), rsaKeys()
		forms := []struct {
			name string
			alg  Algorithm
			text string
			pub  crypto.PublicKey
			kid  string
		}{
			{"ec-pkcs8", ES256, pkcs8(t, ec), ec.Public(), ""},
			{"ec-sec1", ES256, sec1(ec), ec.Public(), ""},
			{"ec-jwk", ES256, jwk(t, ec, "their-kid", nil), ec.Public(), "their-kid"},
			{"ec-jwk-use", ES256, jwk(t, ec, "", map[string]any{"use": "sig", "alg": "ES256"}), ec.Public(), ""},
			{"ed-pkcs8", Ed25519, pkcs8(t, ed), ed.Public(), ""},
			{"ed-jwk", Ed25519, jwk(t, ed, "https://a.b/keys/1", nil), ed.Public(), "https://a.b/keys/1"},
			{"rsa-pkcs8", RS256, pkcs8(t, r[0]), r[0].Public(), ""},
			{"rsa-pkcs1", PS256, block(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(r[0]), nil), r[0].Public(), ""},
			{"rsa-jwk", RS512, jwk(t, r[0], "r", nil), r[0].Public(), "r"},
			{"space-around", ES256, "\n\t " + pkcs8(t, ec) + "\n\n", ec.Public(), ""},
		}
		for _, tc := range forms {
			t.Run(tc.name, func(t *testing.T) {
				old := b.create(t, tc.name, tc.alg, quick()).Active().Kid
				set, kid := b.importKey(t, Import{Name: tc.name, Key: secret.FromString(tc.text), State: Active})
				want := tc.kid
				if want == "" {
					want = thumb(t, tc.pub)
				}
				if kid != want {
					t.Errorf("kid %s, want %s", kid, want)
				}
				a := set.Active()
				if a.Kid != kid || a.Origin != Imported || a.MaxTokenLife != time.Hour || a.Reason == "" || set.key(old).State != Retiring {
					t.Errorf("imported as %+v beside %v", a, kids(set))
				}
				checkDocument(t, b.Document(tc.name), string(tc.alg.JWS()))
				s := b.sign(t, tc.name)
				if s.Kid != kid {
					t.Fatalf("%s signs, not the imported key", s.Kid)
				}
				if err := b.accepted(t, tc.name, s.Token); err != nil {
					t.Fatal(err)
				}
				// Not only the document that we made of it: the key itself verifies.
				jws, err := jose.ParseSignedCompact(s.Token, []jose.SignatureAlgorithm{tc.alg.JWS()})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := jws.Verify(tc.pub); err != nil {
					t.Errorf("the imported key does not verify: %v", err)
				}
			})
		}
	})
}

// A key that only verifies keeps no private half, and stays published for as
// long as its tokens may live.
func TestImportAsRetiring(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		ec := p256(t)
		token, err := signWithKey(ec, "old-1", epoch, epoch.Add(3*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		for i, text := range []string{jwk(t, ec, "old-1", nil), pkix(t, p256(t).Public()), jwk(t, p256(t).Public(), "old-3", nil)} {
			got, kid := b.importKey(t, Import{Name: "payments", Key: secret.FromString(text), State: Retiring, MaxTokenLife: 3 * time.Hour})
			if got.Active().Kid != set.Active().Kid || got.Standby().Kid != set.Standby().Kid || len(got.Keys) != 3+i {
				t.Fatalf("after the import: %v", kids(got))
			}
			k := b.get(t, "payments").key(kid)
			if k.State != Retiring || k.Home != noHome || k.Private != nil || k.Origin != Imported || k.MaxTokenLife != 3*time.Hour {
				t.Errorf("imported as %+v", k)
			}
		}
		checkDocument(t, b.Document("payments"), "ES256")
		if err := b.accepted(t, "payments", token); err != nil {
			t.Errorf("the other issuer's token: %v", err)
		}
		removal := epoch.Add(3*time.Hour + 130*time.Second)
		if at := b.get(t, "payments").Outlook()["old-1"].At; !at.Equal(removal) {
			t.Errorf("it is withdrawn at %s, want %s", at, removal)
		}
		b.walk(t, 3*time.Hour-time.Second)
		if err := b.accepted(t, "payments", token); err != nil {
			t.Errorf("a second before its end: %v", err)
		}
		b.walk(t, 131*time.Second)
		if k := b.get(t, "payments").key("old-1"); k != nil {
			t.Errorf("still %s", k.State)
		}
	})
}

func signWithKey(k *ecdsa.PrivateKey, kid string, iat, exp time.Time) (string, error) {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: k}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(map[string]int64{"iat": iat.Unix(), "exp": exp.Unix()})
	if err != nil {
		return "", err
	}
	jws, err := s.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

func TestImportWhenRefused(t *testing.T) {
	ec, other := p256(t), p256(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPub2, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := rsaKeys()
	b64 := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	weak := weakRSA(t)
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x")})
	good := pkcs8(t, ec)

	type refusal struct {
		name          string
		keyset        string
		change        func(*Import)
		reason, field string
		words         string
	}
	key := func(text string) func(*Import) { return func(i *Import) { i.Key = secret.FromString(text) } }
	cases := []refusal{
		{"pending", "ec", func(i *Import) { i.State = Pending }, "import_state", "state", ""},
		{"no state", "ec", func(i *Import) { i.State = "" }, "import_state", "state", ""},
		{"revoked", "ec", func(i *Import) { i.State = Revoked }, "import_state", "state", ""},
		{"active without a reason", "ec", func(i *Import) { i.Reason = "" }, "reason_required", "reason", ""},
		{"no life", "ec", func(i *Import) { i.MaxTokenLife = 0 }, "duration_range", "max_token_life", ""},
		{"negative life", "ec", func(i *Import) { i.MaxTokenLife = -1 }, "duration_range", "max_token_life", ""},
		{"absurd life", "ec", func(i *Import) { i.MaxTokenLife = maxDuration + 1 }, "duration_range", "max_token_life", ""},
		{"no key", "ec", key(""), "bad_key", "key", "neither a JWK"},
		{"garbage", "ec", key("hello"), "bad_key", "key", "neither a JWK"},
		{"binary garbage", "ec", key("\x30\x82\x00\xff"), "bad_key", "key", "neither a JWK"},
		{"too long", "ec", key("{" + strings.Repeat(" ", 33<<10) + "}"), "bad_key", "key", "32 KiB"},
		{"half a PEM block", "ec", key(good[:100]), "bad_key", "key", "damaged"},
		{"two PEM blocks", "ec", key(good + good), "bad_key", "key", "more than one"},
		{"a certificate", "ec", key(block(t, "CERTIFICATE", []byte{1}, nil)), "bad_key", "key", "CERTIFICATE"},
		{"PEM with garbage inside", "ec", key(block(t, "PRIVATE KEY", []byte("not DER"), nil)), "bad_key", "key", "can't be read"},
		{"SEC 1 with garbage inside", "ec", key(block(t, "EC PRIVATE KEY", []byte{0x30, 0}, nil)), "bad_key", "key", "can't be read"},
		{"encrypted PKCS 8", "ec", key(block(t, "ENCRYPTED PRIVATE KEY", []byte{1}, nil)), "bad_key", "key", "encrypted"},
		{"encrypted, the old way", "rsa", key(string(encrypted)), "bad_key", "key", "encrypted"},
		{"symmetric", "ec", key(`{"kty":"oct","k":"` + b64([]byte("0123456789abcdef")) + `"}`), "bad_key", "key", "symmetric"},
		{"a set", "ec", key(`{"keys":[` + jwk(t, ec, "a", nil) + `]}`), "bad_key", "key", "set"},
		{"no JSON", "ec", key(`{"kty":`), "bad_key", "key", "not a JSON object"},
		{"JSON with a tail", "ec", key(jwk(t, ec, "a", nil) + "{}"), "bad_key", "key", "not a JSON object"},
		{"unknown kty", "ec", key(`{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}`), "bad_key", "key", ""},
		{"for encryption", "ec", key(jwk(t, ec, "a", map[string]any{"use": "enc"})), "bad_key", "key", "use"},
		{"for another algorithm", "rsa", key(jwk(t, r[0], "a", map[string]any{"alg": "PS256"})), "wrong_key_type", "key", "PS256"},
		{"EC halves of two keys", "ec", key(jwk(t, ec, "a", map[string]any{"d": b64(mustD(t, other))})), "bad_key", "key", ""},
		{"EC point off the curve", "ec", key(jwk(t, ec, "a", map[string]any{"x": b64(make([]byte, 32))})), "bad_key", "key", ""},
		{"RSA halves of two keys", "rsa", key(jwk(t, r[0], "a", map[string]any{"n": b64(r[1].N.Bytes())})), "bad_key", "key", ""},
		{"RSA with another exponent", "rsa", key(jwk(t, r[0], "a", map[string]any{"d": b64(r[1].D.Bytes())})), "bad_key", "key", ""},
		{"Ed25519 halves of two keys", "ed", key(jwk(t, ed, "a", map[string]any{"x": b64(edPub2)})), "bad_key", "key", ""},
		{"weak RSA", "rsa", func(i *Import) { i.State, i.Key = Retiring, secret.FromString(weak) }, "wrong_key_type", "key", "1024"},
		{"RSA into an EC keyset", "ec", key(pkcs8(t, r[0])), "wrong_key_type", "key", "RSA"},
		{"EC into an RSA keyset", "rsa", key(good), "wrong_key_type", "key", "P-256"},
		{"Ed25519 into an EC keyset", "ec", key(pkcs8(t, ed)), "wrong_key_type", "key", "Ed25519"},
		{"another curve", "ec", key(pkcs8(t, p384)), "wrong_key_type", "key", "P-384"},
		{"a curve that is not for JWS", "ec", key(pkcs8(t, p224)), "bad_key", "key", "P-256"},
		{"active, public half only", "ec", key(pkix(t, ec.Public())), "private_half_missing", "key", ""},
		{"kid with a space", "ec", func(i *Import) { i.Kid = "a b" }, "bad_kid", "kid", ""},
		{"kid with a NUL", "ec", func(i *Import) { i.Kid = "a\x00" }, "bad_kid", "kid", ""},
		{"kid that is not UTF-8", "ec", func(i *Import) { i.Kid = "\xff" }, "bad_kid", "kid", ""},
		{"kid of 257 bytes", "ec", func(i *Import) { i.Kid = strings.Repeat("k", 257) }, "bad_kid", "kid", ""},
		{"the JWK's own bad kid", "ec", key(jwk(t, ec, "a\"b", nil)), "bad_kid", "kid", ""},
	}
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		for name, alg := range map[string]Algorithm{"ec": ES256, "rsa": RS256, "ed": Ed25519} {
			b.create(t, name, alg, quick())
		}
		before := dump(t, db)
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				req := Import{Name: tc.keyset, Key: secret.FromString(good), State: Active, MaxTokenLife: time.Hour, Reason: "known"}
				tc.change(&req)
				_, _, err := b.Import(t.Context(), req)
				wantFault(t, err, fault.ErrInvalid, tc.reason, tc.field, tc.words)
				if text := req.Key.RevealString(); len(text) > 40 && strings.Contains(err.Error(), text[20:40]) {
					t.Error("the message quotes the key")
				}
			})
		}
		if after := dump(t, db); after != before {
			t.Error("a refused import changed the database")
		}
		_, _, err := b.Import(t.Context(), Import{Name: "nobody", Key: secret.FromString(good), State: Active, MaxTokenLife: time.Hour, Reason: "known"})
		wantFault(t, err, fault.ErrNotFound, "keyset_not_found", "name")
	})
}

func mustD(t testing.TB, k *ecdsa.PrivateKey) []byte {
	t.Helper()
	d, err := k.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// weakRSA is a public RSA key of 1024 bits: Go no longer makes private ones.
func weakRSA(t testing.TB) string {
	t.Helper()
	n := make([]byte, 128)
	for i := range n {
		n[i] = 0xff
	}
	return `{"kty":"RSA","n":"` + base64.RawURLEncoding.EncodeToString(n) + `","e":"AQAB"}`
}

func TestImportWhenKeyWasThereBefore(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		b.create(t, "orders", ES256, quick())
		first, second := p256(t), p256(t)
		_, kid := b.importKey(t, Import{Name: "payments", Key: secret.FromString(jwk(t, first, "one", nil)), State: Active})
		try := func(text, as string) error {
			_, _, err := b.Import(t.Context(), Import{Name: "payments", Key: secret.FromString(text), Kid: as, State: Retiring, MaxTokenLife: time.Hour})
			return err
		}
		wantFault(t, try(pkcs8(t, first), ""), fault.ErrExists, "key_used", "key", "one")
		wantFault(t, try(pkix(t, first.Public()), "two"), fault.ErrExists, "key_used", "key", "one")
		wantFault(t, try(pkcs8(t, second), "one"), fault.ErrExists, "kid_used", "kid", "one")
		own := b.get(t, "payments").Standby()
		wantFault(t, try(string(own.Public), "mine"), fault.ErrExists, "key_used", "key", own.Kid)
		// Also after it was revoked: a revoked key never comes back under another name.
		if _, _, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: kid, Mode: ModeStandby, Reason: "key_compromise"}); err != nil {
			t.Fatal(err)
		}
		wantFault(t, try(pkcs8(t, first), "two"), fault.ErrExists, "key_used", "key", "one")
		wantFault(t, try(pkcs8(t, second), "one"), fault.ErrExists, "kid_used", "kid", "one")
		// Another keyset is another matter.
		b.importKey(t, Import{Name: "orders", Key: secret.FromString(pkcs8(t, first)), Kid: "one", State: Active})
	})
}

func TestImportWhenRepeated(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		req := Import{Name: "payments", Key: secret.FromString(pkcs8(t, p256(t))), State: Active, MaxTokenLife: time.Hour, Reason: "known",
			Once: store.Once{Scope: "ada/import", Key: "k", Fingerprint: "f"}}
		_, kid, err := b.Import(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		before := dump(t, db)
		set, again, err := b.Import(t.Context(), req)
		if err != nil || again != kid || set.Active().Kid != kid {
			t.Errorf("repeated: %v %s", err, again)
		}
		req.Once.Fingerprint = "other"
		_, _, err = b.Import(t.Context(), req)
		wantFault(t, err, fault.ErrInvalid, "idempotency_key_reused", "idempotency_key")
		if after := dump(t, db); after != before {
			t.Error("repetitions changed the database")
		}
	})
}

func TestImportWhenSetIsFull(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		for range maxPublished - 2 {
			b.importKey(t, Import{Name: "payments", Key: secret.FromString(pkix(t, p256(t).Public())), State: Retiring})
		}
		before := dump(t, db)
		_, _, err := b.Import(t.Context(), Import{Name: "payments", Key: secret.FromString(pkix(t, p256(t).Public())), State: Retiring, MaxTokenLife: time.Hour})
		wantFault(t, err, fault.ErrInvalid, "too_many_keys", "name", "33", "32")
		if after := dump(t, db); after != before {
			t.Error("the refused import changed the database")
		}
	})
}

// The private half is stored sealed, and for its own row only.
func TestPrivateHalfIsSealedForItsRow(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ec := p256(t)
		b.create(t, "payments", ES256, quick())
		_, kid := b.importKey(t, Import{Name: "payments", Key: secret.FromString(pkcs8(t, ec)), State: Active})
		der, err := x509.MarshalPKCS8PrivateKey(ec)
		if err != nil {
			t.Fatal(err)
		}
		k := b.row(t, "payments", kid)
		if d := mustD(t, ec); strings.Contains(string(k.Private), string(d)) || strings.Contains(string(k.Private), string(der)) {
			t.Fatal("the row holds the private half in the clear")
		}
		if _, err := b.local.Open(context.Background(), *k); err != nil {
			t.Fatal(err)
		}
		moved := *k
		moved.Kid = "another row"
		if _, err := b.local.Open(context.Background(), moved); err == nil {
			t.Error("it opens in another row")
		}
		moved = *k
		moved.KeysetID = "another"
		if _, err := b.local.Open(context.Background(), moved); err == nil {
			t.Error("it opens in another keyset")
		}
	})
}

package httpsig

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"
)

// The window, to the nanosecond on both sides.
func TestWindowHasExactBounds(t *testing.T) {
	p := Policy{MaxAge: 5 * time.Minute, Skew: 30 * time.Second}
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	for _, v := range []struct {
		name   string
		s      Signature
		now    time.Time
		reason string
	}{
		{"now", Signature{Created: at(0), HasCreated: true}, now, "ok"},
		{"no created", Signature{}, now, ReasonWindow},
		{"no created, the epoch", Signature{}, time.Unix(0, 0), ReasonWindow},
		{"oldest", Signature{Created: at(-5 * time.Minute), HasCreated: true}, now, "ok"},
		{"too old", Signature{Created: at(-5 * time.Minute), HasCreated: true}, now.Add(1), ReasonWindow},
		{"newest", Signature{Created: at(30 * time.Second), HasCreated: true}, now, "ok"},
		{"too new", Signature{Created: at(30 * time.Second), HasCreated: true}, now.Add(-1), ReasonWindow},
		{"the year 9999", Signature{Created: maxTime, HasCreated: true}, now, ReasonWindow},
		{"the epoch", Signature{HasCreated: true}, now, ReasonWindow},
		{"expires now", Signature{Created: at(-60 * time.Second), HasCreated: true, Expires: at(0), HasExpires: true}, now, "ok"},
		{"expired", Signature{Created: at(-60 * time.Second), HasCreated: true, Expires: at(0), HasExpires: true}, now.Add(1), ReasonWindow},
		{"expires when created", Signature{Created: at(0), HasCreated: true, Expires: at(0), HasExpires: true}, now, ReasonWindow},
		{"expires before created", Signature{Created: at(10 * time.Second), HasCreated: true, Expires: at(5 * time.Second), HasExpires: true}, now, ReasonWindow},
		{"expires much later does not help", Signature{Created: at(-time.Hour), HasCreated: true, Expires: at(time.Hour), HasExpires: true}, now, ReasonWindow},
	} {
		if err := p.Check(&v.s, &Message{Method: "GET"}, false, v.now); reason(err) != v.reason {
			t.Errorf("%s: %v, want %s", v.name, err, v.reason)
		}
	}
}

func TestNonceAndTagAsThePolicySays(t *testing.T) {
	text := func(n int) string { return strings.Repeat("n", n) }
	for _, v := range []struct {
		params  string
		require bool
		tag     string
		reason  string
	}{
		{"", true, "", ReasonNonce},
		{"", false, "", "ok"},
		{`;nonce="` + text(minNonce) + `"`, true, "", "ok"},
		{`;nonce="` + text(minNonce-1) + `"`, true, "", ReasonNonce},
		{`;nonce="` + text(minNonce-1) + `"`, false, "", ReasonNonce},
		{`;nonce="` + text(maxNonce) + `"`, true, "", "ok"},
		{`;nonce="` + text(maxNonce+1) + `"`, true, "", ReasonNonce},
		{`;nonce=""`, true, "", ReasonNonce},
		{`;tag="a"`, false, "", "ok"},
		{`;tag="a"`, false, "a", "ok"},
		{`;tag="b"`, false, "a", ReasonTag},
		{"", false, "a", ReasonTag},
	} {
		m := &Message{Method: "GET", Header: map[string][]string{
			"Signature-Input": {"sig1=();created=1700000000" + v.params}, "Signature": {"sig1=:AAAA:"},
		}}
		s, err := Parse(m, "")
		if err != nil {
			t.Fatal(err)
		}
		p := Policy{MaxAge: time.Minute, RequireNonce: v.require, Tag: v.tag}
		if err := p.Check(s, m, false, now); reason(err) != v.reason {
			t.Errorf("%s, nonce required %v, tag %q: %v, want %s", v.params, v.require, v.tag, err, v.reason)
		}
	}
}

func TestRequiredComponents(t *testing.T) {
	for _, v := range []struct {
		covered  string
		required []string
		hasBody  bool
		reason   string
	}{
		{``, nil, true, "ok"},
		{`"@target-uri"`, []string{"@scheme", "@authority", "@path", "@query"}, false, "ok"},
		{`"@target-uri"`, []string{"@method"}, false, ReasonComponents},
		{`"@target-uri"`, []string{"@request-target"}, false, ReasonComponents},
		{`"@scheme" "@authority" "@path" "@query"`, []string{"@target-uri"}, false, ReasonComponents},
		{`"@target-uri";req`, []string{"@path"}, false, ReasonComponents},
		{`"content-type"`, []string{"content-type"}, false, "ok"},
		{`"content-type";sf`, []string{"content-type"}, false, "ok"},
		{`"content-type";bs`, []string{"content-type"}, false, "ok"},
		{`"content-type";tr`, []string{"content-type"}, false, ReasonComponents},
		{`"content-type";key="a"`, []string{"content-type"}, false, ReasonComponents},
		{`"content-type";key="a"`, []string{`content-type;key="a"`}, false, "ok"},
		{`"content-type";key="a"`, []string{`content-type;key="b"`}, false, ReasonComponents},
		{`"content-typ"`, []string{"content-type"}, false, ReasonComponents},
		{`"content-type-x"`, []string{"content-type"}, false, ReasonComponents},
		{`"@query-param";name="id"`, []string{`@query-param;name="id"`}, false, "ok"},
		{`"@query-param";name="id"`, []string{`@query-param;name="ID"`}, false, ReasonComponents},
		{`"@query-param";name="id"`, []string{"@query-param"}, false, ReasonComponents},
		{`"@query-param";name="id"`, []string{"@query"}, false, ReasonComponents},
		{``, []string{"content-digest"}, false, "ok"},
		{``, []string{"content-digest"}, true, ReasonComponents},
		{`"content-digest";sf`, []string{"content-digest"}, true, "ok"},
		{`"@request-target"`, nil, false, ReasonComponents},
		{`"@method";req`, nil, false, ReasonComponents},
		{`"a";req`, nil, false, ReasonComponents},
	} {
		m := &Message{Method: "POST", Query: "id=1", HasQuery: true, Header: map[string][]string{
			"Signature-Input": {"sig1=(" + v.covered + ");created=1700000000"}, "Signature": {"sig1=:AAAA:"},
		}}
		s, err := Parse(m, "")
		if err != nil {
			t.Fatalf("%s: %v", v.covered, err)
		}
		p := Policy{Required: v.required, MaxAge: time.Minute}
		if err := p.Check(s, m, v.hasBody, now); reason(err) != v.reason {
			t.Errorf("(%s), required %v, body %v: %v, want %s", v.covered, v.required, v.hasBody, err, v.reason)
		}
	}
}

func TestKeysOfOtherKindsAreRefused(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var noRSA *rsa.PublicKey
	var noECDSA *ecdsa.PublicKey
	for name, public := range map[string]any{
		"RSA of 1024 bits": &small.PublicKey, "P-384": &p384.PublicKey, "short Ed25519": ed25519.PublicKey{1},
		"nil": nil, "RSA nil": noRSA, "RSA zero": &rsa.PublicKey{}, "ECDSA nil": noECDSA, "ECDSA zero": &ecdsa.PublicKey{},
		//lint:ignore SA1019 no other way makes such a key
		"off the curve": &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)},
		"huge RSA":      &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 8192), E: 65537},
		"even exponent": &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65536},
		"bytes":         []byte("0123456789abcdef0123456789abcdef"),
	} {
		if _, err := NewPublicKey(public); reason(err) != ReasonAlgorithm {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, 23, 1025} {
		if _, err := NewHMACKey(make([]byte, n)); reason(err) != ReasonAlgorithm {
			t.Errorf("a secret of %d bytes: %v", n, err)
		}
	}
	for _, n := range []int{24, 64, 1024} {
		if _, err := NewHMACKey(make([]byte, n)); err != nil {
			t.Errorf("a secret of %d bytes: %v", n, err)
		}
	}
	if _, err := NewPrivateKey(nil); reason(err) != ReasonAlgorithm {
		t.Errorf("no private key: %v", err)
	}
	var zero Key
	if zero.Verify(nil, nil) || zero.Verify([]byte("x"), make([]byte, 32)) {
		t.Error("the zero key verifies")
	}
	m, _ := signedRequest(t, rfcSigner(t, "test-key-ed25519"), Params{})
	if _, _, err := Sign(m, rfcKey(t, "test-key-ed25519"), Params{}); reason(err) != ReasonAlgorithm {
		t.Errorf("signing with a public key: %v", err)
	}
}

// What a signer outside of this process may do wrong.
type brokenSigner struct {
	public crypto.PublicKey
	out    []byte
	err    error
}

func (b brokenSigner) Public() crypto.PublicKey { return b.public }
func (b brokenSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return b.out, b.err
}

func TestSignWhenTheSignerFails(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	down := errors.New("the device is out of reach")
	for name, signer := range map[string]brokenSigner{
		"error":         {&private.PublicKey, nil, down},
		"nothing":       {&private.PublicKey, nil, nil},
		"not DER":       {&private.PublicKey, make([]byte, 64), nil},
		"r of 0":        {&private.PublicKey, []byte{0x30, 6, 2, 1, 0, 2, 1, 1}, nil},
		"s negative":    {&private.PublicKey, []byte{0x30, 6, 2, 1, 1, 2, 1, 0xff}, nil},
		"more after it": {&private.PublicKey, []byte{0x30, 6, 2, 1, 1, 2, 1, 1, 0}, nil},
	} {
		k, err := NewPrivateKey(signer)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = Sign(&Message{Method: "GET"}, k, Params{Components: []string{"@method"}})
		if signer.err != nil && !errors.Is(err, down) || signer.err == nil && reason(err) != ReasonAlgorithm {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeyPrintsAsItsAlgorithmOnly(t *testing.T) {
	secret := []byte("a secret that is long enough for it")
	k := hmacKey(t, secret)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		if got := fmt.Sprintf(verb, k); got != "httpsig.Key(hmac-sha256)" {
			t.Errorf("%s prints %s", verb, got)
		}
	}
}

// A change to the caller's slice afterwards is none of the key's.
func TestKeyIsACopy(t *testing.T) {
	secret := []byte("a secret that is long enough for it")
	k, same := hmacKey(t, secret), hmacKey(t, bytes.Clone(secret))
	clear(secret)
	m, body := signedRequest(t, same, Params{})
	if err := accept(m, k, body, DefaultPolicy()); err != nil {
		t.Error(err)
	}
}

func TestErrorsHoldNoMAC(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	m, _ := signedRequest(t, k, Params{})
	right := macOf(m)
	m.Header["Signature"] = []string{"sig1=:" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + ":"}
	s, err := Parse(m, "")
	if err != nil {
		t.Fatal(err)
	}
	base, err := Verify(s, m, k, nil)
	if reason(err) != ReasonSignature || len(base) == 0 {
		t.Fatalf("base of %d bytes, %v", len(base), err)
	}
	text := fmt.Sprintf("%v %+v %#v", err, err, err) + string(base)
	for _, form := range []string{string(right), base64.StdEncoding.EncodeToString(right), fmt.Sprintf("%x", right)} {
		if strings.Contains(text, form) {
			t.Error("the error or the base holds the MAC")
		}
	}
}

func TestKeyIsSafeForConcurrentUse(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			m, body := signedRequest(t, k, Params{Nonce: fmt.Sprintf("nonce-%020d", i)})
			for range 200 {
				if err := accept(m, k, body, DefaultPolicy()); err != nil {
					t.Error(err)
					return
				}
				if k.Verify([]byte("x"), macOf(m)) {
					t.Error("a MAC of something else verifies")
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestSignRefusesWhatParseWould(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	m := &Message{Method: "GET", Scheme: "https", Authority: "a", Header: map[string][]string{}}
	for name, v := range map[string]struct {
		p      Params
		reason string
	}{
		"label in upper case":    {Params{Label: "Sig"}, ReasonMalformed},
		"label with a comma":     {Params{Label: "a,b"}, ReasonMalformed},
		"component twice":        {Params{Components: []string{"@path", "@path"}}, ReasonDuplicate},
		"no such component":      {Params{Components: []string{"@host"}}, ReasonComponents},
		"component not there":    {Params{Components: []string{"date"}}, ReasonComponents},
		"component in quotes":    {Params{Components: []string{`@path" "@query`}}, ReasonComponents},
		"end of the list in it":  {Params{Components: []string{`@path;req);created=1;keyid="x"`}}, ReasonMalformed},
		"line end in the keyid":  {Params{KeyID: "a\nb"}, ReasonMalformed},
		"keyid not in ASCII":     {Params{KeyID: "é"}, ReasonMalformed},
		"before 1970":            {Params{Created: time.Unix(-1, 0)}, ReasonMalformed},
		"nonce that is too long": {Params{Nonce: strings.Repeat("x", maxText+1)}, ReasonMalformed},
	} {
		if _, _, err := Sign(m, k, v.p); reason(err) != v.reason {
			t.Errorf("%s: %v, want %s", name, err, v.reason)
		}
	}
	// A quote in a value is escaped, and comes back.
	sign(t, m, k, Params{Components: []string{"@path"}, KeyID: `a"b\c`, Tag: `"`, Alg: true, Expires: now})
	s, err := Parse(m, "")
	if err != nil {
		t.Fatal(err)
	}
	if s.KeyID != `a"b\c` || s.Tag != `"` || s.Alg != "hmac-sha256" || s.HasCreated || s.Expires != now.Unix() {
		t.Errorf("%+v", s)
	}
	if _, err := Verify(s, m, k, nil); err != nil {
		t.Error(err)
	}
}

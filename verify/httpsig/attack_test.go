package httpsig

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// replace changes one field of a message, and fails when there is nothing to change.
func replace(t *testing.T, m *Message, field, old, with string) {
	t.Helper()
	before := m.Header[field][0]
	after := strings.Replace(before, old, with, 1)
	if before == after {
		t.Fatalf("%s has no %q: %s", field, old, before)
	}
	m.Header[field] = []string{after}
}

// Each case is what somebody does to a request that was signed and would be
// accepted.
func TestRefusesWhatWasChanged(t *testing.T) {
	type change struct {
		name   string
		do     func(t *testing.T, m *Message)
		reason string
	}
	input, signature := "Signature-Input", "Signature"
	edit := func(field, old, with string) func(*testing.T, *Message) {
		return func(t *testing.T, m *Message) { replace(t, m, field, old, with) }
	}
	for _, c := range []change{
		{"nothing", func(*testing.T, *Message) {}, "ok"},

		// Replayed somewhere else.
		{"another method", func(_ *testing.T, m *Message) { m.Method = "PUT" }, ReasonSignature},
		{"method in lower case", func(_ *testing.T, m *Message) { m.Method = "post" }, ReasonSignature},
		{"another authority", func(_ *testing.T, m *Message) { m.Authority = "api.example.net" }, ReasonSignature},
		{"another port", func(_ *testing.T, m *Message) { m.Authority = "api.example.com:8443" }, ReasonSignature},
		{"http's port on https", func(_ *testing.T, m *Message) { m.Authority = "api.example.com:80" }, ReasonSignature},
		{"the default port, which is the same", func(_ *testing.T, m *Message) { m.Authority = "API.example.com:443" }, "ok"},
		{"another path", func(_ *testing.T, m *Message) { m.Path = "/v1/refunds" }, ReasonSignature},
		{"the path in another spelling", func(_ *testing.T, m *Message) { m.Path = "/v1/%6frders" }, ReasonSignature},
		{"a slash more", func(_ *testing.T, m *Message) { m.Path = "/v1//orders" }, ReasonSignature},
		{"another query", func(_ *testing.T, m *Message) { m.Query = "limit=10&sort=price" }, ReasonSignature},
		{"a parameter more", func(_ *testing.T, m *Message) { m.Query += "&admin=1" }, ReasonSignature},
		{"no query", func(_ *testing.T, m *Message) { m.Query, m.HasQuery = "", false }, ReasonSignature},
		{"another digest", edit("Content-Digest", ":", ":A"), ReasonSignature},
		{"another field, not covered", func(_ *testing.T, m *Message) { m.Header["Accept"] = []string{"*/*"} }, "ok"},

		// Truncation.
		{"no Signature", func(_ *testing.T, m *Message) { delete(m.Header, signature) }, ReasonMissing},
		{"no Signature-Input", func(_ *testing.T, m *Message) { delete(m.Header, input) }, ReasonMissing},
		{"empty Signature", func(_ *testing.T, m *Message) { m.Header[signature] = []string{""} }, ReasonMalformed},
		{"empty Signature-Input", func(_ *testing.T, m *Message) { m.Header[input] = []string{" "} }, ReasonMalformed},
		{"MAC of no bytes", func(_ *testing.T, m *Message) { m.Header[signature] = []string{"sig1=::"} }, ReasonMalformed},
		{"MAC cut to one byte", func(_ *testing.T, m *Message) {
			m.Header[signature] = []string{"sig1=:" + base64.StdEncoding.EncodeToString(macOf(m)[:1]) + ":"}
		}, ReasonSignature},
		{"MAC cut to 16 bytes", func(_ *testing.T, m *Message) {
			m.Header[signature] = []string{"sig1=:" + base64.StdEncoding.EncodeToString(macOf(m)[:16]) + ":"}
		}, ReasonSignature},
		{"MAC with a byte more", func(_ *testing.T, m *Message) {
			m.Header[signature] = []string{"sig1=:" + base64.StdEncoding.EncodeToString(append(macOf(m), 0)) + ":"}
		}, ReasonSignature},
		{"MAC of zeros", func(_ *testing.T, m *Message) {
			m.Header[signature] = []string{"sig1=:" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + ":"}
		}, ReasonSignature},
		{"closing colon cut off", func(_ *testing.T, m *Message) {
			m.Header[signature][0] = strings.TrimSuffix(m.Header[signature][0], ":")
		}, ReasonMalformed},
		{"padding cut off", edit(signature, "=:", ":"), ReasonMalformed},
		{"closing bracket cut off", edit(input, ")", ""), ReasonComponents},
		{"nonce cut off", edit(input, `;nonce="b3k2pp5k7z50gnwpyemd"`, ""), ReasonNonce},
		{"nonce cut short", edit(input, `b3k2pp5k7z50gnwpyemd`, "b3k2"), ReasonNonce},
		{"created cut off", edit(input, ";created=1700000000", ""), ReasonWindow},

		// Component stripping.
		{"@method stripped", edit(input, `"@method" `, ""), ReasonComponents},
		{"@authority stripped", edit(input, `"@authority" `, ""), ReasonComponents},
		{"@path stripped", edit(input, `"@path" `, ""), ReasonComponents},
		{"@query stripped", edit(input, `"@query" `, ""), ReasonComponents},
		{"content-digest stripped", edit(input, ` "content-digest"`, ""), ReasonComponents},
		{"all stripped", edit(input, `"@method" "@authority" "@path" "@query" "content-digest"`, ""), ReasonComponents},
		{"one more component", edit(input, `"content-digest"`, `"content-digest" "content-type"`), ReasonSignature},
		{"components swapped", edit(input, `"@method" "@authority"`, `"@authority" "@method"`), ReasonSignature},
		{"content-digest narrowed to one member", edit(input, `"content-digest"`, `"content-digest";key="sha-256"`), ReasonComponents},
		{"content-digest taken from a trailer", edit(input, `"content-digest"`, `"content-digest";tr`), ReasonComponents},
		{"@query narrowed to one parameter", edit(input, `"@query"`, `"@query-param";name="limit"`), ReasonComponents},
		{"@path exchanged for @request-target", edit(input, `"@path"`, `"@request-target"`), ReasonComponents},
		{"@method of the request answered", edit(input, `"@method"`, `"@method";req`), ReasonComponents},
		{"the signature's own parameters covered", edit(input, `"@method"`, `"@method" "@signature-params"`), ReasonComponents},

		// Duplicates.
		{"Signature-Input twice", func(_ *testing.T, m *Message) { m.Header[input] = []string{m.Header[input][0], m.Header[input][0]} }, ReasonDuplicate},
		{"Signature twice", func(_ *testing.T, m *Message) {
			m.Header[signature] = []string{m.Header[signature][0], m.Header[signature][0]}
		}, ReasonDuplicate},
		{"label twice in one line", func(_ *testing.T, m *Message) { m.Header[input][0] += ", " + m.Header[input][0] }, ReasonDuplicate},
		{"value twice in one line", func(_ *testing.T, m *Message) { m.Header[signature][0] += "," + m.Header[signature][0] }, ReasonDuplicate},
		{"a second signature", func(_ *testing.T, m *Message) {
			m.Header[input][0] += ", sig2" + strings.TrimPrefix(m.Header[input][0], "sig1")
			m.Header[signature][0] += ", sig2" + strings.TrimPrefix(m.Header[signature][0], "sig1")
		}, ReasonDuplicate},
		{"a second signature first", func(_ *testing.T, m *Message) {
			m.Header[input][0] = "sig0=();created=1700000000, " + m.Header[input][0]
		}, ReasonDuplicate},
		{"a second input without parameters first", func(_ *testing.T, m *Message) {
			m.Header[input][0] = "sig0=(), " + m.Header[input][0]
		}, ReasonDuplicate},
		{"a second value only", func(_ *testing.T, m *Message) { m.Header[signature][0] += ", sig2=:AAAA:" }, ReasonDuplicate},
		{"the component twice", edit(input, `"@method"`, `"@method" "@method"`), ReasonDuplicate},
		{"the field twice", edit(input, `"content-digest"`, `"content-digest" "content-digest"`), ReasonDuplicate},
		{"parameters in another order", edit(input, `"content-digest"`, `"a";bs;tr "a";tr;bs "content-digest"`), ReasonDuplicate},
		{"created twice", edit(input, ";created=", ";created=1700000000;created="), ReasonDuplicate},
		{"nonce twice", edit(input, ";nonce=", `;nonce="0123456789abcdef";nonce=`), ReasonDuplicate},
		{"keyid twice", edit(input, ";keyid=", `;keyid="x";keyid=`), ReasonDuplicate},
		{"component parameter twice", edit(input, `"content-digest"`, `"content-digest";sf;sf`), ReasonDuplicate},
		{"digest field twice", func(_ *testing.T, m *Message) {
			m.Header["Content-Digest"] = append(m.Header["Content-Digest"], "sha-256=:AAAA:")
		}, ReasonSignature},

		// Another algorithm.
		{"alg of a public key", edit(input, ";nonce=", `;alg="ed25519";nonce=`), ReasonAlgorithm},
		{"alg none", edit(input, ";nonce=", `;alg="none";nonce=`), ReasonAlgorithm},
		{"alg empty", edit(input, ";nonce=", `;alg="";nonce=`), ReasonAlgorithm},
		{"alg in upper case", edit(input, ";nonce=", `;alg="HMAC-SHA256";nonce=`), ReasonAlgorithm},
		{"the right alg, which was not signed", edit(input, ";nonce=", `;alg="hmac-sha256";nonce=`), ReasonSignature},

		// Times.
		{"made newer", edit(input, "created=1700000000", "created=1700000001"), ReasonSignature},
		{"made a minute newer", edit(input, "created=1700000000", "created=1700000060"), ReasonWindow},
		{"made older than accepted", edit(input, "created=1700000000", "created=1699999699"), ReasonWindow},
		{"expires added", edit(input, ";nonce=", ";expires=1700000100;nonce="), ReasonSignature},
		{"expired", edit(input, ";nonce=", ";expires=1699999999;nonce="), ReasonWindow},
		{"another nonce", edit(input, "b3k2", "b3k3"), ReasonSignature},
		{"another key", edit(input, "sec_4", "sec_5"), ReasonSignature},
		{"a tag", edit(input, ";nonce=", `;tag="app";nonce=`), ReasonSignature},
		{"another label on both", func(t *testing.T, m *Message) {
			replace(t, m, input, "sig1", "x")
			replace(t, m, signature, "sig1", "x")
		}, "ok"}, // the label is not signed (RFC 9421 section 7.2.5), and chosen by the verifier where it matters
		{"another label on one", edit(signature, "sig1", "sig2"), ReasonDuplicate},

		// Forms that parsers read differently.
		{"label empty", func(_ *testing.T, m *Message) {
			m.Header[input][0] = strings.TrimPrefix(m.Header[input][0], "sig1")
			m.Header[signature][0] = strings.TrimPrefix(m.Header[signature][0], "sig1")
		}, ReasonMalformed},
		{"label in upper case", edit(input, "sig1", "Sig1"), ReasonMalformed},
		{"component in upper case", edit(input, "@method", "@Method"), ReasonComponents},
		{"field in upper case", edit(input, "content-digest", "Content-Digest"), ReasonMalformed},
		{"parameter in upper case", edit(input, ";created", ";Created"), ReasonMalformed},
		{"two spaces between components", edit(input, `" "`, `"  "`), ReasonMalformed},
		{"tab between components", edit(input, `" "`, "\"\t\""), ReasonMalformed},
		{"comma between components", edit(input, `" "`, `", "`), ReasonMalformed},
		{"no space between components", edit(input, `" "`, `""`), ReasonMalformed},
		{"space in the bracket", edit(input, "(", "( "), ReasonMalformed},
		{"space before the bracket", edit(input, ")", " )"), ReasonMalformed},
		{"space after the semicolon", edit(input, ";created", "; created"), ReasonMalformed},
		{"space before the semicolon", edit(input, ";created", " ;created"), ReasonMalformed},
		{"space before the equals sign", edit(input, "created=", "created ="), ReasonMalformed},
		{"space before the equals sign of a string", edit(input, "nonce=", "nonce ="), ReasonMalformed},
		{"space after the equals sign", edit(input, "created=", "created= "), ReasonMalformed},
		{"space before the list", edit(input, "sig1=", "sig1= "), ReasonMalformed},
		{"space around the field, which HTTP takes away", func(_ *testing.T, m *Message) {
			m.Header[input][0] = "  " + m.Header[input][0] + "\t"
			m.Header[signature][0] = " \t" + m.Header[signature][0] + " "
		}, "ok"},
		{"comma at the end", func(_ *testing.T, m *Message) { m.Header[input][0] += "," }, ReasonMalformed},
		{"semicolon at the end", func(_ *testing.T, m *Message) { m.Header[input][0] += ";" }, ReasonMalformed},
		{"rubbish at the end", func(_ *testing.T, m *Message) { m.Header[signature][0] += "x" }, ReasonMalformed},
		{"folded line", edit(input, `" "`, "\"\r\n \""), ReasonMalformed},
		{"zero byte", edit(input, "sec_4", "sec_\x00"), ReasonMalformed},
		{"not ASCII", edit(input, "sec_4", "sec_é"), ReasonMalformed},
		{"escape that is none", edit(input, "sec_4", `sec_\4`), ReasonMalformed},
		{"created with a leading zero", edit(input, "created=", "created=0"), ReasonMalformed},
		{"created with a sign", edit(input, "created=", "created=+"), ReasonMalformed},
		{"created negative", edit(input, "created=", "created=-"), ReasonMalformed},
		{"created with a point", edit(input, "created=1700000000", "created=1700000000.0"), ReasonMalformed},
		{"created as a string", edit(input, "created=1700000000", `created="1700000000"`), ReasonMalformed},
		{"created as a date", edit(input, "created=", "created=@"), ReasonMalformed},
		{"created beyond the year 9999", edit(input, "created=1700000000", "created=253402300800"), ReasonMalformed},
		{"created of 20 digits", edit(input, "created=1700000000", "created=18446744075409551616"), ReasonMalformed},
		{"created without value", edit(input, "created=1700000000", "created"), ReasonMalformed},
		{"nonce as a token", edit(input, `"b3k2pp5k7z50gnwpyemd"`, "b3k2pp5k7z50gnwpyemd"), ReasonMalformed},
		{"flag with a value", edit(input, `"content-digest"`, `"content-digest";sf=?1`), ReasonMalformed},
		{"unknown parameter", edit(input, ";nonce=", ";context=1;nonce="), ReasonMalformed},
		{"unknown component parameter", edit(input, `"content-digest"`, `"content-digest";x`), ReasonComponents},
		{"unknown derived component", edit(input, `"@path"`, `"@path" "@host"`), ReasonComponents},
		{"member without value", func(_ *testing.T, m *Message) { m.Header[input][0] = "sig0, " + m.Header[input][0] }, ReasonMalformed},
		{"member that is a string", func(_ *testing.T, m *Message) { m.Header[input] = []string{`sig1="@method"`} }, ReasonMalformed},
		{"MAC as a string", func(_ *testing.T, m *Message) {
			m.Header[signature][0] = strings.ReplaceAll(m.Header[signature][0], ":", `"`)
		}, ReasonMalformed},
		{"MAC with a parameter", func(_ *testing.T, m *Message) { m.Header[signature][0] += ";a=1" }, ReasonMalformed},
		{"MAC with a line end in it", edit(signature, "=:", "=:\n"), ReasonMalformed},
		{"MAC in the alphabet of URLs", func(_ *testing.T, m *Message) {
			m.Header[signature] = []string{"sig1=:" + strings.Repeat("_", 43) + "=:"}
		}, ReasonMalformed},
		{"MAC with spare bits", func(_ *testing.T, m *Message) {
			s := []byte(m.Header[signature][0])
			s[len(s)-3]++ // the last character before "=:" carries two bits that are zero
			m.Header[signature] = []string{string(s)}
		}, ReasonMalformed},
		{"authority with a user", func(_ *testing.T, m *Message) { m.Authority = "x@api.example.com" }, ReasonMalformed},
		{"two authorities joined", func(_ *testing.T, m *Message) { m.Authority += ", api.example.com" }, ReasonMalformed},
		{"line end in the path", func(_ *testing.T, m *Message) { m.Path = "/v1/orders\n\"@query\": ?x" }, ReasonMalformed},
		{"space in the path", func(_ *testing.T, m *Message) { m.Path = "/v1/or ders" }, ReasonMalformed},
		{"query in the path", func(_ *testing.T, m *Message) { m.Path = "/v1/orders?x" }, ReasonMalformed},
		{"line end in the query", func(_ *testing.T, m *Message) { m.Query += "\r\n" }, ReasonMalformed},
		{"line end in the method", func(_ *testing.T, m *Message) { m.Method = "POST\n" }, ReasonMalformed},
		{"line end in a covered field", func(_ *testing.T, m *Message) { m.Header["Content-Digest"][0] += "\nx" }, ReasonMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := hmacKey(t, sharedSecret(t))
			m, body := signedRequest(t, k, Params{})
			c.do(t, m)
			if got := reason(accept(m, k, body, DefaultPolicy())); got != c.reason {
				t.Errorf("got %v, want %s", accept(m, k, body, DefaultPolicy()), c.reason)
			}
		})
	}
}

// macOf is the MAC that a request carries.
func macOf(m *Message) []byte {
	text := strings.TrimSuffix(strings.TrimPrefix(m.Header["Signature"][0], "sig1=:"), ":")
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return b
}

func TestDigestRefusesAnotherBody(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	m, body := signedRequest(t, k, Params{})
	for name, b := range map[string][]byte{
		"one bit":    append([]byte{body[0] ^ 1}, body[1:]...),
		"cut":        body[:len(body)-1],
		"one more":   append(slices.Clone(body), '\n'),
		"other body": []byte(`{"admin":true}`),
		"taken away": nil, // hasBody is false then, and content-digest not required
	} {
		if err := accept(m, k, b, DefaultPolicy()); reason(err) != ReasonDigest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whichever way content-digest is covered, the body is compared.
func TestCheckBodyWhenTheDigestIsCovered(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	for _, c := range []string{"content-digest", "content-digest;sf", "content-digest;bs", `content-digest;key="sha-256"`} {
		m, body := signedRequest(t, k, Params{Components: []string{c}})
		s, err := Parse(m, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.CheckBody(m, body); err != nil {
			t.Errorf("%s: %v", c, err)
		}
		if err := s.CheckBody(m, nil); reason(err) != ReasonDigest {
			t.Errorf("%s, the body taken away: %v", c, err)
		}
		delete(m.Header, "Content-Digest")
		if err := s.CheckBody(m, body); reason(err) != ReasonDigest {
			t.Errorf("%s, the digest taken away: %v", c, err)
		}
	}
	m, body := signedRequest(t, k, Params{Components: []string{"@method"}})
	m.Header["Content-Digest"] = []string{"rubbish"}
	s, err := Parse(m, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CheckBody(m, body); err != nil {
		t.Errorf("not covered: %v", err)
	}
}

// A request without body or query is signed without them; then neither can be added.
func TestRefusesWhatWasAdded(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	m := &Message{Method: "GET", Scheme: "https", Authority: "api.example.com", Path: "/v1/orders", Header: map[string][]string{}}
	sign(t, m, k, Params{Components: []string{"@method", "@authority", "@path"}, Created: now, Nonce: "b3k2pp5k7z50gnwpyemd"})
	if err := accept(m, k, nil, DefaultPolicy()); err != nil {
		t.Fatal(err)
	}
	if err := accept(m, k, []byte("x"), DefaultPolicy()); reason(err) != ReasonComponents {
		t.Errorf("a body was added: %v", err)
	}
	m.HasQuery, m.Query = true, "admin=1"
	if err := accept(m, k, nil, DefaultPolicy()); reason(err) != ReasonComponents {
		t.Errorf("a query was added: %v", err)
	}
	m.HasQuery = false
	if err := accept(m, k, nil, Policy{Required: []string{"@target-uri"}, MaxAge: time.Minute}); reason(err) != ReasonComponents {
		t.Errorf("a required component is missing: %v", err)
	}
}

// The attack on JSON Web Tokens that is known best: a public key is public, so
// whoever can make a verifier use it as an HMAC secret signs at will.
func TestPublicKeyIsNoSecret(t *testing.T) {
	der := parsePEM(t, "test-key-rsa-pss.pub")
	rsaPEM := readFile(t, "test-key-rsa-pss.pub")
	edKey, err := x509.ParsePKIXPublicKey(parsePEM(t, "test-key-ed25519.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewHMACKey(rsaPEM); reason(err) != ReasonAlgorithm {
		t.Errorf("a PEM file as a shared secret: %v", err)
	}
	for name, v := range map[string]struct {
		secret []byte
		key    *Key
	}{
		"RSA, DER":       {der, rfcKey(t, "test-key-rsa-pss")},
		"RSA, PEM body":  {[]byte(strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: der})), "-", "")), rfcKey(t, "test-key-rsa-pss")},
		"Ed25519, bytes": {[]byte(edKey.(ed25519.PublicKey)), rfcKey(t, "test-key-ed25519")},
		"ECDSA, DER":     {parsePEM(t, "test-key-ecc-p256.pub"), rfcKey(t, "test-key-ecc-p256")},
	} {
		forged := hmacKey(t, v.secret)
		for _, alg := range []bool{false, true} {
			m, body := signedRequest(t, forged, Params{Alg: alg})
			if err := accept(m, forged, body, DefaultPolicy()); err != nil {
				t.Fatalf("%s: the forgery is not even well made: %v", name, err)
			}
			want := ReasonSignature
			if alg {
				want = ReasonAlgorithm
			}
			if err := accept(m, v.key, body, DefaultPolicy()); reason(err) != want {
				t.Errorf("%s, alg %v: %v", name, alg, err)
			}
		}
	}
}

// One library wrote hmac.New(…).Sum(base), which is base ‖ HMAC(""): the base
// follows from the message and the rest never changes, so one look forges all.
func TestBaseAndMACOfNothingIsNoSignature(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	m, body := signedRequest(t, k, Params{})
	s, err := Parse(m, "")
	if err != nil {
		t.Fatal(err)
	}
	base, err := s.Base(nil, m)
	if err != nil {
		t.Fatal(err)
	}
	h := hmac.New(sha256.New, sharedSecret(t))
	empty := h.Sum(nil)
	for name, forged := range map[string][]byte{"base ‖ MAC": h.Sum(base), "MAC of nothing": empty, "base": base} {
		if k.Verify(base, forged) {
			t.Errorf("%s verifies", name)
		}
		m.Header["Signature"] = []string{"sig1=:" + base64.StdEncoding.EncodeToString(forged) + ":"}
		if err := accept(m, k, body, DefaultPolicy()); reason(err) != ReasonSignature {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKeysOfOthersDoNotVerify(t *testing.T) {
	names := []string{"test-shared-secret", "test-key-ed25519", "test-key-ecc-p256", "test-key-rsa-pss"}
	for _, signer := range names {
		m, body := signedRequest(t, rfcSigner(t, signer), Params{})
		for _, verifier := range names {
			want := ReasonSignature
			if verifier == signer {
				want = "ok"
			}
			if err := accept(m, rfcKey(t, verifier), body, DefaultPolicy()); reason(err) != want {
				t.Errorf("signed with %s, verified with %s: %v, want %s", signer, verifier, err, want)
			}
		}
	}
}

// With a label several signatures may be there, and only that one counts.
func TestLabelChoosesTheSignature(t *testing.T) {
	mine, other := hmacKey(t, sharedSecret(t)), rfcSigner(t, "test-key-ed25519")
	m, _ := signedRequest(t, mine, Params{Label: "mine", KeyID: "a"})
	first := maps.Clone(m.Header)
	sign(t, m, other, Params{Label: "proxy", Components: []string{"@method"}, KeyID: "b"})
	for name, lines := range map[string]func(field string) []string{
		"two lines": func(f string) []string { return []string{first[f][0], m.Header[f][0]} },
		"one line":  func(f string) []string { return []string{m.Header[f][0] + " ,\t" + first[f][0]} },
	} {
		c := *m
		c.Header = maps.Clone(m.Header)
		c.Header["Signature-Input"], c.Header["Signature"] = lines("Signature-Input"), lines("Signature")
		for label, v := range map[string]struct {
			key   *Key
			keyid string
		}{"mine": {mine, "a"}, "proxy": {other, "b"}} {
			s, err := Parse(&c, label)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if s.KeyID != v.keyid {
				t.Errorf("%s: label %s has keyid %s", name, label, s.KeyID)
			}
			if _, err := Verify(s, &c, v.key, nil); err != nil {
				t.Errorf("%s, %s: %v", name, label, err)
			}
		}
		if _, err := Parse(&c, ""); reason(err) != ReasonDuplicate {
			t.Errorf("%s, no label: %v", name, err)
		}
		bad := c
		bad.Header = maps.Clone(c.Header)
		bad.Header["Signature"] = append(slices.Clone(c.Header["Signature"]), "x=:A:")
		if _, err := Parse(&bad, "mine"); reason(err) != ReasonMalformed {
			t.Errorf("%s, a third that is not base64: %v", name, err)
		}
		if _, err := Parse(&c, "min"); reason(err) != ReasonMissing {
			t.Errorf("%s, a label that is not there: %v", name, err)
		}
	}
}

func TestBoundsAreKept(t *testing.T) {
	k := hmacKey(t, sharedSecret(t))
	long := func(n int) string { return strings.Repeat("a", n) }
	for name, v := range map[string]struct {
		input  string
		reason string
	}{
		"field of 8 KiB":        {`sig1=();created=1700000000` + strings.Repeat(" ", maxField), ReasonMalformed},
		"keyid":                 {`sig1=();keyid="` + long(maxText+1) + `"`, ReasonMalformed},
		"longest keyid":         {`sig1=();keyid="` + long(maxText) + `"`, "ok"},
		"nonce":                 {`sig1=();nonce="` + long(maxText+1) + `"`, ReasonMalformed},
		"tag":                   {`sig1=();tag="` + long(maxText+1) + `"`, ReasonMalformed},
		"alg":                   {`sig1=();alg="` + long(maxAlg+1) + `"`, ReasonMalformed},
		"label":                 {long(maxLabel+1) + `=()`, ReasonMalformed},
		"component name":        {`sig1=("` + long(maxName+1) + `")`, ReasonMalformed},
		"key of a component":    {`sig1=("a";key="` + long(maxArg+1) + `")`, ReasonMalformed},
		"components":            {`sig1=(` + numbered(maxComponents+1) + `)`, ReasonMalformed},
		"as many components":    {`sig1=(` + numbered(maxComponents) + `)`, "ok"},
		"labels":                {manyLabels(maxLabels + 1), ReasonMalformed},
		"closing quote missing": {`sig1=("@method`, ReasonMalformed},
	} {
		m := &Message{Method: "GET", Header: map[string][]string{"Signature-Input": {v.input}, "Signature": {"sig1=:AAAA:"}}}
		if _, err := Parse(m, "sig1"); reason(err) != v.reason {
			t.Errorf("%s: %v, want %s", name, err, v.reason)
		}
	}
	m, _ := signedRequest(t, k, Params{})
	m.Header["Signature"] = []string{"sig1=:" + base64.StdEncoding.EncodeToString(make([]byte, maxSignature+1)) + ":"}
	if _, err := Parse(m, ""); reason(err) != ReasonMalformed {
		t.Errorf("signature: %v", err)
	}
	m, _ = signedRequest(t, k, Params{})
	m.Header["Content-Digest"] = []string{long(maxBase)}
	if err := accept(m, k, nil, DefaultPolicy()); reason(err) != ReasonMalformed {
		t.Errorf("base: %v", err)
	}
}

// numbered is n components f0 f1 ….
func numbered(n int) string {
	var b []string
	for i := range n {
		b = append(b, `"f`+strings.Repeat("x", i)+`"`)
	}
	return strings.Join(b, " ")
}

func manyLabels(n int) string {
	b := []string{"sig1=()"}
	for i := range n - 1 {
		b = append(b, "s"+strings.Repeat("x", i)+"=()")
	}
	return strings.Join(b, ", ")
}

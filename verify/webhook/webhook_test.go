package webhook

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// reason is the reason of an error, or "ok".
func reason(err error) string {
	if err == nil {
		return "ok"
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return err.Error()
}

func newSecret(t testing.TB, fill byte) Secret {
	t.Helper()
	s, err := SecretFrom(bytes.Repeat([]byte{fill}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newPair(t testing.TB, fill byte) Secret {
	t.Helper()
	s, err := ParseSecret("whsk_" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{fill}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var now = time.Unix(1_700_000_000, 0)

const tolerance = 5 * time.Minute

func header(h Headers) map[string][]string {
	m := map[string][]string{}
	h.Set(m)
	return m
}

// The vector of the specification's own libraries, and the one of Svix's manual.
func TestStandardWebhooksVectors(t *testing.T) {
	for _, v := range []struct {
		secret, id string
		at         int64
		body, want string
	}{
		{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, `{"test": 2432232314}`,
			"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
		// Its secret has 18 bytes, fewer than the specification allows.
		{"whsec_plJ3nmyCDGBKInavdOK15jsl", "msg_loFOjxBNrRLzqYUf", 1731705121, `{"event_type":"ping","data":{"success":true}}`,
			"v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="},
	} {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(v.secret, prefixSymmetric))
		if err != nil {
			t.Fatal(err)
		}
		secret, err := ParseSecret(v.secret)
		if len(raw) < minSecret {
			if reason(err) != ReasonMalformed {
				t.Errorf("a secret of %d bytes: %v", len(raw), err)
			}
			secret = Secret{key: &raw}
		} else if err != nil {
			t.Fatal(err)
		}
		h, err := Sign(v.id, time.Unix(v.at, 0), []byte(v.body), secret)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Headers{ID: v.id, Timestamp: fmt.Sprint(v.at), Signature: v.want}, h); diff != "" {
			t.Error(diff)
		}
		if _, id, err := Verify(header(h), []byte(v.body), time.Unix(v.at, 0), tolerance, secret); err != nil || id != v.id {
			t.Errorf("id %q, %v", id, err)
		}
	}
}

func TestVerifyRefusesWhatWasChanged(t *testing.T) {
	secret, body := newSecret(t, 1), []byte(`{"n":1}`)
	good, err := Sign("msg_1", now, body, secret)
	if err != nil {
		t.Fatal(err)
	}
	other, err := Sign("msg_1", now, body, newSecret(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	set := func(name, value string) func(map[string][]string) {
		return func(h map[string][]string) { h[name] = []string{value} }
	}
	const id, timestamp, signature = "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature"
	text := strings.TrimPrefix(good.Signature, "v1,")
	zeros := "v1," + base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, v := range []struct {
		name   string
		change func(map[string][]string)
		reason string
	}{
		{"nothing", func(map[string][]string) {}, "ok"},
		{"no id", func(h map[string][]string) { delete(h, id) }, ReasonMissing},
		{"no timestamp", func(h map[string][]string) { delete(h, timestamp) }, ReasonMissing},
		{"no signature", func(h map[string][]string) { delete(h, signature) }, ReasonMissing},
		{"empty signature", set(signature, ""), ReasonMissing},
		{"id twice", func(h map[string][]string) { h[id] = append(h[id], "msg_1") }, ReasonMalformed},
		{"timestamp twice", func(h map[string][]string) { h[timestamp] = append(h[timestamp], "1") }, ReasonMalformed},
		{"signature twice", func(h map[string][]string) { h[signature] = append(h[signature], good.Signature) }, ReasonMalformed},
		{"another id", set(id, "msg_2"), ReasonSignature},
		{"id with a dot", set(id, "msg_1.1700000000"), ReasonMalformed},
		{"id with a space", set(id, "msg 1"), ReasonMalformed},
		{"id not in ASCII", set(id, "msg_é"), ReasonMalformed},
		{"id too long", set(id, strings.Repeat("x", maxID+1)), ReasonMalformed},
		{"another second", set(timestamp, "1700000001"), ReasonSignature},
		{"oldest", set(timestamp, "1699999700"), ReasonSignature},
		{"too old", set(timestamp, "1699999699"), ReasonWindow},
		{"newest", set(timestamp, "1700000300"), ReasonSignature},
		{"too new", set(timestamp, "1700000301"), ReasonWindow},
		{"the year 10000", set(timestamp, "253402300800"), ReasonMalformed},
		{"timestamp with a leading zero", set(timestamp, "01700000000"), ReasonMalformed},
		{"timestamp with a plus", set(timestamp, "+1700000000"), ReasonMalformed},
		{"timestamp negative", set(timestamp, "-1700000000"), ReasonMalformed},
		{"timestamp with a fraction", set(timestamp, "1700000000.0"), ReasonMalformed},
		{"timestamp with a space", set(timestamp, " 1700000000"), ReasonMalformed},
		{"timestamp in hex", set(timestamp, "0x6553f100"), ReasonMalformed},
		{"timestamp too large", set(timestamp, "18446744073709551616"), ReasonMalformed},
		{"signature of another secret", set(signature, other.Signature), ReasonSignature},
		{"signature cut to one byte", set(signature, "v1,AA=="), ReasonMalformed},
		{"signature of no bytes", set(signature, "v1,"), ReasonMalformed},
		{"signature of zeros", set(signature, zeros), ReasonSignature},
		{"signature without version", set(signature, text), ReasonMalformed},
		{"signature of version v2", set(signature, "v2,"+text), ReasonSignature},
		{"signature of version V1", set(signature, "V1,"+text), ReasonSignature},
		{"MAC as an Ed25519 signature", set(signature, "v1a,"+text), ReasonMalformed},
		{"padding cut off", set(signature, strings.TrimRight(good.Signature, "=")), ReasonMalformed},
		{"line end in it", set(signature, good.Signature+"\n"), ReasonMalformed},
		{"two spaces", set(signature, other.Signature+"  "+good.Signature), ReasonMalformed},
		{"comma in place of a space", set(signature, other.Signature+","+good.Signature), ReasonMalformed},
		{"right one last", set(signature, other.Signature+" "+good.Signature), "ok"},
		{"right one behind a version from the future", set(signature, "v9,? "+good.Signature), "ok"},
		{"right one as number 20", set(signature, strings.Repeat(zeros+" ", maxSignatures-1)+good.Signature), "ok"},
		{"right one as number 21", set(signature, strings.Repeat(zeros+" ", maxSignatures)+good.Signature), ReasonMalformed},
		{"too long", set(signature, good.Signature+" v9,"+strings.Repeat("x", maxHeader)), ReasonMalformed},
		{"names of Svix, which were not asked for", func(h map[string][]string) {
			h["Svix-Id"], h["Svix-Timestamp"], h["Svix-Signature"] = h[id], h[timestamp], h[signature]
			delete(h, id)
			delete(h, timestamp)
			delete(h, signature)
		}, ReasonMissing},
	} {
		h := header(good)
		v.change(h)
		index, got, err := Verify(h, body, now, tolerance, secret)
		if reason(err) != v.reason {
			t.Errorf("%s: %v, want %s", v.name, err, v.reason)
		}
		if wantIndex, wantID := 0, "msg_1"; err != nil && (index != -1 || got != "") || err == nil && (index != wantIndex || got != wantID) {
			t.Errorf("%s: index %d, id %q, %v", v.name, index, got, err)
		}
	}
	for i := range body {
		changed := bytes.Clone(body)
		changed[i] ^= 1
		if _, _, err := Verify(header(good), changed, now, tolerance, secret); reason(err) != ReasonSignature {
			t.Errorf("byte %d of the body changed: %v", i, err)
		}
	}
	if _, _, err := Verify(header(good), append(bytes.Clone(body), '\n'), now, tolerance, secret); reason(err) != ReasonSignature {
		t.Errorf("a line end more: %v", err)
	}
}

// A part of the id can't move into the timestamp or the body.
func TestPartsCannotMove(t *testing.T) {
	secret := newSecret(t, 1)
	h, err := Sign("msg", now, []byte("1.x"), secret)
	if err != nil {
		t.Fatal(err)
	}
	h.ID = "msg." + h.Timestamp
	h.Timestamp = "1"
	if _, _, err := Verify(header(h), []byte("x"), time.Unix(1, 0), tolerance, secret); reason(err) != ReasonMalformed {
		t.Errorf("the same bytes, split in another place: %v", err)
	}
	if _, err := Sign("msg.1", now, nil, secret); reason(err) != ReasonMalformed {
		t.Errorf("signing with a dot in the id: %v", err)
	}
}

func TestVerifyTellsWhichSecretMatched(t *testing.T) {
	old, current, pair := newSecret(t, 1), newSecret(t, 2), newPair(t, 3)
	stranger, strangerPair := newSecret(t, 9), newPair(t, 9)
	for _, v := range []struct {
		name           string
		signed, accept []Secret
		index          int
		reason         string
	}{
		{"one", []Secret{old}, []Secret{old}, 0, "ok"},
		{"sender goes first", []Secret{current, old}, []Secret{old}, 0, "ok"},
		{"receiver goes first", []Secret{old}, []Secret{current, old}, 1, "ok"},
		{"both match, the first counts", []Secret{old, current}, []Secret{current, old}, 0, "ok"},
		{"the first is a stranger's", []Secret{old}, []Secret{stranger, old}, 1, "ok"},
		{"none matches", []Secret{old, current}, []Secret{stranger, strangerPair.Public()}, -1, ReasonSignature},
		{"key pair", []Secret{pair}, []Secret{pair.Public()}, 0, "ok"},
		{"key pair, the private half verifies too", []Secret{pair}, []Secret{pair}, 0, "ok"},
		{"key pair of a stranger", []Secret{strangerPair}, []Secret{pair.Public()}, -1, ReasonSignature},
		{"both kinds", []Secret{old, pair}, []Secret{stranger, pair.Public()}, 1, "ok"},
		{"from secret to key pair", []Secret{old, pair}, []Secret{old}, 0, "ok"},
	} {
		h, err := Sign("msg_1", now, []byte("x"), v.signed...)
		if err != nil {
			t.Fatal(err)
		}
		index, _, err := Verify(header(h), []byte("x"), now, tolerance, v.accept...)
		if reason(err) != v.reason || index != v.index {
			t.Errorf("%s: %d, %v; want %d, %s", v.name, index, err, v.index, v.reason)
		}
	}
}

// A public key is public: nothing signed with it as a secret may count.
func TestPublicKeyIsNoSecret(t *testing.T) {
	pair := newPair(t, 3)
	forged, err := SecretFrom(*pair.Public().key)
	if err != nil {
		t.Fatal(err)
	}
	h, err := Sign("msg_1", now, []byte("x"), forged)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Verify(header(h), []byte("x"), now, tolerance, pair.Public()); reason(err) != ReasonSignature {
		t.Errorf("signed with the public key as a secret: %v", err)
	}
	if _, err := Sign("msg_1", now, []byte("x"), pair.Public()); reason(err) != ReasonMalformed {
		t.Errorf("signing with a public key: %v", err)
	}
}

// The base of another scheme's mistake: content ‖ MAC of nothing.
func TestContentAndMACOfNothingIsNoSignature(t *testing.T) {
	secret := newSecret(t, 1)
	h := Headers{ID: "msg_1", Timestamp: fmt.Sprint(now.Unix())}
	for _, forged := range [][]byte{secret.mac(nil), append(content(h.ID, h.Timestamp, []byte("x")), secret.mac(nil)...)} {
		h.Signature = "v1," + base64.StdEncoding.EncodeToString(forged)
		if _, _, err := Verify(header(h), []byte("x"), now, tolerance, secret); err == nil {
			t.Errorf("%d bytes are accepted", len(forged))
		}
	}
}

func TestSvixNamesWhenAskedFor(t *testing.T) {
	secret, body := newSecret(t, 1), []byte("x")
	good, err := Sign("msg_1", now, body, secret)
	if err != nil {
		t.Fatal(err)
	}
	v := Verifier{Secrets: []Secret{secret}, Tolerance: tolerance, Svix: true}
	svix := map[string][]string{"Svix-Id": {good.ID}, "Svix-Timestamp": {good.Timestamp}, "Svix-Signature": {good.Signature}}
	if _, _, err := v.Verify(svix, body, now); err != nil {
		t.Error(err)
	}
	if _, _, err := v.Verify(header(good), body, now); err != nil {
		t.Errorf("the standard names: %v", err)
	}
	// Two sets of names are never mixed.
	svix["Webhook-Id"] = []string{good.ID}
	if _, _, err := v.Verify(svix, body, now); reason(err) != ReasonMissing {
		t.Errorf("one header of the standard set: %v", err)
	}
}

func TestSecretsAreReadStrictly(t *testing.T) {
	enc := base64.StdEncoding.EncodeToString
	seed := bytes.Repeat([]byte{5}, 32)
	private := ed25519.NewKeyFromSeed(seed)
	mixed := append(bytes.Clone(seed), bytes.Repeat([]byte{1}, 32)...)
	for _, v := range []struct{ name, text, encoded, reason string }{
		{"24 bytes", "whsec_" + enc(make([]byte, 24)), "whsec_" + enc(make([]byte, 24)), "ok"},
		{"64 bytes", "whsec_" + enc(make([]byte, 64)), "whsec_" + enc(make([]byte, 64)), "ok"},
		{"without prefix", enc(make([]byte, 32)), "whsec_" + enc(make([]byte, 32)), "ok"},
		{"private, seed only", "whsk_" + enc(seed), "whsk_" + enc(private), "ok"},
		{"private", "whsk_" + enc(private), "whsk_" + enc(private), "ok"},
		{"public", "whpk_" + enc(private[32:]), "whpk_" + enc(private[32:]), "ok"},
		{"empty", "", "", ReasonMalformed},
		{"prefix only", "whsec_", "", ReasonMalformed},
		{"23 bytes", "whsec_" + enc(make([]byte, 23)), "", ReasonMalformed},
		{"65 bytes", "whsec_" + enc(make([]byte, 65)), "", ReasonMalformed},
		{"1 MiB", "whsec_" + strings.Repeat("A", 1<<20), "", ReasonMalformed},
		{"line end", "whsec_" + enc(make([]byte, 32)) + "\n", "", ReasonMalformed},
		{"no padding", "whsec_" + strings.TrimRight(enc(make([]byte, 32)), "="), "", ReasonMalformed},
		{"prefix twice", "whsec_whsec_" + enc(make([]byte, 32)), "", ReasonMalformed},
		{"not base64", "whsec_" + strings.Repeat("-", 44), "", ReasonMalformed},
		{"private, halves of two keys", "whsk_" + enc(mixed), "", ReasonMalformed},
		{"private, 33 bytes", "whsk_" + enc(make([]byte, 33)), "", ReasonMalformed},
		{"private, not base64", "whsk_?", "", ReasonMalformed},
		{"public, 31 bytes", "whpk_" + enc(make([]byte, 31)), "", ReasonMalformed},
		{"public, not base64", "whpk_?", "", ReasonMalformed},
	} {
		s, err := ParseSecret(v.text)
		if reason(err) != v.reason || s.Encode() != v.encoded {
			t.Errorf("%s: %v, want %s; encoded as %d characters, want %d", v.name, err, v.reason, len(s.Encode()), len(v.encoded))
		}
		if err != nil && len(v.text) > 20 && strings.Contains(err.Error(), v.text[6:20]) {
			t.Errorf("%s: the error holds the secret", v.name)
		}
	}
}

func TestSecretPrintsAsItsKindOnly(t *testing.T) {
	for want, s := range map[string]Secret{
		"webhook.Secret(whsec_[redacted])": newSecret(t, 'S'), "webhook.Secret(whsk_[redacted])": newPair(t, 'S'),
		"webhook.Secret(whpk_…)": newPair(t, 'S').Public(), "webhook.Secret(none)": {},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			if got := fmt.Sprintf(verb, s); got != want {
				t.Errorf("%s prints %s, want %s", verb, got, want)
			}
			if got := fmt.Sprintf(verb, struct{ secret Secret }{s}); strings.Contains(got, "SSSS") || strings.Contains(got, "5353") {
				t.Errorf("%s in a struct prints %s", verb, got)
			}
		}
		if b, err := json.Marshal(s); err == nil {
			t.Errorf("JSON of a secret is %s", b)
		}
	}
}

// A change to the caller's slice afterwards is none of the secret's.
func TestSecretIsACopy(t *testing.T) {
	raw := bytes.Repeat([]byte{1}, 32)
	s, err := SecretFrom(raw)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Encode()
	clear(raw)
	if s.Encode() != before {
		t.Error("the secret changed")
	}
}

func TestBoundsOnSecrets(t *testing.T) {
	body := []byte("x")
	var many []Secret
	for i := range maxSecrets + 1 {
		many = append(many, newSecret(t, byte(i)))
	}
	for name, secrets := range map[string][]Secret{"none": nil, "too many": many, "an empty one": {newSecret(t, 1), {}}} {
		if _, err := Sign("msg_1", now, body, secrets...); reason(err) != ReasonMalformed {
			t.Errorf("signing with %s: %v", name, err)
		}
		h, err := Sign("msg_1", now, body, newSecret(t, 1))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Verify(header(h), body, now, tolerance, secrets...); reason(err) != ReasonMalformed {
			t.Errorf("verifying with %s: %v", name, err)
		}
	}
	h, err := Sign("msg_1", now, body, many[:maxSecrets]...)
	if err != nil {
		t.Fatal(err)
	}
	if index, _, err := Verify(header(h), body, now, tolerance, many[maxSecrets], many[maxSecrets-1]); err != nil || index != 1 {
		t.Errorf("as many as can be: %d, %v", index, err)
	}
	if _, err := Sign("msg_1", time.Unix(-1, 0), body, many[0]); reason(err) != ReasonMalformed {
		t.Errorf("before 1970: %v", err)
	}
	// 20 signatures × 4 keys would be 80 Ed25519 verifications for one request.
	pair := newPair(t, 1)
	if h, err = Sign("msg_1", now, body, pair); err != nil {
		t.Fatal(err)
	}
	h.Signature = strings.TrimSuffix(strings.Repeat(h.Signature+" ", maxSignatures), " ")
	if _, _, err := Verify(header(h), body, now, tolerance, pair, pair, pair, pair); reason(err) != ReasonMalformed {
		t.Errorf("too many pairs: %v", err)
	}
	if _, _, err := Verify(header(h), body, now, tolerance, pair, pair, pair); err != nil {
		t.Errorf("%d pairs: %v", 3*maxSignatures, err)
	}
}

func FuzzVerify(f *testing.F) {
	secret, err := SecretFrom(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		f.Fatal(err)
	}
	good, err := Sign("msg_1", now, []byte("body"), secret)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.ID, good.Timestamp, good.Signature, []byte("body"))
	f.Add("msg_1", "1700000000", "v1a,AAAA v2,x "+good.Signature, []byte("body"))
	f.Add("", "-1", "v1,", []byte(nil))
	f.Fuzz(func(t *testing.T, id, timestamp, signature string, body []byte) {
		h := header(Headers{ID: id, Timestamp: timestamp, Signature: signature})
		_, got, err := Verify(h, body, now, tolerance, secret)
		if err != nil {
			if reason(err) == "" || len(err.Error()) > 500 {
				t.Fatalf("error %q", err)
			}
			return
		}
		if got != good.ID || id != good.ID || timestamp != good.Timestamp || string(body) != "body" || !strings.Contains(signature, good.Signature) {
			t.Fatalf("accepted %q %q %q %q", id, timestamp, signature, body)
		}
	})
}

func FuzzParseSecret(f *testing.F) {
	f.Add("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	f.Add("whsk_BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=")
	f.Add("whpk_BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSecret(text)
		if err != nil {
			return
		}
		again, err := ParseSecret(s.Encode())
		if err != nil || again.Encode() != s.Encode() || again.kind != s.kind {
			t.Fatalf("%q does not come back: %v", text, err)
		}
	})
}

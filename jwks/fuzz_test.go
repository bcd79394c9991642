package jwks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func FuzzParseKey(f *testing.F) {
	ec := p256(f)
	for _, seed := range []string{
		pkcs8(f, ec), pkix(f, ec.Public()), jwk(f, ec, "kid", nil), jwk(f, ec.Public(), "kid", map[string]any{"alg": "ES256", "use": "sig"}),
		`{"kty":"OKP","crv":"Ed25519","x":"AAAA"}`, `{"kty":"RSA","n":"AQ","e":"AQAB"}`, `{"keys":[]}`, "-----BEGIN X-----", weakRSA(f),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := parseKey(bytes.Clone(raw))
		if err != nil {
			// A long run of the input in a message could be key material.
			if trimmed := bytes.TrimSpace(raw); len(trimmed) > 100 && bytes.Contains([]byte(err.Error()), trimmed[30:70]) {
				t.Errorf("the message quotes the input: %v", err)
			}
			return
		}
		if k.pub == nil {
			t.Fatal("a key without a public half")
		}
		if k.private != nil {
			if diff := cmp.Diff(k.pub, k.private.Public()); diff != "" {
				t.Errorf("halves differ: %s", diff)
			}
		}
		for _, alg := range Algorithms {
			if alg.fits(k.pub) != nil {
				continue
			}
			public, kid, err := publicJWK(k.pub, alg, "")
			if err != nil || kid == "" {
				t.Fatalf("a key that fits %s can't be published: %v", alg, err)
			}
			again, err := parseKey(public)
			if err != nil || again.private != nil {
				t.Errorf("what is published can't be read: %v", err)
			}
			if diff := cmp.Diff(k.pub, again.pub); diff != "" {
				t.Errorf("published another key: %s", diff)
			}
		}
	})
}

func FuzzParseClaims(f *testing.F) {
	for _, seed := range []string{``, `{}`, `{"sub":"a","aud":["b"],"n":1e3}`, `{"a":1,"a":2}`, `{"exp":1767571260}`, `[]`, `{"a":{"b":[null]}}`, "{\"a\":\"\xff\"}", `{"\u0061":1,"a":1}`} {
		f.Add([]byte(seed))
	}
	set := &Keyset{Name: "payments", Issuer: "https://a.b", Policy: quick()}
	f.Fuzz(func(t *testing.T, raw []byte) {
		parsed, err := parseClaims(raw)
		if err != nil {
			return
		}
		if len(parsed) > maxTokenClaim {
			t.Errorf("%d claims", len(parsed))
		}
		payload, out, err := claims(set, Sign{Claims: raw}, epoch)
		if err != nil {
			return
		}
		if !json.Valid(payload) || !utf8.Valid(payload) {
			t.Fatalf("signed what is no JSON: %q", payload)
		}
		var got struct {
			Iss      string
			Exp, Iat int64
			Jti      *string
		}
		if err := json.Unmarshal(payload, &got); err != nil {
			// Names that differ in case only land in the same field here.
			return
		}
		if out.ExpiresAt.Sub(epoch) > set.Policy.TokenTTL || !out.ExpiresAt.After(epoch) {
			t.Errorf("expires at %s", out.ExpiresAt)
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(payload, &members); err != nil {
			t.Fatal(err)
		}
		if string(members["iss"]) != `"https://a.b"` || len(members["jti"]) == 0 {
			t.Errorf("iss %s, jti %s", members["iss"], members["jti"])
		}
		for name := range parsed {
			if _, kept := members[name]; !kept {
				t.Errorf("claim %q is lost", name)
			}
		}
	})
}

func FuzzNumericDate(f *testing.F) {
	for _, seed := range []string{`0`, `1767571200`, `1767571200.999`, `1e9`, `-1`, `1e308`, `"1"`, `null`, `253402300799`, `253402300799.5`, `1E-400`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		at, err := numericDate(raw)
		if err != nil {
			return
		}
		if at.Year() < 1970 || at.Year() > 9999 {
			t.Fatalf("%q is read as %s", raw, at)
		}
		var v float64
		if err := json.Unmarshal(raw, &v); err != nil {
			t.Fatalf("%q is no number", raw)
		}
		if at.Unix() != int64(math.Floor(v)) {
			t.Errorf("%q is read as %d", raw, at.Unix())
		}
	})
}

// FuzzPolicy reads policies as they are stored: whatever is safe comes back the
// same, and its figures never overflow.
func FuzzPolicy(f *testing.F) {
	for _, p := range []Policy{DefaultPolicy(), quick()} {
		b, err := json.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, row := range []string{`null`, `{}`, `{"consumers":null}`, `{"consumers":[{}]}`, `{"consumers":[{"name":"unknown","cache":-1},{"name":"unknown"}]}`, `{"rotate":null,"token_ttl":-9223372036854775808}`} {
		f.Add([]byte(row))
	}
	f.Add([]byte(`{"rotate":"cron 0 3 * * 1 Europe/Berlin jitter 1h","token_ttl":1000000000,"consumers":[{"name":"jwx","min_interval":0,"max_interval":9223372036854775807}],"fallback":"none","overlong":"clamp"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p Policy
		if json.Unmarshal(raw, &p) != nil {
			return
		}
		for _, alg := range Algorithms {
			if _, err := p.Check(alg); err != nil && !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%s: refused with %v", alg, err)
			}
		}
		timing, err := p.Check(ES256)
		if err != nil {
			return
		}
		for name, d := range map[string]time.Duration{"lead": timing.PublishAhead, "delay": timing.RetireAfter, "max-age": timing.MaxAge} {
			if d < 0 || d > 3*maxDuration {
				t.Errorf("%s is %s", name, d)
			}
		}
		for _, c := range timing.Consumers {
			if c.Lead < 0 || c.Lead > timing.PublishAhead || c.ReachFresh < 0 || c.ReachStandby < c.ReachFresh || c.RefusalFresh < 0 {
				t.Errorf("timing of %s: %+v", c.Name, c)
			}
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var again Policy
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatal(err)
		}
		if again.Lead() != p.Lead() || again.RetireDelay(p.TokenTTL) != p.RetireDelay(p.TokenTTL) || again.Rotate != p.Rotate {
			t.Errorf("read back as %+v", again)
		}
	})
}

// A page token that nobody gave out is refused as a caller's mistake, or reads
// some page; it never becomes a failure of the database.
func FuzzHistoryPage(f *testing.F) {
	beds := map[string]*bed{
		"sqlite":   newBed(f, storetest.SQLite(f)),
		"postgres": newBed(f, storetest.Open(f, storetest.Postgres(f))),
	}
	f.Add("")
	f.Add("!")
	for _, b := range beds {
		set := b.create(f, "payments", ES256, quick())
		for _, k := range []*Key{set.Standby(), set.Active()} {
			if _, _, err := b.Revoke(f.Context(), Revoke{Name: "payments", Kid: k.Kid, Mode: ModeFresh, Reason: "superseded"}); err != nil {
				f.Fatal(err)
			}
		}
		_, next, err := b.History(f.Context(), "payments", "", 1)
		if err != nil || next == "" {
			f.Fatalf("no second page: %v", err)
		}
		f.Add(next)
	}
	for _, inside := range []string{"5", "5 ", "-9223372036854775808 a", "9223372036854775808 a", "0x5 a", " a", "5  a", "5 '", "5 \x00", "5 \xff", "5 é"} {
		f.Add(inside)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, page := range []string{s, base64.RawURLEncoding.EncodeToString([]byte(s))} {
			for name, b := range beds {
				keys, next, err := b.History(t.Context(), "payments", page, 1)
				switch {
				case err != nil && (!errors.Is(err, fault.ErrInvalid) || keys != nil || next != ""):
					t.Errorf("%s: page %q gives %d keys, next page %q, error %v", name, page, len(keys), next, err)
				case err == nil && (len(keys) > 1 || next != "" && len(keys) != 1):
					t.Errorf("%s: page %q gives %d keys, next page %q", name, page, len(keys), next)
				}
			}
		}
	})
}

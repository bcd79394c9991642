package jwks

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// parts decodes the header and the payload of a token, numbers as they are written.
func parts(t testing.TB, token string) (header, payload map[string]any) {
	t.Helper()
	for i, part := range strings.Split(token, ".")[:2] {
		b, err := base64.RawURLEncoding.DecodeString(part)
		if err != nil {
			t.Fatal(err)
		}
		dec := json.NewDecoder(strings.NewReader(string(b)))
		dec.UseNumber()
		to := &header
		if i == 1 {
			to = &payload
		}
		if err := dec.Decode(to); err != nil {
			t.Fatal(err)
		}
	}
	return header, payload
}

func TestSignLife(t *testing.T) {
	now := epoch.Add(500 * time.Millisecond)
	exp := func(d time.Duration) string { return fmt.Sprintf(`{"exp":%d}`, epoch.Add(d).Unix()) }
	for _, tc := range []struct {
		name     string
		overlong Overlong
		ttl      time.Duration
		claims   string
		want     time.Duration // exp after epoch; 0: refused
		clamped  bool
		reason   string
		field    string
	}{
		{"by the policy", OverlongClamp, 0, `{}`, 10 * time.Minute, false, "", ""},
		{"no claims at all", OverlongClamp, 0, ``, 10 * time.Minute, false, "", ""},
		{"asked for less", OverlongClamp, time.Minute, `{}`, time.Minute, false, "", ""},
		{"asked for exactly the most", OverlongRefuse, 10 * time.Minute, `{}`, 10 * time.Minute, false, "", ""},
		{"asked for more", OverlongClamp, time.Hour, `{}`, 10 * time.Minute, true, "", ""},
		{"asked for more, refused", OverlongRefuse, 10*time.Minute + 1, `{}`, 0, false, "ttl_too_long", "ttl"},
		{"exp shorter", OverlongClamp, 0, exp(5 * time.Minute), 5 * time.Minute, false, "", ""},
		{"exp shorter than ttl", OverlongClamp, 8 * time.Minute, exp(5 * time.Minute), 5 * time.Minute, false, "", ""},
		{"ttl shorter than exp", OverlongClamp, 4 * time.Minute, exp(5 * time.Minute), 4 * time.Minute, false, "", ""},
		{"exp longer", OverlongClamp, 0, exp(time.Hour), 10 * time.Minute, true, "", ""},
		{"exp longer, refused", OverlongRefuse, 0, exp(time.Hour), 0, false, "ttl_too_long", "ttl"},
		{"exp in the year 9999", OverlongClamp, 0, `{"exp":253402300799}`, 10 * time.Minute, true, "", ""},
		{"exp with a fraction", OverlongClamp, 0, fmt.Sprintf(`{"exp":%d.9}`, epoch.Add(time.Minute).Unix()), time.Minute, false, "", ""},
		{"exp as a power", OverlongClamp, 0, `{"exp":1.767571260e9}`, time.Minute, false, "", ""},
		{"exp in the past", OverlongClamp, 0, exp(-time.Second), 0, false, "bad_claims", "claims"},
		{"exp now", OverlongClamp, 0, exp(0), 0, false, "bad_claims", "claims"},
		{"exp before 1970", OverlongClamp, 0, `{"exp":-1}`, 0, false, "bad_claims", "claims"},
		{"exp after 9999", OverlongClamp, 0, `{"exp":1e300}`, 0, false, "bad_claims", "claims"},
		{"exp beyond floats", OverlongClamp, 0, `{"exp":1e999}`, 0, false, "bad_claims", "claims"},
		{"exp as a string", OverlongClamp, 0, `{"exp":"1767571260"}`, 0, false, "bad_claims", "claims"},
		{"exp null", OverlongClamp, 0, `{"exp":null}`, 0, false, "bad_claims", "claims"},
		{"under a second", OverlongClamp, 400 * time.Millisecond, `{}`, 0, false, "duration_range", "ttl"},
		{"negative", OverlongClamp, -1, `{}`, 0, false, "duration_range", "ttl"},
		{"overflowing", OverlongClamp, Forever, `{}`, 0, false, "duration_range", "ttl"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := quick()
			p.Overlong = tc.overlong
			set := &Keyset{Name: "payments", Issuer: "https://a.b", Policy: p}
			payload, out, err := claims(set, Sign{Claims: []byte(tc.claims), TTL: tc.ttl}, now)
			if tc.want == 0 {
				wantFault(t, err, fault.ErrInvalid, tc.reason, tc.field)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := epoch.Add(tc.want)
			if !out.ExpiresAt.Equal(want) || out.Clamped != tc.clamped {
				t.Errorf("expires at %s, clamped %v, want %s, %v", out.ExpiresAt, out.Clamped, want, tc.clamped)
			}
			var got struct{ Exp, Iat int64 }
			if err := json.Unmarshal(payload, &got); err != nil {
				t.Fatal(err)
			}
			if got.Exp != want.Unix() || got.Iat != epoch.Unix() {
				t.Errorf("exp %d, iat %d", got.Exp, got.Iat)
			}
		})
	}
}

func TestSignWhenClaimsAreMalformed(t *testing.T) {
	set := &Keyset{Name: "payments", Issuer: "https://a.b", Policy: quick()}
	wide := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"c%d":1`, i)
		}
		return "{" + b.String()[1:] + "}"
	}
	for _, bad := range []string{
		`[]`, `"x"`, `1`, `null`, `true`, `{`, `}`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{"a":1}{}`, `{"a":1} x`, `{"a":01}`, `{'a':1}`, "{\"a\":\"\xff\"}", "{\"\xff\":1}", "\xef\xbb\xbf{}", "\x00",
		`{"a":1,"a":2}`, `{"sub":"x","sub":"x"}`, `{"a":1,"\u0061":2}`, `{"exp":99999999999,"exp":1}`,
		`{"iss":"https://other"}`, `{"iss":1}`, `{"iss":null}`, `{"iss":["https://a.b"]}`, `{"iss":""}`,
		`{"sub":1}`, `{"sub":null}`, `{"sub":{}}`, `{"jti":7}`, `{"jti":null}`,
		`{"aud":1}`, `{"aud":null}`, `{"aud":[1]}`, `{"aud":["a",null]}`, `{"aud":{"a":1}}`, `{"aud":[["a"]]}`,
		`{"iat":1767571200}`, `{"iat":null}`,
		`{"nbf":"x"}`, `{"nbf":null}`, `{"nbf":-1}`, `{"nbf":1e300}`, `{"nbf":[1]}`,
		wide(257), `{"a":"` + strings.Repeat("x", maxTokenSize) + `"}`, strings.Repeat("[", 9000), `{"a":` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `}`, strings.Repeat(`{"a":`, 3000),
	} {
		_, _, err := claims(set, Sign{Claims: []byte(bad)}, epoch)
		if err == nil {
			t.Errorf("claims %.60q are signed", bad)
			continue
		}
		wantFault(t, err, fault.ErrInvalid, "bad_claims", "claims")
		if len(err.Error()) > 300 {
			t.Errorf("a message of %d bytes for %.60q", len(err.Error()), bad)
		}
	}
	for _, good := range []string{
		` {} `, "\n", `{"iss":"https://a.b"}`, `{"aud":"ledger"}`, `{"aud":["a","b"]}`, `{"aud":[]}`, `{"nbf":1767571200.5}`, `{"jti":"mine"}`, `{"sub":""}`,
		wide(256), `{"a":"` + strings.Repeat("x", maxTokenSize-8) + `"}`, `{"":1}`, `{"a":"\ud800"}`, `{"a":"<&>\u2028"}`,
		`{"a":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`,
	} {
		payload, _, err := claims(set, Sign{Claims: []byte(good)}, epoch)
		if err != nil {
			t.Errorf("claims %.60q are refused: %v", good, err)
		}
		if !json.Valid(payload) {
			t.Errorf("claims %.60q became no JSON", good)
		}
	}
	for _, typ := range []string{"a b", "a\n", "ä", `a"b`, `a\b`, "\x00", "\x7f", strings.Repeat("x", 65)} {
		_, _, err := claims(set, Sign{Typ: typ}, epoch)
		wantFault(t, err, fault.ErrInvalid, "bad_typ", "typ")
	}
}

func TestSignedToken(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		req := Sign{Name: "payments", Claims: []byte(`{"n":123456789012345678901234567890.10,"big":1E400,"sub":"é","nested":{"b":[1,{"c":null}]}}`), Typ: "at+jwt"}
		s, err := b.Sign(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		header, payload := parts(t, s.Token)
		if diff := cmp.Diff(map[string]any{"alg": "ES256", "kid": set.Active().Kid, "typ": "at+jwt"}, header); diff != "" {
			t.Errorf("header (-want +got):\n%s", diff)
		}
		jti := payload["jti"]
		if id, ok := jti.(string); !ok || len(id) < 26 {
			t.Errorf("jti %v", jti)
		}
		want := map[string]any{
			"n": json.Number("123456789012345678901234567890.10"), "big": json.Number("1E400"), "sub": "é", "nested": map[string]any{"b": []any{json.Number("1"), map[string]any{"c": nil}}},
			"iss": "https://auth.example.com/payments", "iat": json.Number("1767571200"), "exp": json.Number("1767571800"), "jti": jti,
		}
		if diff := cmp.Diff(want, payload); diff != "" {
			t.Errorf("payload (-want +got):\n%s", diff)
		}
		again, err := b.Sign(t.Context(), Sign{Name: "payments"})
		if err != nil {
			t.Fatal(err)
		}
		header, payload = parts(t, again.Token)
		if header["typ"] != "JWT" || payload["jti"] == jti {
			t.Errorf("typ %v, jti %v after %v", header["typ"], payload["jti"], jti)
		}
	})
}

// Promise: the life of a token is on its key's row before the token leaves.
func TestSignWhenLifeCannotBeNoted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		b.sign(t, "payments") // the key is open and its life noted
		if got := b.get(t, "payments").Active().MaxTokenLife; got != 10*time.Minute {
			t.Fatalf("after a token of 10m the row says %s", got)
		}
		longer := quick()
		longer.TokenTTL = 20 * time.Minute
		if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: longer}); err != nil {
			t.Fatal(err)
		}
		mend := breakWrites(t, db, "signing_keys", "UPDATE", "NEW.max_token_life > 600000000")
		s, err := b.Sign(t.Context(), Sign{Name: "payments"})
		if err == nil || s.Token != "" {
			t.Fatalf("a token was given out: %v", err)
		}
		// A life that is noted already needs no database.
		if _, err := b.Sign(t.Context(), Sign{Name: "payments", TTL: 10 * time.Minute}); err != nil {
			t.Errorf("a token of a noted life: %v", err)
		}
		mend()
		b.sign(t, "payments")
		if got := b.get(t, "payments").key(set.Active().Kid).MaxTokenLife; got != 20*time.Minute {
			t.Errorf("after a token of 20m the row says %s", got)
		}
	})
}

// A policy with shorter tokens does not shorten what older tokens are owed.
func TestWithdrawalWhenTokenTTLWasLowered(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		first := b.create(t, "payments", ES256, quick()).Active().Kid
		b.walk(t, quickLead)
		shorter := quick()
		shorter.TokenTTL = time.Minute
		token := b.sign(t, "payments")
		if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: shorter}); err != nil {
			t.Fatal(err)
		}
		if s := b.sign(t, "payments"); !s.ExpiresAt.Equal(b.clock.Now().Add(time.Minute)) {
			t.Errorf("the new policy's token expires at %s", s.ExpiresAt)
		}
		set, err := b.Rotate(t.Context(), Rotate{Name: "payments"})
		if err != nil {
			t.Fatal(err)
		}
		want := b.clock.Now().Add(quickRetire)
		if at := set.Outlook()[first].At; !at.Equal(want) {
			t.Errorf("withdrawn at %s, want %s", at, want)
		}
		b.walk(t, 10*time.Minute-time.Second)
		if err := b.accepted(t, "payments", token.Token); err != nil {
			t.Errorf("a second before its end: %v", err)
		}
	})
}

// Two processes: one that does not yet know that a key was demoted can't
// extend its life.
func TestSignWhenKeyWasDemotedElsewhere(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		other := New(Config{DB: db, Local: b.local})
		b.walk(t, quickLead)
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		old := b.get(t, "payments").Active().Kid
		if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
			t.Fatal(err)
		}
		// other has not opened the old key, so its first signature notices.
		s, err := other.Sign(t.Context(), Sign{Name: "payments"})
		if err != nil {
			t.Fatal(err)
		}
		if s.Kid == old {
			t.Error("the demoted key signed a token whose life is not on its row")
		}
	})
}

// A key that is open and noted may sign on for half of the lease, and no longer.
func TestSignWhenRevokedElsewhere(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		other := New(Config{DB: db, Local: b.local})
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := other.Sign(t.Context(), Sign{Name: "payments"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.Revoke(t.Context(), Revoke{Name: "payments", Kid: s.Kid, Mode: ModeFresh, Reason: "key_compromise"}); err != nil {
			t.Fatal(err)
		}
		b.clock.Advance(SignerLease/2 + us)
		after, err := other.Sign(t.Context(), Sign{Name: "payments"})
		if err != nil {
			t.Fatal(err)
		}
		if after.Kid == s.Kid {
			t.Error("the revoked key signs after half of the lease")
		}
	})
}

// Promise: a stopped database stops neither documents nor, within the lease, signatures.
func TestSignAndServeWhenDatabaseIsGone(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		b.sign(t, "payments")
		if err := b.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		body := string(b.Document("payments").Body)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		b.clock.Advance(SignerLease / 2)
		b.sign(t, "payments")
		b.clock.Advance(us)
		_, err := b.Sign(t.Context(), Sign{Name: "payments"})
		wantFault(t, err, fault.ErrUnavailable, "lease_over", "", "5s")
		b.clock.Advance(365 * 24 * time.Hour)
		_, err = b.Sign(t.Context(), Sign{Name: "payments"})
		wantFault(t, err, fault.ErrUnavailable, "lease_over", "")
		if got := b.Document("payments"); got == nil || string(got.Body) != body {
			t.Error("the document is no longer served")
		}
		if err := b.Refresh(t.Context()); !errors.Is(err, fault.ErrUnavailable) {
			t.Errorf("refresh says %v", err)
		}
	})
}

// When many requests find the lease half over at once, all of them wait for the
// one that renews it.
func TestSignWhenManyRenewTheLease(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		b.sign(t, "payments")
		for range 20 {
			b.clock.Advance(SignerLease)
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if _, err := b.Sign(t.Context(), Sign{Name: "payments"}); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
		}
	})
}

package apikeys

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// mac is what is stored of a key: HMAC-SHA-256 over partner ‖ 0 ‖ secret.
// Access tokens belong to no partner.
func mac(pepper []byte, partner, secret string) []byte {
	h := hmac.New(sha256.New, pepper)
	h.Write([]byte(partner))
	h.Write([]byte{0})
	h.Write([]byte(secret))
	return h.Sum(nil)
}

// seal is what is stored beside the hash: HMAC-SHA-256 over all that the row
// says of the token, but for its last use, each part with its length in front.
// The leading byte tells a token's seal from a key's (2) and a partner's (3).
func (t *Token) seal(key []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte{1})
	number := func(n int64) { _ = binary.Write(h, binary.BigEndian, n) } // a hash never fails
	text := func(s string) {
		number(int64(len(s)))
		_, _ = io.WriteString(h, s)
	}
	for _, s := range []string{t.ID, t.Name, string(t.Role), t.Partner, t.Stored, t.Reason, string(t.hash)} {
		text(s)
	}
	for _, at := range []time.Time{t.CreatedAt, t.ExpiresAt, t.RevokedAt} {
		number(store.Micros(at))
	}
	number(int64(len(t.Keysets)))
	for _, k := range t.Keysets {
		text(k)
	}
	number(int64(len(t.CIDRs)))
	for _, p := range t.CIDRs {
		text(p.String())
	}
	return h.Sum(nil)
}

// genuine reports whether a token's row is as Rotunda wrote it; if not, the
// error is a denial.
func (ts *Tokens) genuine(t *Token) error {
	if !hmac.Equal(t.seal(ts.peppers.sealKey), t.sealed) {
		return denied("tampered").of(t)
	}
	return nil
}

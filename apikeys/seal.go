package apikeys

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

func pepperPlace(gen int64) secret.Place {
	return secret.Place{Table: "peppers", Row: strconv.FormatInt(gen, 10), Column: "sealed"}
}

func (ts *Tokens) loadPeppers(ctx context.Context) error {
	err := ts.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		rows, err := tx.Query(ctx, `SELECT gen, sealed FROM peppers ORDER BY gen`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var gen int64
			var sealed []byte
			if err := rows.Scan(&gen, &sealed); err != nil {
				return err
			}
			v, err := ts.sealer.Open(ctx, pepperPlace(gen), sealed)
			if err != nil {
				return err
			}
			ts.peppers[gen], ts.newest = v.Reveal(), gen
			v.Destroy()
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("read the peppers: %w", err)
	}
	return nil
}

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
// The leading 1 keeps it apart from mac, whose input begins with a printable
// character or 0.
func (t *Token) seal(pepper []byte) []byte {
	h := hmac.New(sha256.New, pepper)
	h.Write([]byte{1})
	number := func(n int64) { _ = binary.Write(h, binary.BigEndian, n) } // a hash never fails
	text := func(s string) {
		number(int64(len(s)))
		_, _ = io.WriteString(h, s)
	}
	for _, s := range []string{t.ID, t.Name, string(t.Role), t.Stored, t.Reason, string(t.hash)} {
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

// pepper returns the pepper of a generation.
func (ts *Tokens) pepper(gen int64) ([]byte, error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	p, ok := ts.peppers[gen]
	if !ok {
		return nil, fault.New(fault.ErrUnavailable, "pepper_missing", "pepper generation %d is not loaded: restart this replica", gen)
	}
	return p, nil
}

// genuine reports whether a token's row is as Rotunda wrote it; if not, the
// error is a denial.
func (ts *Tokens) genuine(t *Token) error {
	pepper, err := ts.pepper(t.gen)
	if err != nil {
		return err
	}
	if !hmac.Equal(t.seal(pepper), t.sealed) {
		return denied("tampered").of(t)
	}
	return nil
}

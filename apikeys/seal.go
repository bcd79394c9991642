package apikeys

import (
	"crypto/hmac"
	"encoding/binary"
	"hash"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// The first byte of what is sealed tells the kinds of rows apart.
const (
	tokenSeal   = 1
	keySeal     = 2
	partnerSeal = 3
)

// sealing makes a seal: HMAC-SHA-256 over all that a row says but for its use,
// each part with its length in front.
type sealing struct{ hash.Hash }

func newSeal(key []byte, kind byte) sealing {
	s := sealing{newMAC(key)}
	s.Write([]byte{kind})
	return s
}

func (s sealing) number(n int64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	s.Write(b[:]) // a hash never fails
}

func (s sealing) text(t string) {
	s.number(int64(len(t)))
	_, _ = io.WriteString(s, t)
}

func (s sealing) texts(list []string) {
	s.number(int64(len(list)))
	for _, t := range list {
		s.text(t)
	}
}

func (s sealing) pairs(m map[string]string) {
	s.number(int64(len(m)))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s.text(k)
		s.text(m[k])
	}
}

func (s sealing) time(t time.Time) { s.number(store.Micros(t)) }

func (s sealing) flag(b bool) {
	if b {
		s.number(1)
	} else {
		s.number(0)
	}
}

func (t *Token) seal(key []byte) []byte {
	s := newSeal(key, tokenSeal)
	for _, x := range []string{t.ID, t.Name, string(t.Role), t.Partner, t.Stored, t.Reason, string(t.hash)} {
		s.text(x)
	}
	for _, at := range []time.Time{t.CreatedAt, t.ExpiresAt, t.RevokedAt} {
		s.time(at)
	}
	s.texts(t.Keysets)
	s.number(int64(len(t.CIDRs)))
	for _, p := range t.CIDRs {
		s.text(p.String())
	}
	if len(t.Paths) > 0 { // rows from before there were paths have other seals else
		s.texts(t.Paths)
	}
	return s.Sum(nil)
}

// genuine reports whether a token's row is as Rotunda wrote it; if not, the
// error is a denial.
func (ts *Tokens) genuine(t *Token) error {
	if !hmac.Equal(t.seal(ts.peppers.sealKey), t.sealed) {
		return denied("tampered").of(t)
	}
	return nil
}

func (k *Key) sealed256(key []byte) []byte {
	s := newSeal(key, keySeal)
	for _, x := range []string{
		k.ID, string(k.Kind), k.Partner, k.Name, k.Environment, string(k.Class), string(k.Stored), k.Origin, string(k.Algorithm), k.PublicKey,
		k.Lineage, k.Replaces, k.ReplacedBy, k.Reason, k.ReasonText, string(k.hash), string(k.lookup), string(k.salt), string(k.sealed),
	} {
		s.text(x)
	}
	s.texts(k.Scopes)
	s.number(int64(len(k.CIDRs)))
	for _, p := range k.CIDRs {
		s.text(p.String())
	}
	s.pairs(k.Metadata)
	s.flag(k.Weak)
	for _, n := range []int64{k.Rate.Quota, k.Rate.Window.Microseconds(), k.Rate.Burst, k.PepperGen, k.Quiet.Microseconds(), k.Version} {
		s.number(n)
	}
	for _, at := range []time.Time{k.CreatedAt, k.Since, k.ExpiresAt, k.GraceEndsAt, k.WarnedAt, k.NextAt} {
		s.time(at)
	}
	return s.Sum(nil)
}

func (p *Partner) sealed256(key []byte) []byte {
	s := newSeal(key, partnerSeal)
	for _, x := range []string{p.Name, string(p.State), p.Reason, p.Signing.Tag} {
		s.text(x)
	}
	s.texts(p.Scopes)
	s.texts(p.PublishableScopes)
	s.texts(p.Signing.Components)
	s.pairs(p.Metadata)
	for _, n := range []int64{int64(p.MaxKeys), p.MaxKeyTTL.Microseconds(), int64(p.Signing.MaxAge), int64(p.Signing.Skew), p.Version} {
		s.number(n)
	}
	s.time(p.CreatedAt)
	s.time(p.Since)
	return s.Sum(nil)
}

func tampered(what string) *fault.Error {
	return fault.New(fault.ErrDenied, "tampered",
		"the row of %s is not as Rotunda wrote it: somebody else changed it in the database: restore it from a backup, and see who can write there", what)
}

// genuine reports whether the row of a key is as Rotunda wrote it; if not, the
// error is a denial, and nothing may be decided by the row.
func (k *Key) genuine() error {
	if k.tampered {
		return tampered(clip(k.Resource()))
	}
	return nil
}

// Tampered reports whether the row is not as Rotunda wrote it. Such a key can be
// looked at, and is good for nothing else.
func (k *Key) Tampered() bool { return k.tampered }

func (p *Partner) genuine() error {
	if p.tampered {
		return tampered(clip(p.Resource()))
	}
	return nil
}

// Tampered is like that of [Key].
func (p *Partner) Tampered() bool { return p.tampered }

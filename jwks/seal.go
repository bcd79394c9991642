package jwks

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// rowSeal tells rows that Rotunda wrote from rows that somebody else changed.
// Each row of keysets and signing_keys carries an HMAC-SHA-256 over what makes
// it what it is, under a key that is in the database only sealed by the KEK.
// So write access to the database is not enough to publish a key of one's own,
// to revive a revoked key, to promote a standby early, or to give one keyset
// another's name. A keyset's row also holds the seal of each of its published
// keys, so one key's row can't be put back as it once was. Not covered is what
// can only make a key leave too early (max_token_life), and a keyset put back
// with all its keys, as from a backup: the trail has that.
type rowSeal struct{ key []byte }

// members writes the seals of the published keys, as the keyset's row has them.
func (s *Keyset) members() (string, error) {
	m := make(map[string][]byte, len(s.Keys))
	for _, k := range s.Keys {
		m[k.Kid] = k.Seal
	}
	b, err := json.Marshal(m) // in order of kid
	if err != nil {
		return "", fmt.Errorf("encode the members of keyset %q: %w", s.Name, err)
	}
	return string(b), nil
}

// sealed returns the stored policy and members of a keyset with their seal.
func (s rowSeal) sealed(k *Keyset) (policy, members string, seal []byte, err error) {
	p, err := json.Marshal(k.Policy)
	if err != nil {
		return "", "", nil, fmt.Errorf("encode the policy of keyset %q: %w", k.Name, err)
	}
	if members, err = k.members(); err != nil {
		return "", "", nil, err
	}
	return string(p), members, s.ofKeyset(k, string(p), members), nil
}

var sealPlace = secret.Place{Table: "publication", Row: "1", Column: "seal_key"}

// rowSeal returns the key of the seals, from memory or from sealed, the value
// of its column as tx sees it. The first keyset makes it; before, no row is genuine.
func (ks *Keysets) rowSeal(ctx context.Context, tx *store.Tx, sealed []byte) (rowSeal, error) {
	if s := ks.seal.Load(); s != nil {
		return *s, nil
	}
	if len(sealed) == 0 {
		return rowSeal{}, nil
	}
	v, err := ks.local.Sealer.Open(ctx, sealPlace, sealed)
	if err != nil {
		return rowSeal{}, fmt.Errorf("open the key that seals keysets: %w", err)
	}
	s := rowSeal{v.Reveal()}
	v.Destroy()
	tx.AfterCommit(func() { ks.seal.Store(&s) })
	return s, nil
}

// readSeal is rowSeal for a transaction that only reads.
func (ks *Keysets) readSeal(ctx context.Context, tx *store.Tx) (rowSeal, error) {
	if s := ks.seal.Load(); s != nil {
		return *s, nil
	}
	var sealed []byte
	if err := tx.QueryRow(ctx, `SELECT seal_key FROM publication WHERE id = 1`).Scan(&sealed); err != nil {
		return rowSeal{}, fmt.Errorf("read the key that seals keysets: %w", err)
	}
	return ks.rowSeal(ctx, tx, sealed)
}

// makeSeal is readSeal for whoever makes a keyset: the first one makes the key
// too. It comes before the keyset's row is written: whoever holds rows of
// keysets does not wait for publication's.
func (ks *Keysets) makeSeal(ctx context.Context, tx *store.Tx) (s rowSeal, err error) {
	if s, err = ks.readSeal(ctx, tx); err != nil || s.key != nil {
		return s, err
	}
	// The row is locked before it is read: of two first keysets one makes the key.
	var sealed []byte
	if err := tx.QueryRow(ctx, `UPDATE publication SET served_at = served_at WHERE id = 1 RETURNING seal_key`).Scan(&sealed); err != nil {
		return s, fmt.Errorf("read the key that seals keysets: %w", err)
	}
	if s, err = ks.rowSeal(ctx, tx, sealed); err != nil || s.key != nil {
		return s, err
	}
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails (Go 1.24 and later)
	v := secret.New(key)
	defer v.Destroy()
	if sealed, err = ks.local.Sealer.Seal(ctx, sealPlace, v); err != nil {
		return s, fmt.Errorf("make the key that seals keysets: %w", err)
	}
	if err := tx.Swap(ctx, `UPDATE publication SET seal_key = $1 WHERE id = 1 AND seal_key IS NULL`, sealed); err != nil {
		return s, fmt.Errorf("keep the key that seals keysets: %w", err)
	}
	s = rowSeal{key}
	tx.AfterCommit(func() { ks.seal.Store(&s) })
	return s, nil
}

// sealing writes the parts of a row into an HMAC, each with its length in front.
type sealing struct{ h hash.Hash }

func (s rowSeal) begin(table string) sealing {
	w := sealing{hmac.New(sha256.New, s.key)}
	w.text(table)
	return w
}

func (w sealing) number(n int64) { _ = binary.Write(w.h, binary.BigEndian, n) } // a hash never fails

func (w sealing) text(s string) {
	w.number(int64(len(s)))
	_, _ = io.WriteString(w.h, s)
}

// ofKey is the seal of a signing key's row.
func (s rowSeal) ofKey(k Key) []byte {
	w := s.begin("signing_keys")
	for _, t := range []string{k.KeysetID, k.Kid, string(k.State), string(k.Algorithm), string(k.Public), k.Home, string(k.Private), k.Origin, k.Reason} {
		w.text(t)
	}
	for _, at := range []time.Time{k.CreatedAt, k.Since, k.ServedSince, k.ActivatedAt, k.DemotedAt, k.WithdrawnAt} {
		w.number(store.Micros(at))
	}
	return w.h.Sum(nil)
}

// ofKeyset is the seal of a keyset's row, with policy and members as they are stored.
func (s rowSeal) ofKeyset(k *Keyset, policy, members string) []byte {
	w := s.begin("keysets")
	for _, t := range []string{k.ID, k.Name, k.Issuer, string(k.Algorithm), policy, members} {
		w.text(t)
	}
	w.number(k.PolicyVersion)
	w.number(k.Version)
	w.number(store.Micros(k.CreatedAt))
	return w.h.Sum(nil)
}

// genuine reports whether a seal is the one that Rotunda would write.
func (s rowSeal) genuine(seal, want []byte) bool { return s.key != nil && hmac.Equal(seal, want) }

// errTampered is the error of a keyset whose row somebody else changed.
func errTampered(name string) error {
	return fault.New(fault.ErrRejected, "tampered", "the row of keyset %q was changed in the database by somebody else than Rotunda: find out who can write there, and restore it from a backup", name).On("name")
}

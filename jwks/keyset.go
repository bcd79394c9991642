package jwks

import (
	"cmp"
	"context"
	"crypto"
	"crypto/hmac"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// Key is a signing key. Its private half is only ever a sealed value or a
// reference, and is gone once the key is withdrawn.
type Key struct {
	KeysetID     string
	Kid          string
	State        State
	Algorithm    Algorithm
	Public       json.RawMessage // JWK (RFC 7517), with kid, alg and use
	Home         string          // where the private half lives: "local", or "none"
	Private      []byte          // what the home needs to sign; nil when read for display
	Origin       string          // "generated" or "imported"
	Reason       string
	MaxTokenLife time.Duration // T: longest life of any token issued under this key
	CreatedAt    time.Time
	Since        time.Time // when it entered its state
	ServedSince  time.Time // since when it is served without a break longer than the policy covers
	ActivatedAt  time.Time
	DemotedAt    time.Time
	WithdrawnAt  time.Time

	Seal []byte // see rowSeal; nil when read for display
}

// The origins of a key.
const (
	Generated = "generated"
	Imported  = "imported"
)

// noHome is the home of a key whose private half is destroyed or was never here.
const noHome = "none"

// Keyset is an issuer's set of signing keys with the policy that moves them.
type Keyset struct {
	ID            string
	Name          string
	Issuer        string
	Algorithm     Algorithm
	Policy        Policy
	PolicyVersion int64
	Version       int64 // grows by one with every change of the published set
	CreatedAt     time.Time
	NextAt        time.Time
	FallbackSince time.Time         // set while the standby signs for the active key
	LeadUntil     time.Time         // until then, documents with an earlier policy's max-age may be cached
	Keys          []Key             // the published ones: active, pending, then retiring from the newest
	Members       map[string][]byte // the seal of each published key's row; nil when read for display
	Foreign       bool              // its row was changed by somebody else: it is shown, and nothing else
	Tampered      []Key             // rows that somebody else changed: not published, but can be revoked
}

// only returns the key in a state that one key can be in at most, or nil.
func (s *Keyset) only(st State) *Key {
	for i := range s.Keys {
		if s.Keys[i].State == st {
			return &s.Keys[i]
		}
	}
	return nil
}

// Active returns the key that signs.
func (s *Keyset) Active() *Key { return s.only(Active) }

// Standby returns the pending key, or nil while a new one is being made.
func (s *Keyset) Standby() *Key { return s.only(Pending) }

func (s *Keyset) key(kid string) *Key {
	for i := range s.Keys {
		if s.Keys[i].Kid == kid {
			return &s.Keys[i]
		}
	}
	return nil
}

// arrange brings the keys into the order of published.
func (s *Keyset) arrange() {
	rank := func(k Key) int { return max(0, slices.Index([]State{Active, Pending, Retiring}, k.State)) }
	slices.SortFunc(s.Keys, func(a, b Key) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), b.DemotedAt.Compare(a.DemotedAt), cmp.Compare(a.Kid, b.Kid))
	})
}

// anyKey finds a published key, also one whose row somebody else changed.
func (s *Keyset) anyKey(kid string) *Key {
	if k := s.key(kid); k != nil {
		return k
	}
	for i := range s.Tampered {
		if s.Tampered[i].Kid == kid {
			return &s.Tampered[i]
		}
	}
	return nil
}

// forDisplay takes away what only signing needs.
func (s *Keyset) forDisplay() *Keyset {
	for _, keys := range [][]Key{s.Keys, s.Tampered} {
		for i := range keys {
			keys[i].Private, keys[i].Seal = nil, nil
		}
	}
	s.Members = nil
	return s
}

// resource is the name of a keyset, or of one of its keys, in the trail.
func (s *Keyset) resource(kid string) string {
	if kid == "" {
		return "keysets/" + s.Name
	}
	return "keysets/" + s.Name + "/keys/" + kid
}

const keysetColumns = `id, name, issuer, algorithm, policy, policy_version, version, created_at, next_at, fallback_since, lead_until, members, seal`

type scanner interface{ Scan(dest ...any) error }

func scanKeyset(row scanner, seal rowSeal) (*Keyset, error) {
	var s Keyset
	var policy, members string
	var sealed []byte
	var created, next, fallback, until int64
	err := row.Scan(&s.ID, &s.Name, &s.Issuer, &s.Algorithm, &policy, &s.PolicyVersion, &s.Version, &created, &next, &fallback, &until, &members, &sealed)
	if err != nil {
		return nil, err
	}
	s.CreatedAt, s.NextAt = store.Time(created), store.Time(next)
	s.FallbackSince, s.LeadUntil = store.Time(fallback), store.Time(until)
	if !seal.genuine(sealed, seal.ofKeyset(&s, policy, members)) {
		return &s, errTampered(s.Name)
	}
	if err := errors.Join(json.Unmarshal([]byte(policy), &s.Policy), json.Unmarshal([]byte(members), &s.Members)); err != nil {
		return nil, fmt.Errorf("read keyset %q: %w", s.Name, err)
	}
	return &s, nil
}

const keyColumns = `keyset_id, kid, state, algorithm, public_jwk, home, private, origin, reason, max_token_life, created_at, since, served_since, activated_at, demoted_at, withdrawn_at, seal`

func scanKey(row scanner) (Key, error) {
	var k Key
	var public string
	var life, created, since, served, activated, demoted, withdrawn int64
	err := row.Scan(&k.KeysetID, &k.Kid, &k.State, &k.Algorithm, &public, &k.Home, &k.Private, &k.Origin, &k.Reason, &life, &created, &since, &served, &activated, &demoted, &withdrawn, &k.Seal)
	k.Public = json.RawMessage(public)
	k.MaxTokenLife = time.Duration(life) * time.Microsecond
	k.CreatedAt, k.Since, k.ServedSince = store.Time(created), store.Time(since), store.Time(served)
	k.ActivatedAt, k.DemotedAt, k.WithdrawnAt = store.Time(activated), store.Time(demoted), store.Time(withdrawn)
	return k, err
}

// load reads a keyset and its published keys.
func (ks *Keysets) load(ctx context.Context, tx *store.Tx, name string) (*Keyset, error) {
	missing := fault.New(fault.ErrNotFound, "keyset_not_found", "keyset %q does not exist: see `rotunda keyset list`", clip(name)).On("name")
	if checkName(name) != nil {
		return nil, missing // PostgreSQL would refuse some of these as a broken query
	}
	seal, err := ks.readSeal(ctx, tx)
	if err != nil {
		return nil, err
	}
	s, err := scanKeyset(tx.QueryRow(ctx, `SELECT `+keysetColumns+` FROM keysets WHERE name = $1`, name), seal)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, missing
	}
	if err != nil {
		return nil, fmt.Errorf("read keyset %q: %w", name, err)
	}
	if err := s.loadKeys(ctx, tx, seal); err != nil {
		return nil, err
	}
	return s, nil
}

// loadKeys reads the published keys. A row that somebody else changed is set apart.
func (s *Keyset) loadKeys(ctx context.Context, tx *store.Tx, seal rowSeal) error {
	keys, err := queryKeys(ctx, tx, `SELECT `+keyColumns+` FROM signing_keys
		WHERE keyset_id = $1 AND state IN ('pending', 'active', 'retiring')
		ORDER BY CASE state WHEN 'active' THEN 0 WHEN 'pending' THEN 1 ELSE 2 END, demoted_at DESC, kid`, s.ID)
	if err != nil {
		return fmt.Errorf("read the keys of keyset %q: %w", s.Name, err)
	}
	for _, k := range keys {
		// The row must be as it was written, and the one that was written last: an
		// old row that is put back is not the one that the keyset knows.
		if seal.genuine(k.Seal, seal.ofKey(k)) && hmac.Equal(k.Seal, s.Members[k.Kid]) {
			s.Keys = append(s.Keys, k)
		} else {
			s.Tampered = append(s.Tampered, k)
		}
	}
	return nil
}

func queryKeys(ctx context.Context, tx *store.Tx, query string, args ...any) ([]Key, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var keys []Key
	for rows.Next() {
		k, err := scanKey(rows)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, rows.Err()
}

// publicJWK renders a public key as it stands in the document. An empty kid
// becomes the RFC 7638 thumbprint.
func publicJWK(pub crypto.PublicKey, alg Algorithm, kid string) (json.RawMessage, string, error) {
	jwk := jose.JSONWebKey{Key: pub, KeyID: kid, Algorithm: string(alg.JWS()), Use: "sig"}
	if kid == "" {
		sum, err := jwk.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, "", fmt.Errorf("compute the thumbprint of a %s key: %w", alg, err)
		}
		jwk.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	}
	b, err := jwk.MarshalJSON()
	return b, jwk.KeyID, err
}

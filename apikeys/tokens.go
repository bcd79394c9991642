package apikeys

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	// FreshFor is how long a verified token is believed without another look.
	FreshFor = time.Second
	// GraceFor is how long it is believed while the database does not answer.
	GraceFor = 10 * time.Second

	graceWait = time.Second // for the database, when there is a remembered token
	maxCached = 10_000
	maxLife   = 10 * 365 * 24 * time.Hour
	usedEvery = 30 * time.Second
)

// Role is what the holder of an access token may do.
type Role string

// The roles.
const (
	Admin    Role = "admin"
	Operator Role = "operator"
	Auditor  Role = "auditor"
	Gateway  Role = "gateway"
	Signer   Role = "signer"
	Manager  Role = "partner" // of one partner's keys and secrets
	Reader   Role = "reader"  // of values in the built-in store, at the paths it names
)

// Roles lists every role.
var Roles = []Role{Admin, Operator, Auditor, Gateway, Signer, Manager, Reader}

// The states of an access token. Expired is computed, not stored.
const (
	StateActive  = "active"
	StateRevoked = "revoked"
	StateExpired = "expired"
)

// Token is an access token without its value.
type Token struct {
	ID         string
	Name       string
	Role       Role
	Partner    string         // that a partner's token manages
	Keysets    []string       // that a signer or gateway may use; empty: all
	Paths      []string       // of the built-in store that a reader may read, whole or ending in "/*"; see [Token.MayRead]
	CIDRs      []netip.Prefix // from which it is accepted; empty: any
	Stored     string         // state in its row
	Reason     string
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: no end
	RevokedAt  time.Time
	LastUsedAt time.Time // to about half a minute

	hash   []byte // see mac
	sealed []byte // see seal
	gen    int64  // of the pepper

	resource string // in the trail
	asleep   bool   // its partner is suspended, as far as whoever read it looked
}

// State is the token's state at now.
func (t *Token) State(now time.Time) string {
	if t.Stored == StateActive && !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) {
		return StateExpired
	}
	return t.Stored
}

// Tokens keeps access tokens. Its methods may be called from many goroutines.
type Tokens struct {
	// Usage is told how often each token was accepted and denied; nil: nobody is.
	// It is set before the first use.
	Usage *audit.Usage

	db      *store.DB
	peppers *Peppers
	salt    [sha256.Size]byte // of the digests in the cache

	mu      sync.Mutex
	cache   map[string]*cached   // by id
	revoked int64                // grows with each revocation, and each Forget, in this process
	used    map[string]time.Time // last use that is not written yet
	moved   map[string]movedTo   // hashes under a newer pepper that are not written yet

	writtenAt time.Time // only Pass uses it
}

type cached struct {
	token *Token
	seen  time.Duration                     // DB.Tick when it was read
	proof atomic.Pointer[[sha256.Size]byte] // of the value that is the token's; nil: none was proven
}

// movedTo is what a token is hashed as under a newer pepper.
type movedTo struct {
	from, to int64
	hash     []byte
}

// Started reports whether a database holds secrets already: whether New was
// ever called on it.
func Started(ctx context.Context, db *store.DB) (yes bool, err error) {
	err = db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM peppers)`).Scan(&yes)
	})
	if err != nil {
		return false, fmt.Errorf("look for the first pepper: %w", err)
	}
	return yes, nil
}

// NewTokens returns the access tokens of a database.
func NewTokens(db *store.DB, peppers *Peppers) *Tokens {
	ts := &Tokens{db: db, peppers: peppers, cache: map[string]*cached{}, used: map[string]time.Time{}, moved: map[string]movedTo{}}
	_, _ = rand.Read(ts.salt[:]) // never fails
	return ts
}

// Create describes a token to be made.
type Create struct {
	Name      string
	Role      Role
	Partner   string // with role partner
	Keysets   []string
	Paths     []string // with role reader
	CIDRs     []string
	ExpiresIn time.Duration // 0: no end
	Once      store.Once
}

// Create makes an access token and returns its value, which is nowhere else.
// With an idempotency key that was used before it fails with fault.ErrExists:
// a value is shown once.
func (ts *Tokens) Create(ctx context.Context, req Create) (*Token, secret.Value, error) {
	t, k, v, err := ts.draft(req)
	if err != nil {
		return nil, secret.Value{}, fmt.Errorf("create token: %w", err)
	}
	err = ts.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		prior, err := tx.Once(ctx, req.Once, t.ID)
		if err != nil {
			return err
		}
		if prior != "" {
			return fault.New(fault.ErrExists, "value_shown_once", "an earlier request with this idempotency key made token %s, whose value is shown once: if it was lost, revoke that token and create another", prior).On("idempotency_key")
		}
		return ts.insert(ctx, tx, t, k)
	})
	if err != nil {
		v.Destroy()
		return nil, secret.Value{}, fmt.Errorf("create token %q: %w", req.Name, err)
	}
	return t, v, nil
}

// Bootstrap makes the first token, an admin's, when there is no token at all.
// keep is called with its value before the token is committed, to write it
// where the operator finds it; made says whether there was anything to do.
func (ts *Tokens) Bootstrap(ctx context.Context, keep func(secret.Value) error) (made bool, err error) {
	t, k, v, err := ts.draft(Create{Name: "bootstrap", Role: Admin})
	if err != nil {
		return false, err
	}
	defer v.Destroy()
	err = ts.db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		made = false
		// Replicas that start together take turns. The count is a statement of
		// its own: one that had waited for the lock would not see what the
		// winner committed meanwhile.
		if err := takeTurns(ctx, tx); err != nil {
			return err
		}
		var n int64
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM access_tokens`).Scan(&n); err != nil || n > 0 {
			return err
		}
		made = true
		if err := keep(v); err != nil {
			return err
		}
		return ts.insert(ctx, tx, t, k)
	})
	if err != nil {
		return false, fmt.Errorf("make the first admin token: %w", err)
	}
	return made, nil
}

// takeTurns makes transactions that decide by counting tokens run one after the
// other, by the lock on a row that is always there.
func takeTurns(ctx context.Context, tx *store.Tx) error {
	return tx.Swap(ctx, `UPDATE peppers SET created_at = created_at WHERE gen = 1`)
}

func (ts *Tokens) draft(req Create) (*Token, keyString, secret.Value, error) {
	fail := func(err error) (*Token, keyString, secret.Value, error) {
		return nil, keyString{}, secret.Value{}, err
	}
	name := strings.TrimSpace(req.Name)
	if name == "" || len(name) > 128 || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fail(fault.Invalid("name", "bad_name", "a token's name must be 1 to 128 bytes of UTF-8 without control characters"))
	}
	if !slices.Contains(Roles, req.Role) {
		return fail(fault.Invalid("role", "unknown_role", "role %q is unknown: use one of %v", req.Role, Roles))
	}
	if len(req.Keysets) > 0 && req.Role != Signer && req.Role != Gateway {
		return fail(fault.Invalid("keysets", "keysets_not_for_role", "a token of role %s is not limited to keysets: leave them out, or use role %s", req.Role, Signer))
	}
	if req.ExpiresIn < 0 || req.ExpiresIn > maxLife {
		return fail(fault.Invalid("expires_in", "duration_range", "expires_in %s is outside 0 to %s", req.ExpiresIn, maxLife))
	}
	if len(req.Keysets) > 64 || len(req.CIDRs) > 64 {
		return fail(fault.Invalid("cidrs", "too_many", "a token has at most 64 keysets and 64 address ranges"))
	}
	for _, k := range req.Keysets {
		if k == "" || len(k) > 63 || !utf8.ValidString(k) {
			return fail(fault.Invalid("keysets", "bad_name", "a keyset's name has 1 to 63 characters"))
		}
	}
	if err := checkPaths(req.Role, req.Paths); err != nil {
		return fail(err)
	}
	t := &Token{Name: name, Role: req.Role, Keysets: slices.Clone(req.Keysets), Paths: slices.Clone(req.Paths), Stored: StateActive}
	for _, c := range req.CIDRs {
		p, err := parsePrefix(c)
		if err != nil {
			return fail(err)
		}
		if p.Bits() == 0 && req.Role == Gateway {
			return fail(fault.Invalid("cidrs", "cidr_too_wide", "%s is every address, and would take the rate limit off for all: name the gateway's own range", p))
		}
		t.CIDRs = append(t.CIDRs, p)
	}
	if (req.Role == Manager) != (req.Partner != "") {
		return fail(fault.Invalid("partner", "partner_and_role", "a token of role %s names the partner that it manages, and no other token does", Manager))
	}
	t.Partner = req.Partner
	k, v := newKeyString(string(req.Role))
	gen, pepper := ts.peppers.current()
	t.ID, t.gen = k.id, gen
	t.hash = mac(pepper, "", k.secret)
	if req.ExpiresIn > 0 {
		t.ExpiresAt = ts.db.Now().Add(req.ExpiresIn).Truncate(time.Microsecond) // as it is stored
	}
	return t, k, v, nil
}

// parsePrefix reads a CIDR range or a single address.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, aerr := netip.ParseAddr(s)
		if aerr != nil || a.Zone() != "" {
			return netip.Prefix{}, fault.Invalid("cidrs", "bad_cidr", "%q is not an address range: use for example 203.0.113.0/24 or 2001:db8::/32", s[:min(len(s), 64)])
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fault.Invalid("cidrs", "bad_cidr", "%q is an IPv4 range in IPv6 form: write it as IPv4", s)
	}
	return p.Masked(), nil
}

func (ts *Tokens) insert(ctx context.Context, tx *store.Tx, t *Token, k keyString) error {
	t.CreatedAt = tx.Now
	cidrs := make([]string, len(t.CIDRs))
	for i, p := range t.CIDRs {
		cidrs[i] = p.String()
	}
	keysets, err := json.Marshal(append([]string{}, t.Keysets...))
	if err != nil {
		return err
	}
	ranges, err := json.Marshal(cidrs)
	if err != nil {
		return err
	}
	paths, err := json.Marshal(append([]string{}, t.Paths...))
	if err != nil {
		return err
	}
	if t.Partner != "" {
		if err := havePartner(ctx, tx, t.Partner); err != nil {
			return err
		}
	}
	if err := ts.peppers.check(ctx, tx, t.gen); err != nil {
		return err
	}
	t.sealed = t.seal(ts.peppers.sealKey)
	_, err = tx.Exec(ctx, `INSERT INTO access_tokens (`+tokenColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		k.id, t.Name, t.Role, t.Partner, string(keysets), string(ranges), t.hash, t.sealed, t.gen, t.Stored, "", store.Micros(t.CreatedAt), store.Micros(t.ExpiresAt), 0, 0, string(paths))
	if err != nil {
		return err
	}
	detail := map[string]any{"name": t.Name, "role": string(t.Role)}
	if len(t.Keysets) > 0 {
		detail["keysets"] = t.Keysets
	}
	if len(t.Paths) > 0 {
		detail["paths"] = t.Paths
	}
	if len(cidrs) > 0 {
		detail["cidrs"] = cidrs
	}
	if !t.ExpiresAt.IsZero() {
		detail["expires_at"] = t.ExpiresAt.Format(time.RFC3339)
	}
	return audit.Record(ctx, tx, audit.Event{Action: "token.create", Resource: resource(t.ID), Partner: t.Partner, Detail: detail})
}

// resource is the name of a token in the trail.
func resource(id string) string { return "tokens/" + id }

const tokenColumns = `id, name, role, partner, keysets, cidrs, hash, seal, pepper_gen, state, reason, created_at, expires_at, revoked_at, last_used_at, paths`

func scanToken(row interface{ Scan(...any) error }) (*Token, error) {
	var t Token
	var keysets, cidrs, paths string
	var created, expires, revoked, used int64
	err := row.Scan(&t.ID, &t.Name, &t.Role, &t.Partner, &keysets, &cidrs, &t.hash, &t.sealed, &t.gen, &t.Stored, &t.Reason, &created, &expires, &revoked, &used, &paths)
	if err != nil {
		return nil, err
	}
	t.resource = resource(t.ID)
	t.CreatedAt, t.ExpiresAt, t.RevokedAt, t.LastUsedAt = store.Time(created), store.Time(expires), store.Time(revoked), store.Time(used)
	if err := errors.Join(json.Unmarshal([]byte(keysets), &t.Keysets), json.Unmarshal([]byte(cidrs), &t.CIDRs), json.Unmarshal([]byte(paths), &t.Paths)); err != nil {
		return nil, fmt.Errorf("read token %s: %w", t.ID, err)
	}
	return &t, nil
}

func read(ctx context.Context, tx *store.Tx, id string) (*Token, error) {
	t, err := scanToken(tx.QueryRow(ctx, `SELECT `+tokenColumns+` FROM access_tokens WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.ErrNotFound, "token_not_found", "token %q does not exist: see `rotunda token list`", id[:min(len(id), 64)]).On("id")
	}
	return t, err
}

// usable calls f for each token of a role that would be accepted now.
func (ts *Tokens) usable(ctx context.Context, tx *store.Tx, role Role, f func(*Token)) error {
	rows, err := tx.Query(ctx, `SELECT `+tokenColumns+` FROM access_tokens WHERE role = $1 AND state = 'active'`, role)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		t, err := scanToken(rows)
		if err != nil {
			return err
		}
		if t.State(tx.Now) == StateActive && ts.genuine(t) == nil {
			f(t)
		}
	}
	return rows.Err()
}

// List returns up to limit tokens, newest first, and the page to continue at.
func (ts *Tokens) List(ctx context.Context, pageToken string, limit int) (tokens []*Token, next string, err error) {
	from, err := parsePage(pageToken)
	if err != nil {
		return nil, "", fmt.Errorf("list tokens: %w", err)
	}
	err = ts.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		tokens = nil
		rows, err := tx.Query(ctx, `SELECT `+tokenColumns+` FROM access_tokens
			WHERE created_at < $1 OR created_at = $1 AND id > $2 ORDER BY created_at DESC, id LIMIT $3`, from.at, from.id, limit+1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			t, err := scanToken(rows)
			if err != nil {
				return err
			}
			tokens = append(tokens, t)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, "", fmt.Errorf("list tokens: %w", err)
	}
	if len(tokens) > limit {
		tokens = tokens[:limit]
		last := tokens[limit-1]
		next = page{store.Micros(last.CreatedAt), last.ID}.String()
	}
	return tokens, next, nil
}

// Revoke ends a token's life. Revoking the last usable admin token is refused:
// nobody could make another.
func (ts *Tokens) Revoke(ctx context.Context, id, reason string) (*Token, error) {
	var t *Token
	err := ts.db.Update(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		// Else two revocations could take the last two admins; and a row that is
		// hashed anew meanwhile would get the wrong seal.
		if err := takeTurns(ctx, tx); err != nil {
			return err
		}
		if t, err = read(ctx, tx, id); err != nil {
			return err
		}
		if t.Stored == StateRevoked {
			return fault.New(fault.ErrTransition, "already_revoked", "it was revoked at %s", t.RevokedAt.Format(time.RFC3339))
		}
		if t.Role == Admin && t.State(tx.Now) == StateActive {
			others := 0
			err := ts.usable(ctx, tx, Admin, func(o *Token) {
				if o.ID != id {
					others++
				}
			})
			if err != nil {
				return err
			}
			if others == 0 {
				return fault.New(fault.ErrTransition, "last_admin", "it is the last admin token: create another before you revoke it")
			}
		}
		t.Stored, t.Reason, t.RevokedAt = StateRevoked, reason, tx.Now
		t.sealed = t.seal(ts.peppers.sealKey)
		err = tx.Swap(ctx, `UPDATE access_tokens SET state = $1, reason = $2, revoked_at = $3, seal = $4 WHERE id = $5 AND state = $6`,
			t.Stored, t.Reason, store.Micros(t.RevokedAt), t.sealed, id, StateActive)
		if err != nil {
			return err
		}
		return audit.Record(ctx, tx, audit.Event{Action: "token.revoke", Resource: resource(id), Partner: t.Partner, Reason: reason, Detail: map[string]any{"name": t.Name, "role": string(t.Role)}})
	})
	if err != nil {
		return nil, fmt.Errorf("revoke token %s: %w", id[:min(len(id), 64)], err)
	}
	ts.mu.Lock()
	delete(ts.cache, id)
	ts.revoked++
	ts.mu.Unlock()
	return t, nil
}

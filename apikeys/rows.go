package apikeys

import (
	"context"
	"crypto/hmac"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// keyColumns are the columns that scanKey reads, of partner_keys or an alias k.
const keyColumns = `id, kind, partner, name, environment, class, state, scopes, cidrs, rate_quota, rate_window, rate_burst, metadata, origin, weak, algorithm,
	hash, lookup, salt, sealed, public_key, pepper_gen, lineage, replaces, replaced_by, reason, reason_text,
	created_at, since, expires_at, grace_ends_at, quiet, warned_at, next_at, first_used_at, last_used_at, version, seal`

// scanKey reads a row of keyColumns. Who decides by it asks [Key.genuine] first.
func (p *Peppers) scanKey(row interface{ Scan(...any) error }) (*Key, error) {
	var k Key
	var scopes, cidrs, metadata string
	var window, quiet int64
	var created, since, expires, grace, warned, next, first, last int64
	err := row.Scan(&k.ID, &k.Kind, &k.Partner, &k.Name, &k.Environment, &k.Class, &k.Stored, &scopes, &cidrs, &k.Rate.Quota, &window, &k.Rate.Burst, &metadata,
		&k.Origin, &k.Weak, &k.Algorithm, &k.hash, &k.lookup, &k.salt, &k.sealed, &k.PublicKey, &k.PepperGen, &k.Lineage, &k.Replaces, &k.ReplacedBy, &k.Reason, &k.ReasonText,
		&created, &since, &expires, &grace, &quiet, &warned, &next, &first, &last, &k.Version, &k.seal)
	if err != nil {
		return nil, err
	}
	k.Rate.Window, k.Quiet = time.Duration(window)*time.Microsecond, time.Duration(quiet)*time.Microsecond
	for _, t := range []struct {
		to *time.Time
		us int64
	}{
		{&k.CreatedAt, created}, {&k.Since, since}, {&k.ExpiresAt, expires}, {&k.GraceEndsAt, grace},
		{&k.WarnedAt, warned}, {&k.NextAt, next}, {&k.FirstUsedAt, first}, {&k.LastUsedAt, last},
	} {
		*t.to = store.Time(t.us)
	}
	good := reads(scopes, &k.Scopes) && reads(cidrs, &k.CIDRs) && reads(metadata, &k.Metadata)
	k.tampered = !good || !hmac.Equal(k.sealed256(p.sealKey), k.seal)
	return &k, nil
}

// reads reports whether a column holds JSON. What does not was not written by Rotunda.
func reads(column string, into any) bool { return json.Unmarshal([]byte(column), into) == nil }

// readKey reads the row of a key of a kind, and of a partner unless partner is "".
// Another's row never leaves the database: to read it and then refuse it would take
// longer than to find none.
func (ks *Keys) readKey(ctx context.Context, tx *store.Tx, kind Kind, partner, id string) (*Key, error) {
	k, err := ks.peppers.scanKey(tx.QueryRow(ctx, `SELECT `+keyColumns+` FROM partner_keys WHERE id = $1 AND kind = $2 AND ($3 = '' OR partner = $3)`, id, kind, partner))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, keyNotFound(kind, id)
	}
	return k, err
}

func keyNotFound(kind Kind, id string) error {
	return fault.New(fault.ErrNotFound, string(kind)+"_not_found", "%s %q does not exist: see `rotunda %s list`", kind.words(), clip(id), kind.command()).On("id")
}

func (k Kind) words() string {
	if k == RequestSecret {
		return "request secret"
	}
	return "API key"
}

func (k Kind) command() string {
	if k == RequestSecret {
		return "secret"
	}
	return "key"
}

// insertKey writes the row of a new key.
func (ks *Keys) insertKey(ctx context.Context, tx *store.Tx, k *Key) error {
	j, err := keyJSON(k)
	if err != nil {
		return err
	}
	k.seal = k.sealed256(ks.peppers.sealKey)
	_, err = tx.Exec(ctx, `INSERT INTO partner_keys (`+keyColumns+`) VALUES (
		$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38)`,
		k.ID, k.Kind, k.Partner, k.Name, k.Environment, k.Class, k.Stored, j.scopes, j.cidrs, k.Rate.Quota, k.Rate.Window.Microseconds(), k.Rate.Burst, j.metadata,
		k.Origin, k.Weak, k.Algorithm, k.hash, k.lookup, k.salt, k.sealed, k.PublicKey, k.PepperGen, k.Lineage, k.Replaces, k.ReplacedBy, k.Reason, k.ReasonText,
		store.Micros(k.CreatedAt), store.Micros(k.Since), store.Micros(k.ExpiresAt), store.Micros(k.GraceEndsAt), k.Quiet.Microseconds(), store.Micros(k.WarnedAt), store.Micros(k.NextAt),
		0, 0, k.Version, k.seal)
	if store.IsUnique(err, "partner_keys_secret_name", "partner_keys.partner, partner_keys.name") {
		return nameTaken(k.Name)
	}
	return err
}

func nameTaken(name string) error {
	return fault.New(fault.ErrExists, "name_taken", "there is a request secret %q: roll it, or revoke it first", name).On("name")
}

// writeKey writes all that may change of a row, but for its use, if it still has
// the version that k has; k gets the next one.
func (ks *Keys) writeKey(ctx context.Context, tx *store.Tx, k *Key) error {
	j, err := keyJSON(k)
	if err != nil {
		return err
	}
	seen := k.Version
	k.Version++
	k.seal = k.sealed256(ks.peppers.sealKey)
	return tx.Swap(ctx, `UPDATE partner_keys SET name = $1, state = $2, scopes = $3, cidrs = $4, rate_quota = $5, rate_window = $6, rate_burst = $7, metadata = $8,
			hash = $9, lookup = $10, sealed = $11, pepper_gen = $12, replaced_by = $13, reason = $14, reason_text = $15, since = $16,
			grace_ends_at = $17, quiet = $18, warned_at = $19, next_at = $20, version = $21, seal = $22
		WHERE id = $23 AND version = $24`,
		k.Name, k.Stored, j.scopes, j.cidrs, k.Rate.Quota, k.Rate.Window.Microseconds(), k.Rate.Burst, j.metadata,
		k.hash, k.lookup, k.sealed, k.PepperGen, k.ReplacedBy, k.Reason, k.ReasonText, store.Micros(k.Since),
		store.Micros(k.GraceEndsAt), k.Quiet.Microseconds(), store.Micros(k.WarnedAt), store.Micros(k.NextAt), k.Version, k.seal,
		k.ID, seen)
}

type keyText struct{ scopes, cidrs, metadata string }

func keyJSON(k *Key) (out keyText, err error) {
	cidrs := make([]string, len(k.CIDRs))
	for i, p := range k.CIDRs {
		cidrs[i] = p.String()
	}
	for _, x := range []struct {
		to   *string
		from any
	}{{&out.scopes, append([]string{}, k.Scopes...)}, {&out.cidrs, cidrs}, {&out.metadata, orEmpty(k.Metadata)}} {
		b, err := json.Marshal(x.from)
		if err != nil {
			return keyText{}, fmt.Errorf("encode key %s: %w", k.ID, err)
		}
		*x.to = string(b)
	}
	return out, nil
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

const partnerColumns = `name, state, reason, scopes, publishable_scopes, max_keys, max_key_ttl, signing_policy, metadata, created_at, since, version, seal`

// scanPartner reads a row of partnerColumns. Who decides by it asks
// [Partner.genuine] first.
func (p *Peppers) scanPartner(row interface{ Scan(...any) error }) (*Partner, error) {
	var a Partner
	var scopes, publishable, signing, metadata string
	var ttl, created, since int64
	err := row.Scan(&a.Name, &a.State, &a.Reason, &scopes, &publishable, &a.MaxKeys, &ttl, &signing, &metadata, &created, &since, &a.Version, &a.seal)
	if err != nil {
		return nil, err
	}
	a.MaxKeyTTL, a.CreatedAt, a.Since = time.Duration(ttl)*time.Microsecond, store.Time(created), store.Time(since)
	good := reads(scopes, &a.Scopes) && reads(publishable, &a.PublishableScopes) && reads(signing, &a.Signing) && reads(metadata, &a.Metadata)
	a.tampered = !good || !hmac.Equal(a.sealed256(p.sealKey), a.seal)
	return &a, nil
}

func (p *Peppers) readPartner(ctx context.Context, tx *store.Tx, name string) (*Partner, error) {
	a, err := p.scanPartner(tx.QueryRow(ctx, `SELECT `+partnerColumns+` FROM partners WHERE name = $1`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, partnerNotFound(name)
	}
	return a, err
}

func partnerNotFound(name string) error {
	return fault.New(fault.ErrNotFound, "partner_not_found", "partner %q does not exist: see `rotunda partner list`", clip(name)).On("partner")
}

// havePartner fails with fault.ErrNotFound when there is no such partner.
func havePartner(ctx context.Context, tx *store.Tx, name string) error {
	var there bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM partners WHERE name = $1)`, name).Scan(&there); err != nil {
		return err
	}
	if !there {
		return partnerNotFound(name)
	}
	return nil
}

// clip shortens what an error quotes.
func clip(s string) string { return s[:min(len(s), 64)] }

// page is a place in a list that is ordered by time, newest first, and id.
type page struct {
	at int64
	id string
}

var firstPage = page{at: 1<<63 - 1}

func parsePage(token string) (page, error) {
	if token == "" {
		return firstPage, nil
	}
	raw, _ := base64.RawURLEncoding.DecodeString(token) // what it can't read is no number either
	at, id, ok := strings.Cut(string(raw), " ")
	n, err := strconv.ParseInt(at, 10, 64)
	if err != nil || !ok || !utf8.ValidString(id) || strings.ContainsRune(id, 0) {
		return page{}, fault.Invalid("page_token", "bad_page_token", "the page token is not one that Rotunda gave: start from the first page")
	}
	return page{n, id}, nil
}

func (p page) String() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(p.at, 10) + " " + p.id))
}

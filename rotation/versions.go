package rotation

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
)

// versionMoves are the moves between the states of a version. A version that is made is staged.
var versionMoves = map[VersionState][]VersionState{
	Staged:   {Current, Previous, Retired}, // published; given up though it may be accepted; refused by the target, or taken back
	Current:  {Previous},
	Previous: {Current, Retired}, // rolled back to; ended
	Retired:  {},
}

const versionColumns = `credential, generation, rotation, state, account, target_id, sealed, created_at, since, grace_ends_at, seal`

func (v *CredentialVersion) sealParts() []any {
	sum := sha256.Sum256(v.sealed)
	return []any{v.Credential, v.Generation, v.Rotation, string(v.State), v.Account, v.TargetID, sum[:], v.CreatedAt, v.Since, v.GraceEndsAt}
}

func (v *CredentialVersion) place() secret.Place {
	return secret.Place{Table: "credential_versions", Row: v.Credential + "/" + strconv.FormatInt(v.Generation, 10), Column: "sealed"}
}

// Tampered reports whether the row is not as Rotunda wrote it. Such a version can be looked
// at, and is good for nothing else.
func (v *CredentialVersion) Tampered() bool { return v.tampered }

func (v *CredentialVersion) genuine() error {
	if v.tampered {
		return errTampered("version", v.Credential+"/"+strconv.FormatInt(v.Generation, 10))
	}
	return nil
}

// held is the version as a target knows it, without its value.
func (v *CredentialVersion) held() providers.Held {
	return providers.Held{Generation: v.Generation, Rotation: v.Rotation, Account: v.Account, ID: v.TargetID}
}

// sealVersion puts a value into v. No fields: no value.
func sealVersion(ctx context.Context, sealer *secret.Sealer, v *CredentialVersion, f providers.Fields) (err error) {
	v.sealed = nil
	if len(f) == 0 {
		return nil
	}
	text, err := f.Encode()
	if err != nil {
		return err
	}
	defer text.Destroy()
	v.sealed, err = sealer.Seal(ctx, v.place(), text)
	return err
}

// openVersion is the value of a version; nil where there is none, or no more.
func openVersion(ctx context.Context, sealer *secret.Sealer, v *CredentialVersion) (providers.Fields, error) {
	if err := v.genuine(); err != nil {
		return nil, err
	}
	if v.sealed == nil {
		return nil, nil
	}
	text, err := sealer.Open(ctx, v.place(), v.sealed)
	if err != nil {
		return nil, err
	}
	defer text.Destroy()
	return providers.Decode(text)
}

// readVersions returns up to limit versions of a credential, the newest first. A row
// that is not ours is marked as tampered.
func readVersions(ctx context.Context, tx *store.Tx, key rowKey, credential string, limit int) ([]*CredentialVersion, error) {
	return queryVersions(ctx, tx, key, `WHERE credential = $1 ORDER BY generation DESC LIMIT $2`, credential, limit)
}

// readLiveVersions returns the versions that may be accepted, the newest first.
func readLiveVersions(ctx context.Context, tx *store.Tx, key rowKey, credential string) ([]*CredentialVersion, error) {
	return queryVersions(ctx, tx, key, `WHERE credential = $1 AND state <> 'retired' ORDER BY generation DESC LIMIT 1000`, credential)
}

// readVersion returns one version, or fault.ErrNotFound; one whose row is not ours is fault.ErrDenied.
func readVersion(ctx context.Context, tx *store.Tx, key rowKey, credential string, generation int64) (*CredentialVersion, error) {
	list, err := queryVersions(ctx, tx, key, `WHERE credential = $1 AND generation = $2`, credential, generation)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fault.New(fault.ErrNotFound, "version_not_found", "credential %q has no version %d", clip(credential), generation)
	}
	return list[0], list[0].genuine()
}

func queryVersions(ctx context.Context, tx *store.Tx, key rowKey, where string, args ...any) (list []*CredentialVersion, err error) {
	rows, err := tx.Query(ctx, `SELECT `+versionColumns+` FROM credential_versions `+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var v CredentialVersion
		var created, since, ends int64
		var seal []byte
		if err := rows.Scan(&v.Credential, &v.Generation, &v.Rotation, &v.State, &v.Account, &v.TargetID, &v.sealed, &created, &since, &ends, &seal); err != nil {
			return nil, err
		}
		v.CreatedAt, v.Since, v.GraceEndsAt = store.Time(created), store.Time(since), store.Time(ends)
		v.tampered = !genuineRow(key, seal, "credential_versions", v.sealParts()...)
		list = append(list, &v)
	}
	if err := rows.Err(); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	return list, nil
}

// insertVersion writes a new version, which is staged.
func insertVersion(ctx context.Context, tx *store.Tx, key rowKey, v *CredentialVersion) error {
	v.State, v.CreatedAt, v.Since = Staged, tx.Now, tx.Now
	_, err := tx.Exec(ctx, `INSERT INTO credential_versions (`+versionColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		v.Credential, v.Generation, v.Rotation, string(v.State), v.Account, v.TargetID, v.sealed, store.Micros(v.CreatedAt), store.Micros(v.Since), store.Micros(v.GraceEndsAt),
		sealRow(key, "credential_versions", v.sealParts()...))
	if err != nil {
		return fmt.Errorf("write version %d of credential %q: %w", v.Generation, v.Credential, err)
	}
	return nil
}

// moveVersion brings a version into another state. One that is retired loses its value for good.
func moveVersion(ctx context.Context, tx *store.Tx, key rowKey, v *CredentialVersion, to VersionState) error {
	if v.State == to {
		return nil
	}
	if !slices.Contains(versionMoves[v.State], to) {
		return fault.New(fault.ErrTransition, "bad_transition", "version %d of credential %q is %s: it can't become %s", v.Generation, v.Credential, v.State, to)
	}
	from := v.State
	v.State, v.Since = to, tx.Now
	if to == Retired {
		v.sealed = nil
	}
	return writeVersion(ctx, tx, key, v, from)
}

// writeVersion writes a version that was in state from.
func writeVersion(ctx context.Context, tx *store.Tx, key rowKey, v *CredentialVersion, from VersionState) error {
	if err := v.genuine(); err != nil {
		return err
	}
	err := tx.Swap(ctx, `UPDATE credential_versions SET rotation = $1, state = $2, account = $3, target_id = $4, sealed = $5, since = $6, grace_ends_at = $7, seal = $8
		WHERE credential = $9 AND generation = $10 AND state = $11`,
		v.Rotation, string(v.State), v.Account, v.TargetID, v.sealed, store.Micros(v.Since), store.Micros(v.GraceEndsAt), sealRow(key, "credential_versions", v.sealParts()...),
		v.Credential, v.Generation, string(from))
	if err != nil {
		return fmt.Errorf("version %d of credential %q to %s: %w", v.Generation, v.Credential, v.State, err)
	}
	return nil
}

// Values are the values of a credential that are sealed with us, the newest first, as its target
// knows them. They are for drills, which prove that no crash loses one; nothing else shall
// ask for them.
func (rs *Rotations) Values(ctx context.Context, credential string) (held []providers.Held, err error) {
	var list []*CredentialVersion
	err = rs.db.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		list, err = readLiveVersions(ctx, tx, rs.systems.key, credential)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the values of credential %q: %w", clip(credential), err)
	}
	for _, v := range list {
		h := v.held()
		if h.Fields, err = openVersion(ctx, rs.sealer, v); err != nil {
			return nil, fmt.Errorf("open the values of credential %q: %w", clip(credential), err)
		}
		held = append(held, h)
	}
	return held, nil
}

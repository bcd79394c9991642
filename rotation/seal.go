package rotation

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// rowKey makes the seals of rows. It is made once per database and kept there, sealed. With
// it nobody who may write to the database can redirect a credential, a path or an address
// unnoticed: a row whose seal is not ours is used for nothing, and says so.
type rowKey struct{ key []byte }

var rowKeyPlace = secret.Place{Table: "rotation_key", Row: "1", Column: "seal_key"}

const rowKeySize = 32

// openRowKey returns the key of a database, and makes it at the first start. Two processes
// that start together agree on one.
func openRowKey(ctx context.Context, db *store.DB, sealer *secret.Sealer) (k rowKey, err error) {
	var sealed []byte
	read := func(ctx context.Context, tx *store.Tx) error {
		err := tx.QueryRow(ctx, `SELECT seal_key FROM rotation_key WHERE id = 1`).Scan(&sealed)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		return err
	}
	if err := db.View(ctx, read); err != nil {
		return k, fmt.Errorf("read the key that seals the rows of credentials: %w", err)
	}
	if sealed == nil {
		fresh := make([]byte, rowKeySize)
		defer clear(fresh)
		_, _ = rand.Read(fresh) // never fails: it crashes the program instead
		v := secret.New(fresh)
		defer v.Destroy()
		mine, err := sealer.Seal(ctx, rowKeyPlace, v)
		if err != nil {
			return k, err
		}
		err = db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO rotation_key (id, seal_key) VALUES (1, $1) ON CONFLICT (id) DO NOTHING`, mine); err != nil {
				return err
			}
			return read(ctx, tx)
		})
		if err != nil {
			return k, fmt.Errorf("keep the key that seals the rows of credentials: %w", err)
		}
	}
	v, err := sealer.Open(ctx, rowKeyPlace, sealed)
	if err != nil {
		return k, err
	}
	defer v.Destroy()
	return rowKey{v.Reveal()}, nil
}

// sealRow is the HMAC-SHA-256 of all that a row says, each part with its kind and length in
// front. Parts are string (and named strings), int64, int, bool, []byte, time.Time,
// time.Duration, []string and map[string]string; anything else is a mistake of the program.
func sealRow(key rowKey, table string, parts ...any) []byte {
	h := hmac.New(sha256.New, key.key)
	number := func(kind byte, n int64) {
		var b [9]byte
		b[0] = kind
		binary.BigEndian.PutUint64(b[1:], uint64(n))
		h.Write(b[:])
	}
	text := func(s string) {
		number('s', int64(len(s)))
		_, _ = io.WriteString(h, s) // a hash never fails
	}
	text(table)
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			text(p)
		case []byte:
			text(string(p))
		case int64:
			number('n', p)
		case int:
			number('n', int64(p))
		case bool:
			if p {
				number('b', 1)
			} else {
				number('b', 0)
			}
		case time.Time:
			number('t', store.Micros(p))
		case time.Duration:
			number('d', p.Microseconds())
		case []string:
			number('l', int64(len(p)))
			for _, s := range p {
				text(s)
			}
		case map[string]string:
			number('m', int64(len(p)))
			for _, name := range slices.Sorted(maps.Keys(p)) {
				text(name)
				text(p[name])
			}
		default:
			v := reflect.ValueOf(p)
			if v.Kind() != reflect.String {
				panic(fmt.Sprintf("rotation: a row of %s is sealed with a %T", table, p))
			}
			text(v.String())
		}
	}
	return h.Sum(nil)
}

// genuineRow says whether seal is what sealRow gives for the row, in constant time.
func genuineRow(key rowKey, seal []byte, table string, parts ...any) bool {
	return len(key.key) == rowKeySize && hmac.Equal(seal, sealRow(key, table, parts...))
}

// errTampered is the error of a row that somebody else changed. what: "credential", "store".
func errTampered(what, name string) error {
	return fault.New(fault.ErrDenied, "tampered",
		"the row of %s %q is not as Rotunda wrote it: somebody else changed it in the database: restore it from a backup, and see who can write there", what, clip(name))
}

package jwks

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// BenchmarkSign compares a token signed in process with the signature alone,
// by a key of the same kind on all cores.
func BenchmarkSign(b *testing.B) {
	db := storetest.SQLite(b)
	ks := New(Config{DB: db, Local: newLocal(b)})
	for _, alg := range Algorithms {
		name := strings.ToLower(string(alg))
		_, err := ks.Create(b.Context(), Create{Name: name, Issuer: "https://auth.example.com/" + name, Algorithm: string(alg), Policy: DefaultPolicy()})
		if err != nil {
			b.Fatal(err)
		}
		req := Sign{Name: name, Claims: []byte(`{"sub":"order-7","aud":"ledger"}`)}
		first, err := ks.Sign(b.Context(), req)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(string(alg)+"/token", func(b *testing.B) {
			b.ReportAllocs()
			ctx := b.Context()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := ks.Sign(ctx, req); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
		b.Run(string(alg)+"/crypto", func(b *testing.B) {
			key, err := alg.generate()
			if err != nil {
				b.Fatal(err)
			}
			input := []byte(first.Token[:strings.LastIndexByte(first.Token, '.')])
			hash, opts := alg.floor()
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					in := input
					if hash != 0 {
						in = digest(hash, input)
					}
					if _, err := key.Sign(rand.Reader, in, opts); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// floor is what crypto needs to know to make an algorithm's signature.
func (a Algorithm) floor() (crypto.Hash, crypto.SignerOpts) {
	if a == Ed25519 {
		return 0, crypto.Hash(0)
	}
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[string(a[2:])]
	if strings.HasPrefix(string(a), "PS") {
		return hash, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return hash, hash
}

// BenchmarkPass is the pass that runs once a second, with nothing due.
// "start" is the first refresh of a process: it reads everything.
func BenchmarkPass(b *testing.B) {
	for _, dialect := range []string{"sqlite", "postgres"} {
		for _, keysets := range []int{0, 1_000, 10_000} {
			name := fmt.Sprintf("%s/keysets=%d", dialect, keysets)
			b.Run(name, func(b *testing.B) {
				url := storetest.SQLiteURL
				if dialect == "postgres" {
					url = storetest.Postgres
				}
				db := storetest.Open(b, url(b))
				ks := New(Config{DB: db, Local: newLocal(b)})
				if keysets > 0 {
					multiply(b, ks, keysets)
				}
				now := db.Now()
				b.Run("idle", func(b *testing.B) {
					if _, err := ks.Pass(b.Context(), now); err != nil {
						b.Fatal(err)
					}
					for b.Loop() {
						// Less than servedGap after the last: nothing is written.
						if _, err := ks.Pass(b.Context(), now.Add(time.Second)); err != nil {
							b.Fatal(err)
						}
					}
				})
				b.Run("start", func(b *testing.B) {
					for b.Loop() {
						fresh := New(Config{DB: db, Local: ks.local})
						if err := fresh.Refresh(b.Context()); err != nil {
							b.Fatal(err)
						}
					}
				})
			})
		}
	}
}

// multiply makes a keyset and copies its rows until there are n.
func multiply(b *testing.B, ks *Keysets, n int) {
	b.Helper()
	p := DefaultPolicy()
	if _, err := ks.Create(b.Context(), Create{Name: "copy-0", Issuer: "https://auth.example.com", Policy: p}); err != nil {
		b.Fatal(err)
	}
	numbers := fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)`, n-1)
	sets := strings.NewReplacer("SELECT id,", "SELECT s.id || '-' || n.i,", " name,", " 'copy-' || n.i,").
		Replace("SELECT " + keysetColumns)
	keys := strings.Replace("SELECT "+keyColumns, "keyset_id,", "k.keyset_id || '-' || n.i,", 1)
	err := ks.db.Update(b.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, q := range []string{
			`INSERT INTO keysets (` + keysetColumns + `) ` + numbers + ` ` + sets + ` FROM keysets s, n`,
			`INSERT INTO signing_keys (` + keyColumns + `) ` + numbers + ` ` + keys + ` FROM signing_keys k, n`,
		} {
			if _, err := tx.Exec(ctx, q); err != nil {
				return err
			}
		}
		return reseal(ctx, tx, ks)
	})
	if err != nil {
		b.Fatal(err)
	}
	if got := count(b, ks.db, `SELECT COUNT(*) FROM keysets`); got != int64(n) {
		b.Fatalf("there are %d keysets, want %d", got, n)
	}
	ks.view.resync = true // the copies have no events
	if err := ks.Refresh(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// reseal makes copied rows genuine.
func reseal(ctx context.Context, tx *store.Tx, ks *Keysets) error {
	seal, err := ks.readSeal(ctx, tx)
	if err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `SELECT `+keysetColumns+` FROM keysets`)
	if err != nil {
		return err
	}
	var sets []*Keyset
	err = each(rows, func() error {
		s, err := scanKeyset(rows, seal)
		sets = append(sets, s)
		if errors.Is(err, fault.ErrRejected) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	keys, err := queryKeys(ctx, tx, `SELECT `+keyColumns+` FROM signing_keys`)
	if err != nil {
		return err
	}
	of := map[string][]Key{}
	for _, k := range keys {
		k.Seal = seal.ofKey(k)
		of[k.KeysetID] = append(of[k.KeysetID], k)
		if _, err := tx.Exec(ctx, `UPDATE signing_keys SET seal = $1 WHERE keyset_id = $2 AND kid = $3`, k.Seal, k.KeysetID, k.Kid); err != nil {
			return err
		}
	}
	genuine := sets[slices.IndexFunc(sets, func(s *Keyset) bool { return s.Members != nil })]
	for _, s := range sets {
		s.Keys, s.Policy = of[s.ID], genuine.Policy // of others it was not read
		_, members, sealed, err := seal.sealed(s)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE keysets SET members = $1, seal = $2 WHERE id = $3`, members, sealed, s.ID); err != nil {
			return err
		}
	}
	return nil
}

// Command keys fills the database of a data directory with API keys, so that starts,
// memory and verification of a given number can be measured. The server must not run.
//
//	go run ./bench/keys -data-dir DIR -keys 1000000 -sample 100000 >values
//
// The first keys are made by Rotunda (-made), the others imported by their SHA-256.
// The values of a sample of both go to standard output, one on a line.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

func main() {
	dir := flag.String("data-dir", "data", "the data directory of a server that has run once")
	keys := flag.Int("keys", 1_000_000, "how many keys to add")
	made := flag.Int("made", 2_000, "how many of them Rotunda makes")
	sample := flag.Int("sample", 100_000, "how many values to print")
	flag.Parse()
	if err := fill(context.Background(), *dir, *keys, min(*made, *keys), *sample); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const (
	partner = "bench"
	perTx   = 500
)

func fill(ctx context.Context, dir string, keys, made, sample int) error {
	path, err := filepath.Abs(filepath.Join(dir, "rotunda.db"))
	if err != nil {
		return err
	}
	db, err := store.Open(ctx, "sqlite:"+path)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // trail.Close has said whether all is written
	kek, err := secret.OpenFile(filepath.Join(dir, "kek.json"))
	if err != nil {
		return err
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		return err
	}
	trail, err := audit.Open(ctx, audit.Config{DB: db, Sealer: sealer, Kept: filepath.Join(dir, "trail.checkpoint")})
	if err != nil {
		return err
	}
	peppers, err := apikeys.OpenPeppers(ctx, db, sealer)
	if err != nil {
		return err
	}
	partners := apikeys.NewPartners(db, peppers)
	ring, err := apikeys.NewKeys(apikeys.KeysConfig{DB: db, Peppers: peppers, Partners: partners, Sealer: sealer})
	if err != nil {
		return err
	}
	ctx = audit.WithActor(ctx, audit.Actor{ID: "bench"})
	_, err = partners.Create(ctx, partner, apikeys.PartnerSpec{Scopes: []string{"orders:read", "orders:write"}, MaxKeys: 1_000_000}, store.Once{})
	if err != nil && !errors.Is(err, fault.ErrExists) {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	for i := range made {
		n, err := ring.Create(ctx, apikeys.APIKey, apikeys.KeySpec{Partner: partner, Name: fmt.Sprintf("made %d", i), Scopes: []string{"orders:read"}})
		if err != nil {
			return err
		}
		if i < sample {
			fmt.Fprintln(out, n.Value.RevealString())
		}
		n.Value.Destroy()
	}
	for done := made; done < keys; done += perTx {
		items := make([]apikeys.ImportItem, 0, perTx)
		for i := done; i < min(done+perTx, keys); i++ {
			value := valueOf(i)
			digest := sha256.Sum256([]byte(value))
			items = append(items, apikeys.ImportItem{Value: secret.FromString(hex.EncodeToString(digest[:])), Name: "imported", Scopes: []string{"orders:read"}})
			if i < sample {
				fmt.Fprintln(out, value)
			}
		}
		results, err := ring.Import(ctx, partner, apikeys.OriginSHA256, 0, items)
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Err != nil {
				return r.Err
			}
		}
		if _, err := trail.Sequence(ctx); err != nil {
			return err
		}
	}
	return errors.Join(out.Flush(), trail.Close(ctx))
}

// valueOf is a key as another system may have made it.
func valueOf(i int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "bench key %d", i))
	return "bk_" + hex.EncodeToString(sum[:20])
}

// Command trail fills the trail of a data directory with events, so that exports
// and verifications of a given size can be measured. The server must not run.
//
//	go run ./bench/trail -data-dir DIR -events 1000000
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

func main() {
	dir := flag.String("data-dir", "data", "the data directory of a server that has run once")
	events := flag.Int("events", 1_000_000, "how many events to add")
	flag.Parse()
	if err := fill(context.Background(), *dir, *events); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const perTx = 1000

func fill(ctx context.Context, dir string, events int) error {
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
	actions := []string{"signing_key.active", "signing_key.pending", "keyset.rotate", "token.create", "authenticate"}
	for done := 0; done < events; done += perTx {
		err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			for i := done; i < min(done+perTx, events); i++ {
				e := audit.Event{Actor: fmt.Sprintf("k3v9x0m2q8r7t%03d", i%200), Action: actions[i%len(actions)], Resource: fmt.Sprintf("keysets/payments-%d/keys/abcdefghijklmnopqrstuvwxyz0123456789", i%1000),
					Partner: fmt.Sprintf("partner-%d", i%50), RequestID: "QZ3K6J5WTVX2Y7PLM4NRA8DBCE", Address: fmt.Sprintf("2001:db8::%x", i%5000),
					Detail: map[string]any{"from": "pending", "since": "2026-01-05T00:00:00Z", "reason": "rotation", "version": i}}
				if err := audit.Record(ctx, tx, e); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if done%5000 == 4000 {
			if _, err := trail.Sequence(ctx); err != nil {
				return err
			}
		}
	}
	return trail.Close(ctx)
}

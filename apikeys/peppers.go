package apikeys

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

const (
	pepperSize  = 32
	rootGen     = 0                // not a pepper: the root of the keys for seals and ids
	pepperEvery = 10 * time.Second // how often a process looks for new generations
)

// Peppers keeps the generations of the pepper: the keys of the HMACs under which
// API keys and access tokens are stored. New keys are hashed under the newest;
// each row names its own. Its methods may be called from many goroutines.
//
// Beside them stands a root that is no pepper and never changes. From it come the
// key that seals rows, the key that marks the ids of API keys, and the key of the
// fingerprints of requests.
type Peppers struct {
	db     *store.DB
	sealer *secret.Sealer

	mu      sync.RWMutex
	gens    map[int64][]byte // those that live
	retired map[int64]bool
	newest  int64

	sealKey, idKey, requestKey []byte

	turn   sync.Mutex // one reader of the database at a time
	lookAt time.Duration
}

// OpenPeppers returns the peppers of a database. It makes the root and the first
// generation when there are none.
func OpenPeppers(ctx context.Context, db *store.DB, sealer *secret.Sealer) (*Peppers, error) {
	p := &Peppers{db: db, sealer: sealer}
	err := db.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		var n int64
		if err := tx.QueryRow(ctx, `SELECT COUNT(*) FROM peppers`).Scan(&n); err != nil || n > 0 {
			return err
		}
		for _, gen := range []int64{rootGen, 1} {
			// Another replica that starts at the same time may win.
			if err := p.insert(ctx, tx, gen, ` ON CONFLICT (gen) DO NOTHING`); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make the first pepper: %w", err)
	}
	if err := p.load(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// insert makes a generation.
func (p *Peppers) insert(ctx context.Context, tx *store.Tx, gen int64, conflict string) error {
	b := make([]byte, pepperSize)
	_, _ = rand.Read(b)
	v := secret.New(b)
	defer v.Destroy()
	sealed, err := p.sealer.Seal(ctx, pepperPlace(gen), v)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO peppers (gen, sealed, created_at, retired_at) VALUES ($1, $2, $3, 0)`+conflict, gen, sealed, store.Micros(tx.Now))
	return err
}

func pepperPlace(gen int64) secret.Place {
	return secret.Place{Table: "peppers", Row: strconv.FormatInt(gen, 10), Column: "sealed"}
}

// load reads all generations.
func (p *Peppers) load(ctx context.Context) error {
	p.mu.RLock()
	have := p.gens
	p.mu.RUnlock()
	gens, retired, newest := map[int64][]byte{}, map[int64]bool{}, int64(0)
	err := p.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		clear(gens)
		rows, err := tx.Query(ctx, `SELECT gen, sealed FROM peppers ORDER BY gen`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var gen int64
			var sealed []byte
			if err := rows.Scan(&gen, &sealed); err != nil {
				return err
			}
			if sealed == nil {
				retired[gen] = true
				continue
			}
			newest = gen
			if b, ok := have[gen]; ok { // they never change
				gens[gen] = b
				continue
			}
			v, err := p.sealer.Open(ctx, pepperPlace(gen), sealed)
			if err != nil {
				return err
			}
			gens[gen] = v.Reveal()
			v.Destroy()
		}
		return rows.Err()
	})
	if err != nil {
		return fmt.Errorf("read the peppers: %w", err)
	}
	root, ok := gens[rootGen]
	if !ok || newest == rootGen {
		return fmt.Errorf("read the peppers: the table has no root or no generation (it has %v): restore it from a backup", slices.Sorted(maps.Keys(gens)))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gens, p.retired, p.newest = gens, retired, newest
	if p.sealKey == nil { // the first time, when nobody else has p yet
		p.sealKey, p.idKey, p.requestKey = derive(root, "row seals"), derive(root, "key ids"), derive(root, "requests")
	}
	p.lookAt = p.db.Tick() + pepperEvery
	return nil
}

// derive makes a key of the root for one purpose: one block of HKDF-Expand
// (RFC 5869, section 2.3) with the root as its uniformly random key.
func derive(root []byte, purpose string) []byte {
	h := hmac.New(sha256.New, root)
	h.Write([]byte("rotunda " + purpose))
	h.Write([]byte{1})
	return h.Sum(nil)
}

// Fingerprint is an HMAC of a request's hash, under a key that all replicas have and the
// database has not: from it nobody can try what a secret in the request was.
func (p *Peppers) Fingerprint(hash string) string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	h := newMAC(p.requestKey)
	h.Write([]byte(hash))
	return hex.EncodeToString(h.Sum(nil))
}

// current returns the generation under which new keys are hashed.
func (p *Peppers) current() (gen int64, pepper []byte) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.newest, p.gens[p.newest]
}

// live returns all generations under which keys may be hashed, newest first.
func (p *Peppers) live() []int64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	gens := slices.Sorted(maps.Keys(p.gens))
	slices.Reverse(gens)
	return gens[:len(gens)-1] // without the root, which is last
}

// get returns a generation from memory.
func (p *Peppers) get(gen int64) (pepper []byte, ok bool) {
	if gen == rootGen {
		return nil, false
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	pepper, ok = p.gens[gen]
	return pepper, ok
}

// find returns a generation, and looks into the database for one that another
// replica made. A retired one is fault.ErrNotFound.
func (p *Peppers) find(ctx context.Context, gen int64) ([]byte, error) {
	if b, ok := p.get(gen); ok {
		return b, nil
	}
	ctx, cancel := context.WithTimeout(ctx, loadLimit)
	defer cancel()
	p.turn.Lock()
	defer p.turn.Unlock()
	b, ok := p.get(gen)
	if !ok && !p.isRetired(gen) {
		if err := p.load(ctx); err != nil {
			return nil, err
		}
		b, ok = p.get(gen)
	}
	switch {
	case ok:
		return b, nil
	case p.isRetired(gen):
		return nil, fault.New(fault.ErrNotFound, "pepper_retired", "pepper generation %d was retired", gen)
	}
	return nil, fault.New(fault.ErrUnavailable, "pepper_missing", "pepper generation %d is not in the database: restore its row from a backup", gen)
}

func (p *Peppers) isRetired(gen int64) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.retired[gen]
}

// Pass looks for generations that another replica made or retired, and is called
// about once a second.
func (p *Peppers) Pass(ctx context.Context, _ time.Time) (time.Time, error) {
	p.mu.RLock()
	due := p.db.Tick() >= p.lookAt
	p.mu.RUnlock()
	if !due {
		return time.Time{}, nil
	}
	p.turn.Lock()
	defer p.turn.Unlock()
	return time.Time{}, p.load(ctx)
}

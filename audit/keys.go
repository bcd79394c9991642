package audit

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// signer is the key that signs checkpoints, open.
type signer struct {
	id   string
	vkey string
	note note.Signer
}

func keyPlace(id string) secret.Place {
	return secret.Place{Table: "trail_keys", Row: id, Column: "private"}
}

// newKey makes a key named origin and writes it, sealed. old, unless nil, hands
// over to it at size.
func (t *Trail) newKey(ctx context.Context, tx *store.Tx, origin string, size int64, old *signer) (*signer, error) {
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("make the trail's key: %w", err)
	}
	private := secret.FromString(skey)
	defer private.Destroy()
	s, err := openSigner(private, vkey)
	if err != nil {
		return nil, err
	}
	handover := ""
	if old != nil {
		h := trail.Handover{Origin: origin, From: old.vkey, To: vkey, Size: size}
		signed, err := note.Sign(&note.Note{Text: h.Text()}, old.note, s.note)
		if err != nil {
			return nil, fmt.Errorf("hand over to the trail's new key: %w", err)
		}
		handover = string(signed)
	}
	sealed, err := t.Sealer.Seal(ctx, keyPlace(s.id), private)
	if err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `INSERT INTO trail_keys (number, id, vkey, private, handover, from_size, created_at)
		VALUES ((SELECT COUNT(*) + 1 FROM trail_keys), $1, $2, $3, $4, $5, $6)`,
		s.id, vkey, sealed, handover, size, store.Micros(tx.Now))
	if err != nil {
		return nil, fmt.Errorf("write the trail's key: %w", err)
	}
	return s, nil
}

func openSigner(private secret.Value, vkey string) (*signer, error) {
	n, err := note.NewSigner(private.RevealString())
	if err != nil {
		return nil, errors.New("the trail's private key can't be read") // the library's error may hold it
	}
	return &signer{id: fmt.Sprintf("%08x", n.KeyHash()), vkey: vkey, note: n}, nil
}

// signer returns the key with an id, from memory or from its row.
func (t *Trail) signer(ctx context.Context, tx *store.Tx, id string) (*signer, error) {
	if s := t.key.Load(); s != nil && s.id == id {
		return s, nil
	}
	var vkey string
	var sealed []byte
	err := tx.QueryRow(ctx, `SELECT vkey, private FROM trail_keys WHERE id = $1`, id).Scan(&vkey, &sealed)
	if errors.Is(err, sql.ErrNoRows) || err == nil && sealed == nil {
		return nil, fmt.Errorf("%w: its signing key %s is not in the database", errAltered, clip(id))
	}
	if err != nil {
		return nil, fmt.Errorf("read the trail's key %s: %w", clip(id), err)
	}
	private, err := t.Sealer.Open(ctx, keyPlace(id), sealed)
	if err != nil {
		return nil, fmt.Errorf("open the trail's key: %w", err)
	}
	defer private.Destroy()
	s, err := openSigner(private, vkey)
	if err != nil {
		return nil, err
	}
	if verifier, err := note.NewVerifier(vkey); err != nil || verifier.KeyHash() != s.note.KeyHash() || verifier.Name() != s.note.Name() {
		return nil, fmt.Errorf("%w: the public half of its key %s was altered", errAltered, clip(id))
	}
	t.key.Store(s)
	return s, nil
}

// RotateKey makes a new key for checkpoints. The old one signs a handover to it,
// signs nothing larger than the present tree, and is destroyed.
func (t *Trail) RotateKey(ctx context.Context, reason string) (vkey string, err error) {
	return t.succeed(ctx, reason, "trail_key.rotate", func(origin string) string { return origin })
}

// Restart goes on after the trail was stopped because the database is older than
// what was signed before, as after restoring a backup. The log gets a new origin
// and key, to which the old key hands over at the present size. So nothing that
// was signed is signed again with another content, and who kept a larger
// checkpoint sees that events were lost, and how many.
func (t *Trail) Restart(ctx context.Context, reason string) (vkey string, err error) {
	if reason == "" {
		return "", fault.Invalid("reason", "reason_required", "restart the trail: say why: events may have been lost, and an auditor will ask")
	}
	t.mu.Lock()
	t.edge = nil // what this process signed before is what the database may have lost
	t.mu.Unlock()
	return t.succeed(ctx, reason, "trail.restart", func(origin string) string {
		base, _, _ := strings.Cut(origin, "~")
		return base + "~" + strings.ToLower(rand.Text()[:8])
	})
}

func (t *Trail) succeed(ctx context.Context, reason, action string, rename func(string) string) (vkey string, err error) {
	err = t.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		// Its row is locked, so that no sequencer moves the head meanwhile.
		if err := tx.Swap(ctx, lockHead); err != nil {
			return err
		}
		h, err := readHead(ctx, tx)
		if err != nil {
			return err
		}
		if h.stopped != "" && action == "trail_key.rotate" {
			return fault.New(fault.ErrUnavailable, "trail_stopped", "rotate the trail's key: the trail is stopped: %s", h.stopped)
		}
		old, err := t.signer(ctx, tx, h.keyID)
		if err != nil {
			return err
		}
		next, err := t.newKey(ctx, tx, rename(h.origin), h.size, old)
		if err != nil {
			return err
		}
		vkey = next.vkey
		err = tx.Swap(ctx, `UPDATE trail SET origin = $1, key_id = $2, stopped = '' WHERE id = 1 AND size = $3 AND key_id = $4`, next.note.Name(), next.id, h.size, h.keyID)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE trail_keys SET private = NULL WHERE id = $1`, old.id); err != nil {
			return fmt.Errorf("destroy the trail's old key: %w", err)
		}
		return Record(ctx, tx, Event{Action: action, Resource: "trail_keys/" + next.id, Reason: reason,
			Detail: map[string]any{"old_key": old.vkey, "new_key": next.vkey, "size": h.size, "stopped": h.stopped}})
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", action, err)
	}
	return vkey, nil
}

// Keys returns the vkeys that have signed checkpoints, oldest first, and the notes
// by which each handed over to the next.
func (t *Trail) Keys(ctx context.Context) (vkeys, handovers []string, err error) {
	err = t.DB.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		vkeys, handovers, err = readKeys(ctx, tx)
		return err
	})
	return vkeys, handovers, err
}

func readKeys(ctx context.Context, tx *store.Tx) (vkeys, handovers []string, err error) {
	rows, err := tx.Query(ctx, `SELECT vkey, handover FROM trail_keys ORDER BY number`)
	if err != nil {
		return nil, nil, fmt.Errorf("read the trail's keys: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var vkey, handover string
		if err := rows.Scan(&vkey, &handover); err != nil {
			return nil, nil, err
		}
		vkeys = append(vkeys, vkey)
		if handover != "" {
			handovers = append(handovers, handover)
		}
	}
	return vkeys, handovers, rows.Err()
}

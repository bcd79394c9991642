package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// keptFile is a copy of the newest checkpoint outside of the database, by which
// an older copy of the database is recognised. It is written at most once a
// second, so it may be a second behind, and never ahead.
type keptFile struct {
	path    string
	pending string // not written yet
	wrote   time.Duration
}

const keepEvery = time.Second

// save keeps a signed checkpoint, now or with a later call.
func (k *keptFile) save(signed string, tick time.Duration) error {
	k.pending = signed
	if signed == "" || tick-k.wrote < keepEvery && k.wrote != 0 {
		return nil
	}
	k.wrote = tick
	return k.flush()
}

func (k *keptFile) flush() error {
	if k.path == "" || k.pending == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(k.path), ".checkpoint-*")
	if err != nil {
		return fmt.Errorf("keep the newest checkpoint: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(k.pending)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("keep the newest checkpoint: %w", err)
	}
	if err := os.Rename(f.Name(), k.path); err != nil {
		return fmt.Errorf("keep the newest checkpoint: %w", err)
	}
	k.pending = ""
	return nil
}

// compare fails with errAltered unless the stored tree extends the kept checkpoint.
// The file is only written by this program, and its signature is not what counts:
// whoever can change it can also remove it.
func (k *keptFile) compare(ctx context.Context, tx *store.Tx, h head) error {
	if k.path == "" {
		return nil
	}
	raw, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the kept checkpoint: %w", err)
	}
	text, _, _ := strings.Cut(string(raw), "\n\n")
	c, err := trail.ParseCheckpoint(text + "\n")
	if err != nil {
		return fmt.Errorf("read the kept checkpoint %s: %w: restore it, or remove it if you are sure that the database is the newest", k.path, err)
	}
	if c.Origin != h.origin {
		return nil // of a log that was ended by Restart: the next checkpoint takes its place
	}
	if c.Size > h.size {
		return fmt.Errorf("%w: %s holds a checkpoint of %d leaves, and the database has %d: an older copy of it took over", errAltered, filepath.Base(k.path), c.Size, h.size)
	}
	root, err := tlog.TreeHash(c.Size, newTileReader(ctx, tx))
	if err != nil {
		return fmt.Errorf("%w: %w", errAltered, err)
	}
	if root != c.Root {
		return fmt.Errorf("%w: at %d leaves it is not the tree of the checkpoint in %s", errAltered, c.Size, filepath.Base(k.path))
	}
	return nil
}

package anchors

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// fileAnchor keeps checkpoints in <folder>/<origin>/<size>.checkpoint.
type fileAnchor struct {
	keeper
	top      *os.Root
	noLatest bool

	mu      sync.Mutex
	dir     *os.Root // of the log; nil until it exists
	scanned bool
	max     int64 // the largest size seen in dir; -1: none
}

func openFile(c Config) (Anchor, error) {
	top, err := os.OpenRoot(c.Address)
	if err != nil {
		return nil, fault.New(fault.ErrUnavailable, "anchor_unreachable", "open the anchor's folder %s: %w: make it, or mount it, and let the server write to it", c.Address, bare(err))
	}
	return &fileAnchor{keeper: newKeeper(c, "the anchor folder "+c.Address), top: top, noLatest: c.NoLatest, max: -1}, nil
}

func (a *fileAnchor) Push(ctx context.Context, cp trail.Checkpoint, signed string) error {
	if err := a.mine(cp, signed); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.enter(true); err != nil {
		return err
	}
	if err := a.scan(ctx); err != nil {
		return err
	}
	if err := a.beyond(cp); err != nil {
		return err
	}
	name := sizeName(cp.Size)
	held, err := a.readFile(name)
	switch {
	case err == nil:
		if err := a.compareAt(name, held, cp.Size, cp); err != nil {
			return err
		}
	case errors.Is(err, fs.ErrNotExist):
		if err := a.create(name, signed); err != nil {
			return err
		}
		if held, err = a.readFile(name); err != nil {
			return a.failed("read back "+name, err)
		}
		if err := a.compareAt(name, held, cp.Size, cp); err != nil {
			return err
		}
	default:
		return a.failed("read "+name, err)
	}
	a.max = max(a.max, cp.Size)
	if a.noLatest {
		return nil
	}
	if now, err := a.readFile(latest); err == nil && now == held {
		return nil
	}
	return a.replace(latest, held)
}

// beyond looks for a larger checkpoint than cp: one that was here, or
// that another process brought since (`latest` is checked for that).
func (a *fileAnchor) beyond(cp trail.Checkpoint) error {
	if a.max > cp.Size {
		name := sizeName(a.max)
		held, err := a.readFile(name)
		if err != nil {
			return a.failed("read "+name, err)
		}
		return a.compareAt(name, held, a.max, cp)
	}
	held, err := a.readFile(latest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return a.failed("read "+latest, err)
	}
	// Only what lies under its own size counts: `latest` can be written by all.
	got, err := a.read(latest, held)
	if err != nil || got.Size <= cp.Size {
		return nil //nolint:nilerr // a broken latest is about to be replaced
	}
	name := sizeName(got.Size)
	held, err = a.readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return a.failed("read "+name, err)
	}
	return a.compareAt(name, held, got.Size, cp)
}

func (a *fileAnchor) Newest(ctx context.Context) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.enter(false); err != nil {
		return "", err
	}
	a.scanned = false
	if err := a.scan(ctx); err != nil {
		return "", err
	}
	if a.max < 0 {
		return "", a.empty()
	}
	name := sizeName(a.max)
	held, err := a.readFile(name)
	if err != nil {
		return "", a.failed("read "+name, err)
	}
	cp, err := a.read(name, held)
	if err == nil {
		err = a.compareAt(name, held, a.max, cp)
	}
	if err != nil {
		return "", err
	}
	return held, nil
}

func (k keeper) empty() error {
	return fault.New(fault.ErrNotFound, "anchor_empty", "%s holds no checkpoint of %s", k.place, k.origin)
}

func (a *fileAnchor) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dir != nil {
		_ = a.dir.Close()
		a.dir = nil
	}
	return a.top.Close()
}

// enter opens the log's folder, and makes it if told to.
func (a *fileAnchor) enter(make bool) error {
	if a.dir != nil {
		return nil
	}
	name := escape(a.origin)
	if make {
		if err := a.top.Mkdir(name, 0o700); err == nil {
			if err := syncDir(a.top); err != nil {
				return a.failed("keep the new folder "+name, err)
			}
		} else if !errors.Is(err, fs.ErrExist) {
			return a.failed("make the folder "+name, err)
		}
	}
	dir, err := a.top.OpenRoot(name)
	if errors.Is(err, fs.ErrNotExist) && !make {
		return a.empty()
	}
	if err != nil {
		return a.failed("open the folder "+name, err)
	}
	a.dir = dir
	return nil
}

// scan finds the largest size in the folder, which may hold millions of files.
func (a *fileAnchor) scan(ctx context.Context) error {
	if a.scanned {
		return nil
	}
	f, err := a.dir.Open(".")
	if err != nil {
		return a.failed("list the folder", err)
	}
	defer f.Close()
	a.max = -1
	for {
		if ctx.Err() != nil {
			return a.failed("list the folder", context.Cause(ctx))
		}
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			if size, ok := parseSize(n); ok {
				a.max = max(a.max, size)
			}
		}
		if errors.Is(err, io.EOF) {
			a.scanned = true
			return nil
		}
		if err != nil {
			return a.failed("list the folder", err)
		}
	}
}

func (a *fileAnchor) readFile(name string) (string, error) {
	f, err := a.dir.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxBody+1))
	return string(b), err
}

// create puts a whole file under a new name. A name that was taken meanwhile is
// left as it is: the caller reads it back.
func (a *fileAnchor) create(name, text string) error {
	tmp, err := a.write(text)
	if err != nil {
		return err
	}
	err = a.dir.Link(tmp, name)
	_ = a.dir.Remove(tmp)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return a.failed("link "+name+" (the file system must know hard links)", err)
	}
	// Read-only is what commits a file on WORM file systems.
	if err := a.dir.Chmod(name, 0o400); err != nil {
		return a.failed("make "+name+" read-only", err)
	}
	if err := syncDir(a.dir); err != nil {
		return a.failed("keep "+name, err)
	}
	return nil
}

func (a *fileAnchor) replace(name, text string) error {
	tmp, err := a.write(text)
	if err != nil {
		return err
	}
	if err := a.dir.Rename(tmp, name); err != nil {
		_ = a.dir.Remove(tmp)
		return a.failed("replace "+name+" (set no_latest where nothing can be replaced)", err)
	}
	if err := syncDir(a.dir); err != nil {
		return a.failed("keep "+name, err)
	}
	return nil
}

// write makes a temporary file whose bytes are on the disk.
func (a *fileAnchor) write(text string) (string, error) {
	tmp := ".new-" + rand.Text()
	f, err := a.dir.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", a.failed("write a file", err)
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = a.dir.Remove(tmp)
		return "", a.failed("write a file", err)
	}
	return tmp, nil
}

// failed is an outage: a mount that went away, a full disk, missing rights.
func (a *fileAnchor) failed(what string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.ErrDenied, "anchor_denied", "%s: %s: %w: let the server write there", a.place, what, bare(err))
	}
	return fault.New(fault.ErrUnavailable, "anchor_unreachable", "%s: %s: %w", a.place, what, bare(err))
}

// bare drops the operation and the path of a file error: the message says both.
func bare(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}

func syncDir(r *os.Root) error {
	d, err := r.Open(".")
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	return err
}

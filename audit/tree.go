package audit

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// Tiles are those of C2SP tlog-tiles: a tile of level L holds up to 256 hashes of
// subtrees with 256^L leaves.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// tile names a row of trail_tiles.
type tile struct{ level, n int64 }

// edge is the right edge of a tree: for each level the hashes of the tile that is
// not full yet. It is all that is needed to append, and to know the root.
type edge struct {
	size   int64
	levels [][]tlog.Hash
}

func (e *edge) clone() *edge {
	c := &edge{size: e.size, levels: make([][]tlog.Hash, len(e.levels))}
	for i, l := range e.levels {
		c.levels[i] = append(make([]tlog.Hash, 0, tileWidth), l...)
	}
	return c
}

// add appends a leaf, and calls changed for every tile that becomes full.
func (e *edge) add(leaf tlog.Hash, full func(tile, []tlog.Hash)) {
	e.size++
	h := leaf
	for level := 0; ; level++ {
		if level == len(e.levels) {
			e.levels = append(e.levels, make([]tlog.Hash, 0, tileWidth))
		}
		e.levels[level] = append(e.levels[level], h)
		if len(e.levels[level]) < tileWidth {
			return
		}
		hashes := e.levels[level]
		full(tile{int64(level), e.size>>(tileHeight*(level+1)) - 1}, hashes)
		h = subtree(hashes)
		e.levels[level] = make([]tlog.Hash, 0, tileWidth)
	}
}

// partial calls f for each tile that is begun and not full.
func (e *edge) partial(f func(tile, []tlog.Hash)) {
	for level, hashes := range e.levels {
		if len(hashes) > 0 {
			f(tile{int64(level), e.size >> (tileHeight * (level + 1))}, hashes)
		}
	}
}

// root returns the tree's root hash (RFC 6962, section 2.1): the perfect subtrees
// of the edge, combined from the right.
func (e *edge) root() tlog.Hash {
	if e.size == 0 {
		h, _ := tlog.TreeHash(0, nil) // of no leaves there is no error
		return h
	}
	var peaks []tlog.Hash // smallest first
	for _, hashes := range e.levels {
		for end := len(hashes); end > 0; {
			width := end & -end
			peaks = append(peaks, subtree(hashes[end-width:end]))
			end -= width
		}
	}
	root := peaks[0]
	for _, p := range peaks[1:] {
		root = tlog.NodeHash(p, root)
	}
	return root
}

// subtree returns the root of a perfect subtree over 2^k hashes.
func subtree(hashes []tlog.Hash) tlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return tlog.NodeHash(subtree(hashes[:half]), subtree(hashes[half:]))
}

// errTile says that the stored tree has a hole.
var errTile = errors.New("a tile of the tree is missing or cut short in the database: restore it from a backup")

// loadEdge reads the edge of a tree of some size.
func loadEdge(ctx context.Context, tx *store.Tx, size int64) (*edge, error) {
	e := &edge{size: size}
	for level := int64(0); size>>(tileHeight*level) > 0; level++ {
		width := int(size >> (tileHeight * level) & (tileWidth - 1))
		hashes := make([]tlog.Hash, 0, tileWidth)
		if width > 0 {
			stored, err := readTile(ctx, tx, tile{level, size >> (tileHeight * (level + 1))})
			if err != nil {
				return nil, err
			}
			if len(stored) < width {
				return nil, errTile
			}
			hashes = append(hashes, stored[:width]...)
		}
		e.levels = append(e.levels, hashes)
	}
	return e, nil
}

func readTile(ctx context.Context, tx *store.Tx, t tile) ([]tlog.Hash, error) {
	var raw []byte
	err := tx.QueryRow(ctx, `SELECT hashes FROM trail_tiles WHERE level = $1 AND n = $2`, t.level, t.n).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read tile %d of level %d: %w", t.n, t.level, err)
	}
	return unpack(raw), nil
}

func writeTile(ctx context.Context, tx *store.Tx, t tile, hashes []tlog.Hash) error {
	raw := make([]byte, 0, len(hashes)*tlog.HashSize)
	for _, h := range hashes {
		raw = append(raw, h[:]...)
	}
	_, err := tx.Exec(ctx, `INSERT INTO trail_tiles (level, n, hashes) VALUES ($1, $2, $3)
		ON CONFLICT (level, n) DO UPDATE SET hashes = excluded.hashes`, t.level, t.n, raw)
	if err != nil {
		return fmt.Errorf("write tile %d of level %d: %w", t.n, t.level, err)
	}
	return nil
}

func unpack(raw []byte) []tlog.Hash {
	hashes := make([]tlog.Hash, len(raw)/tlog.HashSize)
	for i := range hashes {
		copy(hashes[i][:], raw[i*tlog.HashSize:])
	}
	return hashes
}

// tileReader reads any hash of the tree from its tiles (tlog.HashReader).
type tileReader struct {
	ctx  context.Context
	tx   *store.Tx
	seen map[tile][]tlog.Hash
}

func newTileReader(ctx context.Context, tx *store.Tx) *tileReader {
	return &tileReader{ctx: ctx, tx: tx, seen: map[tile][]tlog.Hash{}}
}

func (r *tileReader) tile(t tile) ([]tlog.Hash, error) {
	if hashes, ok := r.seen[t]; ok {
		return hashes, nil
	}
	hashes, err := readTile(r.ctx, r.tx, t)
	if err != nil {
		return nil, err
	}
	if len(r.seen) >= 64 { // an export walks over all tiles
		clear(r.seen)
	}
	r.seen[t] = hashes
	return hashes, nil
}

// node returns the hash of the perfect subtree number n of some height.
func (r *tileReader) node(height uint, n int64) (tlog.Hash, error) {
	level, within := int64(height/tileHeight), height%tileHeight
	first := n << within // in hashes of the tile's level
	hashes, err := r.tile(tile{level, first >> tileHeight})
	if err != nil {
		return tlog.Hash{}, err
	}
	at, width := int(first&(tileWidth-1)), 1<<within
	if at+width > len(hashes) {
		return tlog.Hash{}, fmt.Errorf("%w (level %d, tile %d)", errTile, level, first>>tileHeight)
	}
	return subtree(hashes[at : at+width]), nil
}

// ReadHashes implements tlog.HashReader.
func (r *tileReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		var err error
		if out[i], err = r.node(uint(level), n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

package server

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// tileClient reads tiles over HTTP for golang.org/x/mod/sumdb/tlog.
type tileClient struct {
	t     testing.TB
	b     *bed
	token string
	mu    sync.Mutex
	seen  map[string][]byte
}

// Height implements tlog.TileReader.
func (c *tileClient) Height() int { return 8 }

// ReadTiles implements tlog.TileReader.
func (c *tileClient) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out [][]byte
	for _, tile := range tiles {
		// C2SP tlog-tiles leaves the height out of the path.
		path := "/trail/tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		if c.seen[path] == nil {
			a := c.b.get(c.t, c.token, home, path)
			if a.status != http.StatusOK {
				return nil, fmt.Errorf("%s: %d %s", path, a.status, a.body)
			}
			c.seen[path] = []byte(a.body)
		}
		out = append(out, c.seen[path])
	}
	return out, nil
}

// SaveTiles implements tlog.TileReader.
func (c *tileClient) SaveTiles([]tlog.Tile, [][]byte) {}

// leavesOf reads all entry bundles.
func (c *tileClient) leavesOf(size int64) [][]byte {
	c.t.Helper()
	var out [][]byte
	for n := int64(0); n*256 < size; n++ {
		name := tileName{-1, n, int(min(256, size-n*256))}
		a := c.b.get(c.t, c.token, home, tilePath+name.String())
		if a.status != http.StatusOK {
			c.t.Fatalf("%v: %d %s", name, a.status, a.body)
		}
		for raw := []byte(a.body); len(raw) > 0; {
			length := 2 + int(binary.BigEndian.Uint16(raw))
			out = append(out, raw[2:length])
			raw = raw[length:]
		}
	}
	return out
}

// Promise: Go's own client of transparency logs reads the tiles and verifies every
// entry, and that each tree extends the ones before.
func TestTilesWhenReadByTlog(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		auditor := b.token(t, apikeys.Create{Role: apikeys.Auditor})
		var older []trail.Checkpoint
		for _, size := range []int64{5, 255, 256, 257, 511, 512, 700} {
			b.grow(t, size)
			a := b.get(t, auditor, home, "/trail/checkpoint")
			c, err := b.keysOf(t).Open(a.body)
			if err != nil || c.Size != size {
				t.Fatalf("%d %s: %v", a.status, a.body, err)
			}
			client := &tileClient{t: t, b: b, token: auditor, seen: map[string][]byte{}}
			// It checks every tile that it takes against the root.
			hashes := tlog.TileHashReader(tlog.Tree{N: c.Size, Hash: c.Root}, client)
			leaves := client.leavesOf(size)
			if int64(len(leaves)) != size {
				t.Fatalf("%d entries of %d", len(leaves), size)
			}
			for i, raw := range leaves {
				proof, err := tlog.ProveRecord(size, int64(i), hashes)
				if err != nil {
					t.Fatal(err)
				}
				if err := tlog.CheckRecord(proof, size, c.Root, int64(i), tlog.RecordHash(raw)); err != nil {
					t.Fatalf("entry %d of %d: %v", i, size, err)
				}
				if _, err := trail.ParseLeaf(raw); err != nil {
					t.Fatalf("entry %d: %v", i, err)
				}
			}
			for _, old := range older {
				proof, err := tlog.ProveTree(size, old.Size, hashes)
				if err != nil {
					t.Fatal(err)
				}
				if err := tlog.CheckTree(proof, size, c.Root, old.Size, old.Root); err != nil {
					t.Errorf("%d after %d: %v", size, old.Size, err)
				}
			}
			older = append(older, c)
		}
	})
}

// newTileProgram builds ./tlogtest, once: it is kept in .tools under the hash of
// its sources.
func newTileProgram(t testing.TB) string {
	t.Helper()
	sum := sha256.New()
	for _, name := range []string{"main.go", "go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join("tlogtest", name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(sum, "%d %s", len(b), b)
	}
	dir, err := filepath.Abs(fmt.Sprintf("../../.tools/tlogtest-%x", sum.Sum(nil)[:8]))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "tlogtest")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Built under another name and moved: a build that is cut off leaves nothing.
	part := fmt.Sprintf("%s.%d", program, os.Getpid())
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", part, ".")
	build.Dir = "tlogtest"
	build.Env = append(os.Environ(), "GOFLAGS=-mod=readonly")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build in internal/server/tlogtest: %v\n%s", err, out)
	}
	if err := os.Rename(part, program); err != nil {
		t.Fatal(err)
	}
	return program
}

// Promise: the client and the fsck of Tessera, which nobody here wrote, find every
// entry and every tile of the log in order, and find what is not.
func TestTilesWhenReadByTessera(t *testing.T) {
	program := newTileProgram(t)
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		check := func(token string) (string, error) {
			keys := b.get(t, b.admin, home, "/trail/keys")
			run := exec.CommandContext(t.Context(), program, b.http.URL+"/trail/")
			run.Stdin = strings.NewReader(keys.body)
			run.Env = append(os.Environ(), "TLOGTEST_TOKEN="+token)
			var said strings.Builder
			run.Stderr = &said
			out, err := run.Output()
			if err != nil {
				return said.String(), err
			}
			return strings.TrimSpace(string(out)), nil
		}
		for _, want := range []struct {
			size int64
			said string
		}{{2, "included 5, consistent 3"}, {256, "included 9, consistent 8"}, {257, "included 10, consistent 9"}, {1000, "included 15, consistent 14"}} {
			b.grow(t, want.size)
			said, err := check(b.admin)
			if err != nil || said != fmt.Sprintf("size %d, %s", want.size, want.said) {
				t.Errorf("%d: %v: %q", want.size, err, said)
			}
		}
		if said, err := check("rk_wrong"); err == nil {
			t.Errorf("it reads without a token: %s", said)
		}
		// Somebody changes a byte of a tile in the database.
		b.exec(t, `UPDATE trail_tiles SET hashes = (SELECT hashes FROM trail_tiles WHERE level = 0 AND n = 1) WHERE level = 0 AND n = 0`)
		if said, err := check(b.admin); err == nil {
			t.Errorf("an altered tile is not found: %s", said)
		}
	})
}

func TestTileWhenItIsNotThere(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.grow(t, 300)
	for _, path := range []string{
		"0/001", "0/001.p/45", "0/002.p/1", "1/000", "1/000.p/2", "5/000.p/1", "2/000", "entries/001", "entries/001.p/45", "entries/002.p/1",
		"0/x001/000", "entries/x999/x999/x999/999",
		"", "0", "0/", "0/0", "0/0000", "0/00a", "0/x000/000", "0/000.p/0", "0/000.p/256", "0/000.p/01", "0/000.p/", "0/000.p/1/", "6/000", "10/000", "-1/000", "+0/000",
		"0/000.p", "entries/", "entries/000.p/-1", "0/x1/000", "0/001/000", "0/000.p/1.p/1", "0/%30%30%30.p/1x", "data/000",
	} {
		if a := b.get(t, b.admin, home, tilePath+path); a.status != http.StatusNotFound || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v", path, a.status, a.header)
		}
	}
	for path, want := range map[string]struct {
		length int
		cache  string
	}{
		"0/000": {8192, "private, max-age=86400"}, "0/001.p/44": {1408, "private, max-age=60"}, "0/000.p/255": {8160, "private, max-age=60"},
		"1/000.p/1": {32, "private, max-age=60"}, "entries/000": {-1, "private, max-age=86400"}, "entries/001.p/44": {-1, "private, max-age=60"},
	} {
		a := b.get(t, b.admin, home, tilePath+path)
		if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/octet-stream" || a.header.Get("Cache-Control") != want.cache || want.length >= 0 && len(a.body) != want.length {
			t.Errorf("%s: %d, %d bytes, %v", path, a.status, len(a.body), a.header)
		}
		if head := b.send(t, b.admin, home, http.MethodHead, tilePath+path); head.status != http.StatusOK || head.body != "" || head.header.Get("Content-Length") != fmt.Sprint(len(a.body)) {
			t.Errorf("HEAD %s: %d %v", path, head.status, head.header)
		}
	}
	// What was pruned is gone from the entries, and the tree is as before.
	b.exec(t, `UPDATE trail SET pruned = 10`)
	b.exec(t, `DELETE FROM events WHERE leaf_index < 10`)
	if a := b.get(t, b.admin, home, tilePath+"entries/000"); a.status != http.StatusNotFound {
		t.Errorf("pruned entries: %d", a.status)
	}
	if a := b.get(t, b.admin, home, tilePath+"0/000"); a.status != http.StatusOK {
		t.Errorf("the tile of pruned entries: %d", a.status)
	}
}

func TestTrailWhenItIsPublished(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		closed := newBed(t, db)
		closed.grow(t, 300)
		paths := map[string]string{
			"/trail/checkpoint": "no-cache", "/trail/keys": "no-cache", "/trail/tile/0/000": "public, max-age=86400",
			"/trail/tile/entries/001.p/9": "public, max-age=60",
		}
		for path := range paths {
			if a := closed.get(t, "", "203.0.113.1", path); a.status != http.StatusUnauthorized || a.header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s without a token: %d %v", path, a.status, a.header)
			}
		}
		open := newBedBeside(t, closed, func(c *Config) { c.PublishTrail, c.PublicRate = true, 5 })
		for path, cache := range paths {
			a := open.get(t, "", "203.0.113.2", path)
			if a.status != http.StatusOK || a.header.Get("Cache-Control") != cache || a.header.Get("Access-Control-Allow-Origin") != "*" || a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %d %v", path, a.status, a.header)
			}
			if with := open.get(t, closed.admin, home, path); with.body != a.body {
				t.Errorf("%s is another with a token", path)
			}
			if a := open.send(t, "", "203.0.113.3", http.MethodOptions, path); a.status != http.StatusNoContent || a.header.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("OPTIONS %s: %d", path, a.status)
			}
			if a := open.send(t, "", "203.0.113.3", http.MethodPost, path); a.status != http.StatusMethodNotAllowed {
				t.Errorf("POST %s: %d", path, a.status)
			}
		}
		if a := open.get(t, "", "203.0.113.2", "/trail/export"); a.status != http.StatusUnauthorized {
			t.Errorf("an export without a token: %d", a.status)
		}
		var last answer
		for range 12 {
			last = open.get(t, "", "203.0.113.4", "/trail/checkpoint")
		}
		if last.status != http.StatusTooManyRequests {
			t.Errorf("beyond the public rate: %d", last.status)
		}
		// Nothing personal is in what is published.
		open.record(t, audit.Event{Action: "x", Actor: "ada-lovelace", Address: "192.0.2.222", Reason: "her-reason", Detail: map[string]any{"who": "ada-lovelace"}})
		open.sequence(t)
		entries := open.get(t, "", "203.0.113.5", fmt.Sprintf("/trail/tile/entries/001.p/%d", 301-256)).body
		if !strings.Contains(entries, "test.grow") {
			t.Fatalf("no entries: %q", entries)
		}
		for _, personal := range []string{"ada-lovelace", "192.0.2.222", "her-reason", "somebody"} {
			if strings.Contains(entries, personal) {
				t.Errorf("%q is published", personal)
			}
		}
	})
}

func FuzzParseTile(f *testing.F) {
	for _, path := range []string{"0/000", "5/x001/x234/067.p/255", "entries/x001/000", "entries/999.p/1", "0/x000/001"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		tile, ok := parseTile(path)
		if !ok {
			return
		}
		if tile.String() != path || tile.n < 0 || tile.n > maxTile || tile.level < -1 || tile.level > 5 || tile.width < 1 || tile.width > 256 {
			t.Errorf("%q is %+v, written %q", path, tile, tile)
		}
		// The one of Go's library, which has the height in its paths and no entries.
		if tile.level >= 0 {
			theirs, err := tlog.ParseTilePath("tile/8/" + path)
			if err != nil || theirs.L != int(tile.level) || theirs.N != tile.n || theirs.W != tile.width {
				t.Errorf("%q is %+v for Rotunda, %+v for tlog (%v)", path, tile, theirs, err)
			}
		}
	})
}

func TestTileWhenNumbersAreAtTheirBounds(t *testing.T) {
	for _, tile := range []tileName{{0, 0, 256}, {0, 999, 1}, {5, 1000, 255}, {-1, 1234067, 256}, {3, maxTile, 7}, {-1, maxTile, 256}} {
		if got, ok := parseTile(tile.String()); !ok || got != tile {
			t.Errorf("%+v is written %q, read %+v, %v", tile, tile, got, ok)
		}
	}
	if tile, ok := parseTile(tileName{0, maxTile + 1, 256}.String()); ok {
		t.Errorf("a tile of no tree: %+v", tile)
	}
	if got := (tileName{-1, 1234067, 3}).String(); got != "entries/x001/x234/067.p/3" {
		t.Errorf("written %q", got)
	}
}

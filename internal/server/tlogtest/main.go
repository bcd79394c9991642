// Command tlogtest reads a log with Tessera's client and its fsck, which know of
// Rotunda only what C2SP tlog-tiles says. It is a module of its own: nothing of it
// gets into Rotunda.
//
//	echo VKEY | tlogtest http://127.0.0.1:8470/trail/
//
// The environment's TLOGTEST_TOKEN is sent as a bearer token. It checks every
// entry and every tile against the signed checkpoint, then an inclusion proof of
// each of some entries and the consistency with some smaller trees, and says how
// much that was.
package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	said, err := run(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "tlogtest:", err)
		os.Exit(1)
	}
	fmt.Println(said)
}

func run(ctx context.Context) (string, error) {
	if len(os.Args) != 2 {
		return "", fmt.Errorf("want the log's URL")
	}
	vkey, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	verifier, err := note.NewVerifier(strings.TrimSpace(vkey))
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	root, err := url.Parse(os.Args[1])
	if err != nil {
		return "", err
	}
	fetcher, err := client.NewHTTPFetcher(root, http.DefaultClient)
	if err != nil {
		return "", err
	}
	if token := os.Getenv("TLOGTEST_TOKEN"); token != "" {
		fetcher.SetAuthorizationHeader("Bearer " + token)
	}
	if err := fsck.New(verifier.Name(), verifier, fetcher, leafHashes, fsck.Opts{N: 2}).Check(ctx); err != nil {
		return "", fmt.Errorf("fsck: %w", err)
	}
	checkpoint, _, _, err := client.FetchCheckpoint(ctx, fetcher.ReadCheckpoint, verifier, verifier.Name())
	if err != nil {
		return "", err
	}
	size := checkpoint.Size
	builder, err := client.NewProofBuilder(ctx, size, fetcher.ReadTile)
	if err != nil {
		return "", err
	}
	proved := 0
	for _, index := range some(size) {
		leaf, err := entry(ctx, fetcher, index, size)
		if err != nil {
			return "", fmt.Errorf("entry %d: %w", index, err)
		}
		path, err := builder.InclusionProof(ctx, index)
		if err != nil {
			return "", fmt.Errorf("prove entry %d: %w", index, err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, rfc6962.DefaultHasher.HashLeaf(leaf), path, checkpoint.Hash); err != nil {
			return "", fmt.Errorf("entry %d: %w", index, err)
		}
		proved++
	}
	extended := 0
	for _, before := range some(size) {
		if before == 0 {
			continue
		}
		old, err := rootOf(ctx, fetcher, before)
		if err != nil {
			return "", fmt.Errorf("the tree of %d: %w", before, err)
		}
		path, err := builder.ConsistencyProof(ctx, before, size)
		if err != nil {
			return "", fmt.Errorf("prove consistency with %d: %w", before, err)
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, before, size, path, old, checkpoint.Hash); err != nil {
			return "", fmt.Errorf("consistency with %d: %w", before, err)
		}
		extended++
	}
	return fmt.Sprintf("size %d, included %d, consistent %d", size, proved, extended), nil
}

// some are numbers below size, those around the borders of tiles among them.
func some(size uint64) []uint64 {
	var out []uint64
	for _, n := range []uint64{0, 1, 2, 100, 254, 255, 256, 257, 511, 512, 513, 700, size / 2, size - 2, size - 1} {
		if n < size {
			out = append(out, n)
		}
	}
	return out
}

func leafHashes(raw []byte) ([][]byte, error) {
	var b api.EntryBundle
	if err := b.UnmarshalText(raw); err != nil {
		return nil, err
	}
	var out [][]byte
	for _, e := range b.Entries {
		out = append(out, rfc6962.DefaultHasher.HashLeaf(e))
	}
	return out, nil
}

func entry(ctx context.Context, f *client.HTTPFetcher, index, size uint64) ([]byte, error) {
	b, err := client.GetEntryBundle(ctx, f.ReadEntryBundle, index/layout.EntryBundleWidth, size)
	if err != nil {
		return nil, err
	}
	at := index % layout.EntryBundleWidth
	if at >= uint64(len(b.Entries)) {
		return nil, fmt.Errorf("the bundle has %d entries", len(b.Entries))
	}
	return b.Entries[at], nil
}

// rootOf computes the root of a smaller tree from its tiles.
func rootOf(ctx context.Context, f *client.HTTPFetcher, size uint64) ([]byte, error) {
	nodes, err := client.FetchRangeNodes(ctx, size, f.ReadTile)
	if err != nil {
		return nil, err
	}
	r, err := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewRange(0, size, nodes)
	if err != nil {
		return nil, err
	}
	return r.GetRootHash(nil)
}

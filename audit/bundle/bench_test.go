package bundle

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// writeLong writes a bundle of n events that are never all in memory. Every
// tenth leaf is a gap when gaps are asked for.
func writeLong(t testing.TB, dir, name string, n int64, gaps bool) *trail.Keys {
	t.Helper()
	k := newKey(t, origin)
	make := func(i int64) (trail.Record, []byte) {
		e := event(int(i))
		leaf, err := e.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := leaf.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return trail.Record{Event: e, Origin: origin, Index: i, Hash: tlog.RecordHash(raw)}, raw
	}
	var tree trail.Range
	for i := range n {
		r, _ := make(i)
		tree.Append(r.Hash)
	}
	root, err := tree.Root()
	if err != nil {
		t.Fatal(err)
	}
	head := Head{Origin: origin, Checkpoint: sign(t, trail.Checkpoint{Origin: origin, Size: n, Root: root}.Text(), k), Keys: []string{k.vkey}, End: n}
	if gaps {
		head.Filter = map[string]string{"until": "2100-01-01T00:00:00Z", "partner": "acme"}
	}
	w, err := Create(dir, head, name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		r, raw := make(i)
		if gaps && r.Partner != "acme" {
			err = w.Gap(Gap{Begin: i, End: i + 1, Why: Filtered, Entries: [][]byte{raw}})
		} else {
			err = w.Write(&r)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	keys, err := trail.ParseKeys(k.vkey)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(filepath.Dir(dir), filepath.Base(dir)+".pub"), k.vkey)
	return keys
}

func bundleBytes(t testing.TB, dir string) (n int64) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// BenchmarkVerify verifies bundles of a million events (BUNDLE_EVENTS: another
// number), and reports beside it what must be done at least: to hash the files
// and the leaves.
func BenchmarkVerify(b *testing.B) {
	n := int64(1_000_000)
	if s := os.Getenv("BUNDLE_EVENTS"); s != "" {
		var err error
		if n, err = strconv.ParseInt(s, 10, 64); err != nil {
			b.Fatal(err)
		}
	}
	for _, bb := range []struct {
		format string
		gaps   bool
	}{{"jsonl", false}, {"jsonl", true}, {"csv", false}, {"parquet", false}} {
		b.Run(fmt.Sprintf("%s/gaps=%v", bb.format, bb.gaps), func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "bundle")
			keys := writeLong(b, dir, bb.format, n, bb.gaps)
			b.SetBytes(bundleBytes(b, dir))
			before := cpuSeconds(b)
			for b.Loop() {
				wantHonest(b, verify(b, dir, keys))
			}
			b.ReportMetric((cpuSeconds(b)-before)/float64(b.N), "cpu-s/op")
			b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
	b.Run("floor/jsonl decoded alone", func(b *testing.B) {
		dir := filepath.Join(b.TempDir(), "bundle")
		writeLong(b, dir, "jsonl", 100_000, false)
		before := cpuSeconds(b)
		for b.Loop() {
			f, err := os.Open(filepath.Join(dir, "data-000000.jsonl"))
			if err != nil {
				b.Fatal(err)
			}
			r, err := format.NewReader("jsonl", io.TeeReader(bufio.NewReader(f), sha256.New()))
			if err != nil {
				b.Fatal(err)
			}
			var rec trail.Record
			for r.Read(&rec) == nil {
			}
			f.Close()
		}
		b.ReportMetric((cpuSeconds(b)-before)/float64(b.N), "cpu-s/op")
		b.ReportMetric(100_000*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

// cpuSeconds is the processor time that the process used: what a shared machine
// does besides does not count.
func cpuSeconds(t testing.TB) float64 {
	t.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		t.Fatal(err)
	}
	return float64(use.Utime.Nano()+use.Stime.Nano()) / 1e9
}

// TestVerifyUsesConstantMemory verifies a small and a large bundle, each in a
// process of its own, and compares the most memory that each ever had.
func TestVerifyUsesConstantMemory(t *testing.T) {
	if dir := os.Getenv("BUNDLE_VERIFY"); dir != "" {
		keys, err := trail.ParseKeys(readFile(t, dir+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		wantHonest(t, verify(t, dir, keys))
		var use syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("peak=%d\n", use.Maxrss/1024)
		return
	}
	if testing.Short() {
		t.Skip("it writes 800,000 events")
	}
	peak := func(n int64, gaps bool) int {
		dir := filepath.Join(t.TempDir(), "bundle")
		writeLong(t, dir, "jsonl", n, gaps)
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVerifyUsesConstantMemory$")
		cmd.Env = append(os.Environ(), "BUNDLE_VERIFY="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, rest, ok := strings.Cut(string(out), "peak=")
		var mib int
		if _, err := fmt.Sscan(rest, &mib); !ok || err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return mib
	}
	for _, gaps := range []bool{false, true} {
		// The smaller one has a part, so it keeps one worker busy; the larger all.
		small, large := peak(100_000, gaps), peak(300_000, gaps)
		t.Logf("gaps %v: peak resident memory %d MiB for 100,000 events, %d MiB for 300,000", gaps, small, large)
		if large > small+64 || large > 256 {
			t.Errorf("gaps %v: %d MiB for 100,000 events, %d MiB for 300,000", gaps, small, large)
		}
	}
}

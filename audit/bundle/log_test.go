package bundle

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

const origin = "trail.example.com/rotunda"

// fatal is what a helper needs of *testing.T, *testing.B and *rapid.T.
type fatal interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// signingKey is a key that signs notes.
type signingKey struct {
	note.Signer
	vkey string
}

func newKey(t fatal, name string) signingKey {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return signingKey{s, vkey}
}

func sign(t fatal, text string, keys ...signingKey) string {
	t.Helper()
	var signers []note.Signer
	for _, k := range keys {
		signers = append(signers, k)
	}
	b, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// testLog is a log in memory. Its hashes are computed by the compact ranges of
// another implementation than the one that is tested.
type testLog struct {
	keys      []signingKey
	handovers []string
	records   []trail.Record
	leaves    [][]byte
}

// event makes event i of a log: everything in it follows from i.
func event(i int) trail.Event {
	seed := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
	e := trail.Event{
		ID:    fmt.Sprintf("%08x-1111-4222-8333-%012x", i, i*7),
		Time:  time.UnixMicro(1_767_225_600_000_000 + int64(i)*1_000_003).UTC(),
		Actor: fmt.Sprintf("token-%d", i%5), Action: []string{"keyset.create", "api_key.revoke", "api_key.issue", "session.denied"}[i%4],
		Resource: fmt.Sprintf("keysets/k%d", i%7), Partner: []string{"acme", "globex", ""}[i%3],
		Outcome: []string{trail.OK, trail.OK, trail.OK, trail.Denied}[i%4], RequestID: fmt.Sprintf("req-%d", i),
		Address: fmt.Sprintf("192.0.2.%d", i%250), Detail: "{}", Count: 1, Salt: seed[:trail.SeedSize],
	}
	if i%4 == 3 {
		e.Reason, e.Count = "bad_token", int64(i%9+1)
	}
	if i%2 == 0 {
		e.Detail = fmt.Sprintf(`{"algorithm":"ES256","n":%d}`, i)
	}
	e.Checks = e.MakeChecks()
	return e
}

func (l *testLog) add(t fatal, e trail.Event) {
	t.Helper()
	leaf, err := e.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := leaf.Encode()
	if err != nil {
		t.Fatal(err)
	}
	l.leaves = append(l.leaves, raw)
	l.records = append(l.records, trail.Record{Event: e, Origin: origin, Index: int64(len(l.records)), Hash: tlog.RecordHash(raw)})
}

func newLog(t fatal, n int) *testLog {
	t.Helper()
	l := &testLog{keys: []signingKey{newKey(t, origin)}}
	for i := range n {
		l.add(t, event(i))
	}
	return l
}

var factory = &compact.RangeFactory{Hash: func(left, right []byte) []byte {
	h := tlog.NodeHash(tlog.Hash(left), tlog.Hash(right))
	return h[:]
}}

func (l *testLog) hashes(t fatal, begin, end int64) []tlog.Hash {
	t.Helper()
	var out []tlog.Hash
	for _, h := range l.compact(t, begin, end).Hashes() {
		out = append(out, tlog.Hash(h))
	}
	return out
}

func (l *testLog) compact(t fatal, begin, end int64) *compact.Range {
	t.Helper()
	r := factory.NewEmptyRange(uint64(begin))
	for i := begin; i < end; i++ {
		if err := r.Append(l.records[i].Hash[:], nil); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (l *testLog) checkpoint(t fatal, size int64) trail.Checkpoint {
	t.Helper()
	if size == 0 {
		return trail.Checkpoint{Origin: origin, Root: sha256.Sum256(nil)}
	}
	root, err := l.compact(t, 0, size).GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	return trail.Checkpoint{Origin: origin, Size: size, Root: tlog.Hash(root)}
}

// rotate hands the log over to a new key at a size.
func (l *testLog) rotate(t fatal, size int64) {
	t.Helper()
	from, to := l.keys[len(l.keys)-1], newKey(t, origin)
	h := trail.Handover{Origin: origin, From: from.vkey, To: to.vkey, Size: size}
	l.keys, l.handovers = append(l.keys, to), append(l.handovers, sign(t, h.Text(), from, to))
}

func (l *testLog) head(t fatal, begin, end, size int64, filter map[string]string) Head {
	t.Helper()
	h := Head{
		Origin: origin, Checkpoint: sign(t, l.checkpoint(t, size).Text(), l.keys[len(l.keys)-1]), Handovers: l.handovers,
		Begin: begin, End: end, Left: l.hashes(t, 0, begin), Right: l.hashes(t, end, size), Filter: filter,
	}
	for _, k := range l.keys {
		h.Keys = append(h.Keys, k.vkey)
	}
	return h
}

func (l *testLog) trusted(t fatal) *trail.Keys {
	t.Helper()
	k, err := trail.ParseKeys(l.keys[0].vkey)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// export writes what is due from Next on. hidden leaves are gaps; entries shows
// the leaves that the filter omits.
func (l *testLog) export(t fatal, w *Writer, hidden map[int64]string, entries bool) {
	t.Helper()
	for w.Next() < w.head.End {
		i := w.Next()
		why := hidden[i]
		if why == "" {
			if err := w.Write(&l.records[i]); err != nil {
				t.Fatal(err)
			}
			continue
		}
		end := i + 1
		for end < w.head.End && hidden[end] == why {
			end++
		}
		g := Gap{Begin: i, End: end, Why: why}
		if entries && why == Filtered {
			g.Entries = l.leaves[i:end]
		} else {
			g.Hashes = l.hashes(t, i, end)
		}
		if err := w.Gap(g); err != nil {
			t.Fatal(err)
		}
	}
}

// omit returns the leaves that a filter leaves out.
func (l *testLog) omit(t fatal, filter map[string]string) map[int64]string {
	t.Helper()
	f, err := ParseFilter(filter)
	if err != nil {
		t.Fatal(err)
	}
	out := map[int64]string{}
	for i := range l.records {
		leaf, err := l.records[i].Leaf()
		if err != nil {
			t.Fatal(err)
		}
		if f.refuses(&l.records[i].Event, &leaf) != "" && l.records[i].Action != PruneAction {
			out[int64(i)] = Filtered
		}
	}
	return out
}

// bundle writes a whole bundle to a new folder.
func (l *testLog) bundle(t *testing.T, head Head, hidden map[int64]string, entries bool) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bundle")
	w, err := Create(dir, head, "jsonl")
	if err != nil {
		t.Fatal(err)
	}
	l.export(t, w, hidden, entries)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func verify(t testing.TB, path string, keys *trail.Keys) Report {
	t.Helper()
	r, err := Verify(t.Context(), path, Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantHonest(t testing.TB, r Report) {
	t.Helper()
	if !r.OK() {
		t.Fatalf("the bundle is honest, and there are findings (root verified: %v):\n%s", r.RootVerified, list(r))
	}
}

func list(r Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "%s index=%d id=%s fields=%v: %s\n", f.Kind, f.Index, f.ID, f.Fields, f.Text)
	}
	return b.String()
}

// pruneEvent declares [begin, end) pruned.
func pruneEvent(n int, begin, end int64) trail.Event {
	e := event(n)
	e.Action, e.Outcome, e.Resource, e.Detail = PruneAction, trail.OK, "trail", fmt.Sprintf(`{"begin":%d,"end":%d}`, begin, end)
	e.Checks = e.MakeChecks()
	return e
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

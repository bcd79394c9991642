package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// victim is a bundle that is tampered with.
type victim struct {
	t   *testing.T
	l   *testLog
	dir string
}

func (v *victim) path(name string) string { return filepath.Join(v.dir, name) }

func (v *victim) text(name string, edit func(string) string) {
	v.t.Helper()
	before := readFile(v.t, v.path(name))
	after := edit(before)
	if before == after {
		v.t.Fatalf("the edit of %s changed nothing", name)
	}
	writeFile(v.t, v.path(name), after)
}

func (v *victim) replace(name, old, with string) {
	v.t.Helper()
	v.text(name, func(s string) string { return strings.Replace(s, old, with, 1) })
}

func (v *victim) records(part int, edit func([]trail.Record) []trail.Record) {
	v.t.Helper()
	name := v.path(dataName(part, "jsonl"))
	in, err := format.NewReader("jsonl", strings.NewReader(readFile(v.t, name)))
	if err != nil {
		v.t.Fatal(err)
	}
	var all []trail.Record
	for {
		var r trail.Record
		if err := in.Read(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			v.t.Fatal(err)
		}
		all = append(all, r)
	}
	var b bytes.Buffer
	out, err := format.NewWriter("jsonl", &b)
	if err != nil {
		v.t.Fatal(err)
	}
	for _, r := range edit(all) {
		if err := out.Write(&r); err != nil {
			v.t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		v.t.Fatal(err)
	}
	writeFile(v.t, name, b.String())
}

// one edits one record.
func (v *victim) one(part, n int, edit func(*trail.Record)) {
	v.t.Helper()
	v.records(part, func(all []trail.Record) []trail.Record {
		edit(&all[n])
		return all
	})
}

func (v *victim) manifest(edit func(*Manifest)) {
	v.t.Helper()
	m, err := parseManifest([]byte(readFile(v.t, v.path(fileManifest))))
	if err != nil {
		v.t.Fatal(err)
	}
	edit(m)
	b, err := m.encode()
	if err != nil {
		v.t.Fatal(err)
	}
	writeFile(v.t, v.path(fileManifest), string(b))
}

// reseal makes the manifest fit the files, as a careful forger does.
func (v *victim) reseal() {
	v.t.Helper()
	v.manifest(func(m *Manifest) {
		m.Records = 0
		for i := range m.Parts {
			p := &m.Parts[i]
			for _, f := range []*File{p.Data, p.GapFile} {
				if f == nil {
					continue
				}
				b, err := os.ReadFile(v.path(f.Name))
				if err != nil {
					continue
				}
				sum := sha256.Sum256(b)
				f.Bytes, f.SHA256 = int64(len(b)), hex.EncodeToString(sum[:])
				if f == p.Data {
					p.Records = int64(bytes.Count(b, []byte("\n")))
				} else {
					p.Gaps = int64(bytes.Count(b, []byte("\ngap ")))
				}
			}
			m.Records += p.Records
		}
	})
}

func rehash(r *trail.Record) {
	h, err := r.Event.Hash()
	if err != nil {
		panic(err)
	}
	r.Hash = h
}

// inParts writes a bundle of parts of 20 leaves.
func (l *testLog) inParts(t *testing.T, head Head, hidden map[int64]string, entries bool) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bundle")
	w, err := Create(dir, head, "jsonl")
	if err != nil {
		t.Fatal(err)
	}
	end := head.End
	for w.Next() < end {
		w.head.End = min(w.Next()+20, end)
		l.export(t, w, hidden, entries)
		if err := w.endPart(); err != nil {
			t.Fatal(err)
		}
	}
	w.head.End = end
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestVerifyNamesEveryTampering is the table of tamperings of a bundle. Each is
// done as it is and, where a forger could, with a manifest that fits it again.
func TestVerifyNamesEveryTampering(t *testing.T) {
	l := newLog(t, 70)
	if err := l.records[31].Erase(trail.Address); err != nil {
		t.Fatal(err)
	}
	l.rotate(t, 50)
	l.add(t, pruneEvent(70, 10, 15))
	l.add(t, event(71))
	filter := map[string]string{"action": "api_key."}
	pruned := map[int64]string{10: Pruned, 11: Pruned, 12: Pruned, 13: Pruned, 14: Pruned}
	both := l.omit(t, filter)
	maps.Copy(both, pruned)
	const size = 72
	bases := map[string]string{
		// [5, 65) and [5, 71), parts begin at 5, 25, 45 and 65
		"plain":    l.inParts(t, l.head(t, 5, 65, size, nil), nil, false),
		"pruned":   l.inParts(t, l.head(t, 5, 71, size, nil), pruned, false),
		"filtered": l.inParts(t, l.head(t, 5, 71, size, filter), both, true),
		"hashes":   l.inParts(t, l.head(t, 5, 71, size, filter), both, false),
	}
	head := l.head(t, 5, 65, size, nil)
	head.Evidence = []string{l.proof(t, 70, size)}
	bases["evidence"] = l.inParts(t, head, pruned, false)
	for name, dir := range bases {
		if r := verify(t, dir, l.trusted(t)); !r.OK() {
			t.Fatalf("the base %s:\n%s", name, list(r))
		}
	}
	stranger := newLog(t, size)
	elsewhere := newKey(t, "trail.example.com/other")
	first, second := l.keys[0], l.keys[1]

	const either, only = true, false
	tests := []struct {
		name   string
		base   string
		reseal bool // also try with a manifest that fits
		edit   func(*victim)
		kinds  string // all kinds that are found, sorted; with a resealed manifest too
		index  int64  // of the first finding; -1: of none
		fields string // of the first finding
	}{
		// Each field of a record, its leaf hash left as it was.
		{"id", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.ID = event(999).ID }) }, "altered", 28, "id"},
		{"time", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Time = r.Time.Add(time.Microsecond) }) }, "altered", 28, "time"},
		{"actor", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Actor = "nobody" }) }, "altered", 28, "actor"},
		{"action", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Action = "keyset.delete" }) }, "altered", 28, "action"},
		{"resource", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Resource = "keysets/k0x" }) }, "altered", 28, "resource"},
		{"partner", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Partner = "initech" }) }, "altered", 28, "partner"},
		{"partner emptied", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Partner = "" }) }, "altered", 28, "partner"},
		{"outcome", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Outcome = trail.Denied }) }, "altered", 28, "outcome"},
		{"reason", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Reason = "because" }) }, "altered", 28, "reason"},
		{"request id", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.RequestID += "0" }) }, "altered", 28, "request_id"},
		{"address", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Address = "198.51.100.1" }) }, "altered", 28, "address"},
		{"detail", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Detail = `{"algorithm":"none"}` }) }, "altered", 28, "detail"},
		{"count", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Count = 2 }) }, "altered", 28, "count"},
		{"intent", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Intent = event(2).ID }) }, "altered", 28, "intent"},
		{"salt", "plain", either, func(v *victim) {
			v.one(1, 3, func(r *trail.Record) { r.Salt = bytes.Repeat([]byte{1}, trail.SeedSize) })
		}, "altered", 28, "actor,partner,request_id,address,detail"},
		{"erased field's commitment", "plain", either, func(v *victim) { v.one(1, 6, func(r *trail.Record) { r.Erased[trail.Address][0]++ }) }, "altered", 31, "address"},
		{"erased field made up again", "plain", either, func(v *victim) {
			v.one(1, 6, func(r *trail.Record) { r.Erased[trail.Address] = [32]byte{}; r.Address = "192.0.2.31" })
		}, "altered", 31, "address"},
		{"two fields", "plain", either, func(v *victim) {
			v.one(1, 3, func(r *trail.Record) { r.Actor, r.Outcome = "nobody", trail.Failed })
		}, "altered", 28, "outcome,actor"},
		{"hash", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Hash[31]++ }) }, "altered", 28, "hash"},
		{"checks", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Checks = event(4).Checks }) }, "altered", 28, "checks"},
		{"origin", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Origin = "other" }) }, "altered", 28, "origin"},
		{"index forward", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Index = 35 }) }, "altered", 28, "index"},
		{"index backward", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Index = 26 }) }, "altered", 28, "index"},
		{"index out of the bundle", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Index = 7777 }) }, "altered", 28, "index"},
		{"index of a part's last", "plain", either, func(v *victim) { v.one(1, 19, func(r *trail.Record) { r.Index = 30 }) }, "altered", 44, "index"},

		// With the leaf hash: the root tells, the checks name.
		{"field and hash", "plain", either, func(v *victim) { v.one(1, 3, func(r *trail.Record) { r.Actor = "nobody"; rehash(r) }) }, "altered root", -1, ""},
		{"field, hash and checks", "plain", either, func(v *victim) {
			v.one(1, 3, func(r *trail.Record) { r.Actor = "nobody"; rehash(r); r.Checks = r.MakeChecks() })
		}, "root", -1, ""},
		{"field and checks", "plain", either, func(v *victim) {
			v.one(1, 3, func(r *trail.Record) { r.Actor = "nobody"; r.Checks = r.MakeChecks() })
		}, "altered root", 28, "hash"},
		{"text between records", "plain", only, func(v *victim) { v.text("data-000001.jsonl", func(s string) string { return s + "\n" }) }, "format", 45, ""},
		{"member written in another way", "plain", either, func(v *victim) { v.replace("data-000001.jsonl", `"outcome":"ok"`, `"outcome": "ok"`) }, "format", 25, ""},
		{"outcome that there is not", "plain", either, func(v *victim) { v.replace("data-000001.jsonl", `"outcome":"ok"`, `"outcome":"fine"`) }, "altered", 25, "outcome"},

		// Records as wholes.
		{"first deleted", "plain", either, func(v *victim) { v.records(0, func(a []trail.Record) []trail.Record { return a[1:] }) }, "missing", 5, ""},
		{"middle deleted", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { return slices.Delete(a, 7, 8) })
		}, "missing", 32, ""},
		{"three deleted", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { return slices.Delete(a, 7, 10) })
		}, "missing", 32, ""},
		{"part's last deleted", "plain", either, func(v *victim) { v.records(1, func(a []trail.Record) []trail.Record { return a[:19] }) }, "missing", 44, ""},
		{"last deleted", "plain", either, func(v *victim) { v.records(2, func(a []trail.Record) []trail.Record { return a[:19] }) }, "truncated", 64, ""},
		{"last five deleted", "plain", either, func(v *victim) { v.records(2, func(a []trail.Record) []trail.Record { return a[:15] }) }, "truncated", 60, ""},
		{"neighbours swapped", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { a[4], a[5] = a[5], a[4]; return a })
		}, "reordered", 30, ""},
		{"two swapped", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { a[4], a[9] = a[9], a[4]; return a })
		}, "reordered", 34, ""},
		{"neighbours swapped and numbered again", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record {
				a[4], a[5] = a[5], a[4]
				a[4].Index, a[5].Index = a[5].Index, a[4].Index
				return a
			})
		}, "root", -1, ""},
		{"moved forward", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record {
				x := a[4]
				return slices.Insert(slices.Delete(a, 4, 5), 9, x)
			})
		}, "reordered", 29, ""},
		{"moved backward", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record {
				x := a[9]
				return slices.Insert(slices.Delete(a, 9, 10), 4, x)
			})
		}, "reordered", 34, ""},
		{"moved to another part", "plain", either, func(v *victim) {
			var x trail.Record
			v.records(1, func(a []trail.Record) []trail.Record { x = a[9]; return slices.Delete(a, 9, 10) })
			v.records(0, func(a []trail.Record) []trail.Record { return slices.Insert(a, 4, x) })
		}, "missing reordered", 34, ""},
		{"duplicated", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { return slices.Insert(a, 4, a[4]) })
		}, "duplicate", 29, ""},
		{"duplicated far away", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { return slices.Insert(a, 12, a[4]) })
		}, "duplicate", 29, ""},
		{"duplicated before", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { return slices.Insert(a, 4, a[12]) })
		}, "duplicate", 37, ""},
		{"last duplicated", "plain", either, func(v *victim) {
			v.records(2, func(a []trail.Record) []trail.Record { return append(a, a[19]) })
		}, "duplicate", 64, ""},
		{"inserted with a used index", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record {
				x := stranger.records[3]
				x.Index = 29
				return slices.Insert(a, 4, x)
			})
		}, "inserted root", 29, ""},
		{"inserted with an index beyond", "plain", either, func(v *victim) {
			v.records(2, func(a []trail.Record) []trail.Record { return append(a, l.records[65]) })
		}, "inserted", 65, ""},
		{"inserted and numbered on", "plain", either, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record {
				a = slices.Insert(a, 4, stranger.records[3])
				for i := range a {
					a[i].Index = int64(25 + i)
				}
				return a
			})
		}, "reordered root", 45, ""},
		{"replaced by another event", "plain", either, func(v *victim) {
			v.one(1, 3, func(r *trail.Record) { *r = l.records[66]; r.Index = 28 })
		}, "root", -1, ""},
		{"taken from another log", "plain", either, func(v *victim) {
			v.one(1, 3, func(r *trail.Record) { *r = stranger.records[28]; r.Origin = "other" })
		}, "altered", 28, "origin"},

		// Parts.
		{"part removed", "plain", only, func(v *victim) { os.Remove(v.path("data-000001.jsonl")) }, "missing", 25, ""},
		{"last part removed", "plain", only, func(v *victim) { os.Remove(v.path("data-000002.jsonl")) }, "truncated", 45, ""},
		{"part removed, and from the manifest", "plain", only, func(v *victim) {
			os.Remove(v.path("data-000001.jsonl"))
			if err := os.Rename(v.path("data-000002.jsonl"), v.path("data-000001.jsonl")); err != nil {
				t.Fatal(err)
			}
			v.manifest(func(m *Manifest) {
				m.Parts = slices.Delete(m.Parts, 1, 2)
				m.Parts[1].Data.Name = "data-000001.jsonl"
				m.Records -= 20
			})
		}, "missing", 25, ""},
		{"last part removed, and from the manifest", "plain", only, func(v *victim) {
			os.Remove(v.path("data-000002.jsonl"))
			v.manifest(func(m *Manifest) { m.Parts = m.Parts[:2]; m.Records -= 20 })
		}, "truncated", 45, ""},
		{"range shortened too", "plain", only, func(v *victim) {
			os.Remove(v.path("data-000002.jsonl"))
			v.manifest(func(m *Manifest) { m.Parts = m.Parts[:2]; m.Records -= 20; m.End = 45 })
		}, "root", -1, ""},
		{"part truncated in a record", "plain", only, func(v *victim) {
			v.text("data-000001.jsonl", func(s string) string { return s[:len(s)/2] })
		}, "truncated", 34, ""},
		{"part truncated after a record", "plain", only, func(v *victim) {
			v.text("data-000001.jsonl", func(s string) string { return strings.Join(strings.SplitAfter(s, "\n")[:9], "") })
		}, "missing", 34, ""},
		{"part emptied", "plain", only, func(v *victim) { writeFile(t, v.path("data-000001.jsonl"), "") }, "missing", 25, ""},
		{"parts swapped", "plain", either, func(v *victim) {
			a, b := readFile(t, v.path("data-000000.jsonl")), readFile(t, v.path("data-000001.jsonl"))
			writeFile(t, v.path("data-000000.jsonl"), b)
			writeFile(t, v.path("data-000001.jsonl"), a)
		}, "missing reordered", -2, ""},
		{"part added", "plain", only, func(v *victim) { writeFile(t, v.path("data-000003.jsonl"), readFile(t, v.path("data-000002.jsonl"))) }, "inserted", -1, ""},

		// Gaps.
		{"gap's begin", "pruned", either, func(v *victim) { v.replace("gaps-000000", "gap 10 15", "gap 9 15") }, "format missing", -2, ""},
		{"gap shorter", "pruned", either, func(v *victim) { v.replace("gaps-000000", "gap 10 15", "gap 10 14") }, "format missing", -2, ""},
		{"gap longer", "pruned", either, func(v *victim) { v.replace("gaps-000000", "gap 10 15", "gap 10 16") }, "format missing", -2, ""},
		{"gap over a record that was cut out", "plain", only, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { return slices.Delete(a, 7, 8) })
			v.addGap(1, Gap{Begin: 32, End: 33, Why: Pruned, Hashes: l.hashes(t, 32, 33)})
		}, "pruned_without_evidence", 32, ""},
		{"gap by a filter that there is not", "plain", only, func(v *victim) {
			v.records(1, func(a []trail.Record) []trail.Record { return slices.Delete(a, 7, 8) })
			v.addGap(1, Gap{Begin: 32, End: 33, Why: Filtered, Hashes: l.hashes(t, 32, 33)})
		}, "filter", 32, ""},
		{"matching event hidden in a shown gap", "filtered", only, func(v *victim) { v.hide(1, true) }, "filter", 25, ""},
		{"gap's hash", "pruned", either, func(v *victim) { v.flip("gaps-000000", "hash ") }, "root", -1, ""},
		{"gap's leaf", "filtered", either, func(v *victim) { v.flip("gaps-000001", "leaf ") }, "format root", 27, ""},
		{"hash too many", "pruned", either, func(v *victim) {
			v.text("gaps-000000", func(s string) string { return s + s[strings.LastIndex(s, "hash"):] })
		}, "format missing", -2, ""},
		{"hash cut out", "pruned", either, func(v *victim) {
			v.text("gaps-000000", func(s string) string { return s[:strings.LastIndex(s, "hash")] })
		}, "format missing", -2, ""},
		{"leaf cut out", "filtered", either, func(v *victim) {
			v.text("gaps-000001", func(s string) string {
				i := strings.Index(s, "leaf ")
				return s[:i] + s[i+strings.Index(s[i:], "\n")+1:]
			})
		}, "format missing", -2, ""},
		{"gaps file removed", "pruned", only, func(v *victim) { os.Remove(v.path("gaps-000000")) }, "missing", 5, ""},
		{"gaps file emptied", "pruned", only, func(v *victim) { writeFile(t, v.path("gaps-000000"), "") }, "format missing", -2, ""},
		{"gaps file cut", "pruned", only, func(v *victim) { v.text("gaps-000000", func(s string) string { return s[:len(s)-1] }) }, "format missing", -2, ""},
		{"why: pruned said to be filtered", "pruned", either, func(v *victim) { v.replace("gaps-000000", "pruned", "filter") }, "filter", 10, ""},
		{"why: filtered said to be pruned", "plain", only, func(v *victim) {
			v.records(0, func(a []trail.Record) []trail.Record { return a[1:] })
			v.addGap(0, Gap{Begin: 5, End: 6, Why: Pruned, Entries: l.leaves[5:6]})
		}, "pruned_without_evidence", 5, ""},
		{"the event that declares a prune hidden", "pruned", only, func(v *victim) {
			os.Remove(v.path("data-000003.jsonl"))
			v.manifest(func(m *Manifest) {
				m.Parts, m.Records, m.End = m.Parts[:3], m.Records-m.Parts[3].Records, 65
			})
			writeFile(t, v.path(fileTree), formatTree(l.hashes(t, 0, 5), l.hashes(t, 65, size)))
		}, "pruned_without_evidence", 10, ""},

		// Evidence.
		{"evidence removed", "evidence", only, func(v *victim) { os.Remove(v.path(fileEvidence)) }, "pruned_without_evidence", 10, ""},
		{"evidence emptied", "evidence", only, func(v *victim) { writeFile(t, v.path(fileEvidence), "") }, "format pruned_without_evidence", -2, ""},
		{"evidence's index", "evidence", only, func(v *victim) { v.replace(fileEvidence, "index 70", "index 71") }, "altered pruned_without_evidence", -2, ""},
		{"evidence of another event", "evidence", only, func(v *victim) { writeFile(t, v.path(fileEvidence), l.proof(t, 71, size)) }, "format pruned_without_evidence", -2, ""},
		{"evidence of another log", "evidence", only, func(v *victim) { writeFile(t, v.path(fileEvidence), stranger.proof(t, 70, size)) }, "pruned_without_evidence signature", -2, ""},

		// The manifest.
		{"version", "plain", only, func(v *victim) { v.replace(fileManifest, `"version": 1`, `"version": 2`) }, "format", -1, ""},
		{"origin in the manifest", "plain", only, func(v *victim) { v.replace(fileManifest, origin, "trail.example.com/other") }, "altered", -2, "origin"},
		{"format", "plain", only, func(v *victim) { v.replace(fileManifest, `"format": "jsonl"`, `"format": "csv"`) }, "format", -1, ""},
		{"begin", "plain", only, func(v *victim) { v.replace(fileManifest, `"begin": 5`, `"begin": 4`) }, "missing root", -2, ""},
		{"end", "plain", only, func(v *victim) { v.replace(fileManifest, `"end": 65`, `"end": 66`) }, "root truncated", -2, ""},
		{"checkpoint size larger", "plain", only, func(v *victim) { v.replace(fileManifest, `"checkpoint_size": 72`, `"checkpoint_size": 74`) }, "rollback root", -1, ""},
		{"checkpoint size smaller", "plain", only, func(v *victim) { v.replace(fileManifest, `"checkpoint_size": 72`, `"checkpoint_size": 70`) }, "altered", -1, "checkpoint_size"},
		{"records", "plain", only, func(v *victim) { v.manifest(func(m *Manifest) { m.Records++ }) }, "altered", -1, "records"},
		{"records of a part", "plain", only, func(v *victim) { v.manifest(func(m *Manifest) { m.Parts[1].Records++; m.Records++ }) }, "altered", -1, ""},
		{"gaps of a part", "pruned", only, func(v *victim) { v.manifest(func(m *Manifest) { m.Parts[0].Gaps++ }) }, "altered", -1, ""},
		{"bytes of a part", "plain", only, func(v *victim) { v.manifest(func(m *Manifest) { m.Parts[1].Data.Bytes-- }) }, "altered", -1, ""},
		{"sum of a part", "plain", only, func(v *victim) {
			v.manifest(func(m *Manifest) { m.Parts[1].Data.SHA256 = strings.Repeat("0", 64) })
		}, "altered", -1, ""},
		{"sum of a gaps file", "pruned", only, func(v *victim) {
			v.manifest(func(m *Manifest) { m.Parts[0].GapFile.SHA256 = strings.Repeat("0", 64) })
		}, "altered", -1, ""},
		{"name of a part", "plain", only, func(v *victim) { v.manifest(func(m *Manifest) { m.Parts[1].Data.Name = "../data" }) }, "format", -1, ""},
		{"parts in another order", "plain", only, func(v *victim) {
			v.manifest(func(m *Manifest) {
				m.Parts[0].Begin, m.Parts[0].End, m.Parts[1].Begin, m.Parts[1].End = 25, 45, 5, 25
			})
		}, "format missing reordered", -2, ""},
		{"a member twice", "plain", only, func(v *victim) { v.replace(fileManifest, `"version": 1,`, `"version": 1, "version": 1,`) }, "format", -1, ""},
		{"a member that there is not", "plain", only, func(v *victim) { v.replace(fileManifest, `"version": 1,`, `"version": 1, "note": "",`) }, "format", -1, ""},
		{"manifest removed", "plain", only, func(v *victim) { os.Remove(v.path(fileManifest)) }, "missing", -1, ""},
		{"manifest cut", "plain", only, func(v *victim) { v.text(fileManifest, func(s string) string { return s[:len(s)/2] }) }, "format", -1, ""},

		// The filter.
		{"filter narrowed", "filtered", only, func(v *victim) { v.replace(fileManifest, `"action": "api_key."`, `"action": "api_key.issue"`) }, "filter", -2, ""},
		{"filter widened", "filtered", only, func(v *victim) { v.replace(fileManifest, `"action": "api_key."`, `"action": ""`) }, "filter", -2, ""},
		{"filter moved", "filtered", only, func(v *victim) { v.replace(fileManifest, `"action": "api_key."`, `"action": "keyset."`) }, "filter", -2, ""},
		{"filter taken away", "hashes", only, func(v *victim) { v.manifest(func(m *Manifest) { m.Filter = map[string]string{} }) }, "filter", -2, ""},
		{"condition added to hide something", "filtered", only, func(v *victim) {
			v.manifest(func(m *Manifest) { m.Filter["partner"] = "acme" })
		}, "filter", -2, ""},
		{"condition that nobody knows", "filtered", only, func(v *victim) { v.manifest(func(m *Manifest) { m.Filter["mood"] = "x" }) }, "filter", -1, ""},

		// Tree, checkpoint, keys and handovers.
		{"hash in the tree", "plain", only, func(v *victim) { v.flip(fileTree, "left ") }, "root", -1, ""},
		{"hash in the tree to the right", "plain", only, func(v *victim) { v.flip(fileTree, "right ") }, "root", -1, ""},
		{"hash cut from the tree", "plain", only, func(v *victim) { v.text(fileTree, func(s string) string { return s[:strings.LastIndex(s, "right")] }) }, "root", -1, ""},
		{"tree's sides", "plain", only, func(v *victim) {
			v.text(fileTree, func(s string) string { return strings.ReplaceAll(s, "left", "right") })
		}, "root", -1, ""},
		{"tree cut", "plain", only, func(v *victim) { v.text(fileTree, func(s string) string { return s[:len(s)-1] }) }, "format", -1, ""},
		{"tree removed", "plain", only, func(v *victim) { os.Remove(v.path(fileTree)) }, "missing", -1, ""},
		{"older checkpoint", "plain", only, func(v *victim) {
			writeFile(t, v.path(fileCheckpoint), sign(t, l.checkpoint(t, 68).Text(), second))
		}, "rollback", -1, ""},
		{"older checkpoint and manifest", "plain", only, func(v *victim) {
			writeFile(t, v.path(fileCheckpoint), sign(t, l.checkpoint(t, 68).Text(), second))
			v.manifest(func(m *Manifest) { m.CheckpointSize = 68 })
		}, "root", -1, ""},
		{"newer checkpoint", "evidence", only, func(v *victim) {
			c := l.checkpoint(t, size)
			c.Size++
			writeFile(t, v.path(fileCheckpoint), sign(t, c.Text(), second))
		}, "altered", -1, "checkpoint_size"},
		{"checkpoint of another key", "plain", only, func(v *victim) {
			writeFile(t, v.path(fileCheckpoint), sign(t, l.checkpoint(t, size).Text(), newKey(t, origin)))
		}, "signature", -1, ""},
		{"checkpoint by the key that was handed over", "plain", only, func(v *victim) {
			writeFile(t, v.path(fileCheckpoint), sign(t, l.checkpoint(t, size).Text(), first))
		}, "signature", -1, ""},
		{"checkpoint of another origin", "plain", only, func(v *victim) {
			c := l.checkpoint(t, size)
			c.Origin = "trail.example.com/other"
			writeFile(t, v.path(fileCheckpoint), sign(t, c.Text(), elsewhere))
		}, "altered signature", -1, ""},
		{"checkpoint of another origin by our key", "plain", only, func(v *victim) {
			c := l.checkpoint(t, size)
			c.Origin = "trail.example.com/other"
			writeFile(t, v.path(fileCheckpoint), sign(t, c.Text(), second))
		}, "altered signature", -1, ""},
		{"checkpoint's root", "plain", only, func(v *victim) {
			c := l.checkpoint(t, size)
			c.Root[0]++
			writeFile(t, v.path(fileCheckpoint), sign(t, c.Text(), second))
		}, "root", -1, ""},
		{"checkpoint's text", "plain", only, func(v *victim) { v.replace(fileCheckpoint, "\n72\n", "\n71\n") }, "rollback signature", -1, ""},
		{"checkpoint unsigned", "plain", only, func(v *victim) { writeFile(t, v.path(fileCheckpoint), l.checkpoint(t, size).Text()+"\n") }, "signature", -1, ""},
		{"checkpoint no note", "plain", only, func(v *victim) { writeFile(t, v.path(fileCheckpoint), "hello") }, "format signature", -1, ""},
		{"checkpoint removed", "plain", only, func(v *victim) { os.Remove(v.path(fileCheckpoint)) }, "missing", -1, ""},
		{"keys replaced", "plain", only, func(v *victim) {
			writeFile(t, v.path(fileKeys), stranger.keys[0].vkey+"\n")
			os.Remove(v.path(fileHandovers))
		}, "key signature", -1, ""},
		{"all replaced by another log's", "plain", only, func(v *victim) {
			if err := os.CopyFS(v.dir+"-other", os.DirFS(stranger.inParts(t, stranger.head(t, 5, 65, size, nil), nil, false))); err != nil {
				t.Fatal(err)
			}
			v.dir += "-other"
		}, "key signature", -1, ""},
		{"key added", "plain", only, func(v *victim) { v.text(fileKeys, func(s string) string { return s + newKey(t, origin).vkey + "\n" }) }, "key signature", -1, ""},
		{"key cut out", "plain", only, func(v *victim) { v.text(fileKeys, func(s string) string { return second.vkey + "\n" }) }, "key signature", -1, ""},
		{"keys edited", "plain", only, func(v *victim) { v.text(fileKeys, func(s string) string { return "# mine\n" + s }) }, "format", -1, ""},
		{"keys removed", "plain", only, func(v *victim) { os.Remove(v.path(fileKeys)) }, "missing signature", -1, ""},
		{"keys no keys", "plain", only, func(v *victim) { writeFile(t, v.path(fileKeys), "hello\n") }, "format signature", -1, ""},
		{"handovers removed", "plain", only, func(v *victim) { os.Remove(v.path(fileHandovers)) }, "key signature", -1, ""},
		{"handover by the old key alone", "plain", only, func(v *victim) {
			h := trail.Handover{Origin: origin, From: first.vkey, To: second.vkey, Size: 50}
			writeFile(t, v.path(fileHandovers), sign(t, h.Text(), first))
		}, "key signature", -1, ""},
		{"handover at another size", "plain", only, func(v *victim) { v.replace(fileHandovers, "\n50\n", "\n51\n") }, "key signature", -1, ""},
		{"handover to a thief who has the old key", "plain", only, func(v *victim) {
			thief := newKey(t, origin)
			h := trail.Handover{Origin: origin, From: first.vkey, To: thief.vkey, Size: 50}
			v.text(fileHandovers, func(s string) string { return joinNotes([]string{s, sign(t, h.Text(), first, thief)}) })
			v.text(fileKeys, func(s string) string { return s + thief.vkey + "\n" })
			writeFile(t, v.path(fileCheckpoint), sign(t, l.checkpoint(t, size).Text(), thief))
		}, "key signature", -1, ""},
		{"handovers cut", "plain", only, func(v *victim) { v.text(fileHandovers, func(s string) string { return s[:len(s)-2] }) }, "format signature", -1, ""},
	}
	for _, tt := range tests {
		for _, resealed := range []bool{false, true} {
			if resealed && !tt.reseal {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s/%v", tt.base, tt.name, resealed), func(t *testing.T) {
				v := &victim{t: t, l: l, dir: filepath.Join(t.TempDir(), "bundle")}
				if err := os.CopyFS(v.dir, os.DirFS(bases[tt.base])); err != nil {
					t.Fatal(err)
				}
				tt.edit(v)
				if resealed {
					v.reseal()
				}
				r := verify(t, v.dir, l.trusted(t))
				if r.OK() || len(r.Findings) == 0 {
					t.Fatal("nothing was found")
				}
				// A forger who leaves the manifest as it is gives himself away once more.
				if !resealed && tt.reseal && len(r.Findings) > 1 && strings.Contains(r.Findings[0].Text, "is not the file that the manifest describes") {
					r.Findings = r.Findings[1:]
				}
				kinds := map[string]bool{}
				for _, f := range r.Findings {
					kinds[f.Kind] = true
					if f.Text == "" || strings.Contains(f.Text, "%!") {
						t.Errorf("text %q", f.Text)
					}
				}
				if r.RootVerified && tt.base != "evidence" && (kinds[Signature] || kinds[Root] || kinds[Missing] || kinds[Truncated]) {
					t.Error("the root is said to be verified")
				}
				if got := strings.Join(slices.Sorted(maps.Keys(kinds)), " "); got != tt.kinds {
					t.Errorf("kinds %q, want %q:\n%s", got, tt.kinds, list(r))
				}
				f := r.Findings[0]
				if tt.index != -2 && f.Index != tt.index || tt.index != -2 && strings.Join(f.Fields, ",") != tt.fields {
					t.Errorf("the first finding is at %d of fields %v, want %d of %q:\n%s", f.Index, f.Fields, tt.index, tt.fields, list(r))
				}
				if tt.index >= 0 && f.Index < size && f.ID != "" && f.Kind == Altered && tt.fields != "id" && tt.fields != "index" && tt.fields != "origin" {
					if diff := cmp.Diff(l.records[f.Index].ID, f.ID); diff != "" {
						t.Errorf("the finding's event (-want +got):\n%s", diff)
					}
				}
			})
		}
	}
}

// flip changes the first letter behind a word.
func (v *victim) flip(name, word string) {
	v.t.Helper()
	v.text(name, func(s string) string {
		i := strings.Index(s, word) + len(word)
		c := "A"
		if s[i] == 'A' {
			c = "B"
		}
		return s[:i] + c + s[i+1:]
	})
}

// addGap gives a part without gaps one, with a manifest that fits.
func (v *victim) addGap(part int, g Gap) {
	v.t.Helper()
	writeFile(v.t, v.path(gapsName(part)), gapsTitle+"\n"+string(appendGap(nil, &g)))
	var p map[string]any
	raw := readFile(v.t, v.path(fileManifest))
	if err := json.Unmarshal([]byte(raw), &p); err != nil {
		v.t.Fatal(err)
	}
	v.manifest(func(m *Manifest) { m.Parts[part].GapFile, m.Parts[part].Gaps = &File{Name: gapsName(part)}, 1 })
	v.resealRaw()
}

// resealRaw reseals a manifest that can't be parsed yet.
func (v *victim) resealRaw() {
	v.t.Helper()
	var m Manifest
	if err := json.Unmarshal([]byte(readFile(v.t, v.path(fileManifest))), &m); err != nil {
		v.t.Fatal(err)
	}
	for i := range m.Parts {
		for _, f := range []*File{m.Parts[i].Data, m.Parts[i].GapFile} {
			if f != nil {
				f.Bytes, f.SHA256 = 1, strings.Repeat("0", 64)
			}
		}
	}
	b, err := m.encode()
	if err != nil {
		v.t.Fatal(err)
	}
	writeFile(v.t, v.path(fileManifest), string(b))
	v.reseal()
}

// hide turns the first record of a part, which matches the filter, into a gap
// that shows its leaf.
func (v *victim) hide(part int, entries bool) {
	v.t.Helper()
	var gone trail.Record
	v.records(part, func(a []trail.Record) []trail.Record { gone = a[0]; return a[1:] })
	g := Gap{Begin: gone.Index, End: gone.Index + 1, Why: Filtered}
	if entries {
		g.Entries = v.l.leaves[g.Begin:g.End]
	}
	v.text(gapsName(part), func(s string) string {
		var out string
		done := false
		for _, line := range strings.SplitAfter(s, "\n") {
			var begin int64
			if _, err := fmt.Sscanf(line, "gap %d ", &begin); err == nil && begin > gone.Index && !done {
				out, done = out+string(appendGap(nil, &g)), true
			}
			out += line
		}
		if !done {
			out += string(appendGap(nil, &g))
		}
		return out
	})
	v.reseal()
}

func TestDocsListTheKindsOfFindings(t *testing.T) {
	page := readFile(t, "../../docs/trail.md")
	_, table, _ := strings.Cut(page, "## What a verifier says")
	for _, kind := range []string{Altered, Missing, Inserted, Reordered, Duplicate, Truncated, Root, Signature, Key, Fork, Rollback, Undeclared, Format, Contradict, Incomplete} {
		if !strings.Contains(table, "\n| `"+kind+"` | ") {
			t.Errorf("docs/trail.md does not say what %q is", kind)
		}
	}
	if got := strings.Count(table, "\n| `"); got != 15 {
		t.Errorf("docs/trail.md lists %d words", got)
	}
	for _, name := range []string{fileManifest, dataName(0, "<ext>"), gapsName(0), fileTree, fileCheckpoint, fileKeys, fileHandovers, fileEvidence, fileUnfinished} {
		if !strings.Contains(page, "\n| `"+name+"` | ") {
			t.Errorf("docs/trail.md does not list the file %s", name)
		}
	}
}

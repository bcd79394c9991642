package bundle

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// stored gives tlog the log's hashes, so that it makes the proofs.
func (l *testLog) stored(t fatal, size int64) tlog.HashReaderFunc {
	t.Helper()
	var all []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range indexes {
			out = append(out, all[i])
		}
		return out, nil
	})
	for i := range size {
		h, err := tlog.StoredHashesForRecordHash(i, l.records[i].Hash, reader)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h...)
	}
	return reader
}

func (l *testLog) proof(t fatal, index, size int64) string {
	t.Helper()
	extra, err := format.AppendJSON(nil, &l.records[index])
	if err != nil {
		t.Fatal(err)
	}
	hashes, err := tlog.ProveRecord(size, index, l.stored(t, size))
	if err != nil {
		t.Fatal(err)
	}
	text, err := trail.FormatProof(trail.Proof{Extra: extra, Index: index, Hashes: hashes, Checkpoint: sign(t, l.checkpoint(t, size).Text(), l.keys[len(l.keys)-1])})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestProofIsReadByAnotherProgram(t *testing.T) {
	l := newLog(t, 21)
	for i := range int64(21) {
		text := l.proof(t, i, 21)
		var p proof.TLogProof
		if err := p.Unmarshal([]byte(text)); err != nil {
			t.Fatal(err)
		}
		mine, err := trail.ParseProof(text)
		if err != nil {
			t.Fatal(err)
		}
		if p.Index != uint64(i) || string(p.Checkpoint) != mine.Checkpoint || string(p.ExtraData) != string(mine.Extra) || len(p.Hashes) != len(mine.Hashes) {
			t.Fatalf("proof %d reads as %+v", i, p)
		}
		if string(p.Marshal()) != text {
			t.Errorf("proof %d is written in another way", i)
		}
		r, err := VerifyProof(text, l.trusted(t))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(l.records[i], r); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
	}
}

func TestVerifyProofNamesWhatWasAltered(t *testing.T) {
	l := newLog(t, 21)
	edit := func(change func(*trail.Record)) string {
		r := l.records[5]
		change(&r)
		extra, err := format.AppendJSON(nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		p, err := trail.ParseProof(l.proof(t, 5, 21))
		if err != nil {
			t.Fatal(err)
		}
		p.Extra = extra
		text, err := trail.FormatProof(p)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	rehash := func(r *trail.Record) {
		var err error
		if r.Hash, err = r.Event.Hash(); err != nil {
			t.Fatal(err)
		}
	}
	swap := func(change func(*trail.Proof)) string {
		p, err := trail.ParseProof(l.proof(t, 5, 21))
		if err != nil {
			t.Fatal(err)
		}
		change(&p)
		text, err := trail.FormatProof(p)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	other := newLog(t, 21)
	for _, tt := range []struct {
		name, text, kind string
		fields           []string
	}{
		{"actor", edit(func(r *trail.Record) { r.Actor = "nobody" }), Altered, []string{"actor"}},
		{"outcome and hash", edit(func(r *trail.Record) { r.Outcome = trail.Failed; rehash(r) }), Altered, []string{"outcome"}},
		{"address, hash and checks", edit(func(r *trail.Record) { r.Address = "x"; r.Checks = r.MakeChecks(); rehash(r) }), Root, nil},
		{"hash", edit(func(r *trail.Record) { r.Hash[3]++ }), Altered, []string{"hash"}},
		{"checks", edit(func(r *trail.Record) { r.Checks = event(6).Checks }), Altered, []string{"checks"}},
		{"origin", edit(func(r *trail.Record) { r.Origin = "other" }), Altered, []string{"origin"}},
		{"index in the event", edit(func(r *trail.Record) { r.Index = 6 }), Altered, []string{"index"}},
		{"index line", strings.Replace(l.proof(t, 5, 21), "\nindex 5\n", "\nindex 4\n", 1), Altered, []string{"index"}},
		{"another event", edit(func(r *trail.Record) { *r = l.records[6]; r.Index = 5 }), Root, nil},
		{"hashes", swap(func(p *trail.Proof) { p.Hashes[0][0]++ }), Root, nil},
		{"hash less", swap(func(p *trail.Proof) { p.Hashes = p.Hashes[1:] }), Root, nil},
		{"another key", other.proof(t, 5, 21), Signature, nil},
		{"older checkpoint", swap(func(p *trail.Proof) { p.Checkpoint = sign(t, l.checkpoint(t, 4).Text(), l.keys[0]) }), Truncated, nil},
		{"checkpoint's size", swap(func(p *trail.Proof) { p.Checkpoint = strings.Replace(p.Checkpoint, "\n21\n", "\n22\n", 1) }), Signature, nil},
		{"no event", swap(func(p *trail.Proof) { p.Extra = nil }), Format, nil},
		{"nothing", "", Format, nil},
	} {
		_, err := VerifyProof(tt.text, l.trusted(t))
		f, ok := errors.AsType[Finding](err)
		if !ok || f.Kind != tt.kind || !cmp.Equal(f.Fields, tt.fields) {
			t.Errorf("%s: %v (fields %v), want %s of %v", tt.name, err, f.Fields, tt.kind, tt.fields)
		}
	}
}

func TestCompareTellsForkAndRollback(t *testing.T) {
	l, forked := newLog(t, 40), newLog(t, 40)
	forked.records[10], forked.leaves[10] = forked.records[11], forked.leaves[11]
	tree := func(l *testLog, older, newer int64) tlog.TreeProof {
		p, err := tlog.ProveTree(newer, older, l.stored(t, newer))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	elsewhere := l.checkpoint(t, 30)
	elsewhere.Origin = "elsewhere"
	for _, tt := range []struct {
		name         string
		older, newer trail.Checkpoint
		proof        tlog.TreeProof
		kind         string
	}{
		{"extends", l.checkpoint(t, 20), l.checkpoint(t, 40), tree(l, 20, 40), ""},
		{"extends by one", l.checkpoint(t, 39), l.checkpoint(t, 40), tree(l, 39, 40), ""},
		{"same", l.checkpoint(t, 40), l.checkpoint(t, 40), nil, ""},
		{"from the empty log", trail.Checkpoint{Origin: origin}, l.checkpoint(t, 40), nil, ""},
		{"rewritten", l.checkpoint(t, 20), forked.checkpoint(t, 40), tree(forked, 20, 40), Fork},
		{"rewritten, with the old proof", l.checkpoint(t, 20), forked.checkpoint(t, 40), tree(l, 20, 40), Fork},
		{"rewritten at the same size", l.checkpoint(t, 20), forked.checkpoint(t, 20), nil, Fork},
		{"no proof", l.checkpoint(t, 20), l.checkpoint(t, 40), nil, Fork},
		{"smaller", l.checkpoint(t, 40), l.checkpoint(t, 20), tree(l, 20, 40), Rollback},
		{"another log", elsewhere, l.checkpoint(t, 40), tree(l, 30, 40), Fork},
	} {
		err := Compare(tt.older, tt.newer, tt.proof)
		f, _ := errors.AsType[Finding](err)
		if f.Kind != tt.kind || (err == nil) != (tt.kind == "") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.kind)
		}
	}
}

package trail

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/transparency-dev/merkle/compact"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

func leafHash(i int64) tlog.Hash {
	return tlog.RecordHash(binary.BigEndian.AppendUint64(nil, uint64(i)))
}

var other = &compact.RangeFactory{Hash: func(left, right []byte) []byte {
	h := tlog.NodeHash(tlog.Hash(left), tlog.Hash(right))
	return h[:]
}}

func otherRange(t fatal, begin, end int64) *compact.Range {
	r := other.NewEmptyRange(uint64(begin))
	for i := begin; i < end; i++ {
		h := leafHash(i)
		if err := r.Append(h[:], nil); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

type fatal interface{ Fatal(...any) }

func grown(t fatal, begin, end int64) *Range {
	r, err := NewRange(begin, begin, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := begin; i < end; i++ {
		r.Append(leafHash(i))
	}
	return r
}

func TestRangeIsTheOneOfAnotherImplementation(t *testing.T) {
	for begin := int64(0); begin <= 40; begin++ {
		for end := begin; end <= 70; end++ {
			var nodes []Node
			for _, n := range compact.RangeNodes(uint64(begin), uint64(end), nil) {
				nodes = append(nodes, Node{int(n.Level), int64(n.Index)})
			}
			if diff := cmp.Diff(nodes, RangeNodes(begin, end)); diff != "" || RangeSize(begin, end) != len(nodes) {
				t.Fatalf("[%d, %d): %d nodes (-want +got):\n%s", begin, end, RangeSize(begin, end), diff)
			}
			var want []tlog.Hash
			for _, h := range otherRange(t, begin, end).Hashes() {
				want = append(want, tlog.Hash(h))
			}
			if got := grown(t, begin, end).Hashes(); len(got)+len(want) > 0 && !cmp.Equal(want, got) {
				t.Fatalf("[%d, %d): hashes %v, want %v", begin, end, got, want)
			}
		}
	}
	for _, x := range [][2]int64{{0, 1<<63 - 1}, {1, 1<<63 - 1}, {1 << 62, 1<<62 + 5}, {3, 3}, {5, 2}, {-1, 4}} {
		if got := len(RangeNodes(x[0], x[1])); got != RangeSize(x[0], x[1]) || got > 126 {
			t.Errorf("%v: %d nodes, and %d", x, got, RangeSize(x[0], x[1]))
		}
	}
}

// TestRangeJoinsWhereverItIsSplit cuts a tree at random and puts it together.
func TestRangeJoinsWhereverItIsSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 300).Draw(t, "size")
		whole := &Range{}
		for whole.End() < size {
			to := rapid.Int64Range(whole.End(), size).Draw(t, "to")
			part := grown(t, whole.End(), to)
			again, err := NewRange(part.Begin(), part.End(), part.Hashes())
			if err != nil {
				t.Fatal(err)
			}
			if err := whole.AppendRange(again); err != nil {
				t.Fatal(err)
			}
		}
		got, err := whole.Root()
		if err != nil {
			t.Fatal(err)
		}
		root, err := otherRange(t, 0, size).GetRootHash(nil)
		if err != nil || tlog.Hash(root) != got {
			t.Fatalf("root %v, want %x (%v)", got, root, err)
		}
	})
}

func TestRangeRefusesWhatDoesNotFit(t *testing.T) {
	if _, err := NewRange(3, 8, make([]tlog.Hash, 1)); err == nil {
		t.Error("too few hashes were taken")
	}
	if _, err := NewRange(3, 8, make([]tlog.Hash, 3)); err == nil {
		t.Error("too many hashes were taken")
	}
	if _, err := NewRange(8, 3, nil); err == nil {
		t.Error("a backward range was taken")
	}
	if err := grown(t, 0, 5).AppendRange(grown(t, 6, 8)); err == nil {
		t.Error("a range that leaves one out was appended")
	}
	if _, err := grown(t, 1, 5).Root(); err == nil {
		t.Error("a range that begins at 1 has a root")
	}
	empty, err := tlog.TreeHash(0, nil)
	if got, err2 := new(Range).Root(); err != nil || err2 != nil || got != empty {
		t.Errorf("the empty root is %v (%v, %v)", got, err, err2)
	}
}

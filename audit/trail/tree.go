package trail

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Node is a place in the tree: the root of the perfect subtree over the leaves
// [Index<<Level, (Index+1)<<Level). Level 0 are the leaves.
type Node struct {
	Level int
	Index int64
}

// RangeNodes returns the fewest perfect subtrees that cover the leaves
// [begin, end), left to right: at most two for each level. It is the compact
// range of github.com/transparency-dev/merkle/compact.
func RangeNodes(begin, end int64) []Node {
	if begin < 0 || end <= begin {
		return nil
	}
	var nodes []Node
	for begin < end {
		// The largest subtree that may begin here, and that fits.
		level := min(bits.TrailingZeros64(uint64(begin)), bits.Len64(uint64(end-begin))-1)
		nodes = append(nodes, Node{Level: level, Index: begin >> level})
		begin += 1 << level
	}
	return nodes
}

// RangeSize returns the length of RangeNodes.
func RangeSize(begin, end int64) int {
	n := 0
	for begin >= 0 && begin < end {
		begin += 1 << min(bits.TrailingZeros64(uint64(begin)), bits.Len64(uint64(end-begin))-1)
		n++
	}
	return n
}

// Range is the hashes of the subtrees that cover a run of leaves: all that is
// needed of the run to compute the root of a tree that holds it. It grows by
// one leaf, or by the range to its right, in memory logarithmic in its length.
// The zero value is the empty range that begins at 0.
type Range struct {
	begin, end int64
	nodes      []hashedNode
}

type hashedNode struct {
	Node
	hash tlog.Hash
}

// NewRange returns the range of [begin, end) whose subtrees, as RangeNodes lists
// them, have the given hashes.
func NewRange(begin, end int64, hashes []tlog.Hash) (*Range, error) {
	if begin < 0 || end < begin {
		return nil, fmt.Errorf("the leaves %d to %d are no range", begin, end)
	}
	if want := RangeSize(begin, end); want != len(hashes) {
		return nil, fmt.Errorf("the leaves %d to %d are covered by %d subtree hashes, not by %d", begin, end, want, len(hashes))
	}
	r := &Range{begin: begin, end: end}
	for i, n := range RangeNodes(begin, end) {
		r.nodes = append(r.nodes, hashedNode{n, hashes[i]})
	}
	return r, nil
}

// Begin returns the index of the first leaf.
func (r *Range) Begin() int64 { return r.begin }

// End returns the index after the last leaf.
func (r *Range) End() int64 { return r.end }

// Append adds the leaf with index End.
func (r *Range) Append(leaf tlog.Hash) {
	r.push(hashedNode{Node{0, r.end}, leaf})
}

// AppendRange adds the leaves of a range that begins where this one ends.
func (r *Range) AppendRange(right *Range) error {
	if right.begin != r.end {
		return fmt.Errorf("a range that ends at leaf %d can't be continued by one that begins at leaf %d", r.end, right.begin)
	}
	for _, n := range right.nodes {
		r.push(n)
	}
	return nil
}

// push adds a subtree at the end, and replaces siblings by their parent.
func (r *Range) push(n hashedNode) {
	r.end += 1 << n.Level
	for len(r.nodes) > 0 {
		left := r.nodes[len(r.nodes)-1]
		if left.Level != n.Level || left.Index&1 != 0 {
			break
		}
		n = hashedNode{Node{n.Level + 1, left.Index >> 1}, tlog.NodeHash(left.hash, n.hash)}
		r.nodes = r.nodes[:len(r.nodes)-1]
	}
	r.nodes = append(r.nodes, n)
}

// Hashes returns the hashes of the range's subtrees, in the order of RangeNodes.
func (r *Range) Hashes() []tlog.Hash {
	out := make([]tlog.Hash, len(r.nodes))
	for i, n := range r.nodes {
		out[i] = n.hash
	}
	return out
}

// Root returns the root of the tree that the range is, which must begin at 0.
func (r *Range) Root() (tlog.Hash, error) {
	if r.begin != 0 {
		return tlog.Hash{}, errors.New("only a range that begins at leaf 0 has a root")
	}
	if len(r.nodes) == 0 {
		return tlog.TreeHash(0, nil)
	}
	hash := r.nodes[len(r.nodes)-1].hash
	for i := len(r.nodes) - 2; i >= 0; i-- {
		hash = tlog.NodeHash(r.nodes[i].hash, hash)
	}
	return hash, nil
}

// Differs names the fields that are not what an event's checks say, like
// [Event.Differs], for who has the leaf already: it hashes nothing twice.
func (l *Leaf) Differs(checks []byte) []string {
	if len(checks) != ChecksSize {
		return nil
	}
	var names []string
	i := 0
	check := func(name string, is uint32) {
		if is != binary.BigEndian.Uint32(checks[4*i:]) {
			names = append(names, name)
		}
		i++
	}
	b := make([]byte, 0, 64) // what crc32 is given goes to the heap: once
	number := func(v int64) uint32 {
		b = binary.BigEndian.AppendUint64(b[:0], uint64(v))
		return crc32.Checksum(b, castagnoli)
	}
	text := func(v string) uint32 {
		b = append(b[:0], v...)
		return crc32.Checksum(b, castagnoli)
	}
	check("id", text(l.ID))
	check("time", number(l.Time.UnixMicro()))
	check("action", text(l.Action))
	check("resource", text(l.Resource))
	check("outcome", text(l.Outcome))
	check("count", number(l.Count))
	check("intent", text(l.Intent))
	for f, c := range l.Commitments {
		check(Field(f).String(), binary.BigEndian.Uint32(c[:]))
	}
	return names
}

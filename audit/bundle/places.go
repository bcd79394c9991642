package bundle

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// misplaced is a record whose fields, and its checks with them, give another hash
// than the one that the log has at its index. It is either an event of the log at
// another one's index, or none of the log's.
type misplaced struct {
	index int64
	id    string
	has   tlog.Hash // what the log has there
	is    tlog.Hash
	twin  int64 // the index at which the same event stands in its own place; -1
}

// maxMisplaced bounds misplaced records, and gaps of one leaf, that are kept.
const maxMisplaced = 100_000

// twins looks among the part's records for events that stand in two places.
func (p *partReader) twins() {
	if len(p.misplaced) == 0 {
		return
	}
	at := map[tlog.Hash]int64{}
	for _, m := range p.misplaced {
		at[m.is] = -1
	}
	next := 0
	for _, s := range p.seen {
		if next < len(p.misplaced) && p.misplaced[next].index == s.index {
			next++
			continue
		}
		if _, ok := at[s.hash]; ok {
			at[s.hash] = s.index
		}
	}
	for i := range p.misplaced {
		p.misplaced[i].twin = at[p.misplaced[i].is]
	}
}

// places says of misplaced records where they come from.
func (v *verifier) places() {
	if len(v.misplaced) == 0 {
		return
	}
	has, is := map[tlog.Hash]int64{}, map[tlog.Hash]bool{}
	for _, g := range v.lone {
		has[g.hash] = g.index
	}
	for _, m := range v.misplaced {
		has[m.has] = m.index
		is[m.is] = true
	}
	for i := 0; i < len(v.misplaced); {
		m := v.misplaced[i]
		own, moved := has[m.is]
		if !moved {
			v.stranger(m, is[m.has])
			i++
			continue
		}
		// Those that were moved together are said together.
		n := 1
		for ; i+n < len(v.misplaced); n++ {
			next := v.misplaced[i+n]
			if from, ok := has[next.is]; !ok || next.index != m.index+int64(n) || from != own+int64(n) {
				break
			}
		}
		f := Finding{Kind: Reordered, Index: m.index, ID: m.id}
		if n == 1 {
			f.Text = fmt.Sprintf("event %d (%s) is the one that the log has at %d: it was moved", m.index, m.id, own)
		} else {
			f.Text = fmt.Sprintf("%s are those that the log has at %d to %d: they were moved", run(m.index, m.index+int64(n)), own, own+int64(n)-1)
		}
		v.add(f)
		for _, lost := range v.misplaced[i : i+n] {
			if !is[lost.has] {
				v.at(Missing, lost.index, nil, "the event that the log has at %d stands nowhere: it was deleted, and others were moved into its place", lost.index)
			}
		}
		i += n
	}
}

// stranger reports a record that is none of the log's, or that stands in its own
// place too. ousted says that the event of its place stands elsewhere.
func (v *verifier) stranger(m misplaced, ousted bool) {
	f := Finding{Index: m.index, ID: m.id}
	switch {
	case m.twin >= 0:
		f.Kind, f.Text = Duplicate, fmt.Sprintf("event %d (%s) is event %d once more, in the place of another: it was put there", m.index, m.id, m.twin)
	case ousted:
		f.Kind = Inserted
		f.Text = fmt.Sprintf("event %d (%s) is neither the one that the log has there nor one of another place in this bundle, and the one of that place was moved: it was inserted", m.index, m.id)
	default:
		f.Kind, f.Fields = Altered, []string{"hash"}
		f.Text = fmt.Sprintf("event %d (%s): its leaf hash is not the one that its fields give: the hash was altered, or fields together with the checks that would name them", m.index, m.id)
	}
	v.add(f)
}

package bundle

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// PruneAction is the action of an event that declares what was pruned.
const PruneAction = "trail.prune"

// declaration is what an event says was pruned: how many leaves of a range. Those
// that were kept, as under a legal hold, are in the range too, so without the
// number they could be cut out.
type declaration struct {
	PrunedRange
	deleted int64 // the whole range when the event does not say
}

// declares reads what an event says was pruned.
func declares(e *trail.Event, index int64) (declaration, bool) {
	if e.Action != PruneAction || e.Outcome != trail.OK {
		return declaration{}, false
	}
	var d struct{ Begin, End, Deleted *int64 }
	if json.Unmarshal([]byte(e.Detail), &d) != nil || d.Begin == nil || d.End == nil || *d.Begin < 0 || *d.End <= *d.Begin || *d.End > index {
		return declaration{}, false
	}
	deleted := *d.End - *d.Begin
	if d.Deleted != nil {
		deleted = min(max(*d.Deleted, 0), deleted)
	}
	return declaration{PrunedRange{Begin: *d.Begin, End: *d.End, Event: e.ID, Index: index}, deleted}, true
}

// acceptGap takes a gap in that begins at the index that is due.
func (p *partReader) acceptGap(g *Gap) {
	r, err := trail.NewRange(g.Begin, g.End, g.Hashes)
	if err == nil && p.leaves != nil {
		err = p.leaves.AppendRange(r)
	}
	if err != nil {
		p.broken = true
		p.at(Format, g.Begin, nil, "the gap over %s can't be placed: %v", run(g.Begin, g.End), err)
	}
	n := g.End - g.Begin
	p.next = g.End
	p.counts.gap(g.Why, n)
	if g.Why == Pruned {
		if n == 1 && len(g.Hashes) == 1 && len(p.lone) < maxMisplaced {
			p.lone = append(p.lone, indexed{g.Begin, g.Hashes[0]})
		}
		if k := len(p.pruned); k > 0 && p.pruned[k-1].end == g.Begin {
			p.pruned[k-1].end = g.End
		} else {
			p.pruned = append(p.pruned, span{g.Begin, g.End})
		}
	} else {
		if p.filter.Empty() && !p.marked["no filter"] {
			p.marked["no filter"] = true
			p.at(Contradict, g.Begin, nil, "%s %s left out because of a filter, and the bundle has none: they were cut out, or the filter was", run(g.Begin, g.End), plural(span{g.Begin, g.End}))
		}
		if len(g.Entries) == 0 {
			p.counts.Unseen += n
		}
	}
	if g.Why == Pruned && len(g.Entries) > 0 && !p.filter.Empty() {
		p.at(Contradict, g.Begin, nil, "%s %s said to be pruned, and the leaves are there: who exports what was pruned has hashes only, so they were left out for another reason", run(g.Begin, g.End), plural(span{g.Begin, g.End}))
	}
	for i, raw := range g.Entries {
		index := g.Begin + int64(i)
		leaf, err := trail.ParseLeaf(raw)
		if err != nil {
			p.at(Format, index, nil, "the leaf of event %d, which was left out, can't be read: %v", index, err)
			continue
		}
		if g.Why != Filtered || p.filter.Empty() {
			continue
		}
		out, known := p.filter.LeftOut(&leaf)
		switch {
		case !known:
			p.counts.Undecided++
		case !out:
			p.add(Finding{Kind: Contradict, Index: index, ID: leaf.ID, Text: fmt.Sprintf("event %d (%s, %s at %s) matches the filter, and was left out all the same", index, leaf.ID, clip(leaf.Action), leaf.Time.UTC().Format(time.RFC3339))})
		}
	}
}

// gap counts a gap of n leaves.
func (r *Report) gap(why string, n int64) {
	if why == Pruned {
		r.Pruned, r.PrunedRuns = r.Pruned+n, r.PrunedRuns+1
	} else {
		r.Omitted, r.OmittedRuns = r.Omitted+n, r.OmittedRuns+1
	}
}

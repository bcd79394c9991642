package bundle

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// mark adds a finding "altered" about a record.
func (p *partReader) mark(r *trail.Record, fields []string, format string, args ...any) {
	p.add(Finding{Kind: Altered, Index: p.next, ID: clip(r.ID), Fields: fields, Text: fmt.Sprintf(format, args...)})
}

// leafHash returns the hash that a record stands for in the tree: the one that it
// states, unless that alone was altered.
func (p *partReader) leafHash(r *trail.Record) tlog.Hash {
	if h, err := r.Event.Hash(); err == nil && h != r.Hash && len(r.Differs()) == 0 {
		return h
	}
	return r.Hash
}

// check verifies a record's fields, takes them into the sums, and returns its
// leaf hash.
func (p *partReader) check(r *trail.Record, index int64) tlog.Hash {
	if r.Origin != p.m.Origin {
		p.mark(r, []string{"origin"}, "event %d says that it is of the log %q, and this is %q: it was altered, or taken from another log", index, clip(r.Origin), p.m.Origin)
	}
	hash := r.Hash
	leaf, err := r.Leaf()
	var raw []byte
	if err == nil {
		raw, err = leaf.Encode()
	}
	if err != nil {
		names := r.Differs()
		if len(names) == 0 && len(r.Salt) != trail.SeedSize && len(r.Salt) != trail.SaltsSize {
			names = []string{"salt"} // without it nothing can be told of the others
		}
		p.mark(r, names, "event %d (%s) is none that a log could hold: %v", index, clip(r.ID), err)
		return hash
	}
	names := leaf.Differs(r.Checks)
	switch is := tlog.RecordHash(raw); {
	case is != hash && len(names) > 0:
		p.mark(r, names, "event %d (%s): %s altered after the event was recorded", index, clip(r.ID), were(names))
	case is != hash:
		if len(p.misplaced) < maxMisplaced {
			p.misplaced = append(p.misplaced, misplaced{index: index, id: clip(r.ID), has: hash, is: is, twin: -1})
		} else {
			p.more++
		}
		hash = is
	case len(names) > 0 && len(p.suspects) < maxFindings:
		p.suspects = append(p.suspects, Finding{Kind: Altered, Index: index, ID: clip(r.ID), Fields: names})
	}
	p.count(r, &leaf, index)
	return hash
}

func were(names []string) string {
	if len(names) == 1 {
		return names[0] + " was"
	}
	return strings.Join(names, ", ") + " were"
}

// count takes a record into the sums and lists.
func (p *partReader) count(r *trail.Record, leaf *trail.Leaf, index int64) {
	if name := p.filter.refuses(&r.Event, leaf); name != "" && r.Action != PruneAction {
		p.at(Contradict, index, r, "event %d (%s) does not match the filter's %s %q: the filter was altered, or the event was inserted", index, clip(r.ID), name, clip(p.m.Filter[name]))
	}
	for f := range trail.NumFields {
		if r.IsErased(f) {
			p.counts.ErasedFields++
		}
	}
	p.counts.took(r.Time, r.Time)
	if r.Intent != "" {
		if _, ok := p.opened[r.Intent]; ok {
			delete(p.opened, r.Intent)
		} else {
			p.ended = append(p.ended, r.Intent)
		}
	}
	if r.Outcome == trail.Started {
		p.opened[r.ID] = Intent{Index: index, ID: r.ID, Time: r.Time, Action: r.Action, Resource: r.Resource}
	}
	if d, ok := declares(&r.Event, index); ok && len(p.declared) < maxPruned {
		p.declared = append(p.declared, d)
	}
}

// took widens the time from first to last.
func (r *Report) took(first, last time.Time) {
	if r.First.IsZero() || !first.IsZero() && first.Before(r.First) {
		r.First = first
	}
	if last.After(r.Last) {
		r.Last = last
	}
}

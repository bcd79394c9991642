package bundle

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// result is what one part gives to the whole.
type result struct {
	findings
	err      error        // of the machine, not of the bundle
	leaves   *trail.Range // nil when it can't be computed
	suspects []Finding    // records whose checks differ although their leaf hash is right
	counts   Report       // the part's share of the sums
	declared []declaration
	pruned   []span
	opened   map[string]Intent
	ended    []string // intents whose start is not in the part

	misplaced []misplaced // in the order of their indexes
	lone      []indexed   // pruned leaves whose neighbours are there
}

// partReader verifies one part: it merges the part's records and gaps in the
// order of their indexes, and says what does not fit.
type partReader struct {
	result
	m      *Manifest
	part   *Part
	number int
	filter *Filter
	last   bool // no part follows
	tick   func(records int64)

	records *recordReader
	gaps    *gapReader
	gap     *Gap // the next one, or nil

	next       int64
	broken     bool
	seen       []indexed        // what was accepted, to tell a duplicate from an insertion
	extras     map[int64]*extra // records that stood too early
	missing    []span           // so far, by index
	marked     map[string]bool  // findings that are said once a part
	renumbered []renumbered     // records whose index is another than their place
	gapSum     *sums            // of the gaps file
}

type indexed struct {
	index int64
	hash  tlog.Hash
}

type renumbered struct {
	place, index int64
	id           string
}

type extra struct {
	hash tlog.Hash
	id   string
}

const (
	maxExtras = 1000
	tickEvery = 4096 // records
)

// verify fills the result. It returns an error of the machine only.
func (p *partReader) verify(ctx context.Context, src source) error {
	p.opened, p.extras, p.marked = map[string]Intent{}, map[int64]*extra{}, map[string]bool{}
	p.next = p.part.Begin
	var err error
	if p.leaves, err = trail.NewRange(p.next, p.next, nil); err != nil {
		return err
	}
	stop, err := p.openGaps(src)
	if p.gapSum != nil {
		defer p.gapSum.file.Close()
	}
	if err != nil {
		return err
	}
	p.broken = p.broken || stop
	if p.part.Data != nil {
		file, err := src.open(p.part.Data.Name)
		if err != nil {
			p.leaves = nil
			return p.noFile(p.part.Data.Name, err)
		}
		defer file.Close()
		p.records = newRecordReader(file, p.m.Format)
		defer p.records.close()
	} else {
		p.records = &recordReader{}
	}
	if err := p.walk(ctx); err != nil {
		return err
	}
	if p.broken {
		p.leaves = nil
	}
	p.twins()
	p.tick(p.counts.Records % tickEvery)
	return p.compareFiles()
}

// noFile reports a file that can't be opened.
func (p *partReader) noFile(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind := Missing
		if p.last && name == dataName(p.number, format.Extension(p.m.Format)) {
			kind = Truncated
		}
		p.at(kind, p.part.Begin, nil, "the file %s, with %s, is not there", name, run(p.part.Begin, p.part.End))
	case damaged(err):
		p.about(Format, "%s can't be opened: %v", name, err)
	default:
		return fmt.Errorf("open %s: %w", name, err)
	}
	return nil
}

func (p *partReader) openGaps(src source) (stop bool, err error) {
	if p.part.GapFile == nil {
		return false, nil
	}
	name := p.part.GapFile.Name
	file, err := src.open(name)
	if err != nil {
		return true, p.noFile(name, err)
	}
	p.gapSum = &sums{file: file, sum: sha256.New()}
	if p.gaps, err = newGapReader(bufio.NewReaderSize(p.gapSum, 32<<10)); err != nil {
		return true, p.badGaps(err)
	}
	return false, p.nextGap()
}

// badGaps reports a gaps file that can't be read on.
func (p *partReader) badGaps(err error) error {
	if e := p.gapSum.failed; e != nil && !damaged(e) {
		return fmt.Errorf("read %s: %w", p.part.GapFile.Name, e)
	}
	p.gap, p.gaps, p.broken = nil, nil, true
	p.about(Format, "%s can't be read: %v", p.part.GapFile.Name, err)
	return nil
}

func (p *partReader) nextGap() error {
	if p.gaps == nil {
		return nil
	}
	var err error
	if p.gap, err = p.gaps.next(); err != nil {
		p.gap = nil
		if errors.Is(err, io.EOF) {
			return nil
		}
		return p.badGaps(err)
	}
	return nil
}

// walk goes through records and gaps. What it can't place it reports.
func (p *partReader) walk(ctx context.Context) error {
	cur, err := p.read()
	if err != nil {
		return err
	}
	peek := cur
	if cur != nil {
		if peek, err = p.read(); err != nil {
			return err
		}
	}
	for n := 0; ; n++ {
		if n%1024 == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		switch {
		case p.gap != nil && p.gap.Begin == p.next && p.gap.End <= p.part.End:
			p.acceptGap(p.gap)
			if err := p.nextGap(); err != nil {
				return err
			}
			continue
		case p.gap != nil && (p.gap.Begin < p.next || p.gap.End > p.part.End):
			p.broken = true
			p.at(Format, p.gap.Begin, nil, "%s has a gap over %s, of which some stand elsewhere in the bundle too: its begin or end was altered", p.part.GapFile.Name, run(p.gap.Begin, p.gap.End))
			if err := p.nextGap(); err != nil {
				return err
			}
			continue
		case cur == nil && p.gap != nil:
			p.lose(p.gap.Begin)
			continue
		case cur == nil:
			if p.records.bad == nil {
				p.lose(p.part.End)
			}
			p.settleExtras()
			return nil
		case cur.Index == p.next && p.next < p.part.End:
			p.accept(cur)
		case p.next < p.part.End && p.after(peek) == p.reach(p.next+1):
			// All that follows is in its place, so this one is too but for its number.
			if len(p.renumbered) < maxExtras {
				p.renumbered = append(p.renumbered, renumbered{p.next, cur.Index, clip(cur.ID)})
			}
			p.accept(cur)
		case cur.Index > p.next && cur.Index < p.part.End && p.after(peek) != p.next:
			to := cur.Index
			if p.gap != nil && p.gap.Begin < to {
				to = p.gap.Begin
			}
			p.lose(to)
			continue
		default:
			p.stray(cur)
		}
		if cur = peek; cur != nil {
			if peek, err = p.read(); err != nil {
				return err
			}
		}
	}
}

// after returns the index at which the records go on.
func (p *partReader) after(peek *trail.Record) int64 {
	if peek == nil {
		return p.part.End
	}
	return peek.Index
}

// reach returns the index that follows once the gap at an index is passed.
func (p *partReader) reach(index int64) int64 {
	if p.gap != nil && p.gap.Begin == index {
		return p.gap.End
	}
	return index
}

// read returns the next record, or nil at the end of what can be read.
func (p *partReader) read() (*trail.Record, error) {
	r, err := p.records.read()
	if err == nil || r != nil {
		return r, err
	}
	if p.records.machine != nil {
		return nil, fmt.Errorf("read %s: %w", p.part.Data.Name, p.records.machine)
	}
	return nil, nil
}

// accept takes a record in at the index that is due.
func (p *partReader) accept(r *trail.Record) {
	h := p.check(r, p.next)
	p.leaves.Append(h)
	p.seen = append(p.seen, indexed{p.next, h})
	if x := p.extras[p.next]; x != nil {
		delete(p.extras, p.next)
		p.twice(p.next, x, h)
	}
	p.counts.Records++
	p.next++
	if p.counts.Records%tickEvery == 0 {
		p.tick(tickEvery)
	}
}

// twice reports a record whose index another one has.
func (p *partReader) twice(index int64, x *extra, h tlog.Hash) {
	f := Finding{Kind: Duplicate, Index: index, ID: x.id, Text: fmt.Sprintf("event %d is there twice", index)}
	if x.hash != h {
		f.Kind, f.Text = Inserted, fmt.Sprintf("there are two different events with index %d: one was inserted", index)
	}
	p.add(f)
}

// stray reports a record that stands where it does not belong, and leaves it out.
func (p *partReader) stray(r *trail.Record) {
	i := r.Index
	h := p.leafHash(r)
	switch {
	case i < p.m.Begin || i >= p.m.End:
		p.at(Inserted, i, r, "%s has an event with index %d, and the bundle is of %s: it was inserted", p.part.Data.Name, i, run(p.m.Begin, p.m.End))
	case i < p.part.Begin || i >= p.part.End:
		p.at(Reordered, i, r, "%s has event %d, which belongs into another part: it was moved there, or inserted", p.part.Data.Name, i)
	case i >= p.next:
		if p.extras[i] != nil || len(p.extras) >= maxExtras {
			p.at(Inserted, i, r, "event %d stands before event %d, and more than once: it was inserted", i, p.next)
			return
		}
		p.extras[i] = &extra{h, clip(r.ID)}
	default:
		for n, s := range p.missing {
			if i >= s.begin && i < s.end {
				p.missing = append(p.missing[:n:n], p.missing[n+1:]...)
				if s.begin < i {
					p.missing = append(p.missing, span{s.begin, i})
				}
				if i+1 < s.end {
					p.missing = append(p.missing, span{i + 1, s.end})
				}
				p.at(Reordered, i, r, "event %d stands after event %d: it was moved", i, p.next-1)
				return
			}
		}
		for n := len(p.seen) - 1; n >= 0; n-- {
			if p.seen[n].index == i {
				p.twice(i, &extra{h, clip(r.ID)}, p.seen[n].hash)
				return
			}
		}
		p.at(Inserted, i, r, "there is an event with index %d, which the bundle says is left out: it was inserted", i)
	}
}

// lose passes over leaves that are due and not there.
func (p *partReader) lose(to int64) {
	for p.next < to {
		if x := p.extras[p.next]; x != nil {
			delete(p.extras, p.next)
			p.add(Finding{Kind: Reordered, Index: p.next, ID: x.id, Text: fmt.Sprintf("event %d stands before its place: it was moved", p.next)})
			p.leaves.Append(x.hash)
			p.seen = append(p.seen, indexed{p.next, x.hash})
			p.next++
			continue
		}
		end := to
		for i := range p.extras {
			if i > p.next && i < end {
				end = i
			}
		}
		// Reported at the end of the part, when it is known whether they come later.
		if len(p.missing) < maxExtras {
			p.missing = append(p.missing, span{p.next, end})
		} else {
			p.more++
		}
		p.broken = true
		p.next = end
		if p.leaves, _ = trail.NewRange(end, end, nil); p.leaves == nil {
			return
		}
	}
}

// settleExtras reports what turned out to be missing, or too much.
func (p *partReader) settleExtras() {
	for _, s := range merge(p.missing) {
		switch {
		case p.last && s.end == p.m.End && p.part.End == p.m.End:
			p.at(Truncated, s.begin, nil, "%s %s not there: the bundle says that it goes to event %d, and it ends before", run(s.begin, s.end), plural(s), p.m.End-1)
		default:
			p.at(Missing, s.begin, nil, "%s %s not there: deleted from %s", run(s.begin, s.end), plural(s), p.place())
		}
	}
	places := map[int64]bool{}
	for _, r := range p.renumbered {
		places[r.place] = true
	}
	for _, r := range p.renumbered {
		if places[r.index] {
			// In the place of another one that is not in its own either.
			p.broken = true
			p.add(Finding{Kind: Reordered, Index: r.index, ID: r.id, Text: fmt.Sprintf("event %d stands in the place of event %d: they were moved", r.index, r.place)})
		} else {
			p.add(Finding{Kind: Altered, Index: r.place, ID: r.id, Fields: []string{"index"}, Text: fmt.Sprintf("event %d says that its index is %d: its index was altered", r.place, r.index)})
		}
	}
	for i, x := range p.extras {
		p.add(Finding{Kind: Inserted, Index: i, ID: x.id, Text: fmt.Sprintf("an event with index %d stands where it does not belong: it was inserted", i)})
	}
}

func (p *partReader) place() string {
	if p.part.Data != nil {
		return p.part.Data.Name
	}
	return p.part.GapFile.Name
}

func plural(s span) string {
	if s.end == s.begin+1 {
		return "is"
	}
	return "are"
}

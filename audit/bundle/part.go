package bundle

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strings"
	"time"

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

// compareFiles checks the files against the manifest, once all else of the part
// was looked at: what is already explained is not said again.
func (p *partReader) compareFiles() error {
	if p.records.bad != nil {
		kind, how := Format, "can't be read on"
		if p.records.sums.read < p.part.Data.Bytes {
			kind, how = Truncated, fmt.Sprintf("is cut short, %d bytes of %d,", p.records.sums.read, p.part.Data.Bytes)
		}
		p.at(kind, p.next, nil, "%s %s after event %d: %v", p.part.Data.Name, how, p.next-1, p.records.bad)
		p.leaves = nil
	}
	silent := len(p.list) == 0 && len(p.suspects) == 0 && len(p.misplaced) == 0
	if silent && p.counts.Records != p.part.Records {
		p.about(Altered, "the manifest says that part %d has %d records, and it has %d: the manifest was altered", p.number, p.part.Records, p.counts.Records)
	}
	gaps := p.counts.OmittedRuns + p.counts.PrunedRuns
	if silent && gaps != p.part.Gaps {
		p.about(Altered, "the manifest says that part %d has %d gaps, and it has %d: the manifest was altered", p.number, p.part.Gaps, gaps)
	}
	for _, f := range []struct {
		file *File
		sums *sums
	}{{p.part.Data, p.records.sums}, {p.part.GapFile, p.gapSum}} {
		if f.file == nil || f.sums == nil {
			continue
		}
		if err := f.sums.drain(f.file.Bytes); err != nil && !damaged(err) {
			return fmt.Errorf("read %s: %w", f.file.Name, err)
		} else if err != nil && silent {
			p.about(Format, "%s is damaged: %v", f.file.Name, err)
		}
		if silent && (f.sums.read != f.file.Bytes || hex.EncodeToString(f.sums.sum.Sum(nil)) != f.file.SHA256) {
			p.about(Altered, "%s is not the file that the manifest describes (length or SHA-256): one of the two was altered", f.file.Name)
		}
	}
	return nil
}

// sums counts and hashes what is read.
type sums struct {
	file   io.ReadCloser
	sum    hash.Hash
	read   int64
	failed error
}

func (s *sums) Read(b []byte) (int, error) {
	if s.read > maxFileBytes {
		s.failed = fmt.Errorf("%w: it has more than %d bytes", errDamaged, int64(maxFileBytes))
		return 0, s.failed
	}
	n, err := s.file.Read(b)
	s.sum.Write(b[:n])
	s.read += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed = err
	}
	return n, err
}

// drain reads what the format's reader left, but not much more than is due.
func (s *sums) drain(due int64) error {
	if s.failed != nil {
		return s.failed
	}
	_, err := io.Copy(io.Discard, io.LimitReader(s, max(due-s.read, 0)+1))
	return err
}

// recordReader reads a data file's records. Two of them are valid at a time.
type recordReader struct {
	sums    *sums
	format  format.Reader // nil once it ended
	opened  format.Reader
	two     [2]trail.Record
	n       int
	bad     error // what ended it, other than its end
	machine error
}

func newRecordReader(file io.ReadCloser, name string) *recordReader {
	r := &recordReader{sums: &sums{file: file, sum: sha256.New()}}
	r.format, r.bad = format.NewReader(name, bufio.NewReaderSize(r.sums, 128<<10))
	r.opened = r.format
	return r
}

// read returns nil and an error at the end.
func (r *recordReader) read() (*trail.Record, error) {
	if r.format == nil || r.bad != nil {
		r.format = nil
		r.fail(r.bad)
		return nil, io.EOF
	}
	rec := &r.two[r.n%2]
	*rec = trail.Record{}
	err := r.format.Read(rec)
	if err == nil && r.n >= maxPartRecords+maxExtras {
		err = fmt.Errorf("it has more than %d records", maxPartRecords)
	}
	if err != nil {
		if !errors.Is(err, io.EOF) {
			r.fail(err)
		}
		r.format = nil
		return nil, io.EOF
	}
	r.n++
	return rec, nil
}

func (r *recordReader) fail(err error) {
	if err == nil {
		return
	}
	r.bad = err
	if r.sums.failed != nil && !damaged(r.sums.failed) {
		r.machine = r.sums.failed
	}
}

// close lets go of what the format's reader holds.
func (r *recordReader) close() {
	if c, ok := r.opened.(io.Closer); ok {
		c.Close()
	}
}

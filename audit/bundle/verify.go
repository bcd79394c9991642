package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/rotunda-dev/rotunda/audit/trail"
)

// Options says how to verify.
type Options struct {
	// Keys are the log's public keys that you trust. They are needed; the bundle's
	// handovers lead from them to later ones. They are not changed.
	Keys *trail.Keys
	// Whole makes a finding of events that the filter left out without showing
	// their leaves, and of leaves that are said to be pruned when no event in the
	// bundle declares it, for who asked for a bundle that shows them.
	Whole bool
	// Progress is called now and then with the number of records that were
	// verified, and of those that the manifest lists; never twice at a time.
	Progress func(done, total int64)
	// Workers is how many parts are verified at a time; 0: as many as there are
	// processors, 8 at most.
	Workers int
	// MaxFindings bounds Report.Findings; 0 is 100.
	MaxFindings int
}

// Verify verifies the bundle in a folder or a zip. It fails when the bundle can't
// be read for reasons that are the machine's; everything that is wrong with the
// bundle is a finding.
func Verify(ctx context.Context, path string, opts Options) (Report, error) {
	if opts.Keys == nil {
		return Report{}, errors.New("verify a bundle: there is no public key of the log to verify it with")
	}
	if opts.MaxFindings <= 0 {
		opts.MaxFindings = maxFindings
	}
	v := &verifier{opts: opts, findings: findings{limit: opts.MaxFindings}, open: map[string]Intent{}, size: -1}
	src, err := openSource(path)
	switch {
	case err != nil && (damaged(err) || isFinding(err)):
		v.about(Format, "%v", err)
	case err != nil:
		return Report{}, fmt.Errorf("verify a bundle: %w", err)
	default:
		defer func() { _ = src.Close() }()
		if err := v.run(ctx, src); err != nil {
			return Report{}, fmt.Errorf("verify the bundle %s: %w", path, err)
		}
	}
	v.report.Findings, v.report.More = v.list, v.more
	return v.report, nil
}

func isFinding(err error) bool {
	_, ok := errors.AsType[Finding](err)
	return ok
}

type verifier struct {
	findings
	opts   Options
	m      *Manifest
	filter Filter
	report Report
	size   int64 // of the checkpoint that the bundle holds; -1: it holds none
	signed bool  // a trusted key signed that
	keys   *trail.Keys
	whole  *trail.Range // the leaves so far; nil when they can't be computed
	right  *trail.Range

	suspects []Finding
	declared []declaration
	pruned   []span
	open     map[string]Intent

	misplaced []misplaced
	lone      []indexed
}

func (v *verifier) run(ctx context.Context, src source) error {
	ok, err := v.manifest(src)
	if !ok || err != nil {
		return err
	}
	if err := v.strangers(src); err != nil {
		return err
	}
	if err := v.checkpoint(src); err != nil {
		return err
	}
	if err := v.tree(src); err != nil {
		return err
	}
	if err := v.evidence(src); err != nil {
		return err
	}
	if err := v.parts(ctx, src); err != nil {
		return err
	}
	v.places()
	v.root()
	v.prunes()
	if v.opts.Whole && v.report.Unseen > 0 {
		v.about(Incomplete, "%d events that the filter left out are shown by hashes only: nobody can tell from this bundle whether they match the filter", v.report.Unseen)
	}
	return nil
}

// text reads one of the small files. ok is false when it is not there, or can't
// be read, which is reported unless it may be absent.
func (v *verifier) text(src source, name string, limit int64, optional bool) (text string, ok bool, err error) {
	b, err := read(src, name, limit)
	switch {
	case err == nil:
		return string(b), true, nil
	case errors.Is(err, fs.ErrNotExist):
		if !optional {
			v.about(Missing, "the file %s is not there", name)
		}
		return "", false, nil
	case damaged(err):
		v.about(Format, "%s can't be read: %v", name, err)
		return "", false, nil
	}
	return "", false, err
}

func (v *verifier) manifest(src source) (bool, error) {
	if _, ok, err := v.text(src, fileUnfinished, maxManifest, true); err != nil {
		return false, err
	} else if ok {
		if _, there, err := v.text(src, fileManifest, maxManifest, true); err != nil || !there {
			v.about(Incomplete, "the export of this bundle did not end: go on with it, then verify again")
			return false, err
		}
	}
	raw, ok, err := v.text(src, fileManifest, maxManifest, false)
	if !ok || err != nil {
		return false, err
	}
	if v.m, err = parseManifest([]byte(raw)); err != nil {
		v.about(Format, "%s can't be used: %v", fileManifest, err)
		return false, nil
	}
	m := v.m
	v.report = Report{Origin: m.Origin, Size: m.CheckpointSize, Begin: m.Begin, End: m.End, Format: m.Format, Filter: m.Filter}
	if v.filter, err = ParseFilter(m.Filter); err != nil {
		v.about(Contradict, "%v", err)
		// Its other conditions can't be trusted to be what was asked for.
		v.filter = Filter{}
	}
	var records int64
	for _, p := range m.Parts {
		records += p.Records
	}
	if records != m.Records {
		v.add(Finding{Kind: Altered, Index: -1, Fields: []string{"records"}, Text: fmt.Sprintf("the manifest says that there are %d records, and that its parts have %d: the manifest was altered", m.Records, records)})
	}
	return true, nil
}

// strangers reports files that are none of the bundle's.
func (v *verifier) strangers(src source) error {
	names, err := src.names()
	if err != nil {
		return err
	}
	ours := map[string]bool{fileManifest: true, fileTree: true, fileCheckpoint: true, fileKeys: true, fileHandovers: true, fileEvidence: true, fileUnfinished: true}
	for _, p := range v.m.Parts {
		for _, f := range []*File{p.Data, p.GapFile} {
			if f != nil {
				ours[f.Name] = true
			}
		}
	}
	slices.Sort(names)
	for _, name := range names {
		switch {
		case ours[name]:
		case ours[alike(name)]:
			v.about(Inserted, "the file %s has the name of a file of the bundle, but for how it is written: some programs would take the one for the other", clip(name))
		case strings.HasPrefix(alike(name), "data-") || strings.HasPrefix(alike(name), "gaps-"):
			v.about(Inserted, "the file %s is not in the manifest: it was put there, or cut from the manifest", clip(name))
		case len(v.report.Others) < 100:
			v.report.Others = append(v.report.Others, clip(name))
		}
	}
	return nil
}

// alike is the name under which a file may turn up once a zip is unpacked, or
// the folder is copied to a file system that does not tell letters' cases apart.
func alike(name string) string {
	name = path.Base(path.Clean("/" + strings.ReplaceAll(name, `\`, "/")))
	return strings.ToLower(strings.TrimRight(name, " ."))
}

// checkpoint verifies the signature and the history of keys.
func (v *verifier) checkpoint(src source) error {
	v.keys = v.opts.Keys.Clone()
	keyText, ok1, err := v.text(src, fileKeys, maxText, false)
	if err != nil {
		return err
	}
	notes, ok2, err := v.text(src, fileHandovers, maxText, true)
	if err != nil {
		return err
	}
	if ok1 {
		v.history(keyText, notes, ok2)
	}
	signed, ok, err := v.text(src, fileCheckpoint, maxText, false)
	if !ok || err != nil {
		return err
	}
	c, err := v.keys.Open(signed)
	switch {
	case errors.Is(err, trail.ErrSignature):
		v.about(Signature, "%v", err)
		text, _, _ := strings.Cut(signed, "\n\n")
		if c, err = trail.ParseCheckpoint(text + "\n"); err != nil {
			v.about(Format, "the checkpoint can't be read: %v", err)
			return nil
		}
	case err != nil:
		v.about(Format, "the checkpoint can't be read: %v", err)
		return nil
	default:
		v.signed = true
	}
	v.report.Root, v.report.Size, v.size = c.Root, c.Size, c.Size
	if c.Origin != v.m.Origin {
		v.add(Finding{Kind: Altered, Index: -1, Fields: []string{"origin"}, Text: fmt.Sprintf("the checkpoint is of the log %q, and the manifest says %q", c.Origin, v.m.Origin)})
	}
	switch {
	case c.Size < v.m.CheckpointSize:
		v.about(Rollback, "the checkpoint is of %d leaves, and the manifest says %d: it was replaced by an older one", c.Size, v.m.CheckpointSize)
	case c.Size > v.m.CheckpointSize:
		v.add(Finding{Kind: Altered, Index: -1, Fields: []string{"checkpoint_size"}, Text: fmt.Sprintf("the checkpoint is of %d leaves, and the manifest says %d: one of the two was replaced", c.Size, v.m.CheckpointSize)})
	}
	return nil
}

// history checks that the bundle's keys are one chain of handovers that holds a
// key which is trusted, and follows it from there.
func (v *verifier) history(keyText, notes string, there bool) {
	handovers, err := splitNotes(notes, 2)
	if err != nil || there && notes == "" {
		v.about(Format, "%s can't be read: %v", fileHandovers, err)
		return
	}
	listed, err := trail.ParseKeys(keyText)
	if err != nil {
		v.about(Format, "%s can't be read: %v", fileKeys, err)
		return
	}
	list := listed.List()
	if strings.Join(list, "\n")+"\n" != keyText {
		v.about(Format, "%s is not in the form in which exports are written: it was edited", fileKeys)
	}
	chain, err := trail.ParseKeys(list[0])
	if err == nil {
		err = chain.Follow(handovers)
	}
	switch {
	case err != nil:
		v.about(Key, "%v", err)
		return
	case !slices.Equal(chain.List(), list) || len(handovers) != len(list)-1:
		v.about(Key, "the handovers do not lead from each of the %d keys in %s to the next: a key, or a handover, was altered, added or cut out", len(list), fileKeys)
		return
	case !slices.ContainsFunc(list, func(k string) bool { return slices.Contains(v.keys.List(), k) }):
		v.about(Key, "none of the keys in %s is one that you trust: they were replaced, or the bundle is of another log", fileKeys)
		return
	}
	if err := v.keys.Follow(handovers); err != nil {
		v.about(Key, "%v", err)
	}
}

func (v *verifier) tree(src source) error {
	text, ok, err := v.text(src, fileTree, maxText, false)
	if !ok || err != nil {
		return err
	}
	left, right, err := parseTree(text)
	if err != nil {
		v.about(Format, "%s can't be read: %v", fileTree, err)
		return nil
	}
	if v.whole, err = trail.NewRange(0, v.m.Begin, left); err != nil {
		v.about(Root, "%s does not complete the root to the left: %v: the range was altered, or hashes were", fileTree, err)
	}
	if v.right, err = trail.NewRange(v.m.End, v.m.CheckpointSize, right); err != nil {
		v.about(Root, "%s does not complete the root to the right: %v: the range was cut, or hashes were", fileTree, err)
	}
	return nil
}

// evidence takes in proven events after the range that declare what was pruned.
func (v *verifier) evidence(src source) error {
	text, ok, err := v.text(src, fileEvidence, maxText, true)
	if !ok || err != nil {
		return err
	}
	proofs, err := splitNotes(text, 3)
	if err == nil && len(proofs) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		v.about(Format, "%s can't be read: %v", fileEvidence, err)
		return nil
	}
	for i, proof := range proofs {
		r, err := VerifyProof(proof, v.keys)
		if f, ok := errors.AsType[Finding](err); ok {
			f.Text = fmt.Sprintf("the proof %d in %s: %s", i+1, fileEvidence, f.Text)
			v.add(f)
			continue
		} else if err != nil {
			return err
		}
		d, ok := declares(&r.Event, r.Index)
		if !ok || r.Origin != v.m.Origin || r.Index < v.m.End {
			v.at(Format, r.Index, &r, "the proof %d in %s is of no event after the range that declares what was pruned", i+1, fileEvidence)
			continue
		}
		v.declared = append(v.declared, d)
	}
	return nil
}

// parts verifies the parts at the same time, and combines them in order.
func (v *verifier) parts(ctx context.Context, src source) error {
	workers := v.opts.Workers
	if workers <= 0 {
		workers = min(runtime.GOMAXPROCS(0), 8)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type task struct {
		number int
		out    chan *result
	}
	// The queue bounds how many results wait for one before them.
	tasks, queue := make(chan task), make(chan chan *result, workers)
	tick := v.ticker()
	var all sync.WaitGroup
	defer all.Wait()
	for range workers {
		all.Go(func() {
			for t := range tasks {
				p := &partReader{m: v.m, part: &v.m.Parts[t.number], number: t.number, filter: &v.filter, last: t.number == len(v.m.Parts)-1, tick: tick}
				p.limit = v.opts.MaxFindings
				p.err = p.verify(ctx, src)
				if p.err != nil {
					cancel()
				}
				t.out <- &p.result
			}
		})
	}
	all.Go(func() {
		defer close(queue)
		defer close(tasks)
		for n := range v.m.Parts {
			t := task{n, make(chan *result, 1)}
			select {
			case queue <- t.out:
			case <-ctx.Done():
				return
			}
			tasks <- t // a worker takes it: each ends at once when ctx is done
		}
	})
	n, due := 0, v.m.Begin
	var first error
	for out := range queue {
		r := <-out
		// What others say after the first failure is that they were cancelled.
		if r.err != nil && (first == nil || errors.Is(first, context.Canceled)) {
			first = r.err
		}
		if first == nil {
			due = v.combine(r, &v.m.Parts[n], due)
		}
		n++
	}
	if first == nil {
		first = ctx.Err()
	}
	if first == nil && due < v.m.End {
		v.whole = nil
		v.at(Truncated, due, nil, "%s %s in no part: the bundle says that it goes to event %d, and it ends before", run(due, v.m.End), plural(span{due, v.m.End}), v.m.End-1)
	}
	return first
}

// ticker returns a function that workers call for records that they verified.
func (v *verifier) ticker() func(int64) {
	if v.opts.Progress == nil {
		return func(int64) {}
	}
	var mu sync.Mutex
	var done int64
	return func(n int64) {
		if n == 0 {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		done += n
		v.opts.Progress(done, v.m.Records)
	}
}

// combine takes a part in, whose leaves begin at due when none are missing
// between the parts, and returns the leaf that is due after it.
func (v *verifier) combine(r *result, p *Part, due int64) int64 {
	if p.Begin > due {
		v.whole = nil
		v.at(Missing, due, nil, "%s %s in no part: a part was cut out of the manifest, or its range was altered", run(due, p.Begin), plural(span{due, p.Begin}))
	} else if p.Begin < due {
		v.whole = nil
		v.at(Format, p.Begin, nil, "%s %s in two parts: the ranges in the manifest were altered", run(p.Begin, min(due, p.End)), plural(span{p.Begin, min(due, p.End)}))
	}
	if v.whole != nil && (r.leaves == nil || v.whole.AppendRange(r.leaves) != nil) {
		v.whole = nil
	}
	v.join(&r.findings)
	free := max(0, maxMisplaced-len(v.misplaced))
	v.misplaced = append(v.misplaced, r.misplaced[:min(free, len(r.misplaced))]...)
	v.more += int64(max(0, len(r.misplaced)-free))
	v.lone = append(v.lone, r.lone[:min(maxMisplaced-len(v.lone), len(r.lone))]...)
	for _, s := range r.suspects {
		if len(v.suspects) < v.limit {
			v.suspects = append(v.suspects, s)
		}
	}
	to, from := &v.report, &r.counts
	to.Records += from.Records
	to.Omitted, to.OmittedRuns = to.Omitted+from.Omitted, to.OmittedRuns+from.OmittedRuns
	to.Pruned, to.PrunedRuns = to.Pruned+from.Pruned, to.PrunedRuns+from.PrunedRuns
	to.Unseen, to.Undecided = to.Unseen+from.Unseen, to.Undecided+from.Undecided
	to.ErasedFields += from.ErasedFields
	if from.Records > 0 {
		to.took(from.First, from.Last)
	}
	for _, id := range r.ended {
		delete(v.open, id)
	}
	for id, x := range r.opened {
		if len(v.open) >= maxOpen {
			to.MoreIntents = true
			break
		}
		v.open[id] = x
	}
	v.declared = append(v.declared, r.declared...)
	v.pruned = append(v.pruned, r.pruned...)
	return max(due, p.End)
}

// root compares the root of all leaves with the one that was signed.
func (v *verifier) root() {
	match := false
	if v.whole != nil && v.right != nil && v.size >= 0 && v.whole.AppendRange(v.right) == nil && v.whole.End() == v.size {
		if is, err := v.whole.Root(); err == nil && is == v.report.Root {
			match = true
		} else {
			v.about(Root, "the leaves of the bundle do not give the root hash that the checkpoint signs: %s", v.blame())
		}
	} else if len(v.list) == 0 {
		// Everything that keeps the root from being computed is said where it is found.
		v.about(Root, "the root hash can't be computed from this bundle")
	}
	v.report.RootVerified = match && v.signed
	for _, s := range v.suspects {
		if match {
			s.Text = fmt.Sprintf("event %d (%s) is what the log has, but its checks are not (of %s): the checks were altered", s.Index, s.ID, strings.Join(s.Fields, ", "))
			s.Fields = []string{"checks"}
		} else {
			s.Text = fmt.Sprintf("event %d (%s): %s altered after the event was recorded, and its leaf hash with it", s.Index, s.ID, were(s.Fields))
		}
		v.add(s)
	}
	v.listIntents()
}

// blame says what a wrong root comes from, as far as can be told.
func (v *verifier) blame() string {
	switch {
	case len(v.suspects) > 0:
		return "events were altered together with their leaf hashes, as listed"
	case len(v.list) > 0:
		return "see the other findings"
	case v.report.Omitted+v.report.Pruned > 0:
		return "an event was altered together with its leaf hash and checks, or put in another's place, or the hashes of a gap or of the file tree were altered; which one can't be told"
	}
	return "an event was altered together with its leaf hash and checks, or put in another's place, or the hashes in the file tree were altered; which one can't be told"
}

func (v *verifier) listIntents() {
	for _, x := range v.open {
		v.report.OpenIntents = append(v.report.OpenIntents, x)
	}
	slices.SortFunc(v.report.OpenIntents, func(a, b Intent) int { return int(a.Index - b.Index) })
	if len(v.report.OpenIntents) > maxListed {
		v.report.OpenIntents, v.report.MoreIntents = v.report.OpenIntents[:maxListed], true
	}
}

// prunes looks for the events that declare the pruned leaves.
func (v *verifier) prunes() {
	if len(v.pruned) > maxPruned {
		v.about(Format, "there are %d separate runs of pruned leaves, and the limit is %d: export shorter ranges", len(v.pruned), maxPruned)
		return
	}
	var spans []span
	for _, d := range v.declared {
		spans = append(spans, span{d.Begin, d.End})
	}
	spans = merge(spans)
	list := func(p PrunedRange) {
		if len(v.report.PrunedRanges) < maxListed {
			v.report.PrunedRanges = append(v.report.PrunedRanges, p)
		}
	}
	gone, at := make([]int64, len(spans)), make([]int64, len(spans)) // of each span; its first gap
	for _, g := range merge(v.pruned) {
		// The declared span that ends after the gap begins, if it holds all of it.
		n := spanAt(spans, g.begin)
		if n < len(spans) && spans[n].begin <= g.begin && g.end <= spans[n].end {
			by := PrunedRange{Begin: g.begin, End: g.end, Index: -1}
			for _, d := range v.declared {
				if d.Begin < g.end && g.begin < d.End {
					by.Event, by.Index = d.Event, d.Index
					break
				}
			}
			list(by)
			if gone[n] == 0 {
				at[n] = g.begin
			}
			gone[n] += g.end - g.begin
			continue
		}
		list(PrunedRange{Begin: g.begin, End: g.end, Index: -1})
		if v.filter.Empty() || v.opts.Whole {
			v.at(Undeclared, g.begin, nil, "%s %s said to be pruned, and no event in this bundle or its evidence declares that: they were cut out, or %s was", run(g.begin, g.end), plural(g), PruneAction)
		}
	}
	if !v.filter.Empty() && !v.opts.Whole {
		return // a declaration may be among what was left out
	}
	deleted := make([]int64, len(spans))
	for _, d := range v.declared {
		n := spanAt(spans, d.Begin)
		deleted[n] = min(deleted[n]+d.deleted, 1<<60) // each is at most a leaf index
	}
	for n, s := range spans {
		if gone[n] > deleted[n] {
			v.at(Undeclared, at[n], nil, "of %s, %d are gone, and the events that declare what was pruned there say %d: what was kept was cut out; which of them can't be told", run(s.begin, s.end), gone[n], deleted[n])
		}
	}
}

// spanAt returns the number of the first span that ends after a leaf.
func spanAt(spans []span, index int64) int {
	n, _ := slices.BinarySearchFunc(spans, index, func(s span, at int64) int {
		if s.end <= at {
			return -1
		}
		return 1
	})
	return n
}

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// restarted is the kind of a finding about a log that lost its end and went on
// under another origin.
const restarted = "restart"

// serverVerdict is what the verification of a server's log showed.
type serverVerdict struct {
	Server    string
	Since     string // the file of the kept checkpoint
	Old       *trail.Checkpoint
	New       trail.Checkpoint
	Signed    string
	Restarts  []string // the origins under which it went on since
	Witnesses int
	Full      *wholeLog
	Saved     string
	Findings  []bundle.Finding
}

func (d *serverVerdict) add(kind, format string, args ...any) {
	d.Findings = append(d.Findings, bundle.Finding{Kind: kind, Index: -1, Text: fmt.Sprintf(format, args...)})
}

// server verifies the log of the server.
func (v *verification) server(ctx context.Context) error {
	old := ""
	if v.since != "" {
		raw, err := v.c.read(v.since, maxNoteFile)
		if err != nil {
			return unreadable("reading --since-checkpoint: %w", err)
		}
		old = string(raw)
		text, _ := cutNote(old)
		if _, err := trail.ParseCheckpoint(text); err != nil {
			return unreadable("--since-checkpoint %s: %w: make one with `%s`", v.since, err, v.c.command("audit checkpoint"))
		}
	}
	to, err := v.c.connect()
	if err != nil {
		return err
	}
	d := &serverVerdict{Server: to.base.String(), Since: v.since}
	if err := v.extend(ctx, to, old, d); err != nil {
		return err
	}
	if v.full && len(d.Findings) == 0 {
		if err := v.readAll(ctx, to, d); err != nil {
			return err
		}
	}
	if v.save != "" && len(d.Findings) == 0 {
		if err := replaceFile(v.save, d.Signed); err != nil {
			return fmt.Errorf("keep the checkpoint: %w", err)
		}
		d.Saved = v.save
	}
	if v.c.output.value == "table" {
		p := v.c.newPage()
		d.page(p)
		err = p.flush()
	} else {
		var raw []byte
		if raw, err = json.Marshal(d.data()); err == nil {
			err = v.c.printJSON(raw, false)
		}
	}
	if err != nil {
		return err
	}
	more := int64(0)
	if d.Full != nil {
		more = d.Full.more
	}
	return conclude("the log of "+d.Server, int64(len(d.Findings))+more, "")
}

// extend verifies the server's newest checkpoint, and that it extends the old one.
func (v *verification) extend(ctx context.Context, to *conn, old string, d *serverVerdict) error {
	listed, err := call(ctx, to, to.audit.ListTrailKeys, &rotundav1.ListTrailKeysRequest{}, "")
	if err != nil {
		return err
	}
	newest, err := call(ctx, to, to.audit.GetCheckpoint, &rotundav1.GetCheckpointRequest{}, "")
	if err != nil {
		return err
	}
	d.Signed = newest.GetCheckpoint()
	keys := v.keys.Clone()
	if err := keys.Follow(listed.GetHandovers()); err != nil {
		d.add(bundle.Key, "%v", err)
		return nil
	}
	if d.New, err = keys.Open(d.Signed); err != nil {
		d.add(bundle.Signature, "the server's newest checkpoint: %v: it is another log, or its key was replaced without a handover, or --key is not its key", err)
		return nil
	}
	n, bad := v.cosigned(d.Signed)
	d.Witnesses, d.Findings = n, append(d.Findings, bad...)
	if old == "" {
		return nil
	}
	was, followed, err := v.openKept(old, listed.GetHandovers())
	if err != nil {
		d.add(bundle.Signature, "the kept checkpoint %s: %v: it was altered, or is another log's, or --key lacks the key of its time (see audit key --all)", v.since, err)
		return nil
	}
	d.Old = &was
	if followed < len(listed.GetHandovers()) {
		d.beyond(listed.GetHandovers()[followed])
		return nil
	}
	if !d.restarts(listed.GetHandovers()) {
		return nil
	}
	if was.Size > d.New.Size {
		d.add(bundle.Rollback, "the log had %s, and now it has %d: its end was cut off, or an old copy of the database was put back", counted(was.Size, "leaf"), d.New.Size)
		return nil
	}
	var proof tlog.TreeProof
	if was.Size > 0 && was.Size < d.New.Size {
		res, err := call(ctx, to, to.audit.ProveConsistency, &rotundav1.ProveConsistencyRequest{OldSize: was.Size, NewSize: d.New.Size}, "")
		if err != nil {
			return err
		}
		if proof, err = hashesOf(res.GetHashes()); err != nil {
			return err
		}
	}
	same := was
	same.Origin = d.New.Origin
	if f, ok := errors.AsType[bundle.Finding](bundle.Compare(same, d.New, proof)); ok {
		d.Findings = append(d.Findings, f)
	}
	return nil
}

// openKept verifies a kept checkpoint, and returns how many handovers may be
// followed before its key has no more right to have signed it. All: it is of the
// log's present history.
func (v *verification) openKept(signed string, handovers []string) (cp trail.Checkpoint, followed int, err error) {
	for followed = len(handovers); followed >= 0; followed-- {
		keys := v.keys.Clone()
		if err := keys.Follow(handovers[:followed]); err != nil {
			return cp, 0, err
		}
		cp, failed := keys.Open(signed)
		if failed == nil {
			return cp, followed, nil
		}
		if err == nil {
			err = failed
		}
	}
	return cp, 0, err
}

// beyond says what it means that the kept checkpoint is larger than the log was
// when the key that signed it was handed over.
func (d *serverVerdict) beyond(signed string) {
	h, ok := readHandover(signed)
	switch {
	case ok && h.Origin != d.Old.Origin:
		d.lost(h.Origin, h.Size)
	default:
		d.add(bundle.Rollback, "the log had %s, and its key was handed over when it had %d: its end was cut off, or an old copy of the database was put back", counted(d.Old.Size, "leaf"), h.Size)
	}
}

// lost tells of a restart that the kept checkpoint is beyond.
func (d *serverVerdict) lost(origin string, size int64) {
	d.add(restarted, "the log was restarted under the name %q with its first %s: of the %d that the kept checkpoint vouches for, up to %d are lost or were replaced: find the event trail.restart, and ask its actor for the reason",
		origin, counted(size, "leaf"), d.Old.Size, d.Old.Size-size)
}

// readHandover reads a note that trail.Keys has verified.
func readHandover(signed string) (h trail.Handover, ok bool) {
	lines := strings.Split(signed, "\n")
	if len(lines) < 5 {
		return h, false
	}
	size, err := strconv.ParseInt(lines[4], 10, 64)
	return trail.Handover{Origin: lines[1], From: lines[2], To: lines[3], Size: size}, err == nil
}

// restarts looks for handovers by which the log went on under another origin. It
// reports false when the log can't be compared, and says why.
func (d *serverVerdict) restarts(handovers []string) bool {
	if d.Old.Origin == d.New.Origin {
		return true
	}
	if !sameLog(d.Old.Origin, d.New.Origin) {
		d.add(bundle.Fork, "the kept checkpoint is of the log %q, and the server's of %q", d.Old.Origin, d.New.Origin)
		return false
	}
	at := d.Old.Origin
	for _, signed := range handovers {
		h, ok := readHandover(signed)
		if from, _, _ := strings.Cut(h.From, "+"); !ok || from != at || h.Origin == at {
			continue
		}
		at = h.Origin
		d.Restarts = append(d.Restarts, at)
	}
	if at != d.New.Origin {
		d.add(bundle.Key, "the server has no handovers that lead from %q to %q: the key history was cut", d.Old.Origin, d.New.Origin)
		return false
	}
	return true
}

// replaceFile writes a file whole or not at all.
func replaceFile(name, content string) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(content)
	return errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close(), os.Rename(f.Name(), name))
}

// readAll reads the whole log, and verifies every leaf.
func (v *verification) readAll(ctx context.Context, to *conn, d *serverVerdict) error {
	all := &wholeLog{}
	d.Full = all
	pull := &puller{c: v.c, to: to, bar: v.c.newProgress("verifying", v.quiet), req: &rotundav1.ExportEventsRequest{Size: d.New.Size}}
	pull.begin = func(h bundle.Head) (leaves, error) {
		is, _ := cutNote(h.Checkpoint)
		if want, _ := cutNote(d.Signed); is != want || h.Begin != 0 || h.End != d.New.Size {
			return nil, errors.New("the server did not send all leaves of the checkpoint that was asked for: this is a fault of the server")
		}
		return all, nil
	}
	if d.New.Size == 0 {
		return nil
	}
	err := pull.run(ctx)
	pull.bar.clear()
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted: nothing was shown to be right or wrong")
		}
		return err
	}
	if root, err := all.tree.Root(); err != nil || root != d.New.Root {
		all.add(bundle.Finding{Kind: bundle.Root, Index: -1, Text: "the leaves that the server sent do not give the root hash that it signed: events were altered together with their leaf hashes, or the hashes of pruned ones were"})
	}
	d.Findings = append(d.Findings, all.findings...)
	return nil
}

// wholeLog verifies the leaves of a log one after the other, and keeps none.
type wholeLog struct {
	tree            trail.Range
	records, pruned int64
	findings        []bundle.Finding
	more            int64
}

const maxFindings = 100

func (w *wholeLog) add(f bundle.Finding) {
	if len(w.findings) >= maxFindings {
		w.more++
		return
	}
	w.findings = append(w.findings, f)
}

func (w *wholeLog) Next() int64 { return w.tree.End() }

func (w *wholeLog) Write(r *trail.Record) error {
	if r.Index != w.Next() {
		return fmt.Errorf("the server sent event %d where %d is due: this is a fault of the server", r.Index, w.Next())
	}
	w.records++
	var raw []byte
	leaf, err := r.Leaf()
	if err == nil {
		raw, err = leaf.Encode()
	}
	h, names := tlog.RecordHash(raw), leaf.Differs(r.Checks)
	switch {
	case err != nil:
		w.add(bundle.Finding{Kind: bundle.Altered, Index: r.Index, ID: r.ID, Fields: r.Differs(), Text: fmt.Sprintf("event %d is none that a log could hold: %v", r.Index, err)})
	case h != r.Hash && len(names) == 0:
		w.add(bundle.Finding{Kind: bundle.Altered, Index: r.Index, ID: r.ID, Fields: []string{"hash"}, Text: fmt.Sprintf("event %d: its leaf hash is not the one that its fields give", r.Index)})
	case h != r.Hash || len(names) > 0:
		w.add(bundle.Finding{Kind: bundle.Altered, Index: r.Index, ID: r.ID, Fields: names, Text: fmt.Sprintf("event %d (%s): altered after it was recorded: %s", r.Index, r.ID, strings.Join(names, ", "))})
	}
	// The tree is computed of what the server says, so that one altered event does
	// not make every other one suspicious.
	w.tree.Append(r.Hash)
	return nil
}

func (w *wholeLog) Gap(g bundle.Gap) error {
	if g.Begin != w.Next() || g.End <= g.Begin {
		return fmt.Errorf("the server sent a gap at event %d where %d is due: this is a fault of the server", g.Begin, w.Next())
	}
	if g.Why != bundle.Pruned {
		w.add(bundle.Finding{Kind: bundle.Missing, Index: g.Begin, Text: fmt.Sprintf("the server left out %s from event %d on, though no filter was given", counted(g.End-g.Begin, "event"), g.Begin)})
	}
	r, err := trail.NewRange(g.Begin, g.End, g.Hashes)
	if err != nil {
		return err
	}
	w.pruned += g.End - g.Begin
	return w.tree.AppendRange(r)
}

func (d *serverVerdict) page(p *page) {
	more := int64(0)
	if d.Full != nil {
		more = d.Full.more
	}
	if n := int64(len(d.Findings)) + more; n > 0 {
		p.line("NOT VERIFIED: the log of %s: %s", d.Server, counted(n, "finding"))
		p.findings(d.Findings, more)
		p.line("")
		p.line("Keep the checkpoint that you have: it is the evidence.")
	} else if d.Old != nil {
		p.line("verified: the log of %s extends %s", d.Server, d.Since)
	} else {
		p.line("verified: the log of %s", d.Server)
	}
	if d.New.Origin == "" {
		return
	}
	p.field("log", "%s", d.New.Origin)
	if d.Old != nil {
		p.field("kept", "%s, root %s", counted(d.Old.Size, "leaf"), base64.StdEncoding.EncodeToString(d.Old.Root[:]))
	}
	p.field("now", "%s, root %s", counted(d.New.Size, "leaf"), base64.StdEncoding.EncodeToString(d.New.Root[:]))
	if len(d.Restarts) > 0 && len(d.Findings) == 0 {
		p.field("restarted", "as %s, with everything that the kept checkpoint vouches for", d.Restarts[len(d.Restarts)-1])
	}
	if d.Witnesses > 0 {
		p.field("witnesses", "%d of those that you trust cosigned it", d.Witnesses)
	}
	if d.Full != nil {
		text := counted(d.Full.records, "event") + " read and verified"
		if d.Full.pruned > 0 {
			text += ", " + thousands(d.Full.pruned) + " pruned and shown by hashes"
		}
		p.field("leaves", "%s", text)
	}
	if d.Saved != "" {
		p.field("saved", "%s: give it as --since-checkpoint next time", d.Saved)
	}
}

func (d *serverVerdict) data() any {
	type head struct {
		Origin string `json:"origin"`
		Size   int64  `json:"size"`
		Root   string `json:"root"`
	}
	of := func(c trail.Checkpoint) *head {
		return &head{c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:])}
	}
	out := struct {
		Server     string        `json:"server"`
		Verified   bool          `json:"verified"`
		Kept       *head         `json:"kept,omitempty"`
		Now        *head         `json:"now,omitempty"`
		Checkpoint string        `json:"checkpoint"`
		Restarts   []string      `json:"restarts,omitempty"`
		Witnesses  int           `json:"witnesses"`
		Events     *int64        `json:"events,omitempty"`
		Pruned     *int64        `json:"pruned,omitempty"`
		Findings   []findingData `json:"findings"`
	}{Server: d.Server, Verified: len(d.Findings) == 0, Checkpoint: d.Signed, Restarts: d.Restarts, Witnesses: d.Witnesses, Findings: findingsData(d.Findings)}
	if d.Old != nil {
		out.Kept = of(*d.Old)
	}
	if d.New.Origin != "" {
		out.Now = of(d.New)
	}
	if d.Full != nil {
		out.Events, out.Pruned = &d.Full.records, &d.Full.pruned
	}
	return out
}

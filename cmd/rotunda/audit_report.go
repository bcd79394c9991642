package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
)

// verdict is what the verification of a bundle showed.
type verdict struct {
	Path       string
	Report     *bundle.Report
	FromBundle bool
	Signers    []string // of the checkpoint, as its lines say
	Witnesses  int
	Kept       []compared
}

// unproved says why nothing is wrong, and all the same nothing is proved.
func (d *verdict) unproved() string {
	if d.FromBundle {
		return d.Path + " is self-consistent, not authenticated: the key came from the bundle itself, so anybody may have written it; give --key"
	}
	for _, k := range d.Kept {
		if k.State == "not_comparable" {
			return d.Path + " verifies, but can't be compared with " + k.File + ": " + k.Text
		}
	}
	return ""
}

func (d *verdict) page(p *page) {
	r := d.Report
	bad := int64(len(r.Findings)) + r.More
	switch {
	case bad > 0:
		p.line("NOT VERIFIED: %s: %s", d.Path, counted(bad, "finding"))
		p.findings(r.Findings, r.More)
		if r.Origin != "" {
			p.line("")
			p.line("What it says of itself, which can't be relied on:")
		}
	case d.FromBundle:
		p.line("self-consistent, not authenticated: %s", d.Path)
	default:
		p.line("verified: %s", d.Path)
	}
	if r.Origin == "" {
		return
	}
	p.field("log", "%s", r.Origin)
	if r.End > r.Begin {
		p.field("range", "events %d to %d of %d, as %s", r.Begin, r.End-1, r.Size, r.Format)
	} else {
		p.field("range", "no event of %d", r.Size)
	}
	records := counted(r.Records, "record")
	if r.Records > 0 {
		records += ", from " + instant(r.First) + " to " + instant(r.Last)
	}
	p.field("records", "%s", records)
	if filter := describe(r.Filter); filter != "" {
		p.field("filter", "%s", filter)
	}
	if r.Omitted > 0 {
		p.field("left out", "%s", d.leftOut())
	}
	if r.Pruned > 0 {
		p.field("pruned", "%s", d.pruned())
	}
	if r.ErasedFields > 0 {
		p.field("erased", "%s, as their commitments show", counted(r.ErasedFields, "value"))
	}
	if n := int64(len(r.OpenIntents)); n > 0 {
		more := ""
		if r.MoreIntents {
			more = " or more"
		}
		p.field("open", "%s%s without an end in this bundle: see %s audit open-intents %s", counted(n, "intent"), more, p.cli.program, quote(d.Path))
	}
	p.field("checkpoint", "%s, root %s", counted(r.Size, "leaf"), base64.StdEncoding.EncodeToString(r.Root[:]))
	if len(d.Signers) > 0 {
		p.field("signed by", "%s", strings.Join(d.Signers, ", "))
	}
	if d.Witnesses > 0 {
		p.field("witnesses", "%d of those that you trust cosigned it", d.Witnesses)
	}
	for _, k := range d.Kept {
		switch k.State {
		case "extended":
			p.field("kept", "extends %s, of %s", k.File, counted(k.Size, "leaf"))
		case "not_comparable":
			p.field("kept", "can't be compared with %s: %s", k.File, k.Text)
		}
	}
	if len(r.Others) > 0 {
		p.field("others", "%s: no part of the bundle, and nothing vouches for it", strings.Join(r.Others, ", "))
	}
}

func (d *verdict) leftOut() string {
	r := d.Report
	text := counted(r.Omitted, "event") + " in " + counted(r.OmittedRuns, "run")
	shown := r.Omitted - r.Unseen - r.Undecided
	switch {
	case r.Unseen == r.Omitted:
		return text + ", as hashes: nothing else is missing, but that the filter leaves these out is not shown (export --omitted shows it)"
	case shown == r.Omitted:
		return text + ", each of which the filter leaves out"
	}
	text += ": " + thousands(shown) + " that the filter leaves out"
	if r.Undecided > 0 {
		text += ", " + thousands(r.Undecided) + " that hide the field in question"
	}
	if r.Unseen > 0 {
		text += ", " + thousands(r.Unseen) + " as hashes only"
	}
	return text
}

func (d *verdict) pruned() string {
	r := d.Report
	text := counted(r.Pruned, "event") + " in " + counted(r.PrunedRuns, "run")
	said := map[string]bool{}
	var by []string
	undeclared := 0
	for _, x := range r.PrunedRanges {
		if x.Event == "" {
			undeclared++
		} else if !said[x.Event] && len(by) < 3 {
			said[x.Event] = true
			by = append(by, "event "+formatInt(x.Index))
		}
	}
	if len(by) > 0 {
		text += ", declared by " + strings.Join(by, ", ")
	}
	if undeclared > 0 {
		text += ", of which " + counted(int64(undeclared), "run") + " has no event in this bundle that declares it"
	}
	return text
}

// findings writes a line for each finding.
func (p *page) findings(list []bundle.Finding, more int64) {
	wide := 0
	for _, f := range list {
		wide = max(wide, len(f.Kind))
	}
	for _, f := range list {
		p.line("  %-*s  %s", wide, f.Kind, f.Text)
	}
	if more > 0 {
		p.line("  … and %s", counted(more, "more finding"))
	}
}

func instant(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// The JSON forms.
type findingData struct {
	Kind   string   `json:"kind"`
	Index  *int64   `json:"index,omitempty"`
	ID     string   `json:"id,omitempty"`
	Fields []string `json:"fields,omitempty"`
	Text   string   `json:"text"`
}

type intentData struct {
	Index    int64     `json:"index"`
	ID       string    `json:"id"`
	Time     time.Time `json:"time"`
	Action   string    `json:"action"`
	Resource string    `json:"resource"`
}

type prunedData struct {
	Begin int64  `json:"begin"`
	End   int64  `json:"end"`
	Event string `json:"event,omitempty"`
}

type verdictData struct {
	Path          string            `json:"path"`
	Verified      bool              `json:"verified"`
	Authenticated bool              `json:"authenticated"`
	Origin        string            `json:"origin"`
	Size          int64             `json:"size"`
	Root          string            `json:"root"`
	Begin         int64             `json:"begin"`
	End           int64             `json:"end"`
	Format        string            `json:"format"`
	Filter        map[string]string `json:"filter"`
	Records       int64             `json:"records"`
	First         *time.Time        `json:"first,omitempty"`
	Last          *time.Time        `json:"last,omitempty"`
	Omitted       int64             `json:"omitted"`
	Unseen        int64             `json:"unseen"`
	Undecided     int64             `json:"undecided"`
	Pruned        int64             `json:"pruned"`
	PrunedRanges  []prunedData      `json:"prunedRanges"`
	ErasedFields  int64             `json:"erasedFields"`
	OpenIntents   []intentData      `json:"openIntents"`
	MoreIntents   bool              `json:"moreIntents"`
	Witnesses     int               `json:"witnesses"`
	Checkpoints   []compared        `json:"checkpoints"`
	Findings      []findingData     `json:"findings"`
	MoreFindings  int64             `json:"moreFindings"`
	Others        []string          `json:"others"`
}

func (d *verdict) data() *verdictData {
	r := d.Report
	out := &verdictData{
		Path: d.Path, Verified: r.OK(), Authenticated: r.OK() && !d.FromBundle, Origin: r.Origin, Size: r.Size, Root: base64.StdEncoding.EncodeToString(r.Root[:]),
		Begin: r.Begin, End: r.End, Format: r.Format, Filter: r.Filter, Records: r.Records, Omitted: r.Omitted, Unseen: r.Unseen, Undecided: r.Undecided,
		Pruned: r.Pruned, PrunedRanges: []prunedData{}, ErasedFields: r.ErasedFields, OpenIntents: intents(r.OpenIntents), MoreIntents: r.MoreIntents,
		Witnesses: d.Witnesses, Checkpoints: append([]compared{}, d.Kept...), Findings: findingsData(r.Findings), MoreFindings: r.More, Others: append([]string{}, r.Others...),
	}
	if !r.First.IsZero() {
		out.First, out.Last = &r.First, &r.Last
	}
	for _, x := range r.PrunedRanges {
		out.PrunedRanges = append(out.PrunedRanges, prunedData{x.Begin, x.End, x.Event})
	}
	return out
}

func intents(list []bundle.Intent) []intentData {
	out := []intentData{}
	for _, x := range list {
		out = append(out, intentData(x))
	}
	return out
}

func findingsData(list []bundle.Finding) []findingData {
	out := []findingData{}
	for _, f := range list {
		x := findingData{Kind: f.Kind, ID: f.ID, Fields: f.Fields, Text: f.Text}
		if f.Index >= 0 {
			x.Index = &f.Index
		}
		out = append(out, x)
	}
	return out
}

// proofVerdict is what the verification of one event's proof showed.
type proofVerdict struct {
	path       string
	record     trail.Record
	checkpoint string
	witnesses  int
	findings   []bundle.Finding
}

func (d *proofVerdict) page(p *page) {
	if len(d.findings) > 0 {
		p.line("NOT VERIFIED: %s: %s", d.path, counted(int64(len(d.findings)), "finding"))
		p.findings(d.findings, 0)
		return
	}
	r := &d.record
	p.line("verified: %s: this event stands in the log", d.path)
	p.field("log", "%s", r.Origin)
	p.field("event", "%d, id %s", r.Index, r.ID)
	p.field("time", "%s", instant(r.Time))
	p.field("action", "%s", r.Action)
	p.field("resource", "%s", r.Resource)
	outcome := r.Outcome
	if r.Count > 1 {
		outcome += ", " + thousands(r.Count) + " times"
	}
	p.field("outcome", "%s", outcome)
	for f := range trail.NumFields {
		switch value := r.Value(f); {
		case r.IsErased(f):
			p.field(f.String(), "(erased)")
		case value != "" && value != "{}":
			p.field(f.String(), "%s", value)
		}
	}
	if r.Intent != "" {
		p.field("ends", "the intent %s", r.Intent)
	}
	text, _ := cutNote(d.checkpoint)
	if cp, err := trail.ParseCheckpoint(text); err == nil {
		p.field("checkpoint", "%s, root %s", counted(cp.Size, "leaf"), base64.StdEncoding.EncodeToString(cp.Root[:]))
	}
	p.field("signed by", "%s", strings.Join(signersOf(d.checkpoint), ", "))
}

func (d *proofVerdict) data() ([]byte, error) {
	out := struct {
		Path      string          `json:"path"`
		Verified  bool            `json:"verified"`
		Event     json.RawMessage `json:"event,omitempty"`
		Witnesses int             `json:"witnesses"`
		Findings  []findingData   `json:"findings"`
	}{Path: d.path, Verified: len(d.findings) == 0, Witnesses: d.witnesses, Findings: findingsData(d.findings)}
	if out.Verified {
		line, err := format.AppendJSON(nil, &d.record)
		if err != nil {
			return nil, err
		}
		out.Event = bytes.TrimSpace(line)
	}
	return json.Marshal(out)
}

package audit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

var corpusUpdate = flag.Bool("update", false, "write the table of attacks into docs/trail.md")

// attack is something that a superuser of the database does to the trail, and
// how it must be named.
type attack struct {
	name string
	do   func(*testing.T, *scene)

	old     bool // on the copy of the database as it was some hundred events before
	events  int  // that the server records afterwards; 0: 5
	server  string
	want    []string // of the export: "kind event fields" of each finding, in any order
	refused string   // instead: what the export says when it can't be made
	kept    string   // the kind against the kept checkpoint; "": the log extends it
	copied  bool     // the kept checkpoint is that of another copy, which went on by itself
	witness bool     // the cosignature of the honest checkpoint must count no more
}

// What the server does after an attack.
const (
	goesOn   = "goes on"
	stops    = "stops"
	stopsNew = "stops when it is started again"
	stuck    = "reports an error, sequences nothing"
)

// scene is an attack under way: a running server, and somebody who may do
// everything in its database.
type scene struct {
	*honestLog
	*server
	last int64 // the newest event
}

// verdict is how an attack came out, as the table has it.
type verdict struct {
	name, server, named, sentence, kept string
}

// Promise: what a superuser of the database does to the trail is detected offline
// by who has the log's first public key and, for what only a comparison shows, a
// checkpoint that he kept; and it is named: what was done, to which event and
// which field. The server that goes on over it signs nothing that hides it.
func TestTamperingCorpus(t *testing.T) {
	tables := map[string][]verdict{}
	for name, url := range map[string]func(testing.TB) string{"sqlite": storetest.SQLiteURL, "postgres": storetest.Postgres} {
		t.Run(name, func(t *testing.T) {
			l := newHonestLog(t, url(t))
			for _, a := range slices.Concat(attacksOnFields(), attacksOnRows(), attacksOnTheTree(), attacksOnKeys(), attacksOnHistory(), attacksOnTheQueue(), harmless()) {
				t.Run(strings.ReplaceAll(a.name, "/", " "), func(t *testing.T) {
					tables[name] = append(tables[name], l.run(t, a))
				})
			}
		})
	}
	if t.Failed() {
		return
	}
	if diff := cmp.Diff(tables["sqlite"], tables["postgres"], cmp.AllowUnexported(verdict{})); diff != "" {
		t.Fatalf("the two databases do not come out the same (-sqlite +postgres):\n%s", diff)
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ATTACK\tTHE SERVER\tOFFLINE: WORD, EVENT, FIELDS\tKEPT CHECKPOINT\tWHAT THE VERIFIER SAYS")
	for _, v := range tables["sqlite"] {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.name, v.server, strings.ReplaceAll(v.named, "`", ""), strings.ReplaceAll(v.kept, "`", ""), v.sentence)
	}
	_ = w.Flush() // of a strings.Builder
	t.Logf("%d attacks, on SQLite and on PostgreSQL:\n%s", len(tables["sqlite"]), b.String())
	corpusTable(t, tables["sqlite"])
}

// corpusTable compares the table in docs/trail.md, or writes it.
func corpusTable(t *testing.T, table []verdict) {
	t.Helper()
	const begin, end = "<!-- begin corpus: written by go test ./audit -run TestTamperingCorpus -update -->\n", "<!-- end corpus -->\n"
	path := filepath.Join("..", "docs", "trail.md")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), begin)
	is, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table: want the lines\n%s%s", path, begin, end)
	}
	var b strings.Builder
	b.WriteString("| what was done | the server | word, event, fields | kept checkpoint | what the verifier says |\n|---|---|---|---|---|\n")
	for _, v := range table {
		cells := []string{v.name, v.server, v.named, v.kept, v.sentence}
		for i := range cells {
			cells[i] = strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(cells[i])
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
	}
	if *corpusUpdate {
		if err := os.WriteFile(path, []byte(before+begin+b.String()+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(is, b.String()); diff != "" {
		t.Errorf("the table in %s is another one: run with -update and look at it (-docs +test):\n%s", path, diff)
	}
}

func (l *honestLog) run(t *testing.T, a attack) verdict {
	t.Helper()
	from := l.url
	if a.old {
		from = l.old
	}
	s := &scene{honestLog: l, server: l.open(t, l.copyOf(t, from), storetest.NewClock(l.at))}
	if !a.old {
		// The running server has the edge of the tree in its memory, and the auditor
		// keeps its newest checkpoint.
		record(t, s.db, fullEvent(4, "acme"))
		sequence(t, s.tr)
	}
	kept := l.kept
	if !a.old {
		c, signed, err := s.tr.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.last, kept = c.Size-1, signed
	}
	if a.copied {
		kept = l.apart(t)
	}
	s.disarm(t)
	a.do(t, s)

	v := verdict{name: a.name, server: s.goOn(t, max(a.events, 5))}
	report, err := s.offline(t)
	if v.named, v.sentence = s.name(t, &report, err, a); a.refused == "" && err != nil {
		t.Errorf("the export is refused: %v", err)
	}
	if err == nil {
		var got []string
		for _, f := range report.Findings {
			got = append(got, s.short(f))
			if f.Index >= 0 && !strings.Contains(f.Text, fmt.Sprint(f.Index)) || f.Text == "" {
				t.Errorf("the sentence of a finding about event %d does not say so: %q", f.Index, f.Text)
			}
			switch f.Kind {
			case bundle.Altered, bundle.Reordered, bundle.Inserted, bundle.Duplicate:
				if id := s.event(t, f.Index).ID; f.ID != id {
					t.Errorf("event %d is named %q, and is %q", f.Index, f.ID, id)
				}
			}
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(a.want))
		if diff := cmp.Diff(want, got); diff != "" || report.OK() != (len(want) == 0) {
			t.Errorf("it is named otherwise (-want +got):\n%s\n%v", diff, report.Findings)
		}
	}
	kind, sentence := s.extends(t, kept)
	if kind != a.kept {
		t.Errorf("against the kept checkpoint it is %q, want %q: %s", kind, a.kept, sentence)
	}
	if v.kept = "extended"; kind != "" {
		if v.kept = "`" + kind + "`"; len(report.Findings) == 0 {
			v.sentence = sentence
		}
	}
	if a.witness {
		n, err := s.witnesses(t)
		if n != 0 || err == nil {
			t.Fatalf("the witness counts still: %v", err)
		}
		v.kept, v.sentence = "not cosigned", err.Error()
	}
	if v.server != a.server {
		t.Errorf("the server %s, want: %s", v.server, a.server)
	}
	v.sentence = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}`).ReplaceAllString(v.sentence, "…")
	v.sentence = regexp.MustCompile(`\+[0-9a-f]{8}`).ReplaceAllString(v.sentence, "+…")
	return v
}

// goOn lets the server record and sequence, then restarts it, and says what it did.
func (s *scene) goOn(t *testing.T, events int) string {
	t.Helper()
	step := func() string {
		for i := range events {
			err := s.db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
				return Record(ctx, tx, Event{Action: "corpus.after", Resource: fmt.Sprint("keysets/", i), Actor: "token/ada"})
			})
			if err != nil && !errors.Is(err, fault.ErrUnavailable) {
				t.Fatal(err)
			}
		}
		_, err := s.tr.Sequence(t.Context())
		switch {
		case err == nil:
			return goesOn
		case errors.Is(err, errAltered), errors.Is(err, fault.ErrUnavailable):
			return stops
		}
		return stuck
	}
	running := step()
	_ = s.tr.Close(t.Context()) // what it can't sequence waits
	s.tr = openTrail(t, s.tr.Config)
	again := step()
	switch {
	case running == goesOn && again == stops:
		return stopsNew
	case running == goesOn:
		return again
	}
	return running
}

// offline exports a bundle and verifies it with the first public key and nothing
// else.
func (s *scene) offline(t *testing.T) (bundle.Report, error) {
	t.Helper()
	into := &intoBundle{dir: filepath.Join(t.TempDir(), "bundle")}
	if err := s.tr.Export(t.Context(), ExportRequest{}, into); err != nil {
		return bundle.Report{}, err
	}
	if err := into.w.Close(); err != nil {
		return bundle.Report{}, err
	}
	keys, err := trail.ParseKeys(s.vkey)
	if err != nil {
		t.Fatal(err)
	}
	report, err := bundle.Verify(t.Context(), into.dir, bundle.Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return report, nil
}

// name puts a report into the table's words.
func (s *scene) name(t *testing.T, report *bundle.Report, refusal error, a attack) (named, sentence string) {
	t.Helper()
	if refusal != nil {
		if a.refused == "" || !strings.Contains(refusal.Error(), a.refused) {
			t.Errorf("the export says %q, want %q", refusal, a.refused)
		}
		return "no export", refusal.Error()
	}
	if a.refused != "" {
		t.Errorf("the export is not refused")
	}
	if len(report.Findings) == 0 {
		return "nothing", "verified"
	}
	// What is the same but for the event is said once.
	var order []string
	where := map[string][]string{}
	for _, f := range report.Findings {
		key := "`" + f.Kind + "`§" + strings.Join(f.Fields, ", ")
		if where[key] == nil {
			order = append(order, key)
		}
		if f.Index >= 0 {
			where[key] = append(where[key], s.label(f.Index))
		} else {
			where[key] = append(where[key], "")
		}
	}
	for i, key := range order {
		kind, fields, _ := strings.Cut(key, "§")
		if at := strings.Join(where[key], ", "); at != "" {
			kind += " " + at
		}
		if fields != "" {
			kind += ": " + fields
		}
		order[i] = kind
	}
	return strings.Join(order, "; "), report.Findings[0].Text
}

func (s *scene) short(f bundle.Finding) string {
	out := f.Kind
	if f.Index >= 0 {
		out += " " + s.label(f.Index)
	}
	if len(f.Fields) > 0 {
		out += " " + strings.Join(f.Fields, ",")
	}
	return out
}

func (s *scene) label(index int64) string {
	switch index {
	case s.first:
		return "first"
	case s.middle:
		return "middle"
	case s.last:
		return "last"
	case s.last + 1:
		return "next"
	}
	return fmt.Sprint(index)
}

// extends compares the newest checkpoint with the kept one, as `rotunda audit
// verify --since-checkpoint` does.
func (s *scene) extends(t *testing.T, kept string) (kind, sentence string) {
	t.Helper()
	keys, err := trail.ParseKeys(s.vkey)
	if err != nil {
		t.Fatal(err)
	}
	_, handovers, err := s.tr.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := keys.Follow(handovers); err != nil {
		return bundle.Key, err.Error()
	}
	was, err := keys.Open(kept)
	if err != nil {
		return bundle.Signature, "the kept checkpoint: " + err.Error()
	}
	c, signed, err := s.tr.Checkpoint(t.Context())
	if err != nil {
		return "none", err.Error()
	}
	if _, err := keys.Open(signed); err != nil {
		return bundle.Signature, err.Error()
	}
	var proof tlog.TreeProof
	if was.Size < c.Size {
		if proof, err = s.tr.Consistency(t.Context(), was.Size, c.Size); err != nil {
			return "no proof", err.Error()
		}
	}
	if f, ok := errors.AsType[bundle.Finding](bundle.Compare(was, c, proof)); ok {
		return f.Kind, f.Text
	}
	return "", ""
}

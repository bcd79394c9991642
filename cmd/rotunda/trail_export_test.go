package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// newLogService is a server with a log.
func newLogService(t *testing.T, l *testLog) *service {
	t.Helper()
	s := newService(t)
	s.mu.Lock() // the server runs, and a child process calls it
	defer s.mu.Unlock()
	s.reply, s.export = l.reply, l.export
	return s
}

// trailPub writes the log's first public key to a file.
func trailPub(t *testing.T, l *testLog) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trail.pub")
	write(t, file, l.keys[0]+"\n", 0o644)
	return file
}

// verified is the JSON verdict of a verification that must exit with code.
func verified(t *testing.T, code int, args ...string) verdictData {
	t.Helper()
	r := execute(t, nil, nil, append([]string{"audit", "verify", "-o", "json"}, args...)...)
	if r.code != code {
		t.Fatalf("exit code %d, want %d:\n%s%s", r.code, code, r.stdout, r.stderr)
	}
	var d verdictData
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	return d
}

// Each format, and a filter with and without the leaves that it leaves out.
func TestExportWhenItIsVerified(t *testing.T) {
	l := sampleLog(40)
	if err := l.records[7].Erase(trail.Address); err != nil {
		t.Fatal(err)
	}
	s := newLogService(t, l)
	key := trailPub(t, l)
	for _, test := range []struct {
		name, out       string
		args            []string
		records, unseen int64
	}{
		{"jsonl", "a", nil, 40, 0},
		{"csv", "a", []string{"--format", "csv"}, 40, 0},
		{"cef", "a", []string{"--format", "cef"}, 40, 0},
		{"ocsf", "a", []string{"--format", "ocsf"}, 40, 0},
		{"parquet", "a", []string{"--format", "parquet"}, 40, 0},
		{"zip", "a.zip", []string{"--format", "csv"}, 40, 0},
		{"filter", "a", []string{"--action", "keyset.", "--outcome", "ok"}, 13, 27},
		{"filter with what it leaves out", "a", []string{"--action", "keyset.", "--outcome", "ok", "--omitted"}, 13, 0},
		{"times", "a", []string{"--since", "2026-11-22T00:00:00Z", "--until", "2026-11-22T12:00:00Z"}, 12, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), test.out)
			r := execute(t, s, nil, append([]string{"audit", "export", "--out", out}, test.args...)...)
			if r.code != exitDone || r.stderr != "" || !strings.Contains(r.stdout, "verify      rotunda audit verify "+out) {
				t.Fatalf("exit code %d:\n%s%s", r.code, r.stdout, r.stderr)
			}
			d := verified(t, exitDone, out, "--key", key)
			if d.Records != test.records || d.Unseen != test.unseen || d.Size != 40 || !d.Authenticated {
				t.Errorf("%+v, want %d records and %d unseen", d, test.records, test.unseen)
			}
		})
	}
}

func TestExportWhenPrunedBeforeItsEnd(t *testing.T) {
	l := sampleLog(20)
	l.pruned = 5
	declares := l.sample(20)
	declares.Action, declares.Outcome, declares.Intent, declares.Detail = bundle.PruneAction, "ok", "", `{"begin":0,"end":5}`
	l.grow(declares)
	l.grow(l.sample(21))
	s := newLogService(t, l)
	out := filepath.Join(t.TempDir(), "a")
	// The event that declares what was pruned is after the range, so its proof comes along.
	r := execute(t, s, nil, "audit", "export", "--out", out, "--until", "2026-11-22T09:00:00Z")
	if r.code != exitDone || !strings.Contains(r.stdout, "events 0 to 14 ") {
		t.Fatalf("%+v", r)
	}
	// The filter on time makes the range only; without one, undeclared leaves are a finding.
	d := verified(t, exitDone, out, "--key", trailPub(t, l))
	if d.Pruned != 5 || len(d.PrunedRanges) != 1 || d.PrunedRanges[0].Event != eventID(20) {
		t.Errorf("%+v", d)
	}
}

// What was pruned between two connections of an export is in no head that its
// bundle has, so it is begun anew and never looks tampered with.
func TestExportWhenPrunedMeanwhile(t *testing.T) {
	l := sampleLog(60)
	l.fail = func(i int64) error {
		if i != 20 || l.late != nil {
			return nil
		}
		l.late = []string{l.prove(59)}
		return connect.NewError(connect.CodeUnavailable, errors.New("the server stops"))
	}
	r := execute(t, newLogService(t, l), nil, "audit", "export", "--out", filepath.Join(t.TempDir(), "a"))
	if r.code == exitDone || !strings.Contains(r.stderr, "pruned since this export was begun: begin again in another folder") {
		t.Errorf("%+v", r)
	}
}

// A connection that breaks again and again, at other places each time, is made
// again, and the export goes on in one run.
func TestExportWhenTheConnectionIsLost(t *testing.T) {
	l := sampleLog(60)
	lost := map[int64]bool{}
	l.fail = func(i int64) error {
		if i%20 != 10 || lost[i] {
			return nil
		}
		lost[i] = true
		if i == 30 {
			panic(http.ErrAbortHandler) // the connection breaks in the middle of a message
		}
		return connect.NewError(connect.CodeUnavailable, errors.New("the server stops"))
	}
	s := newLogService(t, l)
	for _, name := range []string{"folder", "file.zip"} {
		clear(lost)
		out := filepath.Join(t.TempDir(), name)
		r := execute(t, s, nil, "audit", "export", "--out", out)
		if r.code != exitDone || len(lost) != 3 || !strings.Contains(r.stderr, "the connection was lost") {
			t.Fatalf("lost %v: %+v", lost, r)
		}
		if d := verified(t, exitDone, out, "--key", trailPub(t, l)); d.Records != 60 {
			t.Errorf("%d records, want 60", d.Records)
		}
	}
}

func TestExportWhenTheServerRefuses(t *testing.T) {
	s := newService(t)
	out := filepath.Join(t.TempDir(), "a")
	r := execute(t, s, nil, "audit", "export", "--out", out)
	if _, err := os.Stat(out); r.code != exitRefused || !strings.Contains(r.stderr, "a signer may not read the trail") || !os.IsNotExist(err) || s.count() != 1 {
		t.Errorf("%d calls, folder %v: %+v", s.count(), err, r)
	}
	r = execute(t, nil, nil, "audit", "export", "--out", out, "--server", "http://127.0.0.1:1")
	if r.code != exitUnreachable {
		t.Errorf("%+v", r)
	}
}

// interrupted is an export that a signal ended once it had a number of events,
// which the bar tells. It must be a whole number of batches.
func interrupted(t *testing.T, l *testLog, after int64, args ...string) (s *service, stderr string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l.fail = func(i int64) error {
		if i >= after {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	s = newLogService(t, l)
	p, _, errs := newProcess(t, s)
	now := testNow.Add(-time.Second)
	p.barWidth = 80
	p.now = func() time.Time { now = now.Add(time.Second); return now }
	p.stderr = writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), fmt.Sprintf("%d records", after)) {
			cancel()
		}
		return errs.Write(b)
	})
	if code := run(ctx, append([]string{"audit", "export"}, args...), p); code != exitRefused {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	l.heal()
	return s, errs.String()
}

func TestExportWhenInterrupted(t *testing.T) {
	l := sampleLog(30)
	out := filepath.Join(t.TempDir(), "a")
	key := trailPub(t, l)
	s, stderr := interrupted(t, l, 12, "--out", out, "--since", "30d")
	if !strings.Contains(stderr, "interrupted: "+out+" has events 0 to 11 of 30: run the same command again to go on") {
		t.Errorf("it said:\n%s", stderr)
	}
	if d := verified(t, exitRefused, out, "--key", key); len(d.Findings) == 0 || d.Findings[0].Kind != bundle.Incomplete {
		t.Errorf("half an export: %+v", d.Findings)
	}
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"other format", []string{"--since", "30d", "--format", "csv"}, "holds another export (jsonl, with since="},
		{"other filter", []string{"--since", "30d", "--action", "x"}, "the action differs"},
		{"no since", nil, "one has no since"},
		{"other length", []string{"--since", "29d"}, "give --since 2026-10-23T03:00:00Z"},
		{"longer", []string{"--since", "31d"}, "give --since 2026-10-23T03:00:00Z"},
	} {
		r := execute(t, s, nil, append([]string{"audit", "export", "--out", out}, test.args...)...)
		if r.code != exitRefused || !strings.Contains(r.stderr, test.want) || !strings.Contains(r.stderr, "name another folder") {
			t.Errorf("%s: %+v", test.name, r)
		}
	}
	// The log has grown; the export goes on under its own checkpoint. An hour later,
	// 30d ago is another instant.
	for range 5 {
		l.grow(l.sample(l.size()))
	}
	r := execute(t, s, func(p *process) { p.now = func() time.Time { return testNow.Add(time.Hour) } }, "audit", "export", "--out", out, "--since", "30d")
	req, _ := s.last(t)
	if x := req.(*v1.ExportEventsRequest); r.code != exitDone || x.GetIndex() != 12 || x.GetSize() != 30 || !x.GetFilter().GetSince().AsTime().Equal(testNow.Add(-30*day)) {
		t.Fatalf("asked for %v: %+v", req, r)
	}
	if d := verified(t, exitDone, out, "--key", key); d.Records != 30 || d.Size != 30 {
		t.Errorf("%+v", d)
	}
	n := s.count()
	r = execute(t, s, nil, "audit", "export", "--out", out, "--since", "30d", "-o", "json")
	var done exported
	if err := json.Unmarshal([]byte(r.stdout), &done); err != nil || r.code != exitDone || !strings.Contains(r.stderr, "complete already") || done.Records != 30 || s.count() != n {
		t.Errorf("once more: %v, %+v", err, r)
	}
}

func TestExportWhenTheLogWasReplaced(t *testing.T) {
	l := sampleLog(30)
	out := filepath.Join(t.TempDir(), "a")
	interrupted(t, l, 12, "--out", out)
	other := sampleLog(3)
	for range 30 {
		other.grow(other.sample(other.size()*2 + 7))
	}
	r := execute(t, newLogService(t, other), nil, "audit", "export", "--out", out)
	if r.code != exitRefused || !strings.Contains(r.stderr, "the server can't go on with this export") {
		t.Errorf("%+v", r)
	}
}

func TestExportWhenTheFolderIsNotIts(t *testing.T) {
	s := newLogService(t, sampleLog(3))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "letter.txt"), "dear", 0o600)
	file := filepath.Join(dir, "b.zip")
	write(t, file, "dear", 0o600)
	for _, test := range []struct {
		out, want string
		code      int
	}{
		{dir, "has other files in it (b.zip): name an empty folder", exitRefused},
		{file, "is there already: name another file", exitRefused},
		{filepath.Join(dir, "letter.txt"), "is a file: name a folder", exitUsage},
		{filepath.Join(dir, "none", "c.zip"), "no such file", exitRefused},
	} {
		if r := execute(t, s, nil, "audit", "export", "--out", test.out); r.code != test.code || !strings.Contains(r.stderr, test.want) {
			t.Errorf("%s: %+v", test.out, r)
		}
	}
	if s.count() > 0 {
		t.Error("the server was called")
	}
}

func TestExportWhenAServerLies(t *testing.T) {
	l := sampleLog(9)
	for name, test := range map[string]struct {
		export func(*v1.ExportEventsRequest, *connect.ServerStream[v1.ExportEventsResponse]) error
		want   string
	}{
		"other filter": {func(r *v1.ExportEventsRequest, s *connect.ServerStream[v1.ExportEventsResponse]) error {
			return l.export(&v1.ExportEventsRequest{Filter: &v1.Filter{Action: "token."}}, s)
		}, "applied another filter (action=token.) than was asked for"},
		"no head": {func(_ *v1.ExportEventsRequest, s *connect.ServerStream[v1.ExportEventsResponse]) error {
			return s.Send(&v1.ExportEventsResponse{Item: &v1.ExportEventsResponse_Items{Items: &v1.ExportItems{}}})
		}, "items before the head"},
		"nothing": {func(*v1.ExportEventsRequest, *connect.ServerStream[v1.ExportEventsResponse]) error { return nil }, "the server sent nothing"},
		"a leaf left out": {func(r *v1.ExportEventsRequest, s *connect.ServerStream[v1.ExportEventsResponse]) error {
			if err := l.export(&v1.ExportEventsRequest{Size: 9, Index: 9}, s); err != nil {
				return err
			}
			return s.Send(&v1.ExportEventsResponse{Item: &v1.ExportEventsResponse_Items{Items: &v1.ExportItems{Items: []*v1.ExportItem{{Item: &v1.ExportItem_Record{Record: l.record(1)}}}}}})
		}, "event 1 is not the one that is due"},
	} {
		s := newService(t)
		s.export = test.export
		if r := execute(t, s, nil, "audit", "export", "--out", filepath.Join(t.TempDir(), "a")); r.code != exitRefused || !strings.Contains(r.stderr, test.want) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestExportWhenAtATerminal(t *testing.T) {
	l := sampleLog(90)
	s := newLogService(t, l)
	now := testNow
	bar := func(args ...string) string {
		return execute(t, s, func(p *process) {
			p.barWidth = 80
			p.now = func() time.Time { now = now.Add(100 * time.Millisecond); return now }
		}, append([]string{"audit", "export", "--out", filepath.Join(t.TempDir(), "a")}, args...)...).stderr
	}
	shown := bar()
	if !strings.Contains(shown, "exporting  [####") || !strings.Contains(shown, "records  ") || !strings.Contains(shown, "/s  ") || !strings.HasSuffix(shown, "\r\x1b[K") {
		t.Errorf("it showed %q", shown)
	}
	for line := range strings.SplitSeq(shown, "\r\x1b[K") {
		if len(line) > 79 {
			t.Errorf("%q is wider than the terminal", line)
		}
	}
	if shown := bar("--quiet"); shown != "" {
		t.Errorf("with --quiet it showed %q", shown)
	}
}

// testExport kills the real program in the middle of an export of more than one
// part, and goes on.
func testExport(t *testing.T, bin program) {
	const part = 100_000
	l := sampleLog(part + 20_000)
	l.batch = 1000
	stall := make(chan struct{})
	defer close(stall)
	l.fail = func(i int64) error {
		if i == part+10_000 {
			<-stall
		}
		return nil
	}
	s := newLogService(t, l)
	out := filepath.Join(t.TempDir(), "a")
	cmd := bin.command(t, []string{"ROTUNDA_SERVER=" + s.URL, "ROTUNDA_TOKEN=" + testToken}, "audit", "export", "--out", out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The second part has been begun once its file is there.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(out, "data-000001.jsonl.tmp")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			t.Fatal("the second part was not begun")
		}
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	l.heal()
	r := bin.run(t, []string{"ROTUNDA_SERVER=" + s.URL, "ROTUNDA_TOKEN=" + testToken}, "audit", "export", "--out", out)
	req, _ := s.last(t)
	if x := req.(*v1.ExportEventsRequest); r.code != exitDone || x.GetIndex() != part || x.GetSize() != part+20_000 {
		t.Fatalf("asked for %v: %+v", req, r)
	}
	// No server is told of: the verification is offline.
	r = bin.run(t, nil, "audit", "verify", out, "--key", trailPub(t, l))
	if r.code != exitDone || !strings.Contains(r.stdout, "120,000 records") {
		t.Errorf("%+v", r)
	}
}

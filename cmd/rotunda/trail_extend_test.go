package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// serverReport is the JSON form of a server's verdict.
type serverReport struct {
	Verified       bool
	Kept, Now      *struct{ Size int64 }
	Restarts       []string
	Events, Pruned int64
	Witnesses      int
	Findings       []findingData
}

// verifyServer verifies the log of a server against a kept checkpoint.
func verifyServer(t *testing.T, l *testLog, key, kept string, args ...string) (result, serverReport) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kept.txt")
	if kept != "" {
		write(t, file, kept, 0o600)
		args = append(args, "--since-checkpoint", file)
	}
	r := execute(t, newLogService(t, l), nil, append([]string{"audit", "verify", "--key", key, "-o", "json"}, args...)...)
	var d serverReport
	if r.stdout != "" {
		if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
			t.Fatalf("%v in %s", err, r.stdout)
		}
	}
	return r, d
}

func TestServerWhenItExtendsTheKeptCheckpoint(t *testing.T) {
	l := sampleLog(12)
	key := trailPub(t, l)
	kept := l.checkpoint(7)
	l.handOver(sampleOrigin, "two")
	for range 8 {
		l.grow(l.sample(l.size()))
	}
	l.pruned = 3
	save := filepath.Join(t.TempDir(), "new.txt")
	r, d := verifyServer(t, l, key, kept, "--full", "--save", save)
	if r.code != exitDone || !d.Verified || d.Kept.Size != 7 || d.Now.Size != 20 || d.Events != 17 || d.Pruned != 3 {
		t.Fatalf("%+v", r)
	}
	saved, err := os.ReadFile(save)
	if err != nil || string(saved) != l.checkpoint(20) {
		t.Errorf("%v, saved %q", err, saved)
	}
	// The next run begins there, and the log has not grown.
	if r, d := verifyServer(t, l, key, string(saved)); r.code != exitDone || d.Kept.Size != 20 {
		t.Errorf("%+v", r)
	}
	if r, d := verifyServer(t, l, key, "", "--full"); r.code != exitDone || d.Kept != nil || d.Events != 17 {
		t.Errorf("without a kept one: %+v", r)
	}
	// It went on under another name, with everything that was kept.
	l.handOver(sampleOrigin+"~1", "three")
	l.grow(l.sample(l.size()))
	if r, d := verifyServer(t, l, key, kept, "--full"); r.code != exitDone || len(d.Restarts) != 1 {
		t.Errorf("restarted: %+v", r)
	}
}

func TestServerWhenItsLogIsNotTheKeptOne(t *testing.T) {
	l := sampleLog(20)
	key := trailPub(t, l)
	shorter := sampleLog(12)
	forked := sampleLog(4)
	for forked.size() < 25 {
		forked.grow(forked.sample(forked.size() + 1))
	}
	same := sampleLog(19)
	same.grow(same.sample(30))
	thief := sampleLog(20)
	thief.signer, _ = testSigner(sampleOrigin, "thief")
	_, thief.keys[0] = testSigner(sampleOrigin, "thief")
	restart := sampleLog(15)
	restart.handOver(sampleOrigin+"~1", "two")
	for range 9 {
		restart.grow(restart.sample(restart.size()))
	}
	rotated := sampleLog(15)
	rotated.handOver(sampleOrigin, "two")
	for range 9 {
		rotated.grow(rotated.sample(rotated.size() + 1))
	}
	badHandover := sampleLog(22)
	badHandover.handOver(sampleOrigin, "two")
	badHandover.handovers[0] = strings.Replace(badHandover.handovers[0], "\n22\n", "\n21\n", 1)
	cut := sampleLog(15)
	cut.handOver(sampleOrigin+"~1", "two")
	cut.handovers = nil
	for name, test := range map[string]struct {
		now        *testLog
		kind, want string
	}{
		"the end was cut off":    {shorter, "rollback", "the log had 20 leaves, and now it has 12"},
		"another history":        {forked, "fork", "does not extend the one of 20 leaves"},
		"two of the same size":   {same, "fork", "two root hashes"},
		"another key":            {thief, "signature", "its key was replaced without a handover"},
		"restarted with a loss":  {restart, "restart", "of the 20 that the kept checkpoint vouches for, up to 5 are lost"},
		"rotated after a loss":   {rotated, "rollback", "its key was handed over when it had 15"},
		"a handover was altered": {badHandover, "key", "handover 1 of the trail's keys"},
		"a handover was cut":     {cut, "signature", "the server's newest checkpoint"},
	} {
		save := filepath.Join(t.TempDir(), "new.txt")
		r, d := verifyServer(t, test.now, key, l.checkpoint(20), "--save", save, "--full")
		if r.code != exitRefused || len(d.Findings) != 1 || d.Findings[0].Kind != test.kind || !strings.Contains(d.Findings[0].Text, test.want) || !strings.Contains(r.stderr, "does not verify: 1 finding") {
			t.Errorf("%s: want %s %q: %+v", name, test.kind, test.want, r)
		}
		if _, err := os.Stat(save); !os.IsNotExist(err) {
			t.Errorf("%s: a checkpoint that does not verify was saved", name)
		}
	}
	// With all keys given, nothing else shows that the handover between them is gone.
	all := filepath.Join(t.TempDir(), "all.pub")
	write(t, all, strings.Join(cut.keys, "\n"), 0o600)
	if r, d := verifyServer(t, cut, all, l.checkpoint(12)); r.code != exitRefused || len(d.Findings) != 1 || d.Findings[0].Kind != "key" || !strings.Contains(d.Findings[0].Text, "the key history was cut") {
		t.Errorf("a handover was cut, and all keys given: %+v", r)
	}
	r, d := verifyServer(t, l, key, thief.checkpoint(9))
	if r.code != exitRefused || len(d.Findings) != 1 || !strings.Contains(d.Findings[0].Text, "--key lacks the key of its time") {
		t.Errorf("kept one of another key: %+v", r)
	}
	r = execute(t, newLogService(t, shorter), nil, "audit", "verify", "--key", key, "--full")
	if r.code != exitDone || !strings.HasPrefix(r.stdout, "verified: the log of http://127.0.0.1:") {
		t.Errorf("%+v", r)
	}
}

func TestServerWhenALeafWasAltered(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(*testLog)
		want  findingData
	}{
		"a field":          {func(l *testLog) { l.records[3].Address = "203.0.113.8" }, findingData{Kind: "altered", Fields: []string{"address"}}},
		"a field and hash": {func(l *testLog) { l.records[3].Action = "x"; l.records[3].Hash, _ = l.records[3].Event.Hash() }, findingData{Kind: "altered", Fields: []string{"action"}}},
		"the hash":         {func(l *testLog) { l.records[3].Hash[0]++ }, findingData{Kind: "altered", Fields: []string{"hash"}}},
		"all of it": {func(l *testLog) {
			r := &l.records[3]
			r.Action = "x"
			r.Checks = r.MakeChecks()
			r.Hash, _ = r.Event.Hash()
		}, findingData{Kind: "root"}},
		"it is left out": {func(l *testLog) { l.batch = -1 }, findingData{Kind: "missing"}},
	} {
		l := sampleLog(12)
		key := trailPub(t, l)
		test.spoil(l)
		s := newLogService(t, l)
		if l.batch < 0 {
			s.export = func(req *v1.ExportEventsRequest, stream *connect.ServerStream[v1.ExportEventsResponse]) error {
				head := &v1.ExportHead{Origin: l.origin, Checkpoint: l.checkpoint(12), Keys: l.keys, End: 12}
				gap := &v1.Gap{Begin: 0, End: 12, Why: "filter", Hashes: l.nodes(0, 12)}
				if err := stream.Send(&v1.ExportEventsResponse{Item: &v1.ExportEventsResponse_Head{Head: head}}); err != nil {
					return err
				}
				return stream.Send(&v1.ExportEventsResponse{Item: &v1.ExportEventsResponse_Items{Items: &v1.ExportItems{Items: []*v1.ExportItem{{Item: &v1.ExportItem_Gap{Gap: gap}}}}}})
			}
		}
		r := execute(t, s, nil, "audit", "verify", "--full", "--key", key, "-o", "json")
		var d serverReport
		if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
			t.Fatalf("%s: %v in %+v", name, err, r)
		}
		found := false
		for _, f := range d.Findings {
			found = found || f.Kind == test.want.Kind && strings.Join(f.Fields, ",") == strings.Join(test.want.Fields, ",")
		}
		if r.code != exitRefused || !found {
			t.Errorf("%s: want %+v: %+v", name, test.want, r)
		}
	}
}

func TestServerWhenItDoesNotAnswer(t *testing.T) {
	l := sampleLog(5)
	key := trailPub(t, l)
	r := execute(t, nil, nil, "audit", "verify", "--full", "--key", key, "--server", "http://127.0.0.1:1")
	if r.code != exitUnreachable {
		t.Errorf("%+v", r)
	}
	s := newLogService(t, l)
	s.reply = func(ctx context.Context, req proto.Message) (proto.Message, error) {
		if _, ok := req.(*v1.ListTrailKeysRequest); ok {
			return nil, problem(t, connect.CodePermissionDenied, "a signer may not read the trail", "role", "", "")
		}
		return l.reply(ctx, req)
	}
	if r := execute(t, s, nil, "audit", "verify", "--full", "--key", key); r.code != exitRefused || !strings.Contains(r.stderr, "a signer may not read the trail") {
		t.Errorf("%+v", r)
	}
}

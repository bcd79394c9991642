package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// receiver takes what an https sink sends, as a SIEM would.
type receiver struct {
	address, ca string // ca: file of its certificate

	away    atomic.Bool // every connection breaks
	mu      sync.Mutex
	records []seen
	refused int // requests without the secret
}

const sinkSecret = "a-secret-of-a-sink-0123456789"

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	dir := t.TempDir()
	r := &receiver{ca: filepath.Join(dir, "ca.pem")}
	writeCert(t, r.ca, filepath.Join(dir, "key.pem"), 1)
	pair, err := tls.LoadX509KeyPair(r.ca, filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var body bytes.Buffer
		if _, err := body.ReadFrom(req.Body); err != nil || r.away.Load() {
			panic(http.ErrAbortHandler)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if req.Header.Get("Authorization") != "Bearer "+sinkSecret {
			r.refused++
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		for line := range bytes.Lines(body.Bytes()) {
			var rec seen
			if err := json.Unmarshal(line, &rec); err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			r.records = append(r.records, rec)
		}
	}))
	hs.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	hs.StartTLS()
	t.Cleanup(hs.Close)
	_, port, err := net.SplitHostPort(hs.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	r.address = "https://127.0.0.1:" + port + "/trail"
	return r
}

func (r *receiver) got() []seen {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.records)
}

// has reports whether an event about a resource came.
func has(records []seen, resource string) bool {
	return slices.ContainsFunc(records, func(r seen) bool { return r.Resource == resource })
}

// wantCopy holds a copy to an export: everything up to its last record, in order,
// each as it is in the log. Records may come again.
func wantCopy(t *testing.T, what string, got, log []seen) {
	t.Helper()
	next := int64(0)
	for i, r := range got {
		if r.Index > next || r.Index >= int64(len(log)) {
			t.Fatalf("%s: record %d has the index %d where %d is due, of %d", what, i, r.Index, next, len(log))
		}
		if r != log[r.Index] {
			t.Errorf("%s: %+v, want %+v", what, r, log[r.Index])
		}
		next = max(next, r.Index+1)
	}
	if len(got) == 0 {
		t.Errorf("%s got nothing", what)
	}
}

// wantNowhere looks for a secret in texts and in all files of a folder.
func wantNowhere(t *testing.T, dir string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if strings.Contains(text, sinkSecret) {
			t.Errorf("the secret is in:\n%s", text)
		}
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		files++
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(sinkSecret)) {
			t.Errorf("the secret is in %s", path)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("looked at %d files, %v", files, err)
	}
}

// add adds it as a sink, from the first event on.
func (r *receiver) add(t *testing.T, bin program, s *instance, want int) outcome {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sink.secret")
	if err := os.WriteFile(file, []byte(sinkSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.cli(t, bin, want, "audit", "sink", "add", "siem", "--kind", "https", "--address", r.address, "--ca", r.ca, "--secret-file", file, "--from-start")
}

// A file and an HTTPS receiver get every event; one that was away loses none.
func testSinks(t *testing.T, bin program) {
	root := t.TempDir()
	allowed, outside := filepath.Join(root, "copies"), filepath.Join(root, "outside")
	for _, dir := range []string{allowed, outside} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(allowed, "link")); err != nil {
		t.Fatal(err)
	}
	s := bin.serve(t, dataDir(filepath.Join(root, "data")), nil, "--copies-dir", allowed)
	token := s.token(t)
	for _, path := range []string{filepath.Join(outside, "x.jsonl"), filepath.Join(allowed, "link", "x.jsonl"), filepath.Join(allowed, "..", "outside", "x.jsonl"), s.dir.kek()} {
		r := s.cli(t, bin, exitRefused, "audit", "sink", "add", "f", "--kind", "file", "--address", path)
		wantWords(t, r.stderr, "--copies-dir")
		r = s.cli(t, bin, exitRefused, "audit", "anchor", "add", "f", "--kind", "file", "--address", path)
		if !strings.Contains(path, "..") {
			wantWords(t, r.stderr, "--copies-dir")
		}
	}
	path := filepath.Join(allowed, "trail.jsonl")
	s.cli(t, bin, exitDone, "audit", "sink", "add", "local", "--kind", "file", "--address", path, "--from-start")
	local := func() []seen {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil && !missing(err) {
			t.Fatal(err)
		}
		return readRecords(t, b[:bytes.LastIndexByte(b, '\n')+1])
	}
	siem := newReceiver(t)
	first, again := siem.add(t, bin, s, exitDone), siem.add(t, bin, s, exitRefused)
	wantWords(t, again.stderr, "there is one with this name")
	said := []string{first.stdout, first.stderr, again.stdout, again.stderr}
	s.create(t, bin, "first")
	eventually(t, "the receiver to get the first keyset", func() bool { return has(siem.got(), "keysets/first") })

	// While it is away everything goes on, and what it lacks can be seen.
	siem.away.Store(true)
	for _, name := range []string{"second", "third", "fourth"} {
		s.create(t, bin, name)
	}
	eventually(t, "the file to get what was made meanwhile", func() bool { return has(local(), "keysets/fourth") })
	eventually(t, "the metrics of a sink that fails", func() bool {
		up, there := s.metric(t, token, `rotunda_sink_up{sink="siem"}`)
		lag, _ := s.metric(t, token, `rotunda_sink_lag_events{sink="siem"}`)
		failures, _ := s.metric(t, token, `rotunda_sink_failures_total{sink="siem"}`)
		return there && up == 0 && lag >= 9 && failures > 0
	})
	var status struct {
		Sinks []struct {
			Name, State, LastError string
			Lag                    json.Number
		}
	}
	r := s.cli(t, bin, exitDone, "audit", "status", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &status); err != nil || len(status.Sinks) != 2 {
		t.Fatalf("%v in %s", err, r.stdout)
	}
	if lag, _ := status.Sinks[1].Lag.Int64(); lag < 9 || status.Sinks[1].Name != "siem" || status.Sinks[1].State == status.Sinks[0].State || status.Sinks[1].LastError == "" {
		t.Errorf("status: %+v", status.Sinks)
	}
	said = append(said, r.stdout, s.cli(t, bin, exitDone, "audit", "sink", "list").stdout)
	siem.away.Store(false)
	eventually(t, "the receiver to get what it lacks", func() bool { return has(siem.got(), "keysets/fourth") })

	s.cli(t, bin, exitDone, "audit", "sink", "remove", "siem")
	eventually(t, "the sink to end", func() bool {
		_, there := s.metric(t, token, `rotunda_sink_up{sink="siem"}`)
		return !there
	})
	s.create(t, bin, "last")
	eventually(t, "the file to get the last", func() bool { return has(local(), "keysets/last") })
	log := s.exported(t, bin)
	wantCopy(t, "the file", local(), log)
	wantCopy(t, "the receiver", siem.got(), log)
	if has(siem.got(), "keysets/last") || siem.refused > 0 {
		t.Errorf("a sink that was removed goes on, or %d requests had no secret", siem.refused)
	}
	wantMode(t, path, 0o600)
	if code := s.stop(t); code != exitDone {
		t.Errorf("stopped with %d\n%s", code, s.stderr)
	}
	wantNowhere(t, root, append(said, s.stderr.String())...)
}

// Of two replicas either may die: the other takes up its sinks, and gives events
// their indexes.
func testTrailReplicas(t *testing.T, bin program) {
	env := []string{"ROTUNDA_DATABASE_URL=" + storetest.Postgres(t)}
	root := t.TempDir()
	one := bin.serve(t, dataDir(filepath.Join(root, "one")), env)
	token := one.token(t)
	start := func(name string) *instance {
		s := bin.serve(t, dataDir(filepath.Join(root, name)), env, "--kek-file", one.dir.kek())
		if err := os.WriteFile(s.dir.adminToken(), []byte(token), 0o600); err != nil { // for the commands
			t.Fatal(err)
		}
		return s
	}
	living := map[string]*instance{"one": one, "two": start("two")}
	survivor := func() *instance { return living[slices.Sorted(maps.Keys(living))[0]] }
	siem := newReceiver(t)
	siem.add(t, bin, one, exitDone)
	// holder waits until one of them does something, and returns its name.
	holder := func(metric string) (name string) {
		t.Helper()
		eventually(t, metric, func() bool {
			for n, s := range living {
				if v, _ := s.metric(t, token, metric); v == 1 {
					name = n
					return true
				}
			}
			return false
		})
		return name
	}
	const sinkUp, sequencer = `rotunda_sink_up{sink="siem"}`, `rotunda_trail_sequencer`
	var made []string
	for i, role := range []string{sinkUp, sequencer} {
		victim := holder(role)
		for n := range 3 {
			name := "before-" + string(rune('a'+i)) + string(rune('a'+n))
			survivor().create(t, bin, name)
			made = append(made, name)
		}
		living[victim].kill()
		delete(living, victim)
		name := "after-" + string(rune('a'+i))
		s := survivor()
		s.create(t, bin, name)
		made = append(made, name)
		eventually(t, "the survivor to give the event an index", func() bool {
			var list struct{ Events []struct{ Index json.Number } }
			r := s.cli(t, bin, exitDone, "audit", "list", "--resource", "keysets/"+name, "--action", "keyset.create", "-o", "json")
			if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || len(list.Events) != 1 {
				t.Fatalf("%v in %s", err, r.stdout)
			}
			index, err := list.Events[0].Index.Int64()
			return err == nil && index >= 0
		})
		if holder(sequencer) == victim {
			t.Fatal("the dead one sequences")
		}
		eventually(t, "the survivor to take up the sink", func() bool { return has(siem.got(), "keysets/"+name) })
		living["next-"+victim] = start("next-" + victim)
	}
	log := survivor().exported(t, bin)
	for _, name := range made {
		if !has(siem.got(), "keysets/"+name) || !has(log, "keysets/"+name) {
			t.Errorf("%s is lost", name)
		}
	}
	wantCopy(t, "the receiver", siem.got(), log)
	for _, s := range living {
		if strings.Contains(s.stderr.String(), sinkSecret) {
			t.Error("a log holds the secret")
		}
	}
}

// An older copy of the database is noticed, by an anchor or by the file beside
// it: changes are refused, the rest goes on, until an admin restarts the trail.
func testTrailRestored(t *testing.T, bin program, anchored bool) {
	root := t.TempDir()
	in := func(name string) string { return filepath.Join(root, name) }
	dir, anchor := dataDir(in("data")), in("anchor")
	if err := os.Mkdir(anchor, 0o700); err != nil {
		t.Fatal(err)
	}
	start := func() *instance { return bin.serve(t, dir, nil, "--copies-dir", root) }
	s := start()
	stop := func() {
		t.Helper()
		if code := s.stop(t); code != exitDone {
			t.Fatalf("stopped with %d\n%s", code, s.stderr)
		}
	}
	logs := func() []string { // that the anchor keeps checkpoints of
		t.Helper()
		names, err := filepath.Glob(filepath.Join(anchor, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	s.create(t, bin, "kept")
	if anchored {
		s.cli(t, bin, exitDone, "audit", "anchor", "add", "auditor", "--kind", "file", "--address", anchor)
		eventually(t, "the first checkpoint there", func() bool { return len(logs()) == 1 })
		wantWords(t, s.cli(t, bin, exitDone, "audit", "anchor", "list").stdout, "auditor", anchor)
	}
	key := in("trail.pub")
	if err := os.WriteFile(key, []byte(s.cli(t, bin, exitDone, "audit", "key").stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	stop()
	old, err := os.ReadFile(dir.db())
	if err != nil {
		t.Fatal(err)
	}
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(anchor, anchor+".away") // a share that is mounted late
	s = start()
	if anchored {
		eventually(t, "the anchor to be missed", func() bool {
			return strings.Contains(s.cli(t, bin, exitDone, "audit", "anchor", "list").stdout, "open the anchor's folder")
		})
	}
	move(anchor+".away", anchor)
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		s.create(t, bin, name)
	}
	s.cli(t, bin, exitDone, "audit", "verify", "--key", key, "--full", "--save", in("kept.txt"))
	if anchored {
		kept, err := os.ReadFile(in("kept.txt"))
		if err != nil {
			t.Fatal(err)
		}
		size, err := strconv.Atoi(strings.Split(string(kept), "\n")[1])
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "a checkpoint there that is as new", func() bool {
			// Names sort by size; an event in between makes the next one larger.
			names, err := filepath.Glob(filepath.Join(anchor, "*", "*.checkpoint"))
			return err == nil && slices.ContainsFunc(names, func(name string) bool { return filepath.Base(name) >= fmt.Sprintf("%019d.checkpoint", size) })
		})
	}
	stop()
	for _, tail := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(dir.db() + tail); err != nil && !missing(err) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir.db(), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if anchored {
		if err := os.Remove(dir.checkpoint()); err != nil {
			t.Fatal(err)
		}
	}

	s = start()
	var status outcome
	eventually(t, "the server to notice", func() bool {
		status = bin.run(t, s.env(), "audit", "status")
		return status.code != exitDone
	})
	by := "trail.checkpoint"
	if anchored {
		by = "this log went back"
	}
	if status.code != exitRefused {
		t.Errorf("status: exit %d %s", status.code, status.stderr)
	}
	wantWords(t, strings.Join(strings.Fields(status.stdout), " "), "STOPPED: ", by, "audit restart")
	r := bin.run(t, s.env(), "keyset", "create", "refused", "--issuer", "https://auth.example.com", "--token-ttl", "1h")
	if r.code == exitDone {
		t.Error("a change that can't be recorded is made")
	}
	wantWords(t, r.stderr, "trail_stopped", "audit status")
	jwt := strings.TrimSpace(s.cli(t, bin, exitDone, "sign", "kept", "--claims", "{}").stdout)
	res, document := s.get(t, "/keysets/kept/jwks.json")
	if err := verifies(document, jwt); res.StatusCode != http.StatusOK || err != nil {
		t.Errorf("the document: %s, the JWT: %v", res.Status, err)
	}
	if anchored { // so that its next attempt is further away than the restart: the alarm still stands then
		eventually(t, "attempts to reach the anchor", func() bool {
			n, _ := s.metric(t, s.token(t), `rotunda_anchor_failures_total{anchor="auditor"}`)
			return n >= 3
		})
	}

	wantWords(t, s.cli(t, bin, exitDone, "audit", "restart", "--reason", "disk lost", "--yes").stdout, "restarted", "~")
	s.create(t, bin, "again")
	eventually(t, "events to be sequenced again", func() bool {
		return strings.Contains(s.cli(t, bin, exitDone, "audit", "status").stdout, "waiting    none")
	})
	if anchored {
		eventually(t, "the anchor to keep the log under its new name", func() bool { return len(logs()) == 2 })
	}
	s.cli(t, bin, exitDone, "audit", "status")
	s.create(t, bin, "still")
	if anchored { // one push at a time: what ran under the old name has ended before
		eventually(t, "another checkpoint there", func() bool {
			names, err := filepath.Glob(filepath.Join(anchor, "*%7E*", "*.checkpoint"))
			return err == nil && len(names) > 1
		})
		if strings.Contains(s.stderr.String(), "is interrupted") {
			t.Errorf("two ran at a time:\n%s", s.stderr)
		}
	}
	s.exported(t, bin)
	r = s.cli(t, bin, exitRefused, "audit", "verify", "--key", key, "--since-checkpoint", in("kept.txt"))
	wantWords(t, r.stdout, "restart", "are lost or were replaced")
	wantWords(t, s.cli(t, bin, exitDone, "audit", "list", "--action", "trail.restart").stdout, "disk lost")
	if n := strings.Count(s.stderr.String(), "the trail is stopped: changes are refused until"); n != 1 {
		t.Errorf("the log says %d times that the trail is stopped:\n%s", n, s.stderr)
	}
	stop()
	s = start()
	s.create(t, bin, "after")
	s.cli(t, bin, exitDone, "audit", "status")
}

func testTrailRestoredAnchor(t *testing.T, bin program) { testTrailRestored(t, bin, true) }

func testTrailRestoredFile(t *testing.T, bin program) { testTrailRestored(t, bin, false) }

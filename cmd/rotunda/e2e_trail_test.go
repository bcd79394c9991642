package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// cli runs a command against the server, and fails unless it ends with a code.
func (s *instance) cli(t *testing.T, bin program, want int, args ...string) outcome {
	t.Helper()
	r := bin.run(t, s.env(), args...)
	if r.code != want {
		t.Fatalf("%v: exit %d, want %d\n%s%s\nthe server said:\n%s", args, r.code, want, r.stdout, r.stderr, s.stderr)
	}
	return r
}

// create makes a keyset, which is three events.
func (s *instance) create(t *testing.T, bin program, name string) {
	t.Helper()
	s.cli(t, bin, exitDone, "keyset", "create", name, "--issuer", "https://auth.example.com", "--token-ttl", "1h")
}

// metric returns the value of a metric; false when it is not there.
func (s *instance) metric(t *testing.T, token, name string) (float64, bool) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.base+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %s %v", res.Status, err)
	}
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(body.String())
	if m == nil {
		return 0, false
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v, true
}

// seen is a record of the trail as those who got a copy read it.
type seen struct {
	Origin, Hash, ID, Action, Resource string
	Index                              int64
}

// readRecords reads lines of JSON.
func readRecords(t *testing.T, b []byte) (records []seen) {
	t.Helper()
	for line := range bytes.Lines(b) {
		var r seen
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		records = append(records, r)
	}
	return records
}

// exported exports the whole trail, verifies it, and returns its records.
func (s *instance) exported(t *testing.T, bin program) (records []seen) {
	t.Helper()
	key, out := filepath.Join(t.TempDir(), "trail.pub"), filepath.Join(t.TempDir(), "all")
	if err := os.WriteFile(key, []byte(s.cli(t, bin, exitDone, "audit", "key").stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	s.cli(t, bin, exitDone, "audit", "export", "--out", out)
	s.cli(t, bin, exitDone, "audit", "verify", out, "--key", key)
	parts, err := filepath.Glob(filepath.Join(out, "data-*.jsonl"))
	if err != nil || len(parts) == 0 {
		t.Fatalf("%d parts, %v", len(parts), err)
	}
	slices.Sort(parts)
	for _, part := range parts {
		b, err := os.ReadFile(part)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, readRecords(t, b)...)
	}
	for i, r := range records {
		if r.Index != int64(i) {
			t.Fatalf("record %d of the export has the index %d", i, r.Index)
		}
	}
	return records
}

// The tour of the README for the auditor, and what it leaves to the help texts.
func testTrailTour(t *testing.T, bin program) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	s := bin.serve(t, dataDir(in("data")), nil)
	keep := func(name, content string) string {
		t.Helper()
		if err := os.WriteFile(in(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return in(name)
	}
	s.create(t, bin, "payments")
	key := keep("trail.pub", s.cli(t, bin, exitDone, "audit", "key").stdout)
	wantWords(t, s.cli(t, bin, exitDone, "audit", "export", "--since", "30d", "--out", in("q1")).stdout, "exported")
	// Offline: nothing says where the server is.
	wantWords(t, bin.run(t, nil, "audit", "verify", in("q1"), "--key", key).stdout, "verified: "+in("q1"))
	if out, err := bin.shell(t, "sed -i s/payments/payroll/ "+in("q1/data-000000.jsonl")); err != nil {
		t.Fatalf("sed: %v %s", err, out)
	}
	r := bin.run(t, nil, "audit", "verify", in("q1"), "--key", key)
	if r.code != exitRefused {
		t.Errorf("an edited bundle: exit %d\n%s", r.code, r.stdout)
	}
	var id string
	for _, e := range s.exported(t, bin) {
		if e.Action == "keyset.create" {
			id = e.ID
		}
	}
	wantWords(t, r.stdout, "NOT VERIFIED", "altered", id+")", "resource was altered after the event was recorded")

	online := []string{"audit", "verify", "--server", s.base, "--key", key}
	wantWords(t, s.cli(t, bin, exitDone, append(online, "--full", "--save", in("kept.txt"))...).stdout, "verified", "events read and verified", "saved")
	s.create(t, bin, "orders")
	wantWords(t, s.cli(t, bin, exitDone, append(online, "--since-checkpoint", in("kept.txt"))...).stdout, "extends "+in("kept.txt"))
	wantWords(t, s.cli(t, bin, exitDone, "audit", "status").stdout, "waiting    none", "No anchor and no witness")

	proof := s.cli(t, bin, exitDone, "audit", "prove", id).stdout
	wantWords(t, bin.run(t, nil, "audit", "verify", keep("proof.txt", proof), "--key", key).stdout, "this event stands in the log", id, "keyset.create")
	forged := regexp.MustCompile(`(?m)^index \d+$`).ReplaceAllString(proof, "index 1")
	if r := bin.run(t, nil, "audit", "verify", keep("forged.txt", forged), "--key", key); forged == proof || r.code != exitRefused {
		t.Errorf("a forged proof: exit %d\n%s", r.code, r.stdout)
	}

	follow := bin.command(t, s.env(), "audit", "list", "-f")
	out := &output{}
	follow.Stdout, follow.Stderr = out, out
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is there already", func() bool { return strings.Contains(out.String(), "keysets/orders") })
	s.create(t, bin, "meanwhile")
	eventually(t, "an event that is made meanwhile", func() bool { return strings.Contains(out.String(), "keysets/meanwhile") })
	if err := follow.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("an interrupt ends it with %v\n%s", err, out)
	}
	if n := strings.Count(out.String(), "keysets/meanwhile "); n > 1 {
		t.Errorf("one event is printed %d times:\n%s", n, out)
	}
}

// shell runs a line as its user would.
func (p program) shell(t *testing.T, line string) (string, error) {
	cmd := program("/bin/sh").command(t, nil, "-c", line)
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// What was counted in memory is evidence: of use, of none, and of none since.
func testTrailEvidence(t *testing.T, bin program) {
	s := bin.serve(t, dataDir(filepath.Join(t.TempDir(), "data")), nil)
	const minute = time.Minute
	since := time.Now().Add(-minute).UTC().Format(time.RFC3339Nano) // the minute of an instant may be before it
	token := func(name string) (id, value string) {
		t.Helper()
		r := s.cli(t, bin, exitDone, "token", "create", name, "--role", "auditor")
		m := regexp.MustCompile(`token (\w{16}) `).FindStringSubmatch(r.stderr)
		if m == nil {
			t.Fatalf("no id in %s", r.stderr)
		}
		return m[1], strings.TrimSpace(r.stdout)
	}
	used, value := token("used")
	idle, _ := token("idle")
	as := func(want int) {
		t.Helper()
		if r := bin.run(t, []string{"ROTUNDA_SERVER=" + s.base, "ROTUNDA_TOKEN=" + value}, "token", "whoami"); r.code != want {
			t.Fatalf("exit %d, want %d: %s", r.code, want, r.stderr)
		}
	}
	as(exitDone)
	s.cli(t, bin, exitDone, "token", "revoke", used, "--reason", "key_compromise")
	as(exitRefused)
	again := func() {
		t.Helper()
		if code := s.stop(t); code != exitDone {
			t.Fatalf("stopped with %d\n%s", code, s.stderr)
		}
		s = bin.serve(t, s.dir, nil)
	}
	evidence := func(want int, id, since string) string {
		t.Helper()
		return s.cli(t, bin, want, "audit", "evidence", "tokens/"+id, "--since", since).stdout
	}
	again()
	wantWords(t, evidence(exitRefused, used, since), "was accepted 1 time since", "Denied attempts", "revoked")
	wantWords(t, evidence(exitDone, idle, since), "No acceptance of tokens/"+idle)
	wantWords(t, evidence(exitUnproved, idle, time.Now().Add(-time.Millisecond).UTC().Format(time.RFC3339Nano)), "nothing vouches for that time yet")

	// Uses are told to the minute: since the next one there was none.
	next := time.Now().Truncate(minute).Add(minute)
	time.Sleep(time.Until(next))
	again()
	wantWords(t, evidence(exitDone, used, next.UTC().Format(time.RFC3339)), "No acceptance of tokens/"+used+" since")
}

// A name for the trail, and who may read it.
func testTrailPublished(t *testing.T, bin program) {
	const origin = "rotunda.example.com/trail"
	dir := dataDir(filepath.Join(t.TempDir(), "data"))
	s := bin.serve(t, dir, nil, "--trail-origin", origin, "--publish-trail")
	s.create(t, bin, "payments")
	size := len(s.exported(t, bin))
	res, checkpoint := s.get(t, "/trail/checkpoint")
	lines := strings.Split(checkpoint, "\n")
	if res.StatusCode != http.StatusOK || len(lines) < 3 || lines[0] != origin {
		t.Fatalf("%s\n%s", res.Status, checkpoint)
	}
	if n, err := strconv.Atoi(lines[1]); err != nil || n < size {
		t.Errorf("its size is %q, and %d were exported", lines[1], size)
	}
	_, keys := s.get(t, "/trail/keys")
	wantWords(t, keys, strings.TrimSpace(s.cli(t, bin, exitDone, "audit", "key").stdout))
	paths := []string{"/trail/checkpoint", "/trail/keys", "/trail/tile/0/000.p/" + lines[1], "/trail/tile/entries/000.p/" + lines[1]}
	for _, path := range paths {
		if res, body := s.get(t, path); res.StatusCode != http.StatusOK || body == "" {
			t.Errorf("GET %s: %s", path, res.Status)
		}
	}
	if res, _ := s.get(t, "/trail/export"); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("the export without a token: %s", res.Status)
	}
	if code := s.stop(t); code != exitDone {
		t.Fatalf("stopped with %d\n%s", code, s.stderr)
	}

	// Without the flag it needs a token; and a name is given once.
	s = bin.serve(t, dir, nil, "--trail-origin", "another.example.com/trail")
	for _, path := range paths {
		if res, _ := s.get(t, path); res.StatusCode != http.StatusUnauthorized {
			t.Errorf("GET %s without a token: %s", path, res.Status)
		}
	}
	wantWords(t, s.cli(t, bin, exitDone, "audit", "status").stdout, "log "+origin+"\n")
	wantWords(t, s.stderr.String(), "--trail-origin has no effect", origin)
}

// What a process had only in memory is in the trail after its end, and sequenced.
func testTrailWhenStopped(t *testing.T, bin program) {
	s := bin.serve(t, dataDir(filepath.Join(t.TempDir(), "data")), nil)
	s.create(t, bin, "payments")
	for range 3 {
		s.cli(t, bin, exitDone, "token", "whoami")
		s.cli(t, bin, exitDone, "sign", "payments", "--claims", "{}")
		if res, _ := s.get(t, "/trail/checkpoint"); res.StatusCode != http.StatusUnauthorized {
			t.Fatalf("without a token: %s", res.Status)
		}
	}
	counted := map[string]int64{}
	if code := s.stop(t); code != exitDone {
		t.Fatalf("stopped with %d\n%s", code, s.stderr)
	}
	db, err := store.Open(t.Context(), "sqlite:"+s.dir.db())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		rows, err := tx.Query(ctx, `SELECT action, SUM(count) FROM events GROUP BY action UNION ALL SELECT 'waiting', COUNT(*) FROM event_queue
			UNION ALL SELECT 'ahead', (SELECT size FROM trail) - (SELECT MAX(size) FROM checkpoints)
			UNION ALL SELECT 'unsigned', (SELECT COUNT(*) FROM events) - (SELECT size FROM trail)
			UNION ALL SELECT 'final', COUNT(*) FROM events WHERE action = 'usage.covered' AND detail LIKE '%"final":true%'`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var action string
			var n int64
			if err := rows.Scan(&action, &n); err != nil {
				return err
			}
			counted[action] = n
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]int64{"waiting": 0, "ahead": 0, "unsigned": 0, "final": 1, "authenticate": 3} {
		if counted[what] != want {
			t.Errorf("%s: %d, want %d in %v", what, counted[what], want, counted)
		}
	}
	for _, what := range []string{"token.usage", "signing_key.usage"} {
		if counted[what] < 3 {
			t.Errorf("%s: %d of at least 3 in %v", what, counted[what], counted)
		}
	}
}

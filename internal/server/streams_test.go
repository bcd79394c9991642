package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

type follow struct {
	*connect.ServerStreamForClient[rotundav1.FollowEventsResponse]
}

func (b *bed) follow(t testing.TB, client v1connect.AuditServiceClient, req *rotundav1.FollowEventsRequest) follow {
	t.Helper()
	stream, err := client.FollowEvents(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Close() }) // which is how a follower leaves
	return follow{stream}
}

// until reads until the stream says that it goes on at next, and returns the
// actions of the events that came.
func (f follow) until(t testing.TB, next int64) (actions []string) {
	t.Helper()
	for f.Receive() {
		if n := len(f.Msg().GetEvents()); n > maxChunk || proto.Size(f.Msg()) > maxChunkBytes+64<<10 {
			t.Errorf("a message of %d events, %d bytes", n, proto.Size(f.Msg()))
		}
		for _, e := range f.Msg().GetEvents() {
			if e.GetIndex() >= f.Msg().GetNext() {
				t.Errorf("event %d is sent, and next is %d", e.GetIndex(), f.Msg().GetNext())
			}
			actions = append(actions, e.GetAction())
		}
		if f.Msg().GetNext() == next {
			return actions
		}
	}
	t.Fatalf("the stream ended before %d: %v", next, f.Err())
	return nil
}

func index(n int64) *int64 { return &n }

func TestFollowWhenEventsCome(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.heartbeat = 10 * time.Millisecond
		b.grow(t, 3)
		client := b.trail(b.admin)
		fromNow := b.follow(t, client, &rotundav1.FollowEventsRequest{})
		fromNow.until(t, 3)
		all := b.follow(t, client, &rotundav1.FollowEventsRequest{Index: index(0)})
		some := b.follow(t, client, &rotundav1.FollowEventsRequest{Index: index(0), Filter: &rotundav1.Filter{Action: "key.", Actor: "ada"}})
		if got := all.until(t, 3); len(got) != 3 {
			t.Errorf("from the beginning: %v", got)
		}
		b.record(t, audit.Event{Action: "key.a", Actor: "ada"}, audit.Event{Action: "key.b", Actor: "bob"}, audit.Event{Action: "keys", Actor: "ada"}, audit.Event{Action: "key.c", Actor: "ada"})
		b.sequence(t)
		want := []string{"key.a", "key.b", "keys", "key.c"}
		if d := cmp.Diff(want, fromNow.until(t, 7)); d != "" {
			t.Errorf("from now on (-want +got):\n%s", d)
		}
		if d := cmp.Diff(want, all.until(t, 7)); d != "" {
			t.Errorf("all (-want +got):\n%s", d)
		}
		if d := cmp.Diff([]string{"key.a", "key.c"}, some.until(t, 7)); d != "" {
			t.Errorf("filtered (-want +got):\n%s", d)
		}
		// Who lost the stream goes on where it was.
		if d := cmp.Diff(want[2:], b.follow(t, client, &rotundav1.FollowEventsRequest{Index: index(5)}).until(t, 7)); d != "" {
			t.Errorf("resumed (-want +got):\n%s", d)
		}
		// A filter and a search agree.
		for _, f := range []*rotundav1.Filter{{Action: "key.a"}, {Action: "key"}, {Actor: "ada"}, {Resource: "things/"}, {Resource: "things"}, {Outcome: "denied"}} {
			q := queryFrom(f)
			q.Limit = 1000
			listed, _, err := audit.List(t.Context(), db, q)
			if err != nil {
				t.Fatal(err)
			}
			if got := b.follow(t, client, &rotundav1.FollowEventsRequest{Index: index(0), Filter: f}); len(listed) != len(got.until(t, 7)) {
				t.Errorf("%v: a list has %d events", f, len(listed))
			}
		}
		ahead := b.follow(t, client, &rotundav1.FollowEventsRequest{Index: index(8)})
		if ahead.Receive() {
			t.Error("an index that this trail does not have is followed")
		}
		wantProblem(t, ahead.Err(), connect.CodeInvalidArgument, "index_range")
	})
}

// Promise: a follower for whom nothing comes hears all the same, and learns where to go on.
func TestFollowWhenNothingMatches(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.heartbeat = time.Millisecond
	b.grow(t, 3)
	f := b.follow(t, b.trail(b.admin), &rotundav1.FollowEventsRequest{Filter: &rotundav1.Filter{Action: "never"}})
	f.until(t, 3)
	f.until(t, 3)
	b.grow(t, 40)
	if got := f.until(t, 40); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

// Promise: a message is bounded by its records and its bytes.
func TestFollowWhenEventsAreManyAndLarge(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.grow(t, 1200)
	var large []audit.Event
	for range 200 {
		large = append(large, audit.Event{Action: "large", Detail: map[string]any{"x": strings.Repeat("x", 15<<10)}})
	}
	b.record(t, large...)
	b.sequence(t)
	if got := b.follow(t, b.trail(b.admin), &rotundav1.FollowEventsRequest{Index: index(0)}).until(t, 1400); len(got) != 1400 {
		t.Errorf("%d events", len(got))
	}
}

// Promise: streams end with their token, are bounded for each token, and at the server's stop.
func TestTrailStreamsWhenTheyMustEnd(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.recheck = time.Millisecond
	b.grow(t, 3)
	token := b.token(t, apikeys.Create{Role: apikeys.Auditor})
	b.sequence(t)
	var open []follow
	for range maxFollowersPerToken {
		f := b.follow(t, b.trail(token), &rotundav1.FollowEventsRequest{Index: index(0)})
		f.until(t, 4)
		open = append(open, f)
	}
	over := b.follow(t, b.trail(token), &rotundav1.FollowEventsRequest{})
	if over.Receive() {
		t.Error("there is no bound")
	}
	wantProblem(t, over.Err(), connect.CodeResourceExhausted, "too_many_followers")
	other := b.follow(t, b.trail(b.admin), &rotundav1.FollowEventsRequest{Index: index(0)})
	other.until(t, 4)
	if _, err := b.Tokens.Revoke(t.Context(), idOf(token), "lost"); err != nil {
		t.Fatal(err)
	}
	for _, f := range open {
		for f.Receive() {
		}
		wantProblem(t, f.Err(), connect.CodePermissionDenied, "token_ended")
	}
	waitFor(t, "the seats of followers that ended", func() bool {
		b.followers.taken.mu.Lock()
		defer b.followers.taken.mu.Unlock()
		return b.followers.taken.open[everyone] == 1
	})

	for range maxExportsPerToken {
		give, err := b.exports.take(b.adminID)
		if err != nil {
			t.Fatal(err)
		}
		defer give()
	}
	stream, err := b.trail(b.admin).ExportEvents(t.Context(), connect.NewRequest(&rotundav1.ExportEventsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if stream.Receive() {
		t.Error("exports have no bound")
	}
	wantProblem(t, stream.Err(), connect.CodeResourceExhausted, "too_many_exports")
	if a := b.get(t, b.admin, home, "/trail/export"); a.status != http.StatusTooManyRequests || a.header.Get("Content-Disposition") != "" {
		t.Errorf("a download beyond the bound: %d %v", a.status, a.header)
	}
}

func TestTrailStreamsWhenServerStops(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.grow(t, 3)
	handler, err := b.Handler()
	if err != nil {
		t.Fatal(err)
	}
	stopping, stop := context.WithCancelCause(context.Background())
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		defer context.AfterFunc(stopping, func() { cancel(context.Cause(stopping)) })()
		handler.ServeHTTP(w, r.WithContext(ctx))
	}))
	ts.Start()
	t.Cleanup(ts.Close)
	f := b.follow(t, v1connect.NewAuditServiceClient(as(b.admin, home), ts.URL), &rotundav1.FollowEventsRequest{Index: index(0)})
	f.until(t, 3)
	stop(ErrStopping)
	for f.Receive() {
	}
	wantProblem(t, f.Err(), connect.CodeUnavailable, "stopping")
}

// exported reads an export by RPC and writes it as a bundle.
func (b *bed) exported(t testing.TB, req *rotundav1.ExportEventsRequest) string {
	t.Helper()
	stream, err := b.trail(b.admin).ExportEvents(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var w *bundle.Writer
	dir := filepath.Join(t.TempDir(), "bundle")
	for stream.Receive() {
		m := stream.Msg()
		if proto.Size(m) > maxChunkBytes+64<<10 || len(m.GetItems().GetItems()) > maxChunk {
			t.Errorf("a message of %d items, %d bytes", len(m.GetItems().GetItems()), proto.Size(m))
		}
		if h := m.GetHead(); h != nil {
			if w, err = bundle.Create(dir, headFrom(h), "jsonl"); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for _, item := range m.GetItems().GetItems() {
			if g := item.GetGap(); g != nil {
				gap := bundle.Gap{Begin: g.GetBegin(), End: g.GetEnd(), Why: g.GetWhy(), Hashes: hashesFrom(g.GetHashes()), Entries: g.GetEntries()}
				if err := w.Gap(gap); err != nil {
					t.Fatal(err)
				}
				continue
			}
			r := recordFrom(item.GetRecord(), b)
			if err := w.Write(&r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if stream.Err() != nil {
		t.Fatal(stream.Err())
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func hashesFrom(raw [][]byte) (out []tlog.Hash) {
	for _, h := range raw {
		out = append(out, tlog.Hash(h))
	}
	return out
}

func headFrom(h *rotundav1.ExportHead) bundle.Head {
	return bundle.Head{
		Origin: h.GetOrigin(), Checkpoint: h.GetCheckpoint(), Keys: h.GetKeys(), Handovers: h.GetHandovers(), Evidence: h.GetEvidence(),
		Begin: h.GetBegin(), End: h.GetEnd(), Left: hashesFrom(h.GetLeft()), Right: hashesFrom(h.GetRight()), Filter: h.GetFilter(),
	}
}

func recordFrom(m *rotundav1.Record, b *bed) trail.Record {
	e := m.GetEvent()
	r := trail.Record{Origin: "rotunda.test/trail", Index: e.GetIndex(), Hash: tlog.Hash(m.GetHash()), Event: trail.Event{
		ID: e.GetId(), Time: time.UnixMicro(m.GetTimeMicros()).UTC(), Actor: e.GetActor(), Action: e.GetAction(), Resource: e.GetResource(), Partner: e.GetPartner(),
		Outcome: e.GetOutcome(), Reason: e.GetReason(), RequestID: e.GetRequestId(), Address: e.GetAddress(), Detail: m.GetDetail(), Count: e.GetCount(),
		Intent: e.GetIntent(), Salt: m.GetSalt(), Checks: m.GetChecks(),
	}}
	for name, c := range m.GetErased() {
		f, _ := trail.ParseField(name)
		r.Erased[f] = tlog.Hash(c)
	}
	return r
}

// verified fails unless a bundle verifies, and returns what was found.
func (b *bed) verified(t testing.TB, path string) bundle.Report {
	t.Helper()
	keys := b.keysOf(t)
	report, err := bundle.Verify(t.Context(), path, bundle.Options{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != 0 {
		t.Fatalf("%s: %v", path, report.Findings)
	}
	return report
}

// Promise: what is exported verifies offline, whole and filtered, by RPC and by
// HTTP, also after events were erased and pruned.
func TestExportWhenItIsVerified(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.grow(t, 1500)
		b.clock.Advance(time.Hour)
		b.record(t, audit.Event{Action: "key.a", Actor: "ada"}, audit.Event{Action: "other", Actor: "ada"}, audit.Event{Action: "key.b", Actor: "bob"})
		b.sequence(t)
		if _, err := b.Trail.Erase(audit.WithActor(t.Context(), audit.Actor{ID: "eve"}), audit.Erase{Fields: []trail.Field{trail.Actor}, Actor: "bob", Reason: "request"}); err != nil {
			t.Fatal(err)
		}
		b.sequence(t)
		for name, req := range map[string]*rotundav1.ExportEventsRequest{
			"whole": {}, "filtered": {Filter: &rotundav1.Filter{Action: "key."}}, "omitted": {Filter: &rotundav1.Filter{Action: "key."}, Omitted: true},
		} {
			report := b.verified(t, b.exported(t, req))
			if want := map[string]int64{"whole": 1504, "filtered": 2, "omitted": 2}[name]; report.Records != want {
				t.Errorf("%s: %d records, want %d", name, report.Records, want)
			}
		}
		// An interrupted export goes on under its own checkpoint.
		b.grow(t, 1600)
		resumed := b.verified(t, b.exported(t, &rotundav1.ExportEventsRequest{Index: 1000, Size: 1504}))
		if resumed.Records != 504 {
			t.Errorf("resumed: %d records", resumed.Records)
		}

		for _, query := range []string{"", "&action=key.", "&action=key.&omitted=true", "&since=2026-01-05T00:30:00Z&actor=ada"} {
			for _, f := range format.Names {
				a := b.get(t, b.admin, home, "/trail/export?bundle=zip&format="+f+query)
				if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/zip" || !strings.HasSuffix(a.header.Get("Content-Disposition"), `.zip"`) {
					t.Fatalf("%s%s: %d %v %s", f, query, a.status, a.header, a.body)
				}
				path := filepath.Join(t.TempDir(), "bundle.zip")
				if err := os.WriteFile(path, []byte(a.body), 0o600); err != nil {
					t.Fatal(err)
				}
				if report := b.verified(t, path); query == "" && report.Records != 1600 || strings.HasPrefix(query, "&action") && report.Records != 2 {
					t.Errorf("%s%s: %d records", f, query, report.Records)
				}
			}
		}
		for _, f := range format.Names {
			a := b.get(t, b.admin, home, "/trail/export?format="+f)
			if a.status != http.StatusOK || a.header.Get("Content-Disposition") != `attachment; filename="trail-0-1600.`+format.Extension(f)+`"` || a.header.Get("Cache-Control") != "no-store" {
				t.Fatalf("%s: %d %v", f, a.status, a.header)
			}
			r, err := format.NewReader(f, bytes.NewReader([]byte(a.body)))
			if err != nil {
				t.Fatal(err)
			}
			n := int64(0)
			for record := new(trail.Record); ; n++ {
				if err := r.Read(record); errors.Is(err, io.EOF) {
					break
				} else if err != nil || record.Index != n {
					t.Fatalf("%s: record %d has index %d: %v", f, n, record.Index, err)
				}
				if h, err := record.Event.Hash(); err != nil || h != record.Hash {
					t.Fatalf("%s: record %d has another hash: %v", f, n, err)
				}
			}
			if n != 1600 {
				t.Errorf("%s: %d records", f, n)
			}
			if head := b.send(t, b.admin, home, http.MethodHead, "/trail/export?format="+f); head.status != http.StatusOK || head.body != "" || head.header.Get("Content-Disposition") != a.header.Get("Content-Disposition") {
				t.Errorf("HEAD: %d %v", head.status, head.header)
			}
		}
	})
}

func TestExportWhenQueryIsWrong(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	if a := b.get(t, b.admin, home, "/trail/export"); a.status != http.StatusNotFound {
		t.Errorf("before the first event is sequenced: %d %s", a.status, a.body)
	}
	b.grow(t, 3)
	for _, query := range []string{
		"format=xml", "format=jsonl&format=csv", "since=yesterday", "actoor=ada", "action=%00", "action=%ff", "bundle=tar", "omitted=true", "omitted=no&bundle=zip",
		"action=" + strings.Repeat("a", 513), "a;b", "action=%zz", "size=3",
	} {
		if a := b.get(t, b.admin, home, "/trail/export?"+query); a.status != http.StatusBadRequest || a.header.Get("Content-Disposition") != "" {
			t.Errorf("%s: %d %s", query, a.status, a.body)
		}
	}
}

// Promise: a long download outlives the server's timeouts; a caller that does not
// read is cut, holds no transaction meanwhile, and gets no file that looks whole.
func TestExportWhenClientIsSlow(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		var large []audit.Event
		for range 1500 {
			large = append(large, audit.Event{Action: "large", Detail: map[string]any{"x": strings.Repeat("x", 15<<10)}})
		}
		b.record(t, large...)
		b.sequence(t)
		handler, err := b.Handler()
		if err != nil {
			t.Fatal(err)
		}
		const limit = 200 * time.Millisecond
		ts := httptest.NewUnstartedServer(handler)
		ts.Config.ReadTimeout, ts.Config.WriteTimeout, ts.Config.ErrorLog = limit, limit, b.http.Config.ErrorLog
		ts.Start()
		t.Cleanup(ts.Close)
		begin := func() *http.Response {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, ts.URL+"/trail/export", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			res, err := as(b.admin, home).Do(req)
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatal(res, err)
			}
			t.Cleanup(func() { _ = res.Body.Close() }) // the server may have cut it
			return res
		}
		slow := begin()
		<-time.After(2 * limit)
		b.idle(t)
		raw, err := io.ReadAll(slow.Body)
		if err != nil || bytes.Count(raw, []byte("\n")) < 1500 {
			t.Errorf("a slow reader got %d lines: %v", bytes.Count(raw, []byte("\n")), err)
		}
		counted := func() int {
			b.exports.taken.mu.Lock()
			defer b.exports.taken.mu.Unlock()
			return b.exports.taken.open[everyone]
		}
		waitFor(t, "the end of the first export", func() bool { return counted() == 0 })
		b.patience = 50 * time.Millisecond
		cut := begin()
		waitFor(t, "the end of an export that nobody reads", func() bool { return strings.Contains(b.log.String(), "an export ended early") })
		if raw, err := io.ReadAll(cut.Body); err == nil {
			t.Errorf("half an export looks whole: %d bytes", len(raw))
		}
		if n := counted(); n != 0 {
			t.Errorf("%d exports are counted", n)
		}
	})
}

// idle fails when a transaction is open for longer than a moment.
func (b *bed) idle(t testing.TB) {
	t.Helper()
	if b.db.Dialect() == "sqlite" {
		return // does not tell
	}
	waitFor(t, "the end of transactions", func() bool {
		var open int
		err := b.db.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return tx.QueryRow(ctx, `SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state LIKE 'idle in transaction%'`).Scan(&open)
		})
		if err != nil {
			t.Fatal(err)
		}
		return open == 0
	})
}

// Promise: an export that fails on its way does not look whole to its client.
func TestExportWhenDatabaseGoes(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	var large []audit.Event
	for range 3000 {
		large = append(large, audit.Event{Action: "large", Detail: map[string]any{"x": strings.Repeat("x", 15<<10)}})
	}
	b.record(t, large...)
	b.sequence(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.http.URL+"/trail/export", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := as(b.admin, home).Do(req)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	}
	defer res.Body.Close()
	// It waits for its reader, and has read a part only.
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if raw, err := io.ReadAll(res.Body); err == nil || bytes.Count(raw, []byte("\n")) >= 3000 {
		t.Errorf("half an export looks whole: %d lines, %v", bytes.Count(raw, []byte("\n")), err)
	}
}

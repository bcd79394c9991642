package audit

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

var corpusEvents = flag.Int("corpus.events", 20_000, "how many events the honest log of TestHonestLogGivesNoAlarm has; by hand, with -run TestHonestLogGivesNoAlarm/sqlite: 1000000")

// Promise: a log to which nothing was done is never called tampered with, however
// often the server was restarted, its key rotated, and events pruned, held and
// erased, and however an export is filtered; and every checkpoint that anybody
// kept of it is extended by each later one.
func TestHonestLogGivesNoAlarm(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		began := time.Now()
		clock := newClock(db)
		s := &server{db: db, clock: clock, tr: newTrail(t, db)}
		ctx := WithActor(t.Context(), asAdmin)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		keys := trusted(t, s.tr)
		must(s.tr.SetRetention(ctx, 84*time.Hour, "drill"))
		must(s.tr.AddHold(ctx, Hold{Name: "case-7", Reason: "court order", Partner: "held & co"}))
		var kept []trail.Checkpoint
		var erased int64
		const rounds = 20
		for round := range rounds {
			begun := clock.Now()
			s.addMany(t, *corpusEvents/rounds, fmt.Sprint("round-", round))
			clock.Advance(6 * time.Hour)
			switch round % 4 {
			case 0:
				_, err := s.tr.RotateKey(ctx, "yearly")
				must(err)
			case 1:
				done, err := s.tr.Erase(ctx, Erase{Fields: []trail.Field{trail.Actor, trail.Address}, Actor: "token/leaver", Since: begun, Until: begun.Add(time.Hour), Reason: "asked for it"})
				must(err)
				erased += done.Events
			case 2:
				must(s.tr.Close(t.Context()))
				s.tr = openTrail(t, s.tr.Config)
			case 3:
				for {
					p, err := s.tr.Prune(t.Context(), clock.Now())
					must(err)
					if !p.More {
						break
					}
				}
			}
			if round == rounds/2 {
				must(s.tr.AddHold(ctx, Hold{Name: "case-8", Reason: "another", Resource: "keysets/round-1/"}))
			}
			if round == rounds-3 { // after the first pruning, before the second
				must(s.tr.ReleaseHold(ctx, "case-7", "the case is closed"))
			}
			sequence(t, s.tr)
			c, _, err := s.tr.Checkpoint(t.Context())
			must(err)
			kept = append(kept, c)
		}
		last := kept[len(kept)-1]
		t.Logf("%d leaves made in %.1f s", last.Size, time.Since(began).Seconds())
		if last.Size < int64(*corpusEvents) || erased == 0 {
			t.Fatalf("the log has %d leaves, and %d events were erased", last.Size, erased)
		}
		for _, c := range kept {
			var proof tlog.TreeProof
			if c.Size < last.Size {
				var err error
				proof, err = s.tr.Consistency(t.Context(), c.Size, last.Size)
				must(err)
			}
			if err := bundle.Compare(c, last, proof); err != nil {
				t.Errorf("a kept checkpoint: %v", err)
			}
		}
		for _, request := range []ExportRequest{
			{},
			{Query: Query{Action: "keyset."}, Omitted: true},
			{Query: Query{Partner: "acme"}},
			{Query: Query{Outcome: Denied}, Omitted: true},
			{Query: Query{Actor: "anonymous", Since: epoch.Add(60 * time.Hour), Until: epoch.Add(100 * time.Hour)}},
			{Query: Query{Resource: "keysets/round-12/"}},
			{Query: Query{RequestID: "there is none"}},
		} {
			s.noAlarm(t, request, keys, last)
		}
	})
}

// addMany records and sequences n events in large transactions.
func (s *server) addMany(t *testing.T, n int, name string) {
	t.Helper()
	s.add(t, 40, name) // intents and their ends
	for n -= 40; n > 0; n -= 2000 {
		events := make([]Event, min(n, 2000))
		for i := range events {
			s.n++
			events[i] = mixedEvent(s.n, name)
			if s.n%1000 == 0 {
				events[i].Partner, events[i].Actor, events[i].Address = "held & co", "token/ada", "192.0.2.9" // what is held can't be erased
			}
		}
		record(t, s.db, events...)
		s.clock.Advance(time.Second)
		sequence(t, s.tr)
	}
}

// noAlarm exports and verifies, and says what that took.
func (s *server) noAlarm(t *testing.T, request ExportRequest, keys *trail.Keys, last trail.Checkpoint) {
	t.Helper()
	into := &intoBundle{dir: filepath.Join(t.TempDir(), "bundle")}
	from := peak(t)
	began := time.Now()
	if err := errors.Join(s.tr.Export(t.Context(), request, into), into.w.Close()); err != nil {
		t.Fatal(err)
	}
	exported, exportPeak := time.Since(began), from()
	from, began = peak(t), time.Now()
	report, err := bundle.Verify(t.Context(), into.dir, bundle.Options{Keys: keys, Whole: request.Omitted})
	if err != nil {
		t.Fatal(err)
	}
	verified, verifyPeak := time.Since(began), from()
	if !report.OK() || report.Records+report.Omitted+report.Pruned != report.End-report.Begin || report.End != last.Size || report.Root != last.Root {
		t.Errorf("%+v: a false alarm: %v of %+v", request, report.Findings, report)
	}
	if request.Query == (Query{}) && (report.Pruned == 0 || report.ErasedFields == 0 || len(report.PrunedRanges) == 0) {
		t.Errorf("the log has nothing pruned or erased: %+v", report)
	}
	t.Logf("filter %v: %d events, %d left out, %d pruned: export %.1f s, peak %s; verify %.1f s, peak %s",
		report.Filter, report.Records, report.Omitted, report.Pruned, exported.Seconds(), exportPeak, verified.Seconds(), verifyPeak)
	if err := os.RemoveAll(into.dir); err != nil {
		t.Fatal(err)
	}
}

// peak returns a function that tells the most memory that the process had since.
func peak(t *testing.T) func() string {
	t.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o600); err != nil {
		return func() string { return "not known on this system" }
	}
	return func() string {
		raw, _ := os.ReadFile("/proc/self/status") // it is only told
		_, after, _ := strings.Cut(string(raw), "VmHWM:")
		line, _, _ := strings.Cut(after, "\n")
		return strings.Join(strings.Fields(line), " ")
	}
}

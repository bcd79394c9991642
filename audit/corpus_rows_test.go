package audit

import (
	"context"
	"fmt"
	"testing"

	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/store"
)

// shift moves all events from an index on by a number of places.
func (s *scene) shift(t *testing.T, from, by int64) {
	t.Helper()
	const far = 10_000_000 // both databases look for equal keys row by row
	s.sql(t, `UPDATE events SET leaf_index = leaf_index + $1 WHERE leaf_index >= $2`, far, from)
	s.sql(t, `UPDATE events SET leaf_index = leaf_index - $1 + $2 WHERE leaf_index >= $3`, far, by, far)
}

// pruneEvent makes an event declare that leaves were pruned.
func pruneEvent(r trail.Record, begin, end int64) trail.Record {
	r.Action, r.Resource, r.Outcome, r.Actor = bundle.PruneAction, "trail", OK, Rotunda
	r.Detail = fmt.Sprintf(`{"begin":%d,"deleted":%d,"end":%d,"held":0,"keep_hours":24,"open":0}`, begin, end-begin, end)
	r.Checks = r.MakeChecks()
	return r
}

// attacksOnRows delete, add and move events.
func attacksOnRows() []attack {
	remove := func(s *scene, t *testing.T, begin, end int64) {
		t.Helper()
		s.sql(t, `DELETE FROM events WHERE leaf_index >= $1 AND leaf_index < $2`, begin, end)
	}
	return []attack{
		{
			name: "first event deleted, which a hold kept among pruned ones", server: goesOn, want: []string{"pruned_without_evidence 0"},
			do: func(t *testing.T, s *scene) { remove(s, t, s.first, s.first+1) },
		},
		{
			name: "middle event deleted", server: goesOn, want: []string{"pruned_without_evidence middle"},
			do: func(t *testing.T, s *scene) { remove(s, t, s.middle, s.middle+1) },
		},
		{
			name: "last event deleted", server: goesOn, want: []string{"pruned_without_evidence last"},
			do: func(t *testing.T, s *scene) { remove(s, t, s.last, s.last+1) },
		},
		{
			name: "a hundred events deleted", server: goesOn, want: []string{"pruned_without_evidence middle"},
			do: func(t *testing.T, s *scene) { remove(s, t, s.middle, s.middle+100) },
		},
		{
			name: "trail.pruned moved and events below it deleted, without an event trail.prune", server: goesOn, want: []string{"pruned_without_evidence 900"},
			do: func(t *testing.T, s *scene) {
				s.sql(t, `UPDATE trail SET pruned = $1 WHERE id = 1`, s.middle)
				remove(s, t, 900, s.middle)
			},
		},
		{
			name: "an event trail.prune widened, and events deleted", server: goesOn, want: []string{"altered 855 detail"},
			do: func(t *testing.T, s *scene) {
				s.sql(t, `UPDATE events SET detail = $1 WHERE action = 'trail.prune' AND leaf_index = (SELECT MAX(leaf_index) FROM events WHERE action = 'trail.prune')`, pruneEvent(trail.Record{}, 0, 800).Detail)
				remove(s, t, 610, 620)
			},
		},
		{
			name: "an event rewritten into trail.prune, checks and all, and events deleted", server: goesOn, want: []string{"altered last hash", "root"},
			do: func(t *testing.T, s *scene) {
				s.put(t, pruneEvent(s.event(t, s.last), s.middle, s.middle+10))
				remove(s, t, s.middle, s.middle+10)
			},
		},
		{
			name: "a false event trail.prune put behind the end, and events deleted", server: stuck, want: []string{"pruned_without_evidence middle"},
			do: func(t *testing.T, s *scene) {
				s.put(t, pruneEvent(s.forged(t, s.last+1), s.middle, s.middle+10))
				remove(s, t, s.middle, s.middle+10)
			},
		},
		{
			name: "two events swapped", server: goesOn, want: []string{"reordered middle", "reordered last", "root"},
			do: func(t *testing.T, s *scene) {
				for _, move := range [][2]int64{{s.middle, 10_000_000}, {s.last, s.middle}, {10_000_000, s.last}} {
					s.sql(t, `UPDATE events SET leaf_index = $1 WHERE leaf_index = $2`, move[1], move[0])
				}
			},
		},
		{
			name: "a false event put in, all later ones moved by one", server: stuck, want: []string{"inserted middle", "reordered 1058", "missing last", "root"},
			do: func(t *testing.T, s *scene) {
				f := s.forged(t, s.middle)
				s.shift(t, s.middle, 1)
				s.put(t, f)
			},
		},
		{
			name: "middle event deleted, all later ones moved by one", server: goesOn, want: []string{"reordered middle", "missing middle", "pruned_without_evidence last", "root"},
			do: func(t *testing.T, s *scene) {
				remove(s, t, s.middle, s.middle+1)
				s.shift(t, s.middle, -1)
			},
		},
		{
			name: "a false event put where one was pruned", server: goesOn, want: []string{"altered 5 hash", "root"},
			do: func(t *testing.T, s *scene) { s.put(t, s.forged(t, 5)) },
		},
		{
			name: "a false event put in the place of another", server: goesOn, want: []string{"altered middle hash", "root"},
			do: func(t *testing.T, s *scene) { s.put(t, s.forged(t, s.middle)) },
		},
		{
			name: "an event written over the next one, a second time", server: goesOn, want: []string{"duplicate 1058", "root"},
			do: func(t *testing.T, s *scene) {
				s.unkey(t)
				r := s.event(t, s.middle)
				r.Index++
				s.put(t, r)
			},
		},
		{
			name: "a second row with an index that there is", server: goesOn, refused: "is not the one that is due",
			do: func(t *testing.T, s *scene) {
				s.unkey(t)
				s.sql(t, `INSERT INTO events SELECT * FROM events WHERE leaf_index = $1`, s.middle)
			},
		},
		{
			name: "a false event put behind the end", server: stuck,
			do: func(t *testing.T, s *scene) { s.put(t, s.forged(t, s.last+1)) },
		},
	}
}

// unkey takes the keys and rules of the table away.
func (s *scene) unkey(t *testing.T) {
	t.Helper()
	for _, query := range []string{`CREATE TABLE bare AS SELECT * FROM events`, `DROP TABLE events`, `ALTER TABLE bare RENAME TO events`} {
		s.sql(t, query)
	}
}

// waiting records an event without giving it an index.
func (s *scene) waiting(t *testing.T) {
	t.Helper()
	record(t, s.db, fullEvent(7, "acme"))
}

// queue writes an event into the queue, hash and all, as Record would.
func (s *scene) queue(t *testing.T, r trail.Record) {
	t.Helper()
	hash, checks, err := r.Commit()
	if err != nil {
		t.Fatal(err)
	}
	s.sql(t, `INSERT INTO event_queue (id, occurred_at, actor, action, resource, partner, outcome, reason, request_id, address, detail, count, intent, salt, checks, leaf_hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		r.ID, store.Micros(r.Time), r.Actor, r.Action, r.Resource, r.Partner, r.Outcome, r.Reason, r.RequestID, r.Address, r.Detail, r.Count, r.Intent, r.Salt, checks, hash[:])
}

// attacksOnTheQueue reach events in the fraction of a second before they get their
// index. Those that nothing can show are among them, so that nobody believes
// otherwise.
func attacksOnTheQueue() []attack {
	return []attack{
		{
			name: "actor of a waiting event edited", server: goesOn, want: []string{"altered next actor"},
			do: func(t *testing.T, s *scene) {
				s.waiting(t)
				s.sql(t, `UPDATE event_queue SET actor = 'token/innocent'`)
			},
		},
		{
			name: "leaf hash of a waiting event edited", server: goesOn, want: []string{"altered next hash", "root"},
			do: func(t *testing.T, s *scene) {
				s.waiting(t)
				s.sql(t, `UPDATE event_queue SET leaf_hash = $1`, make([]byte, 32))
			},
		},
		{
			name: "leaf hash of a waiting event cut short", server: stops,
			do: func(t *testing.T, s *scene) {
				s.waiting(t)
				s.sql(t, `UPDATE event_queue SET leaf_hash = $1`, []byte("abc"))
			},
		},
		{
			name: "NOT DETECTED: a waiting event edited together with its checks and leaf hash", server: goesOn,
			do: func(t *testing.T, s *scene) {
				s.waiting(t)
				s.sql(t, `DELETE FROM event_queue`)
				s.queue(t, s.forged(t, s.last+1))
			},
		},
		{
			name: "NOT DETECTED: a waiting event deleted", server: goesOn,
			do: func(t *testing.T, s *scene) {
				s.waiting(t)
				s.sql(t, `DELETE FROM event_queue`)
			},
		},
		{
			name: "NOT DETECTED, but in the log and listed by the verifier: a false trail.prune queued, and events deleted once it is signed", server: goesOn,
			do: func(t *testing.T, s *scene) {
				s.queue(t, pruneEvent(s.forged(t, s.last+1), s.middle, s.middle+10))
				sequence(t, s.tr)
				s.sql(t, `DELETE FROM events WHERE leaf_index >= $1 AND leaf_index < $2`, s.middle, s.middle+10)
				report, err := s.offline(t)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range report.PrunedRanges {
					if p.Begin == s.middle && p.End == s.middle+10 && p.Index == s.last+1 && p.Event == forgedID(int(s.last+1)) {
						return
					}
				}
				t.Errorf("the report does not list what the false event declares: %+v", report.PrunedRanges)
			},
		},
	}
}

// harmless is what must not be called tampering.
func harmless() []attack {
	return []attack{
		{name: "nothing", server: goesOn, do: func(*testing.T, *scene) {}},
		{
			name: "older checkpoints deleted: any kept one still proves itself", server: goesOn,
			do: func(t *testing.T, s *scene) {
				s.sql(t, `DELETE FROM cosignatures`)
				s.sql(t, `DELETE FROM checkpoints WHERE size < $1`, s.last+1)
			},
		},
		{
			name: "the server erases, rotates its key and restarts", server: goesOn,
			do: func(t *testing.T, s *scene) {
				ctx := WithActor(t.Context(), asAdmin)
				if _, err := s.tr.RotateKey(ctx, "again"); err != nil {
					t.Fatal(err)
				}
				if _, err := s.tr.Erase(ctx, Erase{Fields: []trail.Field{trail.Reason, trail.Detail}, ID: s.event(t, s.middle).ID, Reason: "asked for it"}); err != nil {
					t.Fatal(err)
				}
				if err := s.tr.Close(context.WithoutCancel(ctx)); err != nil {
					t.Fatal(err)
				}
				s.tr = openTrail(t, s.tr.Config)
			},
		},
	}
}

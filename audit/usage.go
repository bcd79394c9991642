package audit

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/store"
)

// The actions of usage events, and of those that say what they cover.
const (
	TokenUsage         = "token.usage"
	SigningKeyUsage    = "signing_key.usage"
	APIKeyUsage        = "api_key.usage"
	RequestSecretUsage = "request_secret.usage"
	UsageCovered       = "usage.covered"
)

const (
	coverEvery     = time.Hour       // at least so often a living process says what it covers
	maxPerMinute   = 10_000          // resources of a minute that are told apart
	maxTallies     = 40_000          // in memory, when they can't be written; then as many again as "various"
	maxUsageReason = 16              // reasons of a tally that are told apart
	parcelSize     = 500             // events of one transaction
	maxParcels     = 256             // that wait; then nothing new is cut
	parcelsAPass   = 20              // that one pass writes
	usageTolerance = 5 * time.Second // by which a clock may be corrected without a word
)

// Usage counts in memory how keys are used, and writes the counts to the trail:
// one event for each resource and minute, never one for each use. Set DB, then
// call Pass once before anything is counted. A nil *Usage counts nothing. Its
// methods may be called from many goroutines.
//
// # Coverage
//
// That an event is missing proves nothing by itself, so each process also says
// from when until when its counts are in the trail (usage.covered): when it
// starts, whenever it writes, every hour, and at its end with final. Each
// coverage begins where the one before it ended. A process that is killed loses
// what it had not written, and shows it: its coverage ends and is not final. What
// was counted and dropped, because the database was away for too long, is told by
// the coverage of that time (lost).
//
// # Clocks
//
// A use is put into the minute in which it was counted. When the wall clock goes
// back, uses are put at the latest instant that was known before, so that none
// seems older than it is, and a coverage from the earlier instant on takes back
// what was said of the time that is now lived again. Over a clock that jumped
// forward there is no coverage: a machine that was suspended looks the same.
type Usage struct {
	DB *store.DB

	// Replica names this process in the trail. Default: 16 random letters and digits.
	Replica string

	mu      sync.Mutex
	tallies map[tallyKey]*tally
	minutes map[int64]int // how many tallies of each minute
	kept    int           // tallies here and in parcels
	lost    int64         // uses that were dropped since the last cut
	floor   time.Time     // no use is put before it
	sources []func(now time.Time)
	parcels []*parcel // cut, and not written yet

	covered  time.Time     // until when counts are cut
	tick     time.Duration // DB.Tick at that instant
	gathered time.Time     // when sources were last asked
	started  bool

	turn sync.Mutex // one writer at a time
}

type tallyKey struct {
	minute           int64 // Unix time divided by 60
	action, resource string
}

type tally struct {
	accepted int64
	denied   map[string]int64
}

// parcel is what one transaction writes. It never changes, so that it can be
// tried again under its id.
type parcel struct {
	id      string
	events  []Event
	tallies int
}

// Source has f called before counts are cut, so that whoever counts by himself
// can hand over what he has, with Count. It is called before the first Pass.
func (u *Usage) Source(f func(now time.Time)) {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sources = append(u.sources, f)
}

// Count counts n uses of a resource ("tokens/ID"): accepted ones, or with a
// reason denied ones. It must be called before the caller learns the outcome.
func (u *Usage) Count(action, resource, reason string, n int64, now time.Time) {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.floor = later(u.floor, now)
	now = u.floor
	t := u.tally(tallyKey{now.Unix() / 60, action, resource})
	switch {
	case t == nil:
		u.lost += n
	case reason == "":
		t.accepted += n
	default:
		if t.denied == nil {
			t.denied = map[string]int64{}
		}
		if _, known := t.denied[reason]; !known && len(t.denied) >= maxUsageReason {
			reason = various
		}
		t.denied[reason] += n
	}
}

// tally returns where uses are counted: by themselves, with others when there is
// too much, or nowhere. The caller holds the lock.
func (u *Usage) tally(key tallyKey) *tally {
	if t := u.tallies[key]; t != nil {
		return t
	}
	if u.minutes[key.minute] >= maxPerMinute || u.kept >= maxTallies {
		key.resource = various
		if t := u.tallies[key]; t != nil {
			return t
		}
		if u.kept >= 2*maxTallies {
			return nil
		}
	}
	if u.tallies == nil {
		u.tallies, u.minutes = map[tallyKey]*tally{}, map[int64]int{}
	}
	t := &tally{}
	key.action, key.resource = strings.Clone(key.action), strings.Clone(key.resource)
	u.tallies[key] = t
	u.minutes[key.minute]++
	u.kept++
	return t
}

// Pass writes the counts of minutes that are over, and is called about once a second.
func (u *Usage) Pass(ctx context.Context, now time.Time) (next time.Time, err error) {
	u.turn.Lock()
	defer u.turn.Unlock()
	u.cut(now, false)
	more, err := u.write(ctx, parcelsAPass)
	if err != nil {
		return time.Time{}, err
	}
	if more {
		return now, nil
	}
	return time.Time{}, nil
}

// Flush writes everything that was counted, at the end of a process, and that
// nothing follows.
func (u *Usage) Flush(ctx context.Context) error {
	u.turn.Lock()
	defer u.turn.Unlock()
	u.cut(u.DB.Now(), true)
	for {
		if more, err := u.write(ctx, parcelsAPass); err != nil || !more {
			return err
		}
	}
}

// cut makes parcels of what is to be written, if there is any.
func (u *Usage) cut(now time.Time, final bool) {
	u.mu.Lock()
	sources := u.sources
	u.mu.Unlock()
	for _, f := range sources {
		f(now)
	}
	tick := u.DB.Tick()
	u.mu.Lock()
	defer u.mu.Unlock()
	gathered := u.gathered
	u.gathered, u.floor = now, later(u.floor, now)
	if len(u.parcels) >= maxParcels && !final {
		return // nothing can be written; uses are counted on
	}
	if !u.started {
		if u.Replica == "" {
			u.Replica = rand.Text()[:16]
		}
		u.started = true
		u.begin(now, tick)
	}
	if now.Before(u.covered.Add(-usageTolerance)) {
		u.begin(now, tick) // this time is lived again, and what was said of it is said anew
	}
	if lived := u.covered.Add(tick - u.tick); now.After(lived.Add(usageTolerance)) {
		u.pack(slices.Collect(maps.Keys(u.tallies)), lived, final)
		u.covered, u.tick = now, tick
		if !final {
			u.begin(now, tick)
		}
		return
	}
	minute := now.Truncate(time.Minute)
	// What a source handed over now was used since it was asked before.
	until := later(earlier(minute, gathered), u.covered)
	if final {
		until = later(now, u.covered)
	}
	var due []tallyKey
	for key := range u.tallies {
		// Uses are put into a minute to come while the clock is behind the floor.
		ahead := key.minute > now.Unix()/60 && until.After(u.covered)
		if final || ahead || key.minute < minute.Unix()/60 {
			due = append(due, key)
		}
	}
	if len(due) == 0 && u.lost == 0 && !final && until.Sub(u.covered) < coverEvery {
		return
	}
	u.pack(due, until, final)
	u.covered, u.tick = until, tick-now.Sub(until)
}

// begin starts a coverage that continues none. The caller holds the lock.
func (u *Usage) begin(now time.Time, tick time.Duration) {
	u.covered, u.tick, u.gathered = now, tick, now
	u.pack(nil, now, false)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// pack makes parcels of tallies, the last of which says that all is covered until
// an instant. The caller holds the lock.
func (u *Usage) pack(due []tallyKey, until time.Time, final bool) {
	slices.SortFunc(due, func(a, b tallyKey) int {
		return cmp.Or(cmp.Compare(a.minute, b.minute), strings.Compare(a.resource, b.resource), strings.Compare(a.action, b.action))
	})
	for part := range slices.Chunk(due, parcelSize) {
		p := &parcel{id: rand.Text(), tallies: len(part)}
		for _, key := range part {
			p.events = append(p.events, u.event(key))
			delete(u.tallies, key)
			if u.minutes[key.minute]--; u.minutes[key.minute] == 0 {
				delete(u.minutes, key.minute)
			}
		}
		u.parcels = append(u.parcels, p)
	}
	if len(due) == 0 {
		u.parcels = append(u.parcels, &parcel{id: rand.Text()})
	}
	last := u.parcels[len(u.parcels)-1]
	last.events = append(last.events, Event{Actor: Rotunda, Action: UsageCovered, Resource: "usage/" + u.Replica, Detail: map[string]any{
		"replica": u.Replica, "from": u.covered.UTC().Format(time.RFC3339Nano), "until": until.UTC().Format(time.RFC3339Nano), "final": final, "lost": u.lost,
	}})
	u.lost = 0
}

func (u *Usage) event(key tallyKey) Event {
	t := u.tallies[key]
	e := Event{Actor: Rotunda, Action: key.action, Resource: key.resource, Partner: partnerOf(key.resource), Count: t.accepted}
	for _, n := range t.denied {
		e.Count += n
	}
	accepted := "accepted"
	if key.action == SigningKeyUsage {
		accepted = "signed"
	}
	e.Detail = map[string]any{"minute": time.Unix(key.minute*60, 0).UTC().Format(time.RFC3339), "replica": u.Replica, accepted: t.accepted}
	if len(t.denied) > 0 {
		e.Detail["denied"] = maps.Clone(t.denied)
	}
	return e
}

// partnerOf is the partner whose key a resource names: "partners/acme/api_keys/ID".
func partnerOf(resource string) string {
	rest, ok := strings.CutPrefix(resource, "partners/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	return name
}

// write writes parcels in their order, so that a coverage never comes before
// what it covers. more says that some are left.
func (u *Usage) write(ctx context.Context, limit int) (more bool, err error) {
	for range limit {
		u.mu.Lock()
		if len(u.parcels) == 0 {
			u.mu.Unlock()
			return false, nil
		}
		p := u.parcels[0]
		u.mu.Unlock()
		err := u.DB.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			// Whether a commit that was cut off happened, its id tells.
			prior, err := tx.Once(ctx, store.Once{Scope: "usage", Key: p.id}, p.id)
			if err != nil || prior != "" {
				return err
			}
			for _, e := range p.events {
				if err := Record(ctx, tx, e); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return true, fmt.Errorf("write how keys were used (it is kept, and tried again): %w", err)
		}
		u.mu.Lock()
		u.parcels = slices.Delete(u.parcels, 0, 1)
		u.kept -= p.tallies
		u.mu.Unlock()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.parcels) > 0, nil
}

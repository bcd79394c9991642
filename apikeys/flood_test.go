package apikeys

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// heap is what is in use after a collection.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// flood has the verifier judge n values at once and returns how often it said what.
func (d *desk) flood(t *testing.T, n int, value func(i int) string) map[Reason]int {
	t.Helper()
	before := d.Stats()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if got, err := d.Verify(context.WithoutCancel(t.Context()), value(i), nil); err != nil || got.Key != nil {
					t.Errorf("%s, %v", got.Reason, err)
					return
				}
			}
		})
	}
	wg.Wait()
	out := map[Reason]int{}
	after := d.Stats()
	for r := range after.Decision {
		if more := after.Decision[r] - before.Decision[r]; more > 0 {
			out[Reason(r)] = int(more)
		}
	}
	return out
}

// Promise: a million keys that nobody holds are refused without a read of the
// database and leave nothing in memory, whatever they look like; and who guesses the
// secret of a key that exists costs one read in all.
func TestFloodWhenKeysAreMadeUp(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme")
	k, value := d.key(t, KeySpec{Partner: "acme"})
	// An imported key is there too, so that strings of other forms are looked at.
	results, err := d.keys.Import(t.Context(), "acme", OriginSHA256, 0, []ImportItem{{Value: secretValue(fmt.Sprintf("%x", foreignDigest("theirs")))}})
	if err != nil || results[0].Err != nil {
		t.Fatal(err, results)
	}
	d.refresh(t)
	const n = 250_000
	own := func(id func(i int) string) func(i int) string {
		tail := random(secretLength-12, 32)
		return func(i int) string {
			body := fmt.Sprintf("%s_live_%s_%012d%s", brand, id(i), i, tail)
			return body + checksum(body)
		}
	}
	floods := []struct {
		name  string
		reads int64
		value func(i int) string
	}{
		{"a wrong checksum", 0, func(i int) string { return value[:len(value)-12] + fmt.Sprintf("%012d", i) }},
		{"an id that was not given out", 0, own(func(i int) string { return fmt.Sprintf("%016d", i) })},
		{"the id of a key, and another secret", 1, own(func(int) string { return k.ID })},
		{"something else", 0, func(i int) string { return fmt.Sprintf("sk_test_%032d", i) }},
	}
	for _, f := range floods {
		loads, before := d.Stats().Loads, heap()
		said := d.flood(t, n, f.value)
		if said[ReasonUnknown] != n {
			t.Errorf("%s: %v", f.name, said)
		}
		if reads := d.Stats().Loads - loads; reads != f.reads {
			t.Errorf("%s: %d reads of the database, want %d", f.name, reads, f.reads)
		}
		if grown := heap() - before; grown > 4<<20 {
			t.Errorf("%s: %d bytes more in memory", f.name, grown)
		}
	}
	if d.want(t, value, nil, ReasonOK); d.Stats().Entries != 1 {
		t.Errorf("%d entries", d.Stats().Entries)
	}
	for _, s := range []string{"", "a b", "a\n", strings.Repeat("a", maxValue+1), "\x7f"} {
		d.want(t, s, nil, ReasonMalformed)
	}
}

// Promise: ids that were given out and are not there any more, as after a restore,
// can't take more than 200 reads in a second, and are bounded in memory.
func TestFloodWhenTheDatabaseWasRestored(t *testing.T) {
	d := newDesk(t, storetest.SQLite(t))
	d.partner(t, "acme")
	_, value := d.key(t, KeySpec{Partner: "acme"})
	var shed, unknown atomic.Int64
	ask := func(n int) {
		var wg sync.WaitGroup
		for range n {
			wg.Go(func() {
				_, v := writeKey(brand, keyString{env: "live", id: d.peppers.newID(), secret: random(secretLength, 32)})
				got, err := d.Verify(context.WithoutCancel(t.Context()), v.RevealString(), nil)
				switch {
				case errors.Is(err, fault.ErrUnavailable):
					shed.Add(1)
				case err == nil && got.Reason == ReasonUnknown:
					unknown.Add(1)
				default:
					t.Errorf("%s, %v", got.Reason, err)
				}
			})
		}
		wg.Wait()
	}
	loads := d.Stats().Loads
	ask(3000) // at one instant, as the test's clock stands still
	most := int64(absentRate + loadsAtOnce)
	if reads := d.Stats().Loads - loads; reads > most || unknown.Load() < absentRate || shed.Load() == 0 || d.Stats().Shed != shed.Load() {
		t.Errorf("%d reads, %d unknown, %d shed", reads, unknown.Load(), shed.Load())
	}
	d.pass(time.Second)
	d.want(t, value, nil, ReasonOK)
}

// Promise: one read serves all who ask for a key at the same time.
func TestFloodWhenOneKeyIsNotInMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		d := newDesk(t, db)
		d.partner(t, "acme")
		_, value := d.key(t, KeySpec{Partner: "acme"})
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for range 200 {
			wg.Go(func() {
				<-begin
				if got, err := d.Verify(context.WithoutCancel(t.Context()), value, nil); err != nil || got.Reason != ReasonOK {
					t.Errorf("%s, %v", got.Reason, err)
				}
			})
		}
		close(begin)
		wg.Wait()
		if n := d.Stats().Loads; n != 2 { // the key and its partner
			t.Errorf("%d reads for 200 who asked, want 2", n)
		}
	})
}

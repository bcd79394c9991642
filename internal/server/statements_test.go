package server

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// wiretap stands between the server and PostgreSQL and notes each message, in both
// directions: its type and its length. It reads the protocol's framing only.
type wiretap struct {
	mu  sync.Mutex
	log []string
}

// newWiretap returns a database's URL by way of a tap.
func newWiretap(t *testing.T, to string) (*wiretap, string) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wiretap{}
	var running sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	ended := false
	target := u.Host
	running.Go(func() {
		for {
			ours, err := l.Accept()
			if err != nil {
				return
			}
			theirs, err := net.Dial("tcp", target)
			if err != nil {
				t.Errorf("dial PostgreSQL: %v", err)
				_ = ours.Close()
				return
			}
			mu.Lock()
			open = append(open, ours, theirs)
			if ended {
				_, _ = ours.Close(), theirs.Close()
			}
			mu.Unlock()
			running.Go(func() { w.pass(">", true, ours, theirs); _ = theirs.Close() })
			running.Go(func() { w.pass("<", false, theirs, ours); _ = ours.Close() })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		ended = true
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	u.Host = l.Addr().String()
	return w, u.String()
}

// pass hands messages on. The first of a client has no type.
func (w *wiretap) pass(direction string, first bool, from io.Reader, to io.Writer) {
	for {
		head := make([]byte, 5)
		at := head
		if first {
			at = head[1:]
			first = false
		}
		if _, err := io.ReadFull(from, at); err != nil {
			return
		}
		size := binary.BigEndian.Uint32(head[1:])
		if size < 4 || size > 16<<20 {
			return
		}
		body := make([]byte, size-4)
		if _, err := io.ReadFull(from, body); err != nil {
			return
		}
		w.mu.Lock()
		w.log = append(w.log, fmt.Sprintf("%s%c %d", direction, max(head[0], ' '), size))
		w.mu.Unlock()
		if _, err := to.Write(append(at, body...)); err != nil {
			return
		}
	}
}

// during returns what passes while f runs.
func (w *wiretap) during(f func()) []string {
	w.mu.Lock()
	w.log = nil
	w.mu.Unlock()
	f()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.log)
}

// Promise: what is another partner's and what never was are looked for by the same
// statements and found by none: the database is asked the same, to the length of each
// message, and answers the same. So no time is there to measure.
func TestIsolationWhenDatabaseIsListenedTo(t *testing.T) {
	tap, through := newWiretap(t, storetest.Postgres(t))
	w := newTwo(t, storetest.Open(t, through))
	asked := 0
	for _, m := range methods(t) {
		try := trespasses[m.short]
		if try == nil || strings.Contains(m.short, "/Create") { // they make something each time
			continue
		}
		call := func(a aim, partner string) []string {
			body := w.body(t, m, try, a, partner)
			w.callWith(t, m, w.acme, home, body)
			// The second time statements are prepared, and denials are counted.
			return tap.during(func() { w.callWith(t, m, w.acme, home, body) })
		}
		for _, partner := range []string{"", "acme"} {
			never, theirs := call(w.never, partner), call(w.theirs, partner)
			asked += len(theirs)
			if strings.HasPrefix(m.short, "VerificationService/") {
				// The id of a key carries a mark that no stranger can make: what was never
				// given out needs no look. Whose key was presented holds its secret.
				continue
			}
			if d := cmp.Diff(never, theirs); d != "" {
				t.Errorf("%s as %q asks the database otherwise for the other's than for what never was (-never +other):\n%s", m.short, partner, d)
			}
		}
		if !namesPartner(t, m) {
			continue
		}
		for _, partner := range []string{"globex", "initech"} {
			if log := call(w.theirs, partner); len(log) != 0 {
				t.Errorf("%s for %s asks the database: %v", m.short, partner, log)
			}
		}
	}
	if asked < 100 {
		t.Errorf("%d messages passed: nothing was listened to", asked)
	}
}

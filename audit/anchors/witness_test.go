package anchors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// sampleWitness is some witness's key.
const sampleWitness = "witness.example/w1+f1c8973e+BBazfmX0tysA5SxDNA+xkC0YCyMDLhwuHS/QWlxekq6z"

func cosign(t *testing.T, w *WitnessClient, l *testLog, known, size int64) (string, int64, error) {
	t.Helper()
	cp, signed := l.at(size)
	return w.Cosign(t.Context(), l, known, cp, signed)
}

// A real witness cosigns what extends its history, from whatever size it holds.
func TestWitnessCosigns(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	real := newWitness(t, log)
	w := real.client(t)
	before := time.Now().Add(-2 * time.Second)
	for _, tt := range []struct{ known, size int64 }{
		{0, 1}, {1, 3}, {3, 3}, {3, 8},
		{0, 13},   // it says 409 and 8
		{2, 21},   // it says 409 and 13
		{999, 55}, // we are wrong beyond our own size
		{0, 55}, {-1, 200},
	} {
		line, now, err := cosign(t, w, log, tt.known, tt.size)
		if err != nil || now != tt.size {
			t.Fatalf("from %d to %d: %q, %d, %v", tt.known, tt.size, line, now, err)
		}
		_, signed := log.at(tt.size)
		at, err := real.key.Verify(signed + line)
		if err != nil || at.Before(before) || at.After(time.Now().Add(2*time.Second)) {
			t.Fatalf("the cosignature: %v, %v", at, err)
		}
		if n, missing := trail.CountWitnesses(signed+line, []trail.Witness{real.key}); n != 1 || missing != nil {
			t.Fatalf("%d, %v", n, missing)
		}
		if cp, err := log.check()(signed + line); err != nil || cp.Size != tt.size {
			t.Fatalf("the log's own signature on the cosigned note: %v, %v", cp, err)
		}
		if !strings.HasSuffix(line, "\n") || strings.Count(line, "\n") != 1 {
			t.Fatalf("%q is not a line", line)
		}
	}
}

// A real witness tells a fork and a log that went back.
func TestWitnessWhenThereAreTwoHistories(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	w := newWitness(t, log).client(t)
	if _, _, err := cosign(t, w, log, 0, 10); err != nil {
		t.Fatal(err)
	}
	fork := log.fork(7)
	for what, tt := range map[string]struct {
		known, size int64
	}{"longer": {10, 12}, "longer, unknown": {0, 12}, "same size": {10, 10}, "same size, unknown": {0, 10}} {
		_, now, err := cosign(t, w, fork, tt.known, tt.size)
		t.Run(what, func(t *testing.T) { wantFault(t, err, fault.ErrChanged, ReasonWitnessFork) })
		if now != 10 {
			t.Errorf("%s: it is said to hold %d", what, now)
		}
	}
	for _, known := range []int64{0, 4, 10} {
		_, now, err := cosign(t, w, log, known, 6)
		wantFault(t, err, fault.ErrChanged, ReasonWitnessAhead)
		if now != 10 {
			t.Errorf("it is said to hold %d", now)
		}
	}
	if _, now, err := cosign(t, w, log, 10, 15); err != nil || now != 15 {
		t.Errorf("afterwards: %d, %v", now, err)
	}
}

func TestWitnessWhenItDoesNotKnowUs(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	_, _, err := cosign(t, newWitness(t).client(t), log, 0, 3)
	wantFault(t, err, fault.ErrRejected, "witness_unknown_log")
	_, _, err = cosign(t, newWitness(t, newLog(t)).client(t), log, 0, 3) // it has another key of this name
	wantFault(t, err, fault.ErrRejected, "witness_unknown_key")
}

// An answer counts only when it verifies with the key that was configured.
func TestWitnessWhenItAnswersGarbage(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	real := newWitness(t, log)
	line, _, err := cosign(t, real.client(t), log, 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	other, err := trail.ParseWitness(sampleWitness)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = cosign(t, openWitness(t, WitnessConfig{URL: real.url, Key: other}), log, 3, 4)
	wantFault(t, err, fault.ErrRejected, "witness_garbage")

	say := func(code int, kind, body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}
	}
	const size = "text/x.tlog.size"
	turn := int64(0)
	for what, tt := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		kind   error
		reason string
	}{
		"nothing":              {say(200, "", ""), fault.ErrRejected, "witness_garbage"},
		"text":                 {say(200, "", "hello\n"), fault.ErrRejected, "witness_garbage"},
		"of another note":      {say(200, "", line), fault.ErrRejected, "witness_garbage"},
		"without its end":      {say(200, "", strings.TrimSuffix(line, "\n")), fault.ErrRejected, "witness_garbage"},
		"endless":              {say(200, "", strings.Repeat("x", 2*maxBody)), fault.ErrRejected, "witness_garbage"},
		"conflict without":     {say(409, "text/plain", "conflict\n"), fault.ErrRejected, "witness_garbage"},
		"conflict with a word": {say(409, size, "three\n"), fault.ErrRejected, "witness_garbage"},
		"conflict negative":    {say(409, size, "-3\n"), fault.ErrRejected, "witness_garbage"},
		"conflict with zeros":  {say(409, size, "003\n"), fault.ErrRejected, "witness_garbage"},
		"conflict with itself": {say(409, size, "2\n"), fault.ErrChanged, ReasonWitnessFork},
		"conflict beyond":      {say(409, size, "9\n"), fault.ErrChanged, ReasonWitnessAhead},
		"broken":               {say(500, "", ""), fault.ErrUnavailable, "anchor_unavailable"},
		"limited":              {say(429, "", ""), fault.ErrLimited, "anchor_limited"},
		"bad request":          {say(400, "", ""), fault.ErrRejected, "anchor_refused"},
		"redirect":             {say(308, "", ""), fault.ErrRejected, "anchor_redirects"},
		"lost":                 {lost, fault.ErrUnavailable, "anchor_unreachable"},
		"restless": {func(w http.ResponseWriter, r *http.Request) {
			turn++
			say(409, size, fmt.Sprintf("%d\n", 3+turn%2))(w, r)
		}, fault.ErrUnavailable, "witness_busy"},
	} {
		srv := newReceiver(t, tt.answer)
		got, now, err := cosign(t, openWitness(t, WitnessConfig{URL: srv.URL, Key: real.key}), log, 2, 5)
		t.Run(what, func(t *testing.T) {
			wantFault(t, err, tt.kind, tt.reason)
			if got != "" || now == 5 {
				t.Errorf("%q, %d", got, now)
			}
			if n := len(srv.taken()); n > maxTries {
				t.Errorf("it was asked %d times", n)
			}
		})
	}
	// Lines of others beside its own are passed over.
	fine := newReceiver(t, say(200, "", "— witness.example/w1 AAAAAA==\n— other.example AAAA\n"+line))
	got, now, err := cosign(t, openWitness(t, WitnessConfig{URL: fine.URL, Key: real.key}), log, 0, 3)
	if err != nil || got != line || now != 3 {
		t.Errorf("%q, %d, %v", got, now, err)
	}
}

// A cosignature whose reply was lost is had by asking again.
func TestWitnessWhenTheReplyIsLost(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	w := newWitness(t, log).client(t)
	cp, signed := log.at(4)
	cut := *w
	cut.client = &http.Client{Transport: losing{w.client.Transport}}
	_, now, err := cut.Cosign(t.Context(), log, 0, cp, signed)
	wantFault(t, err, fault.ErrUnavailable, "anchor_unreachable")
	if line, now, err := w.Cosign(t.Context(), log, now, cp, signed); err != nil || now != 4 || line == "" {
		t.Errorf("asked again: %q, %d, %v", line, now, err)
	}
}

// losing delivers requests and loses the replies.
type losing struct{ http.RoundTripper }

func (l losing) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := l.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body.Close()
	return nil, io.ErrUnexpectedEOF
}

type prover func(old, size int64) ([]tlog.Hash, error)

func (p prover) Consistency(_ context.Context, old, size int64) ([]tlog.Hash, error) {
	return p(old, size)
}

func TestWitnessWhenThereIsNoProof(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	key, err := trail.ParseWitness(sampleWitness)
	if err != nil {
		t.Fatal(err)
	}
	srv := newReceiver(t, nil)
	w := openWitness(t, WitnessConfig{URL: srv.URL, Key: key})
	cp, signed := log.at(5)
	broken := errors.New("the tree can't be read")
	_, _, err = w.Cosign(t.Context(), prover(func(int64, int64) ([]tlog.Hash, error) { return nil, broken }), 3, cp, signed)
	if !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	_, _, err = w.Cosign(t.Context(), prover(func(int64, int64) ([]tlog.Hash, error) { return make([]tlog.Hash, maxProof+1), nil }), 3, cp, signed)
	if err == nil || len(srv.taken()) != 0 {
		t.Errorf("%v, and %d requests", err, len(srv.taken()))
	}
	_, _, err = w.Cosign(t.Context(), log, 3, cp, cp.Text())
	wantFault(t, err, fault.ErrInvalid, "checkpoint_differs")
}

func FuzzKnownSize(f *testing.F) {
	f.Add("text/x.tlog.size", "12\n")
	f.Add("text/x.tlog.size; charset=utf-8", "0\n")
	f.Add("text/plain", "12\n")
	f.Fuzz(func(t *testing.T, kind, body string) {
		if size, ok := knownSize(kind, body); ok && (size < 0 || fmt.Sprintf("%d\n", size) != body) {
			t.Errorf("%q is read as %d", body, size)
		}
	})
}

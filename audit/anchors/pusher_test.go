package anchors

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

// source is where a Pusher reads the newest checkpoint, and a clock.
type source struct {
	mu     sync.Mutex
	cp     trail.Checkpoint
	signed string
	err    error
	tick   time.Duration
	saved  []string
}

func (s *source) set(l *testLog, size int64) {
	cp, signed := l.at(size)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cp, s.signed = cp, signed
}

func (s *source) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tick += d
}

func (s *source) latest(context.Context) (trail.Checkpoint, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cp, s.signed, s.err
}

func (s *source) now() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tick
}

func (s *source) save(_ context.Context, size int64, witness, line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = append(s.saved, sizeName(size)+" "+witness+" "+line)
	return nil
}

// start of all tests, by the wall clock.
var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func newPusher(t *testing.T, s *source, anchors map[string]Anchor) *Pusher {
	t.Helper()
	p := &Pusher{Anchors: anchors, Latest: s.latest, Tick: s.now, Patience: time.Minute}
	t.Cleanup(func() {
		if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return p
}

func mustPass(t *testing.T, p *Pusher, at time.Time) time.Time {
	t.Helper()
	next, err := p.Pass(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func stat(t *testing.T, p *Pusher, name string) Stat {
	t.Helper()
	for _, s := range p.Stats() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no %s", name)
	return Stat{}
}

// One pass brings a checkpoint to a folder, a webhook, a real S3 server and a real witness.
func TestPusherReachesAllKinds(t *testing.T) {
	t.Parallel()
	log := newLog(t)
	srv, hook, witness := newS3(t), newReceiver(t, nil), newWitness(t, log)
	folder, _ := newFile(t, log)
	s3 := open(t, srv.config(t, log, "pushed", false))
	src := &source{}
	p := newPusher(t, src, map[string]Anchor{"folder": folder, "hook": open(t, Config{Kind: Webhook, Origin: origin, Address: hook.URL}), "s3": s3})
	p.Witnesses, p.Prover, p.Save = []*WitnessClient{witness.client(t)}, log, src.save
	for i, size := range []int64{3, 9} {
		at := noon.Add(time.Duration(i) * time.Hour)
		src.set(log, size)
		src.pass(time.Hour)
		if next := mustPass(t, p, at); !next.IsZero() {
			t.Errorf("all have it, and the next pass is asked for at %v", next)
		}
		_, signed := log.at(size)
		mustNewest(t, folder, signed)
		mustNewest(t, s3, signed)
		if got := hook.taken(); len(got) != i+1 || got[i] != signed {
			t.Errorf("the webhook received %q", got)
		}
		if len(src.saved) != i+1 {
			t.Fatalf("%d cosignatures were saved", len(src.saved))
		}
		name, line, _ := strings.Cut(strings.TrimPrefix(src.saved[i], sizeName(size)+" "), " ")
		if _, err := witness.key.Verify(signed + line); err != nil || name != "witness.example/w1" {
			t.Errorf("%s: %v", name, err)
		}
		var want []Stat
		for _, name := range []string{"folder", "hook", "s3", "witness.example/w1"} {
			want = append(want, Stat{Name: name, Witness: strings.HasPrefix(name, "w"), Size: size, At: at, Pushed: int64(i + 1)})
		}
		if d := cmp.Diff(want, p.Stats()); d != "" {
			t.Errorf("stats (-want +got):\n%s", d)
		}
	}
}

// At once after a quiet period, then at most once each Every, always the newest.
func TestPusherKeepsItsPace(t *testing.T) {
	t.Parallel()
	log, src := newLog(t), &source{}
	hook := newReceiver(t, nil)
	p := newPusher(t, src, map[string]Anchor{"hook": open(t, Config{Kind: Webhook, Origin: origin, Address: hook.URL})})
	src.err = fault.New(fault.ErrNotFound, "no_checkpoint", "there is none")
	if next := mustPass(t, p, noon); !next.IsZero() {
		t.Errorf("an empty log asks for a pass at %v", next)
	}
	src.err = nil
	taken := func(want int) {
		t.Helper()
		if got := len(hook.taken()); got != want {
			t.Fatalf("%d checkpoints arrived, want %d", got, want)
		}
	}
	src.set(log, 1)
	mustPass(t, p, noon)
	taken(1)
	for size := int64(2); size < 10; size++ { // within the first ten seconds
		src.set(log, size)
		if next := mustPass(t, p, noon); !next.Equal(noon.Add(10*time.Second - src.now())) {
			t.Errorf("after %v the next pass is asked for at %v", src.now(), next)
		}
		src.pass(time.Second)
	}
	taken(1)
	if s := stat(t, p, "hook"); s.Lag != 8 || s.Size != 1 {
		t.Errorf("%+v", s)
	}
	src.pass(2 * time.Second)
	mustPass(t, p, noon)
	taken(2)
	_, nine := log.at(9)
	if got := hook.taken()[1]; got != nine {
		t.Errorf("what arrived is %q", got)
	}
	src.pass(time.Hour)
	mustPass(t, p, noon) // nothing new
	taken(2)
	src.set(log, 10)
	mustPass(t, p, noon) // after a quiet period
	taken(3)
}

// A failure delays its own destination only, and the newest is what is retried.
func TestPusherWhenADestinationFails(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		reason string
		alarm  bool
	}{
		"refused":   {status(403), "anchor_denied", false},
		"broken":    {status(500), "anchor_unavailable", false},
		"forked":    {status(409), ReasonAnchorFork, true},
		"redirects": {status(302), "anchor_redirects", false},
		"lost":      {lost, "anchor_unreachable", false},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) {
			c, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(c, "garbage")
			c.Close()
		}, "anchor_unreachable", false},
	}
	for what, tt := range cases {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			log, src := newLog(t), &source{}
			good, bad := newReceiver(t, nil), newReceiver(t, tt.answer)
			p := newPusher(t, src, map[string]Anchor{
				"a bad": open(t, Config{Kind: Webhook, Origin: origin, Address: bad.URL + "/token-in-path", Secret: secret.FromString("hush-hush")}),
				"good":  open(t, Config{Kind: Webhook, Origin: origin, Address: good.URL}),
			})
			var out bytes.Buffer
			p.Log = slog.New(slog.NewTextHandler(&out, nil))
			src.set(log, 1)
			next, err := p.Pass(t.Context(), noon)
			if tt.alarm {
				wantFault(t, err, fault.ErrChanged, tt.reason)
			} else if err != nil {
				t.Fatal(err)
			}
			if wait := next.Sub(noon); wait < minRetry/2 || wait > minRetry {
				t.Errorf("it is retried after %v", wait)
			}
			if len(good.taken()) != 1 || len(bad.taken()) != 1 {
				t.Fatalf("%d and %d arrived", len(good.taken()), len(bad.taken()))
			}
			// Not before its time; an alarm stands meanwhile.
			src.set(log, 2)
			src.pass(minRetry / 4)
			if _, err := p.Pass(t.Context(), noon); (err != nil) != tt.alarm {
				t.Errorf("a pass that tries nothing answers %v", err)
			}
			if len(bad.taken()) != 1 {
				t.Error("it was retried before its time")
			}
			src.pass(DefaultEvery)
			_, _ = p.Pass(t.Context(), noon)
			if len(good.taken()) != 2 || len(bad.taken()) != 2 {
				t.Fatalf("%d and %d arrived", len(good.taken()), len(bad.taken()))
			}
			s := stat(t, p, "a bad")
			want := Stat{Name: "a bad", Size: -1, Lag: 2, Failed: 2, InARow: 2, Reason: tt.reason, Alarm: tt.alarm}
			if d := cmp.Diff(want, s, cmpopts.IgnoreFields(Stat{}, "Error")); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			// Alarms are returned, the rest is logged; nothing shows a secret.
			if text := out.String() + s.Error; strings.Contains(text, "hush") || strings.Contains(text, "token-in") {
				t.Errorf("a secret is shown: %s", text)
			}
			if n := strings.Count(out.String(), "push to anchor failed"); tt.alarm && n != 0 || !tt.alarm && n != 2 {
				t.Errorf("%d lines were logged:\n%s", n, out.String())
			}
			bad.set(nil)
			src.pass(maxRetry)
			if next := mustPass(t, p, noon); !next.IsZero() {
				t.Errorf("recovered, and the next pass is asked for at %v", next)
			}
			want = Stat{Name: "a bad", Size: 2, At: noon, Pushed: 1, Failed: 2}
			if d := cmp.Diff(want, stat(t, p, "a bad")); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// A destination that does not answer holds up neither the pass nor the others,
// and gets no second push meanwhile.
func TestPusherWhenADestinationIsSlow(t *testing.T) {
	t.Parallel()
	log, src := newLog(t), &source{}
	release := make(chan struct{})
	var let sync.Once
	free := func() { let.Do(func() { close(release) }) }
	defer free()
	slow := newReceiver(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(free)
	good := newReceiver(t, nil)
	p := newPusher(t, src, map[string]Anchor{
		"slow": open(t, Config{Kind: Webhook, Origin: origin, Address: slow.URL}),
		"good": open(t, Config{Kind: Webhook, Origin: origin, Address: good.URL}),
	})
	p.Patience, p.Timeout = 20*time.Millisecond, time.Hour
	src.set(log, 1)
	if next := mustPass(t, p, noon); !next.Equal(noon.Add(p.Patience)) {
		t.Errorf("the next pass is asked for at %v", next)
	}
	for size := int64(2); size < 5; size++ {
		src.set(log, size)
		src.pass(DefaultEvery)
		mustPass(t, p, noon)
		settled(t, p, "good", size)
		if s := stat(t, p, "slow"); !s.Busy || s.Size != -1 {
			t.Fatalf("%+v", s)
		}
	}
	src.pass(2 * time.Hour) // its deadline by the clock that nobody sets
	mustPass(t, p, noon)
	if s := stat(t, p, "slow"); s.Reason != "anchor_hangs" || !s.Busy {
		t.Errorf("%+v", s)
	}
	free()
	settled(t, p, "slow", 1)
	if s := stat(t, p, "slow"); s.Reason != "" || s.Busy {
		t.Errorf("%+v", s)
	}
	if n := len(slow.taken()); n != 1 {
		t.Errorf("it was sent %d checkpoints at once", n)
	}
	mustPass(t, p, noon)
	settled(t, p, "slow", 4)
}

// settled waits until a destination took a checkpoint.
func settled(t *testing.T, p *Pusher, name string, size int64) {
	t.Helper()
	for stat(t, p, name).Size != size {
		select {
		case <-t.Context().Done():
			t.Fatalf("%+v never took size %d", stat(t, p, name), size)
		case <-time.After(time.Millisecond):
		}
	}
}

func TestPusherWhenADestinationNeverAnswers(t *testing.T) {
	t.Parallel()
	log, src := newLog(t), &source{}
	release := make(chan struct{})
	slow := newReceiver(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	p := newPusher(t, src, map[string]Anchor{"slow": open(t, Config{Kind: Webhook, Origin: origin, Address: slow.URL})})
	p.Timeout = 20 * time.Millisecond
	src.set(log, 1)
	mustPass(t, p, noon)
	if s := stat(t, p, "slow"); s.Reason != "anchor_slow" || s.Busy || s.Failed != 1 {
		t.Errorf("%+v", s)
	}
	// Closing ends what is under way, and is no failure of the destination.
	p2 := newPusher(t, src, p.Anchors)
	p2.Patience = time.Millisecond
	mustPass(t, p2, noon)
	if err := p2.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := stat(t, p2, "slow"); s.Busy || s.Failed != 0 {
		t.Errorf("%+v", s)
	}
	before := len(slow.taken())
	mustPass(t, p2, noon)
	if len(slow.taken()) != before {
		t.Error("a closed Pusher pushes")
	}
}

// A log that was restored from a backup, or rewritten, is told by every kind.
func TestPusherWhenTheLogWentBack(t *testing.T) {
	t.Parallel()
	log, src := newLog(t), &source{}
	witness := newWitness(t, log)
	folder, _ := newFile(t, log)
	hook := open(t, Config{Kind: Webhook, Origin: origin, Address: newReceiver(t, nil).URL})
	src.set(log, 8)
	before := newPusher(t, src, map[string]Anchor{"folder": folder, "hook": hook})
	before.Witnesses, before.Prover, before.Save = []*WitnessClient{witness.client(t)}, log, src.save
	mustPass(t, before, noon)

	for what, tt := range map[string]struct {
		p                     *Pusher
		log                   *testLog
		size                  int64
		folder, hook, witness string
	}{
		"went back, same process":  {p: before, log: log, size: 5, folder: ReasonAnchorAhead, hook: ReasonAnchorAhead, witness: ReasonAnchorAhead},
		"went back, after a start": {log: log, size: 5, folder: ReasonAnchorAhead, witness: ReasonWitnessAhead},
		"forked, after a start":    {log: log.fork(4), size: 8, folder: ReasonAnchorFork, witness: ReasonWitnessFork},
		"forked, same process":     {p: before, log: log.fork(4), size: 8, folder: ReasonAnchorFork, hook: ReasonAnchorFork, witness: ReasonAnchorFork},
	} {
		p := tt.p
		if p == nil {
			p = newPusher(t, src, map[string]Anchor{"folder": folder, "hook": hook})
			p.Witnesses, p.Prover, p.Save = []*WitnessClient{witness.client(t)}, tt.log, src.save
		}
		src.set(tt.log, tt.size)
		src.pass(time.Hour)
		_, err := p.Pass(t.Context(), noon)
		if !errors.Is(err, fault.ErrChanged) {
			t.Errorf("%s: the pass answers %v", what, err)
		}
		got := []string{stat(t, p, "folder").Reason, stat(t, p, "hook").Reason, stat(t, p, "witness.example/w1").Reason}
		if d := cmp.Diff([]string{tt.folder, tt.hook, tt.witness}, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	// Back on the true history, the alarms end.
	src.set(log, 9)
	src.pass(time.Hour)
	mustPass(t, before, noon)
}

// A checkpoint that another server pushed since we looked is no alarm.
func TestPusherWhenAnotherServerIsFaster(t *testing.T) {
	t.Parallel()
	log, src := newLog(t), &source{}
	folder, dir := newFile(t, log)
	other := open(t, Config{Kind: File, Origin: origin, Check: log.check(), Address: filepath.Dir(dir)})
	p := newPusher(t, src, map[string]Anchor{"folder": folder})
	src.set(log, 4)
	var looks atomic.Int64
	p.Latest = func(ctx context.Context) (trail.Checkpoint, string, error) {
		cp, signed, err := src.latest(ctx)
		if looks.Add(1) == 1 {
			src.set(log, 7)
			mustPush(t, other, log, 7)
		}
		return cp, signed, err
	}
	mustPass(t, p, noon)
	if s := stat(t, p, "folder"); s.Size != 7 || s.Failed != 0 {
		t.Errorf("%+v", s)
	}
	// But if the log does not have it, it is.
	mustPush(t, other, log, 9)
	src.set(log, 8)
	src.pass(time.Hour)
	_, err := p.Pass(t.Context(), noon)
	wantFault(t, err, fault.ErrChanged, ReasonAnchorAhead)
}

// A cosignature that could not be saved is asked for again; ErrChanged of the
// database is no alarm.
func TestPusherWhenSavingFails(t *testing.T) {
	t.Parallel()
	log, src := newLog(t), &source{}
	witness := newWitness(t, log)
	p := newPusher(t, src, nil)
	fail := fault.New(fault.ErrChanged, "row_moved", "the row moved")
	p.Witnesses, p.Prover = []*WitnessClient{witness.client(t)}, log
	var calls atomic.Int64
	p.Save = func(ctx context.Context, size int64, witness, line string) error {
		if calls.Add(1) == 1 {
			return fail
		}
		return src.save(ctx, size, witness, line)
	}
	src.set(log, 3)
	mustPass(t, p, noon)
	if s := stat(t, p, "witness.example/w1"); s.Reason != "row_moved" || s.Alarm || s.Size != -1 {
		t.Errorf("%+v", s)
	}
	src.pass(time.Minute)
	mustPass(t, p, noon)
	if s := stat(t, p, "witness.example/w1"); s.Size != 3 || len(src.saved) != 1 {
		t.Errorf("%+v, %q", s, src.saved)
	}
}

type panicking struct{ Anchor }

func (panicking) Push(context.Context, trail.Checkpoint, string) error { panic("broken") }

func TestPusherWhenItIsWrong(t *testing.T) {
	t.Parallel()
	log, src := newLog(t), &source{}
	_, err := (&Pusher{}).Pass(t.Context(), noon)
	wantFault(t, err, fault.ErrInvalid, "pusher_incomplete")
	key, err := trail.ParseWitness(sampleWitness)
	if err != nil {
		t.Fatal(err)
	}
	w := openWitness(t, WitnessConfig{URL: "https://witness.example", Key: key})
	_, err = (&Pusher{Latest: src.latest, Tick: src.now, Witnesses: []*WitnessClient{w}}).Pass(t.Context(), noon)
	wantFault(t, err, fault.ErrInvalid, "pusher_incomplete")
	_, err = (&Pusher{Latest: src.latest, Tick: src.now, Witnesses: []*WitnessClient{w, w}, Prover: log, Save: src.save}).Pass(t.Context(), noon)
	wantFault(t, err, fault.ErrInvalid, "witness_repeated")

	p := newPusher(t, src, map[string]Anchor{"bad": panicking{}})
	src.set(log, 1)
	mustPass(t, p, noon)
	if s := stat(t, p, "bad"); s.Failed != 1 || !strings.Contains(s.Error, "panicked") {
		t.Errorf("%+v", s)
	}
	broken := errors.New("the database is down")
	src.err = broken
	if _, err := p.Pass(t.Context(), noon); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestRetryAfterGrowsAndHasAnEnd(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{1: minRetry, 2: 2 * minRetry, 3: 4 * minRetry, 9: 256 * minRetry, 10: maxRetry, 1 << 40: maxRetry} {
		for range 100 {
			if d := retryAfter(failures); d < want/2 || d > want {
				t.Fatalf("after %d failures %v, want up to %v", failures, d, want)
			}
		}
	}
}

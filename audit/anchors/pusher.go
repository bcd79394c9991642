package anchors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
)

// What a Pusher does unless told otherwise.
const (
	DefaultEvery    = 10 * time.Second
	DefaultTimeout  = 15 * time.Second
	DefaultPatience = 2 * time.Second

	minRetry = time.Second
	maxRetry = 5 * time.Minute
)

// Pusher brings the newest checkpoint to anchors and witnesses. Set the fields,
// then call Pass when there may be a new checkpoint, and now and then; they must
// not change afterwards. All methods are safe for concurrent use.
type Pusher struct {
	// Anchors by name. The Pusher does not close them.
	Anchors map[string]Anchor

	// Witnesses, each with a name of its own. Close does not close them.
	Witnesses []*WitnessClient

	// Latest returns the log's newest checkpoint, and the same signed by the log;
	// fault.ErrNotFound when there is none yet. Required.
	Latest func(ctx context.Context) (cp trail.Checkpoint, signed string, err error)

	// Prover and Save are required with Witnesses. Save keeps a verified
	// cosignature line of the checkpoint at size; it may be called again for the
	// same size and witness, with a newer line.
	Prover Prover
	Save   func(ctx context.Context, size int64, witness, line string) error

	// Tick is a clock that nobody sets: the time since some fixed instant. Required.
	Tick func() time.Duration

	// Log receives failures that are no alarms, and recoveries. Default: nowhere.
	Log *slog.Logger

	// Every is the least time between two pushes to one destination. Default:
	// DefaultEvery. After a quiet period a push is made at once.
	Every time.Duration

	// Timeout ends the context of one push. Default: DefaultTimeout.
	Timeout time.Duration

	// Patience is how long a Pass waits for pushes that it started; they go on after
	// it returned. Default: DefaultPatience.
	Patience time.Duration

	start   sync.Once
	bad     error
	stop    context.CancelFunc
	life    context.Context
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	dests  []*dest
	newest int64 // size of the newest checkpoint that was seen; -1: none yet
}

// Stat describes one destination, for metrics and health.
type Stat struct {
	Name    string
	Witness bool
	Size    int64     // of the last checkpoint that it took; -1: none since the start
	At      time.Time // the `now` of the pass that brought it
	Lag     int64     // how many events the log's newest checkpoint is ahead of Size; of all of them when Size is -1
	Pushed  int64     // checkpoints that it took
	Failed  int64     // attempts that failed
	InARow  int       // failures since the last success
	Reason  string    // of the last failure since: "anchor_fork"; empty when all is well
	Error   string    // its message; holds no secret
	Alarm   bool      // the failure says that there are two histories
	Busy    bool      // a push is under way
}

// alarms are the reasons that say that there are two histories.
var alarms = []string{ReasonAnchorFork, ReasonAnchorAhead, ReasonWitnessFork, ReasonWitnessAhead}

// dest is an anchor or a witness. What stands below push is guarded by Pusher.mu.
type dest struct {
	name    string
	witness bool
	push    func(ctx context.Context, cp trail.Checkpoint, signed string) error

	stat  Stat
	err   error
	taken trail.Checkpoint // the last that it took, when stat.Size >= 0
	next  time.Duration    // by Tick: not before
	begun time.Duration    // by Tick: when the push under way began
	hangs bool             // that push was reported as ignoring its deadline
}

func (p *Pusher) init() error {
	p.start.Do(func() {
		if p.Latest == nil || p.Tick == nil {
			p.bad = fault.Invalid("latest", "pusher_incomplete", "anchors: Latest or Tick is nil: set both")
			return
		}
		if len(p.Witnesses) > 0 && (p.Prover == nil || p.Save == nil) {
			p.bad = fault.Invalid("prover", "pusher_incomplete", "anchors: witnesses need a Prover and Save: set both")
			return
		}
		if p.Log == nil {
			p.Log = slog.New(slog.DiscardHandler)
		}
		if p.Every <= 0 {
			p.Every = DefaultEvery
		}
		if p.Timeout <= 0 {
			p.Timeout = DefaultTimeout
		}
		if p.Patience <= 0 {
			p.Patience = DefaultPatience
		}
		p.newest = -1
		for _, name := range slices.Sorted(maps.Keys(p.Anchors)) {
			p.dests = append(p.dests, &dest{name: name, push: p.Anchors[name].Push})
		}
		names := map[string]bool{}
		for _, w := range p.Witnesses {
			if names[w.Name()] {
				p.bad = fault.Invalid("witnesses", "witness_repeated", "anchors: two witnesses are named %q: give each its own name", w.Name())
				return
			}
			names[w.Name()] = true
			p.dests = append(p.dests, &dest{name: w.Name(), witness: true, push: p.cosign(w)})
		}
		for _, d := range p.dests {
			d.stat = Stat{Name: d.name, Witness: d.witness, Size: -1}
		}
		// Pushes outlive the pass that began them: they end with Close.
		p.life, p.stop = context.WithCancel(context.Background())
	})
	return p.bad
}

// cosign returns the push of a witness, which remembers the size that it holds.
func (p *Pusher) cosign(w *WitnessClient) func(context.Context, trail.Checkpoint, string) error {
	var known int64 // one push at a time
	return func(ctx context.Context, cp trail.Checkpoint, signed string) error {
		if cp.Size == 0 {
			return nil // an empty log has no history to witness
		}
		line, size, err := w.Cosign(ctx, p.Prover, known, cp, signed)
		known = size
		if err != nil {
			return err
		}
		return p.Save(ctx, cp.Size, w.Name(), line)
	}
}

// Pass starts a push of the newest checkpoint to each destination that lacks it
// and whose time has come, and waits for these a little. It says when it wants to
// run again; zero means that all have it.
//
// Its error is what [Pusher.Latest] returned, or the alarms that stand, of kind
// fault.ErrChanged: they are returned by every pass until the destination takes a
// checkpoint again. Other failures are logged and kept in [Pusher.Stats].
func (p *Pusher) Pass(ctx context.Context, now time.Time) (next time.Time, err error) {
	if err := p.init(); err != nil {
		return time.Time{}, err
	}
	cp, signed, err := p.Latest(ctx)
	if errors.Is(err, fault.ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("anchors: read the newest checkpoint: %w", err)
	}
	done := p.begin(now, cp, signed) //nolint:contextcheck // a push outlives the pass: its context ends with Timeout and Close
	patience := time.NewTimer(p.Patience)
	defer patience.Stop()
waiting:
	for _, d := range done {
		select {
		case <-d:
		case <-patience.C:
			break waiting
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		}
	}
	return p.outlook(now, cp)
}

// begin starts the pushes that are due and returns what is closed as each ends.
func (p *Pusher) begin(now time.Time, cp trail.Checkpoint, signed string) []chan struct{} {
	tick := p.Tick()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.newest = cp.Size
	var done []chan struct{}
	for _, d := range p.dests {
		if p.closed || d.stat.Busy || tick < d.next || !d.lacks(cp) {
			continue
		}
		d.stat.Busy, d.hangs, d.begun = true, false, tick
		ended := make(chan struct{})
		done = append(done, ended)
		p.running.Go(func() {
			defer close(ended)
			p.run(now, d, cp, signed)
		})
	}
	return done
}

func (d *dest) lacks(cp trail.Checkpoint) bool { return d.stat.Size < 0 || d.taken != cp }

// run is one push.
func (p *Pusher) run(now time.Time, d *dest, cp trail.Checkpoint, signed string) {
	ctx, cancel := context.WithTimeout(p.life, p.Timeout)
	defer cancel()
	err := p.try(ctx, d, cp, signed)
	if isAhead(err) {
		// Another process may have brought a checkpoint that is newer than ours was:
		// it is an alarm only if the log does not have that one.
		fresh, text, e := p.Latest(ctx)
		if e == nil && fresh != cp {
			cp, err = fresh, p.try(ctx, d, fresh, text)
		}
	}
	if p.life.Err() != nil {
		err = errors.Join(err, context.Cause(p.life)) // stopped: not the destination's fault
	}
	p.settle(now, d, cp, err)
}

// try pushes, and turns a panic into an error: one destination must not end all.
func (p *Pusher) try(ctx context.Context, d *dest, cp trail.Checkpoint, signed string) (err error) {
	p.mu.Lock()
	taken, some := d.taken, d.stat.Size >= 0
	p.mu.Unlock()
	// Places that can't be read do not notice; what they took from us we remember.
	if some && taken.Origin == cp.Origin && taken.Size > cp.Size {
		return fault.New(fault.ErrChanged, ReasonAnchorAhead, "%s took a checkpoint of %s at size %d from this process, and the log's newest is of size %d: this log went back: was an old backup restored?", d.name, cp.Origin, taken.Size, cp.Size)
	}
	if some && taken.Size == cp.Size && taken.Root != cp.Root {
		return fault.New(fault.ErrChanged, ReasonAnchorFork, "%s took another checkpoint of %s at size %d from this process: its root was %v, now it is %v: this log has two histories; keep both, and find out which is true", d.name, cp.Origin, cp.Size, taken.Root, cp.Root)
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("push to %s panicked: %v", d.name, r)
		}
	}()
	return d.push(ctx, cp, signed)
}

func isAhead(err error) bool {
	e, ok := errors.AsType[*fault.Error](err)
	return ok && (e.Reason == ReasonAnchorAhead || e.Reason == ReasonWitnessAhead)
}

// settle notes how a push ended.
func (p *Pusher) settle(now time.Time, d *dest, cp trail.Checkpoint, err error) {
	tick := p.Tick()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &d.stat
	s.Busy = false
	if p.life.Err() != nil && err != nil {
		return
	}
	if err == nil {
		if s.InARow > 0 {
			p.Log.Info("anchor recovered", "name", d.name, "witness", d.witness, "failures", s.InARow, "size", cp.Size)
		}
		d.err, d.taken, d.next = nil, cp, d.begun+p.Every
		s.Size, s.At, s.InARow, s.Reason, s.Error, s.Alarm = cp.Size, now, 0, "", "", false
		s.Pushed++
		return
	}
	s.Failed++
	s.InARow++
	s.Reason, s.Error = "error", err.Error()
	if e, ok := errors.AsType[*fault.Error](err); ok {
		s.Reason = e.Reason
	}
	s.Alarm = slices.Contains(alarms, s.Reason)
	d.err, d.next = err, tick+retryAfter(s.InARow)
	// Alarms are returned by Pass. Of the others in a row the first is logged, the
	// second, the fourth and so on.
	if !s.Alarm && s.InARow&(s.InARow-1) == 0 {
		p.Log.Warn("push to anchor failed", "name", d.name, "witness", d.witness, "err", err, "failures", s.InARow)
	}
}

// retryAfter is the delay after so many failures in a row: it doubles up to
// maxRetry, and its upper half is random so that replicas do not retry together.
func retryAfter(failures int) time.Duration {
	d := min(minRetry<<min(max(failures-1, 0), 16), maxRetry)
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter is no secret
}

// outlook says when something is due again, and which alarms stand.
func (p *Pusher) outlook(now time.Time, cp trail.Checkpoint) (time.Time, error) {
	tick := p.Tick()
	p.mu.Lock()
	defer p.mu.Unlock()
	var next time.Time
	var standing []error
	for _, d := range p.dests {
		if d.stat.Alarm {
			standing = append(standing, d.err)
		}
		if d.stat.Busy && !d.hangs && tick-d.begun > p.Timeout+p.Patience {
			d.hangs = true
			d.stat.Reason, d.stat.Error = "anchor_hangs", fmt.Sprintf("the push to %s ignores its deadline of %v and is waited for: is its file system there?", d.name, p.Timeout)
			p.Log.Warn("push to anchor hangs", "name", d.name, "witness", d.witness, "timeout", p.Timeout)
		}
		if !d.lacks(cp) {
			continue
		}
		wait := max(d.next-tick, 0)
		if d.stat.Busy {
			wait = p.Patience // it may have failed by then
		}
		if at := now.Add(wait); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next, errors.Join(standing...)
}

// Stats returns the state of each destination: anchors by name, then witnesses.
func (p *Pusher) Stats() []Stat {
	if p.init() != nil {
		return nil // Pass reports it
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Stat
	for _, d := range p.dests {
		s := d.stat
		s.Lag = max(p.newest, 0) - max(s.Size, 0)
		out = append(out, s)
	}
	return out
}

// wait returns once no push is under way, or when ctx ends. No pass may run.
func (p *Pusher) wait(ctx context.Context) error {
	idle := make(chan struct{})
	go func() { p.running.Wait(); close(idle) }()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("anchors: pushes are still under way: %w", context.Cause(ctx))
	}
}

// Close ends the pushes under way and waits for them until ctx ends. No push
// starts afterwards.
func (p *Pusher) Close(ctx context.Context) error {
	if p.init() != nil {
		return nil //nolint:nilerr // nothing was started; Pass reports why
	}
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	return p.wait(ctx)
}

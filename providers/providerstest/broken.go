package providerstest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// Fault is what goes wrong with a call.
type Fault string

// The faults. Those of the first group leave the effect undone.
const (
	Reject   Fault = "rejected"  // the outcome of the error is that of the name
	Refuse   Fault = "refused"   //
	Move     Fault = "moved"     //
	Throttle Fault = "throttled" //
	Drop     Fault = "dropped"   // the request is lost: unknown
	Hang     Fault = "hanging"   // it is lost, and the call ends with its context: unknown
	Panic    Fault = "panic"     // before the effect

	Lose      Fault = "reply lost"    // done, and the call says unknown
	HangDone  Fault = "reply hanging" // done, and the call ends with its context: unknown
	PanicDone Fault = "panic, done"   // behind the effect

	// Old shows the state from before the last change: Verify says rejected, and Read
	// of a store returns what was served before the last Publish through this Plan.
	Old Fault = "old state"
)

// Undone are the faults of calls that had no effect.
func Undone() []Fault { return []Fault{Reject, Refuse, Move, Throttle, Drop, Hang, Panic} }

// Done are the faults of calls that had theirs.
func Done() []Fault { return []Fault{Lose, HangDone, PanicDone} }

// Step says which calls go wrong: from the call From (1 is the first) of Method, Times
// calls (0: one; negative: all). Method is a name of the contract: "Apply".
type Step struct {
	Method string
	From   int
	Times  int
	Fault  Fault
}

func (s Step) hits(method string, nth int) bool {
	from := max(s.From, 1)
	switch {
	case s.Method != method || nth < from:
		return false
	case s.Times < 0:
		return true
	}
	return nth < from+max(s.Times, 1)
}

// Plan is shared by all handles that it was given to, and counts their calls together.
// Safe for concurrent use.
type Plan struct {
	Steps []Step

	// Before and After, if set, see every call, at the moments when a process may be
	// killed; also of calls that go wrong, After only of those that were done.
	Before, After func(method string, nth int)

	mu    sync.Mutex
	calls map[string]int
	was   map[string]providers.Served // by path
}

// Calls is how many calls of method there were.
func (p *Plan) Calls(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[method]
}

func (p *Plan) next(method string) (nth int, f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls == nil {
		p.calls = map[string]int{}
	}
	p.calls[method]++
	nth = p.calls[method]
	for _, s := range p.Steps {
		if s.hits(method, nth) {
			return nth, s.Fault
		}
	}
	return nth, ""
}

// around does one call as planned.
func around[T any](ctx context.Context, p *Plan, method string, call func(f Fault) (T, error)) (T, error) {
	var none T
	nth, f := p.next(method)
	if p.Before != nil {
		p.Before(method, nth)
	}
	if err := f.before(ctx, method, nth); err != nil {
		return none, err
	}
	got, err := call(f)
	if p.After != nil {
		p.After(method, nth)
	}
	if err != nil {
		return none, err
	}
	if err := f.behind(ctx, method, nth); err != nil {
		return none, err
	}
	return got, nil
}

func (f Fault) before(ctx context.Context, method string, nth int) error {
	kind := map[Fault]error{Reject: fault.ErrRejected, Refuse: fault.ErrDenied, Move: fault.ErrStale, Throttle: fault.ErrLimited, Drop: fault.ErrUnavailable}[f]
	switch {
	case kind != nil:
		return fault.New(kind, "planned", "call %d of %s: %s, as planned", nth, method, f)
	case f == Hang:
		return hang(ctx, method, nth)
	case f == Panic:
		panic(fmt.Sprintf("call %d of %s: as planned, before its effect", nth, method))
	}
	return nil
}

func (f Fault) behind(ctx context.Context, method string, nth int) error {
	switch f { //nolint:exhaustive // the others are no faults of a reply
	case Lose:
		return fault.New(fault.ErrUnavailable, "planned", "call %d of %s: the reply was lost, as planned", nth, method)
	case HangDone:
		return hang(ctx, method, nth)
	case PanicDone:
		panic(fmt.Sprintf("call %d of %s: as planned, behind its effect", nth, method))
	}
	return nil
}

func hang(ctx context.Context, method string, nth int) error {
	<-ctx.Done()
	return fmt.Errorf("call %d of %s: no answer, as planned: %w", nth, method, ctx.Err())
}

// BrokenTarget is t with the faults of p.
func BrokenTarget(t providers.Target, p *Plan) providers.Target { return &brokenTarget{t, p} }

// BrokenStore is s with the faults of p.
func BrokenStore(s providers.Store, p *Plan) providers.Store { return &brokenStore{s, p} }

type brokenTarget struct {
	providers.Target
	plan *Plan
}

type nothing struct{}

func (b *brokenTarget) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	return around(ctx, b.plan, "Check", func(Fault) ([]providers.Finding, error) { return b.Target.Check(ctx, c) })
}

func (b *brokenTarget) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	return around(ctx, b.plan, "Prepare", func(Fault) (providers.Change, error) { return b.Target.Prepare(ctx, c) })
}

func (b *brokenTarget) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	return around(ctx, b.plan, "Apply", func(Fault) (providers.Held, error) { return b.Target.Apply(ctx, c) })
}

func (b *brokenTarget) Verify(ctx context.Context, c providers.Change, h providers.Held) error {
	_, err := around(ctx, b.plan, "Verify", func(f Fault) (nothing, error) {
		if f == Old {
			return nothing{}, fault.New(fault.ErrRejected, "planned", "log in as %q: the change is not seen yet, as planned", h.Account)
		}
		return nothing{}, b.Target.Verify(ctx, c, h)
	})
	return err
}

func (b *brokenTarget) Applied(ctx context.Context, c providers.Change, account string) (providers.Applied, error) {
	return around(ctx, b.plan, "Applied", func(Fault) (providers.Applied, error) { return b.Target.Applied(ctx, c, account) })
}

func (b *brokenTarget) Usage(ctx context.Context, c providers.Change, h providers.Held) (providers.Evidence, error) {
	return around(ctx, b.plan, "Usage", func(Fault) (providers.Evidence, error) { return b.Target.Usage(ctx, c, h) })
}

func (b *brokenTarget) Retire(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
	_, err := around(ctx, b.plan, "Retire", func(Fault) (nothing, error) { return nothing{}, b.Target.Retire(ctx, c, h, end) })
	return err
}

func (b *brokenTarget) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	_, err := around(ctx, b.plan, "Revoke", func(Fault) (nothing, error) { return nothing{}, b.Target.Revoke(ctx, c, h) })
	return err
}

type brokenStore struct {
	providers.Store
	plan *Plan
}

func (b *brokenStore) Check(ctx context.Context, path string) ([]providers.Finding, error) {
	return around(ctx, b.plan, "Check", func(Fault) ([]providers.Finding, error) { return b.Store.Check(ctx, path) })
}

func (b *brokenStore) Read(ctx context.Context, path string) (providers.Served, error) {
	return around(ctx, b.plan, "Read", func(f Fault) (providers.Served, error) {
		if f == Old {
			b.plan.mu.Lock()
			defer b.plan.mu.Unlock()
			return b.plan.was[path], nil
		}
		return b.Store.Read(ctx, path)
	})
}

func (b *brokenStore) Stage(ctx context.Context, path string, v providers.Version) error {
	_, err := around(ctx, b.plan, "Stage", func(Fault) (nothing, error) { return nothing{}, b.Store.Stage(ctx, path, v) })
	return err
}

func (b *brokenStore) Publish(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
	return around(ctx, b.plan, "Publish", func(Fault) (string, error) {
		was, err := b.Store.Read(ctx, path)
		if err != nil {
			return "", err
		}
		name, err := b.Store.Publish(ctx, path, v, prior)
		if err == nil && name != was.Version {
			b.plan.mu.Lock()
			defer b.plan.mu.Unlock()
			if b.plan.was == nil {
				b.plan.was = map[string]providers.Served{}
			}
			b.plan.was[path] = was
		}
		return name, err
	})
}

func (b *brokenStore) Discard(ctx context.Context, path string, v providers.Version) error {
	_, err := around(ctx, b.plan, "Discard", func(Fault) (nothing, error) { return nothing{}, b.Store.Discard(ctx, path, v) })
	return err
}

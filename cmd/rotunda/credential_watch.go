package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	// shortGrace is how long a grace may be that --watch waits for.
	shortGrace = 5 * time.Minute

	// lostFor is how long a server may be gone while its rotations are watched, and
	// askAgain how soon it is asked again.
	lostFor  = time.Minute
	askAgain = 500 * time.Millisecond
)

// follower shows a rotation as it goes on.
type follower struct {
	c     *cli
	bar   *stepBar
	toEnd bool

	next    rotundav1.RotationStep // the first step that was not shown; 0: not known
	last    *rotundav1.Rotation
	said    string
	settled error
	ended   bool
}

// watchRotation shows a rotation until it has ended or waits for a person; without toEnd
// until consumers read the new value, if its grace is long. A server that goes away for a
// short while is asked again: another replica may take the rotation over.
func (c *cli) watchRotation(ctx context.Context, to *conn, id string, toEnd bool) error {
	return c.followRun(ctx, to, id, &follower{c: c, bar: c.newStepBar(), toEnd: toEnd})
}

// watchNew is watchRotation for a rotation that has just begun: all of its steps are shown.
func (c *cli) watchNew(ctx context.Context, to *conn, id string) error {
	return c.followRun(ctx, to, id, &follower{c: c, bar: c.newStepBar(), next: rotundav1.RotationStep_ROTATION_STEP_PLAN})
}

func (c *cli) followRun(ctx context.Context, to *conn, id string, f *follower) error {
	defer f.bar.clear()
	var lostAt time.Time
	for {
		err := f.read(ctx, to, id)
		switch {
		case f.ended:
			f.bar.clear()
			return f.settled
		case ctx.Err() != nil:
			f.bar.clear()
			c.complain("the rotation goes on without you")
			return nil
		case connect.CodeOf(err) != connect.CodeUnavailable && connect.IsWireError(err):
			return &callError{to, err}
		}
		now := c.now()
		if f.last == nil && err != nil {
			return &callError{to, err}
		}
		if lostAt.IsZero() || f.bar.heard.After(lostAt) {
			lostAt = now
		}
		if now.Sub(lostAt) > lostFor {
			return fmt.Errorf("the server does not answer any more; the rotation goes on when it does: %s", c.suggest("credential show", f.last.GetCredential()))
		}
		select {
		case <-ctx.Done():
		case <-time.After(askAgain):
		}
	}
}

// read reads one stream to its end.
func (f *follower) read(ctx context.Context, to *conn, id string) error {
	stream, err := to.rotations.WatchRotation(ctx, connect.NewRequest(&rotundav1.WatchRotationRequest{Rotation: id}))
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		f.bar.heard = f.c.now()
		if err := f.show(stream.Msg()); err != nil {
			f.ended, f.settled = true, err
		}
		if f.ended {
			return nil
		}
	}
	return stream.Err()
}

// show prints what is new, and decides whether it was the last.
func (f *follower) show(msg *rotundav1.WatchRotationResponse) error {
	r := msg.GetRotation()
	f.last = r
	if err := f.passed(r); err != nil {
		return err
	}
	text := runText(f.c.newPage(), r)
	if text != f.said {
		f.said = text
		f.bar.clear()
		if err := f.c.printNext(msg, func(p *page) { p.stepLine(r.GetStep(), text) }); err != nil {
			return err
		}
	}
	f.bar.show(r)
	switch r.GetStep() {
	case rotundav1.RotationStep_ROTATION_STEP_FAILED:
		f.ended, f.settled = true, f.failure(r)
	case rotundav1.RotationStep_ROTATION_STEP_DONE:
		f.ended = true
		if r.GetOutcome() != rotundav1.RotationOutcome_ROTATION_OUTCOME_ROTATED && !r.GetBack() {
			f.settled = fmt.Errorf("rotation %s of %s has ended: %s", r.GetId(), r.GetCredential(), outcomeWord(r))
		}
	case rotundav1.RotationStep_ROTATION_STEP_GRACE:
		if end := r.GetGraceEndsAt(); !f.toEnd && end != nil && end.AsTime().Sub(f.c.now()) > shortGrace {
			f.ended = true
			f.bar.clear()
			if f.c.output.value == "table" {
				return f.c.write([]byte("look next  " + f.c.suggest("credential show", r.GetCredential()) + "\n"))
			}
		}
	default:
	}
	return nil
}

// passed shows the steps up to the publication that went by between two messages: the server
// sends the newest state, and a rotation can be fast.
func (f *follower) passed(r *rotundav1.Rotation) error {
	step := r.GetStep()
	if r.GetBack() || step == rotundav1.RotationStep_ROTATION_STEP_FAILED ||
		step == rotundav1.RotationStep_ROTATION_STEP_DONE && r.GetOutcome() != rotundav1.RotationOutcome_ROTATION_OUTCOME_ROTATED {
		f.next = 0
		return nil
	}
	if f.next > 0 && f.c.output.value == "table" {
		f.bar.clear()
		p := f.c.newPage()
		for s := f.next; s < min(step, rotundav1.RotationStep_ROTATION_STEP_GRACE); s++ {
			p.stepLine(s, runText(p, &rotundav1.Rotation{Step: s}))
		}
		if err := p.flush(); err != nil {
			return err
		}
	}
	f.next = max(f.next, step+1)
	return nil
}

func (p *page) stepLine(step rotundav1.RotationStep, text string) {
	p.hang(p.now.UTC().Format("15:04:05Z")+"  "+fmt.Sprintf("%-8s", stepWord(step))+"  ", text)
}

// failure says what happened, and what to type next.
func (f *follower) failure(r *rotundav1.Rotation) error {
	p := f.c.newPage()
	p.decide(r)
	return errors.New(strings.TrimRight("the rotation waits for you\n"+p.b.String(), "\n"))
}

// stepBar is a bar on the terminal, rewritten in place.
type stepBar struct {
	c     *cli
	on    bool
	began time.Time
	heard time.Time
}

func (c *cli) newStepBar() *stepBar {
	now := c.now()
	return &stepBar{c: c, on: c.barWidth > 0 && c.output.value == "table", began: now, heard: now}
}

func (b *stepBar) show(r *rotundav1.Rotation) {
	if !b.on {
		return
	}
	step := r.GetStep()
	if step == rotundav1.RotationStep_ROTATION_STEP_FAILED {
		step = r.GetFailedStep()
	}
	const last = int(rotundav1.RotationStep_ROTATION_STEP_DONE)
	at := min(max(int(step)-1, 0), last-1)
	b.write(at, last-1, "rotating", stepWord(r.GetStep())+"  "+roughly(b.c.now().Sub(b.began)))
}

func (b *stepBar) write(done, total int, head, text string) {
	if !b.on {
		return
	}
	if room := min(b.c.barWidth-1-len(head)-6-len(text), 40); room >= 6 {
		full := done * room / max(total, 1)
		head += "  [" + strings.Repeat("#", full) + strings.Repeat(".", room-full) + "]"
	}
	line := []rune(head + "  " + text)
	fmt.Fprint(b.c.stderr, "\r\x1b[K"+string(line[:min(len(line), max(b.c.barWidth-1, 0))]))
}

// clear takes the bar away.
func (b *stepBar) clear() {
	if b.on {
		fmt.Fprint(b.c.stderr, "\r\x1b[K")
	}
}

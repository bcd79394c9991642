package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/audit/trail"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// The pauses between two attempts to get a lost stream back.
const (
	firstPause   = 250 * time.Millisecond
	longestPause = 15 * time.Second
)

// pauses counts attempts that brought nothing.
type pauses struct{ failed int }

// wait waits before the next attempt, or until ctx is done.
func (b *pauses) wait(ctx context.Context) error {
	d := longestPause
	if b.failed < 6 {
		d = firstPause << b.failed
	}
	b.failed++
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// lost reports whether a stream ended for a reason that another attempt may
// overcome: the connection broke, or the server said that it is away.
func lost(err error) bool {
	if err == nil {
		return true
	}
	if _, ok := errors.AsType[*callError](err); !ok {
		return false
	}
	if !connect.IsWireError(err) {
		code := connect.CodeOf(err)
		return code != connect.CodeUnauthenticated && code != connect.CodePermissionDenied
	}
	code := connect.CodeOf(err)
	return code == connect.CodeUnavailable || code == connect.CodeResourceExhausted || code == connect.CodeAborted
}

// why says what broke a stream.
func (to *conn) why(err error) string {
	if err == nil {
		return "the server ended the stream"
	}
	call := &callError{to, err}
	if connect.IsWireError(err) {
		return err.Error()
	}
	return call.unreachable(connect.NewError(connect.CodeOf(err), err))
}

// follow prints the newest events, then each new one, until it is interrupted.
// It goes on where it was after a lost connection.
func (c *cli) follow(ctx context.Context, to *conn, filter *rotundav1.Filter, limit int, index bool) error {
	style := eventStyle{index: index}
	if c.output.value == "table" {
		style.names = c.actors(ctx, to)
	}
	next, err := logSize(ctx, to)
	if err != nil {
		return err
	}
	list, _, err := events(ctx, to, filter, limit)
	if err != nil {
		return err
	}
	slices.Reverse(list)
	// What came since the size was asked for is sent once more.
	printed := map[string]bool{}
	show := func(e *rotundav1.Event) error {
		if printed[e.GetId()] {
			delete(printed, e.GetId())
			return nil
		}
		return c.printNext(e, func(p *page) { p.event(e, style) })
	}
	for _, e := range list {
		if err := show(e); err != nil {
			return err
		}
		if e.GetIndex() < 0 || e.GetIndex() >= next {
			printed[e.GetId()] = true
		}
	}
	var again pauses
	for {
		before := next
		next, err = c.followFrom(ctx, to, filter, next, show)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an interrupt is the way to end it
		}
		if !lost(err) {
			return err
		}
		if next > before {
			again.failed = 0
		}
		if again.failed == 0 {
			c.complain("the connection was lost (%s): going on as soon as it is back", to.why(err))
		}
		if err := again.wait(ctx); err != nil {
			return nil //nolint:nilerr // likewise
		}
	}
}

// followFrom prints events from a leaf index on until the stream ends, and
// returns where to go on. Errors that are not of the stream are final.
func (c *cli) followFrom(ctx context.Context, to *conn, filter *rotundav1.Filter, next int64, show func(*rotundav1.Event) error) (int64, error) {
	stream, err := to.audit.FollowEvents(ctx, connect.NewRequest(&rotundav1.FollowEventsRequest{Index: &next, Filter: filter}))
	if err != nil {
		return next, &callError{to, err}
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		for _, e := range stream.Msg().GetEvents() {
			if err := show(e); err != nil {
				return next, err
			}
		}
		next = max(next, stream.Msg().GetNext())
	}
	if err := stream.Err(); err != nil {
		return next, &callError{to, err}
	}
	return next, nil
}

// logSize returns how many leaves the log has.
func logSize(ctx context.Context, to *conn) (int64, error) {
	res, err := call(ctx, to, to.audit.GetCheckpoint, &rotundav1.GetCheckpointRequest{}, "")
	if err != nil {
		if connect.CodeOf(err) == connect.CodeNotFound {
			return 0, nil // the first event makes one
		}
		return 0, err
	}
	text, _ := cutNote(res.GetCheckpoint())
	cp, err := trail.ParseCheckpoint(text)
	return cp.Size, err
}

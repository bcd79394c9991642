package server

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/bundle"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// Bounds of the trail's streams.
const (
	maxFollowers         = 200 // each looks into the database once a second
	maxFollowersPerToken = 20
	maxExports           = 16 // by RPC and HTTP
	maxExportsPerToken   = 4

	maxChunk      = 500     // records of one message
	maxChunkBytes = 1 << 20 // and its bytes, but for one record that has more
	heartbeat     = 15 * time.Second
)

// seats bounds streams of one sort.
type seats struct {
	what           string // "follower", "export"
	most, perToken int
	taken          perToken
}

// everyone is the id under which all seats are counted; no token has it.
const everyone = ""

// take counts a stream of a token, or refuses it. give undoes it.
func (s *seats) take(token string) (give func(), err error) {
	if !s.taken.take(everyone, s.most) {
		return nil, fault.New(fault.ErrLimited, "too_many_"+s.what+"s", "this replica has %d %ss already: use another replica, or try again later", s.most, s.what)
	}
	if !s.taken.take(token, s.perToken) {
		s.taken.give(everyone)
		return nil, fault.New(fault.ErrLimited, "too_many_"+s.what+"s", "this token has %d %ss on this replica already: close some", s.perToken, s.what)
	}
	return func() { s.taken.give(token); s.taken.give(everyone) }, nil
}

// long prepares a request that may take longer than the server's timeouts: it
// goes on until ctx ends, which it does when the caller's token does. The end is
// to be called with what the request came to.
func (s *Server) long(ctx context.Context) (context.Context, func(error) error, error) {
	c := callerOf(ctx)
	// The timeout for reading counts too: over HTTP/1.1 it ends the context of a
	// request that is still answered.
	if err := c.socket.SetReadDeadline(time.Time{}); err != nil {
		return nil, nil, fmt.Errorf("lift the deadline of a request: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go s.recheckToken(ctx, c.token, cancel)
	return ctx, func(err error) error {
		defer cancel(nil)
		_ = c.within(s.patience) // for the stream's last words; whoever is gone needs none
		if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
			return cause
		}
		return err
	}, nil
}

// finds reports whether an event is one that a query finds. Erased values match
// nothing, as in a list.
func finds(q *audit.Query, e *trail.Event) bool {
	if !q.Since.IsZero() && e.Time.Before(q.Since) || !q.Until.IsZero() && !e.Time.Before(q.Until) {
		return false
	}
	whole := func(is, want string) bool { return want == "" || is == want }
	part := func(is, want, sep string) bool {
		return whole(is, want) || strings.HasSuffix(want, sep) && strings.HasPrefix(is, want)
	}
	return part(e.Action, q.Action, ".") && part(e.Resource, q.Resource, "/") && whole(e.Outcome, q.Outcome) &&
		whole(e.Actor, q.Actor) && whole(e.Partner, q.Partner) && whole(e.RequestID, q.RequestID) && whole(e.Address, q.Address)
}

// follower sends to one who follows. Its heartbeat tells him how far the trail
// was read for him when nothing in it was for him.
type follower struct {
	s      *Server
	c      caller
	stream *connect.ServerStream[rotundav1.FollowEventsResponse]

	mu   sync.Mutex
	next int64 // all before it were sent, or do not match
	beat bool  // something was sent since the last beat
}

// send sends records that match, and where to go on.
func (f *follower) send(records []*rotundav1.Event, next int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) && n < maxChunk && (n == 0 || size+proto.Size(records[n]) <= maxChunkBytes) {
			size += proto.Size(records[n])
			n++
		}
		m := &rotundav1.FollowEventsResponse{Events: records[:n], Next: records[n-1].GetIndex() + 1}
		if records = records[n:]; len(records) == 0 {
			m.Next = next
		}
		if err := f.write(m); err != nil {
			return err
		}
	}
	f.next = next
	return nil
}

// write sends one message. The caller holds mu, once there are beats.
func (f *follower) write(m *rotundav1.FollowEventsResponse) error {
	f.beat = true
	return f.s.send(f.c, func() error { return f.stream.Send(m) })
}

// beats tells now and then where to go on, also when it is where it was: a caller
// learns so that the stream is alive.
func (f *follower) beats(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(f.s.heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.mu.Lock()
		var err error
		if !f.beat && ctx.Err() == nil {
			err = f.write(&rotundav1.FollowEventsResponse{Next: f.next})
		}
		f.beat = false
		f.mu.Unlock()
		if err != nil {
			cancel(err)
			return
		}
	}
}

func (a *auditService) FollowEvents(ctx context.Context, req *connect.Request[rotundav1.FollowEventsRequest], stream *connect.ServerStream[rotundav1.FollowEventsResponse]) error {
	c := callerOf(ctx)
	give, err := a.s.followers.take(c.token.ID)
	if err != nil {
		return err
	}
	defer give()
	size, err := a.s.Trail.Head(ctx)
	if err != nil {
		return err
	}
	from := size
	if req.Msg.Index != nil {
		if from = req.Msg.GetIndex(); from > size {
			return fault.Invalid("index", "index_range", "follow events from %d on: the trail has %d: a larger index is of another trail, or this one was cut", from, size)
		}
	}
	q := queryFrom(req.Msg.GetFilter())
	ctx, end, err := a.s.long(ctx)
	if err != nil {
		return err
	}
	f := &follower{s: a.s, c: c, stream: stream, next: from}
	// It tells at once where it begins: a caller that loses it goes on there.
	if err := f.write(&rotundav1.FollowEventsResponse{Next: from}); err != nil {
		return end(err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	beats := make(chan struct{})
	go func() { defer close(beats); f.beats(ctx, cancel) }()
	err = a.s.Trail.Follow(ctx, from, func(records []trail.Record, next int64) error {
		var found []*rotundav1.Event
		for i := range records {
			if finds(&q, &records[i].Event) {
				found = append(found, followedTo(&records[i]))
			}
		}
		return f.send(found, next)
	})
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	<-beats // a stream must not be written to once its handler has returned
	return end(err)
}

func (a *auditService) ExportEvents(ctx context.Context, req *connect.Request[rotundav1.ExportEventsRequest], stream *connect.ServerStream[rotundav1.ExportEventsResponse]) error {
	c := callerOf(ctx)
	give, err := a.s.exports.take(c.token.ID)
	if err != nil {
		return err
	}
	defer give()
	ctx, end, err := a.s.long(ctx)
	if err != nil {
		return err
	}
	e := &exportStream{send: func(m *rotundav1.ExportEventsResponse) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		return a.s.send(c, func() error { return stream.Send(m) })
	}}
	err = a.s.Trail.Export(ctx, audit.ExportRequest{
		Query: queryFrom(req.Msg.GetFilter()), From: req.Msg.GetIndex(), Size: req.Msg.GetSize(), Omitted: req.Msg.GetOmitted(),
	}, e)
	if err == nil {
		err = e.flush()
	}
	return end(err)
}

// exportStream packs an export into messages. It is an audit.ExportSink.
type exportStream struct {
	send  func(*rotundav1.ExportEventsResponse) error
	items []*rotundav1.ExportItem
	bytes int
}

// Head implements audit.ExportSink.
func (e *exportStream) Head(h bundle.Head) error {
	m := &rotundav1.ExportHead{
		Origin: h.Origin, Checkpoint: h.Checkpoint, Keys: h.Keys, Handovers: h.Handovers, Begin: h.Begin, End: h.End, Filter: h.Filter, Evidence: h.Evidence,
	}
	for i := range h.Left {
		m.Left = append(m.Left, h.Left[i][:])
	}
	for i := range h.Right {
		m.Right = append(m.Right, h.Right[i][:])
	}
	return e.send(&rotundav1.ExportEventsResponse{Item: &rotundav1.ExportEventsResponse_Head{Head: m}})
}

// Record implements audit.ExportSink.
func (e *exportStream) Record(r *trail.Record) error {
	return e.add(&rotundav1.ExportItem{Item: &rotundav1.ExportItem_Record{Record: recordTo(r)}})
}

// Gap implements audit.ExportSink. A gap with many leaves becomes several.
func (e *exportStream) Gap(g bundle.Gap) error {
	if len(g.Entries) == 0 {
		m := &rotundav1.Gap{Begin: g.Begin, End: g.End, Why: g.Why}
		for _, h := range g.Hashes {
			m.Hashes = append(m.Hashes, append([]byte(nil), h[:]...))
		}
		return e.add(&rotundav1.ExportItem{Item: &rotundav1.ExportItem_Gap{Gap: m}})
	}
	for len(g.Entries) > 0 {
		n, size := 0, 0
		m := &rotundav1.Gap{Begin: g.Begin, Why: g.Why}
		for n < len(g.Entries) && n < maxChunk && (n == 0 || size+len(g.Entries[n]) <= maxChunkBytes/4) {
			m.Entries = append(m.Entries, bytes.Clone(g.Entries[n]))
			size += len(g.Entries[n])
			n++
		}
		g.Begin, g.Entries = g.Begin+int64(n), g.Entries[n:]
		m.End = g.Begin
		if err := e.add(&rotundav1.ExportItem{Item: &rotundav1.ExportItem_Gap{Gap: m}}); err != nil {
			return err
		}
	}
	return nil
}

func (e *exportStream) add(item *rotundav1.ExportItem) error {
	size := proto.Size(item)
	if len(e.items) == maxChunk || len(e.items) > 0 && e.bytes+size > maxChunkBytes {
		if err := e.flush(); err != nil {
			return err
		}
	}
	e.items, e.bytes = append(e.items, item), e.bytes+size
	return nil
}

func (e *exportStream) flush() error {
	if len(e.items) == 0 {
		return nil
	}
	m := &rotundav1.ExportEventsResponse{Item: &rotundav1.ExportEventsResponse_Items{Items: &rotundav1.ExportItems{Items: e.items}}}
	e.items, e.bytes = nil, 0
	return e.send(m)
}

package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// The stream breaks twice, in two ways, and an event comes between the list and
// the stream: each event is printed once, in order.
func TestFollowWhenTheStreamBreaks(t *testing.T) {
	l := sampleLog(9)
	s := newService(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		switch req.(type) {
		case *v1.GetCheckpointRequest:
			return &v1.GetCheckpointResponse{Checkpoint: l.checkpoint(6)}, nil
		case *v1.ListEventsRequest: // 6 came meanwhile, and 7 waits for its index
			waits := l.event(7)
			waits.Index = -1
			return &v1.ListEventsResponse{Events: []*v1.Event{waits, l.event(6), l.event(5)}}, nil
		}
		return nil, nil
	}
	var from []int64
	s.follow = func(ctx context.Context, req *v1.FollowEventsRequest, stream *connect.ServerStream[v1.FollowEventsResponse]) error {
		if req.GetFilter().GetAction() != "store." {
			t.Errorf("it asked for %v", req)
		}
		from = append(from, req.GetIndex())
		switch len(from) {
		case 1:
			if err := stream.Send(&v1.FollowEventsResponse{Events: []*v1.Event{l.event(6), l.event(7)}, Next: 8}); err != nil {
				return err
			}
			panic(http.ErrAbortHandler)
		case 2:
			return stream.Send(&v1.FollowEventsResponse{Next: 8}) // it stops in good order
		default:
			if err := stream.Send(&v1.FollowEventsResponse{Events: []*v1.Event{l.event(8)}, Next: 9}); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		}
	}
	p, stdout, stderr := newProcess(t, s)
	p.stdout = writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), eventID(8)) {
			cancel()
		}
		return stdout.Write(b)
	})
	if code := run(ctx, []string{"audit", "list", "-f", "--action", "store.", "-o", "json"}, p); code != exitDone {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var ids []string
	for line := range strings.Lines(stdout.String()) {
		var e struct{ ID string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	if diff := cmp.Diff([]string{eventID(5), eventID(6), eventID(7), eventID(8)}, ids); diff != "" {
		t.Error(diff)
	}
	// The 8 of the first stream reaches the client or is lost with the connection.
	if len(from) != 3 || from[0] != 6 || from[2] != 8 {
		t.Errorf("the streams began at %v", from)
	}
	if n := strings.Count(stderr.String(), "the connection was lost"); n == 0 {
		t.Errorf("it said nothing of the lost connection: %s", stderr)
	}
}

func TestFollowWhenItIsRefused(t *testing.T) {
	s := newService(t)
	r := execute(t, s, nil, "audit", "list", "-f")
	if r.code != exitRefused || !strings.Contains(r.stderr, "a signer may not read the trail") {
		t.Errorf("%+v", r)
	}
	r = execute(t, nil, nil, "audit", "list", "-f", "--server", "http://127.0.0.1:1")
	if r.code != exitUnreachable {
		t.Errorf("%+v", r)
	}
	s.follow = func(_ context.Context, _ *v1.FollowEventsRequest, stream *connect.ServerStream[v1.FollowEventsResponse]) error {
		return stream.Send(&v1.FollowEventsResponse{Events: []*v1.Event{{Id: "new", Index: 20}}, Next: 21})
	}
	r = execute(t, s, func(p *process) {
		p.stdout = writerFunc(func([]byte) (int, error) { return 0, http.ErrBodyNotAllowed })
	}, "audit", "list", "-f")
	if r.code != exitRefused || !strings.Contains(r.stderr, "writing the result") {
		t.Errorf("stdout is closed: %+v", r)
	}
}

func TestListWhenEventsAreErasedOrOpen(t *testing.T) {
	l := sampleLog(9)
	s := newService(t)
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		switch req.(type) {
		case *v1.ListEventsRequest:
			waits := l.event(8)
			waits.Index = -1
			erased := l.event(2)
			erased.Actor, erased.Reason, erased.Erased = "", "", []string{"actor", "reason"}
			return &v1.ListEventsResponse{Events: []*v1.Event{waits, l.event(5), l.event(4), l.event(3), erased}}, nil
		case *v1.ListOpenIntentsRequest:
			return &v1.ListOpenIntentsResponse{Events: []*v1.Event{l.event(5)}}, nil
		}
		return nil, nil
	}
	r := execute(t, s, nil, "audit", "list", "--index")
	golden(t, "audit-marks", r.stdout)
	s.reply = func(_ context.Context, req proto.Message) (proto.Message, error) {
		switch req.(type) {
		case *v1.ListEventsRequest:
			return &v1.ListEventsResponse{Events: []*v1.Event{l.event(4), l.event(3)}}, nil
		case *v1.ListOpenIntentsRequest:
			t.Error("the list tells that the intent has an end, and the server was asked all the same")
		}
		return nil, nil
	}
	if r := execute(t, s, nil, "audit", "list"); strings.Contains(r.stdout, "(open)") {
		t.Error(r.stdout)
	}
}

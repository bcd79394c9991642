package main

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// examineTrail checks that events are recorded, and that their copies leave.
func examineTrail(ctx context.Context, to *conn, now time.Time) []finding {
	s, err := call(ctx, to, to.audit.GetTrailStatus, &rotundav1.GetTrailStatusRequest{}, "")
	if connect.CodeOf(err) == connect.CodePermissionDenied {
		return []finding{{"trail", "skip", "this token may not read it", "use a token of an auditor or an operator"}}
	}
	if err != nil {
		return []finding{{"trail", "fail", messageOf(err), ""}}
	}
	look := "look at `" + to.program + " audit status`"
	trail := finding{"trail", "ok", "it has " + counted(s.GetSize(), "event"), ""}
	since := s.GetWaitingSince()
	switch {
	case s.GetStopped() != "":
		trail = finding{"trail", "fail", "it is stopped, and changes are refused: " + s.GetStopped(), look}
	case s.GetWaiting() > 0 && since != nil && now.Sub(since.AsTime()) > slow:
		trail = finding{"trail", "warn", fmt.Sprintf("%s for a place in it, the oldest for %s", waits(s.GetWaiting()), roughly(now.Sub(since.AsTime()))), look}
	}
	out := []finding{trail}
	place := func(kind, name, state, why string) {
		if state == "failing" {
			out = append(out, finding{kind + " " + name, "warn", "it fails: " + firstOf(why, "the server's log says why"), ""})
		}
	}
	for _, x := range s.GetSinks() {
		place("sink", x.GetName(), x.GetState(), x.GetLastError())
	}
	for _, x := range s.GetAnchors() {
		place("anchor", x.GetName(), x.GetState(), x.GetLastError())
	}
	for _, x := range s.GetWitnesses() {
		place("witness", x.GetName(), x.GetState(), x.GetLastError())
	}
	return out
}

func waits(n int64) string {
	if n == 1 {
		return "1 event waits"
	}
	return thousands(n) + " events wait"
}

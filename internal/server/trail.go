package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// auditService implements rotunda.v1.AuditService. Its streams are in streams.go.
type auditService struct{ s *Server }

func (a *auditService) ListEvents(ctx context.Context, req *connect.Request[rotundav1.ListEventsRequest]) (*connect.Response[rotundav1.ListEventsResponse], error) {
	m := req.Msg
	events, next, err := audit.List(ctx, a.s.DB, audit.Query{
		Since: instant(m.GetSince()), Until: instant(m.GetUntil()), Actor: m.GetActor(), Action: m.GetAction(), Resource: m.GetResource(),
		Partner: m.GetPartner(), Outcome: m.GetOutcome(), RequestID: m.GetRequestId(), Address: m.GetAddress(),
		Limit: int(m.GetPageSize()), Page: m.GetPageToken(),
	})
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListEventsResponse{NextPageToken: next}
	if res.Events, err = eventsTo(events); err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

func (a *auditService) ProveEvent(ctx context.Context, req *connect.Request[rotundav1.ProveEventRequest]) (*connect.Response[rotundav1.ProveEventResponse], error) {
	p, err := a.s.Trail.Prove(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	record, err := format.AppendJSON(nil, &p.Record)
	if err != nil {
		return nil, fmt.Errorf("prove event %s: %w", p.Record.ID, err)
	}
	text, err := trail.FormatProof(trail.Proof{Extra: record, Index: p.Record.Index, Hashes: p.Inclusion, Checkpoint: p.Checkpoint})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ProveEventResponse{Proof: text}), nil
}

func (a *auditService) GetCheckpoint(ctx context.Context, req *connect.Request[rotundav1.GetCheckpointRequest]) (*connect.Response[rotundav1.GetCheckpointResponse], error) {
	_, signed, at, err := a.s.Trail.CheckpointAt(ctx, req.Msg.GetSize())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.GetCheckpointResponse{Checkpoint: signed, SignedAt: timestamp(at)}), nil
}

func (a *auditService) ProveConsistency(ctx context.Context, req *connect.Request[rotundav1.ProveConsistencyRequest]) (*connect.Response[rotundav1.ProveConsistencyResponse], error) {
	c, signed, _, err := a.s.Trail.CheckpointAt(ctx, req.Msg.GetNewSize())
	if err != nil {
		return nil, err
	}
	proof, err := a.s.Trail.Consistency(ctx, req.Msg.GetOldSize(), c.Size)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ProveConsistencyResponse{Checkpoint: signed}
	for i := range proof {
		res.Hashes = append(res.Hashes, proof[i][:])
	}
	return connect.NewResponse(res), nil
}

func (a *auditService) ListTrailKeys(ctx context.Context, _ *connect.Request[rotundav1.ListTrailKeysRequest]) (*connect.Response[rotundav1.ListTrailKeysResponse], error) {
	keys, handovers, err := a.s.Trail.Keys(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ListTrailKeysResponse{Keys: keys, Handovers: handovers}), nil
}

// begunBefore is how old a start without an end is when the caller does not say:
// younger ones are still at it.
const begunBefore = time.Minute

func (a *auditService) ListOpenIntents(ctx context.Context, req *connect.Request[rotundav1.ListOpenIntentsRequest]) (*connect.Response[rotundav1.ListOpenIntentsResponse], error) {
	before := instant(req.Msg.GetBefore())
	if before.IsZero() {
		before = a.s.DB.Now().Add(-begunBefore)
	}
	events, err := audit.OpenIntents(ctx, a.s.DB, before, int(req.Msg.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListOpenIntentsResponse{}
	if res.Events, err = eventsTo(events); err != nil {
		return nil, err
	}
	return connect.NewResponse(res), nil
}

func (a *auditService) GetTrailStatus(ctx context.Context, _ *connect.Request[rotundav1.GetTrailStatusRequest]) (*connect.Response[rotundav1.GetTrailStatusResponse], error) {
	st, err := a.s.Trail.Status(ctx)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.GetTrailStatusResponse{
		Origin: st.Origin, Size: st.Size, Waiting: st.Waiting, WaitingSince: timestamp(st.WaitingSince), Stopped: st.Stopped,
		Checkpoint: st.Checkpoint, CheckpointAt: timestamp(st.CheckpointAt), Pruned: st.Pruned, RetentionSeconds: int64(st.Retention / time.Second), Key: st.Key,
	}
	if res.Sinks, err = a.s.listSinks(ctx, st.Size); err != nil {
		return nil, err
	}
	if res.Anchors, err = a.s.listAnchors(ctx); err != nil {
		return nil, err
	}
	if res.Witnesses, err = a.s.listWitnesses(ctx); err != nil {
		return nil, err
	}
	holds, err := a.s.Trail.Holds(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range holds {
		res.Holds = append(res.Holds, holdTo(h))
	}
	return connect.NewResponse(res), nil
}

// eventTo writes an event that was listed. An erased detail is empty; one that
// holds nothing is {}.
func eventTo(e audit.Event) (*rotundav1.Event, error) {
	detail := ""
	if e.Detail != nil {
		b, err := json.Marshal(e.Detail)
		if err != nil {
			return nil, fmt.Errorf("encode the detail of event %s: %w", e.ID, err)
		}
		detail = string(b)
	}
	return &rotundav1.Event{
		Id: e.ID, Time: timestamppb.New(e.Time), Actor: e.Actor, Action: e.Action, Resource: e.Resource, Partner: e.Partner,
		Outcome: e.Outcome, Reason: e.Reason, RequestId: e.RequestID, Address: e.Address, Detail: detail, Count: e.Count,
		Index: e.Index, Intent: e.Intent, Erased: e.Erased,
	}, nil
}

func eventsTo(events []audit.Event) ([]*rotundav1.Event, error) {
	var out []*rotundav1.Event
	for _, e := range events {
		m, err := eventTo(e)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// followedTo writes an event as a follower gets it.
func followedTo(r *trail.Record) *rotundav1.Event {
	m := &rotundav1.Event{
		Id: r.ID, Time: timestamppb.New(r.Time), Actor: r.Actor, Action: r.Action, Resource: r.Resource, Partner: r.Partner,
		Outcome: r.Outcome, Reason: r.Reason, RequestId: r.RequestID, Address: r.Address, Detail: r.Detail, Count: r.Count,
		Index: r.Index, Intent: r.Intent,
	}
	for f := range trail.NumFields {
		if r.IsErased(f) {
			m.Erased = append(m.Erased, f.String())
		}
	}
	return m
}

// recordTo writes a record as it is proved. It shares nothing with r.
func recordTo(r *trail.Record) *rotundav1.Record {
	e := followedTo(r)
	m := &rotundav1.Record{
		Event: e, Hash: append([]byte(nil), r.Hash[:]...), Detail: e.Detail, Salt: append([]byte(nil), r.Salt...),
		Checks: append([]byte(nil), r.Checks...), TimeMicros: r.Time.UnixMicro(),
	}
	e.Detail = "" // it is in the record, once
	for f := range trail.NumFields {
		if r.IsErased(f) {
			if m.Erased == nil {
				m.Erased = map[string][]byte{}
			}
			m.Erased[f.String()] = append([]byte(nil), r.Erased[f][:]...)
		}
	}
	return m
}

func holdTo(h audit.Hold) *rotundav1.Hold {
	return &rotundav1.Hold{Name: h.Name, Reason: h.Reason, Partner: h.Partner, Resource: h.Resource, CreatedAt: timestamp(h.CreatedAt)}
}

// queryFrom reads a filter.
func queryFrom(f *rotundav1.Filter) audit.Query {
	return audit.Query{
		Since: instant(f.GetSince()), Until: instant(f.GetUntil()), Actor: f.GetActor(), Action: f.GetAction(), Resource: f.GetResource(),
		Partner: f.GetPartner(), Outcome: f.GetOutcome(), RequestID: f.GetRequestId(), Address: f.GetAddress(),
	}
}

func (a *auditService) GetEvidence(ctx context.Context, req *connect.Request[rotundav1.GetEvidenceRequest]) (*connect.Response[rotundav1.GetEvidenceResponse], error) {
	r, err := audit.Evidence(ctx, a.s.DB, req.Msg.GetResource(), instant(req.Msg.GetSince()))
	if err != nil {
		return nil, err
	}
	if !r.Named {
		// That nothing was accepted of what never was would reassure, and prove nothing.
		return nil, fault.New(fault.ErrNotFound, "resource_not_found", "evidence: no event names %q: see `rotunda audit list` for how resources are written", req.Msg.GetResource()).On("resource")
	}
	res := &rotundav1.GetEvidenceResponse{
		LastAccepted: timestamp(r.LastAccepted), Accepted: r.Accepted, Denied: r.Denied, CoveredUntil: timestamp(r.Until),
		Boundary: r.Boundary, Various: r.Various, Replicas: int32(r.Replicas), MoreGaps: r.MoreGaps, Unused: r.Unused(),
	}
	for _, g := range r.Gaps {
		res.Gaps = append(res.Gaps, &rotundav1.CoverageGap{Replica: g.Replica, From: timestamp(g.From), Until: timestamp(g.To), Lost: g.Lost})
	}
	return connect.NewResponse(res), nil
}

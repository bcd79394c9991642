package main

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func (s *service) ProveEvent(ctx context.Context, r *connect.Request[v1.ProveEventRequest]) (*connect.Response[v1.ProveEventResponse], error) {
	return respond[v1.ProveEventRequest, v1.ProveEventResponse](ctx, s, r)
}

func (s *service) GetCheckpoint(ctx context.Context, r *connect.Request[v1.GetCheckpointRequest]) (*connect.Response[v1.GetCheckpointResponse], error) {
	return respond[v1.GetCheckpointRequest, v1.GetCheckpointResponse](ctx, s, r)
}

func (s *service) ProveConsistency(ctx context.Context, r *connect.Request[v1.ProveConsistencyRequest]) (*connect.Response[v1.ProveConsistencyResponse], error) {
	return respond[v1.ProveConsistencyRequest, v1.ProveConsistencyResponse](ctx, s, r)
}

func (s *service) ListTrailKeys(ctx context.Context, r *connect.Request[v1.ListTrailKeysRequest]) (*connect.Response[v1.ListTrailKeysResponse], error) {
	return respond[v1.ListTrailKeysRequest, v1.ListTrailKeysResponse](ctx, s, r)
}

func (s *service) ListOpenIntents(ctx context.Context, r *connect.Request[v1.ListOpenIntentsRequest]) (*connect.Response[v1.ListOpenIntentsResponse], error) {
	return respond[v1.ListOpenIntentsRequest, v1.ListOpenIntentsResponse](ctx, s, r)
}

func (s *service) GetEvidence(ctx context.Context, r *connect.Request[v1.GetEvidenceRequest]) (*connect.Response[v1.GetEvidenceResponse], error) {
	return respond[v1.GetEvidenceRequest, v1.GetEvidenceResponse](ctx, s, r)
}

func (s *service) GetTrailStatus(ctx context.Context, r *connect.Request[v1.GetTrailStatusRequest]) (*connect.Response[v1.GetTrailStatusResponse], error) {
	return respond[v1.GetTrailStatusRequest, v1.GetTrailStatusResponse](ctx, s, r)
}

func (s *service) CreateSink(ctx context.Context, r *connect.Request[v1.CreateSinkRequest]) (*connect.Response[v1.CreateSinkResponse], error) {
	return respond[v1.CreateSinkRequest, v1.CreateSinkResponse](ctx, s, r)
}

func (s *service) ListSinks(ctx context.Context, r *connect.Request[v1.ListSinksRequest]) (*connect.Response[v1.ListSinksResponse], error) {
	return respond[v1.ListSinksRequest, v1.ListSinksResponse](ctx, s, r)
}

func (s *service) DeleteSink(ctx context.Context, r *connect.Request[v1.DeleteSinkRequest]) (*connect.Response[v1.DeleteSinkResponse], error) {
	return respond[v1.DeleteSinkRequest, v1.DeleteSinkResponse](ctx, s, r)
}

func (s *service) CreateAnchor(ctx context.Context, r *connect.Request[v1.CreateAnchorRequest]) (*connect.Response[v1.CreateAnchorResponse], error) {
	return respond[v1.CreateAnchorRequest, v1.CreateAnchorResponse](ctx, s, r)
}

func (s *service) ListAnchors(ctx context.Context, r *connect.Request[v1.ListAnchorsRequest]) (*connect.Response[v1.ListAnchorsResponse], error) {
	return respond[v1.ListAnchorsRequest, v1.ListAnchorsResponse](ctx, s, r)
}

func (s *service) DeleteAnchor(ctx context.Context, r *connect.Request[v1.DeleteAnchorRequest]) (*connect.Response[v1.DeleteAnchorResponse], error) {
	return respond[v1.DeleteAnchorRequest, v1.DeleteAnchorResponse](ctx, s, r)
}

func (s *service) CreateWitness(ctx context.Context, r *connect.Request[v1.CreateWitnessRequest]) (*connect.Response[v1.CreateWitnessResponse], error) {
	return respond[v1.CreateWitnessRequest, v1.CreateWitnessResponse](ctx, s, r)
}

func (s *service) ListWitnesses(ctx context.Context, r *connect.Request[v1.ListWitnessesRequest]) (*connect.Response[v1.ListWitnessesResponse], error) {
	return respond[v1.ListWitnessesRequest, v1.ListWitnessesResponse](ctx, s, r)
}

func (s *service) DeleteWitness(ctx context.Context, r *connect.Request[v1.DeleteWitnessRequest]) (*connect.Response[v1.DeleteWitnessResponse], error) {
	return respond[v1.DeleteWitnessRequest, v1.DeleteWitnessResponse](ctx, s, r)
}

func (s *service) AddCosignature(ctx context.Context, r *connect.Request[v1.AddCosignatureRequest]) (*connect.Response[v1.AddCosignatureResponse], error) {
	return respond[v1.AddCosignatureRequest, v1.AddCosignatureResponse](ctx, s, r)
}

func (s *service) RotateTrailKey(ctx context.Context, r *connect.Request[v1.RotateTrailKeyRequest]) (*connect.Response[v1.RotateTrailKeyResponse], error) {
	return respond[v1.RotateTrailKeyRequest, v1.RotateTrailKeyResponse](ctx, s, r)
}

func (s *service) RestartTrail(ctx context.Context, r *connect.Request[v1.RestartTrailRequest]) (*connect.Response[v1.RestartTrailResponse], error) {
	return respond[v1.RestartTrailRequest, v1.RestartTrailResponse](ctx, s, r)
}

func (s *service) SetRetention(ctx context.Context, r *connect.Request[v1.SetRetentionRequest]) (*connect.Response[v1.SetRetentionResponse], error) {
	return respond[v1.SetRetentionRequest, v1.SetRetentionResponse](ctx, s, r)
}

func (s *service) CreateHold(ctx context.Context, r *connect.Request[v1.CreateHoldRequest]) (*connect.Response[v1.CreateHoldResponse], error) {
	return respond[v1.CreateHoldRequest, v1.CreateHoldResponse](ctx, s, r)
}

func (s *service) ListHolds(ctx context.Context, r *connect.Request[v1.ListHoldsRequest]) (*connect.Response[v1.ListHoldsResponse], error) {
	return respond[v1.ListHoldsRequest, v1.ListHoldsResponse](ctx, s, r)
}

func (s *service) ReleaseHold(ctx context.Context, r *connect.Request[v1.ReleaseHoldRequest]) (*connect.Response[v1.ReleaseHoldResponse], error) {
	return respond[v1.ReleaseHoldRequest, v1.ReleaseHoldResponse](ctx, s, r)
}

func (s *service) EraseFields(ctx context.Context, r *connect.Request[v1.EraseFieldsRequest]) (*connect.Response[v1.EraseFieldsResponse], error) {
	return respond[v1.EraseFieldsRequest, v1.EraseFieldsResponse](ctx, s, r)
}

func (s *service) FollowEvents(ctx context.Context, r *connect.Request[v1.FollowEventsRequest], stream *connect.ServerStream[v1.FollowEventsResponse]) error {
	s.record(r.Msg, r.Header())
	if s.follow == nil {
		return connect.NewError(connect.CodePermissionDenied, errors.New("a signer may not read the trail"))
	}
	return s.follow(ctx, r.Msg, stream)
}

func (s *service) ExportEvents(_ context.Context, r *connect.Request[v1.ExportEventsRequest], stream *connect.ServerStream[v1.ExportEventsResponse]) error {
	s.record(r.Msg, r.Header())
	if s.export == nil {
		return connect.NewError(connect.CodePermissionDenied, errors.New("a signer may not read the trail"))
	}
	return s.export(r.Msg, stream)
}

func siemSink() *v1.Sink {
	return &v1.Sink{Name: "syslog-siem", Kind: "syslog", Address: "tls://siem:6514", Format: "json", CreatedAt: at(-day), Next: 9, State: "ok"}
}

func auditorAnchor() *v1.Anchor {
	return &v1.Anchor{Name: "auditor", Kind: "s3", Address: "trail-anchors", Size: 9, PushedAt: at(-3 * time.Second), State: "ok", HasSecret: true}
}

func aWitness() *v1.Witness {
	return &v1.Witness{Name: "witness.example", Vkey: "witness.example+5f7a1b2c+BNlu", Url: "https://witness.example", Size: 8, CosignedAt: at(-time.Minute), State: "failing", LastError: "503 Service Unavailable"}
}

func aHold() *v1.Hold {
	return &v1.Hold{Name: "case-2026-7", Partner: "acme", Reason: "litigation hold", CreatedAt: at(-40 * day)}
}

// usualTrail answers as a server with a small log would.
func usualTrail(req proto.Message) proto.Message {
	l := sampleLog(9)
	switch req := req.(type) {
	case *v1.ProveEventRequest:
		return &v1.ProveEventResponse{Proof: l.prove(2)}
	case *v1.GetCheckpointRequest:
		return &v1.GetCheckpointResponse{Checkpoint: l.checkpoint(l.size()), SignedAt: at(-time.Second)}
	case *v1.ProveConsistencyRequest:
		return &v1.ProveConsistencyResponse{Hashes: l.consistency(req.GetOldSize(), req.GetNewSize()), Checkpoint: l.checkpoint(req.GetNewSize())}
	case *v1.ListTrailKeysRequest:
		return &v1.ListTrailKeysResponse{Keys: l.keys, Handovers: l.handovers}
	case *v1.ListOpenIntentsRequest:
		return &v1.ListOpenIntentsResponse{Events: []*v1.Event{l.event(5)}}
	case *v1.GetEvidenceRequest:
		return &v1.GetEvidenceResponse{Denied: map[string]int64{"revoked": 1204}, CoveredUntil: at(-time.Minute)}
	case *v1.GetTrailStatusRequest:
		return &v1.GetTrailStatusResponse{
			Origin: l.origin, Size: 9, Waiting: 2, WaitingSince: at(-100 * time.Millisecond), Checkpoint: l.checkpoint(9), CheckpointAt: at(-2 * time.Second), Pruned: 2,
			RetentionSeconds: 400 * 86400, Sinks: []*v1.Sink{siemSink()}, Anchors: []*v1.Anchor{auditorAnchor()}, Witnesses: []*v1.Witness{aWitness()}, Holds: []*v1.Hold{aHold()}, Key: l.keys[0],
		}
	case *v1.CreateSinkRequest:
		return &v1.CreateSinkResponse{Sink: siemSink()}
	case *v1.ListSinksRequest:
		behind := siemSink()
		behind.Name, behind.Kind, behind.Address, behind.State, behind.Next, behind.Lag = "splunk", "splunk", "https://splunk:8088", "failing", 4, 5
		behind.LastError = "403 Forbidden: Invalid token"
		return &v1.ListSinksResponse{Sinks: []*v1.Sink{behind, siemSink()}}
	case *v1.DeleteSinkRequest:
		return &v1.DeleteSinkResponse{}
	case *v1.CreateAnchorRequest:
		return &v1.CreateAnchorResponse{Anchor: auditorAnchor()}
	case *v1.ListAnchorsRequest:
		return &v1.ListAnchorsResponse{Anchors: []*v1.Anchor{auditorAnchor()}}
	case *v1.DeleteAnchorRequest:
		return &v1.DeleteAnchorResponse{}
	case *v1.CreateWitnessRequest:
		return &v1.CreateWitnessResponse{Witness: aWitness()}
	case *v1.ListWitnessesRequest:
		return &v1.ListWitnessesResponse{Witnesses: []*v1.Witness{aWitness()}}
	case *v1.DeleteWitnessRequest:
		return &v1.DeleteWitnessResponse{}
	case *v1.AddCosignatureRequest:
		return &v1.AddCosignatureResponse{Witnesses: []string{"witness.example"}}
	case *v1.RotateTrailKeyRequest:
		return &v1.RotateTrailKeyResponse{Key: l.keys[0]}
	case *v1.RestartTrailRequest:
		return &v1.RestartTrailResponse{Key: l.keys[0], Origin: l.origin + "~k3x9"}
	case *v1.SetRetentionRequest:
		return &v1.SetRetentionResponse{Due: 1204, Held: 17, WaitsFor: "the sink splunk"}
	case *v1.CreateHoldRequest:
		return &v1.CreateHoldResponse{Hold: aHold()}
	case *v1.ListHoldsRequest:
		return &v1.ListHoldsResponse{Holds: []*v1.Hold{aHold()}}
	case *v1.ReleaseHoldRequest:
		return &v1.ReleaseHoldResponse{}
	case *v1.EraseFieldsRequest:
		return &v1.EraseFieldsResponse{Events: 42}
	default:
		return usualPartner(req)
	}
}

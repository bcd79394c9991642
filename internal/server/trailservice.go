package server

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// trailService implements rotunda.v1.TrailService.
type trailService struct{ s *Server }

// The states of sinks, anchors and witnesses, as one process sees them.
const (
	stateOK      = "ok"
	stateFailing = "failing"
	stateUnknown = "unknown" // another replica runs it, or it has not begun
)

func stateOf(known, ok bool) string {
	switch {
	case !known:
		return stateUnknown
	case ok:
		return stateOK
	}
	return stateFailing
}

func sinkTo(s Sink) *rotundav1.Sink {
	return &rotundav1.Sink{
		Name: s.Name, Kind: s.Kind, Address: s.Address, Format: s.Format, Ca: s.CA, ServerName: s.ServerName, ClientCert: s.ClientCert,
		Options: s.Options, CreatedAt: timestamp(s.CreatedAt), HasSecret: s.HasSecret, Next: s.Next,
	}
}

func (s *Server) listSinks(ctx context.Context, size int64) ([]*rotundav1.Sink, error) {
	sinks, err := s.Places.Sinks(ctx)
	if err != nil {
		return nil, err
	}
	running := s.Places.Running().Sinks
	var out []*rotundav1.Sink
	for _, sink := range sinks {
		m := sinkTo(sink)
		state, known := running[sink.Name]
		m.State, m.LastError, m.Lag = stateOf(known, state.OK), state.LastError, max(0, size-sink.Next)
		out = append(out, m)
	}
	return out, nil
}

func anchorTo(a Anchor) *rotundav1.Anchor {
	return &rotundav1.Anchor{
		Name: a.Name, Kind: a.Kind, Address: a.Address, Prefix: a.Prefix, Region: a.Region, Endpoint: a.Endpoint, PathStyle: a.PathStyle,
		AccessKey: a.AccessKey, RetainDays: int32(a.RetainDays), Ca: a.CA, NoLatest: a.NoLatest, CreatedAt: timestamp(a.CreatedAt), HasSecret: a.HasSecret,
	}
}

func (s *Server) listAnchors(ctx context.Context) ([]*rotundav1.Anchor, error) {
	anchors, err := s.Places.Anchors(ctx)
	if err != nil {
		return nil, err
	}
	running := s.Places.Running().Anchors
	var out []*rotundav1.Anchor
	for _, a := range anchors {
		m := anchorTo(a)
		state, known := running[a.Name]
		m.State, m.LastError = stateOf(known, state.OK), state.LastError
		m.Size, m.PushedAt = max(0, state.Size), timestamp(state.At)
		out = append(out, m)
	}
	return out, nil
}

func witnessTo(w audit.Witness) *rotundav1.Witness {
	return &rotundav1.Witness{
		Name: w.Name, Vkey: w.VKey, Url: w.URL, Size: w.Size, CosignedAt: timestamp(w.CosignedAt), CreatedAt: timestamp(w.CreatedAt),
	}
}

func (s *Server) listWitnesses(ctx context.Context) ([]*rotundav1.Witness, error) {
	list, err := s.Trail.Witnesses(ctx)
	if err != nil {
		return nil, err
	}
	running := s.Places.Running().Witnesses
	var out []*rotundav1.Witness
	for _, w := range list {
		m := witnessTo(w)
		state, known := running[w.Name]
		m.State, m.LastError = stateOf(known, state.OK), state.LastError
		out = append(out, m)
	}
	return out, nil
}

func secretFrom(text string) secret.Value {
	if text == "" {
		return secret.Value{}
	}
	return secret.FromString(text)
}

func (t *trailService) CreateSink(ctx context.Context, req *connect.Request[rotundav1.CreateSinkRequest]) (*connect.Response[rotundav1.CreateSinkResponse], error) {
	m := req.Msg.GetSink()
	s := NewSink{Index: -1, Sink: Sink{
		Name: m.GetName(), Kind: m.GetKind(), Address: m.GetAddress(), Format: m.GetFormat(), CA: m.GetCa(), ServerName: m.GetServerName(),
		ClientCert: m.GetClientCert(), Options: m.GetOptions(),
	}}
	if req.Msg.Index != nil {
		s.Index = req.Msg.GetIndex()
	}
	s.Secret, s.ClientKey = secretFrom(req.Msg.GetSecret()), secretFrom(req.Msg.GetClientKey())
	defer s.Secret.Destroy()
	defer s.ClientKey.Destroy()
	made, err := t.s.Places.CreateSink(ctx, s)
	if err != nil {
		return nil, err
	}
	out := sinkTo(made)
	out.State = stateUnknown
	return connect.NewResponse(&rotundav1.CreateSinkResponse{Sink: out}), nil
}

func (t *trailService) ListSinks(ctx context.Context, _ *connect.Request[rotundav1.ListSinksRequest]) (*connect.Response[rotundav1.ListSinksResponse], error) {
	size, err := t.s.Trail.Head(ctx)
	if err != nil {
		return nil, err
	}
	sinks, err := t.s.listSinks(ctx, size)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ListSinksResponse{Sinks: sinks}), nil
}

func (t *trailService) DeleteSink(ctx context.Context, req *connect.Request[rotundav1.DeleteSinkRequest]) (*connect.Response[rotundav1.DeleteSinkResponse], error) {
	if err := t.s.Places.DeleteSink(ctx, req.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.DeleteSinkResponse{}), nil
}

func (t *trailService) CreateAnchor(ctx context.Context, req *connect.Request[rotundav1.CreateAnchorRequest]) (*connect.Response[rotundav1.CreateAnchorResponse], error) {
	m := req.Msg.GetAnchor()
	a := NewAnchor{Anchor: Anchor{
		Name: m.GetName(), Kind: m.GetKind(), Address: m.GetAddress(), Prefix: m.GetPrefix(), Region: m.GetRegion(), Endpoint: m.GetEndpoint(),
		PathStyle: m.GetPathStyle(), AccessKey: m.GetAccessKey(), RetainDays: int(m.GetRetainDays()), CA: m.GetCa(), NoLatest: m.GetNoLatest(),
	}}
	a.Secret = secretFrom(req.Msg.GetSecret())
	defer a.Secret.Destroy()
	made, err := t.s.Places.CreateAnchor(ctx, a)
	if err != nil {
		return nil, err
	}
	out := anchorTo(made)
	out.State = stateUnknown
	return connect.NewResponse(&rotundav1.CreateAnchorResponse{Anchor: out}), nil
}

func (t *trailService) ListAnchors(ctx context.Context, _ *connect.Request[rotundav1.ListAnchorsRequest]) (*connect.Response[rotundav1.ListAnchorsResponse], error) {
	anchors, err := t.s.listAnchors(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ListAnchorsResponse{Anchors: anchors}), nil
}

func (t *trailService) DeleteAnchor(ctx context.Context, req *connect.Request[rotundav1.DeleteAnchorRequest]) (*connect.Response[rotundav1.DeleteAnchorResponse], error) {
	if err := t.s.Places.DeleteAnchor(ctx, req.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.DeleteAnchorResponse{}), nil
}

func (t *trailService) CreateWitness(ctx context.Context, req *connect.Request[rotundav1.CreateWitnessRequest]) (*connect.Response[rotundav1.CreateWitnessResponse], error) {
	w, err := trail.ParseWitness(req.Msg.GetVkey())
	if err != nil {
		return nil, fault.Invalid("vkey", "vkey_malformed", "add a witness: %w", err)
	}
	made, err := t.s.Places.CreateWitness(ctx, audit.Witness{Name: w.Name(), VKey: w.String(), URL: req.Msg.GetUrl()})
	if err != nil {
		return nil, err
	}
	out := witnessTo(made)
	out.State = stateUnknown
	return connect.NewResponse(&rotundav1.CreateWitnessResponse{Witness: out}), nil
}

func (t *trailService) ListWitnesses(ctx context.Context, _ *connect.Request[rotundav1.ListWitnessesRequest]) (*connect.Response[rotundav1.ListWitnessesResponse], error) {
	list, err := t.s.listWitnesses(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ListWitnessesResponse{Witnesses: list}), nil
}

func (t *trailService) DeleteWitness(ctx context.Context, req *connect.Request[rotundav1.DeleteWitnessRequest]) (*connect.Response[rotundav1.DeleteWitnessResponse], error) {
	if err := t.s.Trail.DeleteWitness(ctx, req.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.DeleteWitnessResponse{}), nil
}

// AddCosignature keeps the cosignatures of known witnesses on a checkpoint that
// this log signed. It is no event: a cosignature stands beside a checkpoint and
// changes nothing that the trail says, and an event would make another checkpoint
// to be cosigned, without end. So it is also taken while the trail is stopped.
func (t *trailService) AddCosignature(ctx context.Context, req *connect.Request[rotundav1.AddCosignatureRequest]) (*connect.Response[rotundav1.AddCosignatureResponse], error) {
	const attempt = "add a cosignature: "
	text, lines, ok := strings.Cut(req.Msg.GetCheckpoint(), "\n\n")
	text += "\n"
	c, err := trail.ParseCheckpoint(text)
	if !ok || err != nil {
		return nil, fault.Invalid("checkpoint", "checkpoint_malformed", attempt+"this is no signed checkpoint: send the text that `rotunda audit checkpoint` gives, with the witness's line")
	}
	_, ours, _, err := t.s.Trail.CheckpointAt(ctx, max(c.Size, 1))
	if err != nil {
		return nil, err
	}
	if body, _, _ := strings.Cut(ours, "\n\n"); body+"\n" != text {
		return nil, fault.New(fault.ErrRejected, "checkpoint_differs", attempt+"this checkpoint of %d events is not the one that this log signed: if a witness has seen it, there are two histories of the log: find out who holds its key", c.Size).On("checkpoint")
	}
	witnesses, err := t.s.Trail.Witnesses(ctx)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.AddCosignatureResponse{}
	for _, known := range witnesses {
		w, err := trail.ParseWitness(known.VKey)
		if err != nil {
			return nil, fmt.Errorf("%sread witness %s: %w", attempt, known.Name, err)
		}
		line := signatureLine(lines, w)
		if line == "" {
			continue
		}
		// With this line alone, so that exactly what is kept was verified.
		at, err := w.Verify(text + "\n" + line + "\n")
		if err != nil {
			return nil, fault.Invalid("checkpoint", "cosignature_wrong", attempt+"%w", err)
		}
		if err := t.s.Trail.AddCosignature(ctx, c.Size, w.Name(), line, at); err != nil {
			return nil, err
		}
		res.Witnesses = append(res.Witnesses, w.Name())
	}
	if len(res.Witnesses) == 0 {
		return nil, fault.Invalid("checkpoint", "witness_unknown", attempt+"no line is by a witness of this log: see `rotunda audit witness list`")
	}
	return connect.NewResponse(res), nil
}

// signatureLine returns a witness's first line among those of a signed note, or "".
func signatureLine(lines string, w trail.Witness) string {
	_, rest, _ := strings.Cut(w.String(), "+")
	id, _, _ := strings.Cut(rest, "+")
	hash, err := hex.DecodeString(id)
	if err != nil {
		return ""
	}
	for line := range strings.SplitSeq(lines, "\n") {
		sig, ok := strings.CutPrefix(line, "— "+w.Name()+" ")
		if !ok {
			continue
		}
		if raw, err := base64.StdEncoding.DecodeString(sig); err == nil && len(raw) > 4 && binary.BigEndian.Uint32(raw) == binary.BigEndian.Uint32(hash) {
			return line
		}
	}
	return ""
}

func (t *trailService) RotateTrailKey(ctx context.Context, req *connect.Request[rotundav1.RotateTrailKeyRequest]) (*connect.Response[rotundav1.RotateTrailKeyResponse], error) {
	key, err := t.s.Trail.RotateKey(ctx, req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RotateTrailKeyResponse{Key: key}), nil
}

func (t *trailService) RestartTrail(ctx context.Context, req *connect.Request[rotundav1.RestartTrailRequest]) (*connect.Response[rotundav1.RestartTrailResponse], error) {
	key, err := t.s.Trail.Restart(ctx, req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	origin, _, _ := strings.Cut(key, "+") // a key is named by its log's origin
	return connect.NewResponse(&rotundav1.RestartTrailResponse{Key: key, Origin: origin}), nil
}

// maxRetention is what fits into a duration.
const maxRetention = 200 * 365 * 24 * time.Hour

func (t *trailService) SetRetention(ctx context.Context, req *connect.Request[rotundav1.SetRetentionRequest]) (*connect.Response[rotundav1.SetRetentionResponse], error) {
	if req.Msg.GetSeconds() > int64(maxRetention/time.Second) {
		return nil, fault.Invalid("seconds", "retention_range", "keep events for %d seconds: want at most 200 years, or 0 for ever", req.Msg.GetSeconds())
	}
	keep := time.Duration(req.Msg.GetSeconds()) * time.Second
	if !req.Msg.GetDryRun() {
		if err := t.s.Trail.SetRetention(ctx, keep, req.Msg.GetReason()); err != nil {
			return nil, err
		}
	}
	if keep == 0 {
		return connect.NewResponse(&rotundav1.SetRetentionResponse{}), nil // for ever: nothing is due
	}
	plan, err := t.s.Trail.PrunePlan(ctx, t.s.DB.Now(), keep)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.SetRetentionResponse{Due: plan.Deleted, Held: plan.Held, WaitsFor: plan.Blocked}), nil
}

func (t *trailService) CreateHold(ctx context.Context, req *connect.Request[rotundav1.CreateHoldRequest]) (*connect.Response[rotundav1.CreateHoldResponse], error) {
	m := req.Msg.GetHold()
	h := audit.Hold{Name: m.GetName(), Reason: m.GetReason(), Partner: m.GetPartner(), Resource: m.GetResource()}
	if err := t.s.Trail.AddHold(ctx, h); err != nil {
		return nil, err
	}
	h.CreatedAt = t.s.DB.Now()
	return connect.NewResponse(&rotundav1.CreateHoldResponse{Hold: holdTo(h)}), nil
}

func (t *trailService) ListHolds(ctx context.Context, _ *connect.Request[rotundav1.ListHoldsRequest]) (*connect.Response[rotundav1.ListHoldsResponse], error) {
	holds, err := t.s.Trail.Holds(ctx)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListHoldsResponse{}
	for _, h := range holds {
		res.Holds = append(res.Holds, holdTo(h))
	}
	return connect.NewResponse(res), nil
}

func (t *trailService) ReleaseHold(ctx context.Context, req *connect.Request[rotundav1.ReleaseHoldRequest]) (*connect.Response[rotundav1.ReleaseHoldResponse], error) {
	if err := t.s.Trail.ReleaseHold(ctx, req.Msg.GetName(), req.Msg.GetReason()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ReleaseHoldResponse{}), nil
}

func (t *trailService) EraseFields(ctx context.Context, req *connect.Request[rotundav1.EraseFieldsRequest]) (*connect.Response[rotundav1.EraseFieldsResponse], error) {
	m := req.Msg
	e := audit.Erase{
		ID: m.GetId(), Actor: m.GetActor(), Partner: m.GetPartner(), RequestID: m.GetRequestId(), Address: m.GetAddress(),
		Since: instant(m.GetSince()), Until: instant(m.GetUntil()), Reason: m.GetReason(), DryRun: m.GetDryRun(),
	}
	for _, name := range m.GetFields() {
		f, ok := trail.ParseField(name)
		if !ok {
			return nil, fault.Invalid("fields", "field_unknown", "erase fields of events: %.40q is none of actor, partner, reason, request_id, address and detail", name)
		}
		e.Fields = append(e.Fields, f)
	}
	done, err := t.s.Trail.Erase(ctx, e)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.EraseFieldsResponse{Events: done.Events, Waiting: done.Waiting, Receipt: done.Receipt}
	if done.Receipt != "" {
		res.Selectors = e.Selectors()
	}
	return connect.NewResponse(res), nil
}

package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/rotation"
)

// Bounds of the streams of WatchRotation.
const (
	maxRotationWatchers         = 200 // each looks into the database twice a second
	maxRotationWatchersPerToken = 20
)

// rotationService implements rotunda.v1.RotationService.
type rotationService struct{ s *Server }

func (a *rotationService) StartRotation(ctx context.Context, req *connect.Request[rotundav1.StartRotationRequest]) (*connect.Response[rotundav1.StartRotationResponse], error) {
	o, err := once(ctx, req)
	if err != nil {
		return nil, err
	}
	start := rotation.StartRequest{
		Credential: req.Msg.GetCredential(), Reason: req.Msg.GetReason(), Emergency: req.Msg.GetEmergency(), Overwrite: req.Msg.GetOverwrite(), Once: o,
	}
	if req.Msg.GetGrace() != nil {
		grace, err := duration("grace", req.Msg.GetGrace())
		if err != nil {
			return nil, err
		}
		start.Grace = &grace
	}
	made, err := a.s.Rotations.Start(ctx, start)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.StartRotationResponse{Rotation: rotationTo(made)}), nil
}

func (a *rotationService) GetRotation(ctx context.Context, req *connect.Request[rotundav1.GetRotationRequest]) (*connect.Response[rotundav1.GetRotationResponse], error) {
	found, err := a.s.Rotations.Get(ctx, req.Msg.GetRotation())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.GetRotationResponse{Rotation: rotationTo(found)}), nil
}

func (a *rotationService) ListRotations(ctx context.Context, req *connect.Request[rotundav1.ListRotationsRequest]) (*connect.Response[rotundav1.ListRotationsResponse], error) {
	page, err := pageOf(req.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, next, err := a.s.Rotations.List(ctx, rotation.RotationQuery{
		Credential: req.Msg.GetCredential(), Incident: req.Msg.GetIncident(), Failed: req.Msg.GetFailed(), Unended: req.Msg.GetOpen(),
		Page: page, Limit: pageSize(req.Msg.GetPageSize()),
	})
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListRotationsResponse{NextPageToken: pageToken(next)}
	for _, r := range list {
		res.Rotations = append(res.Rotations, rotationTo(r))
	}
	return connect.NewResponse(res), nil
}

// errWaits ends the watch of a rotation that waits for a person.
var errWaits = errors.New("the rotation waits for a person")

func (a *rotationService) WatchRotation(ctx context.Context, req *connect.Request[rotundav1.WatchRotationRequest], stream *connect.ServerStream[rotundav1.WatchRotationResponse]) error {
	c := callerOf(ctx)
	give, err := a.s.rotations.take(c.token.ID)
	if err != nil {
		return err
	}
	defer give()
	ctx, end, err := a.s.long(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	w := &rotationWatcher{s: a.s, c: c, stream: stream}
	beats := make(chan struct{})
	go func() { defer close(beats); w.beats(ctx, cancel) }()
	err = a.s.Rotations.Watch(ctx, req.Msg.GetRotation(), w.show)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	cancel(nil)
	<-beats // a stream must not be written to once its handler has returned
	if errors.Is(err, errWaits) {
		err = nil
	}
	return end(err)
}

// rotationWatcher sends a rotation to one who watches it. Its heartbeat is the
// rotation as it was shown last.
type rotationWatcher struct {
	s      *Server
	c      caller
	stream *connect.ServerStream[rotundav1.WatchRotationResponse]

	mu   sync.Mutex
	last *rotundav1.WatchRotationResponse
	beat bool // something was sent since the last beat
}

func (w *rotationWatcher) show(r rotation.Rotation) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = &rotundav1.WatchRotationResponse{Rotation: rotationTo(&r)}
	if err := w.write(); err != nil {
		return err
	}
	if r.Step == rotation.StepFailed {
		return errWaits
	}
	return nil
}

// write sends what was shown last. The caller holds mu.
func (w *rotationWatcher) write() error {
	w.beat = true
	return w.s.send(w.c, func() error { return w.stream.Send(w.last) })
}

func (w *rotationWatcher) beats(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(w.s.heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		w.mu.Lock()
		var err error
		if !w.beat && w.last != nil && ctx.Err() == nil {
			err = w.write()
		}
		w.beat = false
		w.mu.Unlock()
		if err != nil {
			cancel(err)
			return
		}
	}
}

func (a *rotationService) RetryRotation(ctx context.Context, req *connect.Request[rotundav1.RetryRotationRequest]) (*connect.Response[rotundav1.RetryRotationResponse], error) {
	r, err := a.s.Rotations.Retry(ctx, req.Msg.GetRotation(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RetryRotationResponse{Rotation: rotationTo(r)}), nil
}

func (a *rotationService) RollbackRotation(ctx context.Context, req *connect.Request[rotundav1.RollbackRotationRequest]) (*connect.Response[rotundav1.RollbackRotationResponse], error) {
	r, err := a.s.Rotations.Rollback(ctx, req.Msg.GetRotation(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RollbackRotationResponse{Rotation: rotationTo(r)}), nil
}

func (a *rotationService) AbandonRotation(ctx context.Context, req *connect.Request[rotundav1.AbandonRotationRequest]) (*connect.Response[rotundav1.AbandonRotationResponse], error) {
	r, left, err := a.s.Rotations.Abandon(ctx, req.Msg.GetRotation(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.AbandonRotationResponse{Rotation: rotationTo(r), Left: left}), nil
}

// maxPlanned is the size of a page of PlanEmergency when the caller does not say.
const maxPlanned = 1000

func (a *rotationService) PlanEmergency(ctx context.Context, req *connect.Request[rotundav1.PlanEmergencyRequest]) (*connect.Response[rotundav1.PlanEmergencyResponse], error) {
	grace, gerr := duration("grace", req.Msg.GetGrace())
	page, perr := pageOf(req.Msg.GetPageToken())
	if err := errors.Join(gerr, perr); err != nil {
		return nil, err
	}
	size := int(req.Msg.GetPageSize())
	if size == 0 {
		size = maxPlanned
	}
	plan, err := a.s.Incidents.PlanEmergency(ctx, selectorFrom(req.Msg.GetSelector()), grace, page, size)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.PlanEmergencyResponse{
		PlanHash: plan.Hash, Total: plan.Rotate, SkippedTotal: plan.Count - plan.Rotate, Eta: durationpb.New(plan.Takes),
		SkippedByReason: plan.Skip, NextPageToken: pageToken(plan.NextPage),
	}
	for _, i := range plan.Items {
		if i.Skip != "" {
			res.Skipped = append(res.Skipped, &rotundav1.Skipped{Credential: i.Credential, Why: i.Why, Reason: i.Skip})
			continue
		}
		res.Credentials = append(res.Credentials, i.Credential)
	}
	for _, l := range plan.Loads {
		res.Parts = append(res.Parts, &rotundav1.EmergencyPart{Sort: string(l.Sort), Name: l.Name, Rotations: l.Rotations, Eta: durationpb.New(l.Takes), PerSecond: l.PerSecond})
	}
	return connect.NewResponse(res), nil
}

func (a *rotationService) StartEmergency(ctx context.Context, req *connect.Request[rotundav1.StartEmergencyRequest]) (*connect.Response[rotundav1.StartEmergencyResponse], error) {
	grace, gerr := duration("grace", req.Msg.GetGrace())
	o, oerr := once(ctx, req)
	if err := errors.Join(gerr, oerr); err != nil {
		return nil, err
	}
	made, err := a.s.Incidents.StartEmergency(ctx, rotation.EmergencyRequest{
		Selector: selectorFrom(req.Msg.GetSelector()), PlanHash: req.Msg.GetPlanHash(), Reason: req.Msg.GetReason(), Grace: grace, Once: o,
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.StartEmergencyResponse{Incident: incidentTo(made)}), nil
}

func (a *rotationService) GetIncident(ctx context.Context, req *connect.Request[rotundav1.GetIncidentRequest]) (*connect.Response[rotundav1.GetIncidentResponse], error) {
	found, err := a.s.Incidents.Get(ctx, req.Msg.GetIncident())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.GetIncidentResponse{Incident: incidentTo(found)}), nil
}

func (a *rotationService) ListIncidents(ctx context.Context, req *connect.Request[rotundav1.ListIncidentsRequest]) (*connect.Response[rotundav1.ListIncidentsResponse], error) {
	page, err := pageOf(req.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, next, err := a.s.Incidents.List(ctx, page, pageSize(req.Msg.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListIncidentsResponse{NextPageToken: pageToken(next)}
	for _, x := range list {
		res.Incidents = append(res.Incidents, incidentTo(x))
	}
	return connect.NewResponse(res), nil
}

func (a *rotationService) StopIncident(ctx context.Context, req *connect.Request[rotundav1.StopIncidentRequest]) (*connect.Response[rotundav1.StopIncidentResponse], error) {
	stopped, err := a.s.Incidents.Stop(ctx, req.Msg.GetIncident(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.StopIncidentResponse{Incident: incidentTo(stopped)}), nil
}

func selectorFrom(m *rotundav1.Selector) rotation.Selector {
	return rotation.Selector{Credentials: m.GetCredentials(), Store: m.GetStore(), Target: m.GetTarget(), Labels: m.GetLabels(), All: m.GetAll()}
}

var steps = map[rotation.Step]rotundav1.RotationStep{
	rotation.StepPlan:    rotundav1.RotationStep_ROTATION_STEP_PLAN,
	rotation.StepIssue:   rotundav1.RotationStep_ROTATION_STEP_ISSUE,
	rotation.StepVerify:  rotundav1.RotationStep_ROTATION_STEP_VERIFY,
	rotation.StepPublish: rotundav1.RotationStep_ROTATION_STEP_PUBLISH,
	rotation.StepGrace:   rotundav1.RotationStep_ROTATION_STEP_GRACE,
	rotation.StepRevoke:  rotundav1.RotationStep_ROTATION_STEP_REVOKE,
	rotation.StepDone:    rotundav1.RotationStep_ROTATION_STEP_DONE,
	rotation.StepFailed:  rotundav1.RotationStep_ROTATION_STEP_FAILED,
}

var outcomes = map[rotation.RotationOutcome]rotundav1.RotationOutcome{
	rotation.Rotated:    rotundav1.RotationOutcome_ROTATION_OUTCOME_ROTATED,
	rotation.RolledBack: rotundav1.RotationOutcome_ROTATION_OUTCOME_ROLLED_BACK,
	rotation.Abandoned:  rotundav1.RotationOutcome_ROTATION_OUTCOME_ABANDONED,
}

var causes = map[rotation.Cause]rotundav1.RotationCause{
	rotation.Scheduled: rotundav1.RotationCause_ROTATION_CAUSE_SCHEDULED,
	rotation.Manual:    rotundav1.RotationCause_ROTATION_CAUSE_MANUAL,
	rotation.Emergency: rotundav1.RotationCause_ROTATION_CAUSE_EMERGENCY,
}

func rotationTo(r *rotation.Rotation) *rotundav1.Rotation {
	out := &rotundav1.Rotation{
		Id: r.ID, Credential: r.Credential, Target: r.Target, Generation: r.Generation, Back: r.Back, Cause: causes[r.Cause], Incident: r.Incident,
		Step: steps[r.Step], FailedStep: steps[r.FailedStep], Outcome: outcomes[r.Outcome], Attempt: small(r.Attempt), Rejections: small(r.Rejections),
		Error: r.Error, ErrorReason: r.ErrorReason, NextAt: timestamp(r.NextAt), Grace: durationpb.New(r.Grace), GraceEndsAt: timestamp(r.GraceEndsAt),
		QuietSince: timestamp(r.QuietSince), Actor: r.Actor, Reason: r.Reason, StartedAt: timestamp(r.StartedAt), Since: timestamp(r.Since), EndedAt: timestamp(r.EndedAt),
	}
	if e := r.Evidence; e.Known || e.Source != "" {
		out.Evidence = &rotundav1.Evidence{Known: e.Known, Sessions: small(e.Sessions), LastUsed: timestamp(e.LastUsed), Source: e.Source}
	}
	return out
}

var incidentStates = map[rotation.IncidentState]rotundav1.IncidentState{
	rotation.IncidentOpen:    rotundav1.IncidentState_INCIDENT_STATE_OPEN,
	rotation.IncidentStopped: rotundav1.IncidentState_INCIDENT_STATE_STOPPED,
	rotation.IncidentClosed:  rotundav1.IncidentState_INCIDENT_STATE_CLOSED,
}

func incidentTo(x *rotation.Incident) *rotundav1.Incident {
	sel := x.Selector
	out := &rotundav1.Incident{
		Id: x.ID, Selector: &rotundav1.Selector{Credentials: sel.Credentials, Store: sel.Store, Target: sel.Target, Labels: sel.Labels, All: sel.All},
		Reason: x.Reason, Actor: x.Actor, Grace: durationpb.New(x.Grace), State: incidentStates[x.State], PlanHash: x.PlanHash,
		Total: x.Total, Begun: x.Begun, Skipped: x.Skipped, CreatedAt: timestamp(x.CreatedAt), EndedAt: timestamp(x.EndedAt),
		Rotated: x.Outcomes[rotation.Rotated], RolledBack: x.Outcomes[rotation.RolledBack], Abandoned: x.Outcomes[rotation.Abandoned],
	}
	for step, n := range x.Steps {
		switch step {
		case rotation.StepFailed:
			out.Failed = n
		case rotation.StepGrace, rotation.StepRevoke:
			out.InGrace += n
		case rotation.StepDone: // counted by its outcome
		case rotation.StepPlan, rotation.StepIssue, rotation.StepVerify, rotation.StepPublish:
			out.Running += n
		}
	}
	return out
}

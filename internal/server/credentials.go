package server

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/schedule"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// credentialService implements rotunda.v1.CredentialService.
type credentialService struct{ s *Server }

func (a *credentialService) CreateCredential(ctx context.Context, req *connect.Request[rotundav1.CreateCredentialRequest]) (*connect.Response[rotundav1.CreateCredentialResponse], error) {
	spec, serr := specFrom(req.Msg.GetSpec())
	o, oerr := once(ctx, req)
	if err := errors.Join(serr, oerr); err != nil {
		return nil, err
	}
	made, err := a.s.Credentials.Create(ctx, req.Msg.GetName(), spec, o)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.CreateCredentialResponse{Credential: credentialTo(made)}), nil
}

func (a *credentialService) GetCredential(ctx context.Context, req *connect.Request[rotundav1.GetCredentialRequest]) (*connect.Response[rotundav1.GetCredentialResponse], error) {
	name := req.Msg.GetCredential()
	found, err := a.s.Credentials.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.GetCredentialResponse{Credential: credentialTo(found)}
	if found.Tampered() { // and so is used for nothing
		return connect.NewResponse(res), nil
	}
	placed, err := a.s.Credentials.Placements(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, p := range placed {
		res.Stores = append(res.Stores, &rotundav1.PlacementState{Store: p.Store, Path: p.Path, Version: p.Version, Generation: p.Generation})
	}
	versions, err := a.s.Rotations.Versions(ctx, name)
	if err != nil {
		return nil, err
	}
	retired := 0
	for _, v := range versions {
		if v.State == rotation.Retired {
			if retired++; retired > maxRetired {
				continue
			}
		}
		res.Versions = append(res.Versions, versionTo(v))
	}
	open, _, err := a.s.Rotations.List(ctx, rotation.RotationQuery{Credential: name, Unended: true, Limit: 2})
	if err != nil {
		return nil, err
	}
	if len(open) > 0 { // the older one is under way, the other waits for its end
		res.Rotation = rotationTo(open[len(open)-1])
	}
	return connect.NewResponse(res), nil
}

// maxRetired bounds the retired versions that GetCredential shows.
const maxRetired = 10

func (a *credentialService) ListCredentials(ctx context.Context, req *connect.Request[rotundav1.ListCredentialsRequest]) (*connect.Response[rotundav1.ListCredentialsResponse], error) {
	page, err := pageOf(req.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	q := rotation.ListCredentials{
		Target: req.Msg.GetTarget(), Store: req.Msg.GetStore(), Labels: req.Msg.GetLabels(), State: credentialStatesFrom[req.Msg.GetState()],
		Page: page, Limit: pageSize(req.Msg.GetPageSize()),
	}
	if req.Msg.GetDrifted() {
		q.Drift = "any"
	}
	list, next, err := a.s.Credentials.List(ctx, q)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListCredentialsResponse{NextPageToken: pageToken(next)}
	for _, c := range list {
		res.Credentials = append(res.Credentials, credentialTo(c))
	}
	return connect.NewResponse(res), nil
}

func (a *credentialService) UpdateCredential(ctx context.Context, req *connect.Request[rotundav1.UpdateCredentialRequest]) (*connect.Response[rotundav1.UpdateCredentialResponse], error) {
	spec, err := specFrom(req.Msg.GetSpec())
	if err != nil {
		return nil, err
	}
	changed, err := a.s.Credentials.Update(ctx, req.Msg.GetCredential(), req.Msg.GetVersion(), spec)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.UpdateCredentialResponse{Credential: credentialTo(changed)}), nil
}

func (a *credentialService) PauseCredential(ctx context.Context, req *connect.Request[rotundav1.PauseCredentialRequest]) (*connect.Response[rotundav1.PauseCredentialResponse], error) {
	changed, err := a.s.Credentials.Pause(ctx, req.Msg.GetCredential(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.PauseCredentialResponse{Credential: credentialTo(changed)}), nil
}

func (a *credentialService) ResumeCredential(ctx context.Context, req *connect.Request[rotundav1.ResumeCredentialRequest]) (*connect.Response[rotundav1.ResumeCredentialResponse], error) {
	changed, err := a.s.Credentials.Resume(ctx, req.Msg.GetCredential(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ResumeCredentialResponse{Credential: credentialTo(changed)}), nil
}

func (a *credentialService) DeleteCredential(ctx context.Context, req *connect.Request[rotundav1.DeleteCredentialRequest]) (*connect.Response[rotundav1.DeleteCredentialResponse], error) {
	if err := a.s.Credentials.Delete(ctx, req.Msg.GetCredential(), req.Msg.GetReason()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.DeleteCredentialResponse{}), nil
}

func (a *credentialService) PreflightCredential(ctx context.Context, req *connect.Request[rotundav1.PreflightCredentialRequest]) (*connect.Response[rotundav1.PreflightCredentialResponse], error) {
	findings, err := a.s.Credentials.Preflight(ctx, req.Msg.GetCredential())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.PreflightCredentialResponse{Findings: findingsTo(findings)}), nil
}

func (a *credentialService) PlanCredential(ctx context.Context, req *connect.Request[rotundav1.PlanCredentialRequest]) (*connect.Response[rotundav1.PlanCredentialResponse], error) {
	plan, err := a.s.Credentials.Plan(ctx, req.Msg.GetCredential())
	if err != nil {
		return nil, err
	}
	res := &rotundav1.PlanCredentialResponse{
		Strategy: string(plan.Strategy), Generation: plan.Generation, NextAt: timestamp(plan.NextAt), Account: plan.Account,
	}
	for _, e := range plan.Effects {
		res.Effects = append(res.Effects, &rotundav1.PlannedEffect{
			Effect: e.Effect, Step: steps[e.Step], Where: e.System, What: e.Does, Consumers: e.Sees, Waits: e.Waits, Blocked: e.Blocked,
		})
		if e.Blocked != "" {
			res.Obstacles = append(res.Obstacles, e.Effect+": "+e.Blocked)
		}
	}
	return connect.NewResponse(res), nil
}

func (a *credentialService) ProbeCredential(ctx context.Context, req *connect.Request[rotundav1.ProbeCredentialRequest]) (*connect.Response[rotundav1.ProbeCredentialResponse], error) {
	probed, err := a.s.Credentials.Probe(ctx, req.Msg.GetCredential())
	if err != nil {
		return nil, err
	}
	now, err := a.s.Credentials.Get(ctx, req.Msg.GetCredential())
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ProbeCredentialResponse{Credential: credentialTo(now), Complete: probed.Complete, Target: probed.Target, TargetError: probed.TargetErr}
	for _, p := range probed.Stores {
		res.Stores = append(res.Stores, &rotundav1.ProbedStore{
			Store: p.Store, Path: p.Path, Recorded: p.Recorded, Version: p.Version, Serves: p.Serves, Generation: p.Generation, Note: p.Note, Error: p.Err,
		})
	}
	return connect.NewResponse(res), nil
}

// forecastDays is how far a forecast looks when the caller does not say.
const forecastDays = 90

func (a *credentialService) Forecast(ctx context.Context, req *connect.Request[rotundav1.ForecastRequest]) (*connect.Response[rotundav1.ForecastResponse], error) {
	days := int(req.Msg.GetDays())
	if days == 0 {
		days = forecastDays
	}
	f, err := a.s.Credentials.Forecast(ctx, a.s.DB.Now(), days)
	if err != nil {
		return nil, err
	}
	hour := func(h rotation.ForecastHour) *rotundav1.ForecastHour {
		return &rotundav1.ForecastHour{Hour: timestamp(h.At), Rotations: h.Rotations}
	}
	res := &rotundav1.ForecastResponse{
		Credentials: f.Credentials, Rotations: f.Rotations, Paused: f.Paused, Unscheduled: f.Unscheduled, From: timestamp(f.From), Peak: hour(f.Peak),
	}
	for _, h := range f.Hours {
		if h.Rotations > 0 {
			res.Hours = append(res.Hours, hour(h))
		}
	}
	for _, x := range f.Systems {
		res.Systems = append(res.Systems, &rotundav1.ForecastSystem{
			Sort: string(x.Sort), Name: x.Name, Rotations: x.Rotations, PeakHour: timestamp(x.PeakAt), Peak: x.Peak, Quota: x.PerHour, HoursOver: x.Over,
		})
	}
	return connect.NewResponse(res), nil
}

// specFrom reads what may change of a credential.
func specFrom(m *rotundav1.CredentialSpec) (rotation.Spec, error) {
	grace, gerr := duration("spec.grace", m.GetGrace())
	quiet, qerr := duration("spec.quiet", m.GetQuiet())
	probe, perr := duration("spec.probe", m.GetProbe())
	every, eerr := duration("spec.schedule.every", m.GetSchedule().GetEvery())
	jitter, jerr := duration("spec.schedule.jitter", m.GetSchedule().GetJitter())
	errs := []error{gerr, qerr, perr, eerr, jerr}
	spec := rotation.Spec{
		Target: m.GetTarget(), Strategy: providers.Strategy(m.GetStrategy()), Params: m.GetParams(), Fields: m.GetFields(),
		Schedule: schedule.Schedule{Every: every, Cron: m.GetSchedule().GetCron(), Zone: m.GetSchedule().GetZone(), Jitter: jitter},
		Missed:   rotation.Missed(m.GetMissed()), Grace: grace, Quiet: quiet, Labels: m.GetLabels(), Notify: m.GetNotify(), Adopt: m.GetAdopt(), Probe: probe,
	}
	for _, p := range m.GetStores() {
		spec.Stores = append(spec.Stores, rotation.Placement{Store: p.GetStore(), Path: p.GetPath()})
	}
	for _, text := range m.GetWindows() {
		w, err := schedule.ParseWindow(text)
		if f, ok := errors.AsType[*fault.Error](err); ok {
			err = f.On("spec.windows")
		}
		errs = append(errs, err)
		spec.Windows = append(spec.Windows, w)
	}
	return spec, errors.Join(errs...)
}

func specTo(s *rotation.Spec) *rotundav1.CredentialSpec {
	out := &rotundav1.CredentialSpec{
		Target: s.Target, Strategy: string(s.Strategy), Params: s.Params, Fields: s.Fields, Missed: string(s.Missed),
		Grace: period(s.Grace), Quiet: period(s.Quiet), Labels: s.Labels, Notify: s.Notify, Adopt: s.Adopt, Probe: period(s.Probe),
	}
	if s.Schedule != (schedule.Schedule{}) {
		out.Schedule = &rotundav1.Schedule{Every: period(s.Schedule.Every), Cron: s.Schedule.Cron, Zone: s.Schedule.Zone, Jitter: period(s.Schedule.Jitter)}
	}
	for _, p := range s.Stores {
		out.Stores = append(out.Stores, &rotundav1.Placement{Store: p.Store, Path: p.Path})
	}
	for _, w := range s.Windows {
		out.Windows = append(out.Windows, w.String())
	}
	return out
}

var credentialStatesFrom = map[rotundav1.CredentialState]rotation.CredentialState{
	rotundav1.CredentialState_CREDENTIAL_STATE_ACTIVE: rotation.CredentialActive,
	rotundav1.CredentialState_CREDENTIAL_STATE_PAUSED: rotation.CredentialPaused,
}

var credentialStates = map[rotation.CredentialState]rotundav1.CredentialState{
	rotation.CredentialActive: rotundav1.CredentialState_CREDENTIAL_STATE_ACTIVE,
	rotation.CredentialPaused: rotundav1.CredentialState_CREDENTIAL_STATE_PAUSED,
}

var drifts = map[rotation.Drift]rotundav1.Drift{
	rotation.NoDrift:     rotundav1.Drift_DRIFT_UNSPECIFIED,
	rotation.DriftStore:  rotundav1.Drift_DRIFT_STORE,
	rotation.DriftTarget: rotundav1.Drift_DRIFT_TARGET,
	rotation.DriftBoth:   rotundav1.Drift_DRIFT_BOTH,
	rotation.DriftLabel:  rotundav1.Drift_DRIFT_LABEL,
	rotation.DriftMarker: rotundav1.Drift_DRIFT_MARKER,
}

func credentialTo(c *rotation.Credential) *rotundav1.Credential {
	out := &rotundav1.Credential{
		Name: c.Name, Spec: specTo(&c.Spec), State: credentialStates[c.State], Reason: c.Reason, Generation: c.Generation, Current: c.Current,
		NextAt: timestamp(c.NextAt), RotatedAt: timestamp(c.RotatedAt), Drift: drifts[c.Drift], DriftNote: c.DriftNote, DriftSince: timestamp(c.DriftSince),
		ProbedAt: timestamp(c.ProbedAt), ProbeAt: timestamp(c.ProbeAt), CreatedAt: timestamp(c.CreatedAt), Since: timestamp(c.Since), Version: c.Version,
	}
	if c.Tampered() {
		out.Tampered = true
		out.Reason = "somebody else than Rotunda changed its row in the database: it is used for nothing: restore it from a backup, and see who can write there"
	}
	return out
}

var versionStates = map[rotation.VersionState]rotundav1.VersionState{
	rotation.Staged:   rotundav1.VersionState_VERSION_STATE_STAGED,
	rotation.Current:  rotundav1.VersionState_VERSION_STATE_CURRENT,
	rotation.Previous: rotundav1.VersionState_VERSION_STATE_PREVIOUS,
	rotation.Retired:  rotundav1.VersionState_VERSION_STATE_RETIRED,
}

func versionTo(v *rotation.CredentialVersion) *rotundav1.CredentialVersion {
	return &rotundav1.CredentialVersion{
		Generation: v.Generation, Rotation: v.Rotation, State: versionStates[v.State], Account: v.Account, TargetId: v.TargetID,
		CreatedAt: timestamp(v.CreatedAt), Since: timestamp(v.Since), GraceEndsAt: timestamp(v.GraceEndsAt),
	}
}

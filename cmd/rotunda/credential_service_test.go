package main

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func (s *service) WatchRotation(ctx context.Context, r *connect.Request[v1.WatchRotationRequest], stream *connect.ServerStream[v1.WatchRotationResponse]) error {
	s.record(r.Msg, r.Header())
	if s.rotation == nil {
		return connect.NewError(connect.CodeNotFound, errors.New("no such rotation"))
	}
	return s.rotation(ctx, r.Msg, stream)
}

const (
	runID      = "0191f3c2-7a64-7c0e-8a55-0000000000a1"
	incidentID = "0191f3c2-7a64-7c0e-8a55-0000000000b1"
	messageID  = "0191f3c2-7a64-7c0e-8a55-0000000000c1"
)

func storeKindsOfTest() []*v1.StoreKind {
	return []*v1.StoreKind{
		{Name: "builtin", Doc: "Rotunda's own database", Stages: true},
		{Name: "vault-kv", Doc: "KV version 2 of HashiCorp Vault or OpenBao", Quota: 50, WritesPerRotation: 2,
			Settings: []*v1.Setting{{Name: "address", Doc: "https://HOST of Vault", Required: true}, {Name: "mount", Doc: "path of the KV mount", Default: "secret"}, {Name: "ca_cert", Doc: "certificates"}},
			Login:    []*v1.Setting{{Name: "token", Doc: "token, for auth=token"}}, Path: &v1.Setting{Name: "path", Doc: "path below the mount", Required: true}},
	}
}

func targetKindsOfTest() []*v1.TargetKind {
	return []*v1.TargetKind{
		{Name: "generated", Doc: "A random value that nobody must be told of", Strategies: []string{"replace"}, Params: []*v1.Setting{{Name: "length", Doc: "characters", Default: "32"}}},
		{Name: "postgres", Doc: "Roles of a PostgreSQL server", Strategies: []string{"alternate", "replace"},
			Settings: []*v1.Setting{{Name: "address", Doc: "HOST:PORT", Required: true}, {Name: "sslmode", Doc: "TLS", Default: "verify-full", OneOf: []string{"verify-full", "disable"}}},
			Login:    []*v1.Setting{{Name: "password", Doc: "password of the login role", Required: true}},
			Params:   []*v1.Setting{{Name: "users", Doc: "the two roles that take turns"}, {Name: "length", Doc: "characters of the password", Default: "40"}}},
		{Name: "aws-iam", Doc: "Access keys of an IAM user", Strategies: []string{"dual"}, Issues: true},
		{Name: "vault-transit", Doc: "A key of Vault's Transit engine", Strategies: []string{"dual"}, Valueless: true},
	}
}

func vaultProd() *v1.System {
	return &v1.System{Name: "vault-prod", Kind: "vault-kv", Settings: map[string]string{"address": "https://vault.example.com:8200", "mount": "secret"}, HasLogin: true, CreatedAt: at(-day), Since: at(-time.Hour), Version: 2}
}

func ordersPG() *v1.System {
	return &v1.System{Name: "orders-pg", Kind: "postgres", Settings: map[string]string{"address": "db.example.com:5432", "sslmode": "verify-full"}, LoginCredential: "pg-admin", CreatedAt: at(-day), Since: at(-day), Version: 1}
}

func ordersSpec() *v1.CredentialSpec {
	return &v1.CredentialSpec{
		Target: "orders-pg", Strategy: "alternate", Params: map[string]string{"users": "orders_a,orders_b", "length": "40"}, Fields: map[string]string{"host": "db.example.com", "port": "5432"},
		Stores:   []*v1.Placement{{Store: "vault-prod", Path: "orders/db"}},
		Schedule: &v1.Schedule{Cron: "0 3 * * 1", Zone: "Europe/Berlin", Jitter: dur(time.Hour)}, Windows: []string{"Mon 02:00-05:00"}, Missed: "late",
		Grace: dur(24 * time.Hour), Quiet: dur(2 * time.Hour), Labels: map[string]string{"tier": "1"}, Notify: []string{"orders"},
	}
}

func ordersDB() *v1.Credential {
	return &v1.Credential{
		Name: "orders-db", Spec: ordersSpec(), State: v1.CredentialState_CREDENTIAL_STATE_ACTIVE, Generation: 7, Current: 7, NextAt: at(23*time.Hour + 20*time.Minute),
		RotatedAt: at(-time.Hour), ProbedAt: at(-5 * time.Minute), ProbeAt: at(55 * time.Minute), CreatedAt: at(-40 * day), Since: at(-time.Hour), Version: 21,
	}
}

func runAt(step v1.RotationStep) *v1.Rotation {
	return &v1.Rotation{
		Id: runID, Credential: "orders-db", Target: "orders-pg", Generation: 7, Cause: v1.RotationCause_ROTATION_CAUSE_MANUAL, Step: step,
		Actor: "admin", Grace: dur(24 * time.Hour), StartedAt: at(-time.Hour), Since: at(-time.Hour + 2*time.Second),
	}
}

func inGrace() *v1.Rotation {
	r := runAt(v1.RotationStep_ROTATION_STEP_GRACE)
	r.GraceEndsAt = at(23 * time.Hour)
	r.Evidence = &v1.Evidence{Known: true, Sessions: 2, LastUsed: at(-3 * time.Minute), Source: "pg_stat_activity"}
	return r
}

func failedRun() *v1.Rotation {
	r := runAt(v1.RotationStep_ROTATION_STEP_FAILED)
	r.FailedStep, r.Error, r.ErrorReason = v1.RotationStep_ROTATION_STEP_PUBLISH, "store vault-prod: orders/db has version 12, and we put version 11 there: look who wrote it", "drift"
	return r
}

func emergencyPlan() *v1.PlanEmergencyResponse {
	return &v1.PlanEmergencyResponse{
		PlanHash: "h1", Total: 3, Credentials: []string{"orders-db", "billing-db", "mail"}, SkippedTotal: 1, Skipped: []*v1.Skipped{{Credential: "old", Why: "a rotation of it failed and waits for a person", Reason: "run_failed"}},
		Parts: []*v1.EmergencyPart{{Sort: "store", Name: "vault-prod", Rotations: 3, Eta: dur(12 * time.Second), PerSecond: 0.25}, {Sort: "target", Name: "orders-pg", Rotations: 2}}, Eta: dur(12 * time.Second),
	}
}

func incident() *v1.Incident {
	return &v1.Incident{
		Id: incidentID, Selector: &v1.Selector{Store: "vault-prod"}, Reason: "laptop stolen", Actor: "admin", State: v1.IncidentState_INCIDENT_STATE_OPEN,
		Total: 3, Begun: 3, Rotated: 1, InGrace: 1, Failed: 1, CreatedAt: at(-time.Minute),
	}
}

func hook() *v1.Endpoint {
	return &v1.Endpoint{Name: "orders", Url: "https://orders.example.com/hooks/rotunda", Partner: "acme", Secret: "hooks", State: "active", CreatedAt: at(-day), Since: at(-day), Version: 1}
}

func message(state string) *v1.Delivery {
	d := &v1.Delivery{Id: messageID, Endpoint: "orders", Type: "credential.rotated", State: state, Attempts: 3, CreatedAt: at(-time.Hour)}
	switch state {
	case "delivered":
		d.DeliveredAt, d.LastStatus = at(-59*time.Minute), 204
	case "waiting":
		d.NextAt, d.LastStatus, d.LastError = at(5*time.Minute), 503, "it answered 503"
	default:
		d.LastError = "no answer within 15s"
	}
	return d
}

func usualCredential(req proto.Message) proto.Message {
	switch req := req.(type) {
	case *v1.ListStoreKindsRequest:
		return &v1.ListStoreKindsResponse{Kinds: storeKindsOfTest()}
	case *v1.ListTargetKindsRequest:
		return &v1.ListTargetKindsResponse{Kinds: targetKindsOfTest()}
	case *v1.GetStoreRequest:
		return &v1.GetStoreResponse{Store: vaultProd()}
	case *v1.GetTargetRequest:
		return &v1.GetTargetResponse{Target: ordersPG()}
	case *v1.ListStoresRequest:
		return &v1.ListStoresResponse{Stores: []*v1.System{vaultProd()}}
	case *v1.ListTargetsRequest:
		return &v1.ListTargetsResponse{Targets: []*v1.System{ordersPG()}}
	case *v1.CreateStoreRequest:
		return &v1.CreateStoreResponse{Store: vaultProd()}
	case *v1.CreateTargetRequest:
		return &v1.CreateTargetResponse{Target: ordersPG()}
	case *v1.UpdateStoreRequest:
		return &v1.UpdateStoreResponse{Store: vaultProd()}
	case *v1.UpdateTargetRequest:
		return &v1.UpdateTargetResponse{Target: ordersPG()}
	case *v1.DeleteStoreRequest:
		return &v1.DeleteStoreResponse{}
	case *v1.DeleteTargetRequest:
		return &v1.DeleteTargetResponse{}
	case *v1.TestStoreRequest:
		return &v1.TestStoreResponse{Findings: []*v1.Finding{{Check: "login", Ok: true, Detail: "the token is accepted", Where: "store vault-prod"}}}
	case *v1.TestTargetRequest:
		return &v1.TestTargetResponse{Findings: []*v1.Finding{{Check: "login", Ok: true, Detail: "rotunda may log in", Where: "target orders-pg"}}}
	case *v1.ReadSecretRequest:
		return &v1.ReadSecretResponse{Fields: map[string]string{"username": "orders_a", "password": "p<&>w"}, Version: "7", Label: "current", CreatedAt: at(-time.Hour)}
	default:
		return usualRotation(req)
	}
}

func usualRotation(req proto.Message) proto.Message {
	switch req := req.(type) {
	case *v1.CreateCredentialRequest:
		return &v1.CreateCredentialResponse{Credential: ordersDB()}
	case *v1.UpdateCredentialRequest:
		return &v1.UpdateCredentialResponse{Credential: ordersDB()}
	case *v1.GetCredentialRequest:
		return &v1.GetCredentialResponse{
			Credential: ordersDB(), Rotation: inGrace(), Stores: []*v1.PlacementState{{Store: "vault-prod", Path: "orders/db", Version: "12", Generation: 7}},
			Versions: []*v1.CredentialVersion{
				{Generation: 7, State: v1.VersionState_VERSION_STATE_CURRENT, Account: "orders_a", Since: at(-time.Hour)},
				{Generation: 6, State: v1.VersionState_VERSION_STATE_PREVIOUS, Account: "orders_b", Since: at(-time.Hour), GraceEndsAt: at(23 * time.Hour)},
				{Generation: 5, State: v1.VersionState_VERSION_STATE_RETIRED, Account: "orders_a"},
			},
		}
	case *v1.ListCredentialsRequest:
		manual := ordersDB()
		manual.Name, manual.NextAt = "mail", nil
		return &v1.ListCredentialsResponse{Credentials: []*v1.Credential{ordersDB(), manual}}
	case *v1.PauseCredentialRequest:
		x := ordersDB()
		x.State, x.Reason = v1.CredentialState_CREDENTIAL_STATE_PAUSED, req.GetReason()
		return &v1.PauseCredentialResponse{Credential: x}
	case *v1.ResumeCredentialRequest:
		return &v1.ResumeCredentialResponse{Credential: ordersDB()}
	case *v1.DeleteCredentialRequest:
		return &v1.DeleteCredentialResponse{}
	case *v1.PreflightCredentialRequest:
		return &v1.PreflightCredentialResponse{Findings: []*v1.Finding{
			{Check: "permission", Ok: true, Detail: "rotunda may change orders_a and orders_b", Where: "target orders-pg"},
			{Check: "clock", Warning: true, Detail: "the clocks differ", Measured: "2.1s", Remedy: "run NTP on both machines", Where: "target orders-pg"},
		}}
	case *v1.PlanCredentialRequest:
		return &v1.PlanCredentialResponse{Strategy: "alternate", Generation: 8, NextAt: at(23 * time.Hour), Effects: []*v1.PlannedEffect{
			{Effect: "E0", Step: v1.RotationStep_ROTATION_STEP_PLAN, Where: "target orders-pg", What: "chooses orders_b and a new password, and seals it here"},
			{Effect: "E2", Step: v1.RotationStep_ROTATION_STEP_ISSUE, Where: "target orders-pg", What: "sets the password of orders_b"},
			{Effect: "E4", Step: v1.RotationStep_ROTATION_STEP_PUBLISH, Where: "store vault-prod orders/db", What: "puts it there if version 12 is still read", Consumers: "they read orders_b from now on"},
			{Effect: "E7", Step: v1.RotationStep_ROTATION_STEP_REVOKE, Where: "target orders-pg", What: "ends orders_a", Waits: "for the grace of 24h"},
		}}
	case *v1.ProbeCredentialRequest:
		return &v1.ProbeCredentialResponse{Credential: ordersDB(), Complete: true, Target: "accepts", Stores: []*v1.ProbedStore{{Store: "vault-prod", Path: "orders/db", Recorded: "12", Version: "12", Serves: "current", Generation: 7}}}
	case *v1.ForecastRequest:
		return &v1.ForecastResponse{
			Credentials: 40, Rotations: 500, Paused: 1, Unscheduled: 2, From: at(0), Peak: &v1.ForecastHour{Hour: at(day), Rotations: 300},
			Hours:   []*v1.ForecastHour{{Hour: at(day), Rotations: 300}, {Hour: at(8 * day), Rotations: 200}},
			Systems: []*v1.ForecastSystem{{Sort: "store", Name: "vault-prod", Rotations: 500, Peak: 300, PeakHour: at(day), Quota: 90000}, {Sort: "target", Name: "orders-pg", Rotations: 20, Peak: 1, PeakHour: at(day)}},
		}
	case *v1.StartRotationRequest:
		return &v1.StartRotationResponse{Rotation: runAt(v1.RotationStep_ROTATION_STEP_PLAN)}
	case *v1.RetryRotationRequest:
		return &v1.RetryRotationResponse{Rotation: runAt(v1.RotationStep_ROTATION_STEP_PUBLISH)}
	case *v1.RollbackRotationRequest:
		r := runAt(v1.RotationStep_ROTATION_STEP_PUBLISH)
		r.Back = true
		return &v1.RollbackRotationResponse{Rotation: r}
	case *v1.GetRotationRequest:
		return &v1.GetRotationResponse{Rotation: failedRun()}
	case *v1.AbandonRotationRequest:
		r := runAt(v1.RotationStep_ROTATION_STEP_DONE)
		r.Outcome, r.EndedAt = v1.RotationOutcome_ROTATION_OUTCOME_ABANDONED, at(0)
		return &v1.AbandonRotationResponse{Rotation: r, Left: []string{"orders_b on orders-pg accepts a password that nobody reads"}}
	case *v1.ListRotationsRequest:
		if req.GetFailed() {
			return &v1.ListRotationsResponse{}
		}
		done := runAt(v1.RotationStep_ROTATION_STEP_DONE)
		done.Outcome, done.EndedAt, done.Generation = v1.RotationOutcome_ROTATION_OUTCOME_ROTATED, at(-time.Hour+3*time.Second), 6
		return &v1.ListRotationsResponse{Rotations: []*v1.Rotation{failedRun(), done}}
	default:
		return usualIncident(req)
	}
}

func usualIncident(req proto.Message) proto.Message {
	switch req := req.(type) {
	case *v1.PlanEmergencyRequest:
		return emergencyPlan()
	case *v1.StartEmergencyRequest:
		return &v1.StartEmergencyResponse{Incident: incident()}
	case *v1.GetIncidentRequest:
		return &v1.GetIncidentResponse{Incident: incident()}
	case *v1.ListIncidentsRequest:
		return &v1.ListIncidentsResponse{Incidents: []*v1.Incident{incident()}}
	case *v1.StopIncidentRequest:
		x := incident()
		x.State = v1.IncidentState_INCIDENT_STATE_STOPPED
		return &v1.StopIncidentResponse{Incident: x}
	case *v1.CreateEndpointRequest:
		return &v1.CreateEndpointResponse{Endpoint: hook()}
	case *v1.UpdateEndpointRequest:
		return &v1.UpdateEndpointResponse{Endpoint: hook()}
	case *v1.ListEndpointsRequest:
		return &v1.ListEndpointsResponse{Endpoints: []*v1.Endpoint{hook()}}
	case *v1.EnableEndpointRequest:
		return &v1.EnableEndpointResponse{Endpoint: hook()}
	case *v1.DisableEndpointRequest:
		x := hook()
		x.State, x.Reason = "disabled", req.GetReason()
		return &v1.DisableEndpointResponse{Endpoint: x}
	case *v1.DeleteEndpointRequest:
		return &v1.DeleteEndpointResponse{}
	case *v1.TestEndpointRequest:
		return &v1.TestEndpointResponse{Delivery: message("delivered")}
	case *v1.ListDeliveriesRequest:
		if req.GetDead() {
			return &v1.ListDeliveriesResponse{}
		}
		return &v1.ListDeliveriesResponse{Deliveries: []*v1.Delivery{message("delivered"), message("waiting"), message("dead")}}
	case *v1.RedeliverMessageRequest:
		return &v1.RedeliverMessageResponse{Delivery: message("waiting")}
	default:
		panic("no usual answer for " + string(req.ProtoReflect().Descriptor().Name()))
	}
}

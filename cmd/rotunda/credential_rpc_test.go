package main

import (
	"context"

	"connectrpc.com/connect"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func (s *service) ListStoreKinds(ctx context.Context, r *connect.Request[v1.ListStoreKindsRequest]) (*connect.Response[v1.ListStoreKindsResponse], error) {
	return respond[v1.ListStoreKindsRequest, v1.ListStoreKindsResponse](ctx, s, r)
}

func (s *service) CreateStore(ctx context.Context, r *connect.Request[v1.CreateStoreRequest]) (*connect.Response[v1.CreateStoreResponse], error) {
	return respond[v1.CreateStoreRequest, v1.CreateStoreResponse](ctx, s, r)
}

func (s *service) GetStore(ctx context.Context, r *connect.Request[v1.GetStoreRequest]) (*connect.Response[v1.GetStoreResponse], error) {
	return respond[v1.GetStoreRequest, v1.GetStoreResponse](ctx, s, r)
}

func (s *service) ListStores(ctx context.Context, r *connect.Request[v1.ListStoresRequest]) (*connect.Response[v1.ListStoresResponse], error) {
	return respond[v1.ListStoresRequest, v1.ListStoresResponse](ctx, s, r)
}

func (s *service) UpdateStore(ctx context.Context, r *connect.Request[v1.UpdateStoreRequest]) (*connect.Response[v1.UpdateStoreResponse], error) {
	return respond[v1.UpdateStoreRequest, v1.UpdateStoreResponse](ctx, s, r)
}

func (s *service) DeleteStore(ctx context.Context, r *connect.Request[v1.DeleteStoreRequest]) (*connect.Response[v1.DeleteStoreResponse], error) {
	return respond[v1.DeleteStoreRequest, v1.DeleteStoreResponse](ctx, s, r)
}

func (s *service) TestStore(ctx context.Context, r *connect.Request[v1.TestStoreRequest]) (*connect.Response[v1.TestStoreResponse], error) {
	return respond[v1.TestStoreRequest, v1.TestStoreResponse](ctx, s, r)
}

func (s *service) ReadSecret(ctx context.Context, r *connect.Request[v1.ReadSecretRequest]) (*connect.Response[v1.ReadSecretResponse], error) {
	return respond[v1.ReadSecretRequest, v1.ReadSecretResponse](ctx, s, r)
}

func (s *service) ListTargetKinds(ctx context.Context, r *connect.Request[v1.ListTargetKindsRequest]) (*connect.Response[v1.ListTargetKindsResponse], error) {
	return respond[v1.ListTargetKindsRequest, v1.ListTargetKindsResponse](ctx, s, r)
}

func (s *service) CreateTarget(ctx context.Context, r *connect.Request[v1.CreateTargetRequest]) (*connect.Response[v1.CreateTargetResponse], error) {
	return respond[v1.CreateTargetRequest, v1.CreateTargetResponse](ctx, s, r)
}

func (s *service) GetTarget(ctx context.Context, r *connect.Request[v1.GetTargetRequest]) (*connect.Response[v1.GetTargetResponse], error) {
	return respond[v1.GetTargetRequest, v1.GetTargetResponse](ctx, s, r)
}

func (s *service) ListTargets(ctx context.Context, r *connect.Request[v1.ListTargetsRequest]) (*connect.Response[v1.ListTargetsResponse], error) {
	return respond[v1.ListTargetsRequest, v1.ListTargetsResponse](ctx, s, r)
}

func (s *service) UpdateTarget(ctx context.Context, r *connect.Request[v1.UpdateTargetRequest]) (*connect.Response[v1.UpdateTargetResponse], error) {
	return respond[v1.UpdateTargetRequest, v1.UpdateTargetResponse](ctx, s, r)
}

func (s *service) DeleteTarget(ctx context.Context, r *connect.Request[v1.DeleteTargetRequest]) (*connect.Response[v1.DeleteTargetResponse], error) {
	return respond[v1.DeleteTargetRequest, v1.DeleteTargetResponse](ctx, s, r)
}

func (s *service) TestTarget(ctx context.Context, r *connect.Request[v1.TestTargetRequest]) (*connect.Response[v1.TestTargetResponse], error) {
	return respond[v1.TestTargetRequest, v1.TestTargetResponse](ctx, s, r)
}

func (s *service) CreateCredential(ctx context.Context, r *connect.Request[v1.CreateCredentialRequest]) (*connect.Response[v1.CreateCredentialResponse], error) {
	return respond[v1.CreateCredentialRequest, v1.CreateCredentialResponse](ctx, s, r)
}

func (s *service) GetCredential(ctx context.Context, r *connect.Request[v1.GetCredentialRequest]) (*connect.Response[v1.GetCredentialResponse], error) {
	return respond[v1.GetCredentialRequest, v1.GetCredentialResponse](ctx, s, r)
}

func (s *service) ListCredentials(ctx context.Context, r *connect.Request[v1.ListCredentialsRequest]) (*connect.Response[v1.ListCredentialsResponse], error) {
	return respond[v1.ListCredentialsRequest, v1.ListCredentialsResponse](ctx, s, r)
}

func (s *service) UpdateCredential(ctx context.Context, r *connect.Request[v1.UpdateCredentialRequest]) (*connect.Response[v1.UpdateCredentialResponse], error) {
	return respond[v1.UpdateCredentialRequest, v1.UpdateCredentialResponse](ctx, s, r)
}

func (s *service) PauseCredential(ctx context.Context, r *connect.Request[v1.PauseCredentialRequest]) (*connect.Response[v1.PauseCredentialResponse], error) {
	return respond[v1.PauseCredentialRequest, v1.PauseCredentialResponse](ctx, s, r)
}

func (s *service) ResumeCredential(ctx context.Context, r *connect.Request[v1.ResumeCredentialRequest]) (*connect.Response[v1.ResumeCredentialResponse], error) {
	return respond[v1.ResumeCredentialRequest, v1.ResumeCredentialResponse](ctx, s, r)
}

func (s *service) DeleteCredential(ctx context.Context, r *connect.Request[v1.DeleteCredentialRequest]) (*connect.Response[v1.DeleteCredentialResponse], error) {
	return respond[v1.DeleteCredentialRequest, v1.DeleteCredentialResponse](ctx, s, r)
}

func (s *service) PreflightCredential(ctx context.Context, r *connect.Request[v1.PreflightCredentialRequest]) (*connect.Response[v1.PreflightCredentialResponse], error) {
	return respond[v1.PreflightCredentialRequest, v1.PreflightCredentialResponse](ctx, s, r)
}

func (s *service) PlanCredential(ctx context.Context, r *connect.Request[v1.PlanCredentialRequest]) (*connect.Response[v1.PlanCredentialResponse], error) {
	return respond[v1.PlanCredentialRequest, v1.PlanCredentialResponse](ctx, s, r)
}

func (s *service) ProbeCredential(ctx context.Context, r *connect.Request[v1.ProbeCredentialRequest]) (*connect.Response[v1.ProbeCredentialResponse], error) {
	return respond[v1.ProbeCredentialRequest, v1.ProbeCredentialResponse](ctx, s, r)
}

func (s *service) Forecast(ctx context.Context, r *connect.Request[v1.ForecastRequest]) (*connect.Response[v1.ForecastResponse], error) {
	return respond[v1.ForecastRequest, v1.ForecastResponse](ctx, s, r)
}

func (s *service) StartRotation(ctx context.Context, r *connect.Request[v1.StartRotationRequest]) (*connect.Response[v1.StartRotationResponse], error) {
	return respond[v1.StartRotationRequest, v1.StartRotationResponse](ctx, s, r)
}

func (s *service) GetRotation(ctx context.Context, r *connect.Request[v1.GetRotationRequest]) (*connect.Response[v1.GetRotationResponse], error) {
	return respond[v1.GetRotationRequest, v1.GetRotationResponse](ctx, s, r)
}

func (s *service) ListRotations(ctx context.Context, r *connect.Request[v1.ListRotationsRequest]) (*connect.Response[v1.ListRotationsResponse], error) {
	return respond[v1.ListRotationsRequest, v1.ListRotationsResponse](ctx, s, r)
}

func (s *service) RetryRotation(ctx context.Context, r *connect.Request[v1.RetryRotationRequest]) (*connect.Response[v1.RetryRotationResponse], error) {
	return respond[v1.RetryRotationRequest, v1.RetryRotationResponse](ctx, s, r)
}

func (s *service) RollbackRotation(ctx context.Context, r *connect.Request[v1.RollbackRotationRequest]) (*connect.Response[v1.RollbackRotationResponse], error) {
	return respond[v1.RollbackRotationRequest, v1.RollbackRotationResponse](ctx, s, r)
}

func (s *service) AbandonRotation(ctx context.Context, r *connect.Request[v1.AbandonRotationRequest]) (*connect.Response[v1.AbandonRotationResponse], error) {
	return respond[v1.AbandonRotationRequest, v1.AbandonRotationResponse](ctx, s, r)
}

func (s *service) PlanEmergency(ctx context.Context, r *connect.Request[v1.PlanEmergencyRequest]) (*connect.Response[v1.PlanEmergencyResponse], error) {
	return respond[v1.PlanEmergencyRequest, v1.PlanEmergencyResponse](ctx, s, r)
}

func (s *service) StartEmergency(ctx context.Context, r *connect.Request[v1.StartEmergencyRequest]) (*connect.Response[v1.StartEmergencyResponse], error) {
	return respond[v1.StartEmergencyRequest, v1.StartEmergencyResponse](ctx, s, r)
}

func (s *service) GetIncident(ctx context.Context, r *connect.Request[v1.GetIncidentRequest]) (*connect.Response[v1.GetIncidentResponse], error) {
	return respond[v1.GetIncidentRequest, v1.GetIncidentResponse](ctx, s, r)
}

func (s *service) ListIncidents(ctx context.Context, r *connect.Request[v1.ListIncidentsRequest]) (*connect.Response[v1.ListIncidentsResponse], error) {
	return respond[v1.ListIncidentsRequest, v1.ListIncidentsResponse](ctx, s, r)
}

func (s *service) StopIncident(ctx context.Context, r *connect.Request[v1.StopIncidentRequest]) (*connect.Response[v1.StopIncidentResponse], error) {
	return respond[v1.StopIncidentRequest, v1.StopIncidentResponse](ctx, s, r)
}

func (s *service) CreateEndpoint(ctx context.Context, r *connect.Request[v1.CreateEndpointRequest]) (*connect.Response[v1.CreateEndpointResponse], error) {
	return respond[v1.CreateEndpointRequest, v1.CreateEndpointResponse](ctx, s, r)
}

func (s *service) ListEndpoints(ctx context.Context, r *connect.Request[v1.ListEndpointsRequest]) (*connect.Response[v1.ListEndpointsResponse], error) {
	return respond[v1.ListEndpointsRequest, v1.ListEndpointsResponse](ctx, s, r)
}

func (s *service) UpdateEndpoint(ctx context.Context, r *connect.Request[v1.UpdateEndpointRequest]) (*connect.Response[v1.UpdateEndpointResponse], error) {
	return respond[v1.UpdateEndpointRequest, v1.UpdateEndpointResponse](ctx, s, r)
}

func (s *service) DisableEndpoint(ctx context.Context, r *connect.Request[v1.DisableEndpointRequest]) (*connect.Response[v1.DisableEndpointResponse], error) {
	return respond[v1.DisableEndpointRequest, v1.DisableEndpointResponse](ctx, s, r)
}

func (s *service) EnableEndpoint(ctx context.Context, r *connect.Request[v1.EnableEndpointRequest]) (*connect.Response[v1.EnableEndpointResponse], error) {
	return respond[v1.EnableEndpointRequest, v1.EnableEndpointResponse](ctx, s, r)
}

func (s *service) DeleteEndpoint(ctx context.Context, r *connect.Request[v1.DeleteEndpointRequest]) (*connect.Response[v1.DeleteEndpointResponse], error) {
	return respond[v1.DeleteEndpointRequest, v1.DeleteEndpointResponse](ctx, s, r)
}

func (s *service) TestEndpoint(ctx context.Context, r *connect.Request[v1.TestEndpointRequest]) (*connect.Response[v1.TestEndpointResponse], error) {
	return respond[v1.TestEndpointRequest, v1.TestEndpointResponse](ctx, s, r)
}

func (s *service) ListDeliveries(ctx context.Context, r *connect.Request[v1.ListDeliveriesRequest]) (*connect.Response[v1.ListDeliveriesResponse], error) {
	return respond[v1.ListDeliveriesRequest, v1.ListDeliveriesResponse](ctx, s, r)
}

func (s *service) RedeliverMessage(ctx context.Context, r *connect.Request[v1.RedeliverMessageRequest]) (*connect.Response[v1.RedeliverMessageResponse], error) {
	return respond[v1.RedeliverMessageRequest, v1.RedeliverMessageResponse](ctx, s, r)
}

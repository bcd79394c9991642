package server

import (
	"context"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/rotation"
)

// endpointService implements rotunda.v1.EndpointService.
type endpointService struct{ s *Server }

func (a *endpointService) CreateEndpoint(ctx context.Context, req *connect.Request[rotundav1.CreateEndpointRequest]) (*connect.Response[rotundav1.CreateEndpointResponse], error) {
	o, err := once(ctx, req)
	if err != nil {
		return nil, err
	}
	made, err := a.s.Endpoints.Create(ctx, req.Msg.GetName(), endpointFrom(req.Msg), o)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.CreateEndpointResponse{Endpoint: endpointTo(made)}), nil
}

func (a *endpointService) ListEndpoints(ctx context.Context, req *connect.Request[rotundav1.ListEndpointsRequest]) (*connect.Response[rotundav1.ListEndpointsResponse], error) {
	page, err := pageOf(req.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	list, next, err := a.s.Endpoints.List(ctx, page, pageSize(req.Msg.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListEndpointsResponse{NextPageToken: pageToken(next)}
	for _, e := range list {
		res.Endpoints = append(res.Endpoints, endpointTo(e))
	}
	return connect.NewResponse(res), nil
}

func (a *endpointService) UpdateEndpoint(ctx context.Context, req *connect.Request[rotundav1.UpdateEndpointRequest]) (*connect.Response[rotundav1.UpdateEndpointResponse], error) {
	changed, err := a.s.Endpoints.Update(ctx, req.Msg.GetEndpoint(), req.Msg.GetVersion(), endpointFrom(req.Msg))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.UpdateEndpointResponse{Endpoint: endpointTo(changed)}), nil
}

func (a *endpointService) DisableEndpoint(ctx context.Context, req *connect.Request[rotundav1.DisableEndpointRequest]) (*connect.Response[rotundav1.DisableEndpointResponse], error) {
	changed, err := a.s.Endpoints.Disable(ctx, req.Msg.GetEndpoint(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.DisableEndpointResponse{Endpoint: endpointTo(changed)}), nil
}

func (a *endpointService) EnableEndpoint(ctx context.Context, req *connect.Request[rotundav1.EnableEndpointRequest]) (*connect.Response[rotundav1.EnableEndpointResponse], error) {
	changed, err := a.s.Endpoints.Enable(ctx, req.Msg.GetEndpoint(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.EnableEndpointResponse{Endpoint: endpointTo(changed)}), nil
}

func (a *endpointService) DeleteEndpoint(ctx context.Context, req *connect.Request[rotundav1.DeleteEndpointRequest]) (*connect.Response[rotundav1.DeleteEndpointResponse], error) {
	if err := a.s.Endpoints.Delete(ctx, req.Msg.GetEndpoint()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.DeleteEndpointResponse{}), nil
}

func (a *endpointService) TestEndpoint(ctx context.Context, req *connect.Request[rotundav1.TestEndpointRequest]) (*connect.Response[rotundav1.TestEndpointResponse], error) {
	queued, err := a.s.Endpoints.Test(ctx, req.Msg.GetEndpoint())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.TestEndpointResponse{Delivery: deliveryTo(queued)}), nil
}

func (a *endpointService) ListDeliveries(ctx context.Context, req *connect.Request[rotundav1.ListDeliveriesRequest]) (*connect.Response[rotundav1.ListDeliveriesResponse], error) {
	page, err := pageOf(req.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	q := rotation.ListDeliveries{Endpoint: req.Msg.GetEndpoint(), Page: page, Limit: pageSize(req.Msg.GetPageSize())}
	if req.Msg.GetDead() {
		q.State = rotation.Dead
	}
	list, next, err := a.s.Endpoints.Deliveries(ctx, q)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListDeliveriesResponse{NextPageToken: pageToken(next)}
	for _, d := range list {
		res.Deliveries = append(res.Deliveries, deliveryTo(d))
	}
	return connect.NewResponse(res), nil
}

func (a *endpointService) RedeliverMessage(ctx context.Context, req *connect.Request[rotundav1.RedeliverMessageRequest]) (*connect.Response[rotundav1.RedeliverMessageResponse], error) {
	d, err := a.s.Endpoints.Redeliver(ctx, req.Msg.GetDelivery())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RedeliverMessageResponse{Delivery: deliveryTo(d)}), nil
}

func endpointFrom(m interface {
	GetUrl() string
	GetPartner() string
	GetSecret() string
}) rotation.EndpointSpec {
	return rotation.EndpointSpec{URL: m.GetUrl(), Partner: m.GetPartner(), Secret: m.GetSecret()}
}

func endpointTo(e *rotation.Endpoint) *rotundav1.Endpoint {
	return &rotundav1.Endpoint{
		Name: e.Name, Url: e.URL, Partner: e.Partner, Secret: e.Secret, State: string(e.State), Reason: e.Reason,
		CreatedAt: timestamp(e.CreatedAt), Since: timestamp(e.Since), Version: e.Version,
	}
}

func deliveryTo(d *rotation.Delivery) *rotundav1.Delivery {
	return &rotundav1.Delivery{
		Id: d.ID, Endpoint: d.Endpoint, Type: d.Type, State: string(d.State), Attempts: small(d.Attempts), CreatedAt: timestamp(d.CreatedAt), NextAt: timestamp(d.NextAt),
		DeliveredAt: timestamp(d.DeliveredAt), LastStatus: small(d.LastStatus), LastError: d.LastError, Body: d.Body,
	}
}

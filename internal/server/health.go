package server

import (
	"context"
	"fmt"
	"slices"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
)

// healthChecker answers the gRPC health protocol with the server's readiness.
type healthChecker struct {
	s        *Server
	services []string
}

// Check implements grpchealth.Checker.
func (h healthChecker) Check(_ context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	if req.Service != "" && !slices.Contains(h.services, req.Service) {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no service of this name: use one of %v", h.services))
	}
	if ok, _ := h.s.ready(); !ok {
		return &grpchealth.CheckResponse{Status: grpchealth.StatusNotServing}, nil
	}
	return &grpchealth.CheckResponse{Status: grpchealth.StatusServing}, nil
}

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// auditService implements rotunda.v1.AuditService.
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
	for _, e := range events {
		detail, err := json.Marshal(e.Detail)
		if err != nil {
			return nil, fmt.Errorf("encode the detail of event %s: %w", e.ID, err)
		}
		res.Events = append(res.Events, &rotundav1.Event{
			Id: e.ID, Time: timestamppb.New(e.Time), Actor: e.Actor, Action: e.Action, Resource: e.Resource, Partner: e.Partner,
			Outcome: e.Outcome, Reason: e.Reason, RequestId: e.RequestID, Address: e.Address, Detail: string(detail), Count: e.Count,
		})
	}
	return connect.NewResponse(res), nil
}

// tokenService implements rotunda.v1.TokenService.
type tokenService struct{ s *Server }

var roles = map[rotundav1.Role]apikeys.Role{
	rotundav1.Role_ROLE_ADMIN:    apikeys.Admin,
	rotundav1.Role_ROLE_OPERATOR: apikeys.Operator,
	rotundav1.Role_ROLE_AUDITOR:  apikeys.Auditor,
	rotundav1.Role_ROLE_GATEWAY:  apikeys.Gateway,
	rotundav1.Role_ROLE_SIGNER:   apikeys.Signer,
}

func (t *tokenService) CreateToken(ctx context.Context, req *connect.Request[rotundav1.CreateTokenRequest]) (*connect.Response[rotundav1.CreateTokenResponse], error) {
	o, err := once(ctx, req)
	if err != nil {
		return nil, err
	}
	life, err := duration("expires_in", req.Msg.GetExpiresIn())
	if err != nil {
		return nil, err
	}
	token, value, err := t.s.Tokens.Create(ctx, apikeys.Create{
		Name: req.Msg.GetName(), Role: roles[req.Msg.GetRole()], Keysets: req.Msg.GetKeysets(), CIDRs: req.Msg.GetCidrs(), ExpiresIn: life, Once: o,
	})
	if err != nil {
		return nil, err
	}
	defer value.Destroy()
	res := connect.NewResponse(&rotundav1.CreateTokenResponse{Token: t.to(token), Value: value.RevealString()})
	res.Header().Set("Cache-Control", "no-store")
	return res, nil
}

func (t *tokenService) ListTokens(ctx context.Context, req *connect.Request[rotundav1.ListTokensRequest]) (*connect.Response[rotundav1.ListTokensResponse], error) {
	if _, err := pageOf(req.Msg.GetPageToken()); err != nil {
		return nil, err
	}
	list, next, err := t.s.Tokens.List(ctx, req.Msg.GetPageToken(), pageSize(req.Msg.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListTokensResponse{NextPageToken: next}
	for _, token := range list {
		res.Tokens = append(res.Tokens, t.to(token))
	}
	return connect.NewResponse(res), nil
}

func (t *tokenService) RevokeToken(ctx context.Context, req *connect.Request[rotundav1.RevokeTokenRequest]) (*connect.Response[rotundav1.RevokeTokenResponse], error) {
	token, err := t.s.Tokens.Revoke(ctx, req.Msg.GetId(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RevokeTokenResponse{Token: t.to(token)}), nil
}

func (t *tokenService) WhoAmI(ctx context.Context, _ *connect.Request[rotundav1.WhoAmIRequest]) (*connect.Response[rotundav1.WhoAmIResponse], error) {
	return connect.NewResponse(&rotundav1.WhoAmIResponse{Token: t.to(callerOf(ctx).token)}), nil
}

func (t *tokenService) to(a *apikeys.Token) *rotundav1.Token {
	out := &rotundav1.Token{
		Id: a.ID, Name: a.Name, Keysets: a.Keysets, CreatedAt: timestamp(a.CreatedAt), ExpiresAt: timestamp(a.ExpiresAt),
		State: a.State(t.s.DB.Now()), RevokedAt: timestamp(a.RevokedAt), Reason: a.Reason, LastUsedAt: timestamp(a.LastUsedAt),
	}
	for p, d := range roles {
		if d == a.Role {
			out.Role = p
		}
	}
	for _, c := range a.CIDRs {
		out.Cidrs = append(out.Cidrs, c.String())
	}
	return out
}

// recheckToken ends a stream whose caller may no longer have it: its token was
// revoked or has expired, or for too long nobody could say.
func (s *Server) recheckToken(ctx context.Context, t *apikeys.Token, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(s.recheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := s.Tokens.Usable(ctx, t.ID)
		if errors.Is(err, fault.ErrUnavailable) {
			cancel(fault.New(fault.ErrUnavailable, "token_unknown", "whether the stream's access token is still accepted can't be found out: begin again: %w", err))
			return
		}
		if err != nil {
			cancel(fault.New(fault.ErrDenied, "token_ended", "the stream's access token is no longer accepted"))
			return
		}
	}
}

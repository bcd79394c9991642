package server

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// tokenService implements rotunda.v1.TokenService.
type tokenService struct{ s *Server }

var roles = map[rotundav1.Role]apikeys.Role{
	rotundav1.Role_ROLE_ADMIN:    apikeys.Admin,
	rotundav1.Role_ROLE_OPERATOR: apikeys.Operator,
	rotundav1.Role_ROLE_AUDITOR:  apikeys.Auditor,
	rotundav1.Role_ROLE_GATEWAY:  apikeys.Gateway,
	rotundav1.Role_ROLE_SIGNER:   apikeys.Signer,
	rotundav1.Role_ROLE_PARTNER:  apikeys.Manager,
	rotundav1.Role_ROLE_READER:   apikeys.Reader,
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
		Name: req.Msg.GetName(), Role: roles[req.Msg.GetRole()], Partner: req.Msg.GetPartner(), Keysets: req.Msg.GetKeysets(), Paths: req.Msg.GetPaths(), CIDRs: req.Msg.GetCidrs(), ExpiresIn: life, Once: o,
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
		Id: a.ID, Name: a.Name, Partner: a.Partner, Keysets: a.Keysets, Paths: a.Paths, CreatedAt: timestamp(a.CreatedAt), ExpiresAt: timestamp(a.ExpiresAt),
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

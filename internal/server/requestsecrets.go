package server

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/apikeys"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// requestSecretService implements rotunda.v1.RequestSecretService.
type requestSecretService struct{ s *Server }

func (r *requestSecretService) CreateRequestSecret(ctx context.Context, req *connect.Request[rotundav1.CreateRequestSecretRequest]) (*connect.Response[rotundav1.CreateRequestSecretResponse], error) {
	partner, perr := r.s.onePartner(ctx, req.Msg.GetPartner())
	o, oerr := once(ctx, req)
	rate, rerr := rateFrom("rate_limit", req.Msg.GetRateLimit())
	life, lerr := duration("expires_in", req.Msg.GetExpiresIn())
	if err := errors.Join(perr, oerr, rerr, lerr); err != nil {
		return nil, err
	}
	made, err := r.s.Keys.Create(ctx, apikeys.RequestSecret, apikeys.KeySpec{
		Partner: partner, Name: req.Msg.GetName(), Environment: req.Msg.GetEnvironment(), Scopes: req.Msg.GetScopes(), CIDRs: req.Msg.GetCidrs(), Rate: rate,
		Metadata: req.Msg.GetMetadata(), ExpiresIn: life, PublicKey: req.Msg.GetPublicKey(), Once: o,
	})
	if err != nil {
		return nil, err
	}
	defer made.Value.Destroy()
	return shown(&rotundav1.CreateRequestSecretResponse{Secret: r.to(made.Key), Value: made.Value.RevealString()}), nil
}

func (r *requestSecretService) GetRequestSecret(ctx context.Context, req *connect.Request[rotundav1.GetRequestSecretRequest]) (*connect.Response[rotundav1.GetRequestSecretResponse], error) {
	partner, err := r.s.onePartner(ctx, req.Msg.GetPartner())
	if err != nil {
		return nil, err
	}
	versions, err := r.s.Keys.Versions(ctx, partner, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	res := &rotundav1.GetRequestSecretResponse{}
	for _, k := range versions {
		res.Versions = append(res.Versions, r.to(k))
	}
	return connect.NewResponse(res), nil
}

func (r *requestSecretService) ListRequestSecrets(ctx context.Context, req *connect.Request[rotundav1.ListRequestSecretsRequest]) (*connect.Response[rotundav1.ListRequestSecretsResponse], error) {
	keys, next, err := r.s.listKeys(ctx, apikeys.RequestSecret, req.Msg)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListRequestSecretsResponse{NextPageToken: next}
	for _, k := range keys {
		res.Secrets = append(res.Secrets, r.to(k))
	}
	return connect.NewResponse(res), nil
}

func (r *requestSecretService) RollRequestSecret(ctx context.Context, req *connect.Request[rotundav1.RollRequestSecretRequest]) (*connect.Response[rotundav1.RollRequestSecretResponse], error) {
	partner, perr := r.s.onePartner(ctx, req.Msg.GetPartner())
	o, oerr := once(ctx, req)
	roll, rerr := rollFrom(req.Msg)
	if err := errors.Join(perr, oerr, rerr); err != nil {
		return nil, err
	}
	roll.Kind, roll.Partner, roll.Name, roll.PublicKey, roll.Once = apikeys.RequestSecret, partner, req.Msg.GetName(), req.Msg.GetPublicKey(), o
	made, old, err := r.s.Keys.Roll(ctx, roll)
	if err != nil {
		return nil, err
	}
	defer made.Value.Destroy()
	return shown(&rotundav1.RollRequestSecretResponse{Secret: r.to(made.Key), Old: r.to(old), Value: made.Value.RevealString()}), nil
}

func (r *requestSecretService) SuspendRequestSecret(ctx context.Context, req *connect.Request[rotundav1.SuspendRequestSecretRequest]) (*connect.Response[rotundav1.SuspendRequestSecretResponse], error) {
	k, err := r.s.move(ctx, apikeys.RequestSecret, req.Msg, r.s.Keys.Suspend)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.SuspendRequestSecretResponse{Secret: r.to(k)}), nil
}

func (r *requestSecretService) ResumeRequestSecret(ctx context.Context, req *connect.Request[rotundav1.ResumeRequestSecretRequest]) (*connect.Response[rotundav1.ResumeRequestSecretResponse], error) {
	k, err := r.s.move(ctx, apikeys.RequestSecret, req.Msg, r.s.Keys.Resume)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ResumeRequestSecretResponse{Secret: r.to(k)}), nil
}

func (r *requestSecretService) RevokeRequestSecret(ctx context.Context, req *connect.Request[rotundav1.RevokeRequestSecretRequest]) (*connect.Response[rotundav1.RevokeRequestSecretResponse], error) {
	k, err := r.s.revoke(ctx, apikeys.RequestSecret, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RevokeRequestSecretResponse{Secret: r.to(k)}), nil
}

func (r *requestSecretService) to(k *apikeys.Key) *rotundav1.RequestSecret {
	return &rotundav1.RequestSecret{
		Id: k.ID, Partner: k.Partner, Name: k.Name, Environment: k.Environment, State: keyStates[k.State(r.s.DB.Now())], Algorithm: string(k.Algorithm), PublicKey: k.PublicKey,
		Scopes: k.Scopes, Cidrs: rangesTo(k), RateLimit: rateTo(k.Rate), Metadata: k.Metadata, CreatedAt: timestamp(k.CreatedAt), Since: timestamp(k.Since),
		ExpiresAt: timestamp(k.ExpiresAt), GraceEndsAt: timestamp(k.GraceEndsAt), Quiet: period(k.Quiet), ReplacedBy: k.ReplacedBy, Replaces: k.Replaces,
		RevocationReason: revocationTo(k.Reason), ReasonText: k.ReasonText, FirstUsedAt: timestamp(k.FirstUsedAt), LastUsedAt: timestamp(k.LastUsedAt), Version: k.Version,
	}
}

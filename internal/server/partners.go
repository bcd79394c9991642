package server

import (
	"context"
	"errors"
	"math"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// partnerService implements rotunda.v1.PartnerService.
type partnerService struct{ s *Server }

func (p *partnerService) CreatePartner(ctx context.Context, req *connect.Request[rotundav1.CreatePartnerRequest]) (*connect.Response[rotundav1.CreatePartnerResponse], error) {
	o, err := once(ctx, req)
	if err != nil {
		return nil, err
	}
	spec, err := partnerFrom(req.Msg)
	if err != nil {
		return nil, err
	}
	made, err := p.s.Partners.Create(ctx, req.Msg.GetName(), spec, o)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.CreatePartnerResponse{Partner: partnerTo(made)}), nil
}

func (p *partnerService) GetPartner(ctx context.Context, req *connect.Request[rotundav1.GetPartnerRequest]) (*connect.Response[rotundav1.GetPartnerResponse], error) {
	name, err := p.s.onePartner(ctx, req.Msg.GetPartner())
	if err != nil {
		return nil, err
	}
	found, err := p.s.Partners.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.GetPartnerResponse{Partner: partnerTo(found)}), nil
}

func (p *partnerService) ListPartners(ctx context.Context, req *connect.Request[rotundav1.ListPartnersRequest]) (*connect.Response[rotundav1.ListPartnersResponse], error) {
	if _, err := pageOf(req.Msg.GetPageToken()); err != nil {
		return nil, err
	}
	list, next, err := p.s.Partners.List(ctx, req.Msg.GetPageToken(), pageSize(req.Msg.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListPartnersResponse{NextPageToken: next}
	for _, one := range list {
		res.Partners = append(res.Partners, partnerTo(one))
	}
	return connect.NewResponse(res), nil
}

func (p *partnerService) UpdatePartner(ctx context.Context, req *connect.Request[rotundav1.UpdatePartnerRequest]) (*connect.Response[rotundav1.UpdatePartnerResponse], error) {
	spec, err := partnerFrom(req.Msg)
	if err != nil {
		return nil, err
	}
	changed, err := p.s.Partners.Update(ctx, req.Msg.GetPartner(), req.Msg.GetVersion(), spec)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.UpdatePartnerResponse{Partner: partnerTo(changed)}), nil
}

func (p *partnerService) SuspendPartner(ctx context.Context, req *connect.Request[rotundav1.SuspendPartnerRequest]) (*connect.Response[rotundav1.SuspendPartnerResponse], error) {
	changed, err := p.s.Partners.Suspend(ctx, req.Msg.GetPartner(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	p.s.Tokens.Forget(changed.Name) // so that its tokens end with this answer, in this process
	return connect.NewResponse(&rotundav1.SuspendPartnerResponse{Partner: partnerTo(changed)}), nil
}

func (p *partnerService) ResumePartner(ctx context.Context, req *connect.Request[rotundav1.ResumePartnerRequest]) (*connect.Response[rotundav1.ResumePartnerResponse], error) {
	changed, err := p.s.Partners.Resume(ctx, req.Msg.GetPartner(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	p.s.Tokens.Forget(changed.Name)
	return connect.NewResponse(&rotundav1.ResumePartnerResponse{Partner: partnerTo(changed)}), nil
}

// partnerFrom reads what may change of a partner.
func partnerFrom(m interface {
	GetScopes() []string
	GetPublishableScopes() []string
	GetMaxKeys() int32
	GetMaxKeyTtl() *durationpb.Duration
	GetSigningPolicy() *rotundav1.SigningPolicy
	GetMetadata() map[string]string
}) (apikeys.PartnerSpec, error) {
	signing := m.GetSigningPolicy()
	life, lerr := duration("max_key_ttl", m.GetMaxKeyTtl())
	age, aerr := duration("signing_policy.max_age", signing.GetMaxAge())
	skew, serr := duration("signing_policy.skew", signing.GetSkew())
	return apikeys.PartnerSpec{
		Scopes: m.GetScopes(), PublishableScopes: m.GetPublishableScopes(), MaxKeys: int(m.GetMaxKeys()), MaxKeyTTL: life, Metadata: m.GetMetadata(),
		Signing: apikeys.SigningPolicy{Components: signing.GetComponents(), MaxAge: age, Skew: skew, Tag: signing.GetTag()},
	}, errors.Join(lerr, aerr, serr)
}

func partnerTo(p *apikeys.Partner) *rotundav1.Partner {
	out := &rotundav1.Partner{
		Name: p.Name, State: rotundav1.PartnerState_PARTNER_STATE_ACTIVE, Scopes: p.Scopes, PublishableScopes: p.PublishableScopes,
		MaxKeys: int32(min(p.MaxKeys, math.MaxInt32)), MaxKeyTtl: period(p.MaxKeyTTL), Metadata: p.Metadata, CreatedAt: timestamp(p.CreatedAt), Since: timestamp(p.Since),
		Reason: p.Reason, Version: p.Version,
	}
	if p.State == apikeys.Suspended {
		out.State = rotundav1.PartnerState_PARTNER_STATE_SUSPENDED
	}
	if s := p.Signing; len(s.Components) > 0 || s.MaxAge != 0 || s.Skew != 0 || s.Tag != "" {
		out.SigningPolicy = &rotundav1.SigningPolicy{Components: s.Components, MaxAge: period(s.MaxAge), Skew: period(s.Skew), Tag: s.Tag}
	}
	return out
}

// period writes a duration of which 0 is none.
func period(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// rateFrom reads a rate limit; none is no limit.
func rateFrom(field string, m *rotundav1.RateLimit) (apikeys.RateLimit, error) {
	if m == nil {
		return apikeys.RateLimit{}, nil
	}
	window, err := duration(field+".window", m.GetWindow())
	if err == nil && window <= 0 {
		err = fault.Invalid(field+".window", "duration_range", "%s.window is how long the quota is for: from 1 ms to 24 h", field)
	}
	return apikeys.RateLimit{Quota: m.GetQuota(), Window: window, Burst: m.GetBurst()}, err
}

func rateTo(r apikeys.RateLimit) *rotundav1.RateLimit {
	if r.None() {
		return nil
	}
	return &rotundav1.RateLimit{Quota: r.Quota, Window: durationpb.New(r.Window), Burst: r.Burst}
}

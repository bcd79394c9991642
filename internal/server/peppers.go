package server

import (
	"context"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/apikeys"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// pepperService implements rotunda.v1.PepperService.
type pepperService struct{ s *Server }

func (p *pepperService) ListPeppers(ctx context.Context, _ *connect.Request[rotundav1.ListPeppersRequest]) (*connect.Response[rotundav1.ListPeppersResponse], error) {
	list, err := p.s.Peppers.List(ctx)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListPeppersResponse{}
	for _, g := range list {
		res.Peppers = append(res.Peppers, pepperTo(g))
	}
	return connect.NewResponse(res), nil
}

func (p *pepperService) RotatePepper(ctx context.Context, req *connect.Request[rotundav1.RotatePepperRequest]) (*connect.Response[rotundav1.RotatePepperResponse], error) {
	made, err := p.s.Peppers.Rotate(ctx, req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RotatePepperResponse{Pepper: pepperTo(made)}), nil
}

func (p *pepperService) ListStragglers(ctx context.Context, req *connect.Request[rotundav1.ListStragglersRequest]) (*connect.Response[rotundav1.ListStragglersResponse], error) {
	if _, err := pageOf(req.Msg.GetPageToken()); err != nil {
		return nil, err
	}
	list, next, err := p.s.Peppers.Stragglers(ctx, req.Msg.GetGeneration(), req.Msg.GetPageToken(), pageSize(req.Msg.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListStragglersResponse{NextPageToken: next}
	for _, one := range list {
		res.Stragglers = append(res.Stragglers, &rotundav1.Straggler{
			Kind: one.Kind, Id: one.ID, Partner: one.Partner, Name: one.Name, LastUsedAt: timestamp(one.LastUsedAt), ExpiresAt: timestamp(one.ExpiresAt),
		})
	}
	return connect.NewResponse(res), nil
}

func (p *pepperService) RetirePepper(ctx context.Context, req *connect.Request[rotundav1.RetirePepperRequest]) (*connect.Response[rotundav1.RetirePepperResponse], error) {
	retired, err := p.s.Peppers.Retire(ctx, req.Msg.GetGeneration(), req.Msg.GetReason())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RetirePepperResponse{Pepper: pepperTo(retired)}), nil
}

func pepperTo(g apikeys.Pepper) *rotundav1.Pepper {
	return &rotundav1.Pepper{Generation: g.Gen, CreatedAt: timestamp(g.CreatedAt), RetiredAt: timestamp(g.RetiredAt), Keys: g.Keys, Tokens: g.Tokens}
}

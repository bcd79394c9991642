package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// apiKeyService implements rotunda.v1.ApiKeyService.
type apiKeyService struct{ s *Server }

var keyStates = map[apikeys.State]rotundav1.ApiKeyState{
	apikeys.Active:    rotundav1.ApiKeyState_API_KEY_STATE_ACTIVE,
	apikeys.Retiring:  rotundav1.ApiKeyState_API_KEY_STATE_RETIRING,
	apikeys.Retired:   rotundav1.ApiKeyState_API_KEY_STATE_RETIRED,
	apikeys.Revoked:   rotundav1.ApiKeyState_API_KEY_STATE_REVOKED,
	apikeys.Suspended: rotundav1.ApiKeyState_API_KEY_STATE_SUSPENDED,
	apikeys.Expired:   rotundav1.ApiKeyState_API_KEY_STATE_EXPIRED,
}

var classesFrom = map[rotundav1.KeyClass]apikeys.Class{
	rotundav1.KeyClass_KEY_CLASS_UNSPECIFIED: apikeys.ClassSecret,
	rotundav1.KeyClass_KEY_CLASS_SECRET:      apikeys.ClassSecret,
	rotundav1.KeyClass_KEY_CLASS_PUBLISHABLE: apikeys.ClassPublishable,
}

func classTo(c apikeys.Class) rotundav1.KeyClass {
	if c == apikeys.ClassPublishable {
		return rotundav1.KeyClass_KEY_CLASS_PUBLISHABLE
	}
	return rotundav1.KeyClass_KEY_CLASS_SECRET
}

var revocations = map[rotundav1.RevocationReason]string{
	rotundav1.RevocationReason_REVOCATION_REASON_UNSPECIFIED:            apikeys.Unspecified,
	rotundav1.RevocationReason_REVOCATION_REASON_KEY_COMPROMISE:         apikeys.KeyCompromise,
	rotundav1.RevocationReason_REVOCATION_REASON_AFFILIATION_CHANGED:    apikeys.AffiliationChanged,
	rotundav1.RevocationReason_REVOCATION_REASON_SUPERSEDED:             apikeys.Superseded,
	rotundav1.RevocationReason_REVOCATION_REASON_CESSATION_OF_OPERATION: apikeys.CessationOfOperation,
	rotundav1.RevocationReason_REVOCATION_REASON_PRIVILEGE_WITHDRAWN:    apikeys.PrivilegeWithdrawn,
}

func revocationTo(reason string) rotundav1.RevocationReason {
	for m, name := range revocations {
		if name == reason {
			return m
		}
	}
	return rotundav1.RevocationReason_REVOCATION_REASON_UNSPECIFIED
}

// shown is a response with a value that is nowhere else.
func shown[T any](res *T) *connect.Response[T] {
	out := connect.NewResponse(res)
	out.Header().Set("Cache-Control", "no-store")
	return out
}

func (a *apiKeyService) CreateApiKey(ctx context.Context, req *connect.Request[rotundav1.CreateApiKeyRequest]) (*connect.Response[rotundav1.CreateApiKeyResponse], error) {
	partner, perr := a.s.onePartner(ctx, req.Msg.GetPartner())
	o, oerr := once(ctx, req)
	rate, rerr := rateFrom("rate_limit", req.Msg.GetRateLimit())
	life, lerr := duration("expires_in", req.Msg.GetExpiresIn())
	if err := errors.Join(perr, oerr, rerr, lerr); err != nil {
		return nil, err
	}
	made, err := a.s.Keys.Create(ctx, apikeys.APIKey, apikeys.KeySpec{
		Partner: partner, Name: req.Msg.GetName(), Environment: req.Msg.GetEnvironment(), Class: classesFrom[req.Msg.GetClass()], Scopes: req.Msg.GetScopes(),
		CIDRs: req.Msg.GetCidrs(), Rate: rate, Metadata: req.Msg.GetMetadata(), ExpiresIn: life, Once: o,
	})
	if err != nil {
		return nil, err
	}
	defer made.Value.Destroy()
	return shown(&rotundav1.CreateApiKeyResponse{Key: a.to(made.Key), Value: made.Value.RevealString()}), nil
}

func (a *apiKeyService) GetApiKey(ctx context.Context, req *connect.Request[rotundav1.GetApiKeyRequest]) (*connect.Response[rotundav1.GetApiKeyResponse], error) {
	k, err := a.s.Keys.Get(ctx, apikeys.APIKey, a.s.partner(ctx, req.Msg.GetPartner()), req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.GetApiKeyResponse{Key: a.to(k)}), nil
}

func (a *apiKeyService) ListApiKeys(ctx context.Context, req *connect.Request[rotundav1.ListApiKeysRequest]) (*connect.Response[rotundav1.ListApiKeysResponse], error) {
	keys, next, err := a.s.listKeys(ctx, apikeys.APIKey, req.Msg)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListApiKeysResponse{NextPageToken: next}
	for _, k := range keys {
		res.Keys = append(res.Keys, a.to(k))
	}
	return connect.NewResponse(res), nil
}

func (s *Server) listKeys(ctx context.Context, kind apikeys.Kind, m interface {
	GetPartner() string
	GetEnded() bool
	GetPageSize() int32
	GetPageToken() string
}) (keys []*apikeys.Key, next string, err error) {
	if _, err := pageOf(m.GetPageToken()); err != nil {
		return nil, "", err
	}
	return s.Keys.List(ctx, apikeys.ListKeys{
		Kind: kind, Partner: s.partner(ctx, m.GetPartner()), Ended: m.GetEnded(), Page: m.GetPageToken(), Limit: pageSize(m.GetPageSize()),
	})
}

func (a *apiKeyService) UpdateApiKey(ctx context.Context, req *connect.Request[rotundav1.UpdateApiKeyRequest]) (*connect.Response[rotundav1.UpdateApiKeyResponse], error) {
	rate, err := rateFrom("rate_limit", req.Msg.GetRateLimit())
	if err != nil {
		return nil, err
	}
	k, err := a.s.Keys.Update(ctx, req.Msg.GetId(), req.Msg.GetVersion(), apikeys.KeySpec{
		Partner: a.s.partner(ctx, req.Msg.GetPartner()), Name: req.Msg.GetName(), Scopes: req.Msg.GetScopes(), CIDRs: req.Msg.GetCidrs(), Rate: rate, Metadata: req.Msg.GetMetadata(),
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.UpdateApiKeyResponse{Key: a.to(k)}), nil
}

// rollFrom reads how a key is rolled.
func rollFrom(m interface {
	GetGrace() *durationpb.Duration
	GetQuiet() *durationpb.Duration
	GetExpiresIn() *durationpb.Duration
}) (apikeys.Roll, error) {
	grace, gerr := duration("grace", m.GetGrace())
	quiet, qerr := duration("quiet", m.GetQuiet())
	life, lerr := duration("expires_in", m.GetExpiresIn())
	r := apikeys.Roll{Quiet: quiet, ExpiresIn: life}
	if m.GetGrace() != nil {
		r.Grace = &grace
	}
	return r, errors.Join(gerr, qerr, lerr)
}

func (a *apiKeyService) RollApiKey(ctx context.Context, req *connect.Request[rotundav1.RollApiKeyRequest]) (*connect.Response[rotundav1.RollApiKeyResponse], error) {
	o, oerr := once(ctx, req)
	r, rerr := rollFrom(req.Msg)
	if err := errors.Join(oerr, rerr); err != nil {
		return nil, err
	}
	r.Kind, r.Partner, r.ID, r.Once = apikeys.APIKey, a.s.partner(ctx, req.Msg.GetPartner()), req.Msg.GetId(), o
	made, old, err := a.s.Keys.Roll(ctx, r)
	if err != nil {
		return nil, err
	}
	defer made.Value.Destroy()
	return shown(&rotundav1.RollApiKeyResponse{Key: a.to(made.Key), Old: a.to(old), Value: made.Value.RevealString()}), nil
}

func (a *apiKeyService) SuspendApiKey(ctx context.Context, req *connect.Request[rotundav1.SuspendApiKeyRequest]) (*connect.Response[rotundav1.SuspendApiKeyResponse], error) {
	k, err := a.s.move(ctx, apikeys.APIKey, req.Msg, a.s.Keys.Suspend)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.SuspendApiKeyResponse{Key: a.to(k)}), nil
}

func (a *apiKeyService) ResumeApiKey(ctx context.Context, req *connect.Request[rotundav1.ResumeApiKeyRequest]) (*connect.Response[rotundav1.ResumeApiKeyResponse], error) {
	k, err := a.s.move(ctx, apikeys.APIKey, req.Msg, a.s.Keys.Resume)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ResumeApiKeyResponse{Key: a.to(k)}), nil
}

// move suspends or resumes a key.
func (s *Server) move(ctx context.Context, kind apikeys.Kind, m interface {
	GetPartner() string
	GetId() string
	GetReason() string
}, to func(ctx context.Context, kind apikeys.Kind, partner, id, reason string) (*apikeys.Key, error)) (*apikeys.Key, error) {
	return to(ctx, kind, s.partner(ctx, m.GetPartner()), m.GetId(), m.GetReason())
}

func (a *apiKeyService) RevokeApiKey(ctx context.Context, req *connect.Request[rotundav1.RevokeApiKeyRequest]) (*connect.Response[rotundav1.RevokeApiKeyResponse], error) {
	k, err := a.s.revoke(ctx, apikeys.APIKey, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RevokeApiKeyResponse{Key: a.to(k)}), nil
}

func (s *Server) revoke(ctx context.Context, kind apikeys.Kind, m interface {
	GetPartner() string
	GetId() string
	GetReason() rotundav1.RevocationReason
	GetText() string
}) (*apikeys.Key, error) {
	return s.Keys.Revoke(ctx, kind, s.partner(ctx, m.GetPartner()), m.GetId(), revocations[m.GetReason()], m.GetText())
}

func (a *apiKeyService) ImportApiKeys(ctx context.Context, req *connect.Request[rotundav1.ImportApiKeysRequest]) (*connect.Response[rotundav1.ImportApiKeysResponse], error) {
	partner, perr := a.s.onePartner(ctx, req.Msg.GetPartner())
	life, lerr := duration("weak_ttl", req.Msg.GetWeakTtl())
	if err := errors.Join(perr, lerr); err != nil {
		return nil, err
	}
	origin := apikeys.OriginSHA256
	if req.Msg.GetForm() == rotundav1.ImportForm_IMPORT_FORM_RAW {
		origin = apikeys.OriginRaw
	}
	items := make([]apikeys.ImportItem, 0, len(req.Msg.GetItems()))
	defer func() {
		for _, item := range items {
			item.Value.Destroy()
		}
	}()
	for i, m := range req.Msg.GetItems() {
		rate, err := rateFrom(fmt.Sprintf("items[%d].rate_limit", i), m.GetRateLimit())
		if err != nil {
			return nil, err
		}
		items = append(items, apikeys.ImportItem{
			Value: secret.FromString(m.GetValue()), Name: m.GetName(), Environment: m.GetEnvironment(), Scopes: m.GetScopes(), CIDRs: m.GetCidrs(), Rate: rate,
			Metadata: m.GetMetadata(), ExpiresAt: instant(m.GetExpiresAt()),
		})
	}
	done, err := a.s.Keys.Import(ctx, partner, origin, life, items)
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ImportApiKeysResponse{}
	for i, d := range done {
		result := &rotundav1.ImportResult{Id: d.ID, Weak: d.Weak}
		if d.Err != nil {
			f, ok := errors.AsType[*fault.Error](d.Err)
			if !ok || !errors.Is(d.Err, fault.ErrExists) && !errors.Is(d.Err, fault.ErrInvalid) {
				return nil, fmt.Errorf("import item %d: %w", i, d.Err)
			}
			result.Reason, result.Message = f.Reason, d.Err.Error()
			if errors.Is(d.Err, fault.ErrExists) {
				result.Reason = "exists"
			}
		}
		res.Results = append(res.Results, result)
	}
	return connect.NewResponse(res), nil
}

func (a *apiKeyService) to(k *apikeys.Key) *rotundav1.ApiKey { return apiKeyTo(k, a.s.DB.Now()) }

func apiKeyTo(k *apikeys.Key, now time.Time) *rotundav1.ApiKey {
	return &rotundav1.ApiKey{
		Id: k.ID, Partner: k.Partner, Name: k.Name, Environment: k.Environment, Class: classTo(k.Class), State: keyStates[k.State(now)], Scopes: k.Scopes, Cidrs: rangesTo(k),
		RateLimit: rateTo(k.Rate), Metadata: k.Metadata, CreatedAt: timestamp(k.CreatedAt), Since: timestamp(k.Since), ExpiresAt: timestamp(k.ExpiresAt),
		GraceEndsAt: timestamp(k.GraceEndsAt), Quiet: period(k.Quiet), ReplacedBy: k.ReplacedBy, Replaces: k.Replaces, RevocationReason: revocationTo(k.Reason),
		ReasonText: k.ReasonText, FirstUsedAt: timestamp(k.FirstUsedAt), LastUsedAt: timestamp(k.LastUsedAt), Origin: k.Origin, Weak: k.Weak,
		PepperGeneration: k.PepperGen, Version: k.Version,
	}
}

func rangesTo(k *apikeys.Key) []string {
	var out []string
	for _, c := range k.CIDRs {
		out = append(out, c.String())
	}
	return out
}

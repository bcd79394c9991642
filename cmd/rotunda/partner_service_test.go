package main

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func (s *service) CreatePartner(ctx context.Context, r *connect.Request[v1.CreatePartnerRequest]) (*connect.Response[v1.CreatePartnerResponse], error) {
	return respond[v1.CreatePartnerRequest, v1.CreatePartnerResponse](ctx, s, r)
}

func (s *service) GetPartner(ctx context.Context, r *connect.Request[v1.GetPartnerRequest]) (*connect.Response[v1.GetPartnerResponse], error) {
	return respond[v1.GetPartnerRequest, v1.GetPartnerResponse](ctx, s, r)
}

func (s *service) ListPartners(ctx context.Context, r *connect.Request[v1.ListPartnersRequest]) (*connect.Response[v1.ListPartnersResponse], error) {
	return respond[v1.ListPartnersRequest, v1.ListPartnersResponse](ctx, s, r)
}

func (s *service) UpdatePartner(ctx context.Context, r *connect.Request[v1.UpdatePartnerRequest]) (*connect.Response[v1.UpdatePartnerResponse], error) {
	return respond[v1.UpdatePartnerRequest, v1.UpdatePartnerResponse](ctx, s, r)
}

func (s *service) SuspendPartner(ctx context.Context, r *connect.Request[v1.SuspendPartnerRequest]) (*connect.Response[v1.SuspendPartnerResponse], error) {
	return respond[v1.SuspendPartnerRequest, v1.SuspendPartnerResponse](ctx, s, r)
}

func (s *service) ResumePartner(ctx context.Context, r *connect.Request[v1.ResumePartnerRequest]) (*connect.Response[v1.ResumePartnerResponse], error) {
	return respond[v1.ResumePartnerRequest, v1.ResumePartnerResponse](ctx, s, r)
}

func (s *service) CreateApiKey(ctx context.Context, r *connect.Request[v1.CreateApiKeyRequest]) (*connect.Response[v1.CreateApiKeyResponse], error) {
	return respond[v1.CreateApiKeyRequest, v1.CreateApiKeyResponse](ctx, s, r)
}

func (s *service) ImportApiKeys(ctx context.Context, r *connect.Request[v1.ImportApiKeysRequest]) (*connect.Response[v1.ImportApiKeysResponse], error) {
	return respond[v1.ImportApiKeysRequest, v1.ImportApiKeysResponse](ctx, s, r)
}

func (s *service) GetApiKey(ctx context.Context, r *connect.Request[v1.GetApiKeyRequest]) (*connect.Response[v1.GetApiKeyResponse], error) {
	return respond[v1.GetApiKeyRequest, v1.GetApiKeyResponse](ctx, s, r)
}

func (s *service) ListApiKeys(ctx context.Context, r *connect.Request[v1.ListApiKeysRequest]) (*connect.Response[v1.ListApiKeysResponse], error) {
	return respond[v1.ListApiKeysRequest, v1.ListApiKeysResponse](ctx, s, r)
}

func (s *service) UpdateApiKey(ctx context.Context, r *connect.Request[v1.UpdateApiKeyRequest]) (*connect.Response[v1.UpdateApiKeyResponse], error) {
	return respond[v1.UpdateApiKeyRequest, v1.UpdateApiKeyResponse](ctx, s, r)
}

func (s *service) RollApiKey(ctx context.Context, r *connect.Request[v1.RollApiKeyRequest]) (*connect.Response[v1.RollApiKeyResponse], error) {
	return respond[v1.RollApiKeyRequest, v1.RollApiKeyResponse](ctx, s, r)
}

func (s *service) SuspendApiKey(ctx context.Context, r *connect.Request[v1.SuspendApiKeyRequest]) (*connect.Response[v1.SuspendApiKeyResponse], error) {
	return respond[v1.SuspendApiKeyRequest, v1.SuspendApiKeyResponse](ctx, s, r)
}

func (s *service) ResumeApiKey(ctx context.Context, r *connect.Request[v1.ResumeApiKeyRequest]) (*connect.Response[v1.ResumeApiKeyResponse], error) {
	return respond[v1.ResumeApiKeyRequest, v1.ResumeApiKeyResponse](ctx, s, r)
}

func (s *service) RevokeApiKey(ctx context.Context, r *connect.Request[v1.RevokeApiKeyRequest]) (*connect.Response[v1.RevokeApiKeyResponse], error) {
	return respond[v1.RevokeApiKeyRequest, v1.RevokeApiKeyResponse](ctx, s, r)
}

func (s *service) CreateRequestSecret(ctx context.Context, r *connect.Request[v1.CreateRequestSecretRequest]) (*connect.Response[v1.CreateRequestSecretResponse], error) {
	return respond[v1.CreateRequestSecretRequest, v1.CreateRequestSecretResponse](ctx, s, r)
}

func (s *service) GetRequestSecret(ctx context.Context, r *connect.Request[v1.GetRequestSecretRequest]) (*connect.Response[v1.GetRequestSecretResponse], error) {
	return respond[v1.GetRequestSecretRequest, v1.GetRequestSecretResponse](ctx, s, r)
}

func (s *service) ListRequestSecrets(ctx context.Context, r *connect.Request[v1.ListRequestSecretsRequest]) (*connect.Response[v1.ListRequestSecretsResponse], error) {
	return respond[v1.ListRequestSecretsRequest, v1.ListRequestSecretsResponse](ctx, s, r)
}

func (s *service) RollRequestSecret(ctx context.Context, r *connect.Request[v1.RollRequestSecretRequest]) (*connect.Response[v1.RollRequestSecretResponse], error) {
	return respond[v1.RollRequestSecretRequest, v1.RollRequestSecretResponse](ctx, s, r)
}

func (s *service) SuspendRequestSecret(ctx context.Context, r *connect.Request[v1.SuspendRequestSecretRequest]) (*connect.Response[v1.SuspendRequestSecretResponse], error) {
	return respond[v1.SuspendRequestSecretRequest, v1.SuspendRequestSecretResponse](ctx, s, r)
}

func (s *service) ResumeRequestSecret(ctx context.Context, r *connect.Request[v1.ResumeRequestSecretRequest]) (*connect.Response[v1.ResumeRequestSecretResponse], error) {
	return respond[v1.ResumeRequestSecretRequest, v1.ResumeRequestSecretResponse](ctx, s, r)
}

func (s *service) RevokeRequestSecret(ctx context.Context, r *connect.Request[v1.RevokeRequestSecretRequest]) (*connect.Response[v1.RevokeRequestSecretResponse], error) {
	return respond[v1.RevokeRequestSecretRequest, v1.RevokeRequestSecretResponse](ctx, s, r)
}

func (s *service) ListPeppers(ctx context.Context, r *connect.Request[v1.ListPeppersRequest]) (*connect.Response[v1.ListPeppersResponse], error) {
	return respond[v1.ListPeppersRequest, v1.ListPeppersResponse](ctx, s, r)
}

func (s *service) RotatePepper(ctx context.Context, r *connect.Request[v1.RotatePepperRequest]) (*connect.Response[v1.RotatePepperResponse], error) {
	return respond[v1.RotatePepperRequest, v1.RotatePepperResponse](ctx, s, r)
}

func (s *service) ListStragglers(ctx context.Context, r *connect.Request[v1.ListStragglersRequest]) (*connect.Response[v1.ListStragglersResponse], error) {
	return respond[v1.ListStragglersRequest, v1.ListStragglersResponse](ctx, s, r)
}

func (s *service) RetirePepper(ctx context.Context, r *connect.Request[v1.RetirePepperRequest]) (*connect.Response[v1.RetirePepperResponse], error) {
	return respond[v1.RetirePepperRequest, v1.RetirePepperResponse](ctx, s, r)
}

func (s *service) VerifyApiKey(ctx context.Context, r *connect.Request[v1.VerifyApiKeyRequest]) (*connect.Response[v1.VerifyApiKeyResponse], error) {
	return respond[v1.VerifyApiKeyRequest, v1.VerifyApiKeyResponse](ctx, s, r)
}

func (s *service) VerifyApiKeys(ctx context.Context, r *connect.Request[v1.VerifyApiKeysRequest]) (*connect.Response[v1.VerifyApiKeysResponse], error) {
	return respond[v1.VerifyApiKeysRequest, v1.VerifyApiKeysResponse](ctx, s, r)
}

func (s *service) VerifyRequest(ctx context.Context, r *connect.Request[v1.VerifyRequestRequest]) (*connect.Response[v1.VerifyRequestResponse], error) {
	return respond[v1.VerifyRequestRequest, v1.VerifyRequestResponse](ctx, s, r)
}

const (
	keyID    = "9dQs7w3xYd5sRt1k"
	oldKeyID = "2aBc4d6eFg8hIj0k"
	secretID = "7hRt2w9xKd5sQq3u"
	// testKey is what the stand-in makes; a command prints it on stdout or not at all.
	testKey    = "rk_live_9dQs7w3xYd5sRt1k_the-value-of-a-new-key"
	testSecret = "whsec_dGhlIHZhbHVlIG9mIGEgbmV3IHNlY3JldA=="
)

func acme() *v1.Partner {
	return &v1.Partner{
		Name: "acme", State: v1.PartnerState_PARTNER_STATE_ACTIVE, Scopes: []string{"orders:read", "orders:write"}, PublishableScopes: []string{"orders:read"},
		MaxKeys: 1000, MaxKeyTtl: dur(8760 * time.Hour), SigningPolicy: &v1.SigningPolicy{MaxAge: dur(time.Minute), Tag: "orders"},
		Metadata: map[string]string{"crm": "4711", "tier": "gold"}, CreatedAt: at(-40 * day), Since: at(-40 * day), Version: 3,
	}
}

func ciKey() *v1.ApiKey {
	return &v1.ApiKey{
		Id: keyID, Partner: "acme", Name: "ci", Environment: "live", Class: v1.KeyClass_KEY_CLASS_SECRET, State: v1.ApiKeyState_API_KEY_STATE_ACTIVE,
		Scopes: []string{"orders:read"}, Cidrs: []string{"203.0.113.0/24", "2001:db8::/32"}, RateLimit: &v1.RateLimit{Quota: 100, Window: dur(time.Second), Burst: 200},
		Metadata: map[string]string{"owner": "ann"}, CreatedAt: at(-time.Hour), Since: at(-time.Hour), ExpiresAt: at(90 * day), FirstUsedAt: at(-50 * time.Minute), LastUsedAt: at(-time.Minute),
		Origin: "rotunda", PepperGeneration: 2, Version: 5, Replaces: oldKeyID,
	}
}

func oldKey() *v1.ApiKey {
	k := ciKey()
	k.Id, k.Replaces, k.ReplacedBy, k.State, k.Since = oldKeyID, "", keyID, v1.ApiKeyState_API_KEY_STATE_RETIRING, at(-time.Hour)
	k.GraceEndsAt, k.Quiet, k.CreatedAt, k.RateLimit, k.Cidrs, k.LastUsedAt = at(71*time.Hour), dur(day), at(-30*day), nil, nil, at(-26*time.Hour)
	return k
}

func weakKey() *v1.ApiKey {
	return &v1.ApiKey{
		Id: "5wEaK0000000000k", Partner: "acme", Name: "legacy", Environment: "live", Class: v1.KeyClass_KEY_CLASS_SECRET, State: v1.ApiKeyState_API_KEY_STATE_ACTIVE,
		Scopes: []string{"orders:read"}, CreatedAt: at(-day), ExpiresAt: at(29 * day), Origin: "raw", Weak: true, PepperGeneration: 1, Version: 1,
	}
}

func ordersSecret() *v1.RequestSecret {
	return &v1.RequestSecret{
		Id: secretID, Partner: "acme", Name: "orders-signing", Environment: "live", State: v1.ApiKeyState_API_KEY_STATE_ACTIVE, Algorithm: "hmac-sha256",
		Scopes: []string{"orders:write"}, CreatedAt: at(-time.Hour), Since: at(-time.Hour), ExpiresAt: at(365 * day), Version: 1,
	}
}

func aVerified() *v1.Verified {
	return &v1.Verified{
		Partner: "acme", KeyId: keyID, Name: "ci", Environment: "live", Class: v1.KeyClass_KEY_CLASS_SECRET, Scopes: []string{"orders:read"}, State: v1.ApiKeyState_API_KEY_STATE_ACTIVE,
		ExpiresAt: at(90 * day), Rate: &v1.RateState{Limit: &v1.RateLimit{Quota: 100, Window: dur(time.Second)}, Remaining: 99, Reset_: dur(10 * time.Millisecond)},
	}
}

// usualPartner answers as a server with one partner would.
func usualPartner(req proto.Message) proto.Message {
	switch req := req.(type) {
	case *v1.CreatePartnerRequest:
		p := acme()
		p.Version = 1
		return &v1.CreatePartnerResponse{Partner: p}
	case *v1.GetPartnerRequest:
		return &v1.GetPartnerResponse{Partner: acme()}
	case *v1.ListPartnersRequest:
		stopped := acme()
		stopped.Name, stopped.State, stopped.Reason, stopped.MaxKeyTtl, stopped.Scopes = "webshop", v1.PartnerState_PARTNER_STATE_SUSPENDED, "their CI was broken into", nil, nil
		return &v1.ListPartnersResponse{Partners: []*v1.Partner{acme(), stopped}}
	case *v1.UpdatePartnerRequest:
		return &v1.UpdatePartnerResponse{Partner: acme()}
	case *v1.SuspendPartnerRequest:
		p := acme()
		p.State, p.Since, p.Reason, p.Version = v1.PartnerState_PARTNER_STATE_SUSPENDED, at(0), req.GetReason(), 4
		return &v1.SuspendPartnerResponse{Partner: p}
	case *v1.ResumePartnerRequest:
		return &v1.ResumePartnerResponse{Partner: acme()}
	case *v1.CreateApiKeyRequest:
		return &v1.CreateApiKeyResponse{Key: ciKey(), Value: testKey}
	case *v1.ImportApiKeysRequest:
		res := &v1.ImportApiKeysResponse{}
		for range req.GetItems() {
			res.Results = append(res.Results, &v1.ImportResult{Id: keyID})
		}
		return res
	case *v1.GetApiKeyRequest:
		return &v1.GetApiKeyResponse{Key: ciKey()}
	case *v1.ListApiKeysRequest:
		return &v1.ListApiKeysResponse{Keys: []*v1.ApiKey{ciKey(), oldKey(), weakKey()}}
	case *v1.UpdateApiKeyRequest:
		return &v1.UpdateApiKeyResponse{Key: ciKey()}
	case *v1.RollApiKeyRequest:
		return &v1.RollApiKeyResponse{Key: ciKey(), Old: oldKey(), Value: testKey}
	case *v1.SuspendApiKeyRequest:
		k := ciKey()
		k.State = v1.ApiKeyState_API_KEY_STATE_SUSPENDED
		return &v1.SuspendApiKeyResponse{Key: k}
	case *v1.ResumeApiKeyRequest:
		return &v1.ResumeApiKeyResponse{Key: ciKey()}
	case *v1.RevokeApiKeyRequest:
		k := ciKey()
		k.State, k.RevocationReason, k.ReasonText = v1.ApiKeyState_API_KEY_STATE_REVOKED, req.GetReason(), req.GetText()
		return &v1.RevokeApiKeyResponse{Key: k}
	case *v1.ListPeppersRequest:
		return &v1.ListPeppersResponse{Peppers: []*v1.Pepper{
			{Generation: 3, CreatedAt: at(-day), Keys: 1204, Tokens: 7},
			{Generation: 2, CreatedAt: at(-100 * day), Keys: 3},
			{Generation: 1, CreatedAt: at(-400 * day), RetiredAt: at(-90 * day)},
		}}
	case *v1.RotatePepperRequest:
		return &v1.RotatePepperResponse{Pepper: &v1.Pepper{Generation: 4, CreatedAt: at(0)}}
	case *v1.ListStragglersRequest:
		return &v1.ListStragglersResponse{Stragglers: []*v1.Straggler{
			{Kind: "api_key", Id: keyID, Partner: "acme", Name: "ci", LastUsedAt: at(-200 * day), ExpiresAt: at(day)},
			{Kind: "token", Id: edgeID, Name: "edge-1"},
		}}
	case *v1.RetirePepperRequest:
		return &v1.RetirePepperResponse{Pepper: &v1.Pepper{Generation: req.GetGeneration(), RetiredAt: at(0)}}
	default:
		return usualSecret(req)
	}
}

func usualSecret(req proto.Message) proto.Message {
	old := ordersSecret()
	old.Id, old.State, old.GraceEndsAt, old.ReplacedBy = "1vErSiOn0000000k", v1.ApiKeyState_API_KEY_STATE_RETIRING, at(72*time.Hour), secretID
	switch req := req.(type) {
	case *v1.CreateRequestSecretRequest:
		s := ordersSecret()
		if req.GetPublicKey() != "" {
			s.Algorithm, s.PublicKey = "ed25519", req.GetPublicKey()
			return &v1.CreateRequestSecretResponse{Secret: s}
		}
		return &v1.CreateRequestSecretResponse{Secret: s, Value: testSecret}
	case *v1.GetRequestSecretRequest:
		return &v1.GetRequestSecretResponse{Versions: []*v1.RequestSecret{ordersSecret(), old}}
	case *v1.ListRequestSecretsRequest:
		return &v1.ListRequestSecretsResponse{Secrets: []*v1.RequestSecret{ordersSecret(), old}}
	case *v1.RollRequestSecretRequest:
		return &v1.RollRequestSecretResponse{Secret: ordersSecret(), Old: old, Value: testSecret}
	case *v1.SuspendRequestSecretRequest:
		s := ordersSecret()
		s.State = v1.ApiKeyState_API_KEY_STATE_SUSPENDED
		return &v1.SuspendRequestSecretResponse{Secret: s}
	case *v1.ResumeRequestSecretRequest:
		return &v1.ResumeRequestSecretResponse{Secret: ordersSecret()}
	case *v1.RevokeRequestSecretRequest:
		s := ordersSecret()
		s.State, s.RevocationReason, s.ReasonText = v1.ApiKeyState_API_KEY_STATE_REVOKED, req.GetReason(), req.GetText()
		return &v1.RevokeRequestSecretResponse{Secret: s}
	case *v1.VerifyApiKeyRequest:
		return &v1.VerifyApiKeyResponse{Reason: v1.VerifyReason_VERIFY_REASON_OK, Verified: aVerified()}
	case *v1.VerifyRequestRequest:
		return &v1.VerifyRequestResponse{Reason: v1.VerifyReason_VERIFY_REASON_SIGNATURE, Verified: aVerified(), Explanation: &v1.SignatureExplanation{
			Message:       "the signer covered another @authority than the one at which the request arrived",
			SignatureBase: "\"@method\": POST\n\"@authority\": api.example.com\n\"@signature-params\": (\"@method\" \"@authority\");keyid=\"7hRt2w9xKd5sQq3u\"",
			Component:     "@authority", ServerLine: "\"@authority\": api.example.com", SignerLine: "\"@authority\": localhost:8080",
		}}
	default:
		return usualCredential(req)
	}
}

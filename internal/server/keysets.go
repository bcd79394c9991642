package server

import (
	"context"
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/jwks"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// keysetService implements rotunda.v1.KeysetService.
type keysetService struct{ s *Server }

func (k *keysetService) CreateKeyset(ctx context.Context, req *connect.Request[rotundav1.CreateKeysetRequest]) (*connect.Response[rotundav1.CreateKeysetResponse], error) {
	o, err := once(ctx, req)
	if err != nil {
		return nil, err
	}
	policy, err := policyFrom(req.Msg.GetPolicy())
	if err != nil {
		return nil, err
	}
	set, err := k.s.Keysets.Create(ctx, jwks.Create{
		Name: req.Msg.GetName(), Issuer: req.Msg.GetIssuer(), Algorithm: req.Msg.GetAlgorithm(), Policy: policy, DryRun: req.Msg.GetDryRun(), Once: o,
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.CreateKeysetResponse{Keyset: keysetTo(set)}), nil
}

func (k *keysetService) GetKeyset(ctx context.Context, req *connect.Request[rotundav1.GetKeysetRequest]) (*connect.Response[rotundav1.GetKeysetResponse], error) {
	set, err := k.s.Keysets.Get(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.GetKeysetResponse{Keyset: keysetTo(set)}), nil
}

func (k *keysetService) ListKeysets(ctx context.Context, req *connect.Request[rotundav1.ListKeysetsRequest]) (*connect.Response[rotundav1.ListKeysetsResponse], error) {
	after, err := pageOf(req.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	sets, next, err := k.s.Keysets.List(ctx, after, pageSize(req.Msg.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListKeysetsResponse{NextPageToken: base64.RawURLEncoding.EncodeToString([]byte(next))}
	for _, s := range sets {
		res.Keysets = append(res.Keysets, keysetTo(s))
	}
	return connect.NewResponse(res), nil
}

func (k *keysetService) UpdatePolicy(ctx context.Context, req *connect.Request[rotundav1.UpdatePolicyRequest]) (*connect.Response[rotundav1.UpdatePolicyResponse], error) {
	policy, err := policyFrom(req.Msg.GetPolicy())
	if err != nil {
		return nil, err
	}
	set, err := k.s.Keysets.UpdatePolicy(ctx, jwks.UpdatePolicy{Name: req.Msg.GetName(), Policy: policy, Version: req.Msg.GetPolicyVersion(), DryRun: req.Msg.GetDryRun()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.UpdatePolicyResponse{Keyset: keysetTo(set)}), nil
}

func (k *keysetService) RotateKeyset(ctx context.Context, req *connect.Request[rotundav1.RotateKeysetRequest]) (*connect.Response[rotundav1.RotateKeysetResponse], error) {
	set, err := k.s.Keysets.Rotate(ctx, jwks.Rotate{Name: req.Msg.GetName(), Override: req.Msg.GetOverrideLead(), Reason: req.Msg.GetReason()})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.RotateKeysetResponse{Keyset: keysetTo(set)}), nil
}

var modes = map[rotundav1.RevokeMode]jwks.Mode{
	rotundav1.RevokeMode_REVOKE_MODE_STANDBY: jwks.ModeStandby,
	rotundav1.RevokeMode_REVOKE_MODE_FRESH:   jwks.ModeFresh,
}

func modeTo(m jwks.Mode) rotundav1.RevokeMode {
	for p, d := range modes {
		if d == m {
			return p
		}
	}
	return rotundav1.RevokeMode_REVOKE_MODE_UNSPECIFIED
}

func (k *keysetService) RevokeKey(ctx context.Context, req *connect.Request[rotundav1.RevokeKeyRequest]) (*connect.Response[rotundav1.RevokeKeyResponse], error) {
	plan, set, err := k.s.Keysets.Revoke(ctx, jwks.Revoke{
		Name: req.Msg.GetName(), Kid: req.Msg.GetKid(), Mode: modes[req.Msg.GetMode()],
		Reason: req.Msg.GetReason(), Comment: req.Msg.GetComment(), DryRun: req.Msg.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	res := &rotundav1.RevokeKeyResponse{OutstandingTokens: plan.Outstanding, SignRate: plan.SignRate}
	for _, m := range plan.Modes {
		mp := &rotundav1.RevokeModePlan{Mode: modeTo(m.Mode), Possible: m.Possible, Why: m.Why}
		for _, p := range m.Predictions {
			mp.Predictions = append(mp.Predictions, &rotundav1.RevokePrediction{
				Profile: p.Consumer, Mode: modeTo(m.Mode), Exposure: bounded(p.Exposure), ExposureUnbounded: p.Exposure == jwks.Forever,
				Refusal: bounded(p.Refusal), RefusedNewTokens: p.Refused, Note: p.Note,
			})
		}
		res.Plans = append(res.Plans, mp)
	}
	if set != nil {
		res.Keyset = keysetTo(set)
	}
	return connect.NewResponse(res), nil
}

func (k *keysetService) ImportKey(ctx context.Context, req *connect.Request[rotundav1.ImportKeyRequest]) (*connect.Response[rotundav1.ImportKeyResponse], error) {
	o, err := once(ctx, req)
	if err != nil {
		return nil, err
	}
	life, err := duration("max_token_life", req.Msg.GetMaxTokenLife())
	if err != nil {
		return nil, err
	}
	key := secret.New(req.Msg.GetKey())
	defer key.Destroy()
	clear(req.Msg.GetKey())
	set, kid, err := k.s.Keysets.Import(ctx, jwks.Import{
		Name: req.Msg.GetName(), Key: key, State: stateFrom(req.Msg.GetState()), Kid: req.Msg.GetKid(), MaxTokenLife: life, Reason: req.Msg.GetReason(), Once: o,
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ImportKeyResponse{Keyset: keysetTo(set), Kid: kid}), nil
}

func (k *keysetService) ListKeys(ctx context.Context, req *connect.Request[rotundav1.ListKeysRequest]) (*connect.Response[rotundav1.ListKeysResponse], error) {
	// A document holds few keys: they are one page, and any page token is past it.
	if req.Msg.GetPageToken() != "" {
		return nil, badPage()
	}
	set, err := k.s.Keysets.Get(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ListKeysResponse{Keys: keysetTo(set).GetKeys()}), nil
}

func (k *keysetService) ListHistory(ctx context.Context, req *connect.Request[rotundav1.ListHistoryRequest]) (*connect.Response[rotundav1.ListHistoryResponse], error) {
	if _, err := pageOf(req.Msg.GetPageToken()); err != nil {
		return nil, err
	}
	keys, next, err := k.s.Keysets.History(ctx, req.Msg.GetName(), req.Msg.GetPageToken(), pageSize(req.Msg.GetPageSize()))
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ListHistoryResponse{NextPageToken: next}
	for _, key := range keys {
		res.Keys = append(res.Keys, keyTo(key, nil))
	}
	return connect.NewResponse(res), nil
}

func (k *keysetService) ListProfiles(context.Context, *connect.Request[rotundav1.ListProfilesRequest]) (*connect.Response[rotundav1.ListProfilesResponse], error) {
	res := &rotundav1.ListProfilesResponse{}
	for _, p := range jwks.Profiles {
		info := &rotundav1.ProfileInfo{
			Name: p.Name, Title: p.Title, RefetchesOnUnknownKid: p.Refetch, HonoursMaxAge: p.HonoursMaxAge, Note: p.Note,
			Cache: bounded(p.Cache), Throttle: durationpb.New(p.Throttle), Timing: timingTo(jwks.DefaultPolicy().Timing(p)),
		}
		algs := p.Algorithms
		if algs == nil {
			algs = jwks.Algorithms
		}
		for _, a := range algs {
			info.Algorithms = append(info.Algorithms, string(a))
		}
		res.Profiles = append(res.Profiles, info)
	}
	return connect.NewResponse(res), nil
}

func (k *keysetService) Sign(ctx context.Context, req *connect.Request[rotundav1.SignRequest]) (*connect.Response[rotundav1.SignResponse], error) {
	ttl, err := duration("ttl", req.Msg.GetTtl())
	if err != nil {
		return nil, err
	}
	if req.Msg.GetTtl() != nil && ttl <= 0 {
		return nil, fault.Invalid("ttl", "duration_range", "ttl %s is not positive: leave it out for the policy's token_ttl", ttl)
	}
	signed, err := k.s.Keysets.Sign(ctx, jwks.Sign{Name: req.Msg.GetName(), Claims: []byte(req.Msg.GetClaims()), TTL: ttl, Typ: req.Msg.GetTyp()})
	if err != nil {
		return nil, err
	}
	fallback := "no"
	if signed.Fallback {
		fallback = "yes"
	}
	k.s.metrics.signed.WithLabelValues(req.Msg.GetName(), fallback).Inc()
	return connect.NewResponse(&rotundav1.SignResponse{
		Token: signed.Token, Kid: signed.Kid, ExpiresAt: timestamppb.New(signed.ExpiresAt), Clamped: signed.Clamped,
	}), nil
}

// Bounds of Watch.
const (
	maxWatchers         = 10_000
	maxWatchersPerToken = 500
	recheckEvery        = 10 * time.Second // a revoked token's streams end within this time
	sendWithin          = 10 * time.Second // a watcher that does not read is cut
)

// perToken counts what each token has open.
type perToken struct {
	mu   sync.Mutex
	open map[string]int // by id; none is 0
}

// take reports whether a token may have one more, and counts it.
func (p *perToken) take(id string, most int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[id] >= most {
		return false
	}
	if p.open == nil {
		p.open = map[string]int{}
	}
	p.open[id]++
	return true
}

func (p *perToken) give(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open[id]--; p.open[id] <= 0 {
		delete(p.open, id)
	}
}

// within gives what is written to a caller from now on the time d; 0 is no
// end. Deadlines of sockets are on the system's clock, like a context's.
func (c caller) within(d time.Duration) error {
	if d == 0 {
		return c.socket.SetWriteDeadline(time.Time{})
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	end, _ := ctx.Deadline()
	return c.socket.SetWriteDeadline(end)
}

// send writes to a stream, for no longer than the server's patience: a watcher
// that does not read must not hold its place. Between two messages there is no
// deadline, because over HTTP/2 one ends a stream that is only waiting.
func (s *Server) send(c caller, write func() error) error {
	if err := c.within(s.patience); err != nil {
		return fmt.Errorf("set the deadline of a message: %w", err)
	}
	if err := write(); err != nil {
		return err
	}
	if err := c.within(0); err != nil {
		return fmt.Errorf("lift the deadline of a message: %w", err)
	}
	return nil
}

func (k *keysetService) Watch(ctx context.Context, req *connect.Request[rotundav1.WatchRequest], stream *connect.ServerStream[rotundav1.WatchResponse]) error {
	if k.s.watchers.Add(1) > maxWatchers {
		k.s.watchers.Add(-1)
		return fault.New(fault.ErrLimited, "too_many_watchers", "this replica has %d watchers already: use another replica, or poll", maxWatchers)
	}
	defer k.s.watchers.Add(-1)
	c := callerOf(ctx)
	if !k.s.streams.take(c.token.ID, maxWatchersPerToken) {
		return fault.New(fault.ErrLimited, "too_many_watchers", "this token has %d watchers on this replica already: close some, or use a token for each gateway", maxWatchersPerToken)
	}
	defer k.s.streams.give(c.token.ID)
	ctx, end, err := k.s.long(ctx)
	if err != nil {
		return err
	}
	// The headers go out at once: a caller that is up to date waits for the next
	// version in an open stream, not for an answer.
	if err := k.s.send(c, func() error { return stream.Conn().Send(nil) }); err != nil {
		return end(err)
	}
	err = k.s.Keysets.Watch(ctx, req.Msg.GetName(), req.Msg.GetAfterVersion(), func(d *jwks.Document) error {
		return k.s.send(c, func() error {
			return stream.Send(&rotundav1.WatchResponse{Version: d.Version, Jwks: string(d.Body), Etag: d.ETag, MaxAge: durationpb.New(d.MaxAge(k.s.DB.Now()))})
		})
	})
	return end(err)
}

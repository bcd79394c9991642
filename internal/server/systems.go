package server

import (
	"context"
	"encoding/base64"
	"errors"
	"math"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/internal/fault"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/rotation"
)

// storeService implements rotunda.v1.StoreService.
type storeService struct{ s *Server }

// targetService implements rotunda.v1.TargetService.
type targetService struct{ s *Server }

func (a *storeService) ListStoreKinds(context.Context, *connect.Request[rotundav1.ListStoreKindsRequest]) (*connect.Response[rotundav1.ListStoreKindsResponse], error) {
	res := &rotundav1.ListStoreKindsResponse{}
	for _, k := range a.s.Systems.StoreKinds() {
		res.Kinds = append(res.Kinds, &rotundav1.StoreKind{
			Name: k.Name, Doc: k.Doc, Settings: settingsTo(k.Settings), Login: settingsTo(k.Login), Path: settingTo(k.Path),
			Stages: k.Traits.Stages, Quota: k.Traits.Quota, WritesPerRotation: small(k.Traits.WritesPerRotation),
		})
	}
	return connect.NewResponse(res), nil
}

func (a *targetService) ListTargetKinds(context.Context, *connect.Request[rotundav1.ListTargetKindsRequest]) (*connect.Response[rotundav1.ListTargetKindsResponse], error) {
	res := &rotundav1.ListTargetKindsResponse{}
	for _, k := range a.s.Systems.TargetKinds() {
		kind := &rotundav1.TargetKind{
			Name: k.Name, Doc: k.Doc, Settings: settingsTo(k.Settings), Login: settingsTo(k.Login), Params: settingsTo(k.Params),
			Issues: k.Traits.Issues, Valueless: k.Traits.Valueless,
		}
		for _, s := range k.Traits.Strategies {
			kind.Strategies = append(kind.Strategies, string(s))
		}
		res.Kinds = append(res.Kinds, kind)
	}
	return connect.NewResponse(res), nil
}

func (a *storeService) CreateStore(ctx context.Context, req *connect.Request[rotundav1.CreateStoreRequest]) (*connect.Response[rotundav1.CreateStoreResponse], error) {
	made, err := createSystem(ctx, a.s, rotation.StoreSort, req)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.CreateStoreResponse{Store: systemTo(made)}), nil
}

func (a *targetService) CreateTarget(ctx context.Context, req *connect.Request[rotundav1.CreateTargetRequest]) (*connect.Response[rotundav1.CreateTargetResponse], error) {
	made, err := createSystem(ctx, a.s, rotation.TargetSort, req)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.CreateTargetResponse{Target: systemTo(made)}), nil
}

// configures is a request that says what a system is.
type configures interface {
	GetSettings() map[string]string
	GetLogin() map[string]string
	GetLoginCredential() string
}

// createSystem makes a system. The message of T is a configures with a name and a kind.
func createSystem[T any](ctx context.Context, s *Server, sort rotation.Sort, req *connect.Request[T]) (*rotation.System, error) {
	m, ok := any(req.Msg).(interface {
		configures
		GetName() string
		GetKind() string
	})
	if !ok {
		return nil, errors.New("create a system: the request has no name or kind")
	}
	o, err := once(ctx, req)
	if err != nil {
		return nil, err
	}
	if o.Key != "" {
		// A plain hash of a message with a login in it would let whoever reads the
		// database try logins.
		o.Fingerprint = s.Peppers.Fingerprint(o.Fingerprint)
	}
	spec := systemFrom(m)
	spec.Kind = m.GetKind()
	return s.Systems.Create(ctx, sort, m.GetName(), spec, o)
}

func systemFrom(m configures) rotation.SystemSpec {
	spec := rotation.SystemSpec{Settings: m.GetSettings(), LoginCredential: m.GetLoginCredential()}
	for name, value := range m.GetLogin() {
		spec.Login = spec.Login.Set(name, value)
	}
	return spec
}

func (a *storeService) GetStore(ctx context.Context, req *connect.Request[rotundav1.GetStoreRequest]) (*connect.Response[rotundav1.GetStoreResponse], error) {
	found, err := a.s.Systems.Get(ctx, rotation.StoreSort, req.Msg.GetStore())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.GetStoreResponse{Store: systemTo(found)}), nil
}

func (a *targetService) GetTarget(ctx context.Context, req *connect.Request[rotundav1.GetTargetRequest]) (*connect.Response[rotundav1.GetTargetResponse], error) {
	found, err := a.s.Systems.Get(ctx, rotation.TargetSort, req.Msg.GetTarget())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.GetTargetResponse{Target: systemTo(found)}), nil
}

func (a *storeService) ListStores(ctx context.Context, req *connect.Request[rotundav1.ListStoresRequest]) (*connect.Response[rotundav1.ListStoresResponse], error) {
	list, next, err := listSystems(ctx, a.s, rotation.StoreSort, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ListStoresResponse{Stores: list, NextPageToken: next}), nil
}

func (a *targetService) ListTargets(ctx context.Context, req *connect.Request[rotundav1.ListTargetsRequest]) (*connect.Response[rotundav1.ListTargetsResponse], error) {
	list, next, err := listSystems(ctx, a.s, rotation.TargetSort, req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.ListTargetsResponse{Targets: list, NextPageToken: next}), nil
}

// paged is a request for a page of a list.
type paged interface {
	GetPageSize() int32
	GetPageToken() string
}

func listSystems(ctx context.Context, s *Server, sort rotation.Sort, m paged) ([]*rotundav1.System, string, error) {
	page, err := pageOf(m.GetPageToken())
	if err != nil {
		return nil, "", err
	}
	found, next, err := s.Systems.List(ctx, sort, page, pageSize(m.GetPageSize()))
	if err != nil {
		return nil, "", err
	}
	list := make([]*rotundav1.System, len(found))
	for i, x := range found {
		list[i] = systemTo(x)
	}
	return list, pageToken(next), nil
}

// pageToken is the page token of which pageOf gives the text; none for none.
func pageToken(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

func (a *storeService) UpdateStore(ctx context.Context, req *connect.Request[rotundav1.UpdateStoreRequest]) (*connect.Response[rotundav1.UpdateStoreResponse], error) {
	changed, err := a.s.Systems.Update(ctx, rotation.StoreSort, req.Msg.GetStore(), req.Msg.GetVersion(), systemFrom(req.Msg))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.UpdateStoreResponse{Store: systemTo(changed)}), nil
}

func (a *targetService) UpdateTarget(ctx context.Context, req *connect.Request[rotundav1.UpdateTargetRequest]) (*connect.Response[rotundav1.UpdateTargetResponse], error) {
	changed, err := a.s.Systems.Update(ctx, rotation.TargetSort, req.Msg.GetTarget(), req.Msg.GetVersion(), systemFrom(req.Msg))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.UpdateTargetResponse{Target: systemTo(changed)}), nil
}

func (a *storeService) DeleteStore(ctx context.Context, req *connect.Request[rotundav1.DeleteStoreRequest]) (*connect.Response[rotundav1.DeleteStoreResponse], error) {
	if err := a.s.Systems.Delete(ctx, rotation.StoreSort, req.Msg.GetStore()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.DeleteStoreResponse{}), nil
}

func (a *targetService) DeleteTarget(ctx context.Context, req *connect.Request[rotundav1.DeleteTargetRequest]) (*connect.Response[rotundav1.DeleteTargetResponse], error) {
	if err := a.s.Systems.Delete(ctx, rotation.TargetSort, req.Msg.GetTarget()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.DeleteTargetResponse{}), nil
}

func (a *storeService) TestStore(ctx context.Context, req *connect.Request[rotundav1.TestStoreRequest]) (*connect.Response[rotundav1.TestStoreResponse], error) {
	findings, err := a.s.Systems.Test(ctx, rotation.StoreSort, req.Msg.GetStore(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.TestStoreResponse{Findings: findingsTo(findings)}), nil
}

func (a *targetService) TestTarget(ctx context.Context, req *connect.Request[rotundav1.TestTargetRequest]) (*connect.Response[rotundav1.TestTargetResponse], error) {
	findings, err := a.s.Systems.Test(ctx, rotation.TargetSort, req.Msg.GetTarget(), "")
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&rotundav1.TestTargetResponse{Findings: findingsTo(findings)}), nil
}

func (a *storeService) ReadSecret(ctx context.Context, req *connect.Request[rotundav1.ReadSecretRequest]) (*connect.Response[rotundav1.ReadSecretResponse], error) {
	found, err := a.s.Secrets.ReadSecret(ctx, req.Msg.GetPath(), req.Msg.GetVersion())
	if errors.Is(err, fault.ErrNotFound) || err == nil && found.Label == stagedLabel {
		// In the words that a token hears for a path that it may not read. What is staged
		// is nobody's yet: the target need not accept it, and may never.
		return nil, errNoSecret()
	}
	if err != nil {
		return nil, err
	}
	res := &rotundav1.ReadSecretResponse{Fields: map[string]string{}, Version: found.Version, Label: found.Label, CreatedAt: timestamp(found.CreatedAt)}
	for name := range found.Fields {
		res.Fields[name] = found.Fields.Text(name)
	}
	return shown(res), nil
}

// stagedLabel is the label of a value that no consumer is to read yet.
const stagedLabel = "staged"

// errNoSecret is what ReadSecret says of a path or a version that is not there, and of
// a path that the caller may not read.
func errNoSecret() error {
	return fault.New(fault.ErrNotFound, "secret_not_found", "there is no such secret, or it is none that this token may read: check the path and the version").On("path")
}

func settingsTo(list []providers.Setting) []*rotundav1.Setting {
	out := make([]*rotundav1.Setting, len(list))
	for i, s := range list {
		out[i] = settingTo(s)
	}
	return out
}

func settingTo(s providers.Setting) *rotundav1.Setting {
	return &rotundav1.Setting{Name: s.Name, Doc: s.Doc, Default: s.Default, Required: s.Required, Pattern: s.Pattern, OneOf: s.OneOf}
}

func systemTo(x *rotation.System) *rotundav1.System {
	return &rotundav1.System{
		Name: x.Name, Kind: x.Kind, Settings: x.Settings, HasLogin: x.HasLogin, LoginCredential: x.LoginCredential,
		CreatedAt: timestamp(x.CreatedAt), Since: timestamp(x.Since), Version: x.Version,
	}
}

func findingsTo(list []providers.Finding) []*rotundav1.Finding {
	out := make([]*rotundav1.Finding, len(list))
	for i, f := range list {
		out[i] = &rotundav1.Finding{Check: f.Check, Ok: f.OK, Warning: f.Warning, Detail: f.Detail, Remedy: f.Remedy, Measured: f.Measured}
	}
	return out
}

// small is a count that may be sent as an int32.
func small[N int | int64](n N) int32 {
	return int32(min(max(int64(n), math.MinInt32), math.MaxInt32))
}

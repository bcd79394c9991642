package gateways

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rotunda-dev/rotunda/apikeys"
)

// Envoy itself can't be had as a Debian package. What can be held is: its
// configuration is one by Envoy's own descriptors and their rules, and a gRPC client
// in Envoy's place, which sends what that configuration makes Envoy send, gets what
// Envoy needs.

// envoyFile is envoy.yaml, as Envoy reads it.
type envoyFile struct {
	filter *extauthzv3.ExtAuthz
	host   *routev3.VirtualHost
}

func readEnvoy(t *testing.T) *envoyFile {
	t.Helper()
	text, err := os.ReadFile("envoy/envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(raw, &b); err != nil {
		t.Fatal(err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	for _, c := range b.GetStaticResources().GetClusters() {
		for _, o := range c.GetTypedExtensionProtocolOptions() {
			validAny(t, o)
		}
	}
	var hcm hcmv3.HttpConnectionManager
	unpack(t, b.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()[0].GetTypedConfig(), &hcm)
	if len(hcm.GetHttpFilters()) != 2 || hcm.GetHttpFilters()[0].GetName() != "envoy.filters.http.ext_authz" {
		t.Fatalf("the first of the filters is not ext_authz: %v", hcm.GetHttpFilters())
	}
	f := &envoyFile{filter: &extauthzv3.ExtAuthz{}, host: hcm.GetRouteConfig().GetVirtualHosts()[0]}
	unpack(t, hcm.GetHttpFilters()[0].GetTypedConfig(), f.filter)
	validAny(t, hcm.GetHttpFilters()[1].GetTypedConfig())
	return f
}

type validating interface {
	ValidateAll() error
}

func unpack(t *testing.T, a *anypb.Any, into interface {
	validating
	proto.Message
}) {
	t.Helper()
	if err := a.UnmarshalTo(into); err != nil {
		t.Fatal(err)
	}
	if err := into.ValidateAll(); err != nil {
		t.Fatal(err)
	}
}

func validAny(t *testing.T, a *anypb.Any) {
	t.Helper()
	m, err := a.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := m.(validating); !ok {
		t.Fatalf("%s has no rules", a.GetTypeUrl())
	} else if err := v.ValidateAll(); err != nil {
		t.Fatal(err)
	}
}

// extensions are the context extensions of the route that a path takes: those of the
// route over those of its virtual host.
func (f *envoyFile) extensions(t *testing.T, path string) map[string]string {
	t.Helper()
	of := func(config map[string]*anypb.Any) map[string]string {
		a, ok := config["envoy.filters.http.ext_authz"]
		if !ok {
			return nil
		}
		var r extauthzv3.ExtAuthzPerRoute
		unpack(t, a, &r)
		if r.GetDisabled() || r.GetCheckSettings().GetDisableRequestBodyBuffering() {
			t.Fatal("a route is not guarded")
		}
		return r.GetCheckSettings().GetContextExtensions()
	}
	out := maps.Clone(of(f.host.GetTypedPerFilterConfig()))
	for _, r := range f.host.GetRoutes() {
		if prefix := r.GetMatch().GetPathSeparatedPrefix(); path == prefix || strings.HasPrefix(path, prefix+"/") {
			maps.Copy(out, of(r.GetTypedPerFilterConfig()))
			return out
		}
	}
	return out
}

// ask sends what Envoy sends about a request with a body.
func (f *envoyFile) ask(t *testing.T, r *rotunda, method, target, body string, lines ...string) *authv3.CheckResponse {
	t.Helper()
	path, _, _ := strings.Cut(target, "?")
	h := &authv3.AttributeContext_HttpRequest{
		Id: "1", Method: method, Path: target, Host: "envoy.internal:8080", Scheme: "http", Protocol: "HTTP/1.1", HeaderMap: &corev3.HeaderMap{}, RawBody: []byte(body),
	}
	if body != "" {
		lines = append(lines, "x-envoy-auth-partial-body: false")
	}
	for _, l := range append([]string{":authority: envoy.internal:8080", ":method: " + method, ":path: " + target}, lines...) {
		name, value, _ := strings.Cut(l, ": ")
		if strings.HasPrefix(l, ":") {
			name, value, _ = strings.Cut(l[1:], ": ")
			name = ":" + name
		}
		h.HeaderMap.Headers = append(h.HeaderMap.Headers, &corev3.HeaderValue{Key: strings.ToLower(name), RawValue: []byte(value)})
	}
	conn, err := grpc.NewClient(r.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, m := range f.filter.GetGrpcService().GetInitialMetadata() {
		ctx = metadata.AppendToOutgoingContext(ctx, m.GetKey(), strings.ReplaceAll(m.GetValue(), "rk_gateway_…", r.gateway))
	}
	res, err := authv3.NewAuthorizationClient(conn).Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: "203.0.113.9", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 4711},
		}}}},
		Request: &authv3.AttributeContext_Request{Http: h}, ContextExtensions: f.extensions(t, path),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestEnvoyWhenConfigurationIsRead(t *testing.T) {
	f, r := readEnvoy(t), newRotunda(t)
	switch {
	case f.filter.GetFailureModeAllow():
		t.Error("failure_mode_allow is set")
	case f.filter.GetWithRequestBody().GetMaxRequestBytes() > 96<<10:
		t.Error("bodies are longer than Rotunda takes")
	case !f.filter.GetEncodeRawHeaders() || !f.filter.GetWithRequestBody().GetPackAsBytes() || !f.filter.GetWithRequestBody().GetAllowPartialMessage():
		t.Error("the filter is not what the test sends")
	}
	key, id := r.key(t, apikeys.KeySpec{CIDRs: []string{"203.0.113.0/24"}})
	s := r.signer(t)
	body := `{"order":7}`
	for _, c := range []struct {
		name, method, target, body string
		lines                      []string
		status                     int
		who                        string
	}{
		{"key", "GET", "/orders/7", "", []string{"authorization: Bearer " + key}, 200, id},
		{"key and a body", "POST", "/orders", body, []string{"x-api-key: " + key}, 200, id},
		{"two lines", "GET", "/orders", "", []string{"authorization: Bearer " + key, "authorization: Bearer " + key}, 401, ""},
		{"scope", "GET", "/orders/new", "", []string{"authorization: Bearer " + key}, 403, ""},
		{"a path without a rule", "GET", "/elsewhere", "", []string{"authorization: Bearer " + key}, 403, ""},
		{"a key where a signature is needed", "GET", "/signed", "", []string{"authorization: Bearer " + key}, 401, ""},
		{"signed", "GET", "/signed/a?b=%2F", "", s.sign(t, "GET", "/signed/a?b=%2F", ""), 200, s.id},
		{"signed, a body", "POST", "/signed", body, append(s.sign(t, "POST", "/signed", body), "Content-Length: 11"), 200, s.id},
		{"signed, another body", "POST", "/signed", `{"order":8}`, append(s.sign(t, "POST", "/signed", body), "Content-Length: 11"), 401, ""},
		{"signed, a body cut short", "POST", "/signed", body, append(s.sign(t, "POST", "/signed", body), "X-Envoy-Auth-Partial-Body: true"), 403, ""},
		{"signed, where a key does as well", "POST", "/orders", body, s.sign(t, "POST", "/orders", body), 401, ""}, // for another authority
	} {
		res := f.ask(t, r, c.method, c.target, c.body, c.lines...)
		status, who := http.StatusOK, ""
		if d := res.GetDeniedResponse(); d != nil {
			status = int(d.GetStatus().GetCode())
		}
		for _, h := range res.GetOkResponse().GetHeaders() {
			if h.GetHeader().GetKey() == "x-rotunda-key-id" {
				who = h.GetHeader().GetValue()
			}
		}
		if status != c.status || who != c.who {
			t.Errorf("%s: %d, key %q, want %d, %q: %v", c.name, status, who, c.status, c.who, res)
		}
	}
}

package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/apikeys"
)

const (
	forwardAuthPath   = "/gateway/forward-auth"
	extAuthzProcedure = "/envoy.service.auth.v3.Authorization/Check"
)

// BenchmarkGateways compares what gateways ask, about 100,000 keys in turn, with
// handlers that do nothing but answer the same: a Connect handler for ext_authz, one
// of net/http for forward-auth. See BenchmarkVerifyRPC for how.
func BenchmarkGateways(b *testing.B) {
	r := newRig(b)
	const n = 100_000
	values := r.crowd(b, n)
	_, v, err := r.tokens.Create(b.Context(), apikeys.Create{Name: "edge", Role: apikeys.Gateway})
	if err != nil {
		b.Fatal(err)
	}
	token := v.RevealString()
	if err := r.verifier.Refresh(b.Context()); err != nil { // to make the keys took longer than it does without
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var following sync.WaitGroup
	following.Go(func() { r.verifier.Follow(ctx) })
	b.Cleanup(func() { stop(); following.Wait() })
	for _, value := range values { // into memory
		d, err := r.verifier.Verify(b.Context(), value, &apikeys.Need{})
		if err != nil || d.Reason != apikeys.ReasonOK {
			b.Fatal(d.Reason, err)
		}
	}
	own := start(b, r.handler)

	b.Run("ext_authz", func(b *testing.B) {

		res, err := connect.NewClient[authv3.CheckRequest, authv3.CheckResponse](&http.Client{Transport: bearerTransport(token)}, "http://"+own+extAuthzProcedure).
			CallUnary(b.Context(), connect.NewRequest(envoyQuestion(values[0])))
		if err != nil || res.Msg.GetOkResponse() == nil {
			b.Fatal(res, err)
		}
		mux := http.NewServeMux()
		mux.Handle(extAuthzProcedure, connect.NewUnaryHandler(extAuthzProcedure, func(context.Context, *connect.Request[authv3.CheckRequest]) (*connect.Response[authv3.CheckResponse], error) {
			return connect.NewResponse(res.Msg), nil
		}))
		requests := make([][]byte, n)
		for i, value := range values {
			raw, err := proto.Marshal(envoyQuestion(value))
			if err != nil {
				b.Fatal(err)
			}
			requests[i] = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw))), raw...)
		}
		compare(b, own, start(b, mux), requests, func(addr string) (client, error) { return dialExtAuthz(addr, token) })
	})

	b.Run("forward-auth", func(b *testing.B) {
		requests := make([][]byte, n)
		for i, value := range values {
			requests[i] = []byte("GET " + forwardAuthPath + "?scope=orders:read HTTP/1.1\r\nHost: rotunda\r\nX-Rotunda-Token: " + token +
				"\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: api.example.com\r\nX-Forwarded-Uri: /orders/7?page=2\r\nX-Forwarded-For: 203.0.113.9" +
				"\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nAuthorization: Bearer " + value + "\r\n\r\n")
		}
		// What it answers, without Date.
		fields := [][2]string{
			{"X-Request-Id", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}, {"Cache-Control", "no-store"}, {"RateLimit-Policy", `"default";q=1000000;w=1`}, {"RateLimit", `"default";r=999999;t=1`},
			{"X-Rotunda-Partner", "partner-7"}, {"X-Rotunda-Key-Id", "ABCDEFGHIJKLMNOP"}, {"X-Rotunda-Scopes", "orders:read"}, {"X-Rotunda-Environment", "live"}, {"X-Rotunda-Class", "secret"},
		}
		mux := http.NewServeMux()
		mux.HandleFunc(forwardAuthPath, func(w http.ResponseWriter, _ *http.Request) {
			for _, f := range fields {
				w.Header().Set(f[0], f[1])
			}
			w.WriteHeader(http.StatusOK)
		})
		compare(b, own, start(b, mux), requests, dialHTTP1)
	})
}

// sequence brings all events into the trail, as a server does within a second. Until
// then a verifier has to read anew, each second, what they may have changed.
func (r *rig) sequence(b *testing.B) {
	b.Helper()
	for {
		n, err := r.trail.Sequence(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// envoyQuestion is what Envoy asks about a GET.
func envoyQuestion(value string) *authv3.CheckRequest {
	peer := &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: "203.0.113.9", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 51234},
	}}}}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: peer, Destination: peer, ContextExtensions: map[string]string{"scope": "orders:read"},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "4615932466846532109", Method: "GET", Path: "/orders/7?page=2", Host: "api.example.com", Scheme: "https", Protocol: "HTTP/2",
			Headers: map[string]string{
				":authority": "api.example.com", ":method": "GET", ":path": "/orders/7?page=2", ":scheme": "https", "accept": "*/*", "user-agent": "curl/8.5.0",
				"x-forwarded-proto": "https", "x-request-id": "9e1c0d8e-8b44-4b7e-b6f0-2d2f5f1a7c11", "authorization": "Bearer " + value,
			},
		}},
	}}
}

// dialExtAuthz is dialGRPC for another procedure.
func dialExtAuthz(addr, token string) (client, error) {
	c, err := dialGRPC(addr, token)
	if err != nil {
		return nil, err
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.SetMaxDynamicTableSizeLimit(0)
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", extAuthzProcedure}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"authorization", "Bearer " + token},
	} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil {
			return nil, err
		}
	}
	c.(*grpcCaller).headers = block.Bytes()
	return c, nil
}

// compare lets two servers answer the same in turns, and reports both rates.
func compare(b *testing.B, own, bare string, requests [][]byte, dial func(addr string) (client, error)) {
	b.Helper()
	const callers, turn = 16, 250 * time.Millisecond
	var sides [2]side
	for i, addr := range []string{own, bare} {
		for range callers {
			c, err := dial(addr)
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(c.close)
			sides[i].callers = append(sides[i].callers, c)
		}
		sides[i].run(b, requests, turn) // warm
		sides[i].calls, sides[i].took = 0, 0
	}
	for b.Loop() {
		sides[0].run(b, requests, turn)
		sides[1].run(b, requests, turn)
	}
	b.ReportMetric(sides[0].rate(), "rotunda/s")
	b.ReportMetric(sides[1].rate(), "no-op/s")
	b.ReportMetric(sides[0].rate()/sides[1].rate(), "ratio")
}

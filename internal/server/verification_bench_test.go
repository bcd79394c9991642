package server_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/store"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// noop answers VerifyApiKey without a look at it.
type noop struct {
	rotundav1connect.UnimplementedVerificationServiceHandler
	answer *rotundav1.VerifyApiKeyResponse
}

func (n noop) VerifyApiKey(context.Context, *connect.Request[rotundav1.VerifyApiKeyRequest]) (*connect.Response[rotundav1.VerifyApiKeyResponse], error) {
	return connect.NewResponse(n.answer), nil
}

// crowd makes n keys, a thousand for each partner, and returns their values.
func (r *rig) crowd(b *testing.B, n int) []string {
	b.Helper()
	values := make([]string, n)
	for i := range values {
		partner := fmt.Sprintf("partner-%d", i/1000)
		if i%1000 == 0 {
			if _, err := r.partners.Create(b.Context(), partner, apikeys.PartnerSpec{Scopes: []string{"orders:read", "orders:write"}}, store.Once{}); err != nil {
				b.Fatal(err)
			}
		}
		made, err := r.keys.Create(b.Context(), apikeys.APIKey, apikeys.KeySpec{
			Partner: partner, Name: fmt.Sprintf("key %d", i), Scopes: []string{"orders:read"}, Rate: apikeys.RateLimit{Quota: 1_000_000, Window: time.Second},
		})
		if err != nil {
			b.Fatal(err)
		}
		values[i] = made.Value.RevealString()
		made.Value.Destroy()
	}
	r.sequence(b)
	return values
}

// BenchmarkVerifyRPC compares VerifyApiKey of 100,000 keys in turn with a Connect
// handler that does nothing, without interceptors and authentication: the same
// messages, the same sockets, in turns of a quarter of a second, so that what else the
// machine does meets both. The ratio is what is left of the handler's rate.
func BenchmarkVerifyRPC(b *testing.B) {
	r := newRig(b)
	const n = 100_000
	values := r.crowd(b, n)
	_, token, err := r.tokens.Create(b.Context(), apikeys.Create{Name: "edge", Role: apikeys.Gateway})
	if err != nil {
		b.Fatal(err)
	}
	// What has no place in the trail yet is heard of again each second.
	for n := 1; n > 0; {
		if n, err = r.trail.Sequence(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.verifier.Refresh(b.Context()); err != nil { // to make the keys took longer than it does without
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var following sync.WaitGroup
	following.Go(func() { r.verifier.Follow(ctx) })
	b.Cleanup(func() { stop(); following.Wait() })

	messages := make([]*rotundav1.VerifyApiKeyRequest, n)
	for i, v := range values {
		messages[i] = &rotundav1.VerifyApiKeyRequest{Key: v, Scopes: []string{"orders:read"}, Address: "203.0.113.9"}
		d, err := r.verifier.Verify(b.Context(), v, &apikeys.Need{})
		if err != nil || d.Reason != apikeys.ReasonOK {
			b.Fatal(d.Reason, err)
		}
	}
	own := start(b, r.handler)
	answer, err := rotundav1connect.NewVerificationServiceClient(&http.Client{Transport: bearerTransport(token.RevealString())}, "http://"+own).
		VerifyApiKey(b.Context(), connect.NewRequest(proto.CloneOf(messages[0])))
	if err != nil || answer.Msg.GetReason() != rotundav1.VerifyReason_VERIFY_REASON_OK {
		b.Fatal(answer, err)
	}
	mux := http.NewServeMux()
	mux.Handle(rotundav1connect.NewVerificationServiceHandler(noop{answer: answer.Msg}))
	bare := start(b, mux)

	for _, side := range []struct {
		name string
		http.Handler
	}{{"rotunda", r.handler}, {"no-op", mux}} {
		b.Run("process/"+side.name, func(b *testing.B) {
			b.ReportAllocs()
			w, i := &sink{header: http.Header{}}, 0
			for b.Loop() {
				i = (i + 7919) % n
				raw, err := proto.Marshal(messages[i])
				if err != nil {
					b.Fatal(err)
				}
				req := httptest.NewRequest(http.MethodPost, rotundav1connect.VerificationServiceVerifyApiKeyProcedure, bytes.NewReader(raw))
				req.Header.Set("Authorization", "Bearer "+token.RevealString())
				req.Header.Set("Content-Type", "application/proto")
				clear(w.header)
				side.ServeHTTP(w, req)
			}
		})
	}

	for _, p := range []struct {
		name   string
		encode func(*rotundav1.VerifyApiKeyRequest) []byte
		dial   func(addr string) (client, error)
	}{
		{"json", func(m *rotundav1.VerifyApiKeyRequest) []byte {
			raw, err := json.Marshal(map[string]any{"key": m.GetKey(), "scopes": m.GetScopes(), "address": m.GetAddress()})
			if err != nil {
				b.Fatal(err)
			}
			return overHTTP1("application/json", token.RevealString(), raw)
		}, dialHTTP1},
		{"proto", func(m *rotundav1.VerifyApiKeyRequest) []byte {
			raw, err := proto.Marshal(m)
			if err != nil {
				b.Fatal(err)
			}
			return overHTTP1("application/proto", token.RevealString(), raw)
		}, dialHTTP1},
		{"grpc", func(m *rotundav1.VerifyApiKeyRequest) []byte {
			raw, err := proto.Marshal(m)
			if err != nil {
				b.Fatal(err)
			}
			return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw))), raw...)
		}, func(addr string) (client, error) { return dialGRPC(addr, token.RevealString()) }},
	} {
		requests := make([][]byte, n)
		for i, m := range messages {
			requests[i] = p.encode(m)
		}
		b.Run(p.name, func(b *testing.B) {
			const callers, turn = 16, 250 * time.Millisecond
			var sides [2]side
			for i, addr := range []string{own, bare} {
				for range callers {
					c, err := p.dial(addr)
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
		})
	}
}

// side is one of the servers that are compared.
type side struct {
	callers []client
	calls   int
	took    time.Duration
}

func (s *side) rate() float64 { return float64(s.calls) / s.took.Seconds() }

// run has all callers call for a while.
func (s *side) run(b *testing.B, requests [][]byte, turn time.Duration) {
	b.Helper()
	began := time.Now()
	counts := make([]int, len(s.callers))
	var wg sync.WaitGroup
	for i, c := range s.callers {
		wg.Go(func() {
			for j := i * 7919; time.Since(began) < turn; j++ {
				if err := c.call(requests[(j*7919)%len(requests)]); err != nil {
					b.Error(err)
					return
				}
				counts[i]++
			}
		})
	}
	wg.Wait()
	s.took += time.Since(began)
	for _, n := range counts {
		s.calls += n
	}
}

type client interface {
	call(request []byte) error
	close()
}

// start serves a handler as the server does, HTTP/2 without TLS included.
func start(b *testing.B, h http.Handler) string {
	b.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	b.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

type bearerTransport string

func (t bearerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(t))
	return http.DefaultTransport.RoundTrip(r)
}

func overHTTP1(contentType, token string, body []byte) []byte {
	return append([]byte("POST "+rotundav1connect.VerificationServiceVerifyApiKeyProcedure+" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+token+
		"\r\nContent-Type: "+contentType+"\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"), body...)
}

func dialHTTP1(addr string) (client, error) { return dial(addr) }

func (c *caller) close() { _ = c.conn.Close() }

// grpcCaller speaks gRPC over a connection of its own, one call after the other, and
// reads no more of the answers than it must: see caller.
type grpcCaller struct {
	conn    net.Conn
	framer  *http2.Framer
	out     bytes.Buffer
	headers []byte // compressed; without a table that could change
	stream  uint32
	got     int // bytes that were not given back to the window yet
}

func dialGRPC(addr, token string) (client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &grpcCaller{conn: conn, stream: 1}
	c.framer = http2.NewFramer(&c.out, conn)
	c.out.WriteString(http2.ClientPreface)
	// A table of no size: the same headers are the same bytes each time.
	if err := c.framer.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}); err != nil {
		return nil, err
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.SetMaxDynamicTableSizeLimit(0)
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", rotundav1connect.VerificationServiceVerifyApiKeyProcedure}, {":authority", "localhost"},
		{"content-type", "application/grpc+proto"}, {"te", "trailers"}, {"authorization", "Bearer " + token},
	} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil {
			return nil, err
		}
	}
	c.headers = block.Bytes()
	return c, nil
}

func (c *grpcCaller) close() { _ = c.conn.Close() }

func (c *grpcCaller) call(message []byte) error {
	id := c.stream
	c.stream += 2
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.headers, EndHeaders: true})
	if err != nil {
		return err
	}
	if err := c.framer.WriteData(id, true, message); err != nil {
		return err
	}
	if c.got > 16<<10 {
		if err := c.framer.WriteWindowUpdate(0, uint32(c.got)); err != nil {
			return err
		}
		c.got = 0
	}
	for data := 0; ; {
		if c.out.Len() > 0 {
			if _, err := c.conn.Write(c.out.Bytes()); err != nil {
				return err
			}
			c.out.Reset()
		}
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return err
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = c.framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = c.framer.WritePing(true, f.Data)
			}
		case *http2.DataFrame:
			data += len(f.Data())
			c.got += len(f.Data())
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				if data == 0 { // a call that failed has trailers only
					return fmt.Errorf("the call failed")
				}
				return nil
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return fmt.Errorf("the server cut the stream: %v", frame)
		}
		if err != nil {
			return err
		}
	}
}

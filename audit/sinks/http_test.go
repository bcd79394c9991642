package sinks

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/rotunda-dev/rotunda/audit/format"
	"github.com/rotunda-dev/rotunda/audit/trail"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
)

const token = "B5A79AAD-D822-46CC-80D1-819F80D7BFB0"

// newServer starts an HTTPS server, and returns the Config of a sink that sends there.
func newServer(t testing.TB, kind string, h http.HandlerFunc) Config {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = nil
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return Config{Kind: kind, Address: server.URL, CA: string(ca), ServerName: "example.com", Secret: secret.FromString(token), Timeout: 2 * time.Second}
}

// collector follows Splunk's documentation of the HTTP Event Collector: "Format
// events", "HTTP Event Collector REST API endpoints", "About indexer acknowledgement"
// and the table of status codes in "Troubleshoot".
type collector struct {
	mu      sync.Mutex
	events  []map[string]json.RawMessage
	nextAck int64
	polls   map[int64]int
	slow    int // how many polls an acknowledgement takes
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer := func(status, code int, text string, more string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"text":%q,"code":%d%s}`, text, code, more)
	}
	scheme, given, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	channel := r.Header.Get("X-Splunk-Request-Channel")
	switch {
	case r.Header.Get("Authorization") == "":
		answer(401, 2, "Token is required", "")
	case !ok || scheme != "Splunk":
		answer(401, 3, "Invalid authorization", "")
	case given != token:
		answer(403, 4, "Invalid token", "")
	case r.URL.Path == "/services/collector/ack":
		var asked struct{ Acks []int64 }
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || channel == "" || r.URL.Query().Get("channel") != channel {
			answer(400, 11, "Invalid data channel", "")
			return
		}
		var parts []string
		for _, id := range asked.Acks {
			c.polls[id]++
			parts = append(parts, fmt.Sprintf(`"%d":%v`, id, c.polls[id] == c.slow+1)) // forgotten once told
		}
		fmt.Fprintf(w, `{"acks":{%s}}`, strings.Join(parts, ","))
	case r.URL.Path != "/services/collector/event":
		answer(404, 404, "The requested URL was not found on this server.", "")
	default:
		var events []map[string]json.RawMessage
		for d := json.NewDecoder(r.Body); ; {
			var e map[string]json.RawMessage
			if err := d.Decode(&e); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				answer(400, 6, "Invalid data format", fmt.Sprintf(`,"invalid-event-number":%d`, len(events)))
				return
			}
			if e["event"] == nil {
				answer(400, 12, "Event field is required", fmt.Sprintf(`,"invalid-event-number":%d`, len(events)))
				return
			}
			if bytes.Contains(e["event"], []byte("poison")) {
				answer(400, 6, "Invalid data format", fmt.Sprintf(`,"invalid-event-number":%d`, len(events)))
				return
			}
			if string(e["index"]) == `"forbidden"` {
				answer(400, 7, "Incorrect index", fmt.Sprintf(`,"invalid-event-number":%d`, len(events)))
				return
			}
			events = append(events, e)
		}
		if len(events) == 0 {
			answer(400, 5, "No data", "")
			return
		}
		c.events = append(c.events, events...)
		ack := ""
		if channel != "" {
			ack = fmt.Sprintf(`,"ackId":%d`, c.nextAck)
			c.nextAck++
		}
		answer(200, 0, "Success", ack)
	}
}

func TestSplunkWhenEventsArrive(t *testing.T) {
	for _, ack := range []string{"false", "true"} {
		t.Run("ack="+ack, func(t *testing.T) {
			c := &collector{polls: map[int64]int{}, slow: 2}
			conf := newServer(t, Splunk, c.ServeHTTP)
			conf.Options = map[string]string{"ack": ack, "index": "audit", "host": "rotunda-1"}
			s, records := newSink(t, conf), newRecords(t, 0, 600)
			for _, batch := range [][]trail.Record{records[:500], records[500:]} {
				if err := s.Send(t.Context(), batch); err != nil {
					t.Fatal(err)
				}
			}
			if len(c.events) != 600 {
				t.Fatalf("%d events arrived", len(c.events))
			}
			for i, e := range c.events {
				line, err := format.AppendJSON(nil, &records[i])
				if err != nil {
					t.Fatal(err)
				}
				var got, want any
				if json.Unmarshal(e["event"], &got) != nil || json.Unmarshal(line, &want) != nil || !cmp.Equal(want, got) {
					t.Fatalf("event %d is %s", i, e["event"])
				}
				if want := fmt.Sprintf(`{"rotunda_hash":%q,"rotunda_index":"%d","rotunda_origin":%q}`, records[i].Hash, i, origin); string(e["fields"]) != want {
					t.Fatalf("fields %s, want %s", e["fields"], want)
				}
				us := records[i].Time.UnixMicro()
				if want := fmt.Sprintf("%d.%06d", us/1e6, us%1e6); string(e["time"]) != want {
					t.Fatalf("time %s, want %s", e["time"], want)
				}
				if string(e["index"]) != `"audit"` || string(e["host"]) != `"rotunda-1"` {
					t.Fatalf("metadata: %v", e)
				}
			}
			if want := map[string]int{"true": 3}[ack]; c.polls[0] != want || c.polls[1] != want {
				t.Errorf("polls: %v, want %d each", c.polls, want)
			}
		})
	}
}

func TestSplunkWhenRefused(t *testing.T) {
	c := &collector{polls: map[int64]int{}}
	conf := newServer(t, Splunk, c.ServeHTTP)
	records := newRecords(t, 0, 8)
	records[5].Reason = "poison"
	if err := newSink(t, conf).Send(t.Context(), records); !errors.Is(err, fault.ErrRejected) {
		t.Errorf("a bad event: %v", err)
	}
	// A wrong index would refuse every event: no verdict on any.
	conf.Options = map[string]string{"index": "forbidden"}
	if err := newSink(t, conf).Send(t.Context(), records); !errors.Is(err, fault.ErrUnavailable) || errors.Is(err, fault.ErrRejected) || !strings.Contains(err.Error(), "Incorrect index") {
		t.Errorf("a wrong index: %v", err)
	}
	conf.Secret = secret.FromString("another")
	if err := newSink(t, conf).Send(t.Context(), records); !errors.Is(err, fault.ErrUnavailable) || !strings.Contains(err.Error(), "Invalid token") {
		t.Errorf("a wrong token: %v", err)
	}
	if len(c.events) != 0 {
		t.Errorf("%d events arrived", len(c.events))
	}
}

// Each kind of failure, for each kind of sink: its class, and that neither the token
// nor the path is told, though the server repeats the whole request in its answer.
func TestHTTPWhenTheReceiverFails(t *testing.T) {
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			fmt.Fprintf(w, "%s %s %s", r.URL, r.Header.Get("Authorization"), body)
		}
	}
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	tests := []struct {
		name    string
		handler http.HandlerFunc
		kind    error
		reason  string
		after   time.Duration
	}{
		{"400", status(400), fault.ErrRejected, "refused", 0},
		{"413", status(413), fault.ErrRejected, "refused", 0},
		{"401", status(401), fault.ErrUnavailable, "denied", 0},
		{"403", status(403), fault.ErrUnavailable, "denied", 0},
		{"404", status(404), fault.ErrUnavailable, "failing", 0},
		{"408", status(408), fault.ErrUnavailable, "failing", 0},
		{"429", status(429, "Retry-After", "7"), fault.ErrUnavailable, "failing", 7 * time.Second},
		{"429 for a day", status(429, "Retry-After", "86400"), fault.ErrUnavailable, "failing", 5 * time.Minute},
		{"503 until", status(503, "Date", "Fri, 02 Jan 2026 15:04:05 GMT", "Retry-After", "Fri, 02 Jan 2026 15:05:05 GMT"), fault.ErrUnavailable, "failing", time.Minute},
		{"503 nonsense", status(503, "Retry-After", "soon"), fault.ErrUnavailable, "failing", 0},
		{"500", status(500), fault.ErrUnavailable, "failing", 0},
		{"redirect", status(307, "Location", "https://127.0.0.1:1/?stolen"), fault.ErrUnavailable, "redirect", 0},
		{"cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(200)
			_, _ = io.WriteString(w, "{")
			panic(http.ErrAbortHandler)
		}, fault.ErrUnavailable, "unreachable", 0},
		{"slow", func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}, fault.ErrUnavailable, "unreachable", 0},
	}
	for _, kind := range []string{Splunk, HTTPS, OTLP} {
		for _, test := range tests {
			t.Run(kind+" "+test.name, func(t *testing.T) {
				t.Parallel()
				conf := newServer(t, kind, test.handler)
				conf.Address += "/in/hidden-path?key=hidden-query"
				conf.Timeout = 500 * time.Millisecond
				if test.name != "slow" {
					conf.Timeout = 30 * time.Second
				}
				err := newSink(t, conf).Send(t.Context(), newRecords(t, 0, 3))
				f, ok := errors.AsType[*fault.Error](err)
				if !ok || !errors.Is(err, test.kind) || f.Reason != test.reason {
					t.Fatalf("got %v", err)
				}
				later, ok := errors.AsType[*Later](err)
				if ok != (test.after > 0) || ok && later.After != test.after {
					t.Errorf("try again after %+v, want %v", later, test.after)
				}
				for _, hidden := range []string{token, "hidden-path", "hidden-query"} {
					if strings.Contains(err.Error(), hidden) {
						t.Errorf("the error tells %q: %v", hidden, err)
					}
				}
				if len(err.Error()) > 600 {
					t.Errorf("the error has %d bytes", len(err.Error()))
				}
			})
		}
	}
}

func TestHTTPWhenTheReceiverIsNotTheOneWeTrust(t *testing.T) {
	arrived := false
	handler := func(http.ResponseWriter, *http.Request) { arrived = true }
	conf := newServer(t, HTTPS, handler)
	records := newRecords(t, 0, 1)
	for name, change := range map[string]func(*Config){
		"another authority": func(c *Config) { c.CA = newAuthority(t).PEM },
		"another name":      func(c *Config) { c.ServerName = "siem.example.org" },
		"nobody":            func(c *Config) { c.Address = "https://127.0.0.1:1" },
	} {
		c := conf
		change(&c)
		err := newSink(t, c).Send(t.Context(), records)
		if !errors.Is(err, fault.ErrUnavailable) || strings.Contains(err.Error(), token) {
			t.Errorf("%s: %v", name, err)
		}
	}
	old := httptest.NewUnstartedServer(http.HandlerFunc(handler))
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.StartTLS()
	t.Cleanup(old.Close)
	conf.Address = old.URL
	conf.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Certificate().Raw}))
	if err := newSink(t, conf).Send(t.Context(), records); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("TLS 1.1: %v", err)
	}
	if arrived {
		t.Error("records went to a receiver that is not trusted")
	}
}

func TestHTTPWhenTheAnswerIsEndlessReadsABoundedPart(t *testing.T) {
	conf := newServer(t, HTTPS, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		chunk := bytes.Repeat([]byte("x"), 32<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	conf.Timeout = time.Minute
	if err := newSink(t, conf).Send(t.Context(), newRecords(t, 0, 1)); err != nil {
		t.Errorf("Send: %v", err)
	}
}

func TestHTTPSWhenBatchesArrive(t *testing.T) {
	raw := bytes.Repeat([]byte("k"), 32)
	at := time.Unix(1_790_000_000, 5)
	for _, auth := range []string{"bearer", "standard-webhooks"} {
		for form, encode := range map[string]func([]byte, *trail.Record) ([]byte, error){JSON: format.AppendJSON, CEF: format.AppendCEF} {
			t.Run(auth+" "+form, func(t *testing.T) {
				records := newRecords(t, 7, 20)
				var want []byte
				for i := range records {
					var err error
					if want, err = encode(want, &records[i]); err != nil {
						t.Fatal(err)
					}
					want = append(want, '\n')
				}
				arrived := 0
				conf := newServer(t, HTTPS, func(w http.ResponseWriter, r *http.Request) {
					body, err := io.ReadAll(r.Body)
					if err != nil || !bytes.Equal(body, want) {
						t.Errorf("the body is %q (%v)", body, err)
					}
					id := origin + ":7-26"
					if got := r.Header.Get("Idempotency-Key"); got != id {
						t.Errorf("Idempotency-Key %q", got)
					}
					if auth == "bearer" {
						if got := r.Header.Get("Authorization"); got != "Bearer "+token {
							t.Errorf("Authorization %q", got)
						}
					} else {
						mac := hmac.New(sha256.New, raw)
						fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
						got := [3]string{r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), r.Header.Get("webhook-signature")}
						want := [3]string{id, strconv.FormatInt(at.Unix(), 10), "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))}
						if got != want || r.Header.Get("Authorization") != "" {
							t.Errorf("signature %q, want %q", got, want)
						}
					}
					arrived++
					w.WriteHeader(http.StatusAccepted)
				})
				conf.Format, conf.Options = form, map[string]string{"auth": auth}
				conf.Now = func() time.Time { return at }
				if auth != "bearer" {
					conf.Secret = secret.FromString("whsec_" + base64.StdEncoding.EncodeToString(raw))
				}
				if err := newSink(t, conf).Send(t.Context(), records); err != nil || arrived != 1 {
					t.Errorf("Send: %v; %d requests", err, arrived)
				}
			})
		}
	}
}

func TestOTLPWhenSomeAreRefused(t *testing.T) {
	refused := int64(0)
	conf := newServer(t, OTLP, func(w http.ResponseWriter, r *http.Request) {
		var req collogs.ExportLogsServiceRequest
		body, _ := io.ReadAll(r.Body)
		if err := proto.Unmarshal(body, &req); err != nil || r.URL.Path != "/v1/logs" || r.Header.Get("Authorization") != "Bearer "+token {
			w.WriteHeader(400)
			return
		}
		reply, _ := proto.Marshal(&collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: refused, ErrorMessage: "no " + token}})
		_, _ = w.Write(reply)
	})
	s := newSink(t, conf)
	if err := s.Send(t.Context(), newRecords(t, 0, 3)); err != nil {
		t.Errorf("a warning with nothing refused: %v", err)
	}
	refused = 1
	if err := s.Send(t.Context(), newRecords(t, 0, 3)); !errors.Is(err, fault.ErrRejected) || strings.Contains(err.Error(), token) {
		t.Errorf("one refused: %v", err)
	}
}

func TestHTTPWhenCancelledReturns(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	conf := newServer(t, HTTPS, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a server sees the end of a connection once it has read the request
		cancel()
		<-r.Context().Done()
	})
	conf.Timeout = 5 * time.Minute
	if err := newSink(t, conf).Send(ctx, newRecords(t, 0, 1)); err == nil {
		t.Error("Send returned nil")
	}
}

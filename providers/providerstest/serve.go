package providerstest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// biggest is a value with all of its JSON escapes, and what is around it.
const biggest = 8*providers.MaxValue + 4096

// Serve opens an HTTP front on 127.0.0.1 until the test ends, and returns its URL. An
// operation that arrived is done whether its caller still lives or not.
func (m *Memory) Serve(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	return server.URL
}

// answer is a reply, or a failure by its kind.
type answer struct {
	Reply   reply
	Kind    string `json:",omitempty"`
	Reason  string `json:",omitempty"`
	Message string `json:",omitempty"`
}

// kinds are the failures that cross the front.
func kinds() map[string]error {
	return map[string]error{
		"rejected": fault.ErrRejected, "denied": fault.ErrDenied, "invalid": fault.ErrInvalid, "missing": fault.ErrNotFound,
		"transition": fault.ErrTransition, "stale": fault.ErrStale, "limited": fault.ErrLimited,
	}
}

func (m *Memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var q request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, biggest)).Decode(&q); err != nil {
		http.Error(w, "the request is no operation", http.StatusBadRequest)
		return
	}
	var a answer
	var err error
	a.Reply, err = m.call(context.WithoutCancel(r.Context()), q)
	if err != nil {
		for name, kind := range kinds() {
			if errors.Is(err, kind) {
				a.Kind = name
			}
		}
		a.Message = err.Error()
		if e, ok := errors.AsType[*fault.Error](err); ok {
			a.Reason = e.Reason
		}
	}
	// A caller that is gone gets no answer, and asks again.
	_ = json.NewEncoder(w).Encode(a)
}

// Remote is the system behind the front at url.
func Remote(ctx context.Context, url string) (*System, error) {
	client := &http.Client{Transport: &http.Transport{}}
	s := &System{call: func(ctx context.Context, q request) (reply, error) { return post(ctx, client, url, q) }}
	var err error
	s.has, err = s.call(ctx, request{Op: "describe"})
	return s, err
}

func post(ctx context.Context, client *http.Client, url string, q request) (reply, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return reply{}, fmt.Errorf("encode an operation: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return reply{}, fmt.Errorf("ask the system in memory: %w", err)
	}
	response, err := client.Do(r)
	if err != nil {
		return reply{}, fault.New(fault.ErrUnavailable, "memory_unreachable", "ask the system in memory: %w", err)
	}
	defer response.Body.Close()
	var a answer
	if err := json.NewDecoder(io.LimitReader(response.Body, biggest)).Decode(&a); err != nil || response.StatusCode != http.StatusOK {
		return reply{}, fault.New(fault.ErrUnavailable, "memory_reply", "ask the system in memory: status %d, and no answer that can be read", response.StatusCode)
	}
	if a.Message == "" {
		return a.Reply, nil
	}
	if kind := kinds()[a.Kind]; kind != nil {
		return reply{}, fault.New(kind, a.Reason, "%s", a.Message)
	}
	return reply{}, errors.New(a.Message)
}

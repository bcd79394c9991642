package server

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/rotation"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// post is what a receiver of webhooks got.
type post struct {
	header http.Header
	body   []byte
}

// receiver answers webhooks with a status that the test sets.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	status int
	got    []post
}

func newReceiver(t testing.TB) *receiver {
	t.Helper()
	r := &receiver{status: http.StatusNoContent}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Errorf("read a webhook: %v", err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got = append(r.got, post{req.Header.Clone(), body})
		w.WriteHeader(r.status)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) answers(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

func (r *receiver) posts() []post {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]post(nil), r.got...)
}

// A consumer is told of a new version by a webhook that the partner's own secret has
// signed; what was given up is sent again when somebody asks.
func TestEndpointWhenConsumersAreTold(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		ctx := t.Context()
		hooks := b.hooks(b.admin)
		there := newReceiver(t)
		b.partner(t, "acme")
		secret, err := b.requestSecrets(b.admin).CreateRequestSecret(ctx, connect.NewRequest(&rotundav1.CreateRequestSecretRequest{Partner: "acme", Name: "hooks"}))
		if err != nil {
			t.Fatal(err)
		}
		key, err := webhook.ParseSecret(secret.Msg.GetValue())
		if err != nil {
			t.Fatal(err)
		}
		make := func() (*rotundav1.Endpoint, error) {
			res, err := hooks.CreateEndpoint(ctx, withKey(&rotundav1.CreateEndpointRequest{Name: "acme", Url: there.URL + "/hook", Partner: "acme", Secret: "hooks"}, "k"))
			if err != nil {
				return nil, err
			}
			return res.Msg.GetEndpoint(), nil
		}
		made, err := make()
		if err != nil || made.GetState() != "active" || made.GetVersion() != 1 || made.GetUrl() != there.URL+"/hook" {
			t.Fatalf("made: %v, %v", made, err)
		}
		if again, err := make(); err != nil || again.GetVersion() != 1 {
			t.Errorf("the same request again: %v, %v", again, err)
		}
		_, err = hooks.CreateEndpoint(ctx, connect.NewRequest(&rotundav1.CreateEndpointRequest{Name: "bad", Url: "ftp://x.test", Partner: "acme", Secret: "hooks"}))
		if code, p := problemOf(t, err); code != connect.CodeInvalidArgument || p.GetField() != "url" {
			t.Errorf("an address that is none: %v", err)
		}
		tested, err := hooks.TestEndpoint(ctx, connect.NewRequest(&rotundav1.TestEndpointRequest{Endpoint: "acme"}))
		if err != nil || tested.Msg.GetDelivery().GetState() != "delivered" || tested.Msg.GetDelivery().GetLastStatus() != http.StatusNoContent {
			t.Fatalf("test: %v, %v", tested, err)
		}
		_, id, err := webhook.Verify(there.posts()[0].header, there.posts()[0].body, b.clock.Now(), time.Minute, key)
		if err != nil || id != tested.Msg.GetDelivery().GetId() || string(there.posts()[0].body) != tested.Msg.GetDelivery().GetBody() {
			t.Errorf("the receiver got %q, id %q: %v", there.posts()[0].body, id, err)
		}

		b.system(t)
		b.credential(t, "orders", func(s *rotation.Spec) { s.Notify = []string{"acme"} })
		_, err = hooks.DeleteEndpoint(ctx, connect.NewRequest(&rotundav1.DeleteEndpointRequest{Endpoint: "acme"}))
		if code, _ := problemOf(t, err); code != connect.CodeFailedPrecondition {
			t.Errorf("delete of one that is in use: %v", err)
		}
		there.answers(http.StatusInternalServerError)
		b.bring(t, b.start(t, "orders"), rotation.StepDone)
		list := func(dead bool) []*rotundav1.Delivery {
			t.Helper()
			res, err := hooks.ListDeliveries(ctx, connect.NewRequest(&rotundav1.ListDeliveriesRequest{Endpoint: "acme", Dead: dead}))
			if err != nil {
				t.Fatal(err)
			}
			return res.Msg.GetDeliveries()
		}
		for range 400 {
			next, err := b.Endpoints.DeliverPass(context.WithoutCancel(ctx), b.clock.Now())
			if err != nil {
				t.Fatal(err)
			}
			b.Endpoints.Close() // waits for what is being sent
			if len(list(true)) > 0 {
				break
			}
			if next.After(b.clock.Now()) {
				b.clock.Set(next)
			}
		}
		dead := list(true)
		if len(dead) != 1 || dead[0].GetLastStatus() != http.StatusInternalServerError || dead[0].GetAttempts() < 5 || dead[0].GetType() != "credential.rotated" {
			t.Fatalf("given up: %v", dead)
		}
		there.answers(http.StatusOK)
		again, err := hooks.RedeliverMessage(ctx, connect.NewRequest(&rotundav1.RedeliverMessageRequest{Delivery: dead[0].GetId()}))
		if err != nil || again.Msg.GetDelivery().GetState() != "waiting" || again.Msg.GetDelivery().GetId() != dead[0].GetId() {
			t.Fatalf("again: %v, %v", again, err)
		}
		if _, err := b.Endpoints.DeliverPass(ctx, b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		b.Endpoints.Close()
		if got := list(false); len(list(true)) != 0 || len(got) != 2 || got[0].GetState() != "delivered" {
			t.Errorf("afterwards: %v", got)
		}

		_, err = hooks.UpdateEndpoint(ctx, connect.NewRequest(&rotundav1.UpdateEndpointRequest{Endpoint: "acme", Version: 9, Url: there.URL, Partner: "acme", Secret: "hooks"}))
		if code, _ := problemOf(t, err); code != connect.CodeAborted {
			t.Errorf("update of another version: %v", err)
		}
		changed, err := hooks.UpdateEndpoint(ctx, connect.NewRequest(&rotundav1.UpdateEndpointRequest{Endpoint: "acme", Version: made.GetVersion(), Url: there.URL + "/other", Partner: "acme", Secret: "hooks"}))
		if err != nil || changed.Msg.GetEndpoint().GetUrl() != there.URL+"/other" {
			t.Errorf("update: %v, %v", changed, err)
		}
		off, err := hooks.DisableEndpoint(ctx, connect.NewRequest(&rotundav1.DisableEndpointRequest{Endpoint: "acme", Reason: "down"}))
		if err != nil || off.Msg.GetEndpoint().GetState() != "disabled" || off.Msg.GetEndpoint().GetReason() != "down" {
			t.Errorf("disable: %v, %v", off, err)
		}
		_, err = hooks.TestEndpoint(ctx, connect.NewRequest(&rotundav1.TestEndpointRequest{Endpoint: "acme"}))
		wantProblem(t, err, connect.CodeFailedPrecondition, "endpoint_disabled")
		on, err := hooks.EnableEndpoint(ctx, connect.NewRequest(&rotundav1.EnableEndpointRequest{Endpoint: "acme", Reason: "up"}))
		if err != nil || on.Msg.GetEndpoint().GetState() != "active" {
			t.Errorf("enable: %v, %v", on, err)
		}
		if err := b.Credentials.Delete(ctx, "orders", ""); err != nil {
			t.Fatal(err)
		}
		if _, err := hooks.DeleteEndpoint(ctx, connect.NewRequest(&rotundav1.DeleteEndpointRequest{Endpoint: "acme"})); err != nil {
			t.Error(err)
		}
		if all, err := hooks.ListEndpoints(ctx, connect.NewRequest(&rotundav1.ListEndpointsRequest{})); err != nil || len(all.Msg.GetEndpoints()) != 0 {
			t.Errorf("endpoints: %v, %v", all, err)
		}
	})
}

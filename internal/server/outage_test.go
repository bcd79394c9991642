package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// survive holds a bed whose database has just stopped to what it promises.
func survive(t *testing.T, b *bed, etag string) {
	t.Helper()
	sign := func() error {
		_, err := b.keysets(b.admin).Sign(t.Context(), connect.NewRequest(&rotundav1.SignRequest{Name: "payments", Claims: `{}`}))
		return err
	}
	documents := func(age string) {
		t.Helper()
		a := b.get(t, "", home, "/keysets/payments/jwks.json")
		if a.status != http.StatusOK || a.header.Get("Etag") != etag || a.header.Get("Cache-Control") != "public, max-age="+age+", must-revalidate" || a.body == "" {
			t.Errorf("document: %d %v", a.status, a.header)
		}
		if a := b.get(t, "", home, "/keysets/payments/jwks.json", "If-None-Match", etag); a.status != http.StatusNotModified {
			t.Errorf("document with its etag: %d", a.status)
		}
		if a := b.get(t, "", home, "/keysets/payments/.well-known/openid-configuration"); a.status != http.StatusOK {
			t.Errorf("discovery: %d", a.status)
		}
		if a := b.get(t, "", home, "/keysets/absent/jwks.json"); a.status != http.StatusNotFound {
			t.Errorf("a keyset that is not there: %d", a.status)
		}
		if a := b.get(t, "", home, "/healthz"); a.status != http.StatusOK {
			t.Errorf("healthz: %d", a.status)
		}
	}
	ready := func(want int, health string) {
		t.Helper()
		if a := b.get(t, "", home, "/readyz"); a.status != want || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("readyz: %d %s, want %d", a.status, a.body, want)
		}
		if a := b.post(t, "", home, "/grpc.health.v1.Health/Check", "{}"); !strings.Contains(a.body, health+`"`) || strings.Contains(a.body, "NOT_SERVING") != (health == "NOT_SERVING") {
			t.Errorf("health: %s, want %s", a.body, health)
		}
	}

	// At once nothing is different, but for what needs the database.
	documents("60")
	ready(http.StatusOK, "SERVING")
	if err := sign(); err != nil {
		t.Errorf("sign under the lease: %v", err)
	}
	_, err := b.keysets(b.admin).GetKeyset(t.Context(), connect.NewRequest(&rotundav1.GetKeysetRequest{Name: "payments"}))
	if code, _ := problemOf(t, err); code != connect.CodeUnavailable {
		t.Errorf("get: %v", err)
	}

	b.clock.Advance(8 * time.Second) // the lease is over, the token still believed
	documents("60")
	ready(http.StatusOK, "SERVING")
	wantProblem(t, sign(), connect.CodeUnavailable, "lease_over")

	b.clock.Advance(7 * time.Second)
	ready(http.StatusOK, "SERVING")
	b.clock.Advance(time.Second)
	ready(http.StatusServiceUnavailable, "NOT_SERVING")
	documents("60")
	if code, _ := problemOf(t, sign()); code != connect.CodeUnavailable {
		t.Errorf("sign when nobody knows the token any more: %s", code)
	}
	if a := b.get(t, b.admin, home, "/metrics"); a.status != http.StatusServiceUnavailable {
		t.Errorf("metrics when nobody knows the token any more: %d", a.status)
	}
	// A stranger is refused, and does not wait for a trail that can't be written.
	if a := b.post(t, "rk_bad", home, v1connect.KeysetServiceSignProcedure, `{}`); a.status != http.StatusUnauthorized {
		t.Errorf("a stranger: %d", a.status)
	}
	b.clock.Advance(365 * 24 * time.Hour)
	documents("60")
}

func TestServerWhenPostgresStops(t *testing.T) {
	pg := storetest.NewServer(t)
	b := newBed(t, storetest.Open(t, pg.Database(t)))
	b.keyset(t, "payments")
	client := b.keysets(b.admin)
	req := connect.NewRequest(&rotundav1.SignRequest{Name: "payments", Claims: `{}`})
	if _, err := client.Sign(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	etag := b.Keysets.Document("payments").ETag
	pg.Stop(t)
	survive(t, b, etag)
	pg.Start(t)

	// Everything recovers by itself: signing and the token on their next use,
	// readiness with the next pass.
	if _, err := client.Sign(t.Context(), req); err != nil {
		t.Errorf("sign: %v", err)
	}
	if _, err := b.Keysets.Pass(t.Context(), b.clock.Now()); err != nil {
		t.Errorf("pass: %v", err)
	}
	if a := b.get(t, "", home, "/readyz"); a.status != http.StatusOK {
		t.Errorf("readyz: %d %s", a.status, a.body)
	}
	if _, err := client.GetKeyset(t.Context(), connect.NewRequest(&rotundav1.GetKeysetRequest{Name: "payments"})); err != nil {
		t.Errorf("get: %v", err)
	}
	// What was denied meanwhile is written late rather than never.
	if err := b.Denials.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, err := b.trail(b.admin).ListEvents(t.Context(), connect.NewRequest(&rotundav1.ListEventsRequest{Outcome: "denied"}))
	if err != nil || len(list.Msg.GetEvents()) != 1 || list.Msg.GetEvents()[0].GetReason() != "malformed" {
		t.Errorf("the trail has %v, %v", list, err)
	}
}

func TestServerWhenSQLiteIsClosed(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	b.keyset(t, "payments")
	if _, err := b.keysets(b.admin).Sign(t.Context(), connect.NewRequest(&rotundav1.SignRequest{Name: "payments", Claims: `{}`})); err != nil {
		t.Fatal(err)
	}
	etag := b.Keysets.Document("payments").ETag
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	survive(t, b, etag)
}

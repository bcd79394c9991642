package server

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

type watcher struct {
	*connect.ServerStreamForClient[rotundav1.WatchResponse]
}

func (b *bed) watch(t testing.TB, client v1connect.KeysetServiceClient, name string, after int64) watcher {
	t.Helper()
	stream, err := client.Watch(t.Context(), connect.NewRequest(&rotundav1.WatchRequest{Name: name, AfterVersion: after}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stream.Close() }) // which is how a watcher leaves
	return watcher{stream}
}

// next is the next document, which must be of a version.
func (w watcher) next(t testing.TB, version int64) *rotundav1.WatchResponse {
	t.Helper()
	if !w.Receive() {
		t.Fatalf("the stream ended instead of version %d: %v", version, w.Err())
	}
	if got := w.Msg().GetVersion(); got != version {
		t.Fatalf("got version %d, want %d", got, version)
	}
	return w.Msg()
}

func TestWatchWhenVersionsCome(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "payments")
		b.keyset(t, "other")
		gateway := b.keysets(b.token(t, apikeys.Create{Role: apikeys.Gateway, Keysets: []string{"payments"}}))
		all, later := b.watch(t, gateway, "payments", 0), b.watch(t, gateway, "payments", 2)
		m := all.next(t, 1)
		d := b.Keysets.Document("payments")
		if m.GetJwks() != string(d.Body) || m.GetEtag() != d.ETag || m.GetMaxAge().AsDuration() != time.Minute {
			t.Errorf("got %v, want what is served", m)
		}
		for version := int64(2); version <= 4; version++ {
			b.rotate(t, "other") // is none of its business
			s := b.rotate(t, "payments")
			if s.Version != version {
				t.Fatalf("the keyset is at version %d, want %d", s.Version, version)
			}
			if m := all.next(t, version); m.GetEtag() != b.Keysets.Document("payments").ETag {
				t.Errorf("version %d has etag %s", version, m.GetEtag())
			}
		}
		later.next(t, 3)
		later.next(t, 4)

		absent := b.watch(t, b.keysets(b.admin), "absent", 0)
		if absent.Receive() {
			t.Error("a keyset that is not there is watched")
		}
		wantProblem(t, absent.Err(), connect.CodeNotFound, "keyset_not_found")
	})
}

// Promise: a revoked or expired token's streams end.
func TestWatchWhenTokenEnds(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.recheck = time.Millisecond
		b.keyset(t, "payments")
		revoked := b.token(t, apikeys.Create{Role: apikeys.Gateway})
		expiring := b.token(t, apikeys.Create{Role: apikeys.Gateway, ExpiresIn: time.Hour})
		one, two, good := b.watch(t, b.keysets(revoked), "payments", 0), b.watch(t, b.keysets(expiring), "payments", 0), b.watch(t, b.keysets(b.admin), "payments", 0)
		for _, w := range []watcher{one, two, good} {
			w.next(t, 1)
		}
		if _, err := b.Tokens.Revoke(t.Context(), idOf(revoked), "lost"); err != nil {
			t.Fatal(err)
		}
		if one.Receive() {
			t.Error("a revoked token's stream goes on")
		}
		wantProblem(t, one.Err(), connect.CodePermissionDenied, "token_ended")
		b.clock.Advance(time.Hour)
		if two.Receive() {
			t.Error("an expired token's stream goes on")
		}
		wantProblem(t, two.Err(), connect.CodePermissionDenied, "token_ended")
		b.rotate(t, "payments")
		good.next(t, 2)
	})
}

// While nobody can say whether a token is still good, its streams end, and the
// reason does not call it bad.
func TestWatchWhenDatabaseIsGone(t *testing.T) {
	db := storetest.SQLite(t)
	b := newBed(t, db)
	b.recheck = time.Millisecond
	b.keyset(t, "payments")
	w := b.watch(t, b.keysets(b.admin), "payments", 0)
	w.next(t, 1)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b.clock.Advance(apikeys.GraceFor)
	if w.Receive() {
		t.Error("the stream goes on")
	}
	wantProblem(t, w.Err(), connect.CodeUnavailable, "token_unknown")
}

func TestWatchWhenWatchersAreMany(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.keyset(t, "payments")
	b.watchers.Store(maxWatchers - 1)
	last := b.watch(t, b.keysets(b.admin), "payments", 0)
	last.next(t, 1)
	over := b.watch(t, b.keysets(b.admin), "payments", 0)
	if over.Receive() {
		t.Error("there is no bound")
	}
	wantProblem(t, over.Err(), connect.CodeResourceExhausted, "too_many_watchers")
	if got := b.watchers.Load(); got != maxWatchers {
		t.Errorf("%d watchers are counted", got)
	}
	// A watcher that leaves makes room.
	if err := last.Close(); err != nil {
		t.Log(err) // closing cuts the stream
	}
	waitFor(t, "the place of a watcher that left", func() bool { return b.watchers.Load() == maxWatchers-1 })
	b.watch(t, b.keysets(b.admin), "payments", 0).next(t, 1)
}

// waitFor waits for what happens soon, in some other goroutine.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited for a minute for %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// Promise: the server's timeouts for requests don't end a stream.
func TestWatchWhenServerHasTimeouts(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.keyset(t, "payments")
	handler, err := b.Handler()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == v1connect.KeysetServiceWatchProcedure {
			defer close(ended)
		}
		handler.ServeHTTP(w, r)
	}))
	const limit = 50 * time.Millisecond
	ts.Config.ReadTimeout, ts.Config.WriteTimeout = limit, limit
	ts.Start()
	t.Cleanup(ts.Close)
	w := b.watch(t, v1connect.NewKeysetServiceClient(as(b.admin, home), ts.URL), "payments", 0)
	w.next(t, 1)
	select {
	case <-ended:
		t.Fatal("the stream ended with the server's timeouts")
	case <-time.After(4 * limit):
	}
	b.rotate(t, "payments")
	w.next(t, 2)
}

func TestReflectionWhenAllowed(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	a := b.post(t, b.admin, home, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "{}")
	if a.status == http.StatusUnauthorized || a.status == http.StatusNotFound {
		t.Errorf("reflection with a token: %d", a.status)
	}
	if list := b.events(t, audit.Query{Outcome: audit.Denied}); len(list) != 0 {
		t.Errorf("denied: %+v", list)
	}
}

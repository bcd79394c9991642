package jwks

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

// checkDocument fails when a document holds anything but public halves.
func checkDocument(t testing.TB, d *Document, alg string) {
	t.Helper()
	var doc map[string][]map[string]any
	if err := json.Unmarshal(d.Body, &doc); err != nil || len(doc) != 1 || len(doc["keys"]) == 0 {
		t.Fatalf("no JWK set: %v: %s", err, d.Body)
	}
	for _, k := range doc["keys"] {
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "k", "oth"} {
			if _, there := k[private]; there {
				t.Fatalf("key %v has the private member %q", k["kid"], private)
			}
		}
		if k["alg"] != alg || k["use"] != "sig" || k["kid"] == "" {
			t.Errorf("key %v has alg %v and use %v", k["kid"], k["alg"], k["use"])
		}
	}
}

// The ETag changes exactly when the body does.
func TestETagFollowsBody(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		b.create(t, "orders", ES256, quick())
		seen := map[string]string{}
		look := func() {
			d := b.Document("payments")
			if body, ok := seen[d.ETag]; ok && body != string(d.Body) {
				t.Fatal("two bodies with one ETag")
			}
			for etag, body := range seen {
				if body == string(d.Body) && etag != d.ETag {
					t.Fatal("one body with two ETags")
				}
			}
			if !strings.HasPrefix(d.ETag, `"`) || !strings.HasSuffix(d.ETag, `"`) || len(d.ETag) < 20 {
				t.Fatalf("ETag %s is not strong and quoted", d.ETag)
			}
			seen[d.ETag] = string(d.Body)
		}
		look()
		if b.Document("payments").ETag == b.Document("orders").ETag {
			t.Error("two keysets have one ETag")
		}
		p := quick()
		p.MaxAge = 30 * time.Second
		if _, err := b.UpdatePolicy(t.Context(), UpdatePolicy{Name: "payments", Policy: p}); err != nil {
			t.Fatal(err)
		}
		look()
		if len(seen) != 1 {
			t.Error("a policy changed the ETag")
		}
		if got := b.Document("payments").MaxAge(b.clock.Now()); got != 30*time.Second {
			t.Errorf("max-age %s after the policy changed", got)
		}
		for range 3 {
			b.walk(t, quickLead)
			if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
				t.Fatal(err)
			}
			look()
		}
		if len(seen) != 4 {
			t.Errorf("%d ETags after three rotations, want 4", len(seen))
		}
	})
}

// What is served is never cached beyond the removal of a key.
func TestMaxAgeAroundRemoval(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		p := quick()
		p.MaxAge = 5 * time.Minute
		b.create(t, "payments", ES256, p)
		b.sign(t, "payments")
		b.walk(t, time.Hour)
		removal := b.clock.Now().Add(quickRetire)
		for b.clock.Now().Before(removal) {
			want := max(time.Second, min(p.MaxAge, removal.Sub(b.clock.Now())).Truncate(time.Second))
			if got := b.Document("payments").MaxAge(b.clock.Now()); got != want {
				t.Fatalf("%s before the removal: max-age %s, want %s", removal.Sub(b.clock.Now()), got, want)
			}
			b.clock.Advance(7500 * time.Millisecond)
			if b.clock.Now().Before(removal) {
				b.pass(t)
			}
		}
		if got := b.Document("payments").MaxAge(b.clock.Now()); got != time.Second {
			t.Errorf("max-age %s while a removal is due", got)
		}
		b.pass(t)
		if got := b.Document("payments").MaxAge(b.clock.Now()); got != p.MaxAge {
			t.Errorf("max-age %s after the removal", got)
		}
	})
}

func TestWatch(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		set := b.create(t, "payments", ES256, quick())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		versions := make(chan int64)
		ended := make(chan error, 1)
		go func() {
			ended <- b.Watch(ctx, "payments", 0, func(d *Document) error {
				versions <- d.Version
				return nil
			})
		}()
		if v := <-versions; v != set.Version {
			t.Errorf("began with version %d, want %d", v, set.Version)
		}
		b.create(t, "orders", ES256, quick()) // another keyset wakes nobody's f
		b.walk(t, quickLead)
		if _, err := b.Rotate(t.Context(), Rotate{Name: "payments"}); err != nil {
			t.Fatal(err)
		}
		if v := <-versions; v != set.Version+1 {
			t.Errorf("told of version %d, want %d", v, set.Version+1)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		wantFault(t, b.Watch(t.Context(), "nobody", 0, nil), fault.ErrNotFound, "keyset_not_found", "name")
		stop := errors.New("stop")
		if err := b.Watch(t.Context(), "payments", 0, func(*Document) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("f's error became %v", err)
		}
	})
}

// A fresh process serves what the database holds.
func TestRefreshInNewProcess(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.create(t, "payments", ES256, quick())
		b.create(t, "orders", Ed25519, quick())
		token := b.sign(t, "orders")
		other := New(Config{DB: db, Local: b.local})
		if other.Loaded() || other.Document("payments") != nil {
			t.Error("a new process has documents before it has read any")
		}
		if err := other.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !other.Loaded() || string(other.Document("payments").Body) != string(b.Document("payments").Body) {
			t.Error("the new process serves something else")
		}
		if err := verify(other.Document("orders").Body, token.Token, b.clock.Now()); err != nil {
			t.Error(err)
		}
		s, err := other.Sign(t.Context(), Sign{Name: "orders"})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.accepted(t, "orders", s.Token); err != nil {
			t.Error(err)
		}
	})
}

package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/audit/anchors"
	"github.com/rotunda-dev/rotunda/audit/sinks"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/server"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func newTestCopies(t *testing.T) *copies {
	t.Helper()
	db := storetest.SQLite(t)
	kek, err := secret.OpenOrCreateFile(filepath.Join(t.TempDir(), "kek"))
	if err != nil {
		t.Fatal(err)
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	tr, err := audit.Open(t.Context(), audit.Config{DB: db, Sealer: sealer, Log: log, Origin: "test.example"})
	if err != nil {
		t.Fatal(err)
	}
	return newCopies(db, sealer, tr, log, "replica", nil)
}

// listener is a TLS server that notes what it is sent.
func listener(t *testing.T) (address, ca string, heard <-chan string) {
	t.Helper()
	got := make(chan string, 100)
	s := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case got <- r.Header.Get("Authorization"):
		default:
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})), got
}

// alter edits the rows of a table as one who can write to the database does.
func alter(t *testing.T, c *copies, query string, args ...any) {
	t.Helper()
	err := c.db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.Exec(ctx, query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Who can write to the database, and has no key, gets no secret of a sink by
// pointing the sink at a server of his own.
func TestSinkSecretWhenItsRowIsPointedElsewhere(t *testing.T) {
	c := newTestCopies(t)
	address, ca, honest := listener(t)
	elsewhere, otherCA, attacker := listener(t)
	_, err := c.CreateSink(t.Context(), server.NewSink{Index: 0, Sink: server.Sink{Name: "siem", Kind: sinks.HTTPS, Address: address, CA: ca}, Secret: secret.FromString("the-bearer-token")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.trail.Sequence(t.Context()); err != nil {
		t.Fatal(err)
	}
	// run feeds the sink as its row has it, until it is heard or fails.
	run := func(heard <-chan string) (string, error) {
		places, err := c.sinks.List(t.Context())
		if err != nil || len(places) != 1 {
			t.Fatalf("sinks %+v: %v", places, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- c.pump(ctx, places[0]) }()
		select {
		case header := <-heard:
			cancel()
			<-ended
			return header, nil
		case err := <-ended:
			return "", err
		}
	}
	if header, err := run(honest); err != nil || header != "Bearer the-bearer-token" {
		t.Fatalf("the sink as it was made: %q, %v", header, err)
	}
	raw, err := json.Marshal(sinks.Config{Kind: sinks.HTTPS, Address: elsewhere, CA: otherCA})
	if err != nil {
		t.Fatal(err)
	}
	alter(t, c, `UPDATE sinks SET config = $1`, string(raw))
	alter(t, c, `UPDATE cursors SET next = 0`)
	if header, err := run(attacker); err == nil {
		t.Fatalf("the other server was sent %d letters of Authorization", len(header))
	} else if !errors.Is(err, fault.ErrRejected) {
		t.Errorf("error %v", err)
	}
	alter(t, c, `UPDATE sinks SET kind = 'splunk', config = $1`, string(raw))
	if _, err := run(attacker); !errors.Is(err, fault.ErrRejected) {
		t.Errorf("of another kind: %v", err)
	}
}

func TestAnchorSecretWhenItsRowIsPointedElsewhere(t *testing.T) {
	c := newTestCopies(t)
	address, ca, _ := listener(t)
	_, err := c.CreateAnchor(t.Context(), server.NewAnchor{Anchor: server.Anchor{Name: "outside", Kind: anchors.Webhook, Address: address, CA: ca}, Secret: secret.FromString("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")})
	if err != nil {
		t.Fatal(err)
	}
	open := func() error {
		places, err := c.anchors.List(t.Context())
		if err != nil || len(places) != 1 {
			t.Fatalf("anchors %+v: %v", places, err)
		}
		a, err := c.openAnchor(t.Context(), c.trail.Origin, places[0])
		if err == nil {
			err = a.Close()
		}
		return err
	}
	if err := open(); err != nil {
		t.Fatalf("the anchor as it was made: %v", err)
	}
	raw, err := json.Marshal(anchorConfig{Address: "https://attacker.example/", CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	alter(t, c, `UPDATE anchors SET config = $1`, string(raw))
	if err := open(); !errors.Is(err, fault.ErrRejected) {
		t.Errorf("pointed elsewhere: %v", err)
	}
}

// Certificates that the event could not hold are refused in words, with the field;
// as much as fits is taken, event and all.
func TestSinkWhenItsCertificatesAreLong(t *testing.T) {
	c := newTestCopies(t)
	_, ca, _ := listener(t)
	sink := func(name string, copies int) error {
		_, err := c.CreateSink(t.Context(), server.NewSink{Index: -1, Sink: server.Sink{Name: name, Kind: "syslog", Address: "tls://siem.test:6514", CA: strings.Repeat(ca, copies)}})
		return err
	}
	if err := sink("long", maxConfig/len(ca)+1); !errors.Is(err, fault.ErrInvalid) || !strings.Contains(err.Error(), "the trail records at most") {
		t.Errorf("a long one: %v", err)
	}
	// Each line break is two bytes of JSON.
	if err := sink("fits", (maxConfig-512)/(len(ca)+strings.Count(ca, "\n"))); err != nil {
		t.Errorf("one that fits: %v", err)
	}
}

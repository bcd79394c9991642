package server

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// storedPlaces keeps places where cmd does, without the adapters: nothing is sent
// anywhere. What would run is what the test says.
type storedPlaces struct {
	trail          *audit.Trail
	sinks, anchors *audit.Places
	running        Running
}

func newStoredPlaces(db *store.DB, t *audit.Trail) *storedPlaces {
	return &storedPlaces{trail: t, sinks: audit.NewSinks(db, t.Sealer), anchors: audit.NewAnchors(db, t.Sealer)}
}

func (p *storedPlaces) CreateSink(ctx context.Context, s NewSink) (Sink, error) {
	if s.Kind == "" {
		return Sink{}, fault.Invalid("sink.kind", "kind_unknown", "add sink: it has no kind")
	}
	both := s.Secret
	if !s.ClientKey.IsZero() {
		both = secret.FromString(s.Secret.RevealString() + "\x00" + s.ClientKey.RevealString())
		defer both.Destroy()
	}
	config, err := json.Marshal(s.Sink)
	if err != nil {
		return Sink{}, err
	}
	made, err := p.sinks.Create(ctx, audit.Place{Name: s.Name, Kind: s.Kind, Config: config}, both, s.Index)
	if err != nil {
		return Sink{}, err
	}
	return p.sink(ctx, made)
}

func (p *storedPlaces) sink(ctx context.Context, made audit.Place) (out Sink, err error) {
	err = json.Unmarshal(made.Config, &out)
	out.HasSecret, out.CreatedAt = made.HasSecret, made.CreatedAt
	next, err2 := p.trail.Cursor(ctx, audit.CursorOf(made.Name))
	out.Next = next
	return out, errors.Join(err, err2)
}

func (p *storedPlaces) Sinks(ctx context.Context) (out []Sink, err error) {
	list, err := p.sinks.List(ctx)
	for _, made := range list {
		s, err := p.sink(ctx, made)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, err
}

func (p *storedPlaces) DeleteSink(ctx context.Context, name string) error {
	return p.sinks.Delete(ctx, name)
}

func (p *storedPlaces) CreateAnchor(ctx context.Context, a NewAnchor) (Anchor, error) {
	config, err := json.Marshal(a.Anchor)
	if err != nil {
		return Anchor{}, err
	}
	made, err := p.anchors.Create(ctx, audit.Place{Name: a.Name, Kind: a.Kind, Config: config}, a.Secret, -1)
	out := a.Anchor
	out.HasSecret, out.CreatedAt = made.HasSecret, made.CreatedAt
	return out, err
}

func (p *storedPlaces) Anchors(ctx context.Context) (out []Anchor, err error) {
	list, err := p.anchors.List(ctx)
	for _, made := range list {
		var a Anchor
		if err := json.Unmarshal(made.Config, &a); err != nil {
			return nil, err
		}
		a.HasSecret, a.CreatedAt = made.HasSecret, made.CreatedAt
		out = append(out, a)
	}
	return out, err
}

func (p *storedPlaces) DeleteAnchor(ctx context.Context, name string) error {
	return p.anchors.Delete(ctx, name)
}

func (p *storedPlaces) CreateWitness(ctx context.Context, w audit.Witness) (audit.Witness, error) {
	return p.trail.CreateWitness(ctx, w)
}

func (p *storedPlaces) Running() Running { return p.running }

func (b *bed) settings(token string) v1connect.TrailServiceClient {
	return v1connect.NewTrailServiceClient(as(token, home), b.http.URL)
}

// record writes events in one transaction.
func (b *bed) record(t testing.TB, events ...audit.Event) {
	t.Helper()
	err := b.db.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		for _, e := range events {
			if err := audit.Record(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sequence gives all events that wait their indexes.
func (b *bed) sequence(t testing.TB) {
	t.Helper()
	for {
		n, err := b.Trail.Sequence(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

// grow makes the log n events long.
func (b *bed) grow(t testing.TB, n int64) {
	t.Helper()
	b.sequence(t)
	size, err := b.Trail.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for size < n {
		var events []audit.Event
		for range min(n-size, 2000) {
			events = append(events, audit.Event{Action: "test.grow", Resource: "things/1", Actor: "somebody", Detail: map[string]any{"n": size + int64(len(events))}})
		}
		b.record(t, events...)
		b.sequence(t)
		size += int64(len(events))
	}
}

// cosigner is a witness (C2SP tlog-cosignature): what it signs is written here a
// second time, from the specification.
type cosigner struct {
	name, vkey string
	hash       []byte
	key        ed25519.PrivateKey
}

func newCosigner(t testing.TB, name string) *cosigner {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	key := append([]byte{4}, public...)
	sum := sha256.Sum256(append([]byte(name+"\n"), key...))
	return &cosigner{name: name, hash: sum[:4], key: private, vkey: fmt.Sprintf("%s+%x+%s", name, sum[:4], base64.StdEncoding.EncodeToString(key))}
}

// cosign returns the signature line for a checkpoint's text.
func (c *cosigner) cosign(text string, at time.Time) string {
	sig := binary.BigEndian.AppendUint64(append([]byte(nil), c.hash...), uint64(at.Unix()))
	sig = append(sig, ed25519.Sign(c.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at.Unix(), text))...)
	return "— " + c.name + " " + base64.StdEncoding.EncodeToString(sig)
}

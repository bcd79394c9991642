package audit

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
)

func TestPlaces(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		tr := newTrail(t, db)
		record(t, db, Event{Action: "x"})
		sequence(t, tr)
		heard, stop := db.Listen(TopicPlaces)
		defer stop()
		for _, p := range []*Places{NewSinks(db, tr.Sealer), NewAnchors(db, tr.Sealer)} {
			token := secret.FromString("hush")
			made, err := p.Create(t.Context(), Place{Name: "siem", Kind: "https", Config: []byte(`{"address":"https://siem.test"}`)}, token, -1)
			if err != nil || !made.HasSecret || made.CreatedAt.IsZero() {
				t.Fatal(made, err)
			}
			select {
			case <-heard:
			default:
				t.Error("nobody is told")
			}
			for name, try := range map[string]struct {
				place Place
				index int64
				want  error
			}{
				"again":       {Place{Name: "siem", Config: []byte(`{}`)}, -1, fault.ErrExists},
				"no name":     {Place{Config: []byte(`{}`)}, -1, fault.ErrInvalid},
				"odd name":    {Place{Name: "a/b", Config: []byte(`{}`)}, -1, fault.ErrInvalid},
				"long name":   {Place{Name: strings.Repeat("a", 64), Config: []byte(`{}`)}, -1, fault.ErrInvalid},
				"long config": {Place{Name: "b", Config: []byte(`"` + strings.Repeat("a", 65<<10) + `"`)}, -1, fault.ErrInvalid},
			} {
				if _, err := p.Create(t.Context(), try.place, secret.Value{}, try.index); !errors.Is(err, try.want) {
					t.Errorf("%s: %v", name, err)
				}
			}
			got, err := p.List(t.Context())
			if err != nil || len(got) != 1 || got[0].Name != "siem" || string(got[0].Config) != `{"address":"https://siem.test"}` || !got[0].HasSecret {
				t.Errorf("%+v, %v", got, err)
			}
			s, err := p.Secret(t.Context(), "siem")
			if err != nil || s.RevealString() != "hush" {
				t.Errorf("the secret comes back wrong: %v", err)
			}
			if _, err := p.Secret(t.Context(), "other"); !errors.Is(err, fault.ErrNotFound) {
				t.Error(err)
			}
			if p.sort == "sink" {
				if next, err := tr.Cursor(t.Context(), CursorOf("siem")); err != nil || next != 2 {
					t.Errorf("it begins with event %d, %v", next, err)
				}
			}
			if err := p.Delete(t.Context(), "other"); !errors.Is(err, fault.ErrNotFound) {
				t.Error(err)
			}
			if err := p.Delete(t.Context(), "siem"); err != nil {
				t.Error(err)
			}
			if _, err := tr.Cursor(t.Context(), CursorOf("siem")); !errors.Is(err, fault.ErrNotFound) {
				t.Errorf("the cursor of a sink that is gone: %v", err)
			}
			for i := range maxPlaces {
				if _, err := p.Create(t.Context(), Place{Name: fmt.Sprint("n", i), Config: []byte(`{}`)}, secret.Value{}, 0); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := p.Create(t.Context(), Place{Name: "more", Config: []byte(`{}`)}, secret.Value{}, 0); !errors.Is(err, fault.ErrLimited) {
				t.Error(err)
			}
		}
		// The secret is not in the trail.
		for _, e := range list(t, db, Query{Action: "sink."}) {
			if strings.Contains(fmt.Sprint(e), "hush") {
				t.Errorf("the secret is in %+v", e)
			}
		}
	})
}

func TestWitnesses(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		tr := newTrail(t, db)
		sequence(t, tr)
		w := Witness{Name: "witness.test/w1", VKey: "witness.test/w1+abc+def", URL: "https://w.test"}
		if _, err := tr.CreateWitness(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		if _, err := tr.CreateWitness(t.Context(), w); !errors.Is(err, fault.ErrExists) {
			t.Error(err)
		}
		at := db.Now()
		for range 2 {
			if err := tr.AddCosignature(t.Context(), 1, w.Name, "— witness.test/w1 AAAA\n", at); err != nil {
				t.Fatal(err)
			}
		}
		if err := tr.AddCosignature(t.Context(), 7, w.Name, "x", at); err == nil {
			t.Error("a checkpoint that is not there is cosigned")
		}
		list, err := tr.Witnesses(t.Context())
		if err != nil || len(list) != 1 || list[0].Size != 1 || !list[0].CosignedAt.Equal(at) || list[0].URL != w.URL {
			t.Errorf("%+v, %v", list, err)
		}
		_, signed, err := tr.Checkpoint(t.Context())
		if err != nil || !strings.HasSuffix(signed, "\n— witness.test/w1 AAAA\n") || strings.Count(signed, "—") != 2 {
			t.Errorf("%q, %v", signed, err)
		}
		if err := tr.DeleteWitness(t.Context(), w.Name); err != nil {
			t.Error(err)
		}
		if err := tr.DeleteWitness(t.Context(), w.Name); !errors.Is(err, fault.ErrNotFound) {
			t.Error(err)
		}
	})
}

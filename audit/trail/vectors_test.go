package trail

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/google/go-cmp/cmp"
)

// vector is an entry of testdata/leaves.json, which was written by a program of
// its own from docs/trail.md, not by this package.
type vector struct {
	Name  string `json:"name"`
	Event struct {
		ID        string `json:"id"`
		TimeUS    int64  `json:"time_us"`
		Actor     string `json:"actor"`
		Action    string `json:"action"`
		Resource  string `json:"resource"`
		Partner   string `json:"partner"`
		Outcome   string `json:"outcome"`
		Reason    string `json:"reason"`
		RequestID string `json:"request_id"`
		Address   string `json:"address"`
		Detail    string `json:"detail"`
		Count     int64  `json:"count"`
		Intent    string `json:"intent"`
	} `json:"event"`
	Salt        string            `json:"salt"`
	Erased      map[string]string `json:"erased"`
	Commitments map[string]string `json:"commitments"`
	Leaf        string            `json:"leaf"`
	LeafHash    string            `json:"leaf_hash"`
	Checks      string            `json:"checks"`
}

func vectors(t testing.TB) []vector {
	t.Helper()
	raw, err := os.ReadFile("testdata/leaves.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) < 7 {
		t.Fatalf("there are only %d vectors", len(all))
	}
	return all
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (v *vector) event(t testing.TB) Event {
	t.Helper()
	x := v.Event
	e := Event{
		ID: x.ID, Time: time.UnixMicro(x.TimeUS).UTC(), Actor: x.Actor, Action: x.Action, Resource: x.Resource, Partner: x.Partner,
		Outcome: x.Outcome, Reason: x.Reason, RequestID: x.RequestID, Address: x.Address, Detail: x.Detail, Count: x.Count,
		Intent: x.Intent, Salt: unhex(t, v.Salt),
	}
	for name, c := range v.Erased {
		f, ok := ParseField(name)
		if !ok {
			t.Fatalf("no field %q", name)
		}
		e.Erased[f] = tlog.Hash(unhex(t, c))
	}
	return e
}

func TestLeafIsWhatTheVectorsSay(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			e := v.event(t)
			leaf, err := e.Leaf()
			if err != nil {
				t.Fatal(err)
			}
			for f := range NumFields {
				if got := hex.EncodeToString(leaf.Commitments[f][:]); got != v.Commitments[f.String()] {
					t.Errorf("commitment of %v is %s, want %s", f, got, v.Commitments[f.String()])
				}
			}
			b, err := leaf.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(b); got != v.Leaf {
				t.Errorf("leaf\n%s, want\n%s", got, v.Leaf)
			}
			h, err := e.Hash()
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(h[:]); got != v.LeafHash {
				t.Errorf("leaf hash %s, want %s", got, v.LeafHash)
			}
			e.Checks = e.MakeChecks()
			if got := hex.EncodeToString(e.Checks); got != v.Checks {
				t.Errorf("checks %s, want %s", got, v.Checks)
			}
			if got := e.Differs(); got != nil {
				t.Errorf("its own checks say that %v differ", got)
			}
			parsed, err := ParseLeaf(b)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(leaf, parsed); diff != "" {
				t.Errorf("parsed (-want +got):\n%s", diff)
			}
		})
	}
}

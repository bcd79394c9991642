package trail

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/google/go-cmp/cmp"
)

// sample is an event all of whose fields are set.
func sample(t testing.TB) Event {
	t.Helper()
	e := vectors(t)[0].event(t)
	e.Reason, e.Intent = "planned", "0198c0de-0004-7000-8000-000000000004"
	e.Checks = e.MakeChecks()
	return e
}

func mustHash(t testing.TB, e *Event) tlog.Hash {
	t.Helper()
	h, err := e.Hash()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// alter changes each field of an event, by name.
var alter = map[string]func(*Event){
	"id":         func(e *Event) { e.ID = "0198c0de-0001-7000-8000-000000000002" },
	"time":       func(e *Event) { e.Time = e.Time.Add(time.Microsecond) },
	"action":     func(e *Event) { e.Action += "d" },
	"resource":   func(e *Event) { e.Resource = "" },
	"outcome":    func(e *Event) { e.Outcome = Failed },
	"count":      func(e *Event) { e.Count++ },
	"intent":     func(e *Event) { e.Intent = "" },
	"actor":      func(e *Event) { e.Actor = "token-2" },
	"partner":    func(e *Event) { e.Partner = "" },
	"reason":     func(e *Event) { e.Reason += " " },
	"request_id": func(e *Event) { e.RequestID = "req-2" },
	"address":    func(e *Event) { e.Address = "192.0.2.8" },
	"detail":     func(e *Event) { e.Detail = "{}" },
}

func TestHashAndDiffersWhenAFieldIsAltered(t *testing.T) {
	if len(alter) != numClear+int(NumFields) {
		t.Fatalf("%d fields are altered", len(alter))
	}
	honest := sample(t)
	want := mustHash(t, &honest)
	if honest.Differs() != nil {
		t.Fatalf("an honest event differs in %v", honest.Differs())
	}
	for name, change := range alter {
		e := sample(t)
		change(&e)
		if mustHash(t, &e) == want {
			t.Errorf("%s: the leaf hash is the same", name)
		}
		leaf, err := e.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Differs(); !slices.Equal(got, []string{name}) || !slices.Equal(leaf.Differs(e.Checks), got) {
			t.Errorf("%s: differs in %v, and its leaf in %v", name, got, leaf.Differs(e.Checks))
		}
		e.Checks = e.Checks[1:]
		if e.Differs() != nil || leaf.Differs(e.Checks) != nil {
			t.Errorf("%s: cut checks name fields", name)
		}
	}
	for _, pair := range [][2]string{{"actor", "detail"}, {"id", "time"}, {"intent", "actor"}} {
		e := sample(t)
		alter[pair[0]](&e)
		alter[pair[1]](&e)
		if got := e.Differs(); !slices.Equal(got, pair[:]) {
			t.Errorf("%v: differs in %v", pair, got)
		}
	}
}

func TestCommitmentHidesAndBinds(t *testing.T) {
	e := sample(t)
	seen := map[tlog.Hash]Field{}
	for f := range NumFields {
		*e.value(f) = `{"same":1}`
	}
	for f := range NumFields {
		c := e.commitment(f)
		if other, ok := seen[c]; ok {
			t.Errorf("%v and %v have the same value and the same commitment", f, other)
		}
		seen[c] = f
		other := e
		other.Salt = bytes.Repeat([]byte{9}, SeedSize)
		if other.commitment(f) == c {
			t.Errorf("%v: another salt gives the same commitment", f)
		}
		*e.value(f) = ""
		if e.commitment(f) != (tlog.Hash{}) {
			t.Errorf("%v: an empty value has a commitment", f)
		}
	}
	e.Detail = "{}"
	if e.commitment(Detail) != (tlog.Hash{}) {
		t.Error("an empty detail has a commitment")
	}
	if a, b := NewSeed(), NewSeed(); len(a) != SeedSize || bytes.Equal(a, b) {
		t.Errorf("seeds %x and %x", a, b)
	}
}

func TestEraseKeepsTheLeaf(t *testing.T) {
	for set := range 1 << NumFields {
		e := sample(t)
		before, err := e.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		seed := e.Salt
		var fields []Field
		for f := range NumFields {
			if set>>f&1 == 1 {
				fields = append(fields, f)
			}
		}
		// One at a time, and all of them once more.
		for _, f := range fields {
			if err := e.Erase(f); err != nil {
				t.Fatal(err)
			}
			if e.salt(f) != [SeedSize]byte{} {
				t.Errorf("%v erased: its salt is still there", f)
			}
		}
		if err := e.Erase(fields...); err != nil {
			t.Fatal(err)
		}
		after, err := e.Leaf()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatalf("%v erased: the leaf (-before +after):\n%s", fields, diff)
		}
		if len(fields) > 0 && bytes.Contains(e.Salt, seed) {
			t.Errorf("%v erased: the seed, from which its salt follows, is still there", fields)
		}
		for f := range NumFields {
			erased := slices.Contains(fields, f)
			if e.IsErased(f) != erased || (e.Value(f) == "") != erased {
				t.Errorf("%v erased: %v is erased: %v, value %q", fields, f, e.IsErased(f), e.Value(f))
			}
			if s := e.salt(f); erased != (s == [SeedSize]byte{}) {
				t.Errorf("%v erased: the salt of %v is %x", fields, f, s)
			}
		}
		if e.Differs() != nil {
			t.Errorf("%v erased: differs in %v", fields, e.Differs())
		}
	}
}

func TestEraseLeavesEmptyFieldsAlone(t *testing.T) {
	e := sample(t)
	e.Reason, e.Detail = "", "{}"
	if err := e.Erase(Reason, Detail); err != nil || e.IsErased(Reason) || e.IsErased(Detail) || e.Detail != "{}" {
		t.Errorf("err %v, event %+v", err, e)
	}
	if err := e.Erase(NumFields); err == nil {
		t.Error("a field that there is not was erased")
	}
	e.Salt = nil
	if err := e.Erase(Actor); err == nil || e.Actor == "" {
		t.Error("a field was erased without a salt to commit to it")
	}
}

func TestLeafRefusesWhatIsOutOfBounds(t *testing.T) {
	long := strings.Repeat("x", MaxText+1)
	for name, change := range map[string]func(*Event){
		"id empty":           func(e *Event) { e.ID = "" },
		"id in capitals":     func(e *Event) { e.ID = strings.ToUpper(e.ID) },
		"id with braces":     func(e *Event) { e.ID = "{" + e.ID[:34] + "}" },
		"id no hexadecimal":  func(e *Event) { e.ID = "g" + e.ID[1:] },
		"time too fine":      func(e *Event) { e.Time = e.Time.Add(1) },
		"outcome":            func(e *Event) { e.Outcome = "maybe" },
		"outcome empty":      func(e *Event) { e.Outcome = "" },
		"count":              func(e *Event) { e.Count = 0 },
		"count negative":     func(e *Event) { e.Count = -1 },
		"intent":             func(e *Event) { e.Intent = "that one" },
		"intent zero":        func(e *Event) { e.Intent = nilUUID },
		"action empty":       func(e *Event) { e.Action = "" },
		"action long":        func(e *Event) { e.Action = long },
		"resource long":      func(e *Event) { e.Resource = long },
		"resource no UTF-8":  func(e *Event) { e.Resource = "\xff" },
		"actor long":         func(e *Event) { e.Actor = long },
		"actor no UTF-8":     func(e *Event) { e.Actor = "\xff" },
		"detail empty":       func(e *Event) { e.Detail = "" },
		"detail long":        func(e *Event) { e.Detail = strings.Repeat("x", MaxDetail+1) },
		"salt missing":       func(e *Event) { e.Salt = nil },
		"salt short":         func(e *Event) { e.Salt = e.Salt[1:] },
		"erased but present": func(e *Event) { e.Erased[Actor][0] = 1 },
	} {
		e := sample(t)
		change(&e)
		if h, err := e.Hash(); err == nil {
			t.Errorf("%s: it has the leaf hash %v", name, h)
		}
	}
}

func TestParseLeafRefusesEveryOtherLength(t *testing.T) {
	e := sample(t)
	leaf, err := e.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	b, err := leaf.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if _, err := ParseLeaf(b[:n]); err == nil {
			t.Errorf("the first %d of %d bytes were taken for a leaf", n, len(b))
		}
	}
	if _, err := ParseLeaf(append(b, 0)); err == nil {
		t.Error("a leaf with a byte behind it was taken")
	}
	zero := bytes.Clone(b)
	clear(zero[26:34])
	if _, err := ParseLeaf(zero); err == nil {
		t.Error("a leaf with count 0 was taken")
	}
	b[0] = 2
	if _, err := ParseLeaf(b); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("version 2: %v", err)
	}
}

func TestFieldNamesGoBothWays(t *testing.T) {
	for f := range NumFields {
		if got, ok := ParseField(f.String()); !ok || got != f {
			t.Errorf("%v is parsed as %v, %v", f, got, ok)
		}
	}
	if _, ok := ParseField("colour"); ok || NumFields.String() != "field 6" {
		t.Error("a field that there is not has a name")
	}
}

// FuzzParseLeaf looks for two encodings of one leaf.
func FuzzParseLeaf(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(unhex(f, v.Leaf))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		leaf, err := ParseLeaf(b)
		if err != nil {
			return
		}
		again, err := leaf.Encode()
		if err != nil {
			t.Fatalf("what was parsed can't be encoded: %v", err)
		}
		if !bytes.Equal(b, again) {
			t.Errorf("%x is encoded as %x", b, again)
		}
	})
}

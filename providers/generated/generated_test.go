package generated

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

func TestTarget(t *testing.T) {
	for name, params := range map[string]map[string]string{
		"defaults": {}, "bytes": {"encoding": "base64url"}, "own alphabet": {"characters": "äöüß012345", "length": "60", "field": "token"},
	} {
		t.Run(name, func(t *testing.T) {
			providerstest.Target(t, providerstest.TargetBed{
				Kind: Kind(),
				Open: func(t testing.TB) providers.Target {
					target, err := Kind().Open(t.Context(), providers.Config{})
					if err != nil {
						t.Fatal(err)
					}
					return target
				},
				Change: func(testing.TB, providers.Strategy) providers.Change {
					return providers.Change{Credential: "cookie-key", Params: params}
				},
			})
		})
	}
}

// TestDrawIsFair: over all bytes each number comes equally often, and as many bytes are
// used as that allows. A byte is uniform, so the number is.
func TestDrawIsFair(t *testing.T) {
	for n := 1; n <= 256; n++ {
		times := make([]int, n)
		for b := range 256 {
			if i, ok := draw(byte(b), n); ok {
				times[i]++
			}
		}
		for i, got := range times {
			if got != 256/n {
				t.Fatalf("of %d numbers %d comes %d times of 256, want %d", n, i, got, 256/n)
			}
		}
	}
}

func prepare(t *testing.T, params map[string]string) (providers.Fields, error) {
	t.Helper()
	c, err := target{}.Prepare(t.Context(), providers.Change{Credential: "cookie-key", Params: params, Static: map[string]string{"host": "db"}})
	return c.New.Fields, err
}

func TestValueWhenPrepared(t *testing.T) {
	for _, c := range []struct {
		params  map[string]string
		field   string
		length  int // characters
		of      string
		decoded func(string) ([]byte, error)
	}{
		{nil, "value", 32, alphabetOf("base62"), nil},
		{map[string]string{"alphabet": "digits", "length": "39", "field": "pin"}, "pin", 39, digits, nil},
		{map[string]string{"alphabet": "hex"}, "value", 32, alphabetOf("hex"), hex.DecodeString},
		{map[string]string{"alphabet": "ascii", "length": "4096"}, "value", 4096, alphabetOf("ascii"), nil},
		{map[string]string{"alphabet": "base64url", "length": "24"}, "value", 24, alphabetOf("base64url"), base64.RawURLEncoding.DecodeString},
		{map[string]string{"characters": "日本語äöü🔑xyz0", "length": "50"}, "value", 50, "日本語äöü🔑xyz0", nil},
		{map[string]string{"encoding": "hex", "length": "20"}, "value", 40, alphabetOf("hex"), hex.DecodeString},
		{map[string]string{"encoding": "base64"}, "value", 44, alphabetOf("base62") + "+/=", base64.StdEncoding.DecodeString},
		{map[string]string{"encoding": "base64url"}, "value", 43, alphabetOf("base64url"), base64.RawURLEncoding.DecodeString},
		{map[string]string{"length": "4", "alphabet": "digits", "allow_weak": "true"}, "value", 4, digits, nil},
	} {
		f, err := prepare(t, c.params)
		if err != nil {
			t.Errorf("%v: %v", c.params, err)
			continue
		}
		text := f.Text(c.field)
		if utf8.RuneCountInString(text) != c.length || strings.Trim(text, c.of) != "" || f.Text("host") != "db" || len(f) != 2 {
			t.Errorf("%v: %d characters, want %d of %s; fields %v", c.params, utf8.RuneCountInString(text), c.length, c.of, f.Names())
		}
		if c.decoded != nil {
			if _, err := c.decoded(text); err != nil {
				t.Errorf("%v: %v", c.params, err)
			}
		}
	}
}

func TestPrepareWhenParamsAreWrong(t *testing.T) {
	for name, params := range map[string]map[string]string{
		"weak":             {"length": "21"},
		"weak bytes":       {"encoding": "hex", "length": "15"},
		"too long":         {"length": "4097"},
		"no length":        {"length": "0"},
		"unknown alphabet": {"alphabet": "base58"},
		"few characters":   {"characters": "012345678", "length": "99"},
		"twice":            {"characters": "01234567899", "length": "99"},
		"control":          {"characters": "0123456789\x00", "length": "99"},
		"no UTF-8":         {"characters": "0123456789\xff", "length": "99"},
		"not text":         {"characters": digits, "encoding": "hex"},
		"static field":     {"field": "host"},
		"field name":       {"field": "a b"},
		"unknown":          {"size": "99"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := prepare(t, params); !errors.Is(err, fault.ErrInvalid) || providers.OutcomeOf(err) != providers.Refused {
				t.Errorf("%v, want fault.ErrInvalid", err)
			}
			found, err := target{}.Check(t.Context(), providers.Change{Params: params, Static: map[string]string{"host": "db"}})
			if err != nil || len(found) != 1 || found[0].OK || found[0].Warning {
				t.Errorf("Check found %+v, %v, want one problem", found, err)
			}
		})
	}
	// The bounds from the other side.
	for _, params := range []map[string]string{{"length": "22"}, {"encoding": "hex", "length": "16"}, {"characters": digits, "length": "39"}} {
		if _, err := prepare(t, params); err != nil {
			t.Errorf("%v: %v", params, err)
		}
	}
}

func TestCheckWhenWeakIsAllowed(t *testing.T) {
	found, err := target{}.Check(t.Context(), providers.Change{Params: map[string]string{"length": "4", "alphabet": "digits", "allow_weak": "true"}})
	if err != nil || len(found) != 1 || found[0].OK || !found[0].Warning || found[0].Measured != "13 bits" {
		t.Errorf("Check found %+v, %v, want a warning with 13 bits", found, err)
	}
}

// TestMakeWhenRandomEnds: no short value is made, and bytes that are thrown away cost
// more of them.
func TestMakeWhenRandomEnds(t *testing.T) {
	r, err := recipeOf(providers.Change{Params: map[string]string{"alphabet": "digits", "length": "39"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.make(bytes.NewReader(make([]byte, 38))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("too few bytes: %v", err)
	}
	pool := bytes.Repeat([]byte{255}, 256)
	if v, err := r.make(bytes.NewReader(append(pool, bytes.Repeat([]byte{7}, 256)...))); err != nil || v.RevealString() != strings.Repeat("7", 39) {
		t.Errorf("bytes that would favour some digits were used (%v)", err)
	}
}

func FuzzRecipe(f *testing.F) {
	f.Add("32", "base62", "", "text")
	f.Add("60", "", "äöüß012345", "text")
	f.Add("16", "hex", "", "base64")
	f.Fuzz(func(t *testing.T, length, alphabet, characters, encoding string) {
		params := map[string]string{"length": length, "alphabet": alphabet, "characters": characters, "encoding": encoding}
		maps.DeleteFunc(params, func(_, v string) bool { return v == "" })
		r, err := recipeOf(providers.Change{Params: params})
		if err != nil {
			return
		}
		if r.bits < strong || r.length > maxLength {
			t.Fatalf("%d characters with %.0f bits were allowed", r.length, r.bits)
		}
		c, err := target{}.Prepare(context.Background(), providers.Change{Params: params})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.New.Fields.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}

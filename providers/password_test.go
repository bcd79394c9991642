package providers

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

func TestNewPasswordWhenClassesAreAsked(t *testing.T) {
	for characters, classes := range map[string][]string{
		"":                   {lower, upper, digits},
		"alphanumeric":       {lower, upper, digits},
		"alphanumeric_marks": {lower, upper, digits, marks},
		"hex":                {"0123456789abcdef"},
	} {
		seen := map[string]bool{}
		for range 200 {
			v, err := NewPassword(map[string]string{"length": "16", "characters": characters})
			if err != nil {
				t.Fatal(err)
			}
			text := v.RevealString()
			if len(text) != 16 || seen[text] {
				t.Fatalf("%q: a password has %d characters, or came twice", characters, len(text))
			}
			seen[text] = true
			for _, class := range classes {
				if !strings.ContainsAny(text, class) {
					t.Fatalf("%q: a password has none of %q", characters, class)
				}
			}
			if strings.Trim(text, strings.Join(classes, "")) != "" {
				t.Fatalf("%q: a password has other characters", characters)
			}
		}
	}
}

func TestNewPasswordWhenParamsAreWrong(t *testing.T) {
	for _, params := range []map[string]string{{"length": "15"}, {"length": "129"}, {"length": "x"}, {"characters": "emoji"}} {
		if _, err := NewPassword(params); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%v: %v, want an invalid setting", params, err)
		}
		if _, err := Complete("params", PasswordParams(), params); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%v: Complete lets it through", params)
		}
	}
	if v, err := NewPassword(nil); err != nil || v.Len() != 40 {
		t.Errorf("the default has %d characters (%v), want 40", v.Len(), err)
	}
}

func TestPickWhenCharactersAreCounted(t *testing.T) {
	const n = 62 * 2000
	count := map[byte]int{}
	for _, c := range pick(lower+upper+digits, n) {
		count[c]++
	}
	for c, k := range count {
		if k < 1600 || k > 2400 { // nine standard deviations
			t.Errorf("%q came %d times of %d, want about 2000", c, k, n)
		}
	}
}

func TestScrubWhenTextHoldsSecrets(t *testing.T) {
	got := Scrub("near 'hunter22'\n  and\tmore hunter22", "hunter22", "", "a")
	if want := "near '[redacted]' and more [redacted]"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	const login = "it's \"a/b\" c\nd%"
	for _, form := range []string{login, fmt.Sprintf("%q", login), "'it''s \"a/b\" c\nd%'", url.QueryEscape(login), url.PathEscape(login)} {
		if got := Scrub("near "+form, login); strings.Contains(got, "it") || strings.Contains(got, "a/b") {
			t.Errorf("%q became %q", form, got)
		}
	}
	long := Scrub(strings.Repeat("ü", 400))
	if len(long) > 304 || !strings.HasSuffix(long, "…") {
		t.Errorf("a text of 800 bytes became one of %d", len(long))
	}
}

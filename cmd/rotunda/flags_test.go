package main

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	v1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func TestParseDurationWhenGood(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0": 0, "0d": 0, "30d": 30 * day, "1d12h": 36 * time.Hour, "12h": 12 * time.Hour, "90m": 90 * time.Minute,
		"1h30m15s": time.Hour + 30*time.Minute + 15*time.Second, "500ms": 500 * time.Millisecond, "1.5h": 90 * time.Minute, "720h": 30 * day, "36500d": 36500 * day,
	} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("parseDuration(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
}

func TestParseDurationWhenBad(t *testing.T) {
	for _, s := range []string{"", "d", "1", "-1h", "+1h", "1.5d", "1d-1h", "1dd", "1d1d", " 1h", "1h ", "1 h", "36501d", "36500d1ns", "99999999999d", "1w", "0x1h", "1e3s", "Inf", "1d.5h"} {
		if got, err := parseDuration(s); err == nil {
			t.Errorf("parseDuration(%q) = %v, want an error", s, got)
		}
	}
}

func TestFormatDurationWhenExtreme(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1: "1ns", -time.Minute: "-1m", 29*day + 23*time.Hour: "29d 23h", 16*time.Minute + 35*time.Second: "16m 35s",
		1500 * time.Millisecond: "1.5s", time.Hour + time.Second: "1h 1s",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("formatDuration(%d) = %q, want %q", d, got, want)
		}
	}
	if got := formatDuration(math.MinInt64); !strings.HasPrefix(got, "-106751d") {
		t.Error(got)
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"30d", "1d12h", "90m", "0", "1.5h", "-1h", "36500d", "1d0", "9d9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDuration(s)
		if err != nil {
			return
		}
		if d < 0 || d > longestDay*day {
			t.Fatalf("parseDuration(%q) = %v, outside 0 to %d days", s, d, longestDay)
		}
		again, err := parseDuration(strings.ReplaceAll(formatDuration(d), " ", ""))
		if err != nil || again != d {
			t.Fatalf("%q is %v, which is written %q and read as %v, %v", s, d, formatDuration(d), again, err)
		}
	})
}

func TestParseProfileWhenGood(t *testing.T) {
	got, err := parseProfile("envoy,cache=5m,throttle=0,min_interval=15s,max_interval=1d")
	if err != nil {
		t.Fatal(err)
	}
	want := &v1.Profile{Name: "envoy", Cache: dur(5 * time.Minute), Throttle: dur(0), MinInterval: dur(15 * time.Second), MaxInterval: dur(day)}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestParseProfileWhenBad(t *testing.T) {
	for s, want := range map[string]string{
		"":                        "does not begin with the name",
		",cache=1m":               "does not begin with the name",
		"cache=1m":                "does not begin with the name",
		"envoy,":                  `no figure ""`,
		"envoy,cache":             `"" is not a length of time`,
		"envoy,cache=":            `"" is not a length of time`,
		"envoy,cache=-1m":         `profile envoy: cache: "-1m" is not`,
		"envoy,cache=1m,cache=2m": "cache is given twice",
		"envoy,lead=1m":           `no figure "lead"`,
		"envoy, cache=1m":         `no figure " cache"`,
	} {
		if _, err := parseProfile(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseProfile(%q): %v, want %q", s, err, want)
		}
	}
}

func FuzzParseProfile(f *testing.F) {
	for _, s := range []string{"envoy", "envoy,cache=5m,throttle=10s", "a,min_interval=0,max_interval=1d12h", "a,,", "=", "a,cache=1m,cache=1m"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parseProfile(s)
		if err != nil {
			return
		}
		again, err := parseProfile(formatProfile(p))
		if err != nil {
			t.Fatalf("%q became %q: %v", s, formatProfile(p), err)
		}
		if diff := cmp.Diff(p, again, protocmp.Transform()); diff != "" {
			t.Fatalf("%q became %q:\n%s", s, formatProfile(p), diff)
		}
	})
}

func TestKidsLastWhenAKidLooksLikeAFlag(t *testing.T) {
	for _, test := range []struct{ in, want []string }{
		{[]string{"keyset", "revoke", "p", pendingKid, "--mode", "fresh"}, []string{"keyset", "revoke", "p", "--mode", "fresh", "--", pendingKid}},
		{[]string{"keyset", "revoke", "p", "--", pendingKid}, []string{"keyset", "revoke", "p", "--", pendingKid}},
		{[]string{"keyset", "revoke", "p", activeKid, "-o", "json"}, []string{"keyset", "revoke", "p", activeKid, "-o", "json"}},
		{[]string{"keyset", "import", "p", "--kid", pendingKid}, []string{"keyset", "import", "p", "--kid", pendingKid}},
		{nil, []string{}},
	} {
		if got := kidsLast(test.in); !slices.Equal(got, test.want) || got == nil {
			t.Errorf("kidsLast(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}

func TestQuoteWhenAShellReadsIt(t *testing.T) {
	for s, want := range map[string]string{"payments": "payments", "": "''", "it's": `'it'\''s'`, "$(rm -rf)": "'$(rm -rf)'", "a b": "'a b'"} {
		if got := quote(s); got != want {
			t.Errorf("quote(%q) = %s, want %s", s, got, want)
		}
	}
}

func TestWrapWhenNarrow(t *testing.T) {
	text := "served since 2026-11-22T03:16:15Z, and must be for 16m35s before it signs"
	for _, width := range []int{20, 33, 60} {
		lines := wrap(text, width)
		if strings.Join(lines, " ") != text || len(lines) < 2 {
			t.Errorf("at %d: %q", width, lines)
		}
		for _, l := range lines {
			if len(l) > width && strings.Contains(l, " ") {
				t.Errorf("at %d, a line has %d characters: %q", width, len(l), l)
			}
		}
	}
	if lines := wrap(text, 0); len(lines) != 1 {
		t.Errorf("without a terminal: %q", lines)
	}
}

func TestRoughlyWhenHalfAUnitIsLeft(t *testing.T) {
	for d, want := range map[time.Duration]string{
		30*day - time.Second:                  "30d",
		30*day - 31*time.Minute:               "29d 23h",
		day - 20*time.Second:                  "1d",
		2*time.Hour + 90*time.Second:          "2h 2m",
		time.Hour - 400*time.Millisecond:      "1h",
		89*time.Second + 400*time.Millisecond: "1m 29s",
		400 * time.Millisecond:                "0s",
	} {
		if got := roughly(d); got != want {
			t.Errorf("roughly(%s) = %q, want %q", d, got, want)
		}
	}
}

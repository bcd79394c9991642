package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	day        = 24 * time.Hour
	longestDay = 36500 // days; a hundred years
)

// parseDuration reads a length of time: Go's form, with days before it if
// wanted: "30d", "1d12h", "90m", "0". It has no sign.
func parseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a length of time: write it like 30d, 12h, 90m or 1d12h", s)
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, bad
	}
	var d time.Duration
	rest := s
	if days, after, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil {
			return 0, bad
		}
		if n > longestDay {
			return 0, fmt.Errorf("%q is longer than %d days", s, longestDay)
		}
		if d, rest = time.Duration(n)*day, after; rest == "" {
			return d, nil
		}
		if rest[0] < '0' || rest[0] > '9' {
			return 0, bad
		}
	}
	part, err := time.ParseDuration(rest)
	if err != nil {
		return 0, bad
	}
	if part > longestDay*day-d {
		return 0, fmt.Errorf("%q is longer than %d days", s, longestDay)
	}
	return d + part, nil
}

// formatDuration writes all of d: "29d 23h", "16m 35s", "0s".
func formatDuration(d time.Duration) string {
	if d == 0 {
		return "0s"
	}
	if d < 0 {
		if d == math.MinInt64 {
			d++
		}
		return "-" + formatDuration(-d)
	}
	var parts []string
	for _, unit := range []struct {
		name string
		of   time.Duration
	}{{"d", day}, {"h", time.Hour}, {"m", time.Minute}} {
		if n := d / unit.of; n > 0 {
			parts = append(parts, strconv.FormatInt(int64(n), 10)+unit.name)
			d %= unit.of
		}
	}
	if d > 0 {
		parts = append(parts, d.String())
	}
	return strings.Join(parts, " ")
}

// roughly writes the two largest units of d, rounded to the nearest.
func roughly(d time.Duration) string {
	switch {
	case d >= day:
		d = d.Round(time.Hour)
	case d >= time.Hour:
		d = d.Round(time.Minute)
	default:
		d = d.Round(time.Second)
	}
	return formatDuration(d)
}

// parseSince reads an instant: RFC 3339, or how long ago.
func parseSince(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	d, err := parseDuration(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is neither a time like 2026-11-22T03:00:00Z nor how long ago, like 30d or 12h", s)
	}
	return now.Add(-d), nil
}

// durationFlag knows whether it was given.
type durationFlag struct{ given *time.Duration }

func (f *durationFlag) Set(s string) error {
	d, err := parseDuration(s)
	if err == nil {
		f.given = &d
	}
	return err
}

func (f *durationFlag) Type() string { return "duration" }

func (f *durationFlag) String() string {
	if f.given == nil {
		return ""
	}
	return formatDuration(*f.given)
}

// proto is nil when the flag was not given.
func (f *durationFlag) proto() *durationpb.Duration {
	if f.given == nil {
		return nil
	}
	return durationpb.New(*f.given)
}

// choice is a flag with few values.
type choice struct {
	allowed []string
	value   string
}

func (f *choice) Set(s string) error {
	if !slices.Contains(f.allowed, s) {
		return fmt.Errorf("it must be one of %s", strings.Join(f.allowed, ", "))
	}
	f.value = s
	return nil
}

func (f *choice) Type() string   { return strings.Join(f.allowed, "|") }
func (f *choice) String() string { return f.value }

// profilesFlag collects --profile. "none" empties the list.
type profilesFlag struct{ list []*rotundav1.Profile }

func (f *profilesFlag) Set(s string) error {
	if s == "none" {
		f.list = nil
		return nil
	}
	p, err := parseProfile(s)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(f.list, func(q *rotundav1.Profile) bool { return q.GetName() == p.GetName() }) {
		return fmt.Errorf("profile %q is given twice", p.GetName())
	}
	f.list = append(f.list, p)
	return nil
}

func (f *profilesFlag) Type() string { return "name[,figure=duration]" }

func (f *profilesFlag) String() string {
	var all []string
	for _, p := range f.list {
		all = append(all, formatProfile(p))
	}
	return strings.Join(all, "; ")
}

// figures are the parts of a profile that a policy may override.
func figures(p *rotundav1.Profile) []struct {
	name string
	at   **durationpb.Duration
} {
	return []struct {
		name string
		at   **durationpb.Duration
	}{{"cache", &p.Cache}, {"throttle", &p.Throttle}, {"min_interval", &p.MinInterval}, {"max_interval", &p.MaxInterval}}
}

// parseProfile reads "envoy" or "envoy,cache=5m,throttle=10s". Whether the
// profile exists, and has such a figure, is for the server to say.
func parseProfile(s string) (*rotundav1.Profile, error) {
	name, rest, more := strings.Cut(s, ",")
	if name == "" || strings.ContainsAny(name, "= \t") {
		return nil, fmt.Errorf("%q does not begin with the name of a profile: write it like envoy or envoy,cache=5m", s)
	}
	p := &rotundav1.Profile{Name: name}
	for more {
		var item string
		item, rest, more = strings.Cut(rest, ",")
		key, value, _ := strings.Cut(item, "=")
		var at **durationpb.Duration
		for _, f := range figures(p) {
			if f.name == key {
				at = f.at
			}
		}
		if at == nil {
			return nil, fmt.Errorf("profile %s has no figure %q: there are cache, throttle, min_interval and max_interval", name, key)
		}
		if *at != nil {
			return nil, fmt.Errorf("profile %s: %s is given twice", name, key)
		}
		d, err := parseDuration(value)
		if err != nil {
			return nil, fmt.Errorf("profile %s: %s: %w", name, key, err)
		}
		*at = durationpb.New(d)
	}
	return p, nil
}

// formatProfile writes what parseProfile reads.
func formatProfile(p *rotundav1.Profile) string {
	s := p.GetName()
	for _, f := range figures(p) {
		if *f.at != nil {
			s += "," + f.name + "=" + strings.ReplaceAll(formatDuration((*f.at).AsDuration()), " ", "")
		}
	}
	return s
}

// kidsLast moves a kid that looks like a flag behind "--". One thumbprint in 64
// begins with a hyphen, and whoever revokes a key in a hurry should not have to
// know what a shell makes of it. No flag is 43 characters of base64url.
func kidsLast(args []string) []string {
	if !slices.Contains(args, "revoke") || slices.Contains(args, "--") {
		return append([]string{}, args...)
	}
	var kids []string
	out := []string{}
	for _, a := range args {
		if len(a) == 43 && a[0] == '-' && strings.Trim(a, base64URL) == "" {
			kids = append(kids, a)
		} else {
			out = append(out, a)
		}
	}
	if len(kids) == 0 {
		return out
	}
	return append(append(out, "--"), kids...)
}

const base64URL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// arguments asks for exactly the named arguments.
func arguments(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing", strings.Join(names[len(args):], " and "))
		}
		if len(args) > len(names) {
			return usagef("%q is one argument too many", args[len(names)])
		}
		for i, a := range args {
			if a == "" {
				return usagef("%s is empty", names[i])
			}
		}
		return nil
	}
}

// need is a PreRunE that asks for flags.
func need(names ...string) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		var lacking []string
		for _, n := range names {
			if !cmd.Flags().Changed(n) {
				lacking = append(lacking, "--"+n)
			}
		}
		if len(lacking) > 0 {
			return usagef("%s must be given", strings.Join(lacking, " and "))
		}
		return nil
	}
}

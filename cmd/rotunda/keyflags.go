package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const maxQuota = 1_000_000_000

// units are the windows of a rate that have a name.
var units = []struct {
	name string
	of   time.Duration
}{{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", day}}

// parseRate reads a rate limit: requests per window, as "100/s", "5000/m" or
// "1000/24h". "none" is no limit, and nil.
func parseRate(s string) (*rotundav1.RateLimit, error) {
	if s == "none" {
		return nil, nil
	}
	count, window, _ := strings.Cut(s, "/")
	quota, err := strconv.ParseUint(count, 10, 63)
	if err != nil || window == "" {
		return nil, fmt.Errorf("%q is not a rate: write it like 100/s, 5000/m or 1000/24h", clipText(s))
	}
	if quota < 1 || quota > maxQuota {
		return nil, fmt.Errorf("the rate %q has a count outside 1 to %d", clipText(s), maxQuota)
	}
	var d time.Duration
	for _, u := range units {
		if u.name == window {
			d = u.of
		}
	}
	if d == 0 {
		if d, err = parseDuration(window); err != nil {
			return nil, fmt.Errorf("the window of the rate %q is not a length of time: write it like 100/s, 5000/m or 1000/24h", clipText(s))
		}
	}
	if d < time.Millisecond || d > day {
		return nil, fmt.Errorf("the window of the rate %q is outside 1ms to 24h", clipText(s))
	}
	return &rotundav1.RateLimit{Quota: int64(quota), Window: durationpb.New(d)}, nil
}

// formatRate writes what parseRate reads.
func formatRate(r *rotundav1.RateLimit) string {
	if r.GetQuota() == 0 {
		return "none"
	}
	window := strings.ReplaceAll(length(r.GetWindow(), "?"), " ", "")
	for _, u := range units {
		if u.of == r.GetWindow().AsDuration() {
			window = u.name
		}
	}
	s := formatInt(r.GetQuota()) + "/" + window
	if b := r.GetBurst(); b != 0 && b != r.GetQuota() {
		s += ", " + formatInt(b) + " at once"
	}
	return s
}

// rateFlags are --rate and --burst.
type rateFlags struct {
	limit *rotundav1.RateLimit
	text  string
	burst int64
}

func (f *rateFlags) Set(s string) (err error) {
	f.limit, err = parseRate(s)
	f.text = s
	return err
}

func (f *rateFlags) Type() string   { return "count/window" }
func (f *rateFlags) String() string { return f.text }

func (f *rateFlags) bind(fs *pflag.FlagSet) {
	fs.Var(f, "rate", "requests that it may make, as 100/s, 5000/m or 1000/24h (default: no limit)")
	fs.Int64Var(&f.burst, "burst", 0, "how many of them at once (default: all)")
}

// of returns the limit that the flags ask for; before is the one to be changed.
func (f *rateFlags) of(fs *pflag.FlagSet, before *rotundav1.RateLimit) (*rotundav1.RateLimit, error) {
	limit := before
	if fs.Changed("rate") {
		limit = f.limit
	}
	if !fs.Changed("burst") {
		return limit, nil
	}
	switch {
	case limit == nil:
		return nil, usagef("--burst needs a --rate")
	case f.burst < 1 || f.burst > maxQuota:
		return nil, usagef("--burst %d is outside 1 to %d", f.burst, maxQuota)
	}
	limit.Burst = f.burst
	return limit, nil
}

// metadataFlag collects --metadata k=v. "none" empties it, and k= leaves k out.
type metadataFlag struct {
	set    map[string]string
	remove []string
	none   bool
}

func (f *metadataFlag) Set(s string) error {
	if s == "none" {
		f.none = true
		return nil
	}
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return fmt.Errorf("%q is not of the form name=value", clipText(s))
	}
	if v == "" {
		f.remove = append(f.remove, k)
		return nil
	}
	if f.set == nil {
		f.set = map[string]string{}
	}
	f.set[k] = v
	return nil
}

func (f *metadataFlag) Type() string { return "name=value" }

func (f *metadataFlag) String() string { return formatMetadata(f.set) }

// apply changes what was there before.
func (f *metadataFlag) apply(before map[string]string) map[string]string {
	if f.none {
		before = nil
	}
	if before == nil && f.set != nil {
		before = map[string]string{}
	}
	for k, v := range f.set {
		before[k] = v
	}
	for _, k := range f.remove {
		delete(before, k)
	}
	return before
}

// formatMetadata writes metadata in the order of its names.
func formatMetadata(m map[string]string) string {
	var all []string
	for k, v := range m {
		all = append(all, k+"="+v)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// listFlags are a flag that replaces a list and, for a command that changes
// something, flags that add to it and take from it.
type listFlags struct {
	name             string
	all, add, remove []string
}

func (f *listFlags) bind(c *cli, cmd *cobra.Command, changing bool, help string, suggest suggest) {
	fs := cmd.Flags()
	names := []string{f.name}
	if !changing {
		fs.StringArrayVar(&f.all, f.name, nil, help+", once for each")
	} else {
		fs.StringArrayVar(&f.all, f.name, nil, help+", once for each, in place of all that were there; none empties the list")
		fs.StringArrayVar(&f.add, "add-"+f.name, nil, "one more "+f.name)
		fs.StringArrayVar(&f.remove, "remove-"+f.name, nil, "one "+f.name+" less")
		names = append(names, "add-"+f.name, "remove-"+f.name)
	}
	for _, n := range names {
		if suggest == nil {
			suggest = cobra.NoFileCompletions
		}
		_ = cmd.RegisterFlagCompletionFunc(n, suggest)
	}
}

// apply changes what was there before.
func (f *listFlags) apply(fs *pflag.FlagSet, before []string) ([]string, error) {
	after := before
	if fs.Changed(f.name) {
		after = f.all
		if slices.Equal(f.all, []string{"none"}) {
			after = nil
		}
	}
	for _, s := range f.add {
		if !slices.Contains(after, s) {
			after = append(slices.Clip(after), s)
		}
	}
	for _, s := range f.remove {
		if !slices.Contains(after, s) {
			return nil, fmt.Errorf("--remove-%s %s: it is not there: there is %s, so nothing was changed", f.name, quote(s), firstOf(strings.Join(after, " "), "none"))
		}
		after = slices.DeleteFunc(slices.Clone(after), func(t string) bool { return t == s })
	}
	return after, nil
}

// optional takes one argument or none.
func optional(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usagef("%q is one argument too many", args[1])
		}
		if len(args) == 1 && args[0] == "" {
			return usagef("%s is empty; leave it out, or give one", name)
		}
		return nil
	}
}

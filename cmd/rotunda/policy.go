package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// policyFlags changes a policy: each flag that was given sets its field.
type policyFlags struct {
	lengths            []*policyLength
	cron, zone         string
	profiles           profilesFlag
	cdn                bool
	fallback, overlong choice
	home               string
}

// policyLength is a duration of a policy. "default" unsets it, so that the
// server computes or chooses it.
type policyLength struct {
	durationFlag
	name, usage string
	at          func(*rotundav1.Policy) **durationpb.Duration
}

func (f *policyLength) Set(s string) error {
	if s == "default" {
		f.given = nil
		return nil
	}
	return f.durationFlag.Set(s)
}

// scheduleOf is p's schedule, made when it has none.
func scheduleOf(p *rotundav1.Policy) *rotundav1.Schedule {
	if p.Rotate == nil {
		p.Rotate = &rotundav1.Schedule{}
	}
	return p.Rotate
}

func (f *policyFlags) bind(c *cli, cmd *cobra.Command) {
	type at = func(*rotundav1.Policy) **durationpb.Duration
	add := func(name, usage string, at at) {
		f.lengths = append(f.lengths, &policyLength{name: name, usage: usage, at: at})
	}
	add("rotate-every", "time from one rotation to the next (default 30d)", func(p *rotundav1.Policy) **durationpb.Duration { return &scheduleOf(p).Every })
	add("jitter", "window within which this keyset has its own stable offset", func(p *rotundav1.Policy) **durationpb.Duration { return &scheduleOf(p).Jitter })
	add("token-ttl", "longest life of a token", func(p *rotundav1.Policy) **durationpb.Duration { return &p.TokenTtl })
	add("publish-ahead", "time that a key is served before it signs (default: computed)", func(p *rotundav1.Policy) **durationpb.Duration { return &p.PublishAhead })
	add("retire-after", "time from the end of signing to withdrawal (default: computed)", func(p *rotundav1.Policy) **durationpb.Duration { return &p.RetireAfter })
	add("max-age", "longest max-age of the JWKS document (default 5m)", func(p *rotundav1.Policy) **durationpb.Duration { return &p.MaxAge })
	add("emergency-target", "longest time that a revoked key may stay accepted (default: no such demand)", func(p *rotundav1.Policy) **durationpb.Duration { return &p.EmergencyTarget })
	add("leeway", "tolerance of consumers when they check exp (default 1m)", func(p *rotundav1.Policy) **durationpb.Duration { return &p.Leeway })
	add("skew", "largest difference between two clocks (default 30s)", func(p *rotundav1.Policy) **durationpb.Duration { return &p.Skew })
	add("propagation", "time until every replica serves a change (default 10s)", func(p *rotundav1.Policy) **durationpb.Duration { return &p.Propagation })
	add("fetch-failure", "longest failure to fetch that must do no harm (default 5m)", func(p *rotundav1.Policy) **durationpb.Duration { return &p.FetchFailure })

	flags := cmd.Flags()
	flags.SortFlags = false
	for _, l := range f.lengths {
		flags.Var(l, l.name, l.usage)
		c.complete(cmd, l.name, "default")
		if l.name == "rotate-every" {
			flags.StringVar(&f.cron, "rotate-cron", "", `five-field cron expression, instead of --rotate-every: "0 3 * * 1"`)
			flags.StringVar(&f.zone, "zone", "", "IANA time zone of --rotate-cron (default UTC)")
		}
		if l.name == "token-ttl" {
			flags.Var(&f.profiles, "profile", "a kind of consumer, as "+c.program+" keyset profiles lists them, once for each; figures of its own follow: envoy,cache=5m. none: nobody is known")
		}
	}
	f.fallback.allowed = []string{"none", "standby"}
	f.overlong.allowed = []string{"clamp", "refuse"}
	flags.BoolVar(&f.cdn, "cdn", false, "a shared HTTP cache stands between the server and its consumers")
	flags.Var(&f.fallback, "fallback", "what signs when the active key's signer is out of reach (default none)")
	flags.Var(&f.overlong, "overlong", "what happens to a token asked for with too long a life (default clamp)")
	flags.StringVar(&f.home, "home", "", "where new keys are made and kept: local (default), or the name of the server's --signing-vault; keys stay where they are")
	c.complete(cmd, "fallback", f.fallback.allowed...)
	c.complete(cmd, "overlong", f.overlong.allowed...)
	_ = cmd.RegisterFlagCompletionFunc("profile", c.profileNames())
}

// given reports whether any of the flags was.
func (f *policyFlags) given(flags *pflag.FlagSet) bool {
	names := []string{"rotate-cron", "zone", "profile", "cdn", "fallback", "overlong", "home"}
	for _, l := range f.lengths {
		names = append(names, l.name)
	}
	for _, n := range names {
		if flags.Changed(n) {
			return true
		}
	}
	return false
}

// apply sets in p what was given. An every replaces a cron expression and the
// other way round.
func (f *policyFlags) apply(flags *pflag.FlagSet, p *rotundav1.Policy) error {
	if flags.Changed("rotate-every") && flags.Changed("rotate-cron") {
		return usagef("give --rotate-every or --rotate-cron, not both")
	}
	for _, l := range f.lengths {
		if flags.Changed(l.name) {
			*l.at(p) = l.proto()
		}
	}
	if flags.Changed("rotate-every") {
		scheduleOf(p).Cron, scheduleOf(p).Zone = "", ""
	}
	if flags.Changed("rotate-cron") {
		scheduleOf(p).Cron, scheduleOf(p).Every = f.cron, nil
	}
	if flags.Changed("zone") {
		scheduleOf(p).Zone = f.zone
	}
	if flags.Changed("profile") {
		p.Profiles = f.profiles.list
	}
	if flags.Changed("cdn") {
		p.Cdn = f.cdn
	}
	if flags.Changed("fallback") {
		p.Fallback = rotundav1.Fallback(rotundav1.Fallback_value["FALLBACK_"+strings.ToUpper(f.fallback.value)])
	}
	if flags.Changed("home") {
		p.Home = f.home
	}
	if flags.Changed("overlong") {
		p.Overlong = rotundav1.Overlong(rotundav1.Overlong_value["OVERLONG_"+strings.ToUpper(f.overlong.value)])
	}
	return nil
}

func newPolicy(c *cli) *cobra.Command {
	var f policyFlags
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "policy NAME [flags]",
		Short: "Show or change a keyset's policy",
		Long: `Change what the given flags say and leave the rest as it is. Without flags, show the
policy. With --dry-run, show what would follow: the times of each consumer before and
after. The word "default" unsets a duration. --profile replaces the whole list.

A change that somebody else made in between is not overwritten: the command is refused.`,
		Example: `  rotunda keyset policy payments --token-ttl 30m --dry-run
  rotunda keyset policy payments --rotate-cron "0 3 * * 1" --zone Europe/Berlin
  rotunda keyset policy payments --publish-ahead default --profile envoy,cache=5m --profile jose`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     c.keysetThenKid(false),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.policy(cmd, args[0], &f, dryRun)
		},
	}
	f.bind(c, cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what would follow; change nothing")
	return cmd
}

func (c *cli) policy(cmd *cobra.Command, name string, f *policyFlags, dryRun bool) error {
	to, err := c.connect()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	if !f.given(cmd.Flags()) {
		got, err := call(ctx, to, to.keysets.GetKeyset, &rotundav1.GetKeysetRequest{Name: name}, "")
		if err != nil {
			return err
		}
		return c.print(got, func(p *page) { p.header(got.GetKeyset()); p.consumers(got.GetKeyset()) })
	}
	before, after, err := c.changePolicy(ctx, to, name, f, cmd.Flags(), dryRun)
	if err != nil {
		return err
	}
	if dryRun {
		c.complain("dry run: nothing was changed")
	}
	return c.print(after, func(p *page) { p.difference(before, after.GetKeyset(), dryRun) })
}

func (c *cli) changePolicy(ctx context.Context, to *conn, name string, f *policyFlags, flags *pflag.FlagSet, dryRun bool) (*rotundav1.Keyset, *rotundav1.UpdatePolicyResponse, error) {
	// What can't be right is refused before anything is asked.
	if err := f.apply(flags, &rotundav1.Policy{}); err != nil {
		return nil, nil, err
	}
	got, err := call(ctx, to, to.keysets.GetKeyset, &rotundav1.GetKeysetRequest{Name: name}, "")
	if err != nil {
		return nil, nil, err
	}
	before := got.GetKeyset()
	policy := &rotundav1.Policy{}
	if before.GetPolicy() != nil {
		policy = proto.CloneOf(before.GetPolicy())
	}
	if err := f.apply(flags, policy); err != nil {
		return nil, nil, err
	}
	after, err := call(ctx, to, to.keysets.UpdatePolicy, &rotundav1.UpdatePolicyRequest{
		Name: name, Policy: policy, DryRun: dryRun, PolicyVersion: before.GetPolicyVersion(),
	}, "")
	return before, after, err
}

// difference shows what a change of policy does to the times.
func (p *page) difference(before, after *rotundav1.Keyset, dryRun bool) {
	if dryRun {
		p.line("%s: what would follow", after.GetName())
	} else {
		p.line("%s: policy changed", after.GetName())
	}
	a, b := policyRows(before), policyRows(after)
	rows := make([][]string, len(a))
	for i := range a {
		rows[i] = []string{a[i][0], change(a[i][1], b[i][1]), ""}
	}
	rows = append(rows, []string{"next move", change(p.when(before.GetNextAt()), p.when(after.GetNextAt())), ""})
	p.table([]string{"POLICY", "BEFORE → AFTER", ""}, rows)
	p.line("")
	p.consumerTable(before.GetTiming(), after.GetTiming())
	p.warnings(after)
}

func policyRows(k *rotundav1.Keyset) [][2]string {
	pol, tim := k.GetPolicy(), k.GetTiming()
	names := make([]string, len(pol.GetProfiles()))
	for i, f := range pol.GetProfiles() {
		names[i] = formatProfile(f)
	}
	consumers := strings.Join(names, " ")
	if consumers == "" {
		consumers = "not named"
	}
	return [][2]string{
		{"rotates", rotationText(pol.GetRotate())},
		{"token life", length(pol.GetTokenTtl(), "not set") + ", longer ones are " + overlongWord(pol)},
		{"consumers", consumers},
		{"served before it signs", length(tim.GetPublishAhead(), "computed")},
		{"served after it signed", length(tim.GetRetireAfter(), "computed")},
		{"max-age", length(tim.GetMaxAge(), "computed")},
		{"emergency target", length(pol.GetEmergencyTarget(), "none")},
		{"leeway", length(pol.GetLeeway(), "default")},
		{"skew", length(pol.GetSkew(), "default")},
		{"propagation", length(pol.GetPropagation(), "default")},
		{"fetch failure", length(pol.GetFetchFailure(), "default")},
		{"shared HTTP cache", yesNo(pol.GetCdn())},
		{"fallback", fallbackWord(pol)},
		{"home", firstOf(pol.GetHome(), "local")},
	}
}

// change writes "a → b", or only a when nothing changed.
func change(a, b string) string {
	if a == b {
		return a
	}
	return a + " → " + b
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func overlongWord(p *rotundav1.Policy) string {
	if p.GetOverlong() == rotundav1.Overlong_OVERLONG_REFUSE {
		return "refused"
	}
	return "clamped"
}

func fallbackWord(p *rotundav1.Policy) string {
	if p.GetFallback() == rotundav1.Fallback_FALLBACK_STANDBY {
		return "standby"
	}
	return "none"
}

// rotationText writes a schedule: "every 30d, jitter 1h".
func rotationText(s *rotundav1.Schedule) string {
	var out string
	switch {
	case s.GetCron() != "":
		out = fmt.Sprintf("at %q %s", s.GetCron(), firstOf(s.GetZone(), "UTC"))
	case s.GetEvery() != nil:
		out = "every " + formatDuration(s.GetEvery().AsDuration())
	default:
		return "not on a schedule"
	}
	if j := s.GetJitter().AsDuration(); j > 0 {
		out += ", jitter " + formatDuration(j)
	}
	return out
}

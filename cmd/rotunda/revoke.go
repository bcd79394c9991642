package main

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// reasons are the names of RFC 5280, section 5.3.1, that mean something for a
// signing key. The server has the last word.
var reasons = []string{"unspecified", "key_compromise", "affiliation_changed", "superseded", "cessation_of_operation", "privilege_withdrawn"}

// revocation is what the user asked for.
type revocation struct {
	mode            choice
	reason, comment string
	dryRun, yes     bool
}

func (r *revocation) request(name, kid string) *rotundav1.RevokeKeyRequest {
	return &rotundav1.RevokeKeyRequest{
		Name: name, Kid: kid, Reason: r.reason, Comment: r.comment, DryRun: r.dryRun,
		Mode: rotundav1.RevokeMode(rotundav1.RevokeMode_value["REVOKE_MODE_"+strings.ToUpper(r.mode.value)]),
	}
}

func newRevoke(c *cli) *cobra.Command {
	r := revocation{mode: choice{allowed: []string{"standby", "fresh"}}}
	cmd := &cobra.Command{
		Use:   "revoke NAME KID --reason REASON [--mode standby|fresh] [flags]",
		Short: "Withdraw a key that may be compromised",
		Long: `Withdraw a key that may be compromised and destroy its private half. Begin with
--dry-run: it shows, for each consumer and each mode, how long the stolen key stays
accepted and how many good tokens are refused.

The active key needs a --mode. standby promotes the published standby. If its lead is
over, nobody refuses new tokens; if not, some consumers do, and the dry run says for how
long. No cache drops the stolen key before its time. fresh lets a key sign that nobody
has seen: consumers that fetch again on an unknown kid drop the stolen key at once, and
those that only refresh on a timer refuse good tokens until they do.

A key that does not sign is only withdrawn; --mode fresh replaces the active key as well,
so that consumers fetch again.

At a terminal you are asked to type the keyset's name. A script gives --mode, or --yes.`,
		Example: `  rotunda keyset revoke payments KID --mode fresh --reason key_compromise --dry-run
  rotunda keyset revoke payments KID --mode fresh --reason key_compromise`,
		Args:                  arguments("NAME", "KID"),
		ValidArgsFunction:     c.keysetThenKid(true),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !r.dryRun && r.reason == "" {
				return usagef("--reason must be given: one of %s; --dry-run needs none", strings.Join(reasons, ", "))
			}
			if !r.dryRun && !r.yes && !c.person && r.mode.value == "" {
				return usagef("nobody is here to ask: give --mode, or --yes; --dry-run shows what would happen")
			}
			return c.revoke(cmd, args[0], args[1], &r)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&r.mode, "mode", "what signs afterwards; needed for the active key")
	f.StringVar(&r.reason, "reason", "", "one of "+strings.Join(reasons, ", "))
	f.StringVar(&r.comment, "comment", "", "free text for the trail")
	f.BoolVar(&r.dryRun, "dry-run", false, "only predict; change nothing")
	f.BoolVar(&r.yes, "yes", false, "don't ask")
	c.complete(cmd, "mode", r.mode.allowed...)
	c.complete(cmd, "reason", reasons...)
	return cmd
}

func (c *cli) revoke(cmd *cobra.Command, name, kid string, r *revocation) error {
	to, err := c.connect()
	if err != nil {
		return err
	}
	if !r.dryRun && !r.yes && c.person {
		if err := c.confirmRevoke(cmd, to, name, kid, r); err != nil {
			return err
		}
	}
	age := ""
	if r.dryRun && c.output.value == "table" {
		age = c.standbyAge(cmd, to, name)
	}
	res, err := call(cmd.Context(), to, to.keysets.RevokeKey, r.request(name, kid), "")
	if err != nil {
		return err
	}
	if r.dryRun {
		c.complain("dry run: nothing was changed")
	}
	return c.print(res, func(p *page) {
		if r.dryRun {
			p.plans(name, res, age, r.mode.value)
			p.line("")
			p.goOn(c.goOn(r, name, kid, res.GetPlans()))
			return
		}
		p.revoked(name, kid, r, res)
	})
}

// standbyAge says how long the standby has been served, which decides whether
// its promotion harms anybody. The prediction is shown without it when it can't
// be had: who revokes a stolen key is in a hurry.
func (c *cli) standbyAge(cmd *cobra.Command, to *conn, name string) string {
	res, err := call(cmd.Context(), to, to.keysets.GetKeyset, &rotundav1.GetKeysetRequest{Name: name}, "")
	if err != nil {
		return ""
	}
	lead := res.GetKeyset().GetTiming().GetPublishAhead()
	for _, k := range res.GetKeyset().GetKeys() {
		if k.GetState() != rotundav1.KeyState_KEY_STATE_PENDING {
			continue
		}
		if k.GetServedSince() == nil {
			return "it is not served yet, so consumers that don't know it refuse good tokens"
		}
		served := max(c.now().Sub(k.GetServedSince().AsTime()), 0)
		if served < lead.AsDuration() {
			return fmt.Sprintf("it has been served for %s of its lead of %s, so consumers that have not fetched it yet refuse good tokens", roughly(served), length(lead, ""))
		}
		return fmt.Sprintf("it has been served for %s, and its lead of %s is over: every consumer has it", roughly(served), length(lead, "0s"))
	}
	return ""
}

// revoked tells what a revocation did, and where to look next.
func (p *page) revoked(name, kid string, r *revocation, res *rotundav1.RevokeKeyResponse) {
	p.line("revoked    %s of %s, reason %s; its private half is destroyed", kid, name, r.reason)
	for _, k := range res.GetKeyset().GetKeys() {
		if k.GetState() == rotundav1.KeyState_KEY_STATE_ACTIVE {
			p.line("signs now  %s, since %s", k.GetKid(), p.when(k.GetSince()))
		}
	}
	p.line("tokens     %s", outstanding(res.GetOutstandingTokens()))
	if applied := appliedPlan(res.GetPlans(), r.mode.value); applied != nil {
		p.line("reach      %s", reach(applied))
	}
	p.line("look next  %s", p.cli.suggest("keyset show", name))
	p.line("           %s", p.cli.suggest("audit list --resource", "keysets/"+name+"/"))
}

// appliedPlan is the plan that a revocation in this mode followed.
func appliedPlan(plans []*rotundav1.RevokeModePlan, mode string) *rotundav1.RevokeModePlan {
	for _, p := range plans {
		if modeWord(p) == mode {
			return p
		}
	}
	for _, p := range plans {
		if modeWord(p) == "" {
			return p // the key did not sign, so the server took no notice of the mode
		}
	}
	return nil
}

// reach tells how long a revoked key stays accepted by the slowest consumer.
func reach(plan *rotundav1.RevokeModePlan) string {
	var longest *rotundav1.RevokePrediction
	var unbounded []string
	for _, d := range plan.GetPredictions() {
		if d.GetExposureUnbounded() {
			unbounded = append(unbounded, d.GetProfile())
		}
		if longest == nil || d.GetExposure().AsDuration() > longest.GetExposure().AsDuration() {
			longest = d
		}
	}
	if len(unbounded) > 0 {
		return "restart these consumers, which otherwise accept the key until they meet an unknown kid: " + strings.Join(unbounded, ", ")
	}
	if longest == nil {
		return "no consumer is named in the policy, so it is not known how long the key stays accepted"
	}
	return "consumers may accept the key for up to " + length(longest.GetExposure(), "0s") + " (" + longest.GetProfile() + ")"
}

// confirmRevoke shows the prediction and asks for the keyset's name. Without an
// answer nothing is done.
func (c *cli) confirmRevoke(cmd *cobra.Command, to *conn, name, kid string, r *revocation) error {
	ask := r.request(name, kid)
	ask.DryRun = true
	age := c.standbyAge(cmd, to, name)
	plan, err := call(cmd.Context(), to, to.keysets.RevokeKey, ask, "")
	if err != nil {
		return err
	}
	p := c.newPage()
	p.plans(name, plan, age, r.mode.value)
	fmt.Fprint(c.stderr, p.b.String())
	fmt.Fprintf(c.stderr, "\nThis can't be undone. Type %s to revoke the key: ", clean(name))
	// Reading can't be interrupted, so it runs beside; the process ends with the answer or the signal.
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(c.stdin, 256)).ReadString('\n')
		answer <- line
	}()
	select {
	case line := <-answer:
		if strings.TrimSpace(line) != name {
			return fmt.Errorf("revoke key %s of keyset %q: not confirmed, so nothing was changed", kid, name)
		}
		return nil
	case <-cmd.Context().Done():
		fmt.Fprintln(c.stderr)
		return fmt.Errorf("revoke key %s of keyset %q: interrupted, so nothing was changed", kid, name)
	}
}

// suggest is a whole command line that reaches the same server; word, which may
// be anything, is quoted.
func (c *cli) suggest(command, word string) string {
	return strings.Join(append([]string{c.program, command, quote(word)}, c.conf.args()...), " ")
}

func modeWord(p *rotundav1.RevokeModePlan) string {
	if p.GetMode() == rotundav1.RevokeMode_REVOKE_MODE_UNSPECIFIED {
		return ""
	}
	return word(p.GetMode().String(), "REVOKE_MODE_")
}

// onlyWithdraws reports whether the key does not sign, so that it needs no mode.
func onlyWithdraws(plans []*rotundav1.RevokeModePlan) bool {
	return slices.ContainsFunc(plans, func(p *rotundav1.RevokeModePlan) bool { return modeWord(p) == "" })
}

// goOn returns the commands that do what a dry run predicted, each to be run as
// it is, and a word about what else could be done.
func (c *cli) goOn(r *revocation, name, kid string, plans []*rotundav1.RevokeModePlan) (commands []string, hint string) {
	var modes []string
	for _, p := range plans {
		if p.GetPossible() && modeWord(p) != "" {
			modes = append(modes, modeWord(p))
		}
	}
	switch {
	case onlyWithdraws(plans) && r.mode.value != "fresh":
		modes, hint = []string{""}, "add --mode fresh to also replace the active key, so that consumers refetch"
	case slices.Contains(modes, r.mode.value):
		modes = []string{r.mode.value}
	}
	for _, mode := range modes {
		line := c.suggest("keyset revoke "+quote(name), kid)
		if mode != "" {
			line += " --mode " + mode
		}
		line += " --reason " + quote(firstOf(r.reason, "key_compromise"))
		if r.comment != "" {
			line += " --comment " + quote(r.comment)
		}
		if mode == "" && !c.person {
			line += " --yes"
		}
		commands = append(commands, line)
	}
	return commands, hint
}

func (p *page) goOn(commands []string, hint string) {
	switch len(commands) {
	case 0:
		p.line("No mode is possible now.")
	case 1:
		p.line("To go on: %s", commands[0])
	default:
		p.line("To go on, one of:")
		for _, c := range commands {
			p.line("  %s", c)
		}
	}
	if hint != "" {
		p.line("%s", hint)
	}
}

// quote makes s one word of a shell.
func quote(s string) string {
	if s != "" && strings.Trim(s, base64URL+".:/@+=") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// plans shows what a revocation would do to each consumer. age is what is known
// of the standby; chosen is the mode that was asked for, "" for none.
func (p *page) plans(name string, res *rotundav1.RevokeKeyResponse, age, chosen string) {
	var notes []note
	idle := onlyWithdraws(res.GetPlans())
	for _, plan := range res.GetPlans() {
		p.line("")
		p.line("%s", planTitle(modeWord(plan), idle, chosen))
		if !plan.GetPossible() {
			p.hang("  ", "not possible now: "+plan.GetWhy())
			continue
		}
		if modeWord(plan) == "standby" && age != "" {
			p.hangTo(p.prose(), "  ", age)
		}
		rows := make([][]string, len(plan.GetPredictions()))
		for i, d := range plan.GetPredictions() {
			exposure := length(d.GetExposure(), "0s")
			if d.GetExposureUnbounded() {
				exposure = "unbounded: until an unknown kid or a restart"
			}
			rows[i] = []string{d.GetProfile(), exposure, length(d.GetRefusal(), "0s"), about(d.GetRefusedNewTokens())}
			notes = append(notes, note{d.GetProfile(), d.GetNote()})
		}
		p.table([]string{"CONSUMER", "STOLEN KEY ACCEPTED FOR", "GOOD TOKENS REFUSED FOR", "HOW MANY"}, rows)
	}
	p.line("")
	p.notes(notes)
	p.line("%s", outstanding(res.GetOutstandingTokens()))
	p.line("%s signed %s tokens per second over the last hour.", name, approximately(res.GetSignRate()))
}

func planTitle(mode string, idle bool, chosen string) string {
	switch {
	case mode == "standby":
		return "mode standby: the published standby signs"
	case mode == "fresh" && !idle:
		return "mode fresh: a key with a new kid signs"
	case mode == "fresh" && chosen == "fresh":
		return "mode fresh: the key is withdrawn, and a key with a new kid replaces the active key too"
	case mode == "fresh":
		return "option, only with --mode fresh: a key with a new kid replaces the active key too"
	case chosen == "fresh":
		return "without --mode: the key does not sign, so it is only withdrawn"
	default:
		return "the key does not sign, so it is only withdrawn"
	}
}

// outstanding tells what becomes of the unexpired tokens of a revoked key.
func outstanding(n int64) string {
	switch n {
	case 0:
		return "No unexpired token of this key is out."
	case 1:
		return "1 unexpired token of this key is out: its holder must get a new one."
	default:
		return fmt.Sprintf("%d unexpired tokens of this key are out: their holders must get new ones.", n)
	}
}

// about writes an estimate of a count, rounded up: part of a token is one.
func about(n float64) string {
	if n <= 0 {
		return "0"
	}
	return fmt.Sprintf("about %.0f", math.Ceil(n))
}

// approximately writes a rate without more figures than it deserves.
func approximately(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 0.01:
		return "< 0.01"
	case n < 10:
		return fmt.Sprintf("%.2g", n)
	default:
		return fmt.Sprintf("%.0f", math.Ceil(n))
	}
}

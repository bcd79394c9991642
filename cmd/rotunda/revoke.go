package main

import (
	"bufio"
	"fmt"
	"io"
	"math"
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
		Use:   "revoke NAME KID --mode standby|fresh --reason REASON [flags]",
		Short: "Withdraw a key that may be compromised",
		Long: `Withdraw a key that may be compromised and destroy its private half. Begin with
--dry-run: it shows, for each consumer and each mode, how long the stolen key stays
accepted and how many good tokens are refused.

With --mode standby the published standby signs from now on: nobody refuses good tokens,
but no cache drops the stolen key before its time. With --mode fresh a key signs that
nobody has seen: consumers that fetch again on an unknown kid drop the stolen key at
once, and those that only refresh on a timer refuse good tokens until they do.

At a terminal you are asked to type the keyset's name. A script gives --mode and
--reason, or --yes.`,
		Example: `  rotunda keyset revoke payments KID --mode fresh --reason key_compromise --dry-run
  rotunda keyset revoke payments KID --mode fresh --reason key_compromise`,
		Args:                  arguments("NAME", "KID"),
		ValidArgsFunction:     c.keysetThenKid(true),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !r.dryRun && !r.yes && !c.person && (r.mode.value == "" || r.reason == "") {
				return usagef("nobody is here to ask: give --mode and --reason, or --yes; --dry-run shows what would happen")
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
	res, err := call(cmd.Context(), to, to.keysets.RevokeKey, r.request(name, kid), "")
	if err != nil {
		return err
	}
	if r.dryRun {
		c.complain("dry run: nothing was changed")
	}
	return c.print(res, func(p *page) {
		if r.dryRun {
			p.plans(name, kid, res, r.mode.value)
			p.line("")
			p.line("To go on: %s", r.goOn(name, kid, res.GetPlans()))
			return
		}
		p.line("revoked %s of %s", kid, name)
		p.plans(name, kid, res, r.mode.value)
		if res.GetKeyset() != nil {
			p.line("")
			p.keyset(res.GetKeyset())
		}
	})
}

// confirmRevoke shows the prediction and asks for the keyset's name. Without an
// answer nothing is done.
func (c *cli) confirmRevoke(cmd *cobra.Command, to *conn, name, kid string, r *revocation) error {
	ask := r.request(name, kid)
	ask.DryRun = true
	plan, err := call(cmd.Context(), to, to.keysets.RevokeKey, ask, "")
	if err != nil {
		return err
	}
	p := c.newPage()
	p.plans(name, kid, plan, r.mode.value)
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

// goOn is the command that does what a dry run predicted.
func (r *revocation) goOn(name, kid string, plans []*rotundav1.RevokeModePlan) string {
	parts := []string{"rotunda keyset revoke", quote(name), quote(kid)}
	var modes []string
	for _, p := range plans {
		if p.GetPossible() && p.GetMode() != rotundav1.RevokeMode_REVOKE_MODE_UNSPECIFIED {
			modes = append(modes, word(p.GetMode().String(), "REVOKE_MODE_"))
		}
	}
	if mode := firstOf(r.mode.value, strings.Join(modes, "|")); mode != "" {
		parts = append(parts, "--mode", mode)
	}
	parts = append(parts, "--reason", quote(firstOf(r.reason, "key_compromise")))
	if r.comment != "" {
		parts = append(parts, "--comment", quote(r.comment))
	}
	return strings.Join(parts, " ")
}

// quote makes s one word of a shell.
func quote(s string) string {
	if s != "" && strings.Trim(s, base64URL+".:/@+=") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// plans shows what a revocation does to each consumer. When only is set, and a
// revocation was done, the other mode is of no interest any more.
func (p *page) plans(name, kid string, res *rotundav1.RevokeKeyResponse, only string) {
	for _, plan := range res.GetPlans() {
		mode := word(plan.GetMode().String(), "REVOKE_MODE_")
		if res.GetKeyset() != nil && plan.GetMode() != rotundav1.RevokeMode_REVOKE_MODE_UNSPECIFIED && mode != only {
			continue
		}
		p.line("")
		switch plan.GetMode() {
		case rotundav1.RevokeMode_REVOKE_MODE_STANDBY:
			p.line("mode standby: the published standby signs")
		case rotundav1.RevokeMode_REVOKE_MODE_FRESH:
			p.line("mode fresh: a key with a new kid signs")
		default:
			p.line("the key does not sign, so it is only withdrawn")
		}
		if !plan.GetPossible() {
			p.hang("  ", "not possible now: "+plan.GetWhy())
			continue
		}
		rows := make([][]string, len(plan.GetPredictions()))
		for i, d := range plan.GetPredictions() {
			exposure := length(d.GetExposure(), "0s")
			if d.GetExposureUnbounded() {
				exposure = "unbounded: until an unknown kid or a restart"
			}
			rows[i] = []string{d.GetProfile(), exposure, length(d.GetRefusal(), "0s"), approximately(d.GetRefusedNewTokens()), d.GetNote()}
		}
		p.table([]string{"CONSUMER", "STOLEN KEY ACCEPTED FOR", "GOOD TOKENS REFUSED FOR", "≈ GOOD TOKENS REFUSED", "NOTE"}, rows)
	}
	p.line("")
	p.line("%d unexpired tokens of this key are out: their holders must get new ones.", res.GetOutstandingTokens())
	p.line("%s signed %s tokens per second over the last hour.", name, approximately(res.GetSignRate()))
}

// approximately writes a count without more figures than it deserves.
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

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rotunda-dev/rotunda/audit/trail"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newAuditRetention(c *cli) *cobra.Command {
	return newGroup("retention", "Say how long events are kept: show, set", newRetentionShow(c), newRetentionSet(c))
}

func newRetentionShow(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "show",
		Short:             "Show how long events are kept",
		Example:           "  rotunda audit retention show",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.audit.GetTrailStatus, &rotundav1.GetTrailStatusRequest{}, "")
			if err != nil {
				return err
			}
			// Only what was asked for, also as JSON.
			part := &rotundav1.GetTrailStatusResponse{RetentionSeconds: res.GetRetentionSeconds(), Pruned: res.GetPruned(), Holds: res.GetHolds()}
			return c.print(part, func(p *page) {
				p.line("events are kept %s", keptFor(res.GetRetentionSeconds()))
				if res.GetPruned() > 0 {
					p.line("pruned: events below %d, but for those under a hold", res.GetPruned())
				}
				if len(res.GetHolds()) > 0 {
					p.line("holds:")
					p.holds(res.GetHolds())
				}
			})
		},
	}
}

func keptFor(n int64) string {
	if n == 0 {
		return "for ever"
	}
	return "for " + seconds(n)
}

func newRetentionSet(c *cli) *cobra.Command {
	var reason string
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use:   "set TIME --reason REASON [flags]",
		Short: "Say how long events are kept",
		Long: `Say how long events are kept: 400d, or forever. Older events are pruned: their content goes,
their hashes stay, so every proof and every export of what is left goes on to verify. Each
pruning is an event. Begin with --dry-run: it tells how many events would go at once. At a
terminal you are asked before any goes.`,
		Example: `  rotunda audit retention set 400d --dry-run
  rotunda audit retention set 400d --reason 'policy SEC-12'`,
		Args:                  arguments("TIME"),
		ValidArgsFunction:     cobra.FixedCompletions([]string{"forever", "90d", "400d", "730d"}, cobra.ShellCompDirectiveNoFileComp),
		DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &rotundav1.SetRetentionRequest{Reason: reason, DryRun: dryRun}
			if args[0] != "forever" {
				d, err := parseDuration(args[0])
				if err != nil {
					return usagef("TIME: %w, or forever", err)
				}
				if d < day {
					return usagef("TIME %s is shorter than a day; to keep events for ever, write forever", args[0])
				}
				req.Seconds = int64(d.Seconds())
			}
			if reason == "" && !dryRun {
				return usagef("--reason must be given; --dry-run needs none")
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			if !dryRun && !yes && c.person {
				if err := c.confirmRetention(cmd.Context(), to, req); err != nil {
					return fmt.Errorf("set the retention: %w", err)
				}
			}
			res, err := call(cmd.Context(), to, to.trail.SetRetention, req, "")
			if err != nil {
				return err
			}
			if dryRun {
				c.complain("dry run: nothing was changed")
			}
			return c.print(res, func(p *page) {
				will := "are"
				if dryRun {
					will = "would be"
				}
				p.line("events %s kept %s", will, keptFor(req.GetSeconds()))
				if req.GetSeconds() > 0 {
					p.line("%s %s pruned by the next passes", counted(res.GetDue(), "event"), will)
				}
				if res.GetHeld() > 0 {
					p.line("%s stay, because of a hold or because somebody has not read them yet", counted(res.GetHeld(), "older event"))
				}
				if res.GetWaitsFor() != "" {
					p.line("pruning waits for %s, which has not read them yet", res.GetWaitsFor())
				}
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&reason, "reason", "", "why, for the trail")
	f.BoolVar(&dryRun, "dry-run", false, "only tell what would be pruned at once")
	f.BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// confirmRetention asks when events would go at once.
func (c *cli) confirmRetention(ctx context.Context, to *conn, req *rotundav1.SetRetentionRequest) error {
	ask := &rotundav1.SetRetentionRequest{Seconds: req.GetSeconds(), Reason: req.GetReason(), DryRun: true}
	res, err := call(ctx, to, to.trail.SetRetention, ask, "")
	if err != nil || res.GetDue() == 0 {
		return err
	}
	return c.confirm(ctx, fmt.Sprintf("Keep events %s: %s will be pruned at once. This can't be undone.", keptFor(req.GetSeconds()), counted(res.GetDue(), "event")), formatInt(res.GetDue()))
}

func newAuditHold(c *cli) *cobra.Command {
	return newGroup("hold", "Keep events from being pruned or erased: add, list, release", newHoldAdd(c), newHoldList(c), newHoldRelease(c))
}

func newHoldAdd(c *cli) *cobra.Command {
	hold := &rotundav1.Hold{}
	cmd := &cobra.Command{
		Use:   "add NAME --reason REASON [flags]",
		Short: "Keep events from being pruned or erased (a legal hold)",
		Long: `Keep events from being pruned or erased until the hold is released. --partner and --resource
say which; without them, all.`,
		Example: `  rotunda audit hold add case-2026-7 --partner acme --reason 'litigation hold, case 2026-7'
  rotunda audit hold add everything --reason 'investigation'`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("reason"),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&hold.Reason, "reason", "", "why, for the trail")
	f.StringVar(&hold.Partner, "partner", "", "only events of a partner")
	f.StringVar(&hold.Resource, "resource", "", "only events of a resource; with a trailing slash, of everything below it")
	key := idempotency(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		hold.Name = args[0]
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.trail.CreateHold, &rotundav1.CreateHoldRequest{Hold: hold}, key())
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.holds([]*rotundav1.Hold{res.GetHold()}) })
	}
	return cmd
}

func newHoldList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "List the legal holds",
		Example:           "  rotunda audit hold list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.ListHolds, &rotundav1.ListHoldsRequest{}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.holds(res.GetHolds()) })
		},
	}
}

func newHoldRelease(c *cli) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:     "release NAME --reason REASON",
		Short:   "End a legal hold",
		Example: "  rotunda audit hold release case-2026-7 --reason 'case closed'",
		Args:    arguments("NAME"),
		ValidArgsFunction: c.names(func(ctx context.Context, to *conn) ([]string, error) {
			res, err := call(ctx, to, to.trail.ListHolds, &rotundav1.ListHoldsRequest{}, "")
			var out []string
			for _, h := range res.GetHolds() {
				out = append(out, cobra.CompletionWithDesc(clean(h.GetName()), clean(h.GetReason())))
			}
			return out, err
		}),
		DisableFlagsInUseLine: true,
		PreRunE:               need("reason"),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.ReleaseHold, &rotundav1.ReleaseHoldRequest{Name: args[0], Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) {
				p.line("released the hold %s: retention counts for its events again", args[0])
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the trail")
	return cmd
}

func (p *page) holds(list []*rotundav1.Hold) {
	if len(list) == 0 {
		p.line("There is no hold.")
		return
	}
	rows := make([][]string, len(list))
	for i, h := range list {
		rows[i] = []string{h.GetName(), firstOf(h.GetPartner(), "any"), firstOf(h.GetResource(), "any"), p.when(h.GetCreatedAt()), h.GetReason()}
	}
	p.table([]string{"NAME", "PARTNER", "RESOURCE", "SINCE", "REASON"}, rows)
}

// fieldsFlag collects the names of fields that can be erased.
type fieldsFlag []string

func fieldNames() []string {
	var names []string
	for f := range trail.NumFields {
		names = append(names, f.String())
	}
	return names
}

func (f *fieldsFlag) Set(s string) error {
	if _, ok := trail.ParseField(s); !ok {
		return fmt.Errorf("it must be one of %s", strings.Join(fieldNames(), ", "))
	}
	if slices.Contains(*f, s) {
		return fmt.Errorf("%s is given twice", s)
	}
	*f = append(*f, s)
	return nil
}

func (f *fieldsFlag) Type() string   { return "field" }
func (f *fieldsFlag) String() string { return strings.Join(*f, ",") }

func newAuditErase(c *cli) *cobra.Command {
	req := &rotundav1.EraseFieldsRequest{}
	var fields fieldsFlag
	var since, until string
	var dryRun, yes bool
	cmd := &cobra.Command{
		Use:   "erase --field FIELD --actor|--address|--partner|--request-id|--id VALUE --reason REASON [flags]",
		Short: "Destroy personal values of events; every proof stays as it is",
		Long: `Destroy personal values of events for good, such as the addresses of a person who asked for
that. Only salted commitments of these values are in the tree, so the tree, every proof and
every checkpoint stay as they are; exports show the fields as erased. Copies that sinks and
exports took before are not reached.

At least one of --actor, --address, --partner, --request-id and --id says in which events.
Events under a legal hold can't be erased. The erasure is an event itself; don't repeat in
--reason what is to be erased. At a terminal you see how many events it is, and are asked to
type that number. A script gives --yes.`,
		Example: `  rotunda audit erase --field address --field actor --actor 4fKq3w2xYd5sRt9u --reason 'request DSR-31' --dry-run
  rotunda audit erase --field address --address 203.0.113.9 --since 90d --reason 'request DSR-31' --yes`,
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("field", "reason"),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&fields, "field", "what to erase: "+strings.Join(fieldNames(), ", ")+"; once for each")
	f.StringVar(&req.Id, "id", "", "in this event")
	f.StringVar(&req.Actor, "actor", "", "in events of this actor")
	f.StringVar(&req.Partner, "partner", "", "in events of this partner")
	f.StringVar(&req.Address, "address", "", "in events from this address")
	f.StringVar(&req.RequestId, "request-id", "", "in events of this request")
	f.StringVar(&since, "since", "", "only events at or after this: 30d, 2026-11-22 or 2026-11-22T03:00:00Z")
	f.StringVar(&until, "until", "", "only events before this")
	f.StringVar(&req.Reason, "reason", "", "why, for the trail")
	f.BoolVar(&dryRun, "dry-run", false, "only count the events")
	f.BoolVar(&yes, "yes", false, "don't ask")
	c.complete(cmd, "field", fieldNames()...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if req.Since, err = instantFlag("since", since, c.now()); err != nil {
			return err
		}
		if req.Until, err = instantFlag("until", until, c.now()); err != nil {
			return err
		}
		switch {
		case req.GetId()+req.GetActor()+req.GetPartner()+req.GetAddress()+req.GetRequestId() == "":
			return usagef("say in which events: at least one of --id, --actor, --partner, --address and --request-id")
		case req.GetReason() == "":
			return usagef("--reason is empty")
		case !dryRun && !yes && !c.person:
			return usagef("nobody is here to ask: give --yes; --dry-run shows how many events it would be")
		}
		req.Fields = fields
		to, err := c.connect()
		if err != nil {
			return err
		}
		if !dryRun && !yes {
			if err := c.confirmErase(cmd.Context(), to, req); err != nil {
				return fmt.Errorf("erase fields of events: %w", err)
			}
		}
		req.DryRun = dryRun
		res, err := call(cmd.Context(), to, to.trail.EraseFields, req, "")
		if err != nil {
			return err
		}
		if dryRun {
			c.complain("dry run: nothing was changed")
		}
		return c.print(res, func(p *page) {
			verb := "erased"
			if dryRun {
				verb = "would erase"
			}
			p.line("%s %s in %s", verb, strings.Join(fields, ", "), counted(res.GetEvents(), "event"))
		})
	}
	return cmd
}

// confirmErase counts the events first.
func (c *cli) confirmErase(ctx context.Context, to *conn, req *rotundav1.EraseFieldsRequest) error {
	req.DryRun = true
	found, err := call(ctx, to, to.trail.EraseFields, req, "")
	if err != nil {
		return err
	}
	if found.GetEvents() == 0 {
		return errors.New("no event matches, or its fields are empty or erased already, so nothing was changed")
	}
	return c.confirm(ctx, fmt.Sprintf("Erase %s in %s. This can't be undone.", strings.Join(req.GetFields(), ", "), counted(found.GetEvents(), "event")), formatInt(found.GetEvents()))
}

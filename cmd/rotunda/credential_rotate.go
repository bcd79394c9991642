package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// rotateFlags are what may be said of a rotation.
type rotateFlags struct {
	watch, emergency, overwrite, all, dryRun, yes bool
	reason, store, target                         string
	labels                                        metadataFlag
	grace                                         durationFlag
}

func newCredentialRotate(c *cli) *cobra.Command {
	var r rotateFlags
	cmd := &cobra.Command{
		Use:   "rotate [NAME …] [--watch] [--emergency --reason TEXT] [flags]",
		Short: "Rotate a credential now; with --emergency also many, ahead of all others",
		Long: `Rotate a credential now, by the same steps as its schedule does. --watch shows them as they
happen, until consumers read the new value and, where the grace is short, to the end.

--emergency goes ahead of every scheduled rotation and outside windows, and ends the sessions of
the old value when it is revoked. With several names, --store, --target, --label or --all it is
an incident: the plan is shown first (how many, in which order, how long it takes by the quotas,
what is passed over and why), and you are asked; a script gives --yes. --dry-run only shows the
plan.`,
		Example: `  rotunda credential rotate orders-db --watch
  rotunda credential rotate orders-db --emergency --reason leaked --grace 0
  rotunda credential rotate --emergency --reason "laptop stolen" --store vault-prod --dry-run
  rotunda credential rotate --emergency --reason "laptop stolen" --label tier=1 --grace 0 --yes --watch`,
		Args: func(_ *cobra.Command, args []string) error {
			for _, a := range args {
				if a == "" {
					return usagef("NAME is empty")
				}
			}
			return nil
		},
		ValidArgsFunction: c.ask(func(ctx context.Context, to *conn, _ []string) ([]string, error) {
			return credentialNames(ctx, to)
		}),
		DisableFlagsInUseLine: true,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&r.watch, "watch", false, "show the steps as they happen")
	f.StringVar(&r.reason, "reason", "", "why, for the trail: free text; an emergency needs one")
	f.Var(&r.grace, "grace", "how long the old value stays accepted (default: the credential's own; of an incident: 0)")
	f.BoolVar(&r.overwrite, "overwrite", false, "replace also what somebody else has put into a store")
	f.BoolVar(&r.emergency, "emergency", false, "ahead of all others, outside windows")
	f.StringVar(&r.store, "store", "", "with --emergency: all that are read in this store")
	f.StringVar(&r.target, "target", "", "with --emergency: all of this target")
	f.Var(&r.labels, "label", "with --emergency: all with this label, as name=value, once for each")
	f.BoolVar(&r.all, "all", false, "with --emergency: all there are")
	f.BoolVar(&r.dryRun, "dry-run", false, "only show the plan")
	f.BoolVar(&r.yes, "yes", false, "don't ask")
	c.systemFlags(cmd)
	for _, n := range []string{"reason", "grace"} {
		_ = cmd.RegisterFlagCompletionFunc(n, cobra.NoFileCompletions)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		selects := r.store != "" || r.target != "" || len(r.labels.set) > 0 || r.all
		if err := r.check(args, selects); err != nil {
			return err
		}
		if selects || len(args) > 1 || r.emergency && r.dryRun {
			return c.rotateMany(cmd.Context(), args, &r)
		}
		return c.rotateOne(cmd.Context(), args[0], &r)
	}
	return cmd
}

func (r *rotateFlags) check(args []string, selects bool) error {
	switch {
	case len(args) == 0 && !selects:
		return usagef("NAME is missing")
	case !r.emergency && selects:
		return usagef("--store, --target, --label and --all are for --emergency: a rotation that is not urgent is left to the schedules")
	case !r.emergency && len(args) > 1:
		return usagef("%d credentials at once are an --emergency: or rotate one after the other", len(args))
	case r.emergency && r.reason == "" && !r.dryRun:
		return usagef("--emergency needs a --reason, for the trail: --dry-run needs none")
	case len(args) > 1000:
		return usagef("%d names are too many: at most 1000, or select by --store, --target or --label", len(args))
	case selectors(args, r) > 1:
		return usagef("give names, --store, --target, --label or --all, not several of them")
	case r.overwrite && (selects || len(args) > 1):
		return usagef("--overwrite is for one credential at a time: look at what somebody else has put there")
	}
	return nil
}

// selectors counts the ways in which credentials are selected.
func selectors(names []string, r *rotateFlags) (n int) {
	for _, given := range []bool{len(names) > 0, r.store != "", r.target != "", len(r.labels.set) > 0, r.all} {
		if given {
			n++
		}
	}
	return n
}

func (c *cli) rotateOne(ctx context.Context, name string, r *rotateFlags) error {
	to, err := c.connect()
	if err != nil {
		return err
	}
	if r.dryRun {
		res, err := call(ctx, to, to.credentials.PlanCredential, &rotundav1.PlanCredentialRequest{Credential: name}, "")
		if err != nil {
			return err
		}
		c.complain("dry run: nothing was changed")
		return c.print(res, func(p *page) { p.plannedEffects(res) })
	}
	res, err := call(ctx, to, to.rotations.StartRotation, &rotundav1.StartRotationRequest{
		Credential: name, Reason: r.reason, Grace: r.grace.proto(), Emergency: r.emergency, Overwrite: r.overwrite,
	}, rand.Text())
	if err != nil {
		return err
	}
	if r.watch {
		return c.watchNew(ctx, to, res.GetRotation().GetId())
	}
	return c.print(res, func(p *page) {
		p.line("rotation %s of %s has begun", res.GetRotation().GetId(), name)
		p.line("look next  %s", c.suggest("credential watch", name))
	})
}

func (r *rotateFlags) selector(names []string) *rotundav1.Selector {
	return &rotundav1.Selector{Credentials: names, Store: r.store, Target: r.target, Labels: r.labels.set, All: r.all}
}

// rotateMany plans an emergency, asks, and begins it.
func (c *cli) rotateMany(ctx context.Context, names []string, r *rotateFlags) error {
	if !r.dryRun && !r.yes && !c.person {
		return usagef("nobody is here to ask: give --yes; --dry-run shows the plan")
	}
	to, err := c.connect()
	if err != nil {
		return err
	}
	plan, err := call(ctx, to, to.rotations.PlanEmergency, &rotundav1.PlanEmergencyRequest{Selector: r.selector(names), Grace: r.grace.proto()}, "")
	if err != nil {
		return err
	}
	if r.dryRun {
		c.complain("dry run: nothing was changed")
		return c.print(plan, func(p *page) { p.emergency(plan) })
	}
	if plan.GetTotal() == 0 {
		return errors.New("nothing is selected that could be rotated: --dry-run shows what is passed over, and why")
	}
	if !r.yes {
		p := c.newPage()
		p.emergency(plan)
		fmt.Fprint(c.stderr, p.b.String())
		question := fmt.Sprintf("Rotate %s now.", counted(plan.GetTotal(), "credential"))
		if err := c.confirm(ctx, question, formatInt(plan.GetTotal())); err != nil {
			return err
		}
	}
	res, err := call(ctx, to, to.rotations.StartEmergency, &rotundav1.StartEmergencyRequest{
		Selector: r.selector(names), Reason: r.reason, Grace: r.grace.proto(), PlanHash: plan.GetPlanHash(),
	}, rand.Text())
	if err != nil {
		return err
	}
	if r.watch {
		return c.watchIncident(ctx, to, res.GetIncident().GetId())
	}
	return c.print(res, func(p *page) {
		p.incident(res.GetIncident())
		p.line("look next  %s", c.suggest("incident watch", res.GetIncident().GetId()))
	})
}

func newCredentialWatch(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "watch NAME",
		Short: "Follow the rotation of a credential that is under way, to its end",
		Long: `Follow the rotation of a credential that is under way until it has ended or waits for a person.
Interrupting this ends the view, not the rotation.`,
		Example:           "  rotunda credential watch orders-db",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneCredential(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			id, err := openRotation(cmd.Context(), to, args[0])
			if err != nil {
				return err
			}
			return c.watchRotation(cmd.Context(), to, id, true)
		},
	}
}

// newRotation has the commands of single rotations, by their ids.
func newRotation(c *cli) *cobra.Command {
	list := newCredentialHistory(c)
	list.Use, list.Short, list.Aliases = "list [NAME]", "List rotations, of one credential or of all, newest first", nil
	list.Example = "  rotunda rotation list\n  rotunda rotation list orders-db --failed"
	return c.client(newGroup("rotation", "Look at single rotations by their ids, and decide about those that failed",
		list, newRotationShow(c), newRotationWatch(c), newRunCommand(c, "retry"), newRunCommand(c, "rollback"), newRunCommand(c, "abandon")))
}

func newRotationShow(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "show ID",
		Aliases:           []string{"get"},
		Short:             "Show a rotation",
		Example:           "  rotunda rotation show 0191f3c2-7a64-7c0e-8a55-000000000002",
		Args:              arguments("ID"),
		ValidArgsFunction: c.oneRotation(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.rotations.GetRotation, &rotundav1.GetRotationRequest{Rotation: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.rotation(res.GetRotation()) })
		},
	}
}

func newRotationWatch(c *cli) *cobra.Command {
	cmd := newCredentialWatch(c)
	cmd.Use, cmd.Short = "watch ID", "Follow a rotation to its end"
	cmd.Example = "  rotunda rotation watch 0191f3c2-7a64-7c0e-8a55-000000000002"
	cmd.Args, cmd.ValidArgsFunction = arguments("ID"), c.oneRotation()
	return cmd
}

// oneRotation suggests a rotation that has not ended as the only argument.
func (c *cli) oneRotation() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		list, _, err := listRotations(ctx, to, &rotundav1.ListRotationsRequest{Open: true}, maxPage)
		var out []string
		for _, r := range list {
			out = append(out, cobra.CompletionWithDesc(clean(r.GetId()), clean(r.GetCredential()+" "+stepWord(r.GetStep()))))
		}
		return out, err
	})
}

// lengthOfID is the length of a rotation's id, a UUID.
const lengthOfID = 36

// openRotation is the id of the rotation of a credential that has not ended; name may
// be that id itself.
func openRotation(ctx context.Context, to *conn, name string) (string, error) {
	if len(name) == lengthOfID && strings.Count(name, "-") == 4 {
		return name, nil
	}
	res, err := call(ctx, to, to.credentials.GetCredential, &rotundav1.GetCredentialRequest{Credential: name}, "")
	if err != nil {
		return "", err
	}
	if id := res.GetRotation().GetId(); id != "" {
		return id, nil
	}
	return "", fmt.Errorf("no rotation of %s is under way: `%s credential history %s` lists those that ended", name, to.program, quote(name))
}

// newRunCommand is one of the commands with which a person decides about a rotation.
func newRunCommand(c *cli, verb string) *cobra.Command {
	var reason string
	var watch, yes bool
	cmd := &cobra.Command{
		Use:               verb + " NAME",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneCredential(),
		Example:           "  rotunda credential " + verb + " orders-db",
	}
	switch verb {
	case "retry":
		cmd.Short = "Go on with a rotation that failed, with the same value"
		cmd.Long = `Go on with a rotation that failed, where it stopped and with the same value. First do what the
error says. NAME is the credential's, or the id of the rotation.`
	case "rollback":
		cmd.Short = "Take a rotation back that failed, or is in its grace: consumers read the old value again"
		cmd.Long = `Take a rotation back that failed, or that is in its grace. The stores are made to serve the old
value again, then the new one is ended. It is refused where the old value is gone. NAME is the
credential's, or the id of the rotation.`
	default:
		cmd.Short = "End a failed rotation as things are, and tell what is left"
		cmd.Long = `End a failed rotation as things are. What it has left with the target and in the stores is
told, and is for you to clean up. The value that consumers read stays what it is. At a terminal
you are asked to type the credential's name. NAME is the credential's, or the id of the rotation.`
		cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	}
	reasonFlag(cmd, &reason)
	if verb != "abandon" {
		cmd.Flags().BoolVar(&watch, "watch", false, "show the steps as they happen")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if verb == "abandon" && !yes && !c.person {
			return usagef("nobody is here to ask: give --yes")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		id, err := openRotation(ctx, to, args[0])
		if err != nil {
			return err
		}
		if verb == "abandon" && !yes {
			if err := c.confirm(ctx, "What this rotation has left behind stays, and is yours to clean up.", args[0]); err != nil {
				return err
			}
		}
		switch verb {
		case "retry":
			res, err := call(ctx, to, to.rotations.RetryRotation, &rotundav1.RetryRotationRequest{Rotation: id, Reason: reason}, "")
			if err != nil || watch {
				return c.watchAfter(ctx, to, id, err)
			}
			return c.print(res, func(p *page) { p.rotation(res.GetRotation()) })
		case "rollback":
			res, err := call(ctx, to, to.rotations.RollbackRotation, &rotundav1.RollbackRotationRequest{Rotation: id, Reason: reason}, "")
			if err != nil || watch {
				return c.watchAfter(ctx, to, id, err)
			}
			return c.print(res, func(p *page) { p.rotation(res.GetRotation()) })
		default:
			res, err := call(ctx, to, to.rotations.AbandonRotation, &rotundav1.AbandonRotationRequest{Rotation: id, Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) {
				p.rotation(res.GetRotation())
				for _, what := range res.GetLeft() {
					p.fact("left", what)
				}
			})
		}
	}
	return cmd
}

// watchAfter watches unless the call before it failed.
func (c *cli) watchAfter(ctx context.Context, to *conn, id string, err error) error {
	if err != nil {
		return err
	}
	return c.watchRotation(ctx, to, id, false)
}

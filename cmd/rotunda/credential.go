package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newCredential(c *cli) *cobra.Command {
	return c.client(newGroup("credential", "Keep credentials: what is rotated with a target, and read in stores",
		newCredentialCreate(c), newCredentialUpdate(c), newCredentialList(c), newCredentialShow(c),
		newPreflight(c), newCredentialPlan(c), newCredentialRotate(c), newCredentialWatch(c),
		newRunCommand(c, "retry"), newRunCommand(c, "rollback"), newRunCommand(c, "abandon"),
		newCredentialHistory(c), newCredentialPause(c, true), newCredentialPause(c, false), newProbe(c), newCredentialDelete(c)))
}

func newCredentialCreate(c *cli) *cobra.Command {
	var file string
	var inline bool
	cmd := &cobra.Command{
		Use:   "create -f FILE",
		Short: "Make credentials, and the stores and targets that they need, from a YAML file",
		Long: `Make what a YAML file describes: stores, targets, endpoints and credentials, in this order.
What is there already and the same is left alone, so a file may be given again and again; what
differs is shown, and refused: credential update changes it. Nothing is rotated before a
schedule says so or somebody asks.

Secrets are not in the file: login names a file (password_file: pg.txt), a variable
(password_env: PGPASSWORD), or asks for it (password: "-"). The schema for editors is that of
` + "`rotunda schema`" + `; docs/credentials.md has every setting.`,
		Example: `  rotunda credential create -f orders-db.yaml
  rotunda credential create -f - < orders-db.yaml`,
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("file"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := c.documents(file, documentKinds...)
			if err != nil {
				return err
			}
			return c.apply(cmd.Context(), docs, func(a *applier) { a.inline = inline })
		},
	}
	manifestFlags(cmd, &file, &inline)
	return cmd
}

func manifestFlags(cmd *cobra.Command, file *string, inline *bool) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(file, "file", "f", "", "YAML file; - for stdin")
	f.BoolVar(inline, "allow-inline-secrets", false, "take secrets that stand in the file")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
}

func newCredentialUpdate(c *cli) *cobra.Command {
	var file string
	var inline, logins bool
	cmd := &cobra.Command{
		Use:   "update -f FILE",
		Short: "Change credentials, stores and targets to what a YAML file says",
		Long: `Change what a YAML file describes to what it says. Each must be there already. What the file
does not name goes back to its default. Logins are sent where something else differs too, or
with --logins: the server does not give them out to be compared.`,
		Example:               "  rotunda credential update -f orders-db.yaml",
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("file"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := c.documents(file, documentKinds...)
			if err != nil {
				return err
			}
			return c.apply(cmd.Context(), docs, func(a *applier) { a.update, a.logins, a.inline = true, logins, inline })
		},
	}
	manifestFlags(cmd, &file, &inline)
	cmd.Flags().BoolVar(&logins, "logins", false, "send logins again also where nothing else differs")
	return cmd
}

func newCredentialList(c *cli) *cobra.Command {
	var limit int
	var req rotundav1.ListCredentialsRequest
	var labels metadataFlag
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List credentials by name",
		Example:           "  rotunda credential list\n  rotunda credential list --store vault-prod --label tier=1\n  rotunda credential list --drifted",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			req.Labels = labels.set
			res := &rotundav1.ListCredentialsResponse{}
			res.Credentials, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Credential, string, error) {
				req.PageSize, req.PageToken = size, token
				r, err := call(cmd.Context(), to, to.credentials.ListCredentials, &req, "")
				return r.GetCredentials(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.credentials(res.GetCredentials()) })
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&req.Target, "target", "", "only those of this target")
	f.StringVar(&req.Store, "store", "", "only those that are read in this store")
	f.Var(&labels, "label", "only those with this label, as name=value, once for each")
	f.BoolVar(&req.Drifted, "drifted", false, "only those that drifted")
	c.systemFlags(cmd)
	limitFlag(cmd, &limit, 1000)
	return cmd
}

// systemFlags suggests names for --store and --target.
func (c *cli) systemFlags(cmd *cobra.Command) {
	for _, kind := range []string{"store", "target"} {
		k := &systemCommands{c: c, kind: kind}
		_ = cmd.RegisterFlagCompletionFunc(kind, c.ask(func(ctx context.Context, to *conn, _ []string) ([]string, error) { return k.names(ctx, to) }))
	}
	_ = cmd.RegisterFlagCompletionFunc("label", cobra.NoFileCompletions)
}

func newCredentialShow(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME",
		Aliases: []string{"get"},
		Short:   "Show a credential: current and previous value, next rotation, evidence, drift",
		Long: `Show a credential: which value consumers read, until when the previous one is accepted, when
the next rotation is, what is known about the use of the old value, whether store and target
agree. Values are never shown.`,
		Example:           "  rotunda credential show orders-db\n  rotunda credential show orders-db -o json",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneCredential(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.credentials.GetCredential, &rotundav1.GetCredentialRequest{Credential: args[0]}, "")
			if err != nil {
				return err
			}
			var last *rotundav1.Rotation
			if c.output.value == "table" && res.GetRotation() == nil {
				list, _, err := listRotations(cmd.Context(), to, &rotundav1.ListRotationsRequest{Credential: args[0]}, 1)
				if err != nil {
					return err
				}
				if len(list) > 0 {
					last = list[0]
				}
			}
			return c.print(res, func(p *page) { p.credential(res, last) })
		},
	}
}

func newPreflight(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "preflight NAME",
		Short: "Tell everything that would fail later",
		Long: `Ask target and stores for everything that would make a rotation fail: permissions, password
policy, a credential that logs in to its own target, quotas, clocks. Nothing that consumers
read is changed. Exits with 1 if a rotation would fail.`,
		Example:           "  rotunda credential preflight orders-db",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneCredential(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.credentials.PreflightCredential, &rotundav1.PreflightCredentialRequest{Credential: args[0]}, "")
			if err != nil {
				return err
			}
			if err := c.print(res, func(p *page) { p.checks(res.GetFindings()) }); err != nil {
				return err
			}
			return checksError(args[0], res.GetFindings())
		},
	}
}

func newCredentialPlan(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "plan NAME",
		Short: "Show the exact steps and effects of the next rotation; changes nothing",
		Long: `Show what the next rotation would do, effect by effect: where, what, and what consumers
notice of it. Nothing is changed. Exits with 1 if something stands in its way.`,
		Example:           "  rotunda credential plan orders-db",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneCredential(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.credentials.PlanCredential, &rotundav1.PlanCredentialRequest{Credential: args[0]}, "")
			if err != nil {
				return err
			}
			if err := c.print(res, func(p *page) { p.plannedEffects(res) }); err != nil {
				return err
			}
			n := len(res.GetObstacles())
			for _, e := range res.GetEffects() {
				if e.GetBlocked() != "" {
					n++
				}
			}
			if n > 0 {
				return fmt.Errorf("%s: a rotation would stop: see above for what to do about %s", args[0], counted(int64(n), "obstacle"))
			}
			return nil
		},
	}
}

func newCredentialHistory(c *cli) *cobra.Command {
	var limit int
	var failed, open bool
	cmd := &cobra.Command{
		Use:               "history [NAME]",
		Short:             "List the rotations of a credential, or of all, newest first",
		Example:           "  rotunda credential history orders-db\n  rotunda credential history --failed",
		Args:              optional("NAME"),
		ValidArgsFunction: c.oneCredential(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListRotationsResponse{}
			res.Rotations, res.NextPageToken, err = listRotations(cmd.Context(), to, &rotundav1.ListRotationsRequest{Credential: first(args), Failed: failed, Open: open}, limit)
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.rotations(res.GetRotations(), len(args) == 0) })
		},
	}
	cmd.Flags().BoolVar(&failed, "failed", false, "only those that wait for a person")
	cmd.Flags().BoolVar(&open, "open", false, "only those that have not ended")
	limitFlag(cmd, &limit, 50)
	return cmd
}

func listRotations(ctx context.Context, to *conn, req *rotundav1.ListRotationsRequest, limit int) ([]*rotundav1.Rotation, string, error) {
	return collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Rotation, string, error) {
		req.PageSize, req.PageToken = size, token
		r, err := call(ctx, to, to.rotations.ListRotations, req, "")
		return r.GetRotations(), r.GetNextPageToken(), err
	})
}

// newCredentialPause is the command pause, or resume.
func newCredentialPause(c *cli, pause bool) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:               "resume NAME",
		Short:             "Undo pause",
		Example:           "  rotunda credential resume orders-db",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneCredential(),
	}
	if pause {
		cmd.Use, cmd.Short = "pause NAME", "Stop a credential's schedule until resume; a rotation that is under way goes on"
		cmd.Example = "  rotunda credential pause orders-db --reason \"the database moves tonight\""
	}
	reasonFlag(cmd, &reason)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		if pause {
			res, err := call(cmd.Context(), to, to.credentials.PauseCredential, &rotundav1.PauseCredentialRequest{Credential: args[0], Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.credentials([]*rotundav1.Credential{res.GetCredential()}) })
		}
		res, err := call(cmd.Context(), to, to.credentials.ResumeCredential, &rotundav1.ResumeCredentialRequest{Credential: args[0], Reason: reason}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.credentials([]*rotundav1.Credential{res.GetCredential()}) })
	}
	return cmd
}

func newProbe(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "probe NAME",
		Short: "Compare now what the stores serve, what the target accepts, and what was set",
		Long: `Compare now what the stores serve, what the target accepts, and what Rotunda set; between
rotations this is done every hour, or as probe says. Exits with 1 if they do not agree.`,
		Example:           "  rotunda credential probe orders-db",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneCredential(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.credentials.ProbeCredential, &rotundav1.ProbeCredentialRequest{Credential: args[0]}, "")
			if err != nil {
				return err
			}
			x := res.GetCredential()
			if err := c.print(res, func(p *page) { p.probed(res) }); err != nil {
				return err
			}
			if !res.GetComplete() && x.GetDrift() == rotundav1.Drift_DRIFT_UNSPECIFIED {
				return errors.New("not everything could be asked, so it is not known whether they agree")
			}
			if x.GetDrift() != rotundav1.Drift_DRIFT_UNSPECIFIED {
				return errors.New("store, target and Rotunda do not agree")
			}
			return nil
		},
	}
}

func newCredentialDelete(c *cli) *cobra.Command {
	var reason string
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Forget a credential; its value stays as it is, with the target and in the stores",
		Long: `Forget a credential and its sealed values. The target accepts what it accepts, and the stores
serve what they serve. At a terminal you are asked to type its name.`,
		Example:           "  rotunda credential delete orders-db --reason \"the service is gone\"",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.oneCredential(),
	}
	reasonFlag(cmd, &reason)
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes && !c.person {
			return usagef("nobody is here to ask: give --yes")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		if !yes {
			if err := c.confirm(cmd.Context(), "Rotunda will no longer know the value of "+args[0]+" and can't rotate it again. This can't be undone.", args[0]); err != nil {
				return err
			}
		}
		res, err := call(cmd.Context(), to, to.credentials.DeleteCredential, &rotundav1.DeleteCredentialRequest{Credential: args[0], Reason: reason}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.line("credential %s is forgotten", args[0]) })
	}
	return cmd
}

func newForecast(c *cli) *cobra.Command {
	var days int32
	cmd := c.client(&cobra.Command{
		Use:   "forecast [--days N]",
		Short: "Count the scheduled rotations ahead, by hour, store and target, against quotas",
		Long: `Count the rotations that schedules will begin in the days ahead: in all, the busiest hour of
each store and target, and whether its quota has room for them. Exits with 1 if a quota has not.`,
		Example:               "  rotunda forecast --days 90",
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
	})
	cmd.Flags().Int32Var(&days, "days", 90, "how far to look ahead (1 to 366)")
	_ = cmd.RegisterFlagCompletionFunc("days", cobra.NoFileCompletions)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if days < 1 || days > 366 {
			return usagef("--days %d is outside 1 to 366", days)
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.credentials.Forecast, &rotundav1.ForecastRequest{Days: days}, "")
		if err != nil {
			return err
		}
		if err := c.print(res, func(p *page) { p.forecast(res, days) }); err != nil {
			return err
		}
		for _, s := range res.GetSystems() {
			if s.GetQuota() > 0 && s.GetPeak() > s.GetQuota() {
				return fmt.Errorf("%s %s has no room for its busiest hour: spread the schedules with jitter, or move some", s.GetSort(), s.GetName())
			}
		}
		return nil
	}
	return cmd
}

// oneCredential suggests a credential as the only argument.
func (c *cli) oneCredential() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		return credentialNames(ctx, to)
	})
}

func credentialNames(ctx context.Context, to *conn) ([]string, error) {
	res, err := call(ctx, to, to.credentials.ListCredentials, &rotundav1.ListCredentialsRequest{PageSize: maxPage}, "")
	var out []string
	for _, x := range res.GetCredentials() {
		out = append(out, cobra.CompletionWithDesc(clean(x.GetName()), clean(x.GetSpec().GetTarget())))
	}
	return out, err
}

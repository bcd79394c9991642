package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newPepper(c *cli) *cobra.Command {
	return c.client(newGroup("pepper", "Rotate the pepper under which keys are hashed: list, rotate, stragglers, retire",
		newPepperList(c), newPepperRotate(c), newPepperStragglers(c), newPepperRetire(c)))
}

func newPepperList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "List the generations, and how many keys and tokens still need each",
		Example:           "  rotunda pepper list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.peppers.ListPeppers, &rotundav1.ListPeppersRequest{}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.peppers(res.GetPeppers()) })
		},
	}
}

func newPepperRotate(c *cli) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new generation; keys move to it when they are next used",
		Long: `Make a new generation of the pepper. New keys and tokens are hashed under it at once, and
every other one moves to it when it is next used. pepper stragglers shows which have not, and
pepper retire destroys an old generation that nothing needs any more.`,
		Example:           "  rotunda pepper rotate --reason \"yearly\"",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.peppers.RotatePepper, &rotundav1.RotatePepperRequest{Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) {
				p.line("generation %d is the newest: keys and tokens move to it when they are next used", res.GetPepper().GetGeneration())
				p.line("look next  %s", c.command("pepper list"))
			})
		},
	}
	reasonFlag(cmd, &reason)
	return cmd
}

func newPepperStragglers(c *cli) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "stragglers GENERATION",
		Short: "List the usable keys and tokens that still need a generation",
		Long: `List the usable keys and tokens that still need a generation: they were not used since a
newer one was made. Roll or revoke them, or wait until they are used.`,
		Example:           "  rotunda pepper stragglers 1",
		Args:              arguments("GENERATION"),
		ValidArgsFunction: c.generations(),
		RunE: func(cmd *cobra.Command, args []string) error {
			gen, err := generation(args[0])
			if err != nil {
				return err
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListStragglersResponse{}
			res.Stragglers, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Straggler, string, error) {
				r, err := call(cmd.Context(), to, to.peppers.ListStragglers, &rotundav1.ListStragglersRequest{Generation: gen, PageSize: size, PageToken: token}, "")
				return r.GetStragglers(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.stragglers(gen, res.GetStragglers()) })
		},
	}
	limitFlag(cmd, &limit, 200)
	return cmd
}

func newPepperRetire(c *cli) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "retire GENERATION",
		Short: "Destroy a generation that no usable key or token needs",
		Long: `Destroy a generation. It is refused while a usable key or token needs it (pepper stragglers
shows which), and for the newest. There is no way back.`,
		Example:           "  rotunda pepper retire 1 --reason \"yearly\"",
		Args:              arguments("GENERATION"),
		ValidArgsFunction: c.generations(),
		RunE: func(cmd *cobra.Command, args []string) error {
			gen, err := generation(args[0])
			if err != nil {
				return err
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.peppers.RetirePepper, &rotundav1.RetirePepperRequest{Generation: gen, Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.line("generation %d is destroyed", res.GetPepper().GetGeneration()) })
		},
	}
	reasonFlag(cmd, &reason)
	return cmd
}

func generation(s string) (int64, error) {
	gen, err := strconv.ParseInt(s, 10, 64)
	if err != nil || gen < 1 {
		return 0, usagef("GENERATION %q is not a number as pepper list shows it", clipText(s))
	}
	return gen, nil
}

// generations suggests those that live and are not the newest.
func (c *cli) generations() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		res, err := call(ctx, to, to.peppers.ListPeppers, &rotundav1.ListPeppersRequest{}, "")
		var out []string
		for i, p := range res.GetPeppers() {
			if i > 0 && p.GetRetiredAt() == nil {
				out = append(out, cobra.CompletionWithDesc(formatInt(p.GetGeneration()), counted(p.GetKeys(), "key")+", "+counted(p.GetTokens(), "token")))
			}
		}
		return out, err
	})
}

func (p *page) peppers(list []*rotundav1.Pepper) {
	rows := make([][]string, len(list))
	for i, x := range list {
		state, advice := "current", ""
		switch {
		case x.GetRetiredAt() != nil:
			state = "retired"
		case i > 0 && x.GetKeys()+x.GetTokens() == 0:
			state, advice = "old", "nothing needs it: "+p.cli.command("pepper retire "+formatInt(x.GetGeneration()))
		case i > 0:
			state, advice = "old", "what needs it: "+p.cli.command("pepper stragglers "+formatInt(x.GetGeneration()))
		}
		rows[i] = []string{formatInt(x.GetGeneration()), state, p.when(x.GetCreatedAt()), thousands(x.GetKeys()), thousands(x.GetTokens()), advice}
	}
	p.table([]string{"GENERATION", "STATE", "CREATED", "KEYS", "TOKENS", "ADVICE"}, rows)
}

func (p *page) stragglers(gen int64, list []*rotundav1.Straggler) {
	if len(list) == 0 {
		p.line("nothing needs generation %d any more: %s", gen, p.cli.command("pepper retire "+formatInt(gen)))
		return
	}
	rows := make([][]string, len(list))
	for i, s := range list {
		rows[i] = []string{s.GetKind(), s.GetId(), s.GetName(), firstOf(s.GetPartner(), "none"), p.when(s.GetLastUsedAt()), p.when(s.GetExpiresAt())}
	}
	p.table([]string{"KIND", "ID", "NAME", "PARTNER", "LAST USED", "EXPIRES"}, rows)
}

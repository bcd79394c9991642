package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// completionTime is how long a person waits for a completion. When the server
// says nothing useful by then, there are no suggestions, and no error either:
// it would land in the middle of the command line.
const completionTime = 2 * time.Second

type suggest = func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective)

// complete suggests fixed values for a flag.
func (c *cli) complete(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// ask makes a suggestion of the server's answer.
func (c *cli) ask(f func(ctx context.Context, to *conn, args []string) ([]string, error)) suggest {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		to, err := c.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		to.timeout = min(to.timeout, completionTime)
		values, err := f(ctx, to, args)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return values, cobra.ShellCompDirectiveNoFileComp
	}
}

// keysetThenKid suggests a keyset's name, then, when kids is set, one of its kids.
func (c *cli) keysetThenKid(kids bool) suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		switch {
		case len(args) == 0:
			return keysetNames(ctx, to)
		case len(args) == 1 && kids:
			res, err := call(ctx, to, to.keysets.ListKeys, &rotundav1.ListKeysRequest{Name: args[0]}, "")
			var out []string
			for _, k := range res.GetKeys() {
				out = append(out, cobra.CompletionWithDesc(clean(k.GetKid()), stateWord(k.GetState())))
			}
			return out, err
		default:
			return nil, nil
		}
	})
}

func keysetNames(ctx context.Context, to *conn) ([]string, error) {
	res, err := call(ctx, to, to.keysets.ListKeysets, &rotundav1.ListKeysetsRequest{PageSize: maxPage}, "")
	var out []string
	for _, k := range res.GetKeysets() {
		out = append(out, cobra.CompletionWithDesc(clean(k.GetName()), clean(k.GetIssuer())))
	}
	return out, err
}

func (c *cli) profileNames() suggest {
	return c.ask(func(ctx context.Context, to *conn, _ []string) ([]string, error) {
		res, err := call(ctx, to, to.keysets.ListProfiles, &rotundav1.ListProfilesRequest{}, "")
		var out []string
		for _, p := range res.GetProfiles() {
			out = append(out, cobra.CompletionWithDesc(clean(p.GetName()), clean(p.GetTitle())))
		}
		return out, err
	})
}

func (c *cli) tokenIDs() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		res, err := call(ctx, to, to.tokens.ListTokens, &rotundav1.ListTokensRequest{PageSize: maxPage}, "")
		var out []string
		for _, t := range res.GetTokens() {
			if t.GetState() == "active" {
				out = append(out, cobra.CompletionWithDesc(clean(t.GetId()), clean(t.GetName())))
			}
		}
		return out, err
	})
}

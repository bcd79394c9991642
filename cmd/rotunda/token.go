package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

var roles = []string{"admin", "operator", "auditor", "gateway", "signer", "partner", "reader"}

func newToken(c *cli) *cobra.Command {
	return c.client(newGroup("token", "Manage access tokens: create, list, revoke",
		newTokenCreate(c), newTokenList(c), newTokenRevoke(c), newWhoAmI(c)))
}

func newTokenCreate(c *cli) *cobra.Command {
	role := choice{allowed: roles}
	var keysets, cidrs, paths []string
	var partner string
	var life durationFlag
	cmd := &cobra.Command{
		Use:   "create [NAME] --role ROLE [flags]",
		Short: "Make an access token and print its value, once",
		Long: `Make an access token. Its value goes to stdout, this once; the server keeps only a keyed
hash of it. What else there is to know goes to stderr, the token's id among it: 16 letters
and digits, by which it is listed, revoked and named in the trail.

  admin     everything, tokens included
  operator  keysets: create, change, rotate, revoke, sign
  auditor   reads everything, the trail included
  gateway   reads JWKS documents without a rate limit, and watches them; verifies API keys
            and signed requests
  signer    signs with the keysets it is scoped to
  partner   manages the API keys and request secrets of one partner, which --partner names, and
            sees nothing else; its NAME may be left out, and is the partner's then
  reader    reads values from the built-in store, at the paths that --path names`,
		Example: `  rotunda token create edge-1 --role gateway --cidr 10.0.0.0/8
  (umask 077; rotunda token create orders --role signer --keyset payments --expires-in 90d > orders.token)
  rotunda token create orders --role reader --path "orders/*"
  export ROTUNDA_TOKEN=$(rotunda token create --role partner --partner acme --expires-in 90d)`,
		Args:                  optional("NAME"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("role"),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&role, "role", "what its holder may do")
	c.partnerFlag(cmd, &partner, "with --role partner: the partner that it manages")
	f.StringArrayVar(&paths, "path", nil, "with --role reader: a path that it may read, whole or ending in /*, once for each")
	f.StringArrayVar(&keysets, "keyset", nil, "a keyset it may use, once for each (default: all)")
	f.StringArrayVar(&cidrs, "cidr", nil, "addresses from which it is accepted, once for each (default: any)")
	f.Var(&life, "expires-in", "life of the token (default: no end)")
	key := idempotency(cmd)
	c.complete(cmd, "role", roles...)
	_ = cmd.RegisterFlagCompletionFunc("path", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("keyset", c.ask(func(ctx context.Context, to *conn, _ []string) ([]string, error) { return keysetNames(ctx, to) }))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case role.value == "partner" && partner == "":
			return usagef("--role partner needs a --partner: the one that it manages")
		case role.value != "partner" && partner != "":
			return usagef("--partner goes with --role partner only")
		case role.value == "reader" && len(paths) == 0:
			return usagef("--role reader needs a --path: what it may read, as orders/db or orders/*")
		case role.value != "reader" && len(paths) > 0:
			return usagef("--path goes with --role reader only")
		case partner == "" && len(args) == 0:
			return usagef("NAME is missing")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.tokens.CreateToken, &rotundav1.CreateTokenRequest{
			Name: firstOf(first(args), partner), Partner: partner, Role: rotundav1.Role(rotundav1.Role_value["ROLE_"+strings.ToUpper(role.value)]),
			Keysets: keysets, Paths: paths, Cidrs: cidrs, ExpiresIn: life.proto(),
		}, key())
		if err != nil {
			return err
		}
		c.complain("token %s (%s, %s); this is the only time that its value is shown", res.GetToken().GetId(), res.GetToken().GetName(), roleWord(res.GetToken()))
		return c.print(res, func(p *page) { p.line("%s", res.GetValue()) })
	}
	return cmd
}

func newTokenList(c *cli) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List access tokens, newest first, without their values",
		Example:           "  rotunda token list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListTokensResponse{}
			res.Tokens, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Token, string, error) {
				r, err := call(cmd.Context(), to, to.tokens.ListTokens, &rotundav1.ListTokensRequest{PageSize: size, PageToken: token}, "")
				return r.GetTokens(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.tokens(res.GetTokens()) })
		},
	}
	limitFlag(cmd, &limit, 200)
	return cmd
}

func newTokenRevoke(c *cli) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "End an access token's life for good",
		Long: `End an access token's life for good. ID is its 16 letters and digits, as token list
shows them; they are no secret.`,
		Example:           "  rotunda token revoke 4fKq3w2xYd5sRt9u --reason key_compromise",
		Args:              arguments("ID"),
		ValidArgsFunction: c.tokenIDs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.tokens.RevokeToken, &rotundav1.RevokeTokenRequest{Id: args[0], Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.tokens([]*rotundav1.Token{res.GetToken()}) })
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the trail: one of "+strings.Join(reasons, ", "))
	c.complete(cmd, "reason", reasons...)
	return cmd
}

func newWhoAmI(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "whoami",
		Short:             "Show who the server takes you for",
		Example:           "  rotunda token whoami",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.tokens.WhoAmI, &rotundav1.WhoAmIRequest{}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.tokens([]*rotundav1.Token{res.GetToken()}) })
		},
	}
}

// reachOf is which keysets a token may use.
func reachOf(t *rotundav1.Token) string {
	if t.GetRole() == rotundav1.Role_ROLE_PARTNER {
		return "none"
	}
	if t.GetRole() == rotundav1.Role_ROLE_READER {
		return "none; reads " + strings.Join(t.GetPaths(), " ")
	}
	return firstOf(strings.Join(t.GetKeysets(), " "), "all")
}

func roleWord(t *rotundav1.Token) string { return word(t.GetRole().String(), "ROLE_") }

func (p *page) tokens(list []*rotundav1.Token) {
	rows := make([][]string, len(list))
	for i, t := range list {
		rows[i] = []string{
			t.GetId(), t.GetName(), strings.TrimSpace(roleWord(t) + " " + t.GetPartner()), t.GetState(), p.when(t.GetExpiresAt()), p.when(t.GetLastUsedAt()),
			reachOf(t), firstOf(strings.Join(t.GetCidrs(), " "), "any"), t.GetReason(),
		}
	}
	p.table([]string{"ID", "NAME", "ROLE", "STATE", "EXPIRES", "LAST USED", "KEYSETS", "ADDRESSES", "REASON"}, rows)
}

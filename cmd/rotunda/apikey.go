package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newKey(c *cli) *cobra.Command {
	return c.client(newGroup("key", "Keep API keys: create, verify, roll, revoke, import",
		newKeyCreate(c), newKeyVerify(c), newKeyList(c), newKeyGet(c), newKeyUpdate(c), newKeyRoll(c),
		newKeySuspend(c, true), newKeySuspend(c, false), newKeyRevoke(c), newKeyImport(c)))
}

// grantFlags are what an API key and a request secret both may have.
type grantFlags struct {
	scopes, cidrs listFlags
	rate          rateFlags
	metadata      metadataFlag
}

func newGrantFlags() *grantFlags {
	return &grantFlags{scopes: listFlags{name: "scope"}, cidrs: listFlags{name: "cidr"}}
}

func (g *grantFlags) bind(c *cli, cmd *cobra.Command, changing bool) {
	f := cmd.Flags()
	g.scopes.bind(c, cmd, changing, "what its holder may do: a scope of the partner", c.scopes(cmd))
	g.cidrs.bind(c, cmd, changing, "addresses from which it is accepted, as 203.0.113.0/24 (default: any)", nil)
	g.rate.bind(f)
	f.Var(&g.metadata, "metadata", "something to remember, as name=value; once for each")
	for _, n := range []string{"rate", "burst", "metadata"} {
		_ = cmd.RegisterFlagCompletionFunc(n, cobra.NoFileCompletions)
	}
}

func newKeyCreate(c *cli) *cobra.Command {
	var partner, name, env string
	class := choice{allowed: []string{"secret", "publishable"}}
	var life durationFlag
	g := newGrantFlags()
	cmd := &cobra.Command{
		Use:   "create --name NAME [--scope SCOPE …] [flags]",
		Short: "Make an API key and print its value, once",
		Long: `Make an API key. Its value goes to stdout, this once; the server keeps only a keyed hash
of it. What else there is to know goes to stderr, the key's id among it, by which it is
listed, rolled, revoked and named in the trail.

A publishable key may be in a browser or an app: it has scopes that the partner declared
publishable, and no others.`,
		Example: `  KEY=$(rotunda key create --name ci --scope orders:read --expires-in 2160h --cidr 203.0.113.0/24 --rate 100/s)
  rotunda key create --partner acme --name checkout --class publishable --scope catalog:read --env test`,
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("name"),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&name, "name", "", "what people call it")
	g.bind(c, cmd, false)
	f.Var(&life, "expires-in", "life of the key (default: the partner's longest, or no end)")
	f.StringVar(&env, "env", "", "environment, which is part of the value: lower-case letters and digits (default live)")
	f.Var(&class, "class", "where it may be (default secret)")
	c.partnerFlag(cmd, &partner, ownPartner)
	key := idempotency(cmd)
	c.complete(cmd, "class", class.allowed...)
	c.complete(cmd, "env", "live", "test")
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		limit, err := g.rate.of(f, nil)
		if err != nil {
			return err
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.keys.CreateApiKey, &rotundav1.CreateApiKeyRequest{
			Partner: partner, Name: name, Environment: env, Class: rotundav1.KeyClass(rotundav1.KeyClass_value["KEY_CLASS_"+strings.ToUpper(class.value)]),
			Scopes: g.scopes.all, Cidrs: g.cidrs.all, RateLimit: limit, Metadata: g.metadata.set, ExpiresIn: life.proto(),
		}, key())
		if err != nil {
			return err
		}
		c.complain("key %s; this is the only time that its value is shown", keyText(c.newPage(), res.GetKey()))
		return c.print(res, func(p *page) { p.line("%s", res.GetValue()) })
	}
	return cmd
}

// keyText names a key in a sentence.
func keyText(p *page, k *rotundav1.ApiKey) string {
	text := k.GetId() + " (" + k.GetName() + ") of " + k.GetPartner()
	if k.GetExpiresAt() != nil {
		text += ", ends " + p.when(k.GetExpiresAt())
	}
	return text
}

func newKeyList(c *cli) *cobra.Command {
	var limit int
	var partner string
	var ended bool
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List API keys, newest first, without their values",
		Example:           "  rotunda key list\n  rotunda key list --partner acme --ended",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListApiKeysResponse{}
			res.Keys, res.NextPageToken, err = listKeys(cmd.Context(), to, partner, ended, limit)
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.keys(res.GetKeys()) })
		},
	}
	c.partnerFlag(cmd, &partner, "only this partner's (default: all that the token may see)")
	cmd.Flags().BoolVar(&ended, "ended", false, "revoked and retired ones too")
	limitFlag(cmd, &limit, 200)
	return cmd
}

func listKeys(ctx context.Context, to *conn, partner string, ended bool, limit int) ([]*rotundav1.ApiKey, string, error) {
	return collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.ApiKey, string, error) {
		r, err := call(ctx, to, to.keys.ListApiKeys, &rotundav1.ListApiKeysRequest{Partner: partner, Ended: ended, PageSize: size, PageToken: token}, "")
		return r.GetKeys(), r.GetNextPageToken(), err
	})
}

func newKeyGet(c *cli) *cobra.Command {
	var partner string
	cmd := &cobra.Command{
		Use:               "get KEY_ID",
		Aliases:           []string{"show"},
		Short:             "Show what is known of an API key, but its value",
		Example:           "  rotunda key get 4fKq3w2xYd5sRt9u",
		Args:              arguments("KEY_ID"),
		ValidArgsFunction: c.keyIDs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.keys.GetApiKey, &rotundav1.GetApiKeyRequest{Partner: partner, Id: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.apiKey(res.GetKey()) })
		},
	}
	c.partnerFlag(cmd, &partner, anyPartner)
	return cmd
}

func newKeyUpdate(c *cli) *cobra.Command {
	var partner, name string
	g := newGrantFlags()
	cmd := &cobra.Command{
		Use:   "update KEY_ID [flags]",
		Short: "Change a key's name, scopes, addresses, rate limit or metadata",
		Long: `Change a key. What no flag names stays as it is. A key's life never grows: roll it to get
a longer one.`,
		Example: `  rotunda key update 4fKq3w2xYd5sRt9u --remove-scope orders:write --rate 10/s
  rotunda key update 4fKq3w2xYd5sRt9u --add-cidr 2001:db8::/32 --metadata owner=ann`,
		Args:                  arguments("KEY_ID"),
		ValidArgsFunction:     c.keyIDs(),
		DisableFlagsInUseLine: true,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&name, "name", "", "what people call it")
	g.bind(c, cmd, true)
	c.partnerFlag(cmd, &partner, anyPartner)
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if nothingGiven(f, "partner") {
			return usagef("nothing to change: give what is to be another, as --rate or --remove-scope")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		got, err := call(cmd.Context(), to, to.keys.GetApiKey, &rotundav1.GetApiKeyRequest{Partner: partner, Id: args[0]}, "")
		if err != nil {
			return err
		}
		k := got.GetKey()
		req := &rotundav1.UpdateApiKeyRequest{Partner: partner, Id: args[0], Version: k.GetVersion(), Name: k.GetName(), Metadata: g.metadata.apply(k.GetMetadata())}
		if f.Changed("name") {
			req.Name = name
		}
		if req.Scopes, err = g.scopes.apply(f, k.GetScopes()); err != nil {
			return err
		}
		if req.Cidrs, err = g.cidrs.apply(f, k.GetCidrs()); err != nil {
			return err
		}
		if req.RateLimit, err = g.rate.of(f, k.GetRateLimit()); err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.keys.UpdateApiKey, req, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.apiKey(res.GetKey()) })
	}
	return cmd
}

// nothingGiven reports whether no flag of a command itself was given but for those named.
func nothingGiven(f *pflag.FlagSet, but ...string) bool {
	nothing := true
	f.VisitAll(func(x *pflag.Flag) {
		for _, n := range append(but, "output", "server", "token", "token-file", "data-dir", "ca-file", "insecure", "timeout") {
			if x.Name == n {
				return
			}
		}
		nothing = nothing && !x.Changed
	})
	return nothing
}

// rollFlags are how something is rolled.
type rollFlags struct{ grace, quiet, life durationFlag }

func (r *rollFlags) bind(f *pflag.FlagSet) {
	f.SortFlags = false
	f.Var(&r.grace, "grace", "how long the old one keeps working; 0 ends it at once (default 72h)")
	f.Var(&r.quiet, "quiet", "end the grace once the old one was not used for so long, 5m at least (default: by the clock only)")
	f.Var(&r.life, "expires-in", "life of the new one (default: it ends when the old one would have)")
}

func newKeyRoll(c *cli) *cobra.Command {
	var partner string
	var r rollFlags
	cmd := &cobra.Command{
		Use:   "roll KEY_ID [--grace DURATION] [flags]",
		Short: "Replace a key by a new one and print its value, once",
		Long: `Make a successor with the same attributes. Its value goes to stdout, this once. The old
key keeps working for the grace, marked retiring, and never longer than it would have lived.
With --quiet the grace ends earlier by itself, on the evidence that nobody uses the old key.`,
		Example: `  rotunda key roll 4fKq3w2xYd5sRt9u --grace 72h
  KEY=$(rotunda key roll 4fKq3w2xYd5sRt9u --grace 30d --quiet 24h --expires-in 90d)`,
		Args:                  arguments("KEY_ID"),
		ValidArgsFunction:     c.keyIDs(),
		DisableFlagsInUseLine: true,
	}
	r.bind(cmd.Flags())
	c.partnerFlag(cmd, &partner, anyPartner)
	key := idempotency(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.keys.RollApiKey, &rotundav1.RollApiKeyRequest{
			Partner: partner, Id: args[0], Grace: r.grace.proto(), Quiet: r.quiet.proto(), ExpiresIn: r.life.proto(),
		}, key())
		if err != nil {
			return err
		}
		p := c.newPage()
		c.complain("key %s; this is the only time that its value is shown", keyText(p, res.GetKey()))
		old := res.GetOld()
		c.complain("it replaces %s, %s", old.GetId(), graceText(p, old.GetState(), old.GetGraceEndsAt(), old.GetQuiet()))
		return c.print(res, func(p *page) { p.line("%s", res.GetValue()) })
	}
	return cmd
}

// newKeySuspend is the command suspend, or resume.
func newKeySuspend(c *cli, suspend bool) *cobra.Command {
	var partner, reason string
	cmd := &cobra.Command{
		Use:               "resume KEY_ID",
		Short:             "Undo suspend",
		Example:           "  rotunda key resume 4fKq3w2xYd5sRt9u --reason \"it was a false alarm\"",
		Args:              arguments("KEY_ID"),
		ValidArgsFunction: c.keyIDs(),
	}
	if suspend {
		cmd.Use, cmd.Short = "suspend KEY_ID", "Stop a key until resume"
		cmd.Example = "  rotunda key suspend 4fKq3w2xYd5sRt9u --reason \"strange traffic\""
	}
	reasonFlag(cmd, &reason)
	c.partnerFlag(cmd, &partner, anyPartner)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		if suspend {
			res, err := call(cmd.Context(), to, to.keys.SuspendApiKey, &rotundav1.SuspendApiKeyRequest{Partner: partner, Id: args[0], Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.apiKey(res.GetKey()) })
		}
		res, err := call(cmd.Context(), to, to.keys.ResumeApiKey, &rotundav1.ResumeApiKeyRequest{Partner: partner, Id: args[0], Reason: reason}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.apiKey(res.GetKey()) })
	}
	return cmd
}

func newKeyRevoke(c *cli) *cobra.Command {
	var partner, text string
	reason := choice{allowed: reasons}
	cmd := &cobra.Command{
		Use:   "revoke KEY_ID --reason REASON [flags]",
		Short: "End a key for good",
		Long: `End a key for good. It is refused at once by the server that did it, and by the others as
soon as they hear of it. A revoked key never comes back; suspend stops one for a while.`,
		Example: `  rotunda key revoke 4fKq3w2xYd5sRt9u --reason key_compromise
  rotunda key revoke 4fKq3w2xYd5sRt9u --reason cessation_of_operation --text "the shop was closed"`,
		Args:                  arguments("KEY_ID"),
		ValidArgsFunction:     c.keyIDs(),
		DisableFlagsInUseLine: true,
		PreRunE:               need("reason"),
	}
	revokeFlags(c, cmd, &reason, &text)
	c.partnerFlag(cmd, &partner, anyPartner)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.keys.RevokeApiKey, &rotundav1.RevokeApiKeyRequest{Partner: partner, Id: args[0], Reason: revocationReason(reason.value), Text: text}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.apiKey(res.GetKey()) })
	}
	return cmd
}

func revokeFlags(c *cli, cmd *cobra.Command, reason *choice, text *string) {
	cmd.Flags().SortFlags = false
	cmd.Flags().Var(reason, "reason", "why (RFC 5280, section 5.3.1)")
	cmd.Flags().StringVar(text, "text", "", "more about it, for the trail")
	c.complete(cmd, "reason", reasons...)
	_ = cmd.RegisterFlagCompletionFunc("text", cobra.NoFileCompletions)
}

func revocationReason(name string) rotundav1.RevocationReason {
	return rotundav1.RevocationReason(rotundav1.RevocationReason_value["REVOCATION_REASON_"+strings.ToUpper(name)])
}

// keyIDs suggests the id of a key.
func (c *cli) keyIDs() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		res, err := call(ctx, to, to.keys.ListApiKeys, &rotundav1.ListApiKeysRequest{PageSize: maxPage}, "")
		var out []string
		for _, k := range res.GetKeys() {
			out = append(out, cobra.CompletionWithDesc(clean(k.GetId()), clean(k.GetName())+" of "+clean(k.GetPartner())+", "+keyState(k.GetState())))
		}
		return out, err
	})
}

// scopes suggests a scope of the partner that --partner names, or of the caller's.
func (c *cli) scopes(cmd *cobra.Command) suggest {
	return c.ask(func(ctx context.Context, to *conn, _ []string) ([]string, error) {
		partner, _ := cmd.Flags().GetString("partner")
		res, err := call(ctx, to, to.partners.GetPartner, &rotundav1.GetPartnerRequest{Partner: partner}, "")
		var out []string
		for _, s := range res.GetPartner().GetScopes() {
			out = append(out, clean(s))
		}
		return out, err
	})
}

package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

func newPartner(c *cli) *cobra.Command {
	return c.client(newGroup("partner", "Keep partners: who may hold API keys and request secrets",
		newPartnerCreate(c), newPartnerGet(c), newPartnerList(c), newPartnerUpdate(c),
		newPartnerSuspend(c, true), newPartnerSuspend(c, false)))
}

// partnerFlags are what may be said of a partner.
type partnerFlags struct {
	scopes, publishable, components listFlags
	maxKeys                         int32
	maxTTL, maxAge, skew            durationFlag
	noMaxTTL                        bool
	tag                             string
	metadata                        metadataFlag
}

func newPartnerFlags() *partnerFlags {
	return &partnerFlags{scopes: listFlags{name: "scope"}, publishable: listFlags{name: "publishable-scope"}, components: listFlags{name: "signing-component"}}
}

func (pf *partnerFlags) bind(c *cli, cmd *cobra.Command, changing bool) {
	f := cmd.Flags()
	f.SortFlags = false
	pf.scopes.bind(c, cmd, changing, "a scope that its keys may have", nil)
	pf.publishable.bind(c, cmd, changing, "one of them that a publishable key may have", nil)
	f.Int32Var(&pf.maxKeys, "max-keys", 0, "most keys and secrets that are usable at once (default 1000)")
	f.Var(&pf.maxTTL, "max-key-ttl", "longest life of a key (default: no bound)")
	if changing {
		f.BoolVar(&pf.noMaxTTL, "no-max-key-ttl", false, "take the bound of a key's life away")
	}
	f.Var(&pf.metadata, "metadata", "something to remember, as name=value; once for each")
	f.StringArrayVar(&pf.components.all, "signing-component", nil, "a component that a request's signature must cover, as content-digest or @query, once for each (default: @method, @authority, @path, and @query and content-digest of a request that has them)")
	f.Var(&pf.maxAge, "signing-max-age", "oldest signature of a request that is accepted (default 5m)")
	f.Var(&pf.skew, "signing-skew", "how far a signer's clock may be ahead (default 30s)")
	f.StringVar(&pf.tag, "signing-tag", "", "tag that a signature must carry (default: any)")
	for _, n := range []string{"signing-component", "signing-tag", "metadata", "max-keys"} {
		_ = cmd.RegisterFlagCompletionFunc(n, cobra.NoFileCompletions)
	}
}

// apply changes p as the flags say.
func (pf *partnerFlags) apply(f *pflag.FlagSet, p *rotundav1.Partner) (err error) {
	if p.Scopes, err = pf.scopes.apply(f, p.GetScopes()); err != nil {
		return err
	}
	if p.PublishableScopes, err = pf.publishable.apply(f, p.GetPublishableScopes()); err != nil {
		return err
	}
	if f.Changed("max-keys") {
		if pf.maxKeys < 1 {
			return usagef("--max-keys %d must be at least 1; to let nobody in, suspend the partner", pf.maxKeys)
		}
		p.MaxKeys = pf.maxKeys
	}
	if f.Changed("max-key-ttl") {
		if *pf.maxTTL.given == 0 {
			return usagef("--max-key-ttl must be longer than 0")
		}
		p.MaxKeyTtl = pf.maxTTL.proto()
	}
	if pf.noMaxTTL {
		if f.Changed("max-key-ttl") {
			return usagef("give --max-key-ttl or --no-max-key-ttl, not both")
		}
		p.MaxKeyTtl = nil
	}
	p.Metadata = pf.metadata.apply(p.GetMetadata())
	if !f.Changed("signing-component") && !f.Changed("signing-max-age") && !f.Changed("signing-skew") && !f.Changed("signing-tag") {
		return nil
	}
	if p.GetSigningPolicy() == nil {
		p.SigningPolicy = &rotundav1.SigningPolicy{}
	}
	s := p.GetSigningPolicy()
	if s.Components, err = pf.components.apply(f, s.GetComponents()); err != nil {
		return err
	}
	if f.Changed("signing-max-age") {
		s.MaxAge = pf.maxAge.proto()
	}
	if f.Changed("signing-skew") {
		s.Skew = pf.skew.proto()
	}
	if f.Changed("signing-tag") {
		s.Tag = pf.tag
	}
	return nil
}

func newPartnerCreate(c *cli) *cobra.Command {
	pf := newPartnerFlags()
	cmd := &cobra.Command{
		Use:   "create NAME [--scope SCOPE …] [flags]",
		Short: "Make a partner",
		Long: `Make a partner: a company or team that holds API keys and request-signing secrets. Its
name never changes. What its keys may do is a part of its scopes; a scope that is taken away
later is at once taken from all of its keys. A scope is a word of yours, as orders:read.

A partner serves itself with a token of its own: token create --role partner --partner NAME.`,
		Example: `  rotunda partner create acme --scope orders:read --scope orders:write --max-key-ttl 8760h
  rotunda partner create webshop --scope catalog:read --publishable-scope catalog:read --max-keys 20 --metadata crm=4711
  rotunda partner create bank --scope payments:write --signing-component content-digest --signing-max-age 1m --signing-tag payments`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
	}
	pf.bind(c, cmd, false)
	key := idempotency(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p := &rotundav1.Partner{}
		if err := pf.apply(cmd.Flags(), p); err != nil {
			return err
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.partners.CreatePartner, &rotundav1.CreatePartnerRequest{
			Name: args[0], Scopes: p.GetScopes(), PublishableScopes: p.GetPublishableScopes(), MaxKeys: p.GetMaxKeys(),
			MaxKeyTtl: p.GetMaxKeyTtl(), SigningPolicy: p.GetSigningPolicy(), Metadata: p.GetMetadata(),
		}, key())
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.partner(res.GetPartner()) })
	}
	return cmd
}

func newPartnerGet(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "get [NAME]",
		Aliases:           []string{"show"},
		Short:             "Show a partner; with a partner's own token, itself",
		Example:           "  rotunda partner get acme",
		Args:              optional("NAME"),
		ValidArgsFunction: c.onePartner(),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.partners.GetPartner, &rotundav1.GetPartnerRequest{Partner: first(args)}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.partner(res.GetPartner()) })
		},
	}
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func newPartnerList(c *cli) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List partners by name",
		Example:           "  rotunda partner list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListPartnersResponse{}
			res.Partners, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Partner, string, error) {
				r, err := call(cmd.Context(), to, to.partners.ListPartners, &rotundav1.ListPartnersRequest{PageSize: size, PageToken: token}, "")
				return r.GetPartners(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.partners(res.GetPartners()) })
		},
	}
	limitFlag(cmd, &limit, 1000)
	return cmd
}

func newPartnerUpdate(c *cli) *cobra.Command {
	pf := newPartnerFlags()
	cmd := &cobra.Command{
		Use:   "update NAME [flags]",
		Short: "Change a partner's scopes, limits, signing policy or metadata",
		Long: `Change a partner. What no flag names stays as it is. A scope that is taken away is at once
taken from all of its keys; when it comes back, so it does for them.`,
		Example: `  rotunda partner update acme --add-scope orders:refund
  rotunda partner update acme --remove-scope orders:write --max-key-ttl 90d --metadata tier=gold`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     c.onePartner(),
		DisableFlagsInUseLine: true,
	}
	pf.bind(c, cmd, true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if nothingGiven(cmd.Flags()) {
			return usagef("nothing to change: give what is to be another, as --add-scope")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		got, err := call(cmd.Context(), to, to.partners.GetPartner, &rotundav1.GetPartnerRequest{Partner: args[0]}, "")
		if err != nil {
			return err
		}
		p := got.GetPartner()
		if err := pf.apply(cmd.Flags(), p); err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.partners.UpdatePartner, &rotundav1.UpdatePartnerRequest{
			Partner: args[0], Version: p.GetVersion(), Scopes: p.GetScopes(), PublishableScopes: p.GetPublishableScopes(), MaxKeys: p.GetMaxKeys(),
			MaxKeyTtl: p.GetMaxKeyTtl(), SigningPolicy: p.GetSigningPolicy(), Metadata: p.GetMetadata(),
		}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.partner(res.GetPartner()) })
	}
	return cmd
}

// newPartnerSuspend is the command suspend, or resume.
func newPartnerSuspend(c *cli, suspend bool) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:               "resume NAME",
		Short:             "Undo suspend",
		Example:           "  rotunda partner resume acme --reason \"invoice paid\"",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.onePartner(),
	}
	if suspend {
		cmd.Use, cmd.Short = "suspend NAME", "Stop all keys, secrets and tokens of a partner until resume"
		cmd.Example = "  rotunda partner suspend acme --reason \"their CI was broken into\""
	}
	reasonFlag(cmd, &reason)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		if suspend {
			res, err := call(cmd.Context(), to, to.partners.SuspendPartner, &rotundav1.SuspendPartnerRequest{Partner: args[0], Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.partner(res.GetPartner()) })
		}
		res, err := call(cmd.Context(), to, to.partners.ResumePartner, &rotundav1.ResumePartnerRequest{Partner: args[0], Reason: reason}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.partner(res.GetPartner()) })
	}
	return cmd
}

// reasonFlag is free text for the trail.
func reasonFlag(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "why, for the trail: free text")
	_ = cmd.RegisterFlagCompletionFunc("reason", cobra.NoFileCompletions)
}

// partnerFlag names the partner that a command works on.
func (c *cli) partnerFlag(cmd *cobra.Command, partner *string, help string) {
	cmd.Flags().StringVar(partner, "partner", "", help)
	_ = cmd.RegisterFlagCompletionFunc("partner", c.ask(func(ctx context.Context, to *conn, _ []string) ([]string, error) { return partnerNames(ctx, to) }))
}

const (
	ownPartner = "name of the partner (default: the token's own, when it is a partner's)"
	anyPartner = "only if it is this partner's (default: whoever's it is that the token may see)"
)

// onePartner suggests a partner as the only argument.
func (c *cli) onePartner() suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		return partnerNames(ctx, to)
	})
}

func partnerNames(ctx context.Context, to *conn) ([]string, error) {
	res, err := call(ctx, to, to.partners.ListPartners, &rotundav1.ListPartnersRequest{PageSize: maxPage}, "")
	var out []string
	for _, p := range res.GetPartners() {
		out = append(out, cobra.CompletionWithDesc(clean(p.GetName()), partnerState(p)))
	}
	return out, err
}

func partnerState(p *rotundav1.Partner) string { return word(p.GetState().String(), "PARTNER_STATE_") }

// fact writes "  label        text", with room for the longest label of partners and keys.
func (p *page) fact(label, text string) {
	if text != "" {
		p.hang("  "+label+strings.Repeat(" ", max(13-len(label), 1)), text)
	}
}

func (p *page) partner(x *rotundav1.Partner) {
	head := x.GetName() + "  " + partnerState(x)
	if since := x.GetSince(); since != nil && x.GetState() != rotundav1.PartnerState_PARTNER_STATE_ACTIVE {
		head += " since " + stamp(since.AsTime())
	}
	if x.GetReason() != "" {
		head += ": " + x.GetReason()
	}
	p.line("%s", head)
	p.fact("scopes", firstOf(strings.Join(x.GetScopes(), " "), "none: its keys may do nothing"))
	p.fact("publishable", strings.Join(x.GetPublishableScopes(), " "))
	p.fact("keys", "at most "+thousands(int64(x.GetMaxKeys()))+" usable at once; life of a key: "+lifeBound(x))
	p.fact("signatures", signingText(x.GetSigningPolicy()))
	p.fact("metadata", formatMetadata(x.GetMetadata()))
	if x.GetCreatedAt() != nil {
		p.fact("created", p.when(x.GetCreatedAt()))
	}
}

func lifeBound(x *rotundav1.Partner) string {
	if x.GetMaxKeyTtl() == nil {
		return "no bound"
	}
	return "at most " + formatDuration(x.GetMaxKeyTtl().AsDuration())
}

// signingText says which signatures of requests are accepted.
func signingText(s *rotundav1.SigningPolicy) string {
	cover := "@method @authority @path, and @query and content-digest where the request has them"
	if len(s.GetComponents()) > 0 {
		cover = strings.Join(s.GetComponents(), " ")
	}
	text := "cover " + cover + "; at most " + length(s.GetMaxAge(), "5m") + " old, " + length(s.GetSkew(), "30s") + " ahead"
	if s.GetTag() != "" {
		text += "; tag " + s.GetTag()
	}
	return text
}

func (p *page) partners(list []*rotundav1.Partner) {
	if len(list) == 0 {
		p.line("there are no partners: %s makes one", p.cli.command("partner create NAME --scope SCOPE"))
		return
	}
	rows := make([][]string, len(list))
	for i, x := range list {
		rows[i] = []string{x.GetName(), partnerState(x), firstOf(strings.Join(x.GetScopes(), " "), "none"), thousands(int64(x.GetMaxKeys())), length(x.GetMaxKeyTtl(), "no bound"), x.GetReason()}
	}
	p.table([]string{"NAME", "STATE", "SCOPES", "MAX KEYS", "MAX LIFE", "REASON"}, rows)
}

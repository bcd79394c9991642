package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// maxPublicKey is the longest public key that the API takes.
const maxPublicKey = 4096

func newSecret(c *cli) *cobra.Command {
	return c.client(newGroup("secret", "Keep the secrets with which partners sign requests: create, roll, explain",
		newSecretCreate(c), newSecretList(c), newSecretGet(c), newSecretRoll(c),
		newSecretSuspend(c, true), newSecretSuspend(c, false), newSecretRevoke(c), newSecretExplain(c)))
}

// publicKey reads a public key in PEM; nothing when no file is named.
func (c *cli) publicKey(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := c.read(file, maxPublicKey)
	if err != nil {
		return "", fmt.Errorf("reading --public-key: %w", err)
	}
	text := string(b)
	if strings.Contains(text, "PRIVATE KEY-----") {
		return "", fmt.Errorf("reading --public-key: %s holds a private key, which stays with its owner and was not sent: make the public half with: openssl pkey -in %s -pubout", file, quote(file))
	}
	if !strings.Contains(text, "-----BEGIN PUBLIC KEY-----") {
		return "", fmt.Errorf("reading --public-key: %s holds no PEM block PUBLIC KEY (SubjectPublicKeyInfo): make one with: openssl pkey -in key.pem -pubout", file)
	}
	return text, nil
}

func newSecretCreate(c *cli) *cobra.Command {
	var partner, name, env, public string
	var life durationFlag
	g := newGrantFlags()
	cmd := &cobra.Command{
		Use:   "create --name NAME [--public-key FILE] [flags]",
		Short: "Make a request-signing secret and print it, once; or register a public key",
		Long: `Make a secret with which a partner signs its requests (HTTP Message Signatures, RFC 9421,
hmac-sha256, or Standard Webhooks). The secret goes to stdout, this once; its id, which a
signature names as its keyid, goes to stderr. -o json has both.

With --public-key the partner keeps the private half, and nothing secret is made: Ed25519,
P-256, or RSA of 2048 bits at least, and stdout has the id.`,
		Example: `  SECRET=$(rotunda secret create --name orders-signing --scope orders:write)
  rotunda secret create --name orders-signing -o json
  rotunda secret create --partner acme --name ledger --public-key ledger.pub.pem`,
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("name"),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&name, "name", "", "what it is called by: lower-case letters, digits and hyphens; the same for all of its versions")
	f.StringVar(&public, "public-key", "", "PEM file of a public key in place of a secret, - for stdin")
	g.bind(c, cmd, false)
	f.Var(&life, "expires-in", "life of the secret (default: the partner's longest, or no end)")
	f.StringVar(&env, "env", "", "environment (default live)")
	c.partnerFlag(cmd, &partner, ownPartner)
	key := idempotency(cmd)
	c.complete(cmd, "env", "live", "test")
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		limit, err := g.rate.of(f, nil)
		if err != nil {
			return err
		}
		pem, err := c.publicKey(public)
		if err != nil {
			return err
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.secrets.CreateRequestSecret, &rotundav1.CreateRequestSecretRequest{
			Partner: partner, Name: name, Environment: env, Scopes: g.scopes.all, Cidrs: g.cidrs.all,
			RateLimit: limit, Metadata: g.metadata.set, ExpiresIn: life.proto(), PublicKey: pem,
		}, key())
		if err != nil {
			return err
		}
		c.tellSecret(res.GetSecret(), res.GetValue())
		return c.print(res, func(p *page) { p.line("%s", firstOf(res.GetValue(), res.GetSecret().GetId())) })
	}
	return cmd
}

// tellSecret says what there is to know of a new version beside its value.
func (c *cli) tellSecret(s *rotundav1.RequestSecret, value string) {
	text := "secret " + s.GetName() + " of " + s.GetPartner() + " (" + s.GetAlgorithm() + "), keyid " + s.GetId()
	if s.GetExpiresAt() != nil {
		text += ", ends " + c.newPage().when(s.GetExpiresAt())
	}
	if value != "" {
		text += "; this is the only time that it is shown"
	}
	c.complain("%s", text)
}

func newSecretList(c *cli) *cobra.Command {
	var limit int
	var partner string
	var ended bool
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List versions of request secrets, newest first, without their values",
		Example:           "  rotunda secret list\n  rotunda secret list --partner acme --ended",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListRequestSecretsResponse{}
			res.Secrets, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.RequestSecret, string, error) {
				r, err := call(cmd.Context(), to, to.secrets.ListRequestSecrets, &rotundav1.ListRequestSecretsRequest{Partner: partner, Ended: ended, PageSize: size, PageToken: token}, "")
				return r.GetSecrets(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.secrets(res.GetSecrets()) })
		},
	}
	c.partnerFlag(cmd, &partner, "only this partner's (default: all that the token may see)")
	cmd.Flags().BoolVar(&ended, "ended", false, "revoked and retired ones too")
	limitFlag(cmd, &limit, 200)
	return cmd
}

func newSecretGet(c *cli) *cobra.Command {
	var partner string
	cmd := &cobra.Command{
		Use:               "get NAME",
		Aliases:           []string{"show"},
		Short:             "Show the versions under a name, newest first, without their values",
		Example:           "  rotunda secret get orders-signing",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.secretNames(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.secrets.GetRequestSecret, &rotundav1.GetRequestSecretRequest{Partner: partner, Name: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) {
				for i, s := range res.GetVersions() {
					if i > 0 {
						p.line("")
					}
					p.requestSecret(s)
				}
			})
		},
	}
	c.partnerFlag(cmd, &partner, ownPartner)
	return cmd
}

func newSecretRoll(c *cli) *cobra.Command {
	var partner, public string
	var r rollFlags
	cmd := &cobra.Command{
		Use:   "roll NAME [--grace DURATION] [flags]",
		Short: "Make the next version under a name and print it, once",
		Long: `Make the next version under a name. The secret goes to stdout, this once, its id to stderr.
The version before it keeps working for the grace, and never longer than it would have lived:
sign with the new keyid once the signer has the new secret.`,
		Example: `  SECRET=$(rotunda secret roll orders-signing --grace 72h)
  rotunda secret roll ledger --public-key ledger-2.pub.pem --quiet 24h`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     c.secretNames(false),
		DisableFlagsInUseLine: true,
	}
	r.bind(cmd.Flags())
	cmd.Flags().StringVar(&public, "public-key", "", "PEM file of the new public key, when the name holds public keys; - for stdin")
	c.partnerFlag(cmd, &partner, ownPartner)
	key := idempotency(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		pem, err := c.publicKey(public)
		if err != nil {
			return err
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.secrets.RollRequestSecret, &rotundav1.RollRequestSecretRequest{
			Partner: partner, Name: args[0], Grace: r.grace.proto(), Quiet: r.quiet.proto(), ExpiresIn: r.life.proto(), PublicKey: pem,
		}, key())
		if err != nil {
			return err
		}
		c.tellSecret(res.GetSecret(), res.GetValue())
		old := res.GetOld()
		c.complain("it replaces %s, %s", old.GetId(), graceText(c.newPage(), old.GetState(), old.GetGraceEndsAt(), old.GetQuiet()))
		return c.print(res, func(p *page) { p.line("%s", firstOf(res.GetValue(), res.GetSecret().GetId())) })
	}
	return cmd
}

// newSecretSuspend is the command suspend, or resume.
func newSecretSuspend(c *cli, suspend bool) *cobra.Command {
	var partner, reason string
	cmd := &cobra.Command{
		Use:               "resume KEYID",
		Short:             "Undo suspend",
		Example:           "  rotunda secret resume 7hRt2w9xKd5sQq3u --reason \"it was a false alarm\"",
		Args:              arguments("KEYID"),
		ValidArgsFunction: c.secretNames(true),
	}
	if suspend {
		cmd.Use, cmd.Short = "suspend KEYID", "Stop a version until resume"
		cmd.Example = "  rotunda secret suspend 7hRt2w9xKd5sQq3u --reason \"strange traffic\""
	}
	reasonFlag(cmd, &reason)
	c.partnerFlag(cmd, &partner, anyPartner)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, err := c.connect()
		if err != nil {
			return err
		}
		if suspend {
			res, err := call(cmd.Context(), to, to.secrets.SuspendRequestSecret, &rotundav1.SuspendRequestSecretRequest{Partner: partner, Id: args[0], Reason: reason}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.requestSecret(res.GetSecret()) })
		}
		res, err := call(cmd.Context(), to, to.secrets.ResumeRequestSecret, &rotundav1.ResumeRequestSecretRequest{Partner: partner, Id: args[0], Reason: reason}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.requestSecret(res.GetSecret()) })
	}
	return cmd
}

func newSecretRevoke(c *cli) *cobra.Command {
	var partner, text string
	reason := choice{allowed: reasons}
	cmd := &cobra.Command{
		Use:                   "revoke KEYID --reason REASON [flags]",
		Short:                 "End a version for good, and destroy the secret",
		Example:               "  rotunda secret revoke 7hRt2w9xKd5sQq3u --reason key_compromise --text \"it was in a log\"",
		Args:                  arguments("KEYID"),
		ValidArgsFunction:     c.secretNames(true),
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
		res, err := call(cmd.Context(), to, to.secrets.RevokeRequestSecret, &rotundav1.RevokeRequestSecretRequest{Partner: partner, Id: args[0], Reason: revocationReason(reason.value), Text: text}, "")
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) { p.requestSecret(res.GetSecret()) })
	}
	return cmd
}

// secretNames suggests a name, or the ids of its versions.
func (c *cli) secretNames(ids bool) suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		res, err := call(ctx, to, to.secrets.ListRequestSecrets, &rotundav1.ListRequestSecretsRequest{PageSize: maxPage}, "")
		var out []string
		seen := map[string]bool{}
		for _, s := range res.GetSecrets() {
			about := clean(s.GetName()) + " of " + clean(s.GetPartner()) + ", " + keyState(s.GetState())
			switch {
			case ids:
				out = append(out, cobra.CompletionWithDesc(clean(s.GetId()), about))
			case !seen[s.GetName()]:
				seen[s.GetName()] = true
				out = append(out, cobra.CompletionWithDesc(clean(s.GetName()), clean(s.GetPartner())))
			}
		}
		return out, err
	})
}

func (p *page) secrets(list []*rotundav1.RequestSecret) {
	if len(list) == 0 {
		p.line("there are no request secrets: %s makes one", p.cli.command("secret create --name NAME"))
		return
	}
	rows := make([][]string, len(list))
	for i, s := range list {
		rows[i] = []string{s.GetId(), s.GetName(), s.GetPartner(), s.GetEnvironment(), s.GetAlgorithm(), keyState(s.GetState()), p.when(s.GetExpiresAt()), p.when(s.GetLastUsedAt()), p.remark(s)}
	}
	p.table([]string{"KEYID", "NAME", "PARTNER", "ENV", "ALGORITHM", "STATE", "EXPIRES", "LAST USED", "REMARK"}, rows)
}

func (p *page) requestSecret(s *rotundav1.RequestSecret) {
	p.line("%s  %s of %s  %s", s.GetId(), s.GetName(), s.GetPartner(), keyState(s.GetState()))
	p.fact("remark", p.remark(s))
	p.fact("environment", s.GetEnvironment())
	p.fact("algorithm", s.GetAlgorithm())
	p.grant(s.GetScopes(), s.GetCidrs(), s.GetRateLimit(), s.GetMetadata())
	p.times(s)
	p.fact("replaces", s.GetReplaces())
}

package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// maxPage is the longest page of every list but the trail's.
const maxPage = 200

func newKeyset(c *cli) *cobra.Command {
	return c.client(newGroup("keyset", "Keep signing keys: create, show, rotate, revoke",
		newCreate(c), newList(c), newShow(c), newPolicy(c), newRotate(c), newRevoke(c),
		newImport(c), newHistory(c), newKeys(c), newProfiles(c), newWatch(c)))
}

var algorithms = []string{"ES256", "ES384", "ES512", "Ed25519", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}

func newCreate(c *cli) *cobra.Command {
	var issuer, algorithm string
	var dryRun bool
	var f policyFlags
	cmd := &cobra.Command{
		Use:   "create NAME --issuer URL --token-ttl DURATION [flags]",
		Short: "Make a keyset with an active key and a published standby",
		Long: `Make a keyset. Its name is part of the URL of its JWKS document and is never used
again. The name "default" is also served at /.well-known/jwks.json.

From the consumers that --profile names, Rotunda computes how long a key must be served
before it signs; without any, that is 24 hours. An unsafe policy is refused with the two
figures that disagree. Durations are written like 30d, 12h, 90m or 1d12h.`,
		Example: `  rotunda keyset create payments --issuer https://auth.example.com --algorithm ES256 \
      --rotate-every 720h --token-ttl 1h --profile envoy --profile jose
  rotunda keyset create ledger --issuer https://ledger.example.com --rotate-cron "0 3 * * 1" \
      --zone Europe/Berlin --jitter 1h --token-ttl 15m --profile envoy,cache=5m --dry-run`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("issuer", "token-ttl"),
	}
	cmd.Flags().StringVar(&issuer, "issuer", "", "the iss claim: an https URL without query or fragment")
	cmd.Flags().StringVar(&algorithm, "algorithm", "", "one of "+strings.Join(algorithms, ", ")+" (default ES256)")
	f.bind(c, cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only check and compute; store nothing")
	key := idempotency(cmd)
	c.complete(cmd, "algorithm", algorithms...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		policy := &rotundav1.Policy{}
		if err := f.apply(cmd.Flags(), policy); err != nil {
			return err
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.keysets.CreateKeyset, &rotundav1.CreateKeysetRequest{
			Name: args[0], Issuer: issuer, Algorithm: algorithm, Policy: policy, DryRun: dryRun,
		}, key())
		if err != nil {
			return err
		}
		if dryRun {
			c.complain("dry run: nothing was stored")
		}
		return c.print(res, func(p *page) { p.keyset(res.GetKeyset()) })
	}
	return cmd
}

func newList(c *cli) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "list",
		Short:             "List keysets by name",
		Example:           "  rotunda keyset list\n  rotunda keyset list -o json",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListKeysetsResponse{}
			res.Keysets, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Keyset, string, error) {
				r, err := call(cmd.Context(), to, to.keysets.ListKeysets, &rotundav1.ListKeysetsRequest{PageSize: size, PageToken: token}, "")
				return r.GetKeysets(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.keysets(res.GetKeysets()) })
		},
	}
	limitFlag(cmd, &limit, 1000)
	return cmd
}

// more tells that a list was cut.
func (c *cli) more(next string) {
	if next != "" {
		c.complain("there is more: raise --limit")
	}
}

func newShow(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show each key, its state, what comes next and when, and why not sooner",
		Example:           "  rotunda keyset show payments",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.keysetThenKid(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.keysets.GetKeyset, &rotundav1.GetKeysetRequest{Name: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.keyset(res.GetKeyset()) })
		},
	}
}

func newRotate(c *cli) *cobra.Command {
	var override bool
	var reason string
	cmd := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Promote the standby now",
		Long: `Promote the standby now, by the same pass as the schedule. It is refused while the
standby has not been served long enough for every consumer to have it; --override-lead
promotes it all the same, at the price of good tokens that are refused.`,
		Example: `  rotunda keyset rotate payments
  rotunda keyset rotate payments --override-lead --reason "no consumer yet"`,
		Args:              arguments("NAME"),
		ValidArgsFunction: c.keysetThenKid(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			if override && reason == "" {
				return usagef("--override-lead needs a --reason")
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.keysets.RotateKeyset, &rotundav1.RotateKeysetRequest{
				Name: args[0], OverrideLead: override, Reason: reason,
			}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.keyset(res.GetKeyset()) })
		},
	}
	cmd.Flags().BoolVar(&override, "override-lead", false, "promote the standby although its lead is not over")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the trail")
	return cmd
}

// maxKeyFile is the longest key that the API takes.
const maxKeyFile = 32 << 10

func newImport(c *cli) *cobra.Command {
	var file, kid, reason string
	var life durationFlag
	state := choice{allowed: []string{"active", "retiring"}}
	cmd := &cobra.Command{
		Use:   "import NAME --key-file FILE|- --state active|retiring --max-token-life DURATION [flags]",
		Short: "Bring in a key of another issuer",
		Long: `Bring in a key of another issuer: as active, so that it goes on signing (this needs its
private half, and a reason why verifiers know it already), or as retiring, so that the
tokens it signed stay good to their end (the public half is enough).

The key is read from a file or from stdin, as a JWK or as PEM; it is never an argument.`,
		Example: `  rotunda keyset import payments --key-file old.pem --state retiring --max-token-life 1h
  rotunda keyset import payments --key-file - --state active --max-token-life 1h --kid 2023-key --reason "moved from the old issuer" < old.jwk`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     c.keysetThenKid(false),
		DisableFlagsInUseLine: true,
		PreRunE:               need("key-file", "state", "max-token-life"),
	}
	cmd.Flags().StringVar(&file, "key-file", "", "file with the key, - for stdin")
	cmd.Flags().Var(&state, "state", "state of the key here")
	cmd.Flags().Var(&life, "max-token-life", "longest life of the tokens that the other issuer signed with it")
	cmd.Flags().StringVar(&kid, "kid", "", "kid under which the other issuer published it (default: the JWK's own, else the thumbprint)")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the trail; for active: why verifiers know this key already")
	key := idempotency(cmd)
	c.complete(cmd, "state", state.allowed...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		b, err := c.read(file, maxKeyFile)
		if err != nil {
			return fmt.Errorf("reading --key-file: %w", err)
		}
		defer clear(b)
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.keysets.ImportKey, &rotundav1.ImportKeyRequest{
			Name: args[0], Key: b, State: rotundav1.KeyState(rotundav1.KeyState_value["KEY_STATE_"+strings.ToUpper(state.value)]),
			Kid: kid, MaxTokenLife: life.proto(), Reason: reason,
		}, key())
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) {
			p.line("imported %s as %s", res.GetKid(), state.value)
			p.line("")
			p.keyset(res.GetKeyset())
		})
	}
	return cmd
}

// read returns the content of a file, or of stdin for "-".
func (c *cli) read(file string, limit int) ([]byte, error) {
	from := c.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	}
	b, err := io.ReadAll(io.LimitReader(from, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("there are more than %d bytes: this can't be right", limit)
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("there is nothing in it")
	}
	return b, nil
}

func newKeys(c *cli) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "keys NAME",
		Short:             "List the published keys of a keyset",
		Example:           "  rotunda keyset keys payments\n  rotunda keyset keys payments -o json",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.keysetThenKid(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListKeysResponse{}
			res.Keys, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Key, string, error) {
				r, err := call(cmd.Context(), to, to.keysets.ListKeys, &rotundav1.ListKeysRequest{Name: args[0], PageSize: size, PageToken: token}, "")
				return r.GetKeys(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.keyTable(res.GetKeys()) })
		},
	}
	limitFlag(cmd, &limit, 200)
	return cmd
}

func newHistory(c *cli) *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:               "history NAME",
		Short:             "List the withdrawn keys of a keyset, newest first",
		Example:           "  rotunda keyset history payments",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.keysetThenKid(false),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res := &rotundav1.ListHistoryResponse{}
			res.Keys, res.NextPageToken, err = collect(limit, maxPage, func(size int32, token string) ([]*rotundav1.Key, string, error) {
				r, err := call(cmd.Context(), to, to.keysets.ListHistory, &rotundav1.ListHistoryRequest{Name: args[0], PageSize: size, PageToken: token}, "")
				return r.GetKeys(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			c.more(res.GetNextPageToken())
			return c.print(res, func(p *page) { p.history(res.GetKeys()) })
		},
	}
	limitFlag(cmd, &limit, 200)
	return cmd
}

func newProfiles(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:   "profiles",
		Short: "List the kinds of consumer that a policy may name",
		Long: `List the kinds of consumer that a policy may name, with the times that follow for each.
A consumer that is configured in another way gets its own figures:
--profile envoy,cache=5m (cache, throttle, min_interval, max_interval).`,
		Example:           "  rotunda keyset profiles",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.keysets.ListProfiles, &rotundav1.ListProfilesRequest{}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.profiles(res.GetProfiles()) })
		},
	}
}

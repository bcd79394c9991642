package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// maxClaims is the longest set of claims that the API takes.
const maxClaims = 16 << 10

func newSign(c *cli) *cobra.Command {
	var claims, typ string
	var ttl durationFlag
	cmd := &cobra.Command{
		Use:   "sign NAME --claims JSON|@FILE|- [flags]",
		Short: "Sign a JWT with a keyset's active key",
		Long: `Sign a JWT with a keyset's active key and print it, alone on its line. Rotunda sets
iss, iat and exp; an exp among the claims may only shorten the token's life.`,
		Example: `  rotunda sign payments --claims '{"sub":"order-7","aud":"ledger"}' --ttl 10m
  rotunda sign payments --claims @claims.json
  echo '{"sub":"order-7"}' | rotunda sign payments --claims -`,
		Args:                  arguments("NAME"),
		ValidArgsFunction:     c.keysetThenKid(false),
		DisableFlagsInUseLine: true,
		PreRunE:               need("claims"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl.given != nil && *ttl.given <= 0 {
				return usagef("--ttl must be longer than 0; without it the token lives as long as the policy allows")
			}
			object, err := c.claims(claims)
			if err != nil {
				return err
			}
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.keysets.Sign, &rotundav1.SignRequest{
				Name: args[0], Claims: object, Ttl: ttl.proto(), Typ: typ,
			}, "")
			if err != nil {
				return err
			}
			if res.GetClamped() {
				c.complain("the policy allows less: the token ends %s", c.newPage().when(res.GetExpiresAt()))
			}
			return c.print(res, func(p *page) { p.line("%s", res.GetToken()) })
		},
	}
	cmd.Flags().StringVar(&claims, "claims", "", "a JSON object, @FILE, or - for stdin")
	cmd.Flags().Var(&ttl, "ttl", "life of the token (default: the policy's token-ttl)")
	cmd.Flags().StringVar(&typ, "typ", "", `the typ header (default "JWT")`)
	return c.client(cmd)
}

// claims returns the JSON object that --claims means.
func (c *cli) claims(given string) (string, error) {
	text := []byte(given)
	if file, ok := strings.CutPrefix(given, "@"); ok || given == "-" {
		b, err := c.read(firstOf(file, "-"), maxClaims)
		if err != nil {
			return "", fmt.Errorf("reading --claims: %w", err)
		}
		text = b
	}
	text = bytes.TrimSpace(text)
	if len(text) > maxClaims {
		return "", usagef("--claims has more than %d bytes", maxClaims)
	}
	// The text is not repeated: claims may be personal.
	if !json.Valid(text) || !bytes.HasPrefix(text, []byte("{")) {
		return "", usagef(`--claims is not a JSON object: write it like '{"sub":"order-7"}', in quotes of the shell`)
	}
	return string(text), nil
}

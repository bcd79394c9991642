package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// maxKeyText is the longest key that the API takes.
const maxKeyText = 1024

func newKeyVerify(c *cli) *cobra.Command {
	var partner, env, address string
	var scopes []string
	var cost int64
	cmd := &cobra.Command{
		Use:   "verify [KEY|-] [--scope SCOPE …] [flags]",
		Short: "Ask whether an API key is accepted; exits with 1 and the reason when it is not",
		Long: `Ask whether an API key is accepted, as a gateway would: whose it is, what it may do, when
it ends, and what is left of its rate limit, from which this takes one request.

Give the key on stdin: with - or without an argument. An argument can be read by everybody
on this machine.`,
		Example: `  rotunda key verify --scope orders:read --address 203.0.113.9 < key.txt
  printf %s "$KEY" | rotunda key verify - --scope orders:read -o json`,
		Args:                  optional("KEY"),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringArrayVar(&scopes, "scope", nil, "a scope that the request needs, once for each")
	f.StringVar(&address, "address", "", "address of the client; a key with address ranges is denied without one")
	f.StringVar(&env, "env", "", "take it only if it is of this environment")
	f.Int64Var(&cost, "cost", 1, "what the request takes from the rate limit")
	c.partnerFlag(cmd, &partner, "take only a key of this partner: all others are unknown")
	for _, n := range []string{"scope", "address", "cost"} {
		_ = cmd.RegisterFlagCompletionFunc(n, cobra.NoFileCompletions)
	}
	c.complete(cmd, "env", "live", "test")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cost < 1 || cost > 1_000_000 {
			return usagef("--cost %d is outside 1 to 1000000", cost)
		}
		key, err := c.presentedKey(first(args))
		if err != nil {
			return err
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.verification.VerifyApiKey, &rotundav1.VerifyApiKeyRequest{
			Key: key, Scopes: scopes, Address: address, Partner: partner, Environment: env, Cost: cost,
		}, "")
		if err != nil {
			return err
		}
		if err := c.print(res, func(p *page) { p.decision(res.GetReason(), res.GetVerified(), "key") }); err != nil {
			return err
		}
		if res.GetReason() == rotundav1.VerifyReason_VERIFY_REASON_ADDRESS && address == "" {
			return &exitError{exitRefused, errors.New("the key is denied (address): it is accepted from some addresses only: give the client's with --address")}
		}
		return denied("the key", res.GetReason())
	}
	return cmd
}

// presentedKey is the key that was given as an argument or on stdin.
func (c *cli) presentedKey(arg string) (string, error) {
	if arg != "" && arg != "-" {
		if len(arg) > maxKeyText {
			return "", usagef("KEY has more than %d characters: this is no key", maxKeyText)
		}
		c.complain("warning: a key among the arguments can be read by everybody on this machine: give it on stdin")
		return arg, nil
	}
	if arg == "" && c.typed {
		return "", usagef("KEY is missing: give it on stdin, as in: %s key verify < key.txt", c.program)
	}
	b, err := io.ReadAll(io.LimitReader(c.stdin, maxKeyText+3))
	if err != nil {
		return "", fmt.Errorf("reading the key from stdin: %w", err)
	}
	key := strings.TrimSpace(string(b))
	switch {
	case key == "":
		return "", usagef("KEY is missing: there is nothing on stdin")
	case len(key) > maxKeyText:
		return "", usagef("there are more than %d characters on stdin: this is no key", maxKeyText)
	case strings.ContainsAny(key, "\r\n"):
		return "", usagef("there is more than one line on stdin: give one key")
	}
	return key, nil
}

// verdicts say what a reason means, and what to do.
var verdicts = map[rotundav1.VerifyReason]string{
	rotundav1.VerifyReason_VERIFY_REASON_MALFORMED:  "it does not have the form of one: was all of it copied?",
	rotundav1.VerifyReason_VERIFY_REASON_UNKNOWN:    "nobody holds it: it is mistyped, of another server, or of somebody this token may not ask about",
	rotundav1.VerifyReason_VERIFY_REASON_EXPIRED:    "its life is over: make a new one",
	rotundav1.VerifyReason_VERIFY_REASON_REVOKED:    "it was revoked, or its grace is over",
	rotundav1.VerifyReason_VERIFY_REASON_SUSPENDED:  "it, or its partner, is suspended",
	rotundav1.VerifyReason_VERIFY_REASON_SCOPE:      "it lacks a scope that the request needs",
	rotundav1.VerifyReason_VERIFY_REASON_ADDRESS:    "it is not accepted from this address",
	rotundav1.VerifyReason_VERIFY_REASON_RATE:       "its rate limit is used up",
	rotundav1.VerifyReason_VERIFY_REASON_SIGNATURE:  "the signature is not that of the key over this request",
	rotundav1.VerifyReason_VERIFY_REASON_COMPONENTS: "the signature does not cover what the partner's policy demands",
	rotundav1.VerifyReason_VERIFY_REASON_WINDOW:     "the signature is too old, or from the future",
	rotundav1.VerifyReason_VERIFY_REASON_REPLAY:     "its nonce was seen before",
	rotundav1.VerifyReason_VERIFY_REASON_DIGEST:     "the body is not the one that Content-Digest names",
}

func verifyWord(r rotundav1.VerifyReason) string { return word(r.String(), "VERIFY_REASON_") }

// denied is nil for a key or request that is accepted. What is a denial is no
// wrong usage and no error of a call.
func denied(what string, r rotundav1.VerifyReason) error {
	if r == rotundav1.VerifyReason_VERIFY_REASON_OK {
		return nil
	}
	return &exitError{exitRefused, errors.New(what + " is denied (" + verifyWord(r) + "): " + firstOf(verdicts[r], "the server gave no reason that this program knows"))}
}

// decision shows what the server found out about a key, or a request.
func (p *page) decision(r rotundav1.VerifyReason, v *rotundav1.Verified, what string) {
	if r == rotundav1.VerifyReason_VERIFY_REASON_OK {
		p.line("ok")
	} else {
		p.line("denied: %s", verifyWord(r))
	}
	if v.GetKeyId() == "" {
		return
	}
	p.fact("partner", v.GetPartner())
	p.fact(what, v.GetKeyId()+" ("+v.GetName()+"), "+v.GetEnvironment()+", "+word(v.GetClass().String(), "KEY_CLASS_"))
	p.fact("scopes", firstOf(strings.Join(v.GetScopes(), " "), "none"))
	state := keyState(v.GetState())
	if v.GetState() == rotundav1.ApiKeyState_API_KEY_STATE_RETIRING {
		state += ": ends " + p.when(v.GetGraceEndsAt()) + ", replaced by " + firstOf(v.GetReplacedBy(), "another")
	}
	p.fact("state", state)
	p.fact("expires", p.when(v.GetExpiresAt()))
	p.fact("metadata", formatMetadata(v.GetMetadata()))
	// Whoever is refused before the limit was looked at has used nothing of it.
	if r == rotundav1.VerifyReason_VERIFY_REASON_OK || r == rotundav1.VerifyReason_VERIFY_REASON_RATE {
		p.fact("rate", rateText(v.GetRate()))
	}
}

// rateText says what is left of a rate limit.
func rateText(r *rotundav1.RateState) string {
	if r.GetLimit().GetQuota() == 0 {
		return "no limit"
	}
	text := fmt.Sprintf("%s left of %s", thousands(r.GetRemaining()), formatRate(r.GetLimit()))
	if r.GetReset_() != nil && r.GetReset_().AsDuration() > 0 {
		text += "; all of it in " + formatDuration(r.GetReset_().AsDuration())
	}
	if r.GetRetryAfter() != nil && r.GetRetryAfter().AsDuration() > 0 {
		text += "; try again in " + formatDuration(r.GetRetryAfter().AsDuration())
	}
	return text
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

const (
	maxRequestFile = 8 << 20
	maxBodySent    = 96 << 10 // what the API takes; a longer body is compared with its digest here
	maxSignerBase  = 16 << 10
)

func newSecretExplain(c *cli) *cobra.Command {
	var file, scheme, authority, label, partner, webhook, base, address string
	cmd := &cobra.Command{
		Use:   "explain --request FILE|- [flags]",
		Short: "Ask why a signed request is refused, and where the signature bases differ",
		Long: `Verify a signed request that is in a file as it goes over the wire: the request line, the
header, an empty line, the body. Nothing is counted, and no nonce is spent. When the signature
is wrong, it shows the signature base (RFC 9421, section 2.5) as the server makes it; with the
one that the signer made in --signer-base, also the first line in which they differ.

Only the partner itself, operators and admins are told. Exits with 1 when it is refused.`,
		Example: `  rotunda secret explain --request request.txt --scheme https --signer-base base.txt
  rotunda secret explain --request - --webhook orders-signing --partner acme < request.txt`,
		Args:                  arguments(),
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("request"),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&file, "request", "", "file with the request, - for stdin")
	f.StringVar(&scheme, "scheme", "https", "http or https, as the client addressed the gateway")
	f.StringVar(&authority, "authority", "", "host and port, as the client addressed the gateway (default: the Host field)")
	f.StringVar(&base, "signer-base", "", "file with the signature base that the signer made")
	f.StringVar(&label, "label", "", "label of the signature, when there are several")
	f.StringVar(&webhook, "webhook", "", "verify it as a Standard Webhook, with the secret of this name")
	f.StringVar(&address, "address", "", "address of the client")
	c.partnerFlag(cmd, &partner, ownPartner)
	c.complete(cmd, "scheme", "https", "http")
	for _, n := range []string{"authority", "label", "webhook", "address"} {
		_ = cmd.RegisterFlagCompletionFunc(n, cobra.NoFileCompletions)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if scheme != "http" && scheme != "https" {
			return usagef("--scheme %q is neither http nor https", clipText(scheme))
		}
		if file == "-" && base == "-" {
			return usagef("only one of --request and --signer-base can come from stdin")
		}
		raw, err := c.read(file, maxRequestFile)
		if err != nil {
			return fmt.Errorf("reading --request: %w", err)
		}
		req, err := parseRequest(raw)
		if err != nil {
			return fmt.Errorf("reading --request: %w", err)
		}
		req.Scheme, req.Label, req.Partner, req.Address, req.Explain = scheme, label, partner, address, true
		req.Authority = firstOf(authority, req.GetAuthority())
		if req.GetAuthority() == "" {
			return fmt.Errorf("reading --request: it has no Host field: give --authority")
		}
		req.Profile = rotundav1.SignatureProfile_SIGNATURE_PROFILE_HTTP_MESSAGE_SIGNATURES
		if webhook != "" {
			req.Profile, req.Secret = rotundav1.SignatureProfile_SIGNATURE_PROFILE_STANDARD_WEBHOOKS, webhook
		}
		if base != "" {
			b, err := c.read(base, maxSignerBase)
			if err != nil {
				return fmt.Errorf("reading --signer-base: %w", err)
			}
			req.SignerBase = strings.TrimRight(string(b), "\r\n")
		}
		to, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), to, to.verification.VerifyRequest, req, "")
		if err != nil {
			return err
		}
		if err := c.print(res, func(p *page) { p.explained(res) }); err != nil {
			return err
		}
		return denied("the request", res.GetReason())
	}
	return cmd
}

// parseRequest reads a request as it goes over the wire (RFC 9112). Lines may
// also end as editors make them, without the carriage return.
func parseRequest(raw []byte) (*rotundav1.VerifyRequestRequest, error) {
	next := func() (string, bool) {
		line, rest, found := bytes.Cut(raw, []byte("\n"))
		raw = rest
		return strings.TrimSuffix(string(line), "\r"), found
	}
	line, _ := next()
	parts := strings.Split(line, " ")
	if len(parts) != 3 || !strings.HasPrefix(parts[2], "HTTP/") {
		return nil, errors.New("its first line is not a request line, as: POST /orders?page=2 HTTP/1.1")
	}
	req := &rotundav1.VerifyRequestRequest{Method: parts[0], Target: parts[1]}
	if !strings.HasPrefix(req.GetTarget(), "/") {
		return nil, errors.New("the request line has no path: write the target as the client sent it, as /orders?page=2")
	}
	for n := 2; ; n++ {
		line, found := next()
		if line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("line %d is not a field of the header, as: Host: api.example.com", n)
		}
		value = strings.Trim(value, " \t")
		switch strings.ToLower(name) {
		case "host":
			req.Authority = value
		case "transfer-encoding":
			return nil, fmt.Errorf("line %d: the body must be there as it is, without a transfer coding: save it whole, and leave this line out", n)
		}
		req.Headers = append(req.Headers, &rotundav1.Header{Name: name, Value: value})
		if !found {
			break
		}
	}
	return req, setBody(req, raw)
}

// setBody takes the body over, to the length that the header gives.
func setBody(req *rotundav1.VerifyRequestRequest, body []byte) error {
	var digests []string
	for _, h := range req.GetHeaders() {
		switch strings.ToLower(h.GetName()) {
		case "content-digest":
			digests = append(digests, h.GetValue())
		case "content-length":
			n, err := strconv.ParseUint(h.GetValue(), 10, 31)
			if err != nil || int(n) > len(body) {
				return fmt.Errorf("its Content-Length is %q, and there are %d bytes of a body: save it whole", clipText(h.GetValue()), len(body))
			}
			body = body[:n] // an editor may have added a line end
		}
	}
	if len(body) <= maxBodySent {
		req.Body = body
		return nil
	}
	if err := httpsig.CheckDigest(digests, body); err != nil {
		return fmt.Errorf("its body has %d bytes, so that it was compared with Content-Digest here: %w", len(body), err)
	}
	req.BodyOmitted, req.ContentDigestVerified = true, true
	return nil
}

func (p *page) explained(res *rotundav1.VerifyRequestResponse) {
	p.decision(res.GetReason(), res.GetVerified(), "keyid")
	x := res.GetExplanation()
	if x == nil {
		return
	}
	if x.GetMessage() != "" {
		p.line("")
		p.hangTo(p.prose(), "", x.GetMessage())
	}
	if x.GetComponent() != "" {
		p.line("")
		p.line("The bases differ first at %s:", x.GetComponent())
		p.line("  server  %s", firstOf(x.GetServerLine(), "(no such line)"))
		p.line("  signer  %s", firstOf(x.GetSignerLine(), "(no such line)"))
	}
	if x.GetSignatureBase() != "" {
		p.line("")
		p.line("The signature base, as the server makes it:")
		for line := range strings.Lines(x.GetSignatureBase()) {
			p.line("  %s", strings.TrimSuffix(line, "\n"))
		}
	}
}

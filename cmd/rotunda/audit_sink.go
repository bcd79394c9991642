package main

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

const (
	maxPEMFile    = 256 << 10
	maxSecretFile = 4 << 10 // what the API takes
)

func newAuditSink(c *cli) *cobra.Command {
	return newGroup("sink", "Send a copy of every event to a SIEM: add, list, remove", newSinkAdd(c), newSinkList(c), newSinkRemove(c))
}

// place is the part of a sink or an anchor that both have.
type place struct {
	kind                   choice
	address, ca, secretRef string
}

func (a *place) flags(c *cli, cmd *cobra.Command, addressHelp, secretHelp string) {
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&a.kind, "kind", "what is there")
	f.StringVar(&a.address, "address", "", addressHelp)
	f.StringVar(&a.ca, "ca", "", "PEM file of the authorities that may sign its certificate (default: the system's)")
	f.StringVar(&a.secretRef, "secret-file", "", secretHelp)
	c.complete(cmd, "kind", a.kind.allowed...)
}

// name is the one that was given, or one made of kind and address.
func (a *place) name(args []string) string {
	if len(args) > 0 {
		return args[0]
	}
	host := path.Base(a.address)
	if u, err := url.Parse(a.address); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	}
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_", r) {
			return r
		}
		return '-'
	}, strings.ToLower(a.kind.value+"-"+host))
	return strings.TrimRight(plain[:min(len(plain), 63)], ".-_")
}

// text reads a file of PEM; nothing when none is named.
func (c *cli) pem(flag, file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := c.read(file, maxPEMFile)
	if err != nil {
		return "", fmt.Errorf("reading --%s: %w", flag, err)
	}
	if !bytes.Contains(b, []byte("-----BEGIN ")) {
		return "", fmt.Errorf("reading --%s: %s is not in PEM form", flag, file)
	}
	return string(b), nil
}

// secret reads a secret without the line end that editors add; nothing when no
// file is named.
func (c *cli) secret(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	b, err := c.read(file, maxSecretFile)
	if err != nil {
		return "", fmt.Errorf("reading --secret-file: %w", err)
	}
	defer clear(b)
	return strings.TrimRight(string(b), "\r\n"), nil
}

// atMostName takes an optional name.
func atMostName(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef("%q is one argument too many", args[1])
	}
	if len(args) == 1 && args[0] == "" {
		return usagef("NAME is empty; leave it out to have one made")
	}
	return nil
}

func newSinkAdd(c *cli) *cobra.Command {
	to := place{kind: choice{allowed: []string{"syslog", "splunk", "https", "otlp", "file"}}}
	form := choice{allowed: []string{"json", "cef"}}
	var serverName, clientCert, clientKey string
	var options []string
	var fromStart bool
	var index int64
	cmd := &cobra.Command{
		Use:   "add [NAME] --kind KIND --address ADDRESS [flags]",
		Short: "Send a copy of every event somewhere",
		Long: `Send a copy of every event somewhere: from now on, or with --from-start everything that is
still kept. A sink that is away never holds up a change, and loses nothing: it goes on where
it was. NAME is made of kind and host when it is left out.

  syslog  tls://HOST[:6514]                 RFC 5424 over TLS
  splunk  https://HOST:8088                 HTTP Event Collector; the secret is its token
  https   https://HOST/PATH                 JSON lines; the secret is a bearer token, or with
                                            --option auth=standard-webhooks a signing key
  otlp    https://HOST:4318                 OpenTelemetry logs; the secret is a bearer token
  file    /var/log/rotunda/trail.jsonl      on the server's machine, rotated; in a folder that
                                            serve --copies-dir allows

A secret comes from a file or from stdin, never from the command line. docs/sinks.md has each
kind's options.`,
		Example: `  rotunda audit sink add --kind syslog --address tls://siem:6514
  rotunda audit sink add splunk --kind splunk --address https://splunk:8088 --secret-file - --option index=audit < hec.token
  rotunda audit sink add --kind file --address /var/log/rotunda/trail.jsonl --from-start`,
		Args:                  atMostName,
		ValidArgsFunction:     cobra.NoFileCompletions,
		DisableFlagsInUseLine: true,
		PreRunE:               need("kind", "address"),
	}
	to.flags(c, cmd, "where; see above", "file with its secret, mode 0600; - for stdin")
	f := cmd.Flags()
	f.Var(&form, "format", "form of a record (default json)")
	f.StringVar(&serverName, "server-name", "", "name in its certificate (default: the address's host)")
	f.StringVar(&clientCert, "client-cert", "", "PEM file of the certificate to show, with its chain")
	f.StringVar(&clientKey, "client-key", "", "PEM file of that certificate's private key")
	f.StringArrayVar(&options, "option", nil, "an option of the kind, as name=value; once for each")
	f.BoolVar(&fromStart, "from-start", false, "begin with the first event that is kept")
	f.Int64Var(&index, "index", 0, "begin with this leaf index")
	c.complete(cmd, "format", form.allowed...)
	key := idempotency(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		from := cmd.Flags().Changed("index")
		switch {
		case fromStart && from:
			return usagef("give --from-start or --index, not both")
		case index < 0:
			return usagef("--index must not be negative")
		case (clientCert == "") != (clientKey == ""):
			return usagef("--client-cert and --client-key go together")
		case to.secretRef == "-" && clientKey == "-":
			return usagef("only one of --secret-file and --client-key can come from stdin")
		}
		sink := &rotundav1.Sink{Name: to.name(args), Kind: to.kind.value, Address: to.address, Format: form.value, ServerName: serverName}
		for _, o := range options {
			name, value, ok := strings.Cut(o, "=")
			if !ok || name == "" {
				return usagef("--option %q is not of the form name=value", o)
			}
			if _, twice := sink.Options[name]; twice {
				return usagef("--option %s is given twice", name)
			}
			if sink.Options == nil {
				sink.Options = map[string]string{}
			}
			sink.Options[name] = value
		}
		req := &rotundav1.CreateSinkRequest{Sink: sink}
		if fromStart || from {
			req.Index = &index
		}
		var err error
		if sink.Ca, err = c.pem("ca", to.ca); err != nil {
			return err
		}
		if sink.ClientCert, err = c.pem("client-cert", clientCert); err != nil {
			return err
		}
		if req.ClientKey, err = c.pem("client-key", clientKey); err != nil {
			return err
		}
		if req.Secret, err = c.secret(to.secretRef); err != nil {
			return err
		}
		server, err := c.connect()
		if err != nil {
			return err
		}
		res, err := call(cmd.Context(), server, server.trail.CreateSink, req, key())
		if err != nil {
			return err
		}
		return c.print(res, func(p *page) {
			p.sinks([]*rotundav1.Sink{res.GetSink()})
			p.line("see how far it is: %s", c.command("audit sink list"))
		})
	}
	return cmd
}

func newSinkList(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "list",
		Short:             "List sinks, and how far each is behind",
		Example:           "  rotunda audit sink list",
		Args:              arguments(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.ListSinks, &rotundav1.ListSinksRequest{}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.sinks(res.GetSinks()) })
		},
	}
}

func newSinkRemove(c *cli) *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME",
		Short:             "Send no more to a sink; what it got stays where it is",
		Example:           "  rotunda audit sink remove syslog-siem",
		Args:              arguments("NAME"),
		ValidArgsFunction: c.names(sinkNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := c.connect()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), to, to.trail.DeleteSink, &rotundav1.DeleteSinkRequest{Name: args[0]}, "")
			if err != nil {
				return err
			}
			return c.print(res, func(p *page) { p.line("removed the sink %s", args[0]) })
		},
	}
}

// names suggests the one argument of a command.
func (c *cli) names(list func(context.Context, *conn) ([]string, error)) suggest {
	return c.ask(func(ctx context.Context, to *conn, args []string) ([]string, error) {
		if len(args) > 0 {
			return nil, nil
		}
		return list(ctx, to)
	})
}

func sinkNames(ctx context.Context, to *conn) ([]string, error) {
	res, err := call(ctx, to, to.trail.ListSinks, &rotundav1.ListSinksRequest{}, "")
	var out []string
	for _, s := range res.GetSinks() {
		out = append(out, cobra.CompletionWithDesc(clean(s.GetName()), clean(s.GetKind()+" "+s.GetAddress())))
	}
	return out, err
}

func (p *page) sinks(list []*rotundav1.Sink) {
	if len(list) == 0 {
		p.line("There is no sink.")
		return
	}
	rows := make([][]string, len(list))
	for i, s := range list {
		lag := "none"
		switch {
		case s.GetLag() > 0:
			lag = counted(s.GetLag(), "event")
		case firstOf(s.GetState(), "unknown") == "unknown":
			lag = "unknown"
		}
		rows[i] = []string{s.GetName(), s.GetKind(), s.GetAddress(), firstOf(s.GetFormat(), "json"), firstOf(s.GetState(), "unknown"), formatInt(s.GetNext()), lag, s.GetLastError()}
	}
	p.table([]string{"NAME", "KIND", "ADDRESS", "FORMAT", "STATE", "NEXT", "BEHIND", "LAST ERROR"}, rows)
}

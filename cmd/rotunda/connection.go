package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

const (
	defaultServer  = "http://127.0.0.1:8470"
	defaultTimeout = 30 * time.Second
	maxAnswer      = 16 << 20 // bytes of one message from the server
	maxCAFile      = 1 << 20
)

// connection is how the user says which server to call and as whom.
type connection struct {
	server, token, tokenFile, caFile, dataDir string
	insecure                                  bool
	timeout                                   durationFlag
}

// client gives cmd and the commands below it the flags of a client.
func (c *cli) client(cmd *cobra.Command) *cobra.Command {
	f := cmd.PersistentFlags()
	f.SortFlags = false
	c.output = choice{allowed: []string{"table", "json", "yaml"}, value: "table"}
	f.VarP(&c.output, "output", "o", "form of the result; json is the API's own")
	f.StringVar(&c.conf.server, "server", "", "URL of the server (ROTUNDA_SERVER) (default "+defaultServer+")")
	f.StringVar(&c.conf.token, "token", "", "access token; visible to everybody on this machine, so prefer ROTUNDA_TOKEN or --token-file")
	f.StringVar(&c.conf.tokenFile, "token-file", "", "file with the access token, mode 0600")
	f.StringVar(&c.conf.dataDir, "data-dir", "", "for a server on this machine, the data directory with its admin.token (ROTUNDA_DATA_DIR) (default ./"+string(defaultDataDir)+")")
	f.StringVar(&c.conf.caFile, "ca-file", "", "PEM file of the authorities that may sign the server's certificate")
	f.BoolVar(&c.conf.insecure, "insecure", false, "send the token in plain text to another machine")
	f.Var(&c.conf.timeout, "timeout", "longest time of a call (default 30s)")
	c.complete(cmd, "output", "table", "json", "yaml")
	_ = cmd.MarkPersistentFlagDirname("data-dir")
	return cmd
}

// conn is a server that can be called.
type conn struct {
	base      *url.URL
	timeout   time.Duration
	tokenFrom string       // where the token was found, for messages; "" when there is none
	looked    string       // the file that would have held one
	program   string       // how this program was called
	plain     *http.Client // without the token
	private   *http.Client // with it

	keysets v1connect.KeysetServiceClient
	tokens  v1connect.TokenServiceClient
	audit   v1connect.AuditServiceClient // what stands in the trail
	trail   v1connect.TrailServiceClient // how the trail is run

	partners     v1connect.PartnerServiceClient
	keys         v1connect.ApiKeyServiceClient
	secrets      v1connect.RequestSecretServiceClient
	peppers      v1connect.PepperServiceClient
	verification v1connect.VerificationServiceClient

	stores      v1connect.StoreServiceClient
	targets     v1connect.TargetServiceClient
	credentials v1connect.CredentialServiceClient
	rotations   v1connect.RotationServiceClient
	endpoints   v1connect.EndpointServiceClient
}

// connect prepares calls; it opens no connection.
func (c *cli) connect() (*conn, error) {
	base, err := parseServer(firstOf(c.conf.server, c.env("ROTUNDA_SERVER"), defaultServer))
	if err != nil {
		return nil, err
	}
	to := &conn{base: base, timeout: defaultTimeout, program: c.program}
	if c.conf.timeout.given != nil {
		if to.timeout = *c.conf.timeout.given; to.timeout <= 0 {
			return nil, usagef("--timeout must be longer than 0")
		}
	}
	token, err := c.findToken(to)
	if err != nil {
		return nil, err
	}
	guarded := base.Scheme == "http" && token != "" && !c.conf.insecure
	if guarded && !loopback(base.Hostname()) {
		return nil, fmt.Errorf("the token is not sent to %s: plain http would show it to everybody on the way: use https, or --insecure if nobody else can listen", base)
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: to.timeout, Control: guard(guarded)}).DialContext,
		TLSHandshakeTimeout: to.timeout,
		ForceAttemptHTTP2:   true,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if base.Scheme == "https" {
		transport.Proxy = http.ProxyFromEnvironment
	}
	if c.conf.caFile != "" {
		if transport.TLSClientConfig.RootCAs, err = readCAs(c.conf.caFile); err != nil {
			return nil, err
		}
	}
	// A redirect could lead the token away from TLS.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	to.plain = &http.Client{Transport: transport, CheckRedirect: stay}
	authorized := &http.Client{Transport: &bearer{token, transport}, CheckRedirect: stay}
	to.private = authorized
	options := []connect.ClientOption{connect.WithReadMaxBytes(maxAnswer)}
	if loopback(base.Hostname()) {
		// Here packing costs more time than it saves: half of that of an export.
		options = append(options, connect.WithAcceptCompression("gzip", nil, nil))
	}
	to.keysets = v1connect.NewKeysetServiceClient(authorized, base.String(), options...)
	to.tokens = v1connect.NewTokenServiceClient(authorized, base.String(), options...)
	to.audit = v1connect.NewAuditServiceClient(authorized, base.String(), options...)
	to.trail = v1connect.NewTrailServiceClient(authorized, base.String(), options...)
	to.partners = v1connect.NewPartnerServiceClient(authorized, base.String(), options...)
	to.keys = v1connect.NewApiKeyServiceClient(authorized, base.String(), options...)
	to.secrets = v1connect.NewRequestSecretServiceClient(authorized, base.String(), options...)
	to.peppers = v1connect.NewPepperServiceClient(authorized, base.String(), options...)
	to.verification = v1connect.NewVerificationServiceClient(authorized, base.String(), options...)
	to.stores = v1connect.NewStoreServiceClient(authorized, base.String(), options...)
	to.targets = v1connect.NewTargetServiceClient(authorized, base.String(), options...)
	to.credentials = v1connect.NewCredentialServiceClient(authorized, base.String(), options...)
	to.rotations = v1connect.NewRotationServiceClient(authorized, base.String(), options...)
	to.endpoints = v1connect.NewEndpointServiceClient(authorized, base.String(), options...)
	return to, nil
}

func parseServer(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, usagef("the server's URL can't be read: write it like %s", defaultServer)
	case u.User != nil: // not repeated: it may be a password
		return nil, usagef("the server's URL holds a user name: give a token with ROTUNDA_TOKEN or --token-file instead")
	case (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "":
		return nil, usagef("server %q is not a URL of a server: write it like %s", s, defaultServer)
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// findToken looks for the token in the order flag, file, environment, data
// directory. That there is none is for the server to judge.
func (c *cli) findToken(to *conn) (string, error) {
	if c.conf.token != "" && c.conf.tokenFile != "" {
		return "", usagef("give --token or --token-file, not both")
	}
	if c.conf.tokenFile != "" {
		to.tokenFrom = "--token-file"
		return readToken(c.conf.tokenFile)
	}
	for _, from := range []struct{ name, value string }{{"--token", c.conf.token}, {"ROTUNDA_TOKEN", c.env("ROTUNDA_TOKEN")}} {
		if from.value != "" {
			to.tokenFrom = from.name
			if err := checkToken(from.value); err != nil {
				return "", usagef("%s: %w", from.name, err)
			}
			return from.value, nil
		}
	}
	if !loopback(to.base.Hostname()) {
		return "", nil
	}
	to.looked = c.dataDir().adminToken()
	token, err := readToken(to.looked)
	if missing(err) {
		return "", nil
	}
	to.tokenFrom = to.looked
	return token, err
}

func (c *cli) dataDir() dataDir {
	return dataDir(firstOf(c.conf.dataDir, c.env("ROTUNDA_DATA_DIR"), string(defaultDataDir)))
}

// tokenHint says what to do about a token that is missing or was not accepted.
func (to *conn) tokenHint() string {
	switch {
	case to.tokenFrom != "":
		return "the token from " + to.tokenFrom + " is not accepted: it is mistyped, revoked, expired, of a suspended partner, or of another server"
	case to.looked != "":
		return "no token was sent: there is none at " + to.looked + "; set --data-dir, ROTUNDA_TOKEN or --token-file"
	default:
		return "no token was sent: set ROTUNDA_TOKEN or --token-file"
	}
}

// args are the flags with which a further command reaches the same server. A
// token on the command line is not among them: it would be repeated.
func (f *connection) args() []string {
	var out []string
	for _, flag := range []struct{ name, value string }{
		{"--server", f.server}, {"--token-file", f.tokenFile}, {"--data-dir", f.dataDir}, {"--ca-file", f.caFile},
	} {
		if flag.value != "" {
			out = append(out, flag.name, quote(flag.value))
		}
	}
	if f.insecure {
		out = append(out, "--insecure")
	}
	return out
}

// bearer adds the token to each request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b *bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if b.token != "" {
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	r.Header.Set("User-Agent", "rotunda/"+buildVersion()+" "+r.Header.Get("User-Agent"))
	return b.next.RoundTrip(r)
}

// plainError refuses a plain-text connection to another machine.
type plainError struct{ address string }

func (e *plainError) Error() string { return e.address + " is another machine" }

// guard refuses, when on, addresses of other machines: a name such as
// localhost is what a resolver says it is.
func guard(on bool) func(network, address string, _ syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		if !on {
			return nil
		}
		if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().Unmap().IsLoopback() {
			return nil
		}
		return &plainError{address}
	}
}

// loopback reports whether host names this machine.
func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && a.Unmap().IsLoopback()
}

func readCAs(path string) (*x509.CertPool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading --ca-file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCAFile))
	if err != nil {
		return nil, fmt.Errorf("reading --ca-file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("--ca-file %s holds no certificate in PEM form", path)
	}
	return pool, nil
}

// call is one unary call with a time limit. key is the Idempotency-Key, "" for none.
func call[Req, Res any](ctx context.Context, to *conn, rpc func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), msg *Req, key string) (*Res, error) {
	ctx, cancel := context.WithTimeout(ctx, to.timeout)
	defer cancel()
	req := connect.NewRequest(msg)
	if key != "" {
		req.Header().Set("Idempotency-Key", key)
	}
	res, err := rpc(ctx, req)
	if err != nil {
		return nil, &callError{to, err}
	}
	return res.Msg, nil
}

// idempotency gives cmd the flag for the key that makes a repeated create safe.
func idempotency(cmd *cobra.Command) func() string {
	given := cmd.Flags().String("idempotency-key", "", "repeat a create safely: the same key makes the same thing once (default: a random one)")
	return func() string { return firstOf(*given, rand.Text()) }
}

var errRepeats = errors.New("the server gave the same page twice: this is a fault of the server")

// collect follows pages until limit items are there. It returns the items and
// the token of the next page, "" after the last.
func collect[T any](limit, page int, fetch func(size int32, token string) ([]T, string, error)) ([]T, string, error) {
	var items []T
	token := ""
	for {
		got, next, err := fetch(int32(min(page, limit-len(items))), token)
		if err != nil {
			return nil, "", err
		}
		if next != "" && (next == token || len(got) == 0) {
			return nil, "", errRepeats
		}
		items = append(items, got...)
		if token = next; token == "" || len(items) >= limit {
			return items, token, nil
		}
	}
}

// limitFlag is how many things a list prints at most.
func limitFlag(cmd *cobra.Command, limit *int, otherwise int) {
	cmd.Flags().IntVar(limit, "limit", otherwise, "print at most this many (1 to 10000)")
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if *limit < 1 || *limit > 10000 {
			return usagef("--limit %d is outside 1 to 10000", *limit)
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}

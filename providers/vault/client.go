package vault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	maxAnswer   = 2 << 20 // a KV value of 64 KiB, escaped at its worst, is below 400 KiB
	maxPEM      = 64 << 10
	callTimeout = 30 * time.Second
)

// mountPattern is the path of a mount: segments without surprises.
const mountPattern = `[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*){0,7}`

// namePattern is the name of a role or key inside a mount.
const namePattern = `[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}`

// Settings are what every kind of this package is set up with, and a signer's home.
func Settings() []providers.Setting {
	return []providers.Setting{
		{Name: "address", Doc: "https://HOST[:PORT] of Vault, of a load balancer before it, or of a Vault Agent or Proxy", Required: true},
		{Name: "namespace", Doc: "Vault Enterprise or HCP namespace", Pattern: `[A-Za-z0-9_./-]{1,256}`},
		{Name: "ca_cert", Doc: "certificates in PEM that Vault's is checked against, instead of the system's", Pattern: `(?s)\s*-----BEGIN CERTIFICATE-----.+`},
		{Name: "auth", Doc: "how Rotunda logs in", OneOf: []string{"token", "approle", "kubernetes", "cert"}, Default: "token"},
		{Name: "auth_mount", Doc: "path of the auth method; by default its name", Pattern: mountPattern},
		{Name: "auth_role", Doc: "role of the auth methods kubernetes (required) and cert", Pattern: namePattern},
		{Name: "jwt_path", Doc: "file with the service account's token for auth=kubernetes; it is read at each login", Default: "/var/run/secrets/kubernetes.io/serviceaccount/token"},
		providers.Plaintext(),
	}
}

// Logins are the secret settings; which are needed depends on the setting auth.
func Logins() []providers.Setting {
	pem := `(?s)\s*-----BEGIN .+`
	return []providers.Setting{
		{Name: "token", Doc: "token, for auth=token"},
		{Name: "role_id", Doc: "role id, for auth=approle"},
		{Name: "secret_id", Doc: "secret id, for auth=approle"},
		{Name: "client_cert", Doc: "certificate in PEM, for auth=cert", Pattern: pem},
		{Name: "client_key", Doc: "private key in PEM, for auth=cert", Pattern: pem},
	}
}

// Client speaks with one Vault as one identity. Safe for concurrent use.
type Client struct {
	name      string
	address   *url.URL
	namespace string
	login     login
	transport *http.Transport
	bare      *api.Client // has no token: logs in, asks for health
	now       func() time.Time

	turn chan struct{} // taken by whoever looks at held, logs in or renews
	held token
}

// NewClient checks the configuration. It does not reach Vault.
func NewClient(c providers.Config) (*Client, error) {
	u, err := providers.CheckURL(c, c.Settings["address"])
	if err != nil {
		return nil, err
	}
	if c.Now == nil {
		return nil, fmt.Errorf("open %s: the configuration has no clock", c.Name)
	}
	l, err := newLogin(c)
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if text := c.Settings["ca_cert"]; text != "" {
		if len(text) > maxPEM {
			return nil, fault.Invalid("settings.ca_cert", "setting_too_long", "%s: ca_cert has %d bytes, at most %d are allowed", c.Name, len(text), maxPEM)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(text)) {
			return nil, fault.Invalid("settings.ca_cert", "ca_cert_malformed", "%s: ca_cert holds no certificate in PEM", c.Name)
		}
	}
	if l.certificate != nil {
		conf.Certificates = []tls.Certificate{*l.certificate}
	}
	client := &Client{
		name: c.Name, address: u, namespace: c.Settings["namespace"], login: l, now: c.Now, turn: make(chan struct{}, 1),
		transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConns: 32, MaxIdleConnsPerHost: 32, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
	}
	if client.bare, err = client.api(secret.Value{}); err != nil {
		return nil, err
	}
	return client, nil
}

// Close frees connections.
func (c *Client) Close() error {
	c.transport.CloseIdleConnections()
	return nil
}

// api makes a client of Vault's own library with one token. The library takes what it
// is not given from VAULT_* in the environment: everything is given, or taken back. It
// has no Timeout: with one, its raw calls end the context before the answer is read.
func (c *Client) api(token secret.Value) (*api.Client, error) {
	v, err := api.NewClient(&api.Config{
		Address: c.address.String(), HttpClient: &http.Client{Transport: guard{c.transport}},
		MaxRetries: 0, DisableRedirects: true,
		CheckRetry: func(_ context.Context, _ *http.Response, err error) (bool, error) { return false, err },
	})
	if err != nil {
		return nil, fault.New(fault.ErrInvalid, "vault_client", "open %s: the VAULT_* environment of this process is malformed: unset it, Rotunda does not use it", c.name)
	}
	v.SetHeaders(http.Header{api.RequestHeaderName: {"true"}}) // the namespace is one, too
	if c.namespace != "" {
		v.SetNamespace(c.namespace)
	}
	v.SetWrappingLookupFunc(func(string, string) string { return "" })
	v.SetToken(token.RevealString())
	return v, nil
}

// guard bounds what is read, and turns a redirect into an error: it would be followed
// with the token, or be taken for a success.
type guard struct{ next http.RoundTripper }

func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := g.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 200 {
		// The body of a 101 is the bare connection, which no context ends: it is never read.
		_ = resp.Body.Close()
		return nil, errNoAnswer
	}
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		_ = resp.Body.Close()
		return nil, errRedirect
	}
	resp.Body = &bounded{resp.Body, maxAnswer}
	return resp, nil
}

var (
	errRedirect = errors.New("it answered with a redirect to another node: set the address to the active node or a load balancer")
	errNoAnswer = errors.New("it wants to switch to another protocol: that is not Vault")
	errTooLong  = fmt.Errorf("its answer is longer than %d bytes", maxAnswer)
)

type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if b.left -= n; b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// method is a way to call Vault.
type method string

const (
	get    method = "read"
	list   method = "list"
	put    method = "write"
	patch  method = "patch"
	remove method = "delete"
)

// Read reads path, which has no secret in it, into out: the object of the answer's
// field "data". See the package comment for the kinds of errors.
func (c *Client) Read(ctx context.Context, path string, out any) error {
	return c.call(ctx, get, path, nil, out)
}

// Write writes in to path, and reads the answer's "data" into out when out is not nil.
func (c *Client) Write(ctx context.Context, path string, in map[string]any, out any) error {
	return c.call(ctx, put, path, in, out)
}

// call makes one call with the client's token, and once more with a new one when that
// was refused.
func (c *Client) call(ctx context.Context, m method, path string, in map[string]any, out any) error {
	s, err := c.session(ctx)
	if err != nil {
		return err
	}
	err = c.once(ctx, s.vault, m, path, in, answer{Data: out})
	if !errors.Is(err, fault.ErrDenied) {
		return err
	}
	again, loginErr := c.refresh(ctx, s, err)
	if loginErr != nil {
		return loginErr
	}
	if again == nil {
		return err
	}
	return c.once(ctx, again.vault, m, path, in, answer{Data: out})
}

// answer is the part of Vault's answers that is read.
type answer struct {
	Data any   `json:"data"`
	Auth *auth `json:"auth"`
}

// auth is what a login answers.
type auth struct {
	ClientToken   string   `json:"client_token"`
	LeaseDuration int64    `json:"lease_duration"` // seconds; 0: no end
	Renewable     bool     `json:"renewable"`
	TokenType     string   `json:"token_type"`
	Policies      []string `json:"policies"`
}

// once makes one call. When the answer is 404 with data (KV v2: the version is
// deleted), out is filled in and the error is fault.ErrNotFound all the same.
func (c *Client) once(ctx context.Context, v *api.Client, m method, path string, in map[string]any, out answer) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("%s %s of %s: encode the request: %w", m, path, c.name, err)
		}
		defer clear(body)
	}
	var resp *api.Response
	var err error
	l := v.Logical()
	switch m {
	case get:
		resp, err = l.ReadRawWithContext(ctx, path)
	case list:
		resp, err = l.ReadRawWithDataWithContext(ctx, path, map[string][]string{"list": {"true"}})
	case put:
		resp, err = l.WriteRawWithContext(ctx, path, body)
	case remove:
		resp, err = l.DeleteRawWithContext(ctx, path)
	case patch:
		// The library's own raw patch has another content type than Vault wants.
		_, err = l.JSONMergePatch(ctx, path, in)
	}
	var text []byte
	if resp != nil && resp.Response != nil && resp.Body != nil {
		var readErr error
		text, readErr = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		defer clear(text)
		if err == nil {
			err = readErr
		}
	}
	if err != nil {
		missing := c.classify(ctx, m, path, in, err)
		if errors.Is(missing, fault.ErrNotFound) && out.Data != nil && len(text) > 0 {
			_ = json.Unmarshal(text, &out) // an answer without data leaves it as it was
		}
		return missing
	}
	if len(text) == 0 || (out.Data == nil && out.Auth == nil) {
		return nil
	}
	if json.Unmarshal(text, &out) != nil {
		return fault.New(fault.ErrUnavailable, "vault_answer", "%s %s of %s: the answer is not what Vault gives", m, path, c.name)
	}
	return nil
}

// classify sorts what went wrong with a call.
func (c *Client) classify(ctx context.Context, m method, path string, in map[string]any, err error) error {
	answered, ok := errors.AsType[*api.ResponseError](err)
	if !ok {
		if ctx.Err() != nil {
			return fault.New(fault.ErrUnavailable, "vault_timeout", "%s %s of %s: no answer: %w", m, path, c.name, context.Cause(ctx))
		}
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL
		}
		return fault.New(fault.ErrUnavailable, "vault_unreachable", "%s %s of %s: %w", m, path, c.name, err)
	}
	kind, reason, do := fault.ErrUnavailable, "vault_error", ""
	switch answered.StatusCode {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, http.StatusRequestEntityTooLarge:
		kind, reason = fault.ErrInvalid, "vault_refused"
	case http.StatusForbidden, http.StatusUnauthorized:
		kind, reason, do = fault.ErrDenied, "vault_denied", ": see the policy that `rotunda credential preflight` prints"
	case http.StatusNotFound:
		kind, reason = fault.ErrNotFound, "vault_not_found"
	case http.StatusTooManyRequests:
		kind, reason = fault.ErrLimited, "vault_limited"
	case http.StatusServiceUnavailable:
		reason = "vault_sealed"
	}
	return fault.New(kind, reason, "%s %s of %s: Vault answered %d: %s%s", m, path, c.name, answered.StatusCode, quote(answered.Errors, in), do)
}

// quote is what Vault said, without any of the strings that were sent.
func quote(said []string, sent map[string]any) string {
	text := strings.Join(strings.Fields(strings.Join(said, "; ")), " ")
	if text == "" {
		return "(no reason given)"
	}
	var scrub func(v any)
	scrub = func(v any) {
		switch v := v.(type) {
		case string:
			if len(v) >= 8 {
				text = strings.ReplaceAll(text, v, "[redacted]")
			}
		case map[string]string:
			for _, s := range v {
				scrub(s)
			}
		case map[string]any:
			for _, s := range v {
				scrub(s)
			}
		}
	}
	scrub(sent)
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, text)
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	return text
}

// said reports whether Vault's reason holds a phrase. It is only asked where Vault has
// one status for several reasons.
func said(err error, phrase string) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), phrase)
}

// encode is JSON text of what may be in metadata.
func encode(v any) (string, error) {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSpace(b.String()), nil
}

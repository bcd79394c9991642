package httptarget

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

const (
	maxAnswer = 64 << 10
	maxCert   = 64 << 10
	pathForm  = `[A-Za-z0-9_.~-]+(/[A-Za-z0-9_.~-]+)*`
	nameForm  = `[\x21-\x7e]{1,200}`
	fieldForm = `[A-Za-z_][A-Za-z0-9_.-]{0,127}`
)

// Kind is the kind "http".
func Kind() providers.TargetKind {
	return providers.TargetKind{
		Name: "http",
		Doc:  "A partner's own endpoints to set, test and revoke a value, asked by signed requests (Standard Webhooks).",
		Settings: []providers.Setting{
			{Name: "address", Doc: "https://HOST[:PORT][/PATH] that the endpoints are below", Required: true},
			{Name: "set", Doc: "the endpoint that accepts a new value", Default: "set", Pattern: pathForm},
			{Name: "test", Doc: "the endpoint that says whether a value is accepted", Default: "test", Pattern: pathForm},
			{Name: "revoke", Doc: "the endpoint that ends a value", Default: "revoke", Pattern: pathForm},
			{Name: "retire", Doc: "the endpoint that ends a value at a time; empty: the partner has none", Pattern: pathForm},
			{Name: "usage", Doc: "the endpoint that says how a value is used; empty: the partner has none", Pattern: pathForm},
			{Name: "ca_cert", Doc: "certificates in PEM that the partner's is checked against, instead of the system's", Pattern: `(?s)\s*-----BEGIN CERTIFICATE-----.+`},
			{Name: "allow_private", Doc: "true: the partner's system may have an address that is not public", Default: "false", OneOf: []string{"true", "false"}},
			{Name: "timeout", Doc: "seconds until a request that has no answer is given up", Default: "10", Pattern: `[1-9]|[1-5][0-9]|60`},
			providers.Plaintext(),
		},
		Login: []providers.Setting{
			{Name: "signing_secret", Doc: "what requests are signed with: whsec_ and base64 of 24 to 64 bytes, or whsk_ and base64 of an Ed25519 key", Required: true},
		},
		Params: append([]providers.Setting{
			{Name: "account", Doc: "whose value it is, as the partner names it", Required: true, Pattern: nameForm},
			{Name: "account_b", Doc: "the account that takes turns with it, for the strategy alternate", Pattern: nameForm},
			{Name: "field", Doc: "the name of the field with the value", Default: "password", Pattern: fieldForm},
			{Name: "account_field", Doc: "the name of the field with the account", Default: "username", Pattern: fieldForm},
		}, providers.PasswordParams()...),
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Replace, providers.Dual, providers.Alternate}},
		Open:   open,
	}
}

type target struct {
	name      string
	base      *url.URL
	endpoints map[string]string // step to path
	secret    webhook.Secret
	now       func() time.Time
	timeout   time.Duration
	client    *http.Client
	transport *http.Transport
}

func open(_ context.Context, c providers.Config) (providers.Target, error) {
	base, err := providers.CheckURL(c, c.Settings["address"])
	if err != nil {
		return nil, err
	}
	if c.Now == nil {
		return nil, fault.Invalid("now", "missing", "%s: requests can't be signed without a clock", c.Name)
	}
	key, err := webhook.ParseSecret(c.Login.Text("signing_secret"))
	if err == nil {
		_, err = webhook.Sign("try", c.Now(), nil, key) // a public key signs nothing
	}
	if err != nil {
		return nil, fault.Invalid("login.signing_secret", "malformed", "%s: the signing secret is not whsec_ and base64 of 24 to 64 bytes, nor whsk_ and base64 of an Ed25519 private key", c.Name)
	}
	seconds, err := strconv.Atoi(c.Settings["timeout"])
	if err != nil || seconds < 1 || seconds > 60 {
		return nil, fault.Invalid("settings.timeout", "malformed", "%s: the timeout is 1 to 60 seconds", c.Name)
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if pem := c.Settings["ca_cert"]; pem != "" {
		trust.RootCAs = x509.NewCertPool()
		if len(pem) > maxCert || !trust.RootCAs.AppendCertsFromPEM([]byte(pem)) {
			return nil, fault.Invalid("settings.ca_cert", "malformed", "%s: ca_cert holds no certificate in PEM, or more than %d bytes", c.Name, maxCert)
		}
	}
	t := &target{
		name: c.Name, base: base, secret: key, now: c.Now, timeout: time.Duration(seconds) * time.Second,
		endpoints: map[string]string{},
		transport: &http.Transport{
			DialContext:            dialer(c.Settings["allow_private"] == "true").DialContext,
			TLSClientConfig:        trust,
			ForceAttemptHTTP2:      true,
			MaxResponseHeaderBytes: maxAnswer,
			MaxConnsPerHost:        16,
			IdleConnTimeout:        time.Minute,
			// Else all requests of HTTP/2 go on to use a connection that was cut in silence.
			HTTP2: &http.HTTP2Config{SendPingTimeout: time.Duration(seconds) * time.Second, PingTimeout: time.Duration(seconds) * time.Second},
			// A handshake outlives the request that began it, and holds one of the places.
			TLSHandshakeTimeout: time.Duration(seconds) * time.Second,
		},
	}
	for _, step := range []string{"set", "test", "revoke", "retire", "usage"} {
		t.endpoints[step] = c.Settings[step]
	}
	t.client = &http.Client{
		Transport:     t.transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return t, nil
}

func (t *target) Close() error {
	t.transport.CloseIdleConnections()
	return nil
}

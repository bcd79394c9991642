// Package consumers runs token verifiers that other people wrote, so that
// Rotunda's promise "no gap" is checked against them and not against our idea
// of them: go-oidc, keyfunc and jwx in this process, jose and jwks-rsa in Node,
// PyJWT in Python, and mod_auth_openidc inside a real Apache.
//
// # Model
//
// A [Starter] starts one verifier for one JWKS URL, issuer and audience, and
// gives back a [Consumer]. A consumer holds its own cache, exactly as the
// library keeps it; nothing here fetches, caches, retries or forgives on its
// behalf. Two consumers of the same kind share nothing.
//
// Each adapter uses the defaults of its library. Where a default is longer than
// a test can wait, it is shortened, and [Consumer.Profile] says so, so that the
// policy under test is computed from the figures in use:
//
//	verifier          figures in use                                            shortened
//	go-oidc           no expiry; refetch on each unknown kid                    no
//	keyfunc           hourly; refetch on an unknown kid, once per 20 s          throttle, from 5 min
//	jwx               max-age of the response, at least 15 s; never on a kid    minimum, from 15 min
//	jose              600 s; unknown kid after a 30 s cooldown                  no
//	jwks-rsa          600 s for each kid; refetch on each unknown kid           no
//	PyJWT             300 s; refetch on each unknown kid                        no
//	mod_auth_openidc  3600 s; forced refetch on an unknown kid                  no
//
// Two figures were measured and are not what one expects: jwx fetches one to
// two seconds after max-age has passed, because its timer counts whole seconds;
// and mod_auth_openidc 2.4.12 (Debian 12) refetches on each unknown kid, while
// later ones do so once per 60 s.
//
// # Failure
//
// A refusal is an answer: [Consumer.Verify] returns ok=false and the library's
// own words, also when the reason is that the JWKS could not be fetched,
// because that is what a caller of that library would see. An error means that
// the verifier itself could not be asked (its process ended, or the context
// did). A tool that is not installed is [ErrMissing] and names the command that
// installs it.
//
// Verifiers outside this process are children: they are told to end when the
// test process dies, listen on loopback only, and keep their files in a
// temporary folder that Close removes.
//
// This is a Go module of its own, so that none of these libraries becomes a
// dependency of Rotunda.
package consumers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// ErrMissing says that a verifier can't be started because something that it
// needs is not installed.
var ErrMissing = errors.New("not installed")

// Consumer is one running verifier. Its methods may be called concurrently.
type Consumer interface {
	// Name is the verifier's name in tables and failures, such as "go-oidc".
	Name() string
	// Profile is the consumer profile that a policy must list for this
	// verifier, and the figures in which this instance differs from it.
	Profile() (name string, overrides map[string]string)
	// Verify asks whether the verifier accepts token (a JWS in compact form).
	// When it doesn't, why holds the verifier's reason. err is about asking,
	// never about the token.
	Verify(ctx context.Context, token string) (ok bool, why string, err error)
	// Close ends the verifier and removes its files.
	Close()
}

// Config says what a verifier trusts. Every field but Dir is required.
type Config struct {
	JWKSURL  string // https; the only place the verifier learns keys from
	Issuer   string // the only accepted iss
	Audience string // the only accepted aud
	CAFile   string // PEM file with the root that JWKSURL's certificate chains to
	Dir      string // folder of this package, with node/, python/ and node_modules/; "" is the working directory
}

// Starter is one kind of verifier.
type Starter struct {
	Name      string
	Profile   string            // as [Consumer.Profile]
	Overrides map[string]string // as [Consumer.Profile]; values are Go durations

	start func(context.Context, Config) (verifier, error)
}

// verifier is what an adapter implements; see [Consumer].
type verifier interface {
	Verify(ctx context.Context, token string) (ok bool, why string, err error)
	Close()
}

// Starters lists every kind of verifier, in the order of the tables.
func Starters() []Starter {
	return []Starter{
		{"go-oidc", "go-oidc", nil, startGoOIDC},
		{"keyfunc", "keyfunc", map[string]string{"throttle": keyfuncThrottle.String()}, startKeyfunc},
		{"jwx", "jwx", map[string]string{"min_interval": jwxMinInterval.String()}, startJWX},
		{"jose", "jose", nil, startJose},
		{"jwks-rsa", "jwks-rsa", nil, startJWKSRSA},
		{"PyJWT", "pyjwt", nil, startPyJWT},
		{"mod_auth_openidc", "mod_auth_openidc", nil, startApache},
	}
}

// Start starts a verifier. ctx bounds the start, not the verifier's life.
func (s Starter) Start(ctx context.Context, c Config) (Consumer, error) {
	err := c.check()
	if err == nil {
		var v verifier
		if v, err = s.start(ctx, c); err == nil {
			return consumer{v, s}, nil
		}
	}
	return nil, fmt.Errorf("start %s: %w", s.Name, err)
}

type consumer struct {
	verifier
	starter Starter
}

func (c consumer) Name() string { return c.starter.Name }

func (c consumer) Profile() (string, map[string]string) {
	return c.starter.Profile, c.starter.Overrides
}

func (c consumer) Verify(ctx context.Context, token string) (bool, string, error) {
	ok, why, err := c.verifier.Verify(ctx, token)
	if err != nil {
		return false, "", fmt.Errorf("%s: verify: %w", c.Name(), err)
	}
	return ok, why, nil
}

// Algorithms are the JWS algorithms that every adapter allows where its library
// knows them; an allow list is the caller's duty in each of these libraries
// (RFC 8725, section 3.1).
func Algorithms() []string {
	return []string{
		"ES256", "ES384", "ES512",
		"RS256", "RS384", "RS512",
		"PS256", "PS384", "PS512",
		"EdDSA",
	}
}

// check refuses what would otherwise surface as a verifier's puzzling refusal,
// or break out of a generated configuration file.
func (c Config) check() error {
	u, err := url.Parse(c.JWKSURL)
	if err != nil {
		return fmt.Errorf("JWKS URL %q: %w", c.JWKSURL, err)
	}
	if u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("JWKS URL %q: must be https with a host, because mod_auth_openidc takes nothing else", c.JWKSURL)
	}
	for name, v := range map[string]string{"JWKS URL": c.JWKSURL, "issuer": c.Issuer, "audience": c.Audience, "CA file": c.CAFile} {
		if v == "" || strings.ContainsAny(v, "\"\\\r\n\t $%{}") {
			return fmt.Errorf("%s %q: must be set, without spaces, quotes, backslashes, braces, $ and %%", name, v)
		}
	}
	return nil
}

// client makes an HTTP client that trusts the configured root and nothing else.
func (c Config) client() (*http.Client, error) {
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s: no PEM certificate in it", c.CAFile)
	}
	return &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
	}, nil
}

func missing(what string) error {
	return fmt.Errorf("%s: %w: run `make setup`", what, ErrMissing)
}

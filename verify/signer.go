package verify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// SignerConfig says with which key requests are signed, and what is signed of them.
type SignerConfig struct {
	// KeyID names the key: the id of the request secret's version.
	KeyID string
	// Secret is a request secret as Rotunda shows it: whsec_ and base64. It is not
	// printed with the configuration.
	Secret string
	// PrivateKey, in place of Secret, is that of a public key which is registered
	// with Rotunda: Ed25519, ECDSA on P-256 or RSA. It may be a device.
	PrivateKey crypto.Signer

	// Components are what is signed. Empty: @method, @authority, @path, @query and
	// content-digest. @authority or @target-uri must be among them. "@query" is left
	// out of requests without a query, "content-digest" of those without a body.
	Components []string
	// Tag, if not empty, is that of each signature.
	Tag string
	// Hosts are the only ones that requests are signed for and sent to, as they stand
	// in URLs: "api.example", "localhost:8080". Empty: any.
	Hosts []string
	// MaxBody bounds a body that is kept in memory to be digested, because the request
	// has no GetBody. 0: 1 MiB.
	MaxBody int64
	// Base sends the requests. nil: http.DefaultTransport.
	Base http.RoundTripper
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Format prints everything but the secret.
func (c SignerConfig) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "verify.SignerConfig(%s)", c.KeyID) }

// Signer is an http.RoundTripper that signs each request (RFC 9421) with a new nonce
// of 128 bits. It is safe for concurrent use.
//
// A client that follows a redirect, or tries again, sends through it again, and so
// with a new signature. What net/http sends again by itself, when a connection that
// was kept open proves dead, carries the same nonce: if the server had read the first
// after all, it refuses the second as a replay, and the caller tries again.
type Signer struct {
	cfg SignerConfig
	key *httpsig.Key
}

// Format prints the key id only: some verbs would go down to the private key.
func (s Signer) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "verify.Signer(%s)", s.cfg.KeyID) }

// ErrHost says that a request is not signed, nor sent, because of where it goes.
var ErrHost = errors.New("the host is not one that requests are signed for")

// NewSigner checks the configuration.
func NewSigner(cfg SignerConfig) (*Signer, error) {
	s := &Signer{cfg: cfg}
	var err error
	switch {
	case cfg.KeyID == "":
		return nil, errors.New("signing requests: KeyID is empty")
	case (cfg.Secret == "") == (cfg.PrivateKey == nil):
		return nil, errors.New("signing requests: set one of Secret and PrivateKey")
	case cfg.Secret != "":
		s.key, err = SecretKey(cfg.Secret)
	default:
		s.key, err = httpsig.NewPrivateKey(cfg.PrivateKey)
	}
	s.cfg.Secret, s.cfg.PrivateKey = "", nil // the key has it, and does not print it
	if err != nil {
		return nil, fmt.Errorf("signing requests: %w", err)
	}
	if len(cfg.Components) == 0 {
		s.cfg.Components = []string{"@method", "@authority", "@path", "@query", "content-digest"}
	}
	if !slices.Contains(s.cfg.Components, "@authority") && !slices.Contains(s.cfg.Components, "@target-uri") {
		return nil, errors.New("signing requests: Components needs @authority or @target-uri: else a host that is sent a request can send it on to another")
	}
	if cfg.MaxBody <= 0 {
		s.cfg.MaxBody = defaultBody
	}
	if cfg.Base == nil {
		s.cfg.Base = http.DefaultTransport
	}
	if cfg.Now == nil {
		s.cfg.Now = time.Now
	}
	return s, nil
}

// RoundTrip signs a request and sends it. The request itself is not changed.
func (s *Signer) RoundTrip(r *http.Request) (*http.Response, error) {
	signed, err := s.Sign(r)
	if err != nil {
		return nil, err
	}
	return s.cfg.Base.RoundTrip(signed)
}

// Sign returns a copy of a request with Content-Digest, Signature-Input and
// Signature, to be sent once. The body moves to the copy: with an error it is closed.
func (s *Signer) Sign(r *http.Request) (*http.Request, error) {
	signed, err := s.sign(r)
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // nobody will read it
		}
		return nil, fmt.Errorf("signing a request: %w", err)
	}
	return signed, nil
}

func (s *Signer) sign(r *http.Request) (*http.Request, error) {
	if err := s.check(r); err != nil {
		return nil, err
	}
	out := r.Clone(r.Context())
	if out.Header == nil {
		out.Header = http.Header{}
	}
	digest, err := s.digest(out)
	if err != nil {
		return nil, err
	}
	out.Header.Del("Content-Digest")
	if digest != "" {
		out.Header.Set("Content-Digest", digest)
	}
	m := messageTo(out)
	components := slices.DeleteFunc(slices.Clone(s.cfg.Components), func(c string) bool {
		return c == "content-digest" && digest == "" || c == "@query" && !m.HasQuery
	})
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	input, signature, err := httpsig.Sign(m, s.key, httpsig.Params{
		Components: components, Created: s.cfg.Now(), KeyID: s.cfg.KeyID, Tag: s.cfg.Tag,
		Nonce: base64.RawURLEncoding.EncodeToString(nonce),
	})
	if err != nil {
		return nil, err
	}
	out.Header.Set("Signature-Input", input)
	out.Header.Set("Signature", signature)
	return out, nil
}

func (s *Signer) check(r *http.Request) error {
	switch {
	case r.URL == nil || r.URL.Host == "" || r.URL.Opaque != "" || r.Method == http.MethodConnect:
		return errors.New("it needs a URL with a host, and another method than CONNECT")
	case len(r.Header["Signature"]) > 0 || len(r.Header["Signature-Input"]) > 0:
		return errors.New("it is signed already")
	case r.URL.User != nil:
		// net/http makes a second credential of it.
		return errors.New("its URL has a user name: leave it out")
	case len(s.cfg.Hosts) == 0:
		return nil
	case !slices.ContainsFunc(s.cfg.Hosts, func(h string) bool { return strings.EqualFold(h, r.URL.Host) }),
		r.Host != "" && !slices.ContainsFunc(s.cfg.Hosts, func(h string) bool { return strings.EqualFold(h, r.Host) }):
		return fmt.Errorf("%w: %s", ErrHost, quote(r.URL.Host))
	}
	return nil
}

// messageTo is a request as its receiver will see it.
func messageTo(r *http.Request) *httpsig.Message {
	m := &httpsig.Message{
		Method: r.Method, Scheme: r.URL.Scheme, Authority: r.Host,
		Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, HasQuery: hasQuery(r.URL), Header: r.Header,
	}
	if m.Method == "" {
		m.Method = http.MethodGet
	}
	if m.Authority == "" {
		m.Authority = r.URL.Host
	}
	return m
}

func hasQuery(u *url.URL) bool { return u.RawQuery != "" || u.ForceQuery }

// digest returns the Content-Digest of the body of r, or nothing for a request
// without one. A body that can be had again is not kept.
func (s *Signer) digest(r *http.Request) (string, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return "", nil
	}
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			return "", fmt.Errorf("getting the body: %w", err)
		}
		defer body.Close()
		h := sha256.New()
		n, err := io.Copy(h, &cancellable{r.Context(), body})
		if err != nil {
			return "", fmt.Errorf("reading the body: %w", err)
		}
		if r.ContentLength > 0 && n != r.ContentLength {
			return "", fmt.Errorf("the body has %d bytes, and ContentLength says %d", n, r.ContentLength)
		}
		return "sha-256=:" + base64.StdEncoding.EncodeToString(h.Sum(nil)) + ":", nil
	}
	body, err := io.ReadAll(io.LimitReader(&cancellable{r.Context(), r.Body}, s.cfg.MaxBody+1))
	if err != nil {
		return "", fmt.Errorf("reading the body: %w", err)
	}
	if int64(len(body)) > s.cfg.MaxBody {
		return "", fmt.Errorf("the body has more than %d bytes: set GetBody, or a larger MaxBody", s.cfg.MaxBody)
	}
	if r.ContentLength > 0 && int64(len(body)) != r.ContentLength {
		return "", fmt.Errorf("the body has %d bytes, and ContentLength says %d", len(body), r.ContentLength)
	}
	r.Body = &readAgain{Reader: bytes.NewReader(body), Closer: r.Body}
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	r.ContentLength = int64(len(body))
	return httpsig.Digest(body), nil
}

// cancellable reads until its context is done.
type cancellable struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancellable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

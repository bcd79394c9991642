package vault

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

// login is how a client becomes somebody.
type login struct {
	method      string
	path        string // of the login; empty for a token
	role        string
	jwtPath     string
	token       secret.Value
	roleID      secret.Value
	secretID    secret.Value
	certificate *tls.Certificate
}

func newLogin(c providers.Config) (login, error) {
	l := login{method: c.Settings["auth"], role: c.Settings["auth_role"], jwtPath: c.Settings["jwt_path"]}
	mount := c.Settings["auth_mount"]
	if mount == "" {
		mount = l.method
	}
	l.path = "auth/" + mount + "/login"
	need := func(name string) (secret.Value, error) {
		v := c.Login[name]
		if v.IsZero() || v.Len() > maxPEM {
			return v, fault.Invalid("login."+name, "login_missing", "%s: auth=%s needs %s, of at most %d bytes", c.Name, l.method, name, maxPEM)
		}
		// A line break at the end comes with files; inside, no header could carry it.
		return secret.FromString(strings.TrimSpace(v.RevealString())), nil
	}
	var err error
	switch l.method {
	case "", "token":
		l.method, l.path = "token", ""
		l.token, err = need("token")
		if err == nil && strings.ContainsFunc(l.token.RevealString(), func(r rune) bool { return r <= ' ' || r > '~' }) {
			err = fault.Invalid("login.token", "login_malformed", "%s: the token has characters that no token has", c.Name)
		}
	case "approle":
		if l.roleID, err = need("role_id"); err == nil {
			l.secretID, err = need("secret_id")
		}
	case "kubernetes":
		if l.role == "" {
			err = fault.Invalid("settings.auth_role", "setting_missing", "%s: auth=kubernetes needs auth_role", c.Name)
		}
	case "cert":
		var cert, key secret.Value
		if cert, err = need("client_cert"); err != nil {
			break
		}
		if key, err = need("client_key"); err != nil {
			break
		}
		if c.Settings["plaintext"] == "allow" || !strings.HasPrefix(c.Settings["address"], "https:") {
			err = fault.Invalid("settings.address", "plaintext", "%s: auth=cert needs TLS: use an https address, without plaintext=allow", c.Name)
			break
		}
		pair, parseErr := tls.X509KeyPair(cert.Reveal(), key.Reveal())
		if parseErr != nil {
			err = fault.Invalid("login.client_cert", "login_malformed", "%s: client_cert and client_key are not a certificate and its key in PEM", c.Name)
			break
		}
		l.certificate = &pair
	default:
		err = fault.Invalid("settings.auth", "setting_unknown_value", "%s: auth %q is unknown", c.Name, l.method)
	}
	return l, err
}

// jwtForm is a signed token in the compact form of RFC 7515, section 3.1: three parts in base64url,
// the first of which is a JSON object.
var jwtForm = regexp.MustCompile(`^ey[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// request is the body of a login.
func (l login) request(name string) (map[string]any, error) {
	switch l.method {
	case "approle":
		return map[string]any{"role_id": l.roleID.RevealString(), "secret_id": l.secretID.RevealString()}, nil
	case "cert":
		if l.role == "" {
			return map[string]any{}, nil
		}
		return map[string]any{"name": l.role}, nil
	}
	f, err := os.Open(l.jwtPath)
	if err != nil {
		return nil, fault.New(fault.ErrUnavailable, "jwt_unreadable", "log in to %s: the service account's token can't be read: %w", name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, fault.New(fault.ErrUnavailable, "jwt_unreadable", "log in to %s: the service account's token can't be read: %w", name, err)
	}
	defer clear(text)
	token := strings.TrimSpace(string(text))
	if !jwtForm.MatchString(token) {
		// Whoever may set a path and an address must not have another file of this machine sent there.
		return nil, fault.New(fault.ErrUnavailable, "jwt_malformed", "log in to %s: %s holds no JSON Web Token: set jwt_path to the file with the service account's token", name, l.jwtPath)
	}
	return map[string]any{"role": l.role, "jwt": token}, nil
}

// token is what a client holds while it is somebody.
type token struct {
	vault     *api.Client
	since     time.Time
	renewAt   time.Time // zero: never
	expires   time.Time // zero: never
	renewable bool
}

// young is how long a refusal is not blamed on the token: each one of a client that
// lacks a permission would log in anew.
const young = time.Minute

func (c *Client) take(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.New(fault.ErrUnavailable, "vault_timeout", "log in to %s: %w", c.name, context.Cause(ctx))
	}
}

// session returns a token that is not at its end. Of several calls that need a new one,
// one gets it, and the others wait.
func (c *Client) session(ctx context.Context) (*token, error) {
	if err := c.take(ctx); err != nil {
		return nil, err
	}
	defer func() { <-c.turn }()
	now := c.now()
	if c.held.vault != nil && (c.held.renewAt.IsZero() || now.Before(c.held.renewAt)) {
		t := c.held
		return &t, nil
	}
	if c.held.vault != nil && c.held.renewable && now.Before(c.held.expires) {
		err := c.renew(ctx, now)
		if err == nil {
			t := c.held
			return &t, nil
		}
		if c.login.method == "token" {
			if !errors.Is(err, fault.ErrDenied) && !errors.Is(err, fault.ErrInvalid) {
				return nil, err
			}
			// It is used to its end, as nothing can replace it.
			c.held.renewable, c.held.renewAt = false, c.held.expires
			t := c.held
			return &t, nil
		}
	}
	return c.enter(ctx, now)
}

// refresh is asked for after a refusal: a new token, or nil when there is no better one.
func (c *Client) refresh(ctx context.Context, used *token, refusal error) (*token, error) {
	if err := c.take(ctx); err != nil {
		return nil, err
	}
	defer func() { <-c.turn }()
	if c.held.vault != nil && c.held.vault != used.vault { // somebody else was faster
		t := c.held
		return &t, nil
	}
	now := c.now()
	if c.login.method == "token" || (now.Sub(used.since) < young && !said(refusal, "invalid token")) {
		return nil, nil
	}
	return c.enter(ctx, now)
}

// enter logs in. The caller holds the turn.
func (c *Client) enter(ctx context.Context, now time.Time) (*token, error) {
	if c.login.method == "token" {
		return c.adopt(ctx, now)
	}
	in, err := c.login.request(c.name)
	if err != nil {
		return nil, err
	}
	got := &auth{}
	if err := c.once(ctx, c.bare, put, c.login.path, in, answer{Auth: got}); err != nil {
		return nil, c.refused(err)
	}
	if got.ClientToken == "" {
		return nil, fault.New(fault.ErrDenied, "login_refused", "log in to %s: Vault gave no token: this login wants a second factor, which Rotunda has not", c.name)
	}
	return c.hold(secret.FromString(got.ClientToken), got, now)
}

// refused makes an error of a login say so: what was refused is Rotunda itself.
func (c *Client) refused(err error) error {
	for _, kind := range []error{fault.ErrDenied, fault.ErrInvalid, fault.ErrNotFound} {
		if errors.Is(err, kind) {
			return fault.New(fault.ErrDenied, "login_refused", "log in to %s (auth=%s): refused: check its role and login, or give a new one with `rotunda store update` or `rotunda target update`: %w", c.name, c.login.method, plain{err})
		}
	}
	return err
}

// plain is an error without its kinds: a refused login is no refused request.
type plain struct{ err error }

func (p plain) Error() string { return p.err.Error() }

// adopt uses the token that was given, and asks Vault how long it lives.
func (c *Client) adopt(ctx context.Context, now time.Time) (*token, error) {
	v, err := c.api(c.login.token)
	if err != nil {
		return nil, err
	}
	var self struct {
		TTL       int64 `json:"ttl"`
		Renewable bool  `json:"renewable"`
	}
	err = c.once(ctx, v, get, "auth/token/lookup-self", nil, answer{Data: &self})
	if errors.Is(err, fault.ErrDenied) && !said(err, "invalid token") {
		// Its policy may allow other things than to look at itself. An ended token is
		// refused by the call that follows.
		err = nil
	}
	if err != nil {
		return nil, c.refused(err)
	}
	return c.hold(c.login.token, &auth{LeaseDuration: self.TTL, Renewable: self.Renewable}, now)
}

// renew lengthens the held token's life. The caller holds the turn.
func (c *Client) renew(ctx context.Context, now time.Time) error {
	got := &auth{}
	if err := c.once(ctx, c.held.vault, put, "auth/token/renew-self", map[string]any{}, answer{Auth: got}); err != nil {
		return fmt.Errorf("renew the token for %s: %w", c.name, err)
	}
	life := time.Duration(got.LeaseDuration) * time.Second
	if left := c.held.expires.Sub(now); c.login.method != "token" && life <= left+time.Second {
		return fmt.Errorf("renew the token for %s: it is at its longest life", c.name)
	}
	c.held.live(life, now)
	c.held.renewable = got.Renewable
	return nil
}

func (c *Client) hold(value secret.Value, got *auth, now time.Time) (*token, error) {
	v, err := c.api(value)
	if err != nil {
		return nil, err
	}
	c.held = token{vault: v, since: now, renewable: got.Renewable}
	c.held.live(time.Duration(got.LeaseDuration)*time.Second, now)
	t := c.held
	return &t, nil
}

// live sets when a token has to be renewed: after two thirds of its life.
func (t *token) live(life time.Duration, now time.Time) {
	t.renewAt, t.expires = time.Time{}, time.Time{}
	if life > 0 {
		t.expires = now.Add(life)
		t.renewAt = now.Add(life * 2 / 3)
	}
}

package consumers

import (
	"context"
	"net/http"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/golang-jwt/jwt/v5"
	"github.com/lestrrat-go/httprc/v3"
	"github.com/lestrrat-go/jwx/v3/jwk"
	jwxjwt "github.com/lestrrat-go/jwx/v3/jwt"
	"golang.org/x/time/rate"
)

const (
	keyfuncThrottle = 20 * time.Second // the library's default is 5 min
	jwxMinInterval  = 15 * time.Second // the library's default is 15 min
)

// library is a verifier that lives in this process.
type library struct {
	// verify returns nil when the token is accepted.
	verify func(ctx context.Context, token string) error
	close  func()
}

func (l *library) Close() { l.close() }

func (l *library) Verify(ctx context.Context, token string) (bool, string, error) {
	err := l.verify(ctx, token)
	if err == nil {
		return true, "", nil
	}
	// A context that ended says nothing about the token.
	if ctx.Err() != nil {
		return false, "", ctx.Err()
	}
	return false, err.Error(), nil
}

func startGoOIDC(ctx context.Context, c Config) (verifier, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	keys := oidc.NewRemoteKeySet(oidc.ClientContext(ctx, client), c.JWKSURL)
	// Without discovery go-oidc allows RS256 alone.
	oidcVerifier := oidc.NewVerifier(c.Issuer, keys, &oidc.Config{ClientID: c.Audience, SupportedSigningAlgs: Algorithms()})
	return &library{
		verify: func(ctx context.Context, token string) error {
			_, err := oidcVerifier.Verify(ctx, token)
			return err
		},
		close: client.CloseIdleConnections,
	}, nil
}

func startKeyfunc(ctx context.Context, c Config) (verifier, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	// The context ends keyfunc's refresh goroutine, so it is Close's, not the caller's.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	kf, err := keyfunc.NewDefaultOverrideCtx(ctx, []string{c.JWKSURL}, keyfunc.Override{
		Client:            client,
		RefreshUnknownKID: rate.NewLimiter(rate.Every(keyfuncThrottle), 1),
	})
	if err != nil {
		cancel()
		return nil, err
	}
	parser := jwt.NewParser(jwt.WithValidMethods(Algorithms()), jwt.WithIssuer(c.Issuer), jwt.WithAudience(c.Audience), jwt.WithExpirationRequired())
	return &library{
		verify: func(ctx context.Context, token string) error {
			_, err := parser.Parse(token, kf.KeyfuncCtx(ctx))
			return err
		},
		close: stop(cancel, client),
	}, nil
}

func startJWX(ctx context.Context, c Config) (verifier, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cache, err := jwk.NewCache(life, httprc.NewClient())
	if err != nil {
		cancel()
		return nil, err
	}
	// Register waits for the first fetch.
	err = cache.Register(ctx, c.JWKSURL, jwk.WithHTTPClient(client), jwk.WithHttprcResourceOption(httprc.WithMinInterval(jwxMinInterval)))
	if err != nil {
		cancel()
		return nil, err
	}
	keys, err := cache.CachedSet(c.JWKSURL)
	if err != nil {
		cancel()
		return nil, err
	}
	return &library{
		verify: func(ctx context.Context, token string) error {
			_, err := jwxjwt.Parse([]byte(token), jwxjwt.WithContext(ctx), jwxjwt.WithKeySet(keys),
				jwxjwt.WithIssuer(c.Issuer), jwxjwt.WithAudience(c.Audience), jwxjwt.WithRequiredClaim(jwxjwt.ExpirationKey))
			return err
		},
		close: stop(cancel, client),
	}, nil
}

func stop(cancel context.CancelFunc, client *http.Client) func() {
	return func() {
		cancel()
		client.CloseIdleConnections()
	}
}

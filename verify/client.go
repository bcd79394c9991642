package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// ClientConfig says which Rotunda server answers, and who asks.
type ClientConfig struct {
	// URL of the server, https://rotunda.example. Plain http is spoken with this
	// host only, unless AllowHTTP is set: then keys can be read on the way.
	URL       string
	AllowHTTP bool
	// Token is an access token of the role gateway, or of a partner who asks about
	// its own keys. It is not printed with the configuration.
	Token string
	// TokenFrom, in place of Token, is asked before each call, for tokens that change.
	TokenFrom func(context.Context) (string, error)
	// HTTPClient makes the calls. Redirects are not followed.
	HTTPClient *http.Client
	// Timeout of one question, with its second attempt. 0: 2 seconds; at most 1 minute.
	Timeout time.Duration
}

// Format prints everything but the token.
func (c ClientConfig) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "verify.ClientConfig(%s)", c.URL)
}

// Client asks a Rotunda server. It remembers nothing, so that revoked means
// revoked. It is safe for concurrent use.
type Client struct {
	rpc     rotundav1connect.VerificationServiceClient
	timeout time.Duration
}

const (
	maxAnswer  = 1 << 20
	maxKey     = 1024
	maxTimeout = time.Minute
)

// NewClient checks the configuration and opens no connection.
func NewClient(cfg ClientConfig) (*Client, error) {
	if err := checkURL(cfg.URL, cfg.AllowHTTP); err != nil {
		return nil, fmt.Errorf("verifying with a server: URL %w", err)
	}
	if (cfg.Token == "") == (cfg.TokenFrom == nil) {
		return nil, errors.New("verifying with a server: set one of Token and TokenFrom")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Second
	}
	if cfg.Timeout < 0 || cfg.Timeout > maxTimeout {
		return nil, fmt.Errorf("verifying with a server: Timeout is %s: it goes up to %s", cfg.Timeout, maxTimeout)
	}
	from := cfg.TokenFrom
	if from == nil {
		token := cfg.Token
		from = func(context.Context) (string, error) { return token, nil }
	}
	hc := boundedClient(cfg.HTTPClient, func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse })
	return &Client{
		rpc: rotundav1connect.NewVerificationServiceClient(hc, strings.TrimSuffix(cfg.URL, "/"),
			connect.WithReadMaxBytes(maxAnswer), connect.WithInterceptors(bearer(from))),
		timeout: cfg.Timeout,
	}, nil
}

// bearer puts the token on each call. The token is held by the function only.
func bearer(from func(context.Context) (string, error)) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			token, err := from(ctx)
			if err != nil {
				return nil, fmt.Errorf("getting the access token: %w", err)
			}
			req.Header().Set("Authorization", "Bearer "+token)
			return next(ctx, req)
		}
	}
}

// KeyRequest is a question about an API key.
type KeyRequest struct {
	Key         string
	Scopes      []string   // all of them are needed
	Address     netip.Addr // of the client; without it a key with address ranges is denied
	Partner     string     // empty: any
	Environment string     // empty: any
	Cost        int64      // what the request takes from the rate limit; 0: 1
}

// Format prints everything but the key.
func (q KeyRequest) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "verify.KeyRequest(scopes %v, address %s)", q.Scopes, addressText(q.Address))
}

// VerifyKey asks whether an API key is accepted. The error is [ErrUnavailable]; a
// denial is a [Decision].
//
// When the connection breaks, a question of cost 1 is asked once more, within the
// same time. If the server had heard the first, the request has taken one more from
// its rate limit; the other way round an honest client would be turned away each
// time that a server restarts.
func (c *Client) VerifyKey(ctx context.Context, q KeyRequest) (Decision, error) {
	if q.Key == "" {
		return denied(ReasonMissing, "there is no key"), nil
	}
	if len(q.Key) > maxKey || !printable(q.Key) {
		return denied(ReasonMalformed, "it has not the form of a key"), nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	ask := func() (*connect.Response[rotundav1.VerifyApiKeyResponse], error) {
		return c.rpc.VerifyApiKey(ctx, connect.NewRequest(&rotundav1.VerifyApiKeyRequest{
			Key: q.Key, Scopes: q.Scopes, Address: addressText(q.Address),
			Partner: q.Partner, Environment: q.Environment, Cost: q.Cost, WantHeaders: true,
		}))
	}
	res, err := ask()
	if err != nil && q.Cost <= 1 && brokeOff(err) && ctx.Err() == nil {
		res, err = ask()
	}
	if err != nil {
		return Decision{}, notAnswered("an API key", err)
	}
	return decision(res.Msg)
}

// brokeOff says that the connection failed, not the server.
func brokeOff(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return !op.Timeout()
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// notAnswered makes the error of a question without answer. What the server says
// is for whoever runs the gateway: a wrong token is a fault of his, not of the
// client whose key it was.
func notAnswered(what string, err error) error {
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return fmt.Errorf("%w: asking about %s: the server does not accept this gateway's access token: %w", ErrUnavailable, what, err)
	case connect.CodeUnimplemented, connect.CodeNotFound:
		return fmt.Errorf("%w: asking about %s: there is no Rotunda with VerificationService at this URL: %w", ErrUnavailable, what, err)
	default:
		return fmt.Errorf("%w: asking about %s: %w", ErrUnavailable, what, err)
	}
}

// answer is what both kinds of response have.
type answer interface {
	GetReason() rotundav1.VerifyReason
	GetVerified() *rotundav1.Verified
	GetHttpStatus() int32
	GetHeaders() []*rotundav1.Header
}

func decision(a answer) (Decision, error) {
	reason, ok := reasons[a.GetReason()]
	if !ok {
		// A newer server: what it means is not known, that it is no yes is.
		return Decision{}, fmt.Errorf("%w: the server answers with reason %d, which is not known here: update this package", ErrUnavailable, a.GetReason())
	}
	v := a.GetVerified()
	if reason == ReasonOK && v.GetKeyId() == "" {
		return Decision{}, fmt.Errorf("%w: the server accepts a key and does not say whose", ErrUnavailable)
	}
	d := Decision{
		Reason: reason, Status: reason.status(),
		Partner: v.GetPartner(), KeyID: v.GetKeyId(), Name: v.GetName(), Environment: v.GetEnvironment(),
		Publishable: v.GetClass() == rotundav1.KeyClass_KEY_CLASS_PUBLISHABLE,
		Scopes:      slices.Clone(v.GetScopes()), Metadata: maps.Clone(v.GetMetadata()),
		Retiring: v.GetState() == rotundav1.ApiKeyState_API_KEY_STATE_RETIRING, ReplacedBy: v.GetReplacedBy(),
	}
	if s := int(a.GetHttpStatus()); reason != ReasonOK && (s == http.StatusUnauthorized || s == http.StatusForbidden || s == http.StatusTooManyRequests) {
		d.Status = s
	}
	if t := v.GetExpiresAt(); t != nil {
		d.ExpiresAt = t.AsTime()
	}
	if t := v.GetGraceEndsAt(); t != nil {
		d.GraceEndsAt = t.AsTime()
	}
	if r := v.GetRate(); r != nil {
		d.Rate = &Rate{
			Quota: r.GetLimit().GetQuota(), Window: r.GetLimit().GetWindow().AsDuration(),
			Remaining: r.GetRemaining(), Reset: r.GetReset_().AsDuration(), RetryAfter: r.GetRetryAfter().AsDuration(),
		}
	}
	for _, h := range a.GetHeaders() {
		name := http.CanonicalHeaderKey(h.GetName())
		if slices.Contains(clientHeaders, name) && printable(h.GetValue()) {
			if d.Header == nil {
				d.Header = http.Header{}
			}
			d.Header.Add(name, h.GetValue())
		}
	}
	return d, nil
}

// clientHeaders are those that a response to the client may get from the server.
var clientHeaders = []string{"Ratelimit", "Ratelimit-Policy", "Retry-After", "Deprecation", "Sunset", "Link", "Www-Authenticate"}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().WithZone("").String()
}

// printable says that s is printable ASCII; spaces too.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

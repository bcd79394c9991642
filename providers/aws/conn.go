package aws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// Bounds of one call. The largest answer is a secret of 65,536 bytes, all of them
// escaped in JSON.
const (
	callTimeout = 30 * time.Second
	maxAnswer   = 1 << 20
)

func settings() []providers.Setting {
	return []providers.Setting{
		{Name: "region", Doc: "region, such as eu-central-1; default: AWS_REGION or the shared configuration of the SDK", Pattern: `[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}`},
		{Name: "endpoint", Doc: "address to use instead of AWS's own; AWS_ENDPOINT_URL does the same", Pattern: `https?://[^\s?#@]{1,500}`},
		{Name: "sts_endpoint", Doc: "address of STS when it is another one than endpoint, as with a VPC endpoint of one service", Pattern: `https?://[^\s?#@]{1,500}`},
		{Name: "role_arn", Doc: "role to assume with the login", Pattern: `arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,576}`},
		{Name: "external_id", Doc: "external id that the role's trust policy asks for", Pattern: `[\w+=,.@:/-]{2,1000}`},
		providers.Plaintext(),
	}
}

func login() []providers.Setting {
	return []providers.Setting{
		{Name: "access_key_id", Doc: "access key id; without it the SDK's default chain is used (environment, shared files, web identity, container, machine)", Pattern: `[A-Za-z0-9]{16,128}`},
		{Name: "secret_access_key", Doc: "secret access key", Pattern: `[A-Za-z0-9/+=]{16,128}`},
		{Name: "session_token", Doc: "session token, with temporary credentials only", Pattern: `[A-Za-z0-9/+=_.:-]+`},
	}
}

// conn is how the adapters reach AWS.
type conn struct {
	name   string
	cfg    sdk.Config
	keys   *sdk.CredentialsCache
	plain  bool   // plain text is allowed
	stsURL string // empty: as for the other services
	now    func() time.Time
}

func open(ctx context.Context, c providers.Config) (*conn, error) {
	options := []func(*config.LoadOptions) error{
		config.WithRetryer(func() sdk.Retryer { return sdk.NopRetryer{} }),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(callTimeout)),
	}
	if r := c.Settings["region"]; r != "" {
		options = append(options, config.WithRegion(r))
	}
	if e := c.Settings["endpoint"]; e != "" {
		options = append(options, config.WithBaseEndpoint(e))
	}
	id, secret := c.Login.Text("access_key_id"), c.Login.Text("secret_access_key")
	switch {
	case (id == "") != (secret == ""):
		return nil, fault.Invalid("login", "login_incomplete", "%s: access_key_id and secret_access_key come together: give both, or neither for the SDK's default chain", c.Name)
	case id != "":
		options = append(options, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(id, secret, c.Login.Text("session_token"))))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fault.Invalid("settings", "aws_configuration", "%s: the SDK's shared configuration can't be read: check AWS_PROFILE, AWS_CONFIG_FILE and AWS_CA_BUNDLE", c.Name)
	}
	cfg.Logger = logging.Nop{} // what is worth saying comes back as an error
	if cfg.Region == "" {
		return nil, fault.Invalid("settings.region", "setting_missing", "%s: there is no region: set region, or AWS_REGION", c.Name)
	}
	// Not before the configuration is loaded, which puts AWS_CA_BUNDLE into the client.
	cfg.HTTPClient = bounded{cfg.HTTPClient}
	k := &conn{name: c.Name, cfg: cfg, now: c.Now, plain: c.Settings["plaintext"] == "allow", stsURL: c.Settings["sts_endpoint"]}
	if k.now == nil {
		return nil, fault.Invalid("settings", "no_clock", "%s: the configuration has no clock", c.Name)
	}
	base := cfg.Credentials
	if role := c.Settings["role_arn"]; role != "" {
		client, err := k.sts(k.cfg)
		if err != nil {
			return nil, err
		}
		base = stscreds.NewAssumeRoleProvider(client, role, func(o *stscreds.AssumeRoleOptions) {
			o.RoleSessionName = "rotunda"
			if e := c.Settings["external_id"]; e != "" {
				o.ExternalID = &e
			}
		})
	}
	// One cache that can be emptied, whatever the chain made of it.
	k.keys = sdk.NewCredentialsCache(base)
	k.cfg.Credentials = k.keys
	return k, nil
}

// sts returns a client that acts as the login of cfg.
func (k *conn) sts(cfg sdk.Config) (*sts.Client, error) {
	client := sts.NewFromConfig(cfg, func(o *sts.Options) {
		if k.stsURL != "" {
			o.BaseEndpoint = &k.stsURL
		}
	})
	return client, k.checkEndpoint(client.Options().BaseEndpoint)
}

// checkEndpoint refuses an address that is not AWS's own and without TLS. It is asked
// of the client, which knows what the environment said.
func (k *conn) checkEndpoint(endpoint *string) error {
	if endpoint == nil {
		return nil
	}
	u, err := url.Parse(*endpoint)
	if err != nil || u.Host == "" {
		return fault.Invalid("settings.endpoint", "address_malformed", "%s: the endpoint is not https://HOST[:PORT]", k.name)
	}
	if u.Scheme != "https" && !providers.Loopback(u.Hostname()) && !k.plain {
		return fault.Invalid("settings.endpoint", "plaintext", "%s: %.200q would be spoken to without TLS: use https, or set plaintext=allow if nobody else can listen", k.name, u.Hostname())
	}
	return nil
}

// bounded is an HTTP client whose answers end.
type bounded struct {
	sdk.HTTPClient
}

func (b bounded) Do(r *http.Request) (*http.Response, error) {
	res, err := b.HTTPClient.Do(r)
	if err != nil {
		return nil, err
	}
	if res.StatusCode < http.StatusOK {
		// The body of a 101 is the bare connection, which no context ends: it is never read.
		_ = res.Body.Close()
		return nil, errNoAnswer
	}
	res.Body = &boundedBody{ReadCloser: res.Body, left: maxAnswer}
	return res, nil
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

var errTooLong = errors.New("the answer is longer than 1 MiB")

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}

// do makes one call. A login that AWS does not take is tried once more with
// credentials that are resolved afresh: a session may have ended, a key may have been
// rotated in the file that it comes from, and the client has learned AWS's clock.
// It returns an error of a kind of package fault.
func (k *conn) do(ctx context.Context, what string, call func() error) error {
	err := call()
	if err != nil && badLogin(code(err)) && ctx.Err() == nil {
		k.keys.Invalidate()
		err = call()
	}
	return k.explain(ctx, what, err)
}

// errNoAnswer is a success that does not say what AWS always says: it came from
// something in between, and what was asked for may not have been done.
var errNoAnswer = errors.New("the answer is not one of AWS")

func answered(err error, whole bool) error {
	if err == nil && !whole {
		return errNoAnswer
	}
	return err
}

// reason is the word for programs of an error that do returned.
func reason(err error) string {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f.Reason
	}
	return ""
}

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func status(err error) int {
	var res *awshttp.ResponseError
	if errors.As(err, &res) {
		return res.HTTPStatusCode()
	}
	return 0
}

// badLogin: AWS does not take the signature. The names differ by protocol.
func badLogin(code string) bool {
	switch code {
	case "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException",
		"SignatureDoesNotMatch", "InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed",
		"IncompleteSignature", "IncompleteSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException":
		return true
	}
	return false
}

var unsafeText = regexp.MustCompile(`[^\x20-\x7e]`)

// explain sorts an error of the SDK into the kinds of package fault. The SDK's own text
// is left out: it may hold what was sent.
func (k *conn) explain(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %s: %w", k.name, what, ctx.Err())
	}
	c, said, request := code(err), "", ""
	var res *awshttp.ResponseError
	if errors.As(err, &res) && res.ServiceRequestID() != "" {
		request = fmt.Sprintf(" (request %.64s)", res.ServiceRequestID())
	}
	fail := func(kind error, reason, remedy string) error {
		return fault.New(kind, reason, "%s: %s: AWS says %.64s%s%s: %s", k.name, what, c, said, request, remedy)
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		switch c {
		case "AccessDenied", "AccessDeniedException", "ResourceNotFoundException", "NoSuchEntity", "NoSuchEntityException",
			"LimitExceeded", "LimitExceededException", "InvalidRequestException", "EncryptionFailure", "DecryptionFailure":
			// These tell of names and states only.
			said = fmt.Sprintf(" (%.400s)", unsafeText.ReplaceAllString(api.ErrorMessage(), "?"))
		}
	}
	switch {
	case c == "":
		if status(err) == 0 && k.noCredentials(ctx) {
			return fault.New(fault.ErrUnavailable, "aws_no_credentials", "%s: %s: no credentials could be had: give access_key_id and secret_access_key, or check the SDK's default chain", k.name, what)
		}
		return fault.New(fault.ErrUnavailable, "aws_unreachable", "%s: %s: no answer of AWS could be had: check the network, the region and the endpoint", k.name, what)
	case c == "Throttling", c == "ThrottlingException", c == "ThrottledException", c == "RequestThrottled", c == "RequestThrottledException",
		c == "TooManyRequestsException", c == "RequestLimitExceeded", c == "SlowDown", c == "PriorRequestNotComplete", status(err) == http.StatusTooManyRequests:
		return fail(fault.ErrLimited, "aws_throttled", "the same is tried again later")
	case c == "ExpiredToken", c == "ExpiredTokenException", c == "RequestExpired":
		return fail(fault.ErrDenied, "aws_login_expired", "the login has expired: renew it")
	case badLogin(c):
		return fail(fault.ErrDenied, "aws_login_refused", "the login is not accepted: check access key, secret, session token, region, and the clock of this machine")
	case c == "AccessDenied", c == "AccessDeniedException", c == "UnauthorizedOperation", c == "OptInRequired", c == "NotAuthorized":
		return fail(fault.ErrDenied, "aws_access_denied", "allow the action to this login; a preflight shows the policy")
	case c == "ResourceNotFoundException", c == "NoSuchEntity", c == "NoSuchEntityException":
		return fail(fault.ErrNotFound, "aws_not_found", "check the name, the account and the region")
	case c == "LimitExceeded", c == "LimitExceededException":
		return fail(fault.ErrTransition, "aws_quota", "a quota of AWS is used up: free some of it")
	case c == "EntityAlreadyExists", c == "EntityAlreadyExistsException", c == "DeleteConflict", c == "DeleteConflictException":
		return fail(fault.ErrTransition, "aws_conflict", "look at what is there")
	case c == "InvalidRequestException":
		return fail(fault.ErrTransition, "aws_state", "bring it into a state in which it can be written")
	case c == "EncryptionFailure", c == "DecryptionFailure":
		return fail(fault.ErrDenied, "aws_kms", "check that the KMS key of the secret is enabled, and that this login may use it")
	case c == "ResourceExistsException":
		return fail(fault.ErrStale, "aws_exists", "somebody else made another one")
	case c == "ValidationException", c == "ValidationError", c == "InvalidParameterException", c == "InvalidParameterValue", c == "InvalidInput",
		c == "InvalidAction", c == "UnknownOperationException", c == "SerializationException":
		return fail(fault.ErrInvalid, "aws_invalid", "AWS does not take the request as it is")
	}
	return fail(fault.ErrUnavailable, "aws_failed", "what came of it is not known: the same is tried again")
}

// noCredentials tells whether it was the chain that failed, not AWS.
func (k *conn) noCredentials(ctx context.Context) bool {
	_, err := k.keys.Retrieve(ctx)
	return err != nil
}

// Clock skew: AWS refuses signatures that are five minutes off.
const (
	skewWarning = 30 * time.Second
	skewRefused = 4 * time.Minute
)

// skew is the finding about the clock, from the Date of an answer. It has whole seconds.
func (k *conn) skew(m middleware.Metadata) providers.Finding {
	f := providers.Finding{Check: "clock_skew", OK: true}
	at, ok := awsmiddleware.GetServerTime(m)
	if !ok {
		f.Detail = "AWS's answer had no date"
		return f
	}
	d := k.now().Sub(at)
	f.Measured = fmt.Sprintf("clock skew %s", d.Truncate(time.Second))
	f.Detail = "the clock of this machine agrees with AWS's"
	if d = d.Abs(); d > skewWarning {
		f.OK, f.Warning = false, d <= skewRefused
		f.Detail = fmt.Sprintf("the clock of this machine is %s off; AWS refuses signatures from five minutes on", d.Truncate(time.Second))
		f.Remedy = "let NTP set the clock"
	}
	return f
}

// Package server is the edge: Connect services, authentication and
// authorization, the public JWKS endpoints, metrics and health.
//
// # How a request flows
//
// RPC: [Server.Handler] gives it an id, finds out who calls (a bearer token),
// and puts the actor into its context; the interceptor decides by the Cedar
// policy whether he may, checks the message against its protovalidate rules,
// and turns the domain's error into a Connect error by one table. Handlers
// decode, call, encode. A caller that is refused is in the trail.
//
// Public: documents are served from memory by a path of their own with no
// look-up beyond the document itself, so that a stopped database, a full disk
// or a busy API never stops them.
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"connectrpc.com/otelconnect"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/jwks"
	"github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
	"github.com/rotunda-dev/rotunda/rotation"
)

// Bounds of every request.
const (
	maxBody     = 128 << 10
	maxVerify   = 192 << 10 // of a request to VerificationService: 96 KiB of body are 128 KiB in JSON
	maxImport   = 1 << 20   // of a request to ApiKeyService: 500 keys to import, with what belongs to each
	maxName     = 63        // of a partner
	rpcTimeout  = 30 * time.Second
	metricsPath = "/metrics"
)

// Config is what a Server needs.
type Config struct {
	DB      *store.DB
	Keysets *jwks.Keysets
	Tokens  *apikeys.Tokens
	Denials *audit.Denials
	Trail   *audit.Trail
	Places  Places
	Log     *slog.Logger

	Partners *apikeys.Partners
	Keys     *apikeys.Keys
	Peppers  *apikeys.Peppers
	Verifier *apikeys.Verifier

	Systems     *rotation.Systems
	Credentials *rotation.Credentials
	Rotations   *rotation.Rotations
	Incidents   *rotation.Incidents
	Endpoints   *rotation.Endpoints
	Secrets     Secrets

	// PublicURL is where consumers reach the documents, for discovery:
	// "https://keys.example.com". Without a trailing slash.
	PublicURL string

	// PublicRate bounds requests per second and client to the public
	// endpoints; a registered gateway is exempt. 0: 100.
	PublicRate float64

	// PublishTrail lets anyone read the trail's checkpoints, tiles, entries and
	// keys, within PublicRate. Entries hold commitments in place of personal
	// values; actions, resources, outcomes and times are in the clear.
	PublishTrail bool

	// Tracing makes a span for each RPC, with the global OpenTelemetry provider.
	Tracing bool

	// TrustedProxies are the addresses whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
}

// Server serves Rotunda's API and documents.
type Server struct {
	Config
	log      *slog.Logger
	authz    *authorizer
	callers  principals
	warned   atomic.Int64 // DB.Tick when an outage was last logged that stopped a verification
	metrics  *meters
	public   *limiter
	failures *limiter // of authentication
	gateways atomic.Pointer[[]netip.Prefix]
	watchers atomic.Int64
	streams  perToken
	recheck  time.Duration // how often a stream's token is looked at again
	patience time.Duration // for one message of a stream to be taken

	followers seats
	exports   seats
	rotations seats
	stats     rotationStats
	heartbeat time.Duration                // of followers, and of who watches a rotation
	status    atomic.Pointer[audit.Status] // when this process last looked
}

// New returns a Server.
func New(cfg Config) (*Server, error) {
	if cfg.Trail == nil || cfg.Places == nil {
		return nil, errors.New("make a server: Trail and Places are required")
	}
	if cfg.Partners == nil || cfg.Keys == nil || cfg.Peppers == nil || cfg.Verifier == nil {
		return nil, errors.New("make a server: Partners, Keys, Peppers and Verifier are required")
	}
	if cfg.Systems == nil || cfg.Credentials == nil || cfg.Rotations == nil || cfg.Incidents == nil || cfg.Endpoints == nil || cfg.Secrets == nil {
		return nil, errors.New("make a server: Systems, Credentials, Rotations, Incidents, Endpoints and Secrets are required")
	}
	authz, err := newAuthorizer()
	if err != nil {
		return nil, err
	}
	if cfg.PublicRate == 0 {
		cfg.PublicRate = 100
	}
	cfg.PublicURL = strings.TrimSuffix(cfg.PublicURL, "/")
	s := &Server{Config: cfg, log: cfg.Log, authz: authz,
		public:   newLimiter(cfg.PublicRate, int(2*cfg.PublicRate)+1),
		failures: newLimiter(10, 50),
		recheck:  recheckEvery,
		patience: sendWithin,

		followers: seats{what: "follower", most: maxFollowers, perToken: maxFollowersPerToken},
		exports:   seats{what: "export", most: maxExports, perToken: maxExportsPerToken},
		rotations: seats{what: "watcher", most: maxRotationWatchers, perToken: maxRotationWatchersPerToken},
		heartbeat: heartbeat,
	}
	s.metrics = newMeters(s)
	s.gateways.Store(&[]netip.Prefix{})
	return s, nil
}

// Handler returns everything that Rotunda serves.
func (s *Server) Handler() (http.Handler, error) {
	interceptors := []connect.Interceptor{&interceptor{s}}
	if s.Tracing {
		otel, err := otelconnect.NewInterceptor(otelconnect.WithoutMetrics())
		if err != nil {
			return nil, fmt.Errorf("make the OpenTelemetry interceptor: %w", err)
		}
		interceptors = append([]connect.Interceptor{otel}, interceptors...)
	}
	options := []connect.HandlerOption{
		connect.WithInterceptors(interceptors...),
		connect.WithCodec(strictJSON{"json"}), connect.WithCodec(strictJSON{"json; charset=utf-8"}),
		connect.WithReadMaxBytes(maxBody),
		connect.WithCompressMinBytes(1 << 10),
	}
	rpc := http.NewServeMux()
	rpc.Handle(rotundav1connect.NewKeysetServiceHandler(&keysetService{s}, options...))
	rpc.Handle(rotundav1connect.NewAuditServiceHandler(&auditService{s}, options...))
	rpc.Handle(rotundav1connect.NewTokenServiceHandler(&tokenService{s}, options...))
	rpc.Handle(rotundav1connect.NewTrailServiceHandler(&trailService{s}, options...))
	rpc.Handle(rotundav1connect.NewPartnerServiceHandler(&partnerService{s}, options...))
	rpc.Handle(rotundav1connect.NewApiKeyServiceHandler(&apiKeyService{s}, append(slices.Clip(options), connect.WithReadMaxBytes(maxImport))...))
	rpc.Handle(rotundav1connect.NewRequestSecretServiceHandler(&requestSecretService{s}, options...))
	rpc.Handle(rotundav1connect.NewPepperServiceHandler(&pepperService{s}, options...))
	rpc.Handle(rotundav1connect.NewStoreServiceHandler(&storeService{s}, options...))
	rpc.Handle(rotundav1connect.NewTargetServiceHandler(&targetService{s}, options...))
	rpc.Handle(rotundav1connect.NewCredentialServiceHandler(&credentialService{s}, options...))
	rpc.Handle(rotundav1connect.NewRotationServiceHandler(&rotationService{s}, options...))
	rpc.Handle(rotundav1connect.NewEndpointServiceHandler(&endpointService{s}, options...))
	services := []string{
		rotundav1connect.KeysetServiceName, rotundav1connect.AuditServiceName, rotundav1connect.TokenServiceName, rotundav1connect.TrailServiceName,
		rotundav1connect.PartnerServiceName, rotundav1connect.ApiKeyServiceName, rotundav1connect.RequestSecretServiceName,
		rotundav1connect.PepperServiceName, rotundav1connect.VerificationServiceName,
		rotundav1connect.StoreServiceName, rotundav1connect.TargetServiceName, rotundav1connect.CredentialServiceName, rotundav1connect.RotationServiceName,
		rotundav1connect.EndpointServiceName,
	}
	reflector := grpcreflect.NewStaticReflector(services...)
	rpc.Handle(grpcreflect.NewHandlerV1(reflector))
	rpc.Handle(grpcreflect.NewHandlerV1Alpha(reflector))

	mux := http.NewServeMux()
	mux.Handle("/", s.authenticated(rpc))
	verifying, h := rotundav1connect.NewVerificationServiceHandler(&verificationService{s}, append(slices.Clip(options), connect.WithReadMaxBytes(maxVerify))...)
	mux.Handle(verifying, s.authenticated(h)) // called most of all, and so found at once
	mux.Handle("GET "+metricsPath, s.authenticated(s.metricsHandler()))
	mux.Handle(grpchealth.NewHandler(healthChecker{s, services}, connect.WithReadMaxBytes(1<<10)))
	if err := s.mountGateways(mux); err != nil {
		return nil, err
	}
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.HandleFunc("GET /readyz", s.readyz)
	s.mountTrail(mux, s.mountPublic(mux))
	return s.recovered(mux), nil
}

// GatewayPass learns where registered gateways are.
func (s *Server) GatewayPass(ctx context.Context, _ time.Time) (time.Time, error) {
	ranges, err := s.Tokens.GatewayRanges(ctx)
	if err != nil {
		return time.Time{}, err
	}
	s.gateways.Store(&ranges)
	return time.Time{}, nil
}

// recovered turns a panic into a 500 and a log line with its stack.
func (s *Server) recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler { //nolint:errorlint // net/http's own sentinel, compared as it does
				panic(p)
			}
			s.log.LogAttrs(ctx, slog.LevelError, "a handler panicked", slog.String("path", r.URL.Path), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			http.Error(w, "internal error", http.StatusInternalServerError)
		}()
		next.ServeHTTP(w, r)
	})
}

// caller is who makes a request, for the handlers.
type caller struct {
	token   *apikeys.Token
	subject subject
	who     *principal
	request string
	socket  *http.ResponseController // of the request, for a stream's deadlines
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

func requestID(ctx context.Context) string { return audit.ActorOf(ctx).RequestID }

// authenticated lets a request through only with an accepted token. It runs
// before anything of the body is read.
func (s *Server) authenticated(next http.Handler) http.Handler {
	errs := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := rand.Text()
		from := s.client(r)
		w.Header().Set("X-Request-Id", id)
		actor := audit.Actor{ID: "anonymous", Address: from.String(), RequestID: id}
		began := s.DB.Tick()
		refuse := func(err *connect.Error, status int) {
			s.metrics.request(r.URL.Path, err.Code().String(), s.DB.Tick()-began)
			if errs.IsSupported(r) {
				_ = errs.Write(w, r, err) // the caller is gone: there is nobody to tell
				return
			}
			http.Error(w, err.Message(), status)
		}
		if !s.mayTry(r, from) {
			w.Header().Set("Retry-After", "1")
			refuse(problem(connect.CodeResourceExhausted, errors.New("too many failed attempts from this address: wait a second"), "too_many_failures", "", id), http.StatusTooManyRequests)
			return
		}
		token, err := s.authenticate(r.Context(), r, from)
		if err != nil {
			ctx := audit.WithActor(r.Context(), actor)
			if !errors.Is(err, fault.ErrDenied) {
				ce, _ := errors.AsType[*connect.Error](s.edge(ctx, r.URL.Path, err))
				refuse(ce, http.StatusServiceUnavailable)
				return
			}
			s.denyToken(ctx, r, from, err)
			w.Header().Set("WWW-Authenticate", `Bearer realm="rotunda"`)
			// Which part was wrong is for the trail, not for the caller.
			refuse(problem(connect.CodeUnauthenticated, errors.New("the request carries no access token that is accepted: send `Authorization: Bearer rk_…`"), "unauthenticated", "", id), http.StatusUnauthorized)
			return
		}
		who := s.callers.find(token)
		actor.ID, actor.Role, actor.Partner = token.ID, string(token.Role), token.Partner
		ctx := audit.WithActor(r.Context(), actor)
		ctx = context.WithValue(ctx, callerKey{}, caller{token, who.subject, who, id, http.NewResponseController(w)})
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// mayTry reports whether a request may try to authenticate: its address has
// not failed too often lately, or the token is one that this process knows.
// Otherwise one user of a shared address could lock out all the others.
func (s *Server) mayTry(r *http.Request, from netip.Addr) bool {
	if s.failures.peek(from, s.DB.Now()) {
		return true
	}
	value, ok := bearer(r)
	return ok && s.Tokens.Remembers(value)
}

func bearer(r *http.Request) (value string, ok bool) {
	scheme, value, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || len(r.Header["Authorization"]) != 1 {
		return "", false
	}
	return strings.TrimSpace(value), true
}

func (s *Server) authenticate(ctx context.Context, r *http.Request, from netip.Addr) (*apikeys.Token, error) {
	value, ok := bearer(r)
	if !ok {
		return nil, fault.New(fault.ErrDenied, "missing", "the request carries no bearer token")
	}
	return s.Tokens.Verify(ctx, value, from)
}

// denyToken counts a token that was not accepted against its address, and
// writes the attempt, with the token that was meant if that is known. A request
// without a token guesses nothing, and counts against nobody.
func (s *Server) denyToken(ctx context.Context, r *http.Request, from netip.Addr, err error) {
	reason := "missing"
	if f, ok := errors.AsType[*fault.Error](err); ok {
		reason = f.Reason
	}
	if reason != "missing" {
		s.failures.allow(from, s.DB.Now())
	}
	e := audit.Event{Action: "authenticate", Resource: clipPath(r.URL.Path), Reason: reason}
	if d, ok := errors.AsType[*apikeys.Denial](err); ok && d.Token != "" {
		e.Detail = map[string]any{"token": d.Token}
		if reason == "tampered" {
			s.log.LogAttrs(ctx, slog.LevelError, "the row of an access token was changed in the database: nobody gets in with it; revoke it, and find out who can write there", slog.String("token", d.Token))
		}
	}
	s.deny(ctx, e)
}

// deny writes a denied attempt. It stays denied when it can't be written; then
// it is kept and the log tells.
func (s *Server) deny(ctx context.Context, e audit.Event) {
	if err := s.Denials.Record(ctx, e); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "a denied attempt is not in the trail yet", slog.Any("error", err))
	}
}

// client is the address that a request comes from. X-Forwarded-For is believed
// from the right, as far as trusted proxies wrote it.
func (s *Server) client(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.IPv4Unspecified()
	}
	from := ap.Addr().Unmap().WithZone("")
	if !within(s.TrustedProxies, from) {
		return from
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && len(hops)-i <= 32; i-- {
		a, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			return from
		}
		from = a.Unmap().WithZone("")
		if !within(s.TrustedProxies, from) {
			return from
		}
	}
	return from
}

func within(ranges []netip.Prefix, a netip.Addr) bool {
	for _, p := range ranges {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// clipPath keeps what strangers send out of the trail, but for known paths.
func clipPath(path string) string {
	if strings.HasPrefix(path, tilePath) {
		return tilePath
	}
	if _, ok := groups[path]; ok {
		return path
	}
	return "other"
}

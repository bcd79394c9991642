package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/netutil"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/server"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/jwks"
	scheduling "github.com/rotunda-dev/rotunda/rotation"
)

// serveConfig is everything that `rotunda serve` can be told. The zero value
// of each field is what the flag's default says.
type serveConfig struct {
	dataDir        string
	listen         string
	databaseURL    string
	kekFile        string
	tlsCert        string
	tlsKey         string
	insecure       bool
	publicURL      string
	publicRate     float64
	trustedProxies []string
	logFormat      string
	logLevel       string
	newAdminToken  bool
	trailOrigin    string
	publishTrail   bool
	copiesDirs     []string
	keys           keysConfig
	rotation       rotationConfig
	signingVault   string
}

const (
	shutdownLimit  = 20 * time.Second
	idempotencyFor = 24 * time.Hour
	streamGrace    = 5 * time.Second
)

func newServe(c *cli) *cobra.Command {
	var cfg serveConfig
	cmd := &cobra.Command{
		Use:   "serve [flags]",
		Short: "Run the server",
		Long: `Run the server. Without further flags it keeps everything in one SQLite database in
the data directory, which it creates on the first start together with the key
file (kek.json) and the first admin token (admin.token), each readable by you only.

Several replicas can share one PostgreSQL database: give each the same database
URL and the same key file. A database URL with a password belongs in
ROTUNDA_DATABASE_URL, because arguments can be read by other users.

If the admin token is lost, start once with --new-admin-token: whoever has the
database and the key file may have one. It is an event in the trail.`,
		Example: `  rotunda serve --data-dir ./data
  ROTUNDA_DATABASE_URL='postgres://rotunda@db/rotunda?sslmode=verify-full' rotunda serve --kek-file /etc/rotunda/kek.json
  rotunda serve --listen 0.0.0.0:8470 --tls-cert cert.pem --tls-key key.pem --public-url https://keys.example.com`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.serve(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	env := func(name, fallback string) string {
		if v := c.env(name); v != "" {
			return v
		}
		return fallback
	}
	f.StringVar(&cfg.dataDir, "data-dir", env("ROTUNDA_DATA_DIR", string(defaultDataDir)), "folder for the database, the key file and the admin token (ROTUNDA_DATA_DIR)")
	f.StringVar(&cfg.listen, "listen", "127.0.0.1:8470", "address to serve on; port 0 takes a free one")
	f.StringVar(&cfg.databaseURL, "database-url", "", "sqlite:/path or postgres://… (ROTUNDA_DATABASE_URL; default: SQLite in the data directory)")
	f.StringVar(&cfg.kekFile, "kek-file", "", "file with the key under which secrets are sealed (default: kek.json in the data directory)")
	f.StringVar(&cfg.tlsCert, "tls-cert", "", "PEM certificate chain; read again when it changes")
	f.StringVar(&cfg.tlsKey, "tls-key", "", "PEM private key of the certificate")
	f.BoolVar(&cfg.insecure, "insecure", false, "plain text on an address that is not loopback: to serve on, and for Redis")
	f.StringVar(&cfg.publicURL, "public-url", "", "URL at which consumers reach this server, for discovery documents (default: the listening address)")
	f.Float64Var(&cfg.publicRate, "public-rate", 100, "requests per second and client to the public documents; registered gateways are exempt")
	f.StringSliceVar(&cfg.trustedProxies, "trusted-proxy", nil, "address range of proxies whose X-Forwarded-For is believed; may be repeated")
	f.BoolVar(&cfg.newAdminToken, "new-admin-token", false, "make another admin token and write it to admin.token in the data directory")
	f.StringVar(&cfg.trailOrigin, "trail-origin", "", "the trail's name in its checkpoints, as rotunda.example.com/trail; it is fixed at the first start (default: a random one)")
	f.BoolVar(&cfg.publishTrail, "publish-trail", false, "let anyone read the trail's checkpoints, tiles and keys; personal values stay hidden, actions and resources do not")
	f.StringSliceVar(&cfg.copiesDirs, "copies-dir", nil, "folder in which file sinks and file anchors may be; may be repeated (default: none)")
	cfg.keys.bind(c, cmd)
	cfg.rotation.bind(cmd)
	f.StringVar(&cfg.signingVault, "signing-vault", "", "manifest of a target of type vault-transit: signing keys whose policy names it as their home never leave Vault")
	f.StringVar(&cfg.logFormat, "log-format", "text", "text or json")
	f.StringVar(&cfg.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func (cfg serveConfig) check() error {
	if (cfg.tlsCert == "") != (cfg.tlsKey == "") {
		return usagef("--tls-cert and --tls-key belong together: give both or none")
	}
	if cfg.publicRate <= 0 || cfg.publicRate > 1e6 {
		return usagef("--public-rate %g must be above 0, and at most 1000000", cfg.publicRate)
	}
	if malformedOrigin(cfg.trailOrigin) {
		return usagef("--trail-origin %q is not up to 200 printable ASCII characters without space, + and ~: give a name that is yours, as rotunda.example.com/trail", clipText(cfg.trailOrigin))
	}
	if err := errors.Join(cfg.keys.check(), cfg.rotation.check()); err != nil {
		return err
	}
	if cfg.logFormat != "text" && cfg.logFormat != "json" {
		return usagef("--log-format %q is neither text nor json", cfg.logFormat)
	}
	if cfg.publicURL != "" {
		u, err := url.Parse(cfg.publicURL)
		if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return usagef("--public-url %q must be an http or https URL without query and fragment", cfg.publicURL)
		}
	}
	return nil
}

// serve runs the server until ctx ends.
func (c *cli) serve(ctx context.Context, cfg serveConfig) (err error) {
	if err := cfg.check(); err != nil {
		return err
	}
	if err := forbidCoreDumps(); err != nil {
		return err
	}
	if c.env("GOGC") == "" {
		// Requests leave much garbage behind and the process keeps little: fewer
		// collections for a few megabytes more.
		debug.SetGCPercent(400)
	}
	log, err := newLog(c.stderr, cfg)
	if err != nil {
		return err
	}
	proxies, err := prefixes(cfg.trustedProxies)
	if err != nil {
		return err
	}
	tracing, stopTracing, err := startTracing(ctx, c.env)
	if err != nil {
		return err
	}
	dir := dataDir(cfg.dataDir)
	if err := dir.prepare(log); err != nil {
		return err
	}

	// The listener comes first: a second server on the same address must not
	// touch the database of the first.
	ln, err := listen(ctx, cfg, proxies, log)
	if err != nil {
		return err
	}
	defer ln.Close() // for the errors below; Serve closes it too
	databaseURL, err := c.databaseURL(cfg, dir, log)
	if err != nil {
		return err
	}
	if err := dir.emptied(databaseURL); err != nil {
		return err
	}
	db, err := store.Open(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.Migrate(ctx); err != nil {
		return err
	}
	kekPath := cfg.kekFile
	if kekPath == "" {
		kekPath = dir.kek()
	}
	kek, err := openKEK(ctx, db, kekPath)
	if err != nil {
		return err
	}
	sealer, err := secret.NewSealer(kek.KEKs()...)
	if err != nil {
		return err
	}
	peppers, err := apikeys.OpenPeppers(ctx, db, sealer)
	if f, ok := errors.AsType[*fault.Error](err); errors.Is(err, secret.ErrCorrupt) || ok && f.Reason == "kek_unknown" {
		return fmt.Errorf("%w (is %s the key file that this database was made with?)", err, kekPath)
	}
	if err != nil {
		return err
	}
	tokens := apikeys.NewTokens(db, peppers)
	made, err := tokens.Bootstrap(ctx, func(v secret.Value) error { return writeToken(dir.adminToken(), v) })
	if err != nil {
		return err
	}

	if cfg.newAdminToken && !made {
		_, v, err := tokens.Create(ctx, apikeys.Create{Name: "recovery", Role: apikeys.Admin})
		if err != nil {
			return err
		}
		if err := writeToken(dir.adminToken(), v); err != nil {
			return err
		}
		v.Destroy()
	}

	trail, err := openTrail(ctx, audit.Config{DB: db, Sealer: sealer, Log: log, Origin: cfg.trailOrigin, Kept: dir.checkpoint()})
	if err != nil {
		return err
	}
	replica := rand.Text()
	copies := newCopies(db, sealer, trail, log, replica, cfg.copiesDirs)
	usage := &audit.Usage{DB: db, Replica: replica}
	tokens.Usage = usage
	if _, err := usage.Pass(ctx, db.Now()); err != nil { // from now on this process vouches for what it saw
		log.Warn("that this replica counts uses from now on can't be written yet", slog.Any("error", err))
	}

	homes, closeHomes, err := c.openHomes(ctx, cfg.signingVault, db.Now)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeHomes()) }()
	keysets := jwks.New(jwks.Config{DB: db, Local: &jwks.Local{Sealer: sealer}, Homes: homes, Log: log, Usage: usage})
	if err := keysets.Refresh(ctx); err != nil {
		return err
	}
	// Before anyone can ask for a rotation, the time in which nothing was served
	// is taken off the leads.
	if _, err := keysets.Pass(ctx, db.Now()); err != nil {
		log.Error("the first pass failed; it is tried again", slog.Any("error", err))
	}
	cfg.keys.insecure = cfg.insecure
	partnerKeys, err := c.openKeys(ctx, cfg.keys, db, sealer, peppers, usage, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, partnerKeys.close()) }()
	rotating, err := openRotating(ctx, cfg.rotation, db, sealer, partnerKeys.keys, replica, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rotating.close()) }()
	denials := &audit.Denials{DB: db}
	address := baseURL(ln, cfg)
	if cfg.publicURL == "" {
		cfg.publicURL = address
	}
	serverConfig := server.Config{
		DB: db, Keysets: keysets, Tokens: tokens, Denials: denials, Trail: trail, Places: copies, Log: log, PublishTrail: cfg.publishTrail,
		Partners: partnerKeys.partners, Keys: partnerKeys.keys, Peppers: peppers, Verifier: partnerKeys.verifier,
		PublicURL: cfg.publicURL, PublicRate: cfg.publicRate, TrustedProxies: proxies, Tracing: tracing,
	}
	rotating.configure(&serverConfig)
	srv, err := server.New(serverConfig)
	if err != nil {
		return err
	}
	rotating.observe = srv.ObserveEffect
	handler, err := srv.Handler()
	if err != nil {
		return err
	}
	scheduler := &scheduling.Scheduler{Now: db.Now, Tick: db.Tick, Log: log, Observe: srv.Observe, Passes: append([]scheduling.Pass{
		{Name: "signing_keys", Run: keysets.Pass},
		{Name: "spare_keys", Run: keysets.PreparePass},
		{Name: "access_tokens", Run: tokens.Pass},
		{Name: "gateways", Run: srv.GatewayPass},
		{Name: "denials", Run: denials.Pass},
		{Name: "usage", Run: usage.Pass},
		{Name: "retention", Run: trail.PrunePass},
		{Name: "trail_status", Run: srv.TrailPass},
		{Name: "idempotency_keys", Run: pruner(db)},
	}, slices.Concat(partnerKeys.passes(), rotating.passes())...)}

	fmt.Fprintf(c.stdout, "rotunda %s serves on %s\n", buildVersion(), address)
	if made {
		fmt.Fprintf(c.stdout, "the first admin token is in %s (mode 0600); the commands find it there\n", dir.adminToken())
	} else if _, err := os.Stat(dir.adminToken()); err == nil {
		fmt.Fprintf(c.stdout, "the admin token is in %s\n", dir.adminToken())
	} else {
		fmt.Fprintf(c.stdout, "%s is not there: use a token that you stored elsewhere, or start with --new-admin-token\n", dir.adminToken())
	}

	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var background sync.WaitGroup
	background.Go(func() { copies.run(running) })
	background.Go(func() { keysets.Follow(running) })
	background.Go(func() { partnerKeys.verifier.Follow(running) })
	background.Go(func() {
		db.Relay(running, func(err error) {
			log.Warn("what other replicas announce can't be heard; it is looked for every second", slog.Any("error", err))
		})
	})
	passes := make(chan error, 1)
	go func() { passes <- scheduler.Run(running) }()
	worked := make(chan error, 1)
	go func() { worked <- rotating.rotations.Run(running) }()
	sequencing, stopSequencing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSequencing()
	sequenced := make(chan error, 1)
	go func() { sequenced <- trail.Run(sequencing) }()
	err = serveHTTP(ctx, ln, handler, log)

	// The last word of a process: what it only has in memory. It goes into the
	// trail too, so the sequencer ends last.
	stop()
	err = errors.Join(err, <-passes, <-worked)
	background.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
	defer cancel()
	err = errors.Join(err, keysets.Flush(last), tokens.Flush(last), partnerKeys.verifier.Flush(last), denials.Flush(last), usage.Flush(last), rotating.builtin.Flush(last))
	stopSequencing()
	return errors.Join(err, <-sequenced, stopTracing(last))
}

// serveHTTP serves until ctx ends, then lets requests finish.
func serveHTTP(ctx context.Context, ln net.Listener, handler http.Handler, log *slog.Logger) error {
	requests, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	hs := &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		Protocols:         new(http.Protocols),
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	hs.Protocols.SetHTTP1(true)
	hs.Protocols.SetHTTP2(true)
	hs.Protocols.SetUnencryptedHTTP2(true)
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	log.LogAttrs(ctx, slog.LevelInfo, "stopping: no new requests")
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownLimit)
	defer cancel()
	// Streams have no end of their own: they are told to end a while after the
	// listener is closed, and requests finish in that time.
	time.AfterFunc(streamGrace, func() { stop(server.ErrStopping) })
	if err := hs.Shutdown(wait); err != nil {
		return fmt.Errorf("stop serving: some requests did not finish within %s: %w", shutdownLimit, err)
	}
	return nil
}

// listen opens the listening socket. Plain text on an address that others can
// reach needs --insecure.
func listen(ctx context.Context, cfg serveConfig, proxies []netip.Prefix, log *slog.Logger) (net.Listener, error) {
	limit, err := connectionLimit(openFileLimit())
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", cfg.listen)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w: choose another address with --listen", cfg.listen, err)
	}
	tcp, ok := ln.Addr().(*net.TCPAddr)
	if cfg.tlsCert == "" && !cfg.insecure && (!ok || !tcp.IP.IsLoopback()) {
		return nil, errors.Join(fmt.Errorf("listen on %s: it is not a loopback address, and tokens would travel in plain text: give --tls-cert and --tls-key, or --insecure if something in front speaks TLS", cfg.listen), ln.Close())
	}
	ln = newAddressLimit(ln, proxies, log)
	ln = netutil.LimitListener(ln, limit)
	if ok && tcp.IP.IsUnspecified() && cfg.publicURL == "" {
		return nil, errors.Join(fmt.Errorf("listen on %s: discovery documents can't name every address: give --public-url, the URL at which consumers reach this server", cfg.listen), ln.Close())
	}
	if cfg.tlsCert == "" {
		return ln, nil
	}
	tlsListener, err := newTLSListener(ln, cfg.tlsCert, cfg.tlsKey, log)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return tlsListener, nil
}

func baseURL(ln net.Listener, cfg serveConfig) string {
	scheme := "http"
	if cfg.tlsCert != "" {
		scheme = "https"
	}
	return scheme + "://" + ln.Addr().String()
}

// databaseURL chooses the database. A password in an argument can be read by
// every user of the machine, so it draws a warning.
func (c *cli) databaseURL(cfg serveConfig, dir dataDir, log *slog.Logger) (string, error) {
	given := cfg.databaseURL
	if given == "" {
		given = c.env("ROTUNDA_DATABASE_URL")
	} else if u, err := url.Parse(given); err == nil && u.User != nil {
		if _, has := u.User.Password(); has {
			log.Warn("the password in --database-url can be read by other users of this machine: use ROTUNDA_DATABASE_URL")
		}
	}
	if given != "" {
		return given, nil
	}
	path, err := filepath.Abs(dir.db())
	if err != nil {
		return "", fmt.Errorf("find the database: %w", err)
	}
	return "sqlite:" + path, nil
}

func newLog(w io.Writer, cfg serveConfig) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.logLevel)); err != nil {
		return nil, usagef("--log-level %q is none of debug, info, warn and error", cfg.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return slog.New(slog.NewTextHandler(w, opts)), nil
}

func prefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil || p.Addr().Is4In6() {
			return nil, usagef("--trusted-proxy %q is not an address range: use for example 10.0.0.0/8", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// writeToken puts a token into a file that only its owner can read. The file
// is whole or not there, and stays there when the machine stops.
func writeToken(path string, v secret.Value) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the admin token to %s: %w", path, err)
		}
	}()
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := os.CreateTemp(dir.Name(), ".admin-token-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when it was renamed
	b := append(v.Reveal(), '\n')
	defer clear(b)
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	// The rename is in the folder, which has a sync of its own.
	return dir.Sync()
}

// pruner forgets idempotency keys after a day.
func pruner(db *store.DB) func(context.Context, time.Time) (time.Time, error) {
	var last time.Time
	return func(ctx context.Context, now time.Time) (time.Time, error) {
		if now.Sub(last) < time.Hour && !now.Before(last) {
			return time.Time{}, nil
		}
		last = now
		_, err := db.Prune(ctx, now.Add(-idempotencyFor))
		return time.Time{}, err
	}
}

// openKEK opens the key file. It is made only for a database that has nothing
// sealed yet: a new key file beside old secrets would hide that theirs is lost.
func openKEK(ctx context.Context, db *store.DB, path string) (*secret.FileKEK, error) {
	inUse, err := apikeys.Started(ctx, db)
	if err != nil {
		return nil, err
	}
	if !inUse {
		return secret.OpenOrCreateFile(path)
	}
	kek, err := secret.OpenFile(path)
	if errors.Is(err, fault.ErrNotFound) {
		return nil, fmt.Errorf("the key file %s is missing, and the secrets of this database are sealed under it: restore it from a backup, or name it with --kek-file", path)
	}
	return kek, err
}

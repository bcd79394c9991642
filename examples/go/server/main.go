// Command server is a small API that Rotunda protects: it accepts API keys and
// signed requests of partners, and asks a Rotunda server about each.
//
//	ROTUNDA_SERVER   https://rotunda.example, or http://127.0.0.1:8470
//	ROTUNDA_TOKEN    an access token of the role gateway
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/rotunda-dev/rotunda/verify"
)

const (
	maxOrder = 1 << 20
	slow     = 10 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	f.SetOutput(stderr)
	listen := f.String("listen", "127.0.0.1:8080", "address")
	if err := f.Parse(args); err != nil {
		return err
	}
	// At debug level the guard tells why it denied a request. The client is not told.
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	handler, err := api(env("ROTUNDA_SERVER"), env("ROTUNDA_TOKEN"), log)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", *listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: slow, ReadTimeout: slow}
	fmt.Fprintf(stdout, "listens on http://%s\n", l.Addr())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return server.Close()
	}
}

// api is a guarded API: each route names the scopes that it needs.
func api(rotunda, token string, log *slog.Logger) (http.Handler, error) {
	client, err := verify.NewClient(verify.ClientConfig{URL: rotunda, Token: token})
	if err != nil {
		return nil, fmt.Errorf("%w (ROTUNDA_SERVER and ROTUNDA_TOKEN)", err)
	}
	guard, err := verify.NewGuard(verify.Options{Client: client, StripCredential: true, Log: log})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /orders", guard.Middleware("orders:read")(http.HandlerFunc(list)))
	mux.Handle("POST /orders", guard.Middleware("orders:write")(http.HandlerFunc(create)))
	return mux, nil
}

func list(w http.ResponseWriter, r *http.Request) {
	id, _ := verify.From(r.Context())
	reply(w, http.StatusOK, map[string]any{"partner": id.Partner, "by": id.Kind, "query": r.URL.RawQuery, "orders": []string{}})
}

func create(w http.ResponseWriter, r *http.Request) {
	id, _ := verify.From(r.Context())
	// The body of a signed request was compared with its digest, and is here to be read.
	order, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxOrder))
	if err != nil {
		http.Error(w, "the body can't be read", http.StatusBadRequest)
		return
	}
	reply(w, http.StatusCreated, map[string]any{"partner": id.Partner, "by": id.Kind, "bytes": len(order)})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that went away needs no answer
}

// Command sign signs an HTTP request with a request secret of Rotunda (HTTP Message
// Signatures, RFC 9421) and sends it, or prints what curl needs to send it.
//
//	ROTUNDA_KEY_ID   the id of the secret's version
//	ROTUNDA_SECRET   the secret: whsec_…
//
// The secret is read from the environment because others can read arguments.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/verify"
)

const (
	timeout   = 30 * time.Second
	maxAnswer = 1 << 20
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "sign:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("sign", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintln(stderr, "usage: sign [flags] URL   (ROTUNDA_KEY_ID and ROTUNDA_SECRET in the environment)")
		f.PrintDefaults()
	}
	method := f.String("method", "", "method (default GET, or POST with -body)")
	body := f.String("body", "", "body")
	headers := f.Bool("headers", false, `print the header lines and send nothing: curl -H "$(sign -headers URL)" URL`)
	config := f.Bool("curl", false, "print a configuration of curl with URL, method, headers and body: sign -curl URL | curl -K -")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 || *headers && *config {
		f.Usage()
		return errors.New("one URL is needed, and at most one of -headers and -curl")
	}
	if *method == "" {
		*method = http.MethodGet
		if *body != "" {
			*method = http.MethodPost
		}
	}
	signer, err := verify.NewSigner(verify.SignerConfig{KeyID: env("ROTUNDA_KEY_ID"), Secret: env("ROTUNDA_SECRET")})
	if err != nil {
		return fmt.Errorf("%w (ROTUNDA_KEY_ID and ROTUNDA_SECRET)", err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, *method, f.Arg(0), strings.NewReader(*body))
	if err != nil {
		return err
	}
	if *headers || *config {
		signed, err := signer.Sign(req)
		if err != nil {
			return err
		}
		printed(stdout, signed, *body, *config)
		return nil
	}
	// This is all that a program needs: a client that signs what it sends.
	client := &http.Client{Transport: signer}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	fmt.Fprintln(stdout, res.Status)
	if _, err := io.Copy(stdout, io.LimitReader(res.Body, maxAnswer)); err != nil {
		return err
	}
	if res.StatusCode >= 400 {
		return fmt.Errorf("the server refused the request with %s", res.Status)
	}
	return nil
}

// printed writes the lines that the signature adds, for curl.
func printed(w io.Writer, r *http.Request, body string, config bool) {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace
	if config {
		fmt.Fprintf(w, "url = \"%s\"\nrequest = \"%s\"\n", quote(r.URL.String()), quote(r.Method))
		if body != "" {
			fmt.Fprintf(w, "data-raw = \"%s\"\n", quote(body))
		}
	}
	for _, name := range []string{"Content-Digest", "Signature-Input", "Signature"} {
		value := r.Header.Get(name)
		switch {
		case value == "":
		case config:
			fmt.Fprintf(w, "header = \"%s\"\n", quote(name+": "+value))
		default:
			fmt.Fprintf(w, "%s: %s\n", name, value)
		}
	}
}

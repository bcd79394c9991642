package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"unicode"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// The exit codes; scripts rely on them.
const (
	exitDone        = 0
	exitRefused     = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitUnproved    = 4 // nothing is wrong, but what was asked can't be proved
)

// exitError is an error with an exit code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usageError is a command line that can't be right, whatever the server holds.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// callError is a failed call of the API.
type callError struct {
	to  *conn
	err error
}

func (e *callError) Error() string { return e.err.Error() }
func (e *callError) Unwrap() error { return e.err }

// report prints err for people and returns the exit code.
func (c *cli) report(ctx context.Context, cmd *cobra.Command, err error) int {
	if _, ok := errors.AsType[usageError](err); ok || !c.started {
		c.complain("rotunda: %s", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\t", "  ")) // cobra indents suggestions
		c.complain("usage: %s", cmd.UseLine())
		c.complain("run `%s --help` for more", cmd.CommandPath())
		return exitUsage
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil || connect.CodeOf(err) == connect.CodeCanceled && ctx.Err() != nil {
		c.complain("rotunda: interrupted: what was under way may have been done; look before you repeat it")
		return exitRefused
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		c.complain("rotunda: %s", err)
		return e.code
	}
	call, ok := errors.AsType[*callError](err)
	if !ok {
		c.complain("rotunda: %s", err)
		return exitRefused
	}
	return c.reportCall(call)
}

func (c *cli) reportCall(call *callError) int {
	ce, ok := errors.AsType[*connect.Error](call.err)
	if !ok {
		ce = connect.NewError(connect.CodeUnknown, call.err)
	}
	code := ce.Code()
	if !connect.IsWireError(call.err) && code != connect.CodeUnauthenticated && code != connect.CodePermissionDenied && code != connect.CodeResourceExhausted {
		c.complain("rotunda: can't reach %s: %s", call.to.base, call.unreachable(ce))
		return exitUnreachable
	}
	message := firstOf(ce.Message(), code.String())
	if code == connect.CodeUnauthenticated {
		message = call.to.tokenHint() // the server speaks of headers, which nobody wrote here
	}
	if reasonOf(ce) == "partner_missing" { // the server speaks of a field
		message = "whose is it? Give --partner: only a partner's own token may leave it out"
	}
	c.complain("rotunda: %s", message)
	c.complainProblem(ce)
	return exitRefused
}

// reasonOf is the stable word of an error of the API, if it has one.
func reasonOf(ce *connect.Error) string {
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if p, ok := m.(*rotundav1.Problem); ok {
				return p.GetReason()
			}
		}
	}
	return ""
}

// complainProblem prints what programs and the server's log know the error by.
func (c *cli) complainProblem(ce *connect.Error) {
	parts := []string{"code " + ce.Code().String()}
	id := ce.Meta().Get("X-Request-Id")
	for _, d := range ce.Details() {
		m, err := d.Value()
		if err != nil {
			continue
		}
		p, ok := m.(*rotundav1.Problem)
		if !ok {
			continue
		}
		if p.GetReason() != "" {
			parts = []string{"reason " + p.GetReason()}
		}
		if p.GetField() != "" {
			parts = append(parts, "field "+p.GetField())
		}
		if p.GetRequestId() != "" {
			id = p.GetRequestId()
		}
	}
	if id != "" {
		parts = append(parts, "request "+id)
	}
	c.complain("  %s", strings.Join(parts, ", "))
}

// unreachable says why there was no answer of the API, and what to do.
func (e *callError) unreachable(ce *connect.Error) string {
	if _, ok := errors.AsType[*plainError](e.err); ok {
		return "the name leads to another machine, and a token is not sent there in plain text: use https, or --insecure if nobody else can listen on the way"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](e.err); ok {
		return "its certificate is signed by an authority this machine does not know: give that authority's certificate with --ca-file"
	}
	if bad, ok := errors.AsType[x509.HostnameError](e.err); ok {
		return bad.Error() + ": use a name that its certificate holds"
	}
	if bad, ok := errors.AsType[x509.CertificateInvalidError](e.err); ok {
		return bad.Error() + ": renew the server's certificate, or set this machine's clock"
	}
	if strings.Contains(ce.Message(), "server gave HTTP response to HTTPS client") {
		return "it speaks plain http: use http:// in --server"
	}
	if ce.Code() == connect.CodeDeadlineExceeded {
		return fmt.Sprintf("no answer within %s: is the server under load? --timeout waits longer", formatDuration(e.to.timeout))
	}
	if bad, ok := errors.AsType[*net.DNSError](e.err); ok {
		return bad.Error() + ": check --server (or ROTUNDA_SERVER)"
	}
	if bad, ok := errors.AsType[*net.OpError](e.err); ok {
		why := bad.Err
		if errno, ok := errors.AsType[syscall.Errno](bad.Err); ok {
			why = errno
		}
		return fmt.Sprintf("%s: is `%s serve` running at %s?", why, e.to.program, e.to.base.Host)
	}
	return fmt.Sprintf("%s: is it `%s serve` that answers at %s?", ce.Message(), e.to.program, e.to.base.Host)
}

// complain writes a line to stderr.
func (c *cli) complain(format string, args ...any) {
	fmt.Fprintln(c.stderr, cleanLines(fmt.Sprintf(format, args...)))
}

// clean escapes what does not print: a name that holds an escape sequence must
// not rewrite somebody's terminal.
func clean(s string) string { return escape(s, "") }

// cleanLines is clean for text that may have several lines.
func cleanLines(s string) string { return escape(s, "\n") }

func escape(s, allowed string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) || strings.ContainsRune(allowed, r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

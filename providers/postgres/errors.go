package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// stage is where in a call the server spoke: the same code means different things.
type stage int

const (
	atLogin    stage = iota // of the target's own login
	atWork                  // a statement
	atPassword              // the statement that sets a password
	atProof                 // the login of the value that is proven
)

// failure makes an error of the contract of what pgx returned. Every statement that
// changes something is in a transaction, so an error that the server reports means
// that nothing was changed; what the network did means that nobody knows.
func (t *target) failure(ctx context.Context, s stage, doing string, err error, secrets ...string) error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return fault.New(known.Kind, known.Reason, "%s: %s: %s", t.name, doing, known.Message).On(known.Field)
	}
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("%s: %s: %w", t.name, doing, ended)
	}
	secrets = append(secrets, t.password)
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if errors.Is(err, context.DeadlineExceeded) {
			return fault.New(fault.ErrUnavailable, "timeout", "%s: %s: the server at %s did not answer in time", t.name, doing, t.address)
		}
		return fault.New(fault.ErrUnavailable, "unreachable", "%s: %s: %s: %s", t.name, doing, t.address, providers.Scrub(rootText(err), secrets...))
	}
	reason, kind := kindOf(s, pg.Code)
	remedy := ""
	if errors.Is(kind, fault.ErrDenied) && s == atLogin {
		remedy = ": check the user and password of the target's login, and pg_hba.conf"
	} else if errors.Is(kind, fault.ErrDenied) && s != atProof {
		remedy = ": give the login CREATEROLE, and from PostgreSQL 16 on ADMIN OPTION on this role"
	}
	return fault.New(kind, reason, "%s: %s: the server says: %s (SQLSTATE %s)%s", t.name, doing, providers.Scrub(pg.Message, secrets...), pg.Code, remedy)
}

func kindOf(s stage, code string) (reason string, kind error) {
	class := code
	if len(code) >= 2 {
		class = code[:2]
	}
	switch {
	case s == atProof && class == "28":
		return "login_refused", fault.ErrRejected
	case s == atLogin && class == "28":
		return "login_refused", fault.ErrDenied
	case s == atPassword && class == "22":
		// passwordcheck and its relatives report invalid_parameter_value.
		return "password_policy", fault.ErrRejected
	case class == "28", code == "42501", code == "0A000":
		return "permission", fault.ErrDenied
	case code == "42704", s != atWork && code == "3D000":
		return "missing", fault.ErrNotFound
	case code == "55P03":
		return "locked", fault.ErrLimited
	}
	return "server_error", fault.ErrUnavailable
}

// rootText is the innermost text: outer ones repeat the connection's settings.
func rootText(err error) string {
	for {
		switch e := err.(type) { //nolint:errorlint // this walks the chain itself
		case interface{ Unwrap() error }:
			if inner := e.Unwrap(); inner != nil {
				err = inner
				continue
			}
		case interface{ Unwrap() []error }:
			if inner := e.Unwrap(); len(inner) > 0 {
				err = inner[0]
				continue
			}
		}
		return strings.TrimSpace(err.Error())
	}
}

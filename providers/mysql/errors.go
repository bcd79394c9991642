package mysql

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-sql-driver/mysql"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// stage is where in a call the server spoke: the same number means different things.
type stage int

const (
	atLogin    stage = iota // of the target's own login
	atWork                  // a statement
	atPassword              // the statement that sets a password
	atProof                 // the login of the value that is proven
)

// failure makes an error of the contract of what the driver returned. changed says that
// an earlier statement of this call has changed something.
func (t *target) failure(ctx context.Context, s stage, doing string, err error, changed bool, secrets ...string) error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return fault.New(known.Kind, known.Reason, "%s: %s: %s", t.name, doing, known.Message).On(known.Field)
	}
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("%s: %s: %w", t.name, doing, ended)
	}
	secrets = append(secrets, t.password)
	my, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok {
		return fault.New(fault.ErrUnavailable, "unreachable", "%s: %s: %s: %s", t.name, doing, t.address, providers.Scrub(err.Error(), secrets...))
	}
	reason, kind := kindOf(s, my.Number, my.Message)
	if changed {
		kind = fault.ErrUnavailable
	}
	says := providers.Scrub(my.Message, secrets...)
	if my.Number == 1064 {
		says = "it does not know this statement" // it quotes the statement from anywhere on
	}
	remedy := ""
	switch {
	case my.Number == 1290 && errors.Is(kind, fault.ErrDenied):
		remedy = ": a password policy refuses hashes: set send=text for this target, or switch strict_password_validation off"
	case errors.Is(kind, fault.ErrDenied) && s == atLogin:
		remedy = ": check the user and password of the target's login"
	case errors.Is(kind, fault.ErrDenied) && s != atProof:
		remedy = ": give the login CREATE USER ON *.*, and SELECT ON mysql.*"
	}
	return fault.New(kind, reason, "%s: %s: the server says: %s (error %d)%s", t.name, doing, says, my.Number, remedy)
}

func kindOf(s stage, number uint16, message string) (reason string, kind error) {
	switch number {
	case 1045, 1698, 1130, 3118, 4151, 1862: // wrong password, no such account, host, locked, expired
		if s == atProof {
			return "login_refused", fault.ErrRejected
		}
		return "login_refused", fault.ErrDenied
	case 1044, 1142, 1143, 1227, 1370, 1410, 1095:
		return "permission", fault.ErrDenied
	case 1819, 3638: // password policy, password history
		return "password_policy", fault.ErrRejected
	case 1290, 1836:
		if s == atPassword && !strings.Contains(message, "read-only") && !strings.Contains(message, "read_only") {
			return "password_policy", fault.ErrDenied
		}
		return "read_only", fault.ErrUnavailable
	case 1396:
		return "account_missing", fault.ErrNotFound
	case 1064, 1524, 1827: // unknown statement, plugin not loaded, hash of another form
		return "not_supported", fault.ErrInvalid
	case 1146:
		return "table_missing", fault.ErrInvalid
	case 1205, 1213:
		return "locked", fault.ErrLimited
	}
	return "server_error", fault.ErrUnavailable
}

func isDenied(err error) bool {
	my, ok := errors.AsType[*mysql.MySQLError](err)
	if !ok {
		return false
	}
	_, kind := kindOf(atWork, my.Number, my.Message)
	return errors.Is(kind, fault.ErrDenied)
}

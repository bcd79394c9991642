package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// failure makes an error of the contract of what a node or the network said. changed
// says that this call may have changed something already, on this node or another: then
// nothing that a node says makes the outcome known.
func (t *target) failure(ctx context.Context, doing, address string, err error, changed bool, secrets ...string) error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		kind := known.Kind
		if changed {
			kind = fault.ErrUnavailable
		}
		return fault.New(kind, known.Reason, "%s: %s: %s: %s", t.name, doing, address, known.Message).On(known.Field)
	}
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("%s: %s: %s: %w", t.name, doing, address, ended)
	}
	secrets = append(secrets, t.password)
	text := providers.Scrub(err.Error(), secrets...)
	if _, ok := errors.AsType[redis.Error](err); !ok {
		return fault.New(fault.ErrUnavailable, "unreachable", "%s: %s: %s: %s", t.name, doing, address, text)
	}
	word, _, _ := strings.Cut(text, " ")
	reason, remedy, kind := kindOf(word, text)
	if changed {
		kind = fault.ErrUnavailable
	}
	return fault.New(kind, reason, "%s: %s: %s says: %s%s", t.name, doing, address, text, remedy)
}

func kindOf(word, text string) (reason, remedy string, kind error) {
	switch {
	case word == "NOPERM":
		return "permission", ": give the login +acl +client|list +client|kill +config|rewrite", fault.ErrDenied
	case word == "WRONGPASS", word == "NOAUTH", strings.Contains(text, "AUTH <password> called without any password"):
		return "login_refused", ": check the user and password of the target's login", fault.ErrDenied
	case strings.Contains(text, "unknown command"), strings.Contains(text, "unknown subcommand"), strings.Contains(text, "Unknown subcommand"):
		return "too_old", ": ACLs need Redis 6, or are switched off or renamed here", fault.ErrDenied
	case strings.Contains(text, "max number of clients"):
		return "connections", "", fault.ErrLimited
	}
	return "server_error", "", fault.ErrUnavailable
}

package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// scratchText begins the comment of a role that Scratch made; Unscratch drops no other.
const scratchText = "made by rotunda for a drill"

var suffixPattern = regexp.MustCompile(`^[a-z0-9_]{1,24}$`)

// scratchNames are the names of the copies of names.
func scratchNames(names []string, suffix string) ([]string, error) {
	if !suffixPattern.MatchString(suffix) {
		return nil, fault.Invalid("suffix", "suffix_malformed", "the suffix of a throw-away account is 1 to 24 of a-z, 0-9 and underscore")
	}
	out := make([]string, len(names))
	for i, name := range names {
		end := fmt.Sprintf("_%d_%s", i+1, suffix)
		for len(name)+len(end) > 63 || !utf8.ValidString(name) {
			name = name[:len(name)-1]
		}
		out[i] = name + end
	}
	return out, nil
}

// Scratch makes roles that may log in and do nothing else.
func (t *target) Scratch(ctx context.Context, c providers.Change, suffix string) (map[string]string, error) {
	copies, err := t.scratch(c, suffix)
	if err != nil {
		return nil, err
	}
	err = t.inTransaction(ctx, c, "make throw-away roles", func(tx pgx.Tx) error {
		for _, name := range copies {
			comment, there, err := commentOf(ctx, tx, name)
			if err != nil {
				return err
			}
			if there && !strings.HasPrefix(comment, scratchText) {
				return fault.New(fault.ErrTransition, "role_exists", "the role %q exists, and was not made for a drill", name)
			}
			if there {
				continue
			}
			for _, statement := range []string{
				"CREATE ROLE " + identifier(name) + " LOGIN NOINHERIT CONNECTION LIMIT 20",
				"COMMENT ON ROLE " + identifier(name) + " IS " + literal(scratchText),
			} {
				if _, err := tx.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	params := maps.Clone(c.Params)
	if len(copies) == 2 {
		params["users"] = strings.Join(copies, ",")
	} else {
		params["user"] = copies[0]
	}
	return params, nil
}

// Unscratch drops the roles that Scratch made.
func (t *target) Unscratch(ctx context.Context, c providers.Change, suffix string) error {
	copies, err := t.scratch(c, suffix)
	if err != nil {
		return err
	}
	return t.inTransaction(ctx, c, "drop throw-away roles", func(tx pgx.Tx) error {
		for _, name := range copies {
			comment, there, err := commentOf(ctx, tx, name)
			if err != nil {
				return err
			}
			if !there || !strings.HasPrefix(comment, scratchText) {
				continue
			}
			if _, err := tx.Exec(ctx, "DROP ROLE IF EXISTS "+identifier(name), pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *target) scratch(c providers.Change, suffix string) ([]string, error) {
	names, err := t.accounts(c)
	if err != nil {
		return nil, err
	}
	return scratchNames(names, suffix)
}

func commentOf(ctx context.Context, tx pgx.Tx, name string) (comment string, there bool, err error) {
	r, err := lockRole(ctx, tx, name)
	if errors.Is(err, errGone) {
		return "", false, nil
	}
	return r.text, err == nil, err
}

func (t *target) inTransaction(ctx context.Context, c providers.Change, doing string, do func(pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, release, err := t.login(ctx, c)
	if err != nil {
		return err
	}
	defer release()
	if err := pgx.BeginFunc(ctx, conn, do); err != nil {
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "2BP01" {
			return fault.New(fault.ErrTransition, "role_in_use", "%s: %s: a role owns something by now: DROP OWNED BY it in each database", t.name, doing)
		}
		return t.failure(ctx, atWork, doing, err)
	}
	return nil
}

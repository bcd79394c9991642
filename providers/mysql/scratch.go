package mysql

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"strings"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// scratch are the accounts that Scratch makes. No name is longer than MySQL's 32
// characters; the prefix is Rotunda's own.
func (t *target) scratch(c providers.Change, suffix string) ([]account, error) {
	all, err := t.accounts(c)
	if err != nil {
		return nil, err
	}
	if suffix == "" || len(suffix) > 20 || strings.Trim(suffix, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return nil, fault.Invalid("suffix", "suffix_malformed", "the suffix of a throw-away account is 1 to 20 of a-z, 0-9 and underscore")
	}
	for i, a := range all {
		sum := sha256.Sum256([]byte(a.String()))
		all[i].user = "rd_" + hex.EncodeToString(sum[:4]) + "_" + suffix
	}
	return all, nil
}

// Scratch makes accounts that may log in and do nothing else.
func (t *target) Scratch(ctx context.Context, c providers.Change, suffix string) (map[string]string, error) {
	all, err := t.scratch(c, suffix)
	if err != nil {
		return nil, err
	}
	err = t.withLogin(ctx, func(ctx context.Context, s *session) error {
		for i, a := range all {
			lock, err := t.lockOut(s.flavour, a, c)
			if err != nil {
				return err
			}
			create := strings.Replace(lock, "ALTER USER", "CREATE USER IF NOT EXISTS", 1)
			if err := s.alter(ctx, create); err != nil {
				return t.failure(ctx, atPassword, "make a throw-away account", err, i > 0)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	params := maps.Clone(c.Params)
	if len(all) == 2 {
		params["users"] = all[0].String() + "," + all[1].String()
	} else {
		params["user"] = all[0].String()
	}
	return params, nil
}

// Unscratch drops what Scratch made, and its markers.
func (t *target) Unscratch(ctx context.Context, c providers.Change, suffix string) error {
	all, err := t.scratch(c, suffix)
	if err != nil {
		return err
	}
	return t.withLogin(ctx, func(ctx context.Context, s *session) error {
		for i, a := range all {
			if _, err := s.ExecContext(ctx, "DROP USER IF EXISTS "+a.sql()); err != nil {
				return t.failure(ctx, atWork, "drop a throw-away account", err, i > 0)
			}
			if t.table == "" || !s.maria {
				continue
			}
			if _, err := s.ExecContext(ctx, "DELETE FROM "+t.table+" WHERE account = ?", a.String()); err != nil {
				return t.failure(ctx, atWork, "remove the marker of a throw-away account", err, true)
			}
		}
		return nil
	})
}

func (t *target) withLogin(ctx context.Context, do func(context.Context, *session) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := t.login(ctx)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // it goes back to the pool
	return do(ctx, s)
}

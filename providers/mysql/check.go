package mysql

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// report collects findings.
type report []providers.Finding

func (r *report) ok(check, format string, args ...any) {
	*r = append(*r, providers.Finding{Check: check, OK: true, Detail: fmt.Sprintf(format, args...)})
}

func (r *report) bad(check, detail, remedy string) {
	*r = append(*r, providers.Finding{Check: check, Detail: detail, Remedy: remedy})
}

func (r *report) warn(check, detail, remedy string) {
	*r = append(*r, providers.Finding{Check: check, Warning: true, Detail: detail, Remedy: remedy})
}

// Check is the preflight. The statements of Apply are tried on a throw-away account,
// which is locked, and dropped at once.
func (t *target) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	all, err := t.accounts(c)
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return []providers.Finding{{Check: known.Reason, Detail: known.Message, Remedy: "correct " + known.Field}}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var r report
	s, err := t.login(ctx)
	if errors.Is(err, fault.ErrDenied) {
		r.bad("login", err.Error(), "check the user and password of the target's login")
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.Close() //nolint:errcheck // it goes back to the pool
	r.ok("login", "logged in to %s as %q", s.flavour, t.user)
	t.checkServer(&r, s, c)
	for _, check := range []func() error{
		func() error { return t.checkAccounts(ctx, &r, s, c, all) },
		func() error { return t.checkPassword(ctx, &r, s, c) },
		func() error { return t.checkPrivileges(ctx, &r, s, all) },
		func() error { return t.checkCurrent(ctx, &r, c) },
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (t *target) checkServer(r *report, s *session, c providers.Change) {
	if s.maria && !s.atLeast(10, 4, 2) || !s.maria && !s.atLeast(8, 0, 21) {
		r.bad("version", s.String()+" is too old: accounts can't be locked, or have no attribute", "upgrade to MariaDB 10.4.2 or MySQL 8.0.21")
	}
	if c.Strategy == providers.Dual && !s.dual() {
		r.bad("dual_passwords", s.String()+" has no second password for an account", "use strategy alternate")
	}
	if t.text && s.maria {
		r.warn("plaintext_in_log", "with send=text the general log and the slow log of MariaDB have the password, where they are on", "switch these logs off, or use send=hash")
	}
}

func (t *target) checkAccounts(ctx context.Context, r *report, s *session, c providers.Change, all []account) error {
	for _, a := range all {
		st, err := t.readState(ctx, s, a)
		if err != nil {
			failed := t.failure(ctx, atWork, "read the account", err, false)
			switch {
			case errors.Is(failed, fault.ErrInvalid):
				r.bad("marker_table", failed.Error(), tableDDL(t.table)+"; and give the login SELECT, INSERT, UPDATE, DELETE on it")
			case errors.Is(failed, fault.ErrDenied):
				r.bad("marker_table", failed.Error(), "GRANT SELECT, INSERT, UPDATE, DELETE ON "+t.table+" to the login")
			default:
				return failed
			}
			return nil
		}
		switch {
		case !st.there:
			r.bad("account_exists", fmt.Sprintf("there is no account %q", a), "CREATE USER "+a.sql()+", with the grants that consumers need")
		case !st.readable:
			r.warn("read_accounts", fmt.Sprintf("the login can't read the account %q: whether a value is still the account's own is then known from records only", a), "GRANT SELECT ON mysql.* to the login")
		default:
			r.ok("account_exists", "the account %q exists", a)
		}
		if refused := st.check(a, c); c.Generation > 0 && refused != nil && (c.Epoch > 0 || st.marked && st.marker.Generation >= c.Generation) {
			r.warn("marker", fmt.Sprintf("the account %q has a value of generation %d, epoch %d, which is newer than our records", a, st.marker.Generation, st.fence),
				"if another credential or another Rotunda rotates this account, end that; if not, remove the account's marker")
		}
	}
	if s.maria && t.table == "" {
		r.warn("marker_table", "without a marker table a call of an older rotation, of a process that was thought dead, can't be refused", "set marker_table=DATABASE.TABLE, and make it: "+tableDDL("DATABASE.TABLE"))
	}
	if len(all) != 2 {
		return nil
	}
	var grants [2][]string
	for i, a := range all {
		var err error
		if grants[i], err = s.grants(ctx, a); err != nil {
			return t.failure(ctx, atWork, "read the grants", err, false)
		}
	}
	if !slices.Equal(grants[0], grants[1]) {
		r.warn("grants", fmt.Sprintf("%q and %q were not given the same: consumers' rights change with each rotation", all[0], all[1]), "give both the same; compare SHOW GRANTS FOR "+all[0].sql()+" and FOR "+all[1].sql())
	}
	return nil
}

// grants are what an account was given, without roles and single columns.
func (s *session) grants(ctx context.Context, a account) ([]string, error) {
	rows, err := s.QueryContext(ctx, `SELECT CONCAT_WS(' ', PRIVILEGE_TYPE, IS_GRANTABLE) FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = ?
		UNION SELECT CONCAT_WS(' ', PRIVILEGE_TYPE, TABLE_SCHEMA, IS_GRANTABLE) FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = ?
		UNION SELECT CONCAT_WS(' ', PRIVILEGE_TYPE, TABLE_SCHEMA, TABLE_NAME, IS_GRANTABLE) FROM information_schema.TABLE_PRIVILEGES WHERE GRANTEE = ? ORDER BY 1 LIMIT 10000`,
		grantee(a), grantee(a), grantee(a))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var g string
		if err := rows.Scan(&g); err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, rows.Err()
}

// grantee is how information_schema writes an account: in quotes, nothing escaped.
func grantee(a account) string { return "'" + a.user + "'@'" + a.host + "'" }

// checkPassword does on an account of its own what Apply does.
func (t *target) checkPassword(ctx context.Context, r *report, s *session, c providers.Change) error {
	a := account{"rd_check_" + strings.ToLower(rand.Text()[:12]), "127.0.0.1"}
	lock, err := t.lockOut(s.flavour, a, c)
	if err != nil {
		return err
	}
	create := strings.Replace(lock, "ALTER USER", "CREATE USER", 1)
	err = s.alter(ctx, create)
	if err == nil {
		err = s.alter(ctx, lock)
		_, errDrop := s.ExecContext(context.WithoutCancel(ctx), "DROP USER "+a.sql())
		err = errors.Join(err, errDrop)
	}
	if err == nil {
		r.ok("permission", "the login may set passwords")
		r.ok("password_policy", "the server takes a password like ours")
		return nil
	}
	failed := t.failure(ctx, atPassword, "try to set a password", err, false)
	known, _ := errors.AsType[*fault.Error](failed)
	switch {
	case known == nil || errors.Is(failed, fault.ErrUnavailable):
		return failed
	case known.Reason == "password_policy":
		r.bad("password_policy", known.Message, "raise the credential's length, or set characters=alphanumeric_marks; where hashes are refused set send=text")
	case errors.Is(failed, fault.ErrInvalid):
		r.bad("plugin", known.Message, "choose a plugin that the server has loaded")
	default:
		r.bad("permission", known.Message, "GRANT CREATE USER ON *.* to the login")
	}
	return nil
}

func (t *target) checkPrivileges(ctx context.Context, r *report, s *session, all []account) error {
	sees, err := s.may(ctx, "PROCESS")
	if err != nil {
		return t.failure(ctx, atWork, "read the login's privileges", err, false)
	}
	ends, err := s.may(ctx, "CONNECTION ADMIN", "CONNECTION_ADMIN", "SUPER")
	if err != nil {
		return t.failure(ctx, atWork, "read the login's privileges", err, false)
	}
	if sees {
		r.ok("usage_evidence", "sessions of other accounts can be seen")
	} else {
		r.warn("usage_evidence", "sessions of other accounts can't be seen, nor ended in an emergency", "GRANT PROCESS ON *.* to the login")
	}
	if ends {
		r.ok("end_sessions", "sessions can be ended in an emergency")
	} else {
		r.warn("end_sessions", "in an emergency the old value's sessions can't be ended", "GRANT CONNECTION ADMIN (MySQL: CONNECTION_ADMIN) ON *.* to the login")
	}
	for _, a := range all {
		var n int
		err := s.QueryRowContext(ctx, "SELECT COUNT(*) FROM mysql.user WHERE User = ?", a.user).Scan(&n)
		if err != nil && !isDenied(err) {
			return t.failure(ctx, atWork, "count the accounts of a name", err, false)
		}
		if n > 1 {
			r.warn("same_name", fmt.Sprintf("there are %d accounts with the name %q: sessions are counted and ended by name", n, a.user), "use a name of its own for this credential")
		}
	}
	return nil
}

// checkCurrent proves what consumers read now.
func (t *target) checkCurrent(ctx context.Context, r *report, c providers.Change) error {
	if c.Current.Account == "" || c.Current.Fields.Text("password") == "" {
		return nil
	}
	err := t.Verify(ctx, c, c.Current)
	switch {
	case err == nil:
		r.ok("current_value", "what consumers read now is accepted for the account %q", c.Current.Account)
	case providers.OutcomeOf(err) == providers.Unknown:
		return err
	default:
		r.warn("current_value", "what consumers read now is not accepted: "+err.Error(), "rotate now, and find out who changed it")
	}
	return nil
}

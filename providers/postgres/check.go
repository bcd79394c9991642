package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	maxSkew  = 30 * time.Second
	headroom = 10 // free connections below which Check warns
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

// Check is the preflight. What it tries it tries in transactions that are rolled back.
func (t *target) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	names, err := t.accounts(c)
	if err != nil {
		known, _ := errors.AsType[*fault.Error](err)
		return []providers.Finding{{Check: known.Reason, Detail: known.Message, Remedy: "correct " + known.Field}}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var r report
	conn, release, err := t.login(ctx, c)
	if errors.Is(err, fault.ErrDenied) {
		r.bad("login", err.Error(), "check the user and password of the target's login, and pg_hba.conf")
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	defer release()
	s, err := readServer(ctx, conn)
	if err != nil {
		return nil, t.failure(ctx, atWork, "read the server's state", err)
	}
	t.checkServer(&r, s)
	roles, err := readAccounts(ctx, conn, names)
	if err != nil {
		return nil, t.failure(ctx, atWork, "read the roles", err)
	}
	for _, name := range names {
		i := slices.IndexFunc(roles, func(a account) bool { return a.name == name })
		if i < 0 {
			r.bad("role_exists", fmt.Sprintf("there is no role %q", name), "CREATE ROLE "+identifier(name)+" LOGIN, with the grants that consumers need")
			continue
		}
		if err := t.checkAccount(ctx, conn, &r, c, roles[i], s); err != nil {
			return nil, err
		}
	}
	if len(names) == 2 && len(roles) == 2 {
		checkPair(&r, roles)
	}
	if slices.Contains(names, t.user) {
		r.warn("self_reference", fmt.Sprintf("%q is the role that this target logs in as: after each rotation the target's login has to be given the new value", t.user),
			"use another login; or make sure that the target's login is read from where this credential is published")
	}
	return r, t.checkCurrent(ctx, &r, c)
}

type server struct {
	version     string
	number      int
	super       bool
	stats       bool
	signal      bool
	encryption  string
	standby     bool
	connections int
	limit       int
	now         time.Time
}

func readServer(ctx context.Context, conn *pgx.Conn) (server, error) {
	var s server
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num')::int,
		(SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
		pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), pg_has_role(current_user, 'pg_signal_backend', 'USAGE'),
		current_setting('password_encryption'), pg_is_in_recovery(),
		(SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usename IS NOT NULL),
		current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int, clock_timestamp()`).
		Scan(&s.version, &s.number, &s.super, &s.stats, &s.signal, &s.encryption, &s.standby, &s.connections, &s.limit, &s.now)
	return s, err
}

func (t *target) checkServer(r *report, s server) {
	login := identifier(t.user)
	r.ok("login", "logged in to PostgreSQL %s as %q", providers.Scrub(s.version), t.user)
	if s.standby {
		r.bad("primary", "the server is a standby, which takes no changes", "give the address of the primary")
	}
	if s.encryption != "scram-sha-256" {
		r.warn("password_encryption", "the server makes "+providers.Scrub(s.encryption)+" of passwords by itself; Rotunda sets SCRAM-SHA-256, which old drivers can't do",
			"make sure that the consumers' drivers can do SCRAM (all since about 2018)")
	}
	skew := t.now().Sub(s.now)
	measured := "clock skew " + strconv.FormatFloat(skew.Abs().Seconds(), 'f', 1, 64) + "s"
	f := providers.Finding{Check: "clock_skew", OK: true, Detail: "the server's clock agrees with ours", Measured: measured}
	if skew.Abs() > maxSkew {
		f.OK, f.Warning, f.Detail = false, true, "the server's clock does not agree with ours, so that superseded passwords end early or late"
		f.Remedy = "let both machines keep their time by NTP"
	}
	*r = append(*r, f)
	free := s.limit - s.connections
	f = providers.Finding{Check: "connection_limit", OK: true, Detail: "there are connections left", Measured: strconv.Itoa(free) + " free connections"}
	if free < headroom {
		f.OK, f.Warning, f.Detail, f.Remedy = false, true, "hardly any connections are left, so that the proof of a new value may be turned away", "raise max_connections, or lower what pools take"
	}
	*r = append(*r, f)
	if s.stats || s.super {
		r.ok("usage_evidence", "the times of other roles' sessions can be read")
	} else {
		r.warn("usage_evidence", "sessions of other roles can be counted, but not when they were last used", "GRANT pg_read_all_stats TO "+login)
	}
	if s.signal || s.super {
		r.ok("end_sessions", "sessions can be ended in an emergency")
	} else {
		r.warn("end_sessions", "in an emergency the old value's sessions can't be ended", "GRANT pg_signal_backend TO "+login)
	}
}

// account is a role as Check sees it.
type account struct {
	role
	login, super, owner bool
	limit               int
	memberships         []string
}

func readAccounts(ctx context.Context, conn *pgx.Conn, names []string) ([]account, error) {
	rows, err := conn.Query(ctx, `SELECT r.rolname::text, coalesce(pg_catalog.shobj_description(r.oid, 'pg_authid'), ''), r.rolcanlogin, r.rolsuper, r.rolconnlimit,
		ARRAY(SELECT g.rolname::text FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid ORDER BY 1 LIMIT 100),
		EXISTS (SELECT FROM pg_catalog.pg_shdepend d WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass AND d.refobjid = r.oid AND d.deptype = 'o')
		FROM pg_catalog.pg_roles r WHERE r.rolname = ANY($1::text[]) ORDER BY 1`, names)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (account, error) {
		var a account
		var comment string
		err := row.Scan(&a.name, &comment, &a.login, &a.super, &a.limit, &a.memberships, &a.owner)
		a.text, a.marker, a.marked = splitComment(comment)
		return a, err
	})
}

func (t *target) checkAccount(ctx context.Context, conn *pgx.Conn, r *report, c providers.Change, a account, s server) error {
	name := identifier(a.name)
	if !a.login || a.limit == 0 {
		r.bad("role_can_login", fmt.Sprintf("the role %q may not log in", a.name), "ALTER ROLE "+name+" LOGIN CONNECTION LIMIT -1")
	}
	if a.super {
		r.warn("superuser", fmt.Sprintf("the role %q is a superuser: whoever reads this credential owns the server", a.name), "give consumers a role with the grants that they need")
	}
	if a.owner && c.Strategy == providers.Alternate {
		r.warn("ownership", fmt.Sprintf("the role %q owns databases, tables or other objects, which the other role can't alter", a.name),
			"let a role without login own them, of which both are members: REASSIGN OWNED BY "+name+" TO …")
	}
	if refused := a.fence(c); a.marked && c.Generation > 0 && refused != nil && (c.Epoch > 0 || a.marker.Generation >= c.Generation) {
		r.warn("marker", fmt.Sprintf("the role %q has a value of generation %d, epoch %d, which is newer than our records", a.name, a.marker.Generation, a.marker.Epoch),
			"if another credential or another Rotunda rotates this role, end that; if not, remove the part in brackets from the role's comment")
	}
	err := t.try(ctx, conn, a)
	if err == nil {
		r.ok("permission", "the login may set the password and the comment of the role %q", a.name)
		r.ok("password_policy", "the server takes a password like ours for the role %q", a.name)
		return nil
	}
	switch failed := t.failure(ctx, atPassword, "try to set a password of the role "+strconv.Quote(a.name), err); {
	case errors.Is(failed, fault.ErrDenied):
		remedy := "ALTER ROLE " + identifier(t.user) + " CREATEROLE"
		if s.number >= 160000 {
			remedy += "; GRANT " + name + " TO " + identifier(t.user) + " WITH ADMIN OPTION"
		}
		if a.super {
			remedy = "only a superuser may change a superuser: use such a login, or make " + name + " NOSUPERUSER"
		}
		r.bad("permission", failed.Error(), remedy)
	case errors.Is(failed, fault.ErrRejected):
		r.bad("password_policy", failed.Error(), "let the policy take SCRAM verifiers, or raise the credential's length or characters")
	default:
		return failed
	}
	return nil
}

// try sets a password that nobody knows, and the comment as it is, and rolls back.
func (t *target) try(ctx context.Context, conn *pgx.Conn, a account) error {
	password, err := providers.NewPassword(nil)
	if err != nil {
		return err
	}
	hash, err := verifier(password.RevealString())
	if err != nil {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // it is rolled back below; this is for the ways out before
	r, err := lockRole(ctx, tx, a.name)
	if errors.Is(err, errGone) {
		return &pgconn.PgError{Code: "42704", Message: "the role does not exist any more"}
	}
	if err != nil {
		return err
	}
	comment := r.text
	if r.marked {
		comment = r.marker.comment(r.text)
	}
	for _, statement := range []string{
		"ALTER ROLE " + identifier(a.name) + " PASSWORD " + literal(hash) + " VALID UNTIL 'infinity'",
		"COMMENT ON ROLE " + identifier(a.name) + " IS " + literal(comment),
	} {
		if _, err := tx.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
	}
	return tx.Rollback(ctx)
}

func checkPair(r *report, roles []account) {
	a, b := roles[0], roles[1]
	if slices.Equal(a.memberships, b.memberships) {
		r.ok("memberships", "%q and %q are members of the same roles", a.name, b.name)
		return
	}
	r.warn("memberships", fmt.Sprintf("%q is a member of [%s], %q of [%s]: consumers' rights change with each rotation", a.name, strings.Join(a.memberships, ", "), b.name, strings.Join(b.memberships, ", ")),
		"grant the same roles to both")
}

// checkCurrent proves what consumers read now.
func (t *target) checkCurrent(ctx context.Context, r *report, c providers.Change) error {
	if c.Current.Account == "" || c.Current.Fields.Text("password") == "" {
		return nil
	}
	err := t.Verify(ctx, c, c.Current)
	switch {
	case err == nil:
		r.ok("current_value", "what consumers read now is accepted for the role %q", c.Current.Account)
	case providers.OutcomeOf(err) == providers.Unknown:
		return err
	default:
		r.warn("current_value", "what consumers read now is not accepted: "+err.Error(), "rotate now, and find out who changed it")
	}
	return nil
}

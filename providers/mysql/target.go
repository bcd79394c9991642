package mysql

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// maxSessions is how many sessions are ended by one Revoke; the next call ends the rest.
const maxSessions = 10000

// Prepare chooses the account and the password. It asks the server with dual only:
// whether it can do that.
func (t *target) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	all, err := t.accounts(c)
	if err != nil {
		return c, err
	}
	if c.Strategy == providers.Dual {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		s, err := t.login(ctx)
		if err != nil {
			return c, err
		}
		defer s.Close() //nolint:errcheck // it goes back to the pool
		if !s.dual() {
			return c, fault.Invalid("strategy", "strategy_unknown", "%s: %s has no second password for an account: use alternate", t.name, s.flavour)
		}
	}
	a := all[0]
	none := c.Current.Account == "" && c.Current.Fields.Text("username") == ""
	if c.Strategy == providers.Alternate && (a.of(c.Current) || none && slices.ContainsFunc(c.Others, a.of)) {
		a = all[1]
	}
	password, err := providers.NewPassword(c.Params)
	if err != nil {
		return c, err
	}
	fields := providers.Fields{}
	for name, text := range c.Static {
		if name == "username" || name == "password" {
			return c, fault.Invalid("static."+name, "field_taken", "%s: the field %s of the value is made by the rotation: remove it from the static fields", t.name, name)
		}
		fields = fields.Set(name, text)
	}
	fields = fields.Set("username", a.user)
	fields["password"] = password
	c.New.Account, c.New.Fields, c.Before = a.String(), fields, nil
	return c, nil
}

// Apply sets the password and the marker.
func (t *target) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	doing := "set the password of the account " + strconv.Quote(c.New.Account)
	a, err := t.isOurs(c, c.New.Account)
	if err != nil {
		return providers.Held{}, err
	}
	if c.Strategy == providers.Alternate && a.of(c.Current) && !same(c.New, c.Current) {
		return providers.Held{}, fault.Invalid("params.users", "account_in_use", "%s: %s: consumers read its present value; with alternate the other account is next", t.name, doing)
	}
	password := c.New.Fields.Text("password")
	err = t.locked(ctx, a, doing, func(s *session) error {
		st, err := t.readState(ctx, s, a)
		if err != nil {
			return t.failure(ctx, atWork, doing, err, false)
		}
		if !st.there {
			return fault.New(fault.ErrNotFound, "account_missing", "%s: %s: there is no such account: create it, or change the credential", t.name, doing)
		}
		if err := st.check(a, c); err != nil {
			return t.failure(ctx, atWork, doing, err, false)
		}
		m := marker{Rotation: c.New.Rotation, Generation: c.New.Generation, Epoch: c.Epoch}
		statement, hidden, err := t.statement(s.flavour, a, c, st, password, m)
		if err != nil {
			return t.failure(ctx, atPassword, doing, err, false)
		}
		if err := t.raise(ctx, s, a, c.Epoch); err != nil {
			return t.failure(ctx, atWork, doing, err, false)
		}
		if err := s.alter(ctx, statement); err != nil {
			return t.failure(ctx, atPassword, doing, err, false, password, hidden)
		}
		if err := t.mark(ctx, s, a, m); err != nil {
			return t.failure(ctx, atWork, doing, err, true)
		}
		return nil
	})
	if err != nil {
		return providers.Held{}, err
	}
	h := c.New
	h.Fields = maps.Clone(h.Fields)
	return h, nil
}

// statement is that by which the account gets the password, and what of it is secret.
func (t *target) statement(f flavour, a account, c providers.Change, st state, password string, m marker) (statement, hidden string, err error) {
	plugin := f.plugin(c.Params)
	kept, err := hash(plugin, password)
	if err != nil {
		return "", "", err
	}
	if c.Strategy != providers.Dual {
		if t.text {
			return f.set(a, f.auth(plugin, "", password), false, m), kept, nil
		}
		return f.set(a, f.auth(plugin, kept, ""), false, m), kept, nil
	}
	if !f.dual() {
		return "", "", fault.Invalid("strategy", "strategy_unknown", "%s has no second password for an account: use alternate", f)
	}
	is, _ := matches(st.plugin, st.kept, password)
	if is || st.marked && st.marker.Generation == m.Generation && st.marker.Rotation == m.Rotation {
		// Again it would retain the new password, and drop the old one.
		return f.set(a, "", false, m), kept, nil
	}
	// RETAIN takes the text only; MySQL keeps that out of its logs.
	return f.set(a, f.auth(plugin, "", password), true, m), kept, nil
}

// malformedTries: of 256 challenges of ed25519 the driver misreads the one that ends in
// a zero byte, and hangs up before it sent any proof.
const malformedTries = 3

// Verify logs in as a consumer does, once.
func (t *target) Verify(ctx context.Context, _ providers.Change, h providers.Held) error {
	doing := "log in as the account " + strconv.Quote(h.Account)
	password := h.Fields.Text("password")
	a, err := parseAccount(h.Account)
	if err != nil || password == "" {
		return fault.Invalid("fields.password", "value_missing", "%s: %s: the value has no account or no password", t.name, doing)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	config := t.config.Clone()
	config.User, config.Passwd = a.user, password
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return t.failure(ctx, atProof, doing, err, false, password)
	}
	conn, err := connector.Connect(ctx)
	for again := 0; again < malformedTries && errors.Is(err, mysql.ErrMalformPkt); again++ {
		conn, err = connector.Connect(ctx)
	}
	if err != nil {
		return t.failure(ctx, atProof, doing, err, false, password)
	}
	_ = conn.Close() // the login was the proof
	return nil
}

// Applied reads the marker of an account, where the server keeps one.
func (t *target) Applied(ctx context.Context, _ providers.Change, name string) (providers.Applied, error) {
	doing := "read the marker of the account " + strconv.Quote(name)
	a, err := parseAccount(name)
	if err != nil {
		return providers.Applied{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := t.login(ctx)
	if err != nil {
		return providers.Applied{}, err
	}
	defer s.Close() //nolint:errcheck // it goes back to the pool
	st, err := t.readState(ctx, s, a)
	if err != nil {
		return providers.Applied{}, t.failure(ctx, atWork, doing, err, false)
	}
	if !st.there {
		return providers.Applied{}, fault.New(fault.ErrNotFound, "account_missing", "%s: %s: there is no such account", t.name, doing)
	}
	if !st.marked {
		return providers.Applied{}, nil
	}
	return providers.Applied{Known: true, Rotation: st.marker.Rotation, Generation: st.marker.Generation, Epoch: st.marker.Epoch}, nil
}

// Usage counts the sessions of h's user name. Where the new value has the same account
// they can't be told apart, and without PROCESS they can't be seen.
func (t *target) Usage(ctx context.Context, c providers.Change, h providers.Held) (providers.Evidence, error) {
	doing := "read the sessions of the account " + strconv.Quote(h.Account)
	a, err := parseAccount(h.Account)
	if err != nil {
		return providers.Evidence{}, err
	}
	e := providers.Evidence{Source: "information_schema.PROCESSLIST"}
	if c.New.Account == h.Account && !same(c.New, h) {
		return e, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s, err := t.login(ctx)
	if err != nil {
		return providers.Evidence{}, err
	}
	defer s.Close() //nolint:errcheck // it goes back to the pool
	if e.Known, err = s.may(ctx, "PROCESS"); err != nil {
		return providers.Evidence{}, t.failure(ctx, atWork, doing, err, false)
	}
	var last sql.NullFloat64
	err = s.QueryRowContext(ctx, "SELECT COUNT(*), CAST(UNIX_TIMESTAMP() - MIN(TIME) AS DOUBLE) FROM information_schema.PROCESSLIST WHERE USER = ?", a.user).Scan(&e.Sessions, &last)
	if err != nil {
		return providers.Evidence{}, t.failure(ctx, atWork, doing, err, false)
	}
	if last.Valid {
		e.LastUsed = time.Unix(int64(last.Float64), 0).UTC()
	}
	return e, nil
}

// may says whether the login was given one of the privileges, itself and for everything.
func (s *session) may(ctx context.Context, privileges ...any) (bool, error) {
	query := "SELECT COUNT(*) FROM information_schema.USER_PRIVILEGES WHERE REPLACE(GRANTEE, '''', '') = CURRENT_USER() AND PRIVILEGE_TYPE IN (?"
	for range privileges[1:] {
		query += ", ?"
	}
	var n int
	err := s.QueryRowContext(ctx, query+")", privileges...).Scan(&n)
	return n > 0, err
}

// Retire does nothing: passwords expire by whole days here, and not for good.
func (t *target) Retire(context.Context, providers.Change, providers.Held, time.Time) error {
	return nil
}

// Revoke gives h's account a password that nobody knows and locks it; with dual it
// drops the older of the account's passwords.
func (t *target) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	doing := "end the value of the account " + strconv.Quote(h.Account)
	a, err := parseAccount(h.Account)
	if err != nil {
		return fault.Invalid("account", "account_missing", "%s: %s: the record names no account", t.name, doing)
	}
	if a.user == t.user {
		return fault.Invalid("account", "self_reference", "%s: %s: it is what this target logs in as", t.name, doing)
	}
	shared := h.Account == c.New.Account && !same(h, c.New) || h.Account == c.Current.Account && !same(h, c.Current)
	if c.Strategy == providers.Replace && (shared || h.Account == c.New.Account) {
		if !c.Emergency {
			return nil
		}
		return t.locked(ctx, a, doing, func(s *session) error { return t.kill(ctx, s, a) })
	}
	return t.locked(ctx, a, doing, func(s *session) error {
		st, err := t.readState(ctx, s, a)
		if err != nil {
			return t.failure(ctx, atWork, doing, err, false)
		}
		if !st.there {
			return nil
		}
		ended, err := t.end(ctx, s, a, c, h, st, doing)
		if err != nil || !c.Emergency || !ended {
			return err
		}
		return t.kill(ctx, s, a)
	})
}

// end ends h if it is what the account has. ended is also true when that was done before.
func (t *target) end(ctx context.Context, s *session, a account, c providers.Change, h providers.Held, st state, doing string) (ended bool, err error) {
	if c.Strategy == providers.Dual {
		return t.endDual(ctx, s, a, c, h, st, doing)
	}
	if !st.holds(a, c, h) {
		return st.locked, nil
	}
	if st.fence > c.Epoch {
		return false, t.failure(ctx, atWork, doing, st.check(a, c), false)
	}
	statement, err := t.lockOut(s.flavour, a, c)
	if err != nil {
		return false, err
	}
	if err := s.alter(ctx, statement); err != nil {
		failed := t.failure(ctx, atPassword, doing, err, false)
		if errors.Is(failed, fault.ErrNotFound) {
			return false, nil
		}
		return false, failed
	}
	return true, nil
}

func (t *target) lockOut(f flavour, a account, c providers.Change) (string, error) {
	password, err := providers.NewPassword(map[string]string{"characters": "alphanumeric_marks"})
	if err != nil {
		return "", err
	}
	plugin := f.plugin(c.Params)
	if t.text {
		return f.end(a, f.auth(plugin, "", password.RevealString())), nil
	}
	kept, err := hash(plugin, password.RevealString())
	if err != nil {
		return "", err
	}
	return f.end(a, f.auth(plugin, kept, "")), nil
}

// endDual: the older password goes; when it is the new one that has to go, the current
// one is made the first again before.
func (t *target) endDual(ctx context.Context, s *session, a account, c providers.Change, h providers.Held, st state, doing string) (bool, error) {
	if !st.marked || st.marker.Generation != c.New.Generation || st.marker.Rotation != c.New.Rotation {
		return false, nil // New was never applied, or a newer one was: the older password is not h
	}
	if st.fence > c.Epoch {
		return false, t.failure(ctx, atWork, doing, st.check(a, c), false)
	}
	statements, hidden := []string{discard(a)}, ""
	current := c.Current.Fields.Text("password")
	isFirst, _ := matches(st.plugin, st.kept, h.Fields.Text("password"))
	switch {
	case same(h, c.New) && (current == "" || c.Current.Account != h.Account):
		statement, err := t.lockOut(s.flavour, a, c)
		if err != nil {
			return false, err
		}
		statements = append(statements, statement)
	case same(h, c.New):
		plugin := s.plugin(c.Params)
		kept, err := hash(plugin, current)
		if err != nil {
			return false, t.failure(ctx, atPassword, doing, err, false)
		}
		hidden = kept
		statements = []string{"ALTER USER " + a.sql() + s.auth(plugin, kept, ""), discard(a)}
	case isFirst:
		return false, nil // not the older one, whatever the records say
	}
	for i, statement := range statements {
		if err := s.alter(ctx, statement); err != nil {
			return false, t.failure(ctx, atPassword, doing, err, i > 0, hidden)
		}
	}
	return true, nil
}

// kill ends the sessions of a's user name.
func (t *target) kill(ctx context.Context, s *session, a account) error {
	doing := "end the sessions of the account " + strconv.Quote(a.String())
	rows, err := s.QueryContext(ctx, "SELECT ID FROM information_schema.PROCESSLIST WHERE USER = ? AND ID <> CONNECTION_ID() LIMIT ?", a.user, maxSessions)
	if err != nil {
		return t.failure(ctx, atWork, doing, err, false)
	}
	defer rows.Close()
	var ids []int64
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return t.failure(ctx, atWork, doing, err, false)
		}
		ids = append(ids, id)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return t.failure(ctx, atWork, doing, err, false)
	}
	for _, id := range ids {
		_, err := s.ExecContext(ctx, "KILL CONNECTION "+strconv.FormatInt(id, 10))
		if my, ok := errors.AsType[*mysql.MySQLError](err); ok && my.Number == 1094 {
			continue // it has ended by itself
		}
		if err != nil && isDenied(err) {
			return fault.New(fault.ErrDenied, "permission", "%s: %s: the value is no longer accepted, but the login may not end its sessions: GRANT CONNECTION ADMIN (MySQL: CONNECTION_ADMIN) ON *.* to it", t.name, doing)
		}
		if err != nil {
			return t.failure(ctx, atWork, doing, err, false)
		}
	}
	return nil
}

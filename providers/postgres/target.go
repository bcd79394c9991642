package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// Prepare chooses the role and the password. It does not ask the server.
func (t *target) Prepare(_ context.Context, c providers.Change) (providers.Change, error) {
	names, err := t.accounts(c)
	if err != nil {
		return c, err
	}
	account := names[0]
	current := accountOf(c.Current)
	if c.Strategy == providers.Alternate && (current == account || current == "" && inUse(c.Others, account)) {
		account = names[1]
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
	fields = fields.Set("username", account)
	fields["password"] = password
	c.New.Account, c.New.Fields, c.Before = account, fields, nil
	return c, nil
}

// accountOf is the role of a value. Of one from before Rotunda only the fields are known.
func accountOf(h providers.Held) string {
	if h.Account == "" {
		return h.Fields.Text("username")
	}
	return h.Account
}

func inUse(held []providers.Held, account string) bool {
	return slices.ContainsFunc(held, func(h providers.Held) bool { return h.Account == account })
}

// Apply sets the verifier and the marker in one transaction.
func (t *target) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	account := c.New.Account
	doing := "set the password of the role " + strconv.Quote(account)
	names, err := t.accounts(c)
	if err != nil {
		return providers.Held{}, err
	}
	if !slices.Contains(names, account) {
		return providers.Held{}, fault.Invalid("params", "account_unknown", "%s: %s: it is none of the credential's roles %q", t.name, doing, names)
	}
	if c.Strategy == providers.Alternate && account == accountOf(c.Current) && !same(c.New, c.Current) {
		return providers.Held{}, fault.Invalid("params.users", "account_in_use", "%s: %s: consumers read its present value; with alternate the other role is next", t.name, doing)
	}
	password := c.New.Fields.Text("password")
	hash, err := verifier(password)
	if err != nil {
		return providers.Held{}, t.failure(ctx, atWork, doing, err)
	}
	err = t.change(ctx, c, account, doing, []string{password, hash}, func(r role) ([]string, error) {
		if err := r.fence(c); err != nil {
			return nil, err
		}
		m := marker{Rotation: c.New.Rotation, Generation: c.New.Generation, Epoch: c.Epoch}
		return []string{
			"ALTER ROLE " + identifier(account) + " PASSWORD " + literal(hash) + " VALID UNTIL 'infinity'",
			"COMMENT ON ROLE " + identifier(account) + " IS " + literal(m.comment(r.text)),
		}, nil
	})
	if errors.Is(err, errGone) {
		return providers.Held{}, fault.New(fault.ErrNotFound, "role_missing", "%s: %s: there is no such role: create it, or change the credential", t.name, doing)
	}
	if err != nil {
		return providers.Held{}, err
	}
	h := c.New
	h.Fields = maps.Clone(h.Fields)
	return h, nil
}

// same says that two records are of one value.
func same(a, b providers.Held) bool { return a.Generation == b.Generation && a.Rotation == b.Rotation }

// Verify logs in as a consumer does, once.
func (t *target) Verify(ctx context.Context, c providers.Change, h providers.Held) error {
	doing := "log in as the role " + strconv.Quote(h.Account)
	password := h.Fields.Text("password")
	if password == "" {
		return fault.Invalid("fields.password", "value_missing", "%s: %s: the value has no password", t.name, doing)
	}
	if err := checkName(h.Account); err != nil {
		return t.failure(ctx, atWork, doing, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	config := t.conn.Copy()
	config.User, config.Password = h.Account, password
	if database := c.Params["database"]; database != "" {
		config.Database = database
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return t.failure(ctx, atProof, doing, err, password)
	}
	defer closeConn(ctx, conn)
	var user string
	if err := conn.QueryRow(ctx, "SELECT session_user::text").Scan(&user); err != nil {
		return t.failure(ctx, atWork, doing, err, password)
	}
	return nil
}

// Applied reads the marker of a role.
func (t *target) Applied(ctx context.Context, c providers.Change, account string) (providers.Applied, error) {
	doing := "read the marker of the role " + strconv.Quote(account)
	if err := checkName(account); err != nil {
		return providers.Applied{}, t.failure(ctx, atWork, doing, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, release, err := t.login(ctx, c)
	if err != nil {
		return providers.Applied{}, err
	}
	defer release()
	r, err := readRole(ctx, conn, account)
	if errors.Is(err, errGone) {
		return providers.Applied{}, fault.New(fault.ErrNotFound, "role_missing", "%s: %s: there is no such role", t.name, doing)
	}
	if err != nil {
		return providers.Applied{}, t.failure(ctx, atWork, doing, err)
	}
	if !r.marked {
		return providers.Applied{}, nil
	}
	return providers.Applied{Known: true, Rotation: r.marker.Rotation, Generation: r.marker.Generation, Epoch: r.marker.Epoch}, nil
}

// Usage counts the sessions of h's role. Where the role is also that of the new value,
// only a session from before the rotation is known to be h's, and none proves nothing.
func (t *target) Usage(ctx context.Context, c providers.Change, h providers.Held) (providers.Evidence, error) {
	doing := "read the sessions of the role " + strconv.Quote(h.Account)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, release, err := t.login(ctx, c)
	if err != nil {
		return providers.Evidence{}, err
	}
	defer release()
	shared := c.New.Account == h.Account && !same(c.New, h)
	var before *time.Time
	if shared {
		before = &c.At
	}
	var sessions int
	var last pgtype.Timestamptz
	err = conn.QueryRow(ctx, `SELECT count(*), max(greatest(backend_start, state_change)) FROM pg_catalog.pg_stat_activity
		WHERE usename = $1 AND pid <> pg_catalog.pg_backend_pid() AND ($2::timestamptz IS NULL OR backend_start < $2)`,
		h.Account, before).Scan(&sessions, &last)
	if err != nil {
		return providers.Evidence{}, t.failure(ctx, atWork, doing, err)
	}
	e := providers.Evidence{Known: !shared || sessions > 0, Sessions: sessions, Source: "pg_stat_activity"}
	if last.Valid && last.InfinityModifier == pgtype.Finite {
		e.LastUsed = last.Time.UTC()
	}
	return e, nil
}

// Retire lets the password of h end at end; the zero time takes that back.
func (t *target) Retire(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
	until := "infinity"
	if !end.IsZero() {
		until = stamp(end)
	}
	return t.endValue(ctx, c, h, "let the password end at "+until+" of the role "+strconv.Quote(h.Account), func(r role) []string {
		statements := []string{"ALTER ROLE " + identifier(h.Account) + " VALID UNTIL " + literal(until)}
		if end.IsZero() && r.marked {
			// A call of an earlier epoch, which is late, must not set an end again.
			m := marker{Rotation: h.Rotation, Generation: h.Generation, Epoch: c.Epoch}
			statements = append(statements, "COMMENT ON ROLE "+identifier(h.Account)+" IS "+literal(m.comment(r.text)))
		}
		return statements
	})
}

// Revoke takes the password of h away, and in an emergency ends its sessions.
func (t *target) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	err := t.endValue(ctx, c, h, "take the password away from the role "+strconv.Quote(h.Account), func(r role) []string {
		return []string{"ALTER ROLE " + identifier(h.Account) + " PASSWORD NULL VALID UNTIL " + literal(stamp(r.now))}
	})
	if err != nil || !c.Emergency {
		return err
	}
	return t.endSessions(ctx, c, h)
}

// stamp is a time in the form that PostgreSQL reads in every DateStyle. Before the year 1
// and after 9999 it has none.
func stamp(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.999999+00") }

// endValue alters h's role if h is still what it has.
func (t *target) endValue(ctx context.Context, c providers.Change, h providers.Held, doing string, statements func(role) []string) error {
	if h.Account == "" {
		return fault.Invalid("account", "account_missing", "%s: %s: the record names no role", t.name, doing)
	}
	if c.Strategy == providers.Replace && (h.Account == c.New.Account || h.Account == c.Current.Account && !same(h, c.Current)) {
		return nil // it ended when the new value took its place
	}
	if h.Account == t.user {
		return fault.Invalid("account", "self_reference", "%s: %s: it is the role that this target logs in as, which would lock Rotunda out", t.name, doing)
	}
	err := t.change(ctx, c, h.Account, doing, nil, func(r role) ([]string, error) {
		if !r.has(c, h) {
			return nil, nil
		}
		if r.marked && r.marker.Epoch > c.Epoch {
			return nil, fault.New(fault.ErrStale, "epoch_passed", "the role %q was changed under epoch %d, this call is of epoch %d: another process has taken the rotation over", r.name, r.marker.Epoch, c.Epoch)
		}
		return statements(r), nil
	})
	if errors.Is(err, errGone) {
		return nil
	}
	return err
}

// has says whether h is the value of the role, as far as the marker and our records can
// tell. In doubt the role belongs to whoever else is on record for it.
func (r role) has(c providers.Change, h providers.Held) bool {
	if accountOf(c.Current) == r.name && !same(c.Current, h) {
		return false
	}
	if r.marked {
		return r.marker.of(h)
	}
	for _, x := range append([]providers.Held{c.New}, c.Others...) {
		if x.Account == r.name && !same(x, h) {
			return false
		}
	}
	return true
}

// endSessions ends the sessions of h's role when the role has no other value.
func (t *target) endSessions(ctx context.Context, c providers.Change, h providers.Held) error {
	doing := "end the sessions of the role " + strconv.Quote(h.Account)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, release, err := t.login(ctx, c)
	if err != nil {
		return err
	}
	defer release()
	r, err := readRole(ctx, conn, h.Account)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return t.failure(ctx, atWork, doing, err)
	}
	// With replace the role has the new value by now, and everybody's sessions are
	// ended: who holds the new value comes back.
	if c.Strategy != providers.Replace && !r.has(c, h) {
		return nil
	}
	wait := ""
	var version int
	if err := conn.QueryRow(ctx, "SELECT pg_catalog.current_setting('server_version_num')::int").Scan(&version); err != nil {
		return t.failure(ctx, atWork, doing, err)
	}
	if version >= 140000 {
		wait = ", 5000" // milliseconds, so that it has ended when we say so
	}
	// Among the conditions it could be called before those that choose the sessions.
	var doubted []int32
	err = conn.QueryRow(ctx, fmt.Sprintf(`SELECT coalesce(array_agg(pid), '{}') FROM (
		SELECT pid, pg_catalog.pg_terminate_backend(pid%s) AS ended FROM pg_catalog.pg_stat_activity
		WHERE usename = $1 AND pid <> pg_catalog.pg_backend_pid() OFFSET 0) AS s WHERE NOT ended`, wait), h.Account).Scan(&doubted)
	left := 0
	if err == nil && len(doubted) > 0 { // what had ended by itself is no longer there
		err = conn.QueryRow(ctx, "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE usename = $1 AND pid = ANY($2::int[])", h.Account, doubted).Scan(&left)
	}
	if err == nil && left > 0 {
		return fault.New(fault.ErrUnavailable, "sessions_left", "%s: %s: %d did not end yet: the same again", t.name, doing, left)
	}
	if err != nil {
		failed := t.failure(ctx, atWork, doing, err)
		if errors.Is(failed, fault.ErrDenied) {
			return fault.New(fault.ErrDenied, "permission", "%s: %s: the value is no longer accepted, but the login may not end its sessions: GRANT pg_signal_backend TO %s", t.name, doing, identifier(t.user))
		}
		return failed
	}
	return nil
}

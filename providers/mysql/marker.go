package mysql

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// marker is what an account's attribute (MySQL) or row (MariaDB) says of its value.
type marker struct {
	Rotation   string `json:"rotation"`
	Generation int64  `json:"generation"`
	Epoch      int64  `json:"epoch"`
}

// state is an account as the session that locked it sees it.
type state struct {
	there    bool
	readable bool // plugin, kept and locked are known
	plugin   string
	kept     string
	locked   bool
	marked   bool
	marker   marker
	fence    int64 // the newest epoch that was at work
}

// readState reads what the login may see of an account.
func (t *target) readState(ctx context.Context, s *session, a account) (state, error) {
	st := state{there: true}
	query := "SELECT plugin, COALESCE(authentication_string, ''), account_locked = 'Y' FROM mysql.user WHERE User = ? AND Host = ?"
	if s.maria {
		query = "SELECT COALESCE(JSON_VALUE(Priv, '$.plugin'), ''), COALESCE(JSON_VALUE(Priv, '$.authentication_string'), ''), COALESCE(JSON_VALUE(Priv, '$.account_locked'), '0') IN ('1', 'true') FROM mysql.global_priv WHERE User = ? AND Host = ?"
	}
	err := s.QueryRowContext(ctx, query, a.user, a.host).Scan(&st.plugin, &st.kept, &st.locked)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return state{readable: true}, nil
	case err == nil:
		st.readable = true
	case !isDenied(err):
		return state{}, err
	}
	return st, t.readMarker(ctx, s, a, &st)
}

func (t *target) readMarker(ctx context.Context, s *session, a account, st *state) error {
	if !s.maria {
		var text sql.NullString
		err := s.QueryRowContext(ctx, "SELECT ATTRIBUTE FROM information_schema.USER_ATTRIBUTES WHERE USER = ? AND HOST = ?", a.user, a.host).Scan(&text)
		if errors.Is(err, sql.ErrNoRows) || err == nil && !text.Valid {
			return nil
		}
		if err != nil {
			return err
		}
		st.marker, st.marked = parseAttribute(text.String)
		st.fence = st.marker.Epoch
		return nil
	}
	if t.table == "" {
		return nil
	}
	err := s.QueryRowContext(ctx, "SELECT rotation, generation, epoch, fence FROM "+t.table+" WHERE account = ?", a.String()).
		Scan(&st.marker.Rotation, &st.marker.Generation, &st.marker.Epoch, &st.fence)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	st.marked = err == nil && st.marker.Generation > 0
	return err
}

// parseAttribute finds the marker in an account's attribute.
func parseAttribute(text string) (marker, bool) {
	var all struct {
		Rotunda *marker `json:"rotunda"`
	}
	if json.Unmarshal([]byte(text), &all) != nil || all.Rotunda == nil || all.Rotunda.Generation <= 0 {
		return marker{}, false
	}
	return *all.Rotunda, true
}

// check refuses a change when a newer lease, a newer generation, or another rotation of
// the same generation has been at work on the account.
func (st state) check(a account, c providers.Change) error {
	m := st.marker
	switch {
	case st.marked && (m.Generation > c.Generation || m.Generation == c.Generation && m.Rotation != c.Rotation):
		return fault.New(fault.ErrStale, "generation_passed", "the account %q has a value of generation %d, rotation %s; this is generation %d, rotation %s: "+
			"if that value came from elsewhere (another credential, a restored database), remove the account's marker and retry",
			a, m.Generation, m.Rotation, c.Generation, c.Rotation)
	case st.fence > c.Epoch:
		return fault.New(fault.ErrStale, "epoch_passed", "the account %q was changed under epoch %d, this call is of epoch %d: another process has taken the rotation over", a, st.fence, c.Epoch)
	}
	return nil
}

// holds says whether h is the value of the account: by its hash where that can be read,
// else by the marker, else by our records. In doubt it isn't.
func (st state) holds(a account, c providers.Change, h providers.Held) bool {
	if a.of(c.Current) && !same(c.Current, h) {
		return false
	}
	if st.readable {
		if is, known := matches(st.plugin, st.kept, h.Fields.Text("password")); known {
			return is
		}
	}
	if st.marked {
		return st.marker.Generation == h.Generation && st.marker.Rotation == h.Rotation
	}
	for _, x := range append([]providers.Held{c.New}, c.Others...) {
		if x.Account == a.String() && !same(x, h) {
			return false
		}
	}
	return true
}

// same says that two records are of one value.
func same(a, b providers.Held) bool { return a.Generation == b.Generation && a.Rotation == b.Rotation }

// raise writes down, before anything is changed, that epoch is at work.
func (t *target) raise(ctx context.Context, s *session, a account, epoch int64) error {
	if !s.maria || t.table == "" {
		return nil
	}
	_, err := s.ExecContext(ctx, "INSERT INTO "+t.table+" (account, rotation, generation, epoch, fence) VALUES (?, '', 0, 0, ?) ON DUPLICATE KEY UPDATE fence = GREATEST(fence, VALUES(fence))", a.String(), epoch)
	return err
}

// mark writes the marker of a value that is set.
func (t *target) mark(ctx context.Context, s *session, a account, m marker) error {
	if !s.maria || t.table == "" {
		return nil
	}
	_, err := s.ExecContext(ctx, "UPDATE "+t.table+" SET rotation = ?, generation = ?, epoch = ? WHERE account = ?", m.Rotation, m.Generation, m.Epoch, a.String())
	return err
}

package redis

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

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

// Check is the preflight. Whether users may be changed is tried with a throw-away user
// that has no rights, on each node.
func (t *target) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	account, err := t.account(c)
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return []providers.Finding{{Check: known.Reason, Detail: known.Message, Remedy: "correct " + known.Field}}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var r report
	for _, n := range t.nodes {
		if err := t.checkNode(ctx, &r, n, account, c); err != nil {
			return nil, err
		}
	}
	if account == t.user {
		r.warn("self_reference", fmt.Sprintf("%q is the user that this target logs in as: the target's login has to be given the new value before the old one can be revoked", account), "use another login, or keep the target's login up to date")
	}
	if c.Current.Account == "" || c.Current.Fields.Text("password") == "" {
		return r, nil
	}
	err = t.Verify(ctx, c, c.Current)
	switch {
	case err == nil:
		r.ok("current_value", "what consumers read now is accepted for the user %q", c.Current.Account)
	case providers.OutcomeOf(err) == providers.Unknown:
		return nil, err
	default:
		r.warn("current_value", "what consumers read now is not accepted: "+err.Error(), "rotate now, and find out who changed it")
	}
	return r, nil
}

func (t *target) checkNode(ctx context.Context, r *report, n *node, account string, c providers.Change) error {
	u, err := n.get(ctx, account)
	if err != nil {
		failed := t.failure(ctx, "read the user", n.address, err, false)
		if errors.Is(failed, fault.ErrDenied) {
			r.bad("login", failed.Error(), "check the target's login, and give it +acl +client|list +client|kill")
			return nil
		}
		return failed
	}
	r.ok("login", "logged in to %s as %q", n.address, t.user)
	if u == nil {
		r.bad("user_exists", fmt.Sprintf("%s has no user %q", n.address, account), "ACL SETUSER "+account+" on, with the keys and commands that consumers need, on every node")
		return nil
	}
	if slices.Contains(u.flags, "off") {
		r.bad("user_can_login", fmt.Sprintf("the user %q is off on %s", account, n.address), "ACL SETUSER "+account+" on")
	}
	if slices.Contains(u.flags, "nopass") {
		r.warn("any_password", fmt.Sprintf("the user %q takes any password on %s, until the first rotation", account, n.address), "rotate soon, and make sure that all consumers read the credential")
	}
	if refused := u.fence(account, c); u.marked && c.Generation > 0 && refused != nil && (c.Epoch > 0 || u.marker.Generation >= c.Generation) {
		r.warn("marker", fmt.Sprintf("the user %q has a value of generation %d, epoch %d on %s, which is newer than our records", account, u.marker.Generation, u.marker.Epoch, n.address),
			"if another credential or another Rotunda rotates this user, end that; if not, remove the password hash that begins with "+magic)
	}
	return errors.Join(t.checkPermission(ctx, r, n), t.checkPersistence(ctx, r, n), t.checkClients(ctx, r, n))
}

func (t *target) checkPermission(ctx context.Context, r *report, n *node) error {
	name := scratchPrefix + "check_" + strings.ToLower(rand.Text()[:12])
	err := errors.Join(n.client.Do(ctx, "ACL", "SETUSER", name, "off", "-@all", "#"+hash(name)).Err(), n.client.Do(ctx, "ACL", "DELUSER", name).Err())
	if err == nil {
		r.ok("permission", "the login may change users of %s", n.address)
		return nil
	}
	failed := t.failure(ctx, "change a user", n.address, err, false)
	if errors.Is(failed, fault.ErrDenied) {
		r.bad("permission", failed.Error(), "ACL SETUSER "+t.user+" +acl, on every node")
		return nil
	}
	return failed
}

// checkPersistence asks whether a change would be lost. CONFIG may be denied to the
// login, which leaves the question open.
func (t *target) checkPersistence(ctx context.Context, r *report, n *node) error {
	info, err := n.client.Info(ctx, "server").Result()
	file, errFile := n.client.ConfigGet(ctx, "aclfile").Result()
	for _, err := range []error{err, errFile} {
		if err == nil {
			continue
		}
		if failed := t.failure(ctx, "read the configuration", n.address, err, false); !errors.Is(failed, fault.ErrDenied) {
			return failed
		}
		r.warn("persistence", "whether "+n.address+" keeps users over a restart can't be read", "give the login +info +config|get, or make sure that persist="+t.persist+" is right")
		return nil
	}
	hasConfig := false
	for line := range strings.Lines(info) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "config_file:"); ok && path != "" {
			hasConfig = true
		}
	}
	hasACL := file["aclfile"] != ""
	switch {
	case t.persist == "acl" && !hasACL:
		r.bad("persistence", n.address+" has no ACL file, and ACL SAVE will fail", "set aclfile in its configuration, or persist=config")
	case t.persist == "config" && (!hasConfig || hasACL):
		r.bad("persistence", n.address+" has no configuration file, or keeps its users in an ACL file: CONFIG REWRITE would not save them", "set persist=acl or auto")
	case t.persist == "none" || !hasACL && !hasConfig:
		r.warn("persistence", n.address+" forgets the new password when it restarts", "set aclfile in its configuration, and persist=auto")
	default:
		r.ok("persistence", "%s keeps its users over a restart", n.address)
	}
	return nil
}

func (t *target) checkClients(ctx context.Context, r *report, n *node) error {
	// SKIPME and an id that nobody has: asks for the right and ends nothing.
	err := errors.Join(n.client.ClientList(ctx).Err(), ignoreNil(n.client.Do(ctx, "CLIENT", "KILL", "ID", "9223372036854775807").Err()))
	if err == nil {
		r.ok("sessions", "sessions on %s can be listed and ended", n.address)
		return nil
	}
	failed := t.failure(ctx, "list sessions", n.address, err, false)
	if errors.Is(failed, fault.ErrDenied) {
		r.warn("sessions", failed.Error(), "ACL SETUSER "+t.user+" +client|list +client|kill, on every node")
		return nil
	}
	return failed
}

func ignoreNil(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}

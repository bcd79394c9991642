package redis

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// Prepare makes the password. It does not ask the server.
func (t *target) Prepare(_ context.Context, c providers.Change) (providers.Change, error) {
	account, err := t.account(c)
	if err != nil {
		return c, err
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

// Apply looks at all nodes first, so that what can be refused is refused before
// anything was changed.
func (t *target) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	doing := "set a password of the user " + strconv.Quote(c.New.Account)
	account, err := t.account(c)
	if err != nil {
		return providers.Held{}, err
	}
	if account != c.New.Account {
		return providers.Held{}, fault.Invalid("params.user", "account_unknown", "%s: %s: the credential's user is %q", t.name, doing, account)
	}
	password := c.New.Fields.Text("password")
	if password == "" {
		return providers.Held{}, fault.Invalid("fields.password", "value_missing", "%s: %s: the value has no password", t.name, doing)
	}
	entry, err := marker{c.New.Rotation, c.New.Generation, c.Epoch}.encode()
	if err != nil {
		return providers.Held{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, n := range t.nodes {
		if _, err := n.ready(ctx, account, c); err != nil {
			return providers.Held{}, t.failure(ctx, doing, n.address, err, false, password, hash(password))
		}
	}
	changed := false
	for _, n := range t.nodes {
		err := n.swap(ctx, account, c, func(u *user) []string { return rules(u, c.Strategy, hash(password), entry) })
		if err == nil {
			changed = true
			err = t.save(ctx, n)
		}
		if err != nil {
			return providers.Held{}, t.failure(ctx, doing, n.address, err, changed, password, hash(password))
		}
	}
	h := c.New
	h.Fields = maps.Clone(h.Fields)
	return h, nil
}

// rules are those of ACL SETUSER. What was read is removed, so that they fail if it is
// not there any more.
func rules(u *user, s providers.Strategy, hash, entry string) []string {
	var out []string
	for _, m := range u.markers {
		out = append(out, "!"+m)
	}
	if s == providers.Replace {
		for _, h := range u.hashes {
			out = append(out, "!"+h)
		}
	}
	return append(out, "#"+hash, "#"+entry)
}

// ready reads a user that has to be there and that c may change.
func (n *node) ready(ctx context.Context, account string, c providers.Change) (*user, error) {
	u, err := n.get(ctx, account)
	if err != nil {
		return nil, err
	}
	if u == nil {
		return nil, fault.New(fault.ErrNotFound, "user_missing", "there is no such user: create it with ACL SETUSER, or change the credential")
	}
	return u, u.fence(account, c)
}

// swap changes a user by rules that fail if it was changed since it was read.
func (n *node) swap(ctx context.Context, account string, c providers.Change, rules func(*user) []string) error {
	for range tries {
		u, err := n.ready(ctx, account, c)
		if err != nil {
			return err
		}
		args := []any{"ACL", "SETUSER", account}
		for _, rule := range rules(u) {
			args = append(args, rule)
		}
		if len(args) == 3 {
			return nil // nothing to change; and without rules it would make a user
		}
		err = n.client.Do(ctx, args...).Err()
		if !says(err, "does not exist") {
			return err
		}
	}
	return fault.New(fault.ErrLimited, "contended", "others change the same user all the time")
}

// Verify logs in to each node as a consumer does, once.
func (t *target) Verify(ctx context.Context, _ providers.Change, h providers.Held) error {
	doing := "log in as the user " + strconv.Quote(h.Account)
	password := h.Fields.Text("password")
	if password == "" || h.Account == "" {
		return fault.Invalid("fields.password", "value_missing", "%s: %s: the value has no user or no password", t.name, doing)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for _, n := range t.nodes {
		err := n.prove(ctx, h.Account, password)
		if says(err, "WRONGPASS") {
			return fault.New(fault.ErrRejected, "login_refused", "%s: %s: %s says that user and password are wrong, or the user is off", t.name, doing, n.address)
		}
		if err != nil {
			return t.failure(ctx, doing, n.address, err, false, password)
		}
	}
	return nil
}

// prove sends one AUTH. The client itself would try HELLO and then AUTH.
func (n *node) prove(ctx context.Context, account, password string) error {
	o := n.options
	o.PoolSize = 1
	client := redis.NewClient(&o)
	defer client.Close() //nolint:errcheck // nothing is lost with this connection
	return client.Do(ctx, "AUTH", account, password).Err()
}

// Applied reads the markers of all nodes, and returns the oldest: what all have.
func (t *target) Applied(ctx context.Context, _ providers.Change, account string) (providers.Applied, error) {
	doing := "read the marker of the user " + strconv.Quote(account)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var oldest providers.Applied
	for i, n := range t.nodes {
		u, err := n.get(ctx, account)
		if err == nil && u == nil {
			err = fault.New(fault.ErrNotFound, "user_missing", "there is no such user")
		}
		if err != nil {
			return providers.Applied{}, t.failure(ctx, doing, n.address, err, false)
		}
		if !u.marked {
			return providers.Applied{}, nil
		}
		m := u.marker
		if i == 0 || m.Generation < oldest.Generation || m.Generation == oldest.Generation && m.Epoch < oldest.Epoch {
			oldest = providers.Applied{Known: true, Rotation: m.Rotation, Generation: m.Generation, Epoch: m.Epoch}
		}
	}
	return oldest, nil
}

// Usage counts the sessions of h's user that are older than the rotation.
func (t *target) Usage(ctx context.Context, c providers.Change, h providers.Held) (providers.Evidence, error) {
	doing := "list the sessions of the user " + strconv.Quote(h.Account)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	e := providers.Evidence{Source: "CLIENT LIST"}
	shared := c.New.Account == h.Account && (c.New.Generation != h.Generation || c.New.Rotation != h.Rotation)
	for _, n := range t.nodes {
		list, err := n.client.ClientList(ctx).Result()
		if err != nil {
			return providers.Evidence{}, t.failure(ctx, doing, n.address, err, false)
		}
		now := t.now()
		for line := range strings.Lines(list) {
			s, ok := parseSession(line)
			if !ok || s.user != h.Account || shared && !now.Add(-s.age).Before(c.At) {
				continue
			}
			e.Sessions++
			if used := now.Add(-s.idle).UTC(); used.After(e.LastUsed) {
				e.LastUsed = used
			}
		}
	}
	e.Known = !shared || e.Sessions > 0
	return e, nil
}

type session struct {
	user      string
	age, idle time.Duration
}

// parseSession reads a line of CLIENT LIST.
func parseSession(line string) (s session, ok bool) {
	for word := range strings.FieldsSeq(line) {
		key, v, _ := strings.Cut(word, "=")
		switch key {
		case "user":
			s.user = v
		case "age", "idle":
			n, err := strconv.ParseInt(v, 10, 32)
			if err != nil || n < 0 {
				return session{}, false
			}
			if key == "age" {
				s.age = time.Duration(n) * time.Second
			} else {
				s.idle = time.Duration(n) * time.Second
			}
		}
	}
	return s, s.user != ""
}

// Retire does nothing: Redis has no expiry for passwords.
func (t *target) Retire(context.Context, providers.Change, providers.Held, time.Time) error {
	return nil
}

// Revoke removes the hash of h.
func (t *target) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	doing := "remove a password of the user " + strconv.Quote(h.Account)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	current := h.Generation == c.Current.Generation && h.Rotation == c.Current.Rotation
	replaced := c.Strategy == providers.Replace && (h.Account == c.New.Account || h.Account == c.Current.Account && !current)
	if !replaced {
		if err := t.remove(ctx, c, h, doing); err != nil {
			return err
		}
	}
	if !c.Emergency {
		return nil
	}
	doing = "end the sessions of the user " + strconv.Quote(h.Account)
	for _, n := range t.nodes {
		if err := n.client.Do(ctx, "CLIENT", "KILL", "USER", h.Account).Err(); err != nil && !says(err, "No such user") {
			return t.failure(ctx, doing, n.address, err, false)
		}
	}
	return nil
}

func (t *target) remove(ctx context.Context, c providers.Change, h providers.Held, doing string) error {
	password := h.Fields.Text("password")
	if password == "" || h.Account == "" {
		return fault.Invalid("fields.password", "value_missing", "%s: %s: the record has no password, and only by its hash can it be told from others: remove it with ACL SETUSER USER !HASH", t.name, doing)
	}
	for _, keep := range []providers.Held{c.New, c.Current} {
		if keep.Account == h.Account && (keep.Generation != h.Generation || keep.Rotation != h.Rotation) && keep.Fields.Text("password") == password {
			return nil
		}
	}
	if h.Account == t.user && password == t.password {
		return fault.New(fault.ErrTransition, "self_reference", "%s: %s: this target still logs in by it: give the target's login the new value first", t.name, doing)
	}
	sum := hash(password)
	changed := false
	for _, n := range t.nodes {
		u, err := n.get(ctx, h.Account)
		if err == nil && u != nil && u.marked && u.marker.Epoch > c.Epoch {
			err = u.fence(h.Account, c)
		}
		if err == nil && u != nil && slices.Contains(u.hashes, sum) {
			err = n.client.Do(ctx, "ACL", "SETUSER", h.Account, "!"+sum).Err()
			changed = changed || err == nil
			if says(err, "does not exist") {
				err = nil // somebody else has just removed it
			}
		}
		if err == nil && u != nil {
			// Also when it is gone: an earlier try may have ended before it saved.
			err = t.save(ctx, n)
		}
		if err != nil {
			return t.failure(ctx, doing, n.address, err, changed, password, sum)
		}
	}
	return nil
}

// scratchPrefix is the name of users that Scratch makes; Unscratch removes no other.
const scratchPrefix = "rotunda_drill_"

func (t *target) scratchName(c providers.Change, suffix string) (string, error) {
	account, err := t.account(c)
	if err != nil {
		return "", err
	}
	if suffix == "" || len(suffix) > 24 || strings.Trim(suffix, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return "", fault.Invalid("suffix", "suffix_malformed", "the suffix of a throw-away account is 1 to 24 of a-z, 0-9 and underscore")
	}
	return scratchPrefix + hash(account)[:8] + "_" + suffix, nil
}

// Scratch makes a user that may log in and do nothing else, on all nodes.
func (t *target) Scratch(ctx context.Context, c providers.Change, suffix string) (map[string]string, error) {
	name, err := t.scratchName(c, suffix)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for i, n := range t.nodes {
		if err := n.client.Do(ctx, "ACL", "SETUSER", name, "on", "-@all").Err(); err != nil {
			return nil, t.failure(ctx, "make a throw-away user", n.address, err, i > 0)
		}
	}
	params := maps.Clone(c.Params)
	params["user"] = name
	return params, nil
}

// Unscratch removes what Scratch made, and saves: a drill has saved it.
func (t *target) Unscratch(ctx context.Context, c providers.Change, suffix string) error {
	name, err := t.scratchName(c, suffix)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for i, n := range t.nodes {
		if err := errors.Join(n.client.Do(ctx, "ACL", "DELUSER", name).Err(), t.save(ctx, n)); err != nil {
			return t.failure(ctx, "remove a throw-away user", n.address, err, i > 0)
		}
	}
	return nil
}

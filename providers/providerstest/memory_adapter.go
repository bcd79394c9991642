package providerstest

import (
	"context"
	"crypto/rand"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// second is the suffix of the other account of strategy alternate.
const second = "-b"

const (
	usernameField = "username"
	passwordField = "password"
	accountParam  = "account"
	skew          = time.Minute
)

// System is a Memory as adapters reach it: in this process, or through its HTTP front.
type System struct {
	call func(ctx context.Context, q request) (reply, error)
	has  reply // to "describe"
}

// System is m in this process.
func (m *Memory) System() *System {
	return &System{call: m.call, has: reply{Issues: m.conf.Issues, Unmarked: m.conf.Unmarked, Unstaged: m.conf.Unstaged}}
}

// TargetKind is the kind "memory". Credentials have the parameter account, which
// Memory.Account makes; values have the fields username and password.
func (s *System) TargetKind() providers.TargetKind {
	return providers.TargetKind{
		Name:   "memory",
		Doc:    "A system in memory, for tests.",
		Params: []providers.Setting{{Name: accountParam, Doc: "whose value it is", Required: true}},
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Dual, providers.Alternate, providers.Replace}, Issues: s.has.Issues},
		Open:   func(context.Context, providers.Config) (providers.Target, error) { return s.Target(), nil },
	}
}

// StoreKind is the kind "memory".
func (s *System) StoreKind() providers.StoreKind {
	return providers.StoreKind{
		Name:   "memory",
		Doc:    "A store in memory, for tests.",
		Path:   providers.Setting{Name: "path", Doc: "any text", Required: true},
		Traits: providers.StoreTraits{Stages: !s.has.Unstaged, WritesPerRotation: 3},
		Open:   func(context.Context, providers.Config) (providers.Store, error) { return s.Store(), nil },
	}
}

// Target returns a handle to the accounts.
func (s *System) Target() providers.Target { return &memoryTarget{s} }

// Store returns a handle to the values.
func (s *System) Store() providers.Store { return &memoryStore{s} }

type memoryTarget struct{ *System }

func accountOf(c providers.Change) string {
	name := c.Params[accountParam]
	if c.Strategy == providers.Alternate && c.Current.Account == name {
		return name + second
	}
	return name
}

func (t *memoryTarget) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	names := []string{c.Params[accountParam]}
	if c.Strategy == providers.Alternate {
		names = append(names, names[0]+second)
	}
	var found []providers.Finding
	for _, name := range names {
		_, err := t.call(ctx, request{Op: "exists", Account: name})
		switch {
		case providers.OutcomeOf(err) == providers.Refused:
			found = append(found, providers.Finding{Check: "account", Detail: err.Error(), Remedy: "create the account"})
		case err != nil:
			return nil, err
		default:
			found = append(found, providers.Finding{Check: "account", OK: true, Detail: name + " exists"})
		}
	}
	return found, nil
}

func (t *memoryTarget) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	c.New = providers.Held{Generation: c.Generation, Rotation: c.Rotation, Account: accountOf(c)}
	if t.has.Issues {
		r, err := t.call(ctx, request{Op: "keys", Account: c.New.Account})
		if err != nil {
			return providers.Change{}, err
		}
		c.Before = nil
		for _, k := range r.Keys {
			c.Before = append(c.Before, k.ID)
		}
		return c, nil
	}
	c.New.Fields = valueOf(c, c.New.Account, rand.Text())
	return c, nil
}

func valueOf(c providers.Change, account, password string) providers.Fields {
	f := providers.Fields{}.Set(usernameField, account).Set(passwordField, password)
	for name, text := range c.Static {
		f = f.Set(name, text)
	}
	return f
}

func (c changeOf) request(op, account string) request {
	return request{Op: op, Account: account, Rotation: c.Rotation, Generation: c.Generation, Epoch: c.Epoch, Keep: c.Strategy == providers.Dual}
}

type changeOf providers.Change

func (t *memoryTarget) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	if t.has.Issues {
		return t.issue(ctx, c)
	}
	q := changeOf(c).request("set", c.New.Account)
	q.Text = c.New.Fields.Text(passwordField)
	if _, err := t.call(ctx, q); err != nil {
		return providers.Held{}, err
	}
	return c.New, nil
}

// issue deletes what an earlier try of this rotation left before it asks for a value.
func (t *memoryTarget) issue(ctx context.Context, c providers.Change) (providers.Held, error) {
	if err := t.fence(ctx, c); err != nil {
		return providers.Held{}, err
	}
	r, err := t.call(ctx, request{Op: "keys", Account: c.New.Account})
	if err != nil {
		return providers.Held{}, err
	}
	recorded := slices.Clone(c.Before)
	for _, h := range append([]providers.Held{c.Current}, c.Others...) {
		recorded = append(recorded, h.ID)
	}
	for _, k := range r.Keys {
		if slices.Contains(recorded, k.ID) || k.Made.Before(c.At.Add(-skew)) {
			continue
		}
		if _, err := t.call(ctx, request{Op: "drop", Account: c.New.Account, ID: k.ID}); err != nil {
			return providers.Held{}, err
		}
	}
	made, err := t.call(ctx, changeOf(c).request("issue", c.New.Account))
	if err != nil {
		return providers.Held{}, err
	}
	h := c.New
	h.Generation, h.Rotation, h.ID = c.Generation, c.Rotation, made.ID
	h.Fields = valueOf(c, h.Account, made.Text)
	return h, nil
}

func (t *memoryTarget) fence(ctx context.Context, c providers.Change) error {
	r, err := t.call(ctx, request{Op: "marker", Account: c.New.Account})
	if err != nil {
		return err
	}
	if k := r.Marker; k.Known && (c.Generation < k.Generation || c.Epoch < k.Epoch) {
		return fault.New(fault.ErrStale, "newer_at_work", "issue a value of %q: generation %d was issued under epoch %d", c.New.Account, k.Generation, k.Epoch)
	}
	return nil
}

func (t *memoryTarget) Verify(ctx context.Context, _ providers.Change, h providers.Held) error {
	_, err := t.call(ctx, request{Op: "login", Account: h.Account, Text: h.Fields.Text(passwordField)})
	return err
}

func (t *memoryTarget) Applied(ctx context.Context, _ providers.Change, account string) (providers.Applied, error) {
	r, err := t.call(ctx, request{Op: "marker", Account: account})
	return r.Marker, err
}

func (t *memoryTarget) of(op string, h providers.Held) request {
	return request{Op: op, Account: h.Account, ID: h.ID, Text: h.Fields.Text(passwordField), Generation: h.Generation}
}

func (t *memoryTarget) Usage(ctx context.Context, _ providers.Change, h providers.Held) (providers.Evidence, error) {
	r, err := t.call(ctx, t.of("usage", h))
	if err != nil {
		return providers.Evidence{}, err
	}
	return providers.Evidence{Known: true, Sessions: r.Sessions, LastUsed: r.Used, Source: "memory"}, nil
}

func (t *memoryTarget) Retire(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
	q := t.of("expire", h)
	q.End, q.Epoch = end, c.Epoch
	_, err := t.call(ctx, q)
	return err
}

func (t *memoryTarget) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	q := t.of("drop", h)
	q.Emergency = c.Emergency
	_, err := t.call(ctx, q)
	return err
}

func (t *memoryTarget) Scratch(ctx context.Context, c providers.Change, suffix string) (map[string]string, error) {
	name := c.Params[accountParam] + suffix
	_, err := t.call(ctx, request{Op: "scratch", Account: name})
	return map[string]string{accountParam: name}, err
}

func (t *memoryTarget) Unscratch(ctx context.Context, c providers.Change, suffix string) error {
	_, err := t.call(ctx, request{Op: "unscratch", Account: c.Params[accountParam] + suffix})
	return err
}

func (t *memoryTarget) Close() error { return nil }

type memoryStore struct{ *System }

func (s *memoryStore) Check(ctx context.Context, path string) ([]providers.Finding, error) {
	if _, err := s.call(ctx, request{Op: "read", Path: path}); err != nil {
		return nil, err
	}
	return []providers.Finding{{Check: "reachable", OK: true, Detail: "the path can be read"}}, nil
}

func (s *memoryStore) Read(ctx context.Context, path string) (providers.Served, error) {
	r, err := s.call(ctx, request{Op: "read", Path: path})
	if err != nil || r.Version == "" {
		return providers.Served{}, err
	}
	return providers.Served{Version: r.Version, Rotation: r.Rotation, Fields: fieldsOf(r.Fields)}, nil
}

func (s *memoryStore) Stage(ctx context.Context, path string, v providers.Version) error {
	_, err := s.call(ctx, request{Op: "stage", Path: path, Rotation: v.Rotation, Fields: plainOf(v.Fields)})
	return err
}

func (s *memoryStore) Publish(ctx context.Context, path string, v providers.Version, prior string) (string, error) {
	r, err := s.call(ctx, request{Op: "publish", Path: path, Rotation: v.Rotation, Fields: plainOf(v.Fields), Prior: prior})
	return r.Version, err
}

func (s *memoryStore) Discard(ctx context.Context, path string, v providers.Version) error {
	_, err := s.call(ctx, request{Op: "discard", Path: path, Rotation: v.Rotation})
	return err
}

func (s *memoryStore) Close() error { return nil }

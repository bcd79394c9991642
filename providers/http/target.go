package httptarget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

// accountFor is whose value the next one is.
func accountFor(c providers.Change, params map[string]string) (string, error) {
	a, b := params["account"], params["account_b"]
	if c.Strategy != providers.Alternate {
		return a, nil
	}
	if b == "" || a == b {
		return "", fault.Invalid("params.account_b", "setting_missing", "the strategy alternate needs a second account: set account_b to one that is not %q", a)
	}
	if inUse(c.Current, params) == a || c.Current.Account == "" && len(c.Current.Fields) == 0 && slices.ContainsFunc(c.Others, func(h providers.Held) bool { return h.Account == a }) {
		return b, nil
	}
	return a, nil
}

// inUse is the account of what consumers read. Of a value from before Rotunda only the
// fields are known.
func inUse(h providers.Held, params map[string]string) string {
	if h.Account == "" {
		return h.Fields.Text(params["account_field"])
	}
	return h.Account
}

// value is a fresh value for account.
func value(c providers.Change, params map[string]string, account string) (providers.Fields, error) {
	password, err := providers.NewPassword(params)
	if err != nil {
		return nil, err
	}
	field, accountField := params["field"], params["account_field"]
	if field == accountField {
		return nil, fault.Invalid("params.field", "field_twice", "the fields of the value and of the account are both called %s: give one another name", field)
	}
	f := providers.Fields{accountField: secret.FromString(account), field: password}
	for name, text := range c.Static {
		if _, ok := f[name]; ok {
			return nil, fault.Invalid("params.field", "field_static", "the static field %s would replace one of the value: give one another name", name)
		}
		f[name] = secret.FromString(text)
	}
	return f, nil
}

func (t *target) Prepare(_ context.Context, c providers.Change) (providers.Change, error) {
	params, err := providers.Complete("params", Kind().Params, c.Params)
	if err != nil {
		return providers.Change{}, err
	}
	account, err := accountFor(c, params)
	if err != nil {
		return providers.Change{}, err
	}
	f, err := value(c, params, account)
	if err != nil {
		return providers.Change{}, err
	}
	c.New = providers.Held{Generation: c.Generation, Rotation: c.Rotation, Account: account, Fields: f}
	return c, nil
}

func (t *target) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	if len(c.New.Fields) == 0 || c.New.Account == "" {
		return providers.Held{}, fault.Invalid("new", "not_prepared", "%s: set a value: there is none, because Prepare was not called", t.name)
	}
	if _, err := t.call(ctx, "set", c.Rotation+"_set", messageOf("set", c, c.New)); err != nil {
		return providers.Held{}, err
	}
	return c.New, nil
}

func (t *target) Verify(ctx context.Context, c providers.Change, h providers.Held) error {
	_, err := t.call(ctx, "test", question(c.Rotation, "test"), messageOf("test", c, h))
	return err
}

// Applied says that there is no marker: the partner compares by itself (409).
func (t *target) Applied(context.Context, providers.Change, string) (providers.Applied, error) {
	return providers.Applied{}, nil
}

func (t *target) Usage(ctx context.Context, c providers.Change, h providers.Held) (providers.Evidence, error) {
	if t.endpoints["usage"] == "" {
		return providers.Evidence{}, nil
	}
	body, err := t.call(ctx, "usage", question(c.Rotation, "usage"), messageOf("usage", c, h))
	if gone(err) {
		return providers.Evidence{Known: true, Source: t.name}, nil
	}
	if err != nil {
		return providers.Evidence{}, err
	}
	return parseUsage(t.name, body)
}

func parseUsage(name string, body []byte) (providers.Evidence, error) {
	var u struct {
		Sessions *int       `json:"sessions"`
		LastUsed *time.Time `json:"last_used"`
	}
	if err := json.Unmarshal(body, &u); err != nil || (u.Sessions != nil && *u.Sessions < 0) {
		return providers.Evidence{}, fault.New(fault.ErrUnavailable, "usage_malformed", `%s: the answer of usage is not {"sessions":0,"last_used":"2026-11-22T12:00:00Z"}`, name)
	}
	e := providers.Evidence{Known: u.Sessions != nil || u.LastUsed != nil}
	if !e.Known {
		return providers.Evidence{}, nil
	}
	e.Source = name
	if u.Sessions != nil {
		e.Sessions = *u.Sessions
	}
	if u.LastUsed != nil {
		e.LastUsed = u.LastUsed.UTC()
	}
	return e, nil
}

func (t *target) Retire(ctx context.Context, c providers.Change, h providers.Held, end time.Time) error {
	if t.endpoints["retire"] == "" || stays(c, h) || kept(c, h) {
		return nil
	}
	m := messageOf("retire", c, h)
	id := fmt.Sprintf("%s_retire_%d_never", c.Rotation, h.Generation)
	if !end.IsZero() {
		m.End = end.UTC().Format(time.RFC3339)
		id = fmt.Sprintf("%s_retire_%d_%d", c.Rotation, h.Generation, end.Unix())
	}
	_, err := t.call(ctx, "retire", id, m)
	if gone(err) {
		return nil
	}
	return err
}

// stays says that h has no end of its own: with replace the next set of the account is
// it. The value of an account that the credential no longer has is not replaced.
func stays(c providers.Change, h providers.Held) bool {
	return c.Strategy == providers.Replace && (h.Account == c.New.Account || h.Account == c.Current.Account && !same(h, c.Current))
}

// kept says that h is, under another generation, a value that stays accepted: what was
// rolled back to is a copy of the old value.
func kept(c providers.Change, h providers.Held) bool {
	return slices.ContainsFunc([]providers.Held{c.New, c.Current}, func(k providers.Held) bool {
		return k.Account == h.Account && !same(k, h) && len(h.Fields) > 0 && k.Fields.Equal(h.Fields)
	})
}

// same says that two records are of one value.
func same(a, b providers.Held) bool { return a.Generation == b.Generation && a.Rotation == b.Rotation }

func (t *target) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	if stays(c, h) && !c.Emergency || kept(c, h) {
		return nil
	}
	if stays(c, h) && h.Generation == c.New.Generation {
		return nil
	}
	m := messageOf("revoke", c, h)
	m.Emergency = c.Emergency
	id := fmt.Sprintf("%s_revoke_%d", c.Rotation, h.Generation)
	if c.Emergency {
		id += "_now"
	}
	_, err := t.call(ctx, "revoke", id, m)
	if gone(err) {
		return nil
	}
	return err
}

// Check asks the partner to test a value that was made up for it: to refuse that, he
// has to understand the request, take the signature and know the account.
func (t *target) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	params, err := providers.Complete("params", Kind().Params, c.Params)
	if err == nil {
		_, err = accountFor(c, params)
	}
	if err == nil {
		_, err = value(c, params, params["account"])
	}
	if err != nil {
		return []providers.Finding{{Check: "parameters", Detail: err.Error(), Remedy: "change the credential's parameters"}}, nil //nolint:nilerr // what is wrong is the finding
	}
	found := []providers.Finding{{Check: "parameters", OK: true}}
	accounts := []string{params["account"]}
	if c.Strategy == providers.Alternate {
		accounts = append(accounts, params["account_b"])
	}
	for _, account := range accounts {
		f, err := t.checkAccount(ctx, c, params, account)
		if err != nil {
			return nil, err
		}
		found = append(found, f)
	}
	return found, nil
}

func (t *target) checkAccount(ctx context.Context, c providers.Change, params map[string]string, account string) (providers.Finding, error) {
	f, err := value(c, params, account)
	if err != nil {
		return providers.Finding{}, err
	}
	name := "account"
	err = t.Verify(ctx, c, providers.Held{Account: account, Fields: f})
	switch {
	case err == nil:
		return providers.Finding{
			Check: name, Detail: fmt.Sprintf("the partner says that a value for %q which was just made up is accepted", account),
			Remedy: "ask the partner to test values, and to answer 422 for one that is not accepted",
		}, nil
	case errors.Is(err, fault.ErrRejected):
		return providers.Finding{Check: name, OK: true, Detail: fmt.Sprintf("the partner takes our signature, knows %q, and refuses a made-up value", account)}, nil
	case providers.OutcomeOf(err) == providers.Unknown, providers.OutcomeOf(err) == providers.Throttled:
		return providers.Finding{}, err
	}
	return providers.Finding{Check: name, Detail: err.Error(), Remedy: "compare the address, the signing secret and the account with the partner"}, nil
}

package vault

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

// AppRoleKind is the target kind "vault-approle".
func AppRoleKind() providers.TargetKind {
	return providers.TargetKind{
		Name: "vault-approle",
		Doc:  "Secret ids of an AppRole of HashiCorp Vault.",
		Settings: append(Settings(),
			providers.Setting{Name: "mount", Doc: "path of the AppRole auth method", Default: "approle", Pattern: mountPattern}),
		Login: Logins(),
		Params: []providers.Setting{
			{Name: "role", Doc: "name of the role", Required: true, Pattern: namePattern},
			{Name: "secret_id_ttl", Doc: "dead man's switch: each secret id ends by itself after this time, as 2160h; longer than the schedule's interval and the grace together", Pattern: `[1-9][0-9]{0,6}[smh]`},
		},
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Dual}, Parallel: 8},
		Open: func(_ context.Context, c providers.Config) (providers.Target, error) {
			client, err := NewClient(c)
			if err != nil {
				return nil, err
			}
			return &appRole{client, c.Settings["mount"], c.Login["role_id"]}, nil
		},
	}
}

type appRole struct {
	*Client
	mount string
	self  secret.Value // role id of Rotunda's own login, if it has one
}

const (
	fieldRoleID   = "role_id"
	fieldSecretID = "secret_id"
)

func (a *appRole) path(role, rest string) string { return "auth/" + a.mount + "/role/" + role + rest }

func (a *appRole) roleID(ctx context.Context, role string) (string, error) {
	var out struct {
		RoleID string `json:"role_id"`
	}
	if err := a.Read(ctx, a.path(role, "/role-id"), &out); err != nil {
		return "", fmt.Errorf("AppRole %s: %w", role, err)
	}
	return out.RoleID, nil
}

// Prepare makes a secret id, of 256 bits in hexadecimal digits.
func (a *appRole) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	role := c.Params["role"]
	id, err := a.roleID(ctx, role)
	if err != nil {
		return c, err
	}
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24 and later)
	f := static(c)
	f[fieldRoleID] = secret.FromString(id)
	f[fieldSecretID] = secret.FromString(hex.EncodeToString(b[:]))
	c.New.Account, c.New.ID, c.New.Fields = role, "", f
	return c, nil
}

// static are the fields that never change, in a map of the caller's own.
func static(c providers.Change) providers.Fields {
	f := providers.Fields{}
	for name, text := range c.Static {
		f[name] = secret.FromString(text)
	}
	return f
}

// known is what Vault tells of a secret id, asked by its value.
type known struct {
	Accessor string            `json:"secret_id_accessor"`
	Metadata map[string]string `json:"metadata"`
}

// lookup finds a secret id by its value. There is none without an accessor.
func (a *appRole) lookup(ctx context.Context, role string, id secret.Value) (known, error) {
	var k known
	if id.IsZero() {
		return k, nil
	}
	err := a.Write(ctx, a.path(role, "/secret-id/lookup"), map[string]any{"secret_id": id.RevealString()}, &k)
	if errors.Is(err, fault.ErrNotFound) {
		return known{}, nil
	}
	return k, err
}

// Apply makes the role accept c.New beside what it accepts already.
func (a *appRole) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	h, role := c.New, c.New.Account
	id := h.Fields[fieldSecretID]
	if id.IsZero() {
		return h, fault.New(fault.ErrInvalid, "secret_id_missing", "AppRole %s: there is no secret id to apply", role)
	}
	meta, err := encode(map[string]string{
		markRotation: c.Rotation, markGeneration: strconv.FormatInt(c.Generation, 10), markEpoch: strconv.FormatInt(c.Epoch, 10),
	})
	if err != nil {
		return h, err
	}
	in := map[string]any{"secret_id": id.RevealString(), "metadata": meta}
	if ttl := c.Params["secret_id_ttl"]; ttl != "" {
		in["ttl"] = ttl
	}
	var out known
	err = a.Write(ctx, a.path(role, "/custom-secret-id"), in, &out)
	if said(err, "already registered") || (err == nil && out.Accessor == "") {
		// It is there from an earlier try: Vault takes each value once, and answers 500.
		k, lookErr := a.lookup(ctx, role, id)
		switch {
		case lookErr != nil:
			return h, fmt.Errorf("apply a secret id of AppRole %s: %w", role, lookErr)
		case k.Accessor != "":
			out, err = k, nil
		case err == nil:
			err = fault.New(fault.ErrUnavailable, "vault_answer", "Vault gave no accessor")
		}
	}
	if err != nil {
		return h, fmt.Errorf("apply a secret id of AppRole %s: %w", role, err)
	}
	h.ID = out.Accessor
	return h, nil
}

// Verify logs in as a consumer does, and revokes the token that it gets. Vault locks a
// role out after five failed logins, for its consumers too: what is not there is found
// without one.
func (a *appRole) Verify(ctx context.Context, _ providers.Change, h providers.Held) error {
	k, err := a.lookup(ctx, h.Account, h.Fields[fieldSecretID])
	if err != nil {
		return fmt.Errorf("look up the secret id of generation %d of AppRole %s: %w", h.Generation, h.Account, err)
	}
	if k.Accessor == "" {
		return notAccepted(h)
	}
	in := map[string]any{"role_id": h.Fields.Text(fieldRoleID), "secret_id": h.Fields.Text(fieldSecretID)}
	got := &auth{}
	err = a.once(ctx, a.bare, put, "auth/"+a.mount+"/login", in, answer{Auth: got})
	if errors.Is(err, fault.ErrInvalid) && (said(err, "invalid role or secret id") || said(err, "invalid secret id") || said(err, "invalid role id")) {
		return notAccepted(h)
	}
	if err != nil {
		return fmt.Errorf("log in with the secret id of generation %d of AppRole %s: %w", h.Generation, h.Account, err)
	}
	if got.TokenType == "batch" { // can't be revoked, and lives for a short time
		return nil
	}
	v, err := a.api(secret.FromString(got.ClientToken))
	if err != nil {
		return err
	}
	// The proof is made; a token that is left ends by itself.
	_ = a.once(ctx, v, put, "auth/token/revoke-self", map[string]any{}, answer{})
	return nil
}

func notAccepted(h providers.Held) error {
	return fault.New(fault.ErrRejected, "secret_id_refused", "the secret id of generation %d of AppRole %s: Vault does not accept it", h.Generation, h.Account)
}

// Applied asks for the metadata of the value that was to be applied.
func (a *appRole) Applied(ctx context.Context, c providers.Change, account string) (providers.Applied, error) {
	for _, h := range []providers.Held{c.New, c.Current} {
		if h.Account != account {
			continue
		}
		k, err := a.lookup(ctx, account, h.Fields[fieldSecretID])
		if err != nil {
			return providers.Applied{}, fmt.Errorf("AppRole %s: %w", account, err)
		}
		if k.Metadata[markRotation] == "" {
			continue
		}
		out := providers.Applied{Known: true, Rotation: k.Metadata[markRotation]}
		var errs [2]error
		out.Generation, errs[0] = strconv.ParseInt(k.Metadata[markGeneration], 10, 64)
		out.Epoch, errs[1] = strconv.ParseInt(k.Metadata[markEpoch], 10, 64)
		if errors.Join(errs[:]...) != nil {
			continue // not as we write it
		}
		return out, nil
	}
	return providers.Applied{}, nil
}

// Usage is unknown: Vault notes no use of a secret id whose uses are not limited.
func (a *appRole) Usage(context.Context, providers.Change, providers.Held) (providers.Evidence, error) {
	return providers.Evidence{}, nil
}

// Retire can't do anything: the time to live of a secret id is set when it is made.
func (a *appRole) Retire(context.Context, providers.Change, providers.Held, time.Time) error {
	return nil
}

// Revoke destroys a secret id by its accessor, and in an emergency the tokens that
// logins with it got.
func (a *appRole) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	accessor := h.ID
	if accessor == "" { // from before Rotunda, or never applied
		k, err := a.lookup(ctx, h.Account, h.Fields[fieldSecretID])
		if err != nil {
			return fmt.Errorf("revoke a secret id of AppRole %s: %w", h.Account, err)
		}
		accessor = k.Accessor
	}
	if accessor != "" {
		err := a.Write(ctx, a.path(h.Account, "/secret-id-accessor/destroy"), map[string]any{"secret_id_accessor": accessor}, nil)
		// An accessor that is gone is an internal error to some versions.
		if err != nil && !errors.Is(err, fault.ErrNotFound) && !said(err, "failed to find accessor") {
			return fmt.Errorf("revoke secret id %s of AppRole %s: %w", accessor, h.Account, err)
		}
	}
	if !c.Emergency || h.Rotation == "" {
		return nil
	}
	if err := a.endSessions(ctx, h); err != nil {
		return fmt.Errorf("secret id %s of AppRole %s is destroyed, but tokens from it may live: %w", accessor, h.Account, err)
	}
	return nil
}

// maxTokens bounds the search for tokens; Vault has no index of them by secret id.
const maxTokens = 20000

// endSessions revokes the tokens whose metadata name the rotation: logins copy the
// metadata of a secret id to their token.
func (a *appRole) endSessions(ctx context.Context, h providers.Held) error {
	var all struct {
		Keys []string `json:"keys"`
	}
	if err := a.call(ctx, list, "auth/token/accessors", nil, &all); err != nil {
		if errors.Is(err, fault.ErrNotFound) {
			return nil
		}
		return err
	}
	if len(all.Keys) > maxTokens {
		return fault.New(fault.ErrTransition, "too_many_tokens", "Vault has %d tokens, too many to look at: revoke those of the role with `vault lease revoke -prefix auth/%s/login`", len(all.Keys), a.mount)
	}
	for _, accessor := range all.Keys {
		var t struct {
			Path string            `json:"path"`
			Meta map[string]string `json:"meta"`
		}
		err := a.Write(ctx, "auth/token/lookup-accessor", map[string]any{"accessor": accessor}, &t)
		if err != nil && !gone(err) {
			return err
		}
		if t.Path != "auth/"+a.mount+"/login" || t.Meta[markRotation] != h.Rotation {
			continue
		}
		err = a.Write(ctx, "auth/token/revoke-accessor", map[string]any{"accessor": accessor}, nil)
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// gone: a token that has ended since it was listed.
func gone(err error) bool {
	return errors.Is(err, fault.ErrNotFound) || (errors.Is(err, fault.ErrDenied) || errors.Is(err, fault.ErrInvalid)) && said(err, "invalid accessor")
}

// roleConfig is what the checks look at.
type roleConfig struct {
	BindSecretID    bool     `json:"bind_secret_id"`
	SecretIDNumUses int64    `json:"secret_id_num_uses"`
	SecretIDTTL     int64    `json:"secret_id_ttl"`
	BoundCIDRs      []string `json:"secret_id_bound_cidrs"`
	LocalSecretIDs  bool     `json:"local_secret_ids"`
}

// Check looks at the policy and the role.
func (a *appRole) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	found, err := a.Health(ctx)
	if err != nil || !fine(found) {
		return found, err
	}
	role := c.Params["role"]
	more, err := a.permissions(ctx, []need{
		{path: a.path(role, ""), may: []string{"read"}, why: "to look at the role"},
		{path: a.path(role, "/role-id"), may: []string{"read"}, why: "to give consumers the role id"},
		{path: a.path(role, "/custom-secret-id"), may: []string{"update"}, why: "to set a secret id that is chosen, and so can be set again"},
		{path: a.path(role, "/secret-id/lookup"), may: []string{"update"}, why: "to find a secret id whose accessor got lost"},
		{path: a.path(role, "/secret-id-accessor/destroy"), may: []string{"update"}, why: "to revoke by the recorded accessor"},
		{path: "auth/token/accessors", may: []string{"list", "sudo"}, why: "to end tokens in an emergency", extra: true},
		{path: "auth/token/lookup-accessor", may: []string{"update"}, why: "to end tokens in an emergency", extra: true},
		{path: "auth/token/revoke-accessor", may: []string{"update"}, why: "to end tokens in an emergency", extra: true},
	})
	found = append(found, more...)
	if err != nil || !fine(found) {
		return found, err
	}
	var r roleConfig
	if err := a.Read(ctx, a.path(role, ""), &r); err != nil {
		more, err := finding("role", "make the role, or correct its name and the mount", err)
		return append(found, more...), err
	}
	if !r.BindSecretID {
		found = append(found, bad("role", "set bind_secret_id=true", "logins of the role need no secret id: a new one would change nothing"))
	}
	if r.SecretIDNumUses != 0 {
		found = append(found, bad("uses", "set secret_id_num_uses=0", "a secret id of the role works %d times, and each proof uses one up", r.SecretIDNumUses))
	}
	if len(r.BoundCIDRs) > 0 {
		found = append(found, warn("addresses", "let secret_id_bound_cidrs hold Rotunda's address", "secret ids of the role are bound to addresses: the proof by a login works from those only"))
	}
	found = append(found, ttlFinding(r, c.Params["secret_id_ttl"]))
	id, err := a.roleID(ctx, role)
	if err != nil {
		return found, err
	}
	if a.login.method == "approle" && a.self.Equal(secret.FromString(id)) {
		found = append(found, warn("self_reference", "publish the new secret id also into this target's own login before the grace ends", "Rotunda logs in by the role whose secret ids it rotates: at the end of the grace its own login ends"))
	}
	return found, nil
}

// ttlFinding says whether secret ids end by themselves, and late enough.
func ttlFinding(r roleConfig, param string) providers.Finding {
	limit := time.Duration(r.SecretIDTTL) * time.Second
	asked, _ := time.ParseDuration(param) // Complete has checked it
	switch {
	case limit > 0 && asked > limit:
		return bad("secret_id_ttl", "raise the role's secret_id_ttl, or lower the param", "secret_id_ttl %s is more than the role allows: %s", asked, limit)
	case asked > 0:
		return good("secret_id_ttl", "secret ids end by themselves after %s", asked)
	case limit > 0:
		return good("secret_id_ttl", "secret ids end by themselves after the role's %s", limit)
	}
	return warn("secret_id_ttl", "set the param secret_id_ttl to more than the interval and the grace together", "secret ids never end by themselves: if Rotunda is gone, the old one stays")
}

// Scratch makes a role without policies.
func (a *appRole) Scratch(ctx context.Context, c providers.Change, suffix string) (map[string]string, error) {
	params := maps.Clone(c.Params)
	params["role"] += suffix
	in := map[string]any{"bind_secret_id": true, "secret_id_num_uses": 0, "token_ttl": "60s", "token_max_ttl": "60s", "token_policies": []string{}, "token_no_default_policy": true}
	if err := a.Write(ctx, a.path(params["role"], ""), in, nil); err != nil {
		return nil, fmt.Errorf("make the AppRole %s: %w", params["role"], err)
	}
	return params, nil
}

// Unscratch deletes the role that Scratch made.
func (a *appRole) Unscratch(ctx context.Context, c providers.Change, suffix string) error {
	if suffix == "" {
		return fault.New(fault.ErrInvalid, "suffix_missing", "delete a scratch AppRole: no suffix")
	}
	err := a.call(ctx, remove, a.path(c.Params["role"]+suffix, ""), nil, nil)
	if err != nil && !errors.Is(err, fault.ErrNotFound) {
		return fmt.Errorf("delete the AppRole %s: %w", c.Params["role"]+suffix, err)
	}
	return nil
}

var _ providers.Scratcher = (*appRole)(nil)

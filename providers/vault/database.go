package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

func databaseSettings() []providers.Setting {
	return append(Settings(), providers.Setting{Name: "mount", Doc: "path of the database secrets engine", Default: "database", Pattern: mountPattern})
}

// DatabaseKind is the target kind "vault-database": a static role of the database
// engine, whose password Vault makes and sets.
func DatabaseKind() providers.TargetKind {
	return providers.TargetKind{
		Name: "vault-database",
		Doc:  "Static roles of HashiCorp Vault's database engine.",
		// verify_url is no param: whoever may make a credential could have passwords sent to himself.
		Settings: append(databaseSettings(),
			providers.Setting{Name: "verify_url", Doc: "postgres://HOST/DATABASE?sslmode=verify-full, without user: the proof is a login there, for all roles of this target; without it, Vault's word"}),
		Login: Logins(),
		Params: []providers.Setting{
			{Name: "role", Doc: "name of the static role", Required: true, Pattern: namePattern},
		},
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Replace}, Issues: true},
		Open: func(_ context.Context, c providers.Config) (providers.Target, error) {
			client, err := NewClient(c)
			if err != nil {
				return nil, err
			}
			if address := c.Settings["verify_url"]; address != "" {
				if _, err := verifyConfig(c, address); err != nil {
					return nil, err
				}
			}
			return &staticRole{client, c}, nil
		},
	}
}

type staticRole struct {
	*Client
	config providers.Config
}

// mount is where the engine is.
func (d *staticRole) mount() string { return d.config.Settings["mount"] }

// staticCreds is what consumers of a static role read.
type staticCreds struct {
	Username   string `json:"username"`
	Password   string `json:"password"`
	PrivateKey string `json:"rsa_private_key"`
	Rotated    string `json:"last_vault_rotation"` // RFC 3339, nanoseconds
	TTL        int64  `json:"ttl"`                 // seconds until Vault rotates by itself
}

func (d *staticRole) creds(ctx context.Context, role string) (staticCreds, time.Time, error) {
	var s staticCreds
	if err := d.Read(ctx, d.mount()+"/static-creds/"+role, &s); err != nil {
		return s, time.Time{}, fmt.Errorf("static role %s: %w", role, err)
	}
	at, err := time.Parse(time.RFC3339Nano, s.Rotated)
	if err != nil {
		return s, at, fault.New(fault.ErrUnavailable, "vault_answer", "static role %s: Vault does not say when it was last rotated", role)
	}
	return s, at, nil
}

// held is what consumers of a credential get.
func (s staticCreds) held(c providers.Change) providers.Held {
	h := c.New
	h.ID = s.Rotated
	h.Fields = static(c)
	for name, text := range map[string]string{"username": s.Username, "password": s.Password, "rsa_private_key": s.PrivateKey} {
		if text != "" {
			h.Fields[name] = secret.FromString(text)
		}
	}
	return h
}

// Prepare notes when Vault last rotated the role.
func (d *staticRole) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	s, _, err := d.creds(ctx, c.Params["role"])
	if err != nil {
		return c, err
	}
	c.New.Account, c.New.ID, c.New.Fields = c.Params["role"], "", nil
	c.Before = []string{s.Rotated}
	return c, nil
}

// Apply has Vault rotate the role, unless it did since the plan: an earlier try, or
// Vault's own schedule. Either way the password is a new one.
func (d *staticRole) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	h, role := c.New, c.New.Account
	if len(c.Before) != 1 {
		return h, fault.New(fault.ErrInvalid, "before_missing", "rotate static role %s: the plan has no time of its last rotation", role)
	}
	before, err := time.Parse(time.RFC3339Nano, c.Before[0])
	if err != nil {
		return h, fault.New(fault.ErrInvalid, "before_missing", "rotate static role %s: the plan has no time of its last rotation", role)
	}
	s, at, err := d.creds(ctx, role)
	if err != nil {
		return h, err
	}
	if at.Equal(before) {
		wrote := d.Write(ctx, d.mount()+"/rotate-role/"+role, map[string]any{}, nil)
		if s, at, err = d.creds(ctx, role); err != nil {
			return h, errors.Join(wrote, err)
		}
		// Two rotations of a role at once break in Vault's queue ("duplicate item") after
		// the password is set: its stamp says what happened, not the error.
		if wrote != nil && !at.After(before) {
			return h, fmt.Errorf("rotate static role %s: %w", role, wrote)
		}
	}
	switch {
	case at.Before(before):
		return h, fault.New(fault.ErrStale, "role_restored", "rotate static role %s: it was last rotated at %s, before the %s of the plan: an older state was restored", role, s.Rotated, c.Before[0])
	case !at.After(before):
		return h, fault.New(fault.ErrUnavailable, "role_not_rotated", "rotate static role %s: Vault says that it did, and shows the time of the rotation before", role)
	}
	return s.held(c), nil
}

// Verify asks Vault whether h is the password that it set, which it is only told after
// the database took it, and with verify_url logs in with it.
func (d *staticRole) Verify(ctx context.Context, c providers.Change, h providers.Held) error {
	s, _, err := d.creds(ctx, h.Account)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"username": s.Username, "password": s.Password, "rsa_private_key": s.PrivateKey} {
		if !h.Fields[name].Equal(secret.FromString(text)) {
			return fault.New(fault.ErrRejected, "password_superseded", "static role %s: generation %d is not the password that Vault last set, at %s", h.Account, h.Generation, s.Rotated)
		}
	}
	address := d.config.Settings["verify_url"]
	if address == "" {
		return nil
	}
	config, err := verifyConfig(d.config, address)
	if err != nil {
		return err
	}
	config.User, config.Password = s.Username, h.Fields.Text("password")
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		if e, ok := errors.AsType[*pgconn.PgError](err); ok && (e.Code == "28P01" || e.Code == "28000") {
			return fault.New(fault.ErrRejected, "login_refused", "log in to %s as static role %s with generation %d: refused (%s)", config.Host, h.Account, h.Generation, e.Code)
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fault.New(fault.ErrUnavailable, "verify_unreachable", "log in to %s as static role %s: %w", config.Host, h.Account, err)
	}
	_ = conn.Close(ctx)
	return nil
}

// verifyConfig refuses an address where the password could be read on its way.
func verifyConfig(c providers.Config, address string) (*pgx.ConnConfig, error) {
	malformed := fault.Invalid("settings.verify_url", "verify_url_malformed", "verify_url is not postgres://HOST[:PORT]/DATABASE, without user and password")
	config, err := pgx.ParseConfig(address)
	if err != nil || config.Password != "" {
		return nil, malformed
	}
	hosts := append([]*pgconn.FallbackConfig{{Host: config.Host, TLSConfig: config.TLSConfig}}, config.Fallbacks...)
	for _, h := range hosts {
		if (h.TLSConfig == nil || h.TLSConfig.InsecureSkipVerify && h.TLSConfig.VerifyPeerCertificate == nil) && !providers.Loopback(h.Host) && c.Settings["plaintext"] != "allow" {
			return nil, fault.Invalid("settings.verify_url", "plaintext", "verify_url: the password would be sent to %.200q over a connection that is not verified: use sslmode=verify-full", h.Host)
		}
	}
	return config, nil
}

// Applied is unknown: Vault notes when it rotated a role, not for whom.
func (d *staticRole) Applied(context.Context, providers.Change, string) (providers.Applied, error) {
	return providers.Applied{}, nil
}

// Usage is unknown to Vault; the old password is not accepted anyway.
func (d *staticRole) Usage(context.Context, providers.Change, providers.Held) (providers.Evidence, error) {
	return providers.Evidence{}, nil
}

// Retire has nothing to do: the old password ended with Apply.
func (d *staticRole) Retire(context.Context, providers.Change, providers.Held, time.Time) error {
	return nil
}

// Revoke has nothing to do, like Retire.
func (d *staticRole) Revoke(context.Context, providers.Change, providers.Held) error { return nil }

// staticConfig is what the checks look at.
type staticConfig struct {
	Database string `json:"db_name"`
	Username string `json:"username"`
	Period   int64  `json:"rotation_period"` // seconds
	Schedule string `json:"rotation_schedule"`
}

// Check looks at the policy, the role, and who rotates it besides.
func (d *staticRole) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	found, err := d.Health(ctx)
	if err != nil || !fine(found) {
		return found, err
	}
	role, at := c.Params["role"], d.mount()
	more, err := d.permissions(ctx, []need{
		{path: at + "/static-roles/" + role, may: []string{"read"}, why: "to look at the role"},
		{path: at + "/static-creds/" + role, may: []string{"read"}, why: "to publish the password that Vault made"},
		{path: at + "/rotate-role/" + role, may: []string{"update"}, why: "to rotate"},
	})
	found = append(found, more...)
	if err != nil || !fine(found) {
		return found, err
	}
	var r staticConfig
	err = d.Read(ctx, at+"/static-roles/"+role, &r)
	if err == nil {
		_, _, err = d.creds(ctx, role)
	}
	if err != nil {
		more, err := finding("role", "make the static role, or correct its name and the mount", err)
		return append(found, more...), err
	}
	switch {
	case r.Schedule != "":
		found = append(found, warn("schedule", "give the role its largest rotation_period and let Rotunda rotate it", "Vault also rotates the role by itself (%s): consumers that read the store have a dead password until Rotunda sees it", r.Schedule))
	case r.Period > 0:
		found = append(found, warn("schedule", "set rotation_period to more than Rotunda's interval: each rotation starts it anew", "Vault also rotates the role by itself, %s after the last rotation", time.Duration(r.Period)*time.Second))
	}
	if d.config.Settings["verify_url"] == "" {
		found = append(found, warn("proof", "set verify_url of the target", "without verify_url the proof of a new password is Vault's word that the database took it"))
	}
	var connection struct {
		Details struct {
			Username string `json:"username"`
		} `json:"connection_details"`
	}
	err = d.Read(ctx, at+"/config/"+r.Database, &connection)
	switch {
	case err == nil && connection.Details.Username == r.Username:
		found = append(found, bad("self_reference", "give the connection a user of its own", "Vault logs in to %s as %s, the user of this role: rotating it breaks Vault's own login", r.Database, r.Username))
	case err == nil:
		found = append(found, good("self_reference", "Vault logs in as another user than the role's"))
	case providers.OutcomeOf(err) == providers.Refused:
		found = append(found, warn("self_reference", policy([]need{{path: at + "/config/" + r.Database, may: []string{"read"}}}), "whether Vault's own login is the role's can't be told: reading the connection is not allowed"))
	default:
		return found, err
	}
	return found, nil
}

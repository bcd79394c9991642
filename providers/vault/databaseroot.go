package vault

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/providers"
)

// DatabaseRootKind is the target kind "vault-database-root": the password with which
// Vault's database engine itself logs in. Nobody but Vault gets to know it.
func DatabaseRootKind() providers.TargetKind {
	return providers.TargetKind{
		Name:     "vault-database-root",
		Doc:      "The password that HashiCorp Vault's database engine logs in with.",
		Settings: databaseSettings(),
		Login:    Logins(),
		Params: []providers.Setting{
			{Name: "connection", Doc: "name of the database connection (its config)", Required: true, Pattern: namePattern},
		},
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Replace}, Issues: true, Valueless: true, Parallel: 1},
		Open: func(_ context.Context, c providers.Config) (providers.Target, error) {
			client, err := NewClient(c)
			if err != nil {
				return nil, err
			}
			return &databaseRoot{client, c.Settings["mount"]}, nil
		},
	}
}

type databaseRoot struct {
	*Client
	mount string
}

// connectionConfig is what the checks look at.
type connectionConfig struct {
	Plugin       string   `json:"plugin_name"`
	AllowedRoles []string `json:"allowed_roles"`
	Details      struct {
		Username string `json:"username"`
	} `json:"connection_details"`
}

func (d *databaseRoot) connection(ctx context.Context, name string) (connectionConfig, error) {
	var r connectionConfig
	if err := d.Read(ctx, d.mount+"/config/"+name, &r); err != nil {
		return r, fmt.Errorf("database connection %s: %w", name, err)
	}
	return r, nil
}

// Prepare notes nothing: Vault does not tell when it last rotated this password.
func (d *databaseRoot) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	if _, err := d.connection(ctx, c.Params["connection"]); err != nil {
		return c, err
	}
	c.New.Account = c.Params["connection"]
	return c, nil
}

// Apply has Vault make itself a new password. Again is one more, and does no harm:
// Vault changes the password and its own record of it in one call.
func (d *databaseRoot) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	err := d.Write(ctx, d.mount+"/rotate-root/"+c.New.Account, map[string]any{}, nil)
	for try := 1; try <= overlapTries && overlaps(err); try++ {
		select {
		case <-ctx.Done():
			return c.New, fmt.Errorf("rotate the root password of connection %s: %w", c.New.Account, context.Cause(ctx))
		case <-time.After(time.Duration(try) * overlapWait):
		}
		err = d.Write(ctx, d.mount+"/rotate-root/"+c.New.Account, map[string]any{}, nil)
	}
	if err != nil {
		return c.New, fmt.Errorf("rotate the root password of connection %s: %w", c.New.Account, err)
	}
	return c.New, nil
}

const (
	overlapTries = 5
	overlapWait  = 50 * time.Millisecond
)

// overlaps tells that an earlier try, whose reply was given up, is still under way: it
// closes the connection that this one began with. This one has changed nothing then.
func overlaps(err error) bool {
	return said(err, "no database instance found") || said(err, "connection has not been initialized")
}

// Verify has Vault close its connections and log in anew, with the password that it
// holds; Vault answers when the login has worked.
func (d *databaseRoot) Verify(ctx context.Context, _ providers.Change, h providers.Held) error {
	if err := d.Write(ctx, d.mount+"/reset/"+h.Account, map[string]any{}, nil); err != nil {
		return fmt.Errorf("log in anew with the root password of connection %s: %w", h.Account, err)
	}
	return nil
}

// Applied is unknown: Vault keeps no word of it.
func (d *databaseRoot) Applied(context.Context, providers.Change, string) (providers.Applied, error) {
	return providers.Applied{}, nil
}

// Usage is unknown; the old password is not accepted anyway.
func (d *databaseRoot) Usage(context.Context, providers.Change, providers.Held) (providers.Evidence, error) {
	return providers.Evidence{}, nil
}

// Retire has nothing to do: the old password ended with Apply.
func (d *databaseRoot) Retire(context.Context, providers.Change, providers.Held, time.Time) error {
	return nil
}

// Revoke has nothing to do, like Retire.
func (d *databaseRoot) Revoke(context.Context, providers.Change, providers.Held) error { return nil }

// Check looks at the policy and the connection.
func (d *databaseRoot) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	found, err := d.Health(ctx)
	if err != nil || !fine(found) {
		return found, err
	}
	name := c.Params["connection"]
	more, err := d.permissions(ctx, []need{
		{path: d.mount + "/config/" + name, may: []string{"read"}, why: "to look at the connection"},
		{path: d.mount + "/rotate-root/" + name, may: []string{"update"}, why: "to rotate"},
		{path: d.mount + "/reset/" + name, may: []string{"update"}, why: "to prove the new password by a login"},
	})
	found = append(found, more...)
	if err != nil || !fine(found) {
		return found, err
	}
	r, err := d.connection(ctx, name)
	if err != nil {
		more, err := finding("connection", "make the connection, or correct its name and the mount", err)
		return append(found, more...), err
	}
	if r.Details.Username == "" {
		found = append(found, bad("connection", "give the connection username and password, and {{username}}:{{password}} in its URL", "the connection %s has no user of its own to rotate", name))
	}
	if slices.Contains([]string{"postgres", "root", "sa", "admin"}, r.Details.Username) {
		found = append(found, warn("connection", "give Vault a user of its own, before its first rotation", "Vault logs in as %s: after a rotation nobody else can, as nobody is told the password", r.Details.Username))
	}
	return append(found, warn("escrow", "keep another superuser for emergencies", "only Vault holds this password: if Vault is lost in the middle of rotate-root, so is it")), nil
}

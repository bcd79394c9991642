package main

import (
	"context"
	"fmt"
	"time"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/jwks"
	"github.com/rotunda-dev/rotunda/jwks/transit"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/vault"
)

// openHomes opens the homes of signing keys beside the local one. path names a manifest with
// one target of type vault-transit; the document's name is the name of the home in
// policies. Vault need not be in reach.
func (c *cli) openHomes(ctx context.Context, path string, now func() time.Time) (homes map[string]jwks.Home, stop func() error, err error) {
	stop = func() error { return nil }
	if path == "" {
		return nil, stop, nil
	}
	fail := func(err error) (map[string]jwks.Home, func() error, error) {
		return nil, stop, fmt.Errorf("--signing-vault: %w", err)
	}
	raw, err := c.read(path, maxManifest)
	if err != nil {
		return fail(err)
	}
	docs, err := parseManifest(path, raw)
	if err != nil {
		return fail(err)
	}
	if len(docs) != 1 || docs[0].kind != "target" || docs[0].system.adapter != vault.TransitKind().Name || docs[0].system.loginCredential != "" {
		return fail(fmt.Errorf("%s is not one document of kind target and type %s, with a login of its own", path, vault.TransitKind().Name))
	}
	d := docs[0]
	if d.name == jwks.LocalHome {
		return fail(fmt.Errorf("%s: the name %q is taken: it is the home of keys in the database", d.at, d.name))
	}
	settings, err := providers.Complete("settings", transit.Settings(), d.system.settings)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", d.at, err))
	}
	plain, err := c.resolveLogin(ctx, "target "+d.name, d.system.login, false)
	if err != nil {
		return fail(err)
	}
	if _, err := providers.Complete("login", vault.Logins(), plain); err != nil {
		return fail(fmt.Errorf("%s: %w", d.at, err))
	}
	login := providers.Fields{}
	for name, text := range plain {
		login[name] = secret.FromString(text)
	}
	home, err := transit.Open(providers.Config{Name: d.name, Settings: settings, Login: login, Now: now})
	if err != nil {
		return fail(fmt.Errorf("%s: %w", d.at, err))
	}
	return map[string]jwks.Home{d.name: home}, home.Close, nil
}

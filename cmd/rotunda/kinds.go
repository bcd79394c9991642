package main

import (
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/aws"
	"github.com/rotunda-dev/rotunda/providers/builtin"
	"github.com/rotunda-dev/rotunda/providers/generated"
	httptarget "github.com/rotunda-dev/rotunda/providers/http"
	"github.com/rotunda-dev/rotunda/providers/mysql"
	"github.com/rotunda-dev/rotunda/providers/postgres"
	"github.com/rotunda-dev/rotunda/providers/redis"
	"github.com/rotunda-dev/rotunda/providers/vault"
)

// targetKinds are the kinds of targets of this program, in the order of its lists.
func targetKinds() []providers.TargetKind {
	return []providers.TargetKind{
		postgres.Kind(), mysql.Kind(), redis.Kind(), aws.IAMKind(), vault.AppRoleKind(), vault.DatabaseKind(),
		vault.DatabaseRootKind(), vault.TransitKind(), httptarget.Kind(), generated.Kind(),
	}
}

// storeKinds are the kinds of stores but for the built-in one, which needs the database.
func storeKinds() []providers.StoreKind {
	return []providers.StoreKind{vault.KVKind(), aws.SecretsManagerKind()}
}

// builtinKind is the name of the store that is Rotunda's own database.
const builtinKind = "builtin"

// openBuiltin opens the built-in store of a database, and its kind.
func openBuiltin(db *store.DB, sealer *secret.Sealer) (providers.StoreKind, *builtin.Store) {
	s := builtin.New(builtin.Config{DB: db, Sealer: sealer})
	return s.Kind(), s
}

// allStoreKinds are all kinds of stores, to describe them: the built-in one can't be opened.
func allStoreKinds() []providers.StoreKind {
	kind, _ := openBuiltin(nil, nil)
	return append([]providers.StoreKind{kind}, storeKinds()...)
}

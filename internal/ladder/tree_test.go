package ladder

import (
	"bytes"
	"os"
	"slices"
	"testing"
)

// The domain packages and what they stand on. Both are lists of prefixes: "jwks" is
// jwks and every folder below it.
var (
	domain = []string{"jwks", "apikeys", "rotation", "audit"}
	ground = []string{"internal/store", "internal/secret", "internal/schedule", "internal/fault"}
)

// rules is the ladder, from the top down. The longest matching prefix decides.
var rules = []rule{
	{pkg: "cmd", anything: true},
	{pkg: "bench", anything: true}, // measures every part, and ships with none
	{pkg: "internal/server", may: join(domain, "providers", "verify", "proto", "internal/console", ground)},
	{pkg: "internal/console", may: join("proto", "internal/fault")},

	{pkg: "jwks", may: join("audit", ground), pure: true},
	{pkg: "apikeys", may: join("audit", "verify/httpsig", "verify/webhook", ground), pure: true},

	// Limits and nonces that replicas share in Redis: only cmd wires it.
	{pkg: "apikeys/redis", may: join("apikeys", ground)},
	{pkg: "rotation", may: join("audit", "providers", "verify/webhook", ground), pure: true},

	// Webhooks over HTTP: only cmd wires it.
	{pkg: "rotation/sender", may: join("rotation", "internal/fault")},
	{pkg: "audit", may: join("audit/trail", "audit/format", "audit/bundle", ground), pure: true},

	// What an auditor imports: it brings nothing of the server along.
	{pkg: "audit/trail", pure: true},
	{pkg: "audit/format", may: join("audit/trail"), pure: true},
	{pkg: "audit/bundle", may: join("audit/trail", "audit/format"), pure: true},

	// Where copies of the trail go: they speak to the network, and only cmd wires them.
	{pkg: "audit/sinks", may: join("audit", ground)},
	{pkg: "audit/anchors", may: join("audit", ground)},

	// The contracts, which need no adapter; and the adapters, each alone.
	{pkg: "providers", may: join("internal/secret", "internal/fault")},
	{pkg: "providers/builtin", may: join("providers", "audit", ground)},
	{pkg: "providers/http", may: join("providers", "verify/webhook", "internal/secret", "internal/fault")},
	{pkg: "providers/providerstest", may: join("providers", ground)},
	{pkg: "providers/bedtest", may: join("providers", ground)},
	{pkg: "providers/awstest", may: join("providers", ground)},
	// Tests of the whole, with every adapter.
	{pkg: "rotation/realtest", anything: true},
	// Signing keys that never leave Vault.
	{pkg: "jwks/transit", may: join("jwks", "providers", ground), adapter: "providers/vault"},

	// Gateways import verify: it brings nothing of the server along.
	{pkg: "verify", may: join("proto")},
	{pkg: "verify/httpsig", pure: true},
	{pkg: "verify/webhook", pure: true},
	{pkg: "proto"},

	// Programs that users copy: they stand on what users may import.
	{pkg: "examples", may: join("verify", "proto")},

	{pkg: "internal/store", may: join("internal/fault", "migrations"), pure: true},
	{pkg: "internal/secret", may: join("internal/fault"), pure: true},
	{pkg: "internal/schedule", may: join("internal/fault"), pure: true},
	{pkg: "internal/fault", pure: true},
	{pkg: "migrations", pure: true},
	{pkg: "internal/ladder", pure: true},
}

// clockReaders may call time.Now. verify is a library of other programs, which have
// no clock of ours: it reads time.Now once per Config, as the default of its field
// Now. Below it, httpsig and webhook take the time as an argument (clockless).
var clockReaders = []string{"internal/store", "cmd", "verify"}

var clockless = []string{"verify/httpsig", "verify/webhook"}

// revealers may take the bytes out of a secret.Value, each for its reason.
var revealers = map[string]string{
	"providers/builtin":       "parses the sealed list of a path's versions",
	"providers/http":          "shows a partner the value that he is to accept",
	"providers/providerstest": "searches what adapters say for the values, keeps them in the memory of a test",
	"providers":               "encodes a value, compares two, cuts one out of a text",
	"providers/aws":           "signs requests, gives a value to Secrets Manager",
	"providers/mysql":         "hashes the password that the server is to accept",
	"providers/postgres":      "makes the verifier of the password that the server is to accept",
	"providers/vault":         "logs in, gives a value to Vault",
	"rotation":                "opens the key that seals rows, and what a run has to know",
	"audit":                   "opens the key that signs checkpoints",
	"audit/anchors":           "shows a bearer token to a webhook, signs requests to a bucket",
	"audit/sinks":             "shows a token to a receiver, signs what is sent, opens the key of a client certificate",
	"apikeys":                 "hashes keys and access tokens with the pepper",
	"bench/keys":              "prints the values of the keys that it makes, to load a server with",
	"cmd/rotunda":             "writes the first admin token to its file",
	"internal/server":         "shows a new access token, once",
	"jwks":                    "parses the private half of a key to sign with it",
}

// owners says which package each table belongs to.
var owners = map[string]string{
	"idempotency":    "internal/store",
	"leases":         "internal/store",
	"events":         "audit",
	"event_queue":    "audit",
	"trail":          "audit",
	"trail_tiles":    "audit",
	"trail_keys":     "audit",
	"checkpoints":    "audit",
	"cosignatures":   "audit",
	"cursors":        "audit",
	"sinks":          "audit",
	"anchors":        "audit",
	"witnesses":      "audit",
	"retention":      "audit",
	"holds":          "audit",
	"open_intents":   "audit",
	"keysets":        "jwks",
	"signing_keys":   "jwks",
	"signing_counts": "jwks",
	"publication":    "jwks",
	"access_tokens":  "apikeys",
	"peppers":        "apikeys",
	"partners":       "apikeys",
	"partner_keys":   "apikeys",
	"nonces":         "apikeys",

	"rotation_key":        "rotation",
	"systems":             "rotation",
	"credentials":         "rotation",
	"credential_stores":   "rotation",
	"credential_labels":   "rotation",
	"credential_versions": "rotation",
	"rotations":           "rotation",
	"rotation_workers":    "rotation",
	"incidents":           "rotation",
	"endpoints":           "rotation",
	"deliveries":          "rotation",

	"builtin_paths":    "providers/builtin",
	"builtin_versions": "providers/builtin",
}

// realTree reads the module this package is in.
func realTree(t *testing.T) *source {
	t.Helper()
	const root = "../.."
	gomod, err := os.ReadFile(root + "/go.mod")
	if err != nil || !bytes.HasPrefix(gomod, []byte("module github.com/rotunda-dev/rotunda\n")) {
		t.Fatalf("%s is not the root of the module: %v", root, err)
	}
	src, err := read(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if len(src.files) == 0 {
		t.Fatal("no Go file was read")
	}
	return src
}

func report(t *testing.T, findings []string) {
	t.Helper()
	for _, f := range findings {
		t.Error(f)
	}
}

func TestImportsOnlyGoDown(t *testing.T)           { report(t, checkImports(realTree(t), rules)) }
func TestTestPackagesStayInTests(t *testing.T)     { report(t, checkTestPackages(realTree(t))) }
func TestSecretsComeOutWhereTheyMust(t *testing.T) { report(t, checkReveal(realTree(t), revealers)) }
func TestTablesHaveOneOwner(t *testing.T)          { report(t, checkOwners(realTree(t), owners, rules)) }
func TestTablesAreNamedByTheirOwner(t *testing.T)  { report(t, checkTables(realTree(t), owners)) }

func TestClockHasOneSeam(t *testing.T) {
	src := realTree(t)
	shipped := *src // packages for tests read clocks as tests do
	shipped.files = slices.DeleteFunc(slices.Clone(src.files), func(f file) bool { return forTests(f.pkg) })
	report(t, checkClock(&shipped, clockReaders))
	strict := *src
	strict.files = slices.DeleteFunc(slices.Clone(src.files), func(f file) bool { return !withinAny(f.pkg, clockless) })
	if len(strict.files) == 0 {
		t.Fatal("no file of the packages without a clock was read")
	}
	report(t, checkClock(&strict, nil))
}

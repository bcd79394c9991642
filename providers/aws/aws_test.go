package aws

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sm "github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/awstest"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
)

// isolate keeps the SDK away from what is configured on the machine.
func isolate(t testing.TB) {
	for _, name := range []string{"AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func newConfig(sim *awstest.Sim, more map[string]string) providers.Config {
	c := providers.Config{
		Name:     "test",
		Settings: map[string]string{"region": sim.Region, "endpoint": sim.URL, "plaintext": "refuse", "create": "true"},
		Login:    providers.Fields{}.Set("access_key_id", sim.AccessKey).Set("secret_access_key", sim.SecretKey),
		Now:      time.Now,
	}
	for k, v := range more {
		c.Settings[k] = v
	}
	return c
}

func newStore(t testing.TB, c providers.Config) providers.Store {
	t.Helper()
	s, err := SecretsManagerKind().Open(t.Context(), c)
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newTarget(t testing.TB, c providers.Config) providers.Target {
	t.Helper()
	target, err := IAMKind().Open(t.Context(), c)
	if err != nil {
		t.Fatalf("open the target: %v", err)
	}
	t.Cleanup(func() { _ = target.Close() })
	return target
}

// newClient is AWS's own client, as a consumer has it.
func newClient(sim *awstest.Sim) *sm.Client {
	return sm.New(sm.Options{
		Region: sim.Region, BaseEndpoint: &sim.URL, Retryer: sdk.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(sim.AccessKey, sim.SecretKey, ""),
	})
}

// logIn asks STS who a key is.
func logIn(t testing.TB, sim *awstest.Sim, id, key string) (arn string, err error) {
	t.Helper()
	c := sts.New(sts.Options{
		Region: sim.Region, BaseEndpoint: &sim.URL, Retryer: sdk.NopRetryer{},
		Credentials: credentials.NewStaticCredentialsProvider(id, key, ""),
	})
	out, err := c.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", err
	}
	return *out.Arn, nil
}

func newPath(testing.TB) string { return "suite/" + rand.Text() }

func newRotation() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func newVersion(password string) providers.Version {
	return providers.Version{Credential: "orders", Rotation: newRotation(), Generation: 1, Fields: providers.Fields{}.Set("username", "app").Set("password", password)}
}

func TestStoreConformance(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	client := newClient(sim)
	read := func(t testing.TB, path, label string) providers.Fields {
		t.Helper()
		out, err := client.GetSecretValue(t.Context(), &sm.GetSecretValueInput{SecretId: &path, VersionStage: &label})
		if code(err) == "ResourceNotFoundException" {
			return nil
		}
		if err != nil {
			t.Fatalf("a consumer reads %s: %v", path, err)
		}
		f, err := providers.Decode(secret.FromString(*out.SecretString))
		if err != nil {
			t.Fatalf("a consumer reads %s: %v", path, err)
		}
		return f
	}
	providerstest.Store(t, providerstest.StoreBed{
		Kind:        SecretsManagerKind(),
		ServesFirst: true, // see TestStageWhenNothingIsServed
		Staged:      func(t testing.TB, path string) providers.Fields { return read(t, path, Staged) },
		Open:        func(t testing.TB) providers.Store { return newStore(t, newConfig(sim, nil)) },
		Path:        newPath,
		Read:        func(t testing.TB, path string) providers.Fields { return read(t, path, "AWSCURRENT") },
		Longest: func(testing.TB) string {
			return (rand.Text() + "/_+=.@-" + strings.Repeat("long", 128))[:512]
		},
		Write: func(t testing.TB, path string, f providers.Fields) {
			t.Helper()
			v, err := f.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.PutSecretValue(t.Context(), &sm.PutSecretValueInput{SecretId: &path, SecretString: sdk.String(v.RevealString())}); err != nil {
				t.Fatalf("somebody else writes: %v", err)
			}
		},
	})
}

func TestTargetConformance(t *testing.T) {
	isolate(t)
	sim := awstest.Start(t)
	users := func(t testing.TB, c providers.Change) string {
		var b strings.Builder
		for _, k := range sim.Keys(c.Params["user"]) {
			fmt.Fprintf(&b, "%s active=%t\n", k.ID, k.Active)
		}
		return b.String()
	}
	providerstest.Target(t, providerstest.TargetBed{
		Kind: IAMKind(),
		Open: func(t testing.TB) providers.Target { return newTarget(t, newConfig(sim, nil)) },
		Change: func(t testing.TB, _ providers.Strategy) providers.Change {
			return newChange(t, sim)
		},
		Accepts: func(t testing.TB, h providers.Held) bool {
			arn, err := logIn(t, sim, h.Fields.Text("access_key_id"), h.Fields.Text("secret_access_key"))
			if err != nil && !slices.Contains([]string{"InvalidClientTokenId", "SignatureDoesNotMatch"}, code(err)) {
				t.Fatalf("a consumer logs in: %v", err)
			}
			return strings.HasSuffix(arn, ":user/"+h.Account)
		},
		Marks:    true,
		Snapshot: users,
		Missing: func(t testing.TB, _ providers.Strategy) providers.Change {
			return providers.Change{Credential: "missing", Params: map[string]string{"user": "nobody-" + rand.Text(), "marker": "tag"}}
		},
		Keys: func(t testing.TB, c providers.Change) []string {
			var ids []string
			for _, k := range sim.Keys(c.Params["user"]) {
				ids = append(ids, k.ID)
			}
			return ids
		},
		Foreign: func(t testing.TB, c providers.Change) string { return sim.NewKey(c.Params["user"]).ID },
	})
}

// newChange is a credential of a fresh user that has no key yet.
func newChange(t testing.TB, sim *awstest.Sim) providers.Change {
	t.Helper()
	name := "app-" + rand.Text()
	sim.NewUser(name)
	return providers.Change{Credential: name, Strategy: providers.Dual, Params: map[string]string{"user": name, "marker": "tag"}}
}

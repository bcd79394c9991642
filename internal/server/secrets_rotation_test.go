package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/providerstest"
	"github.com/rotunda-dev/rotunda/rotation"
)

// rotationSecrets gives logins to systems, well and badly, and rotates credentials, well
// and badly. A value is shown once, by ReadSecret.
func rotationSecrets(t testing.TB, b *bed, hc *http.Client, opts connect.ClientOption, secrets map[string]string, shown map[string]int) {
	t.Helper()
	ctx := t.Context()
	stores, targets := v1connect.NewStoreServiceClient(hc, b.http.URL, opts), v1connect.NewTargetServiceClient(hc, b.http.URL, opts)
	credentials, runs := v1connect.NewCredentialServiceClient(hc, b.http.URL, opts), v1connect.NewRotationServiceClient(hc, b.http.URL, opts)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Fatalf("%s was accepted", what)
		}
	}
	login := func(name string, fields ...string) map[string]string {
		out := map[string]string{}
		for _, f := range fields {
			out[f] = "login-" + rand.Text()
			secrets["login "+f+" of "+name] = out[f]
		}
		return out
	}
	at := map[string]string{"address": "db.test"}
	for _, key := range []string{"t", "t"} { // the second one is the first one's repetition
		_, err := targets.CreateTarget(ctx, withKey(&rotundav1.CreateTargetRequest{Name: "mem", Kind: "memory", Settings: at, Login: map[string]string{"password": loginOf(secrets, "target")}}, key))
		must("create target", err)
	}
	_, err := targets.CreateTarget(ctx, withKey(&rotundav1.CreateTargetRequest{Name: "mem", Kind: "memory", Settings: at, Login: login("another under the key", "password")}, "t"))
	refused("another request under the key", err)
	_, err = stores.CreateStore(ctx, connect.NewRequest(&rotundav1.CreateStoreRequest{Name: "mem", Kind: "memory", Settings: at, Login: login("store", "password")}))
	must("create store", err)
	for what, l := range map[string]map[string]string{
		"a pin that is none": login("bad pin", "pin"), "a mode that is none": login("bad mode", "mode"), "a field that is none": login("unknown field", "passphrase"),
		"a login that is too long": {"password": strings.Repeat(secrets["login password of store"], 50)}, "a NUL": {"password": login("NUL", "password")["password"] + "\x00"},
	} {
		_, err := targets.CreateTarget(ctx, connect.NewRequest(&rotundav1.CreateTargetRequest{Name: "x", Kind: "memory", Settings: at, Login: l}))
		refused(what, err)
		_, err = stores.UpdateStore(ctx, connect.NewRequest(&rotundav1.UpdateStoreRequest{Store: "mem", Version: 1, Settings: at, Login: l}))
		refused(what, err)
	}
	many := map[string]string{}
	for range 17 {
		many["f"+rand.Text()] = secrets["login password of store"]
	}
	_, err = stores.CreateStore(ctx, connect.NewRequest(&rotundav1.CreateStoreRequest{Name: "x", Kind: "memory", Settings: at, Login: many}))
	refused("17 parts of a login", err)
	_, err = stores.CreateStore(ctx, connect.NewRequest(&rotundav1.CreateStoreRequest{Name: "X/", Kind: "memory", Settings: at, Login: login("bad name", "password")}))
	refused("a bad name", err)
	_, err = stores.CreateStore(ctx, connect.NewRequest(&rotundav1.CreateStoreRequest{Name: "x", Kind: "none", Settings: at, Login: login("bad kind", "password")}))
	refused("a bad kind", err)
	_, err = stores.CreateStore(ctx, connect.NewRequest(&rotundav1.CreateStoreRequest{Name: "x", Kind: "memory", Settings: at, Login: login("two logins", "password"), LoginCredential: "orders"}))
	refused("two logins", err)
	_, err = stores.UpdateStore(ctx, connect.NewRequest(&rotundav1.UpdateStoreRequest{Store: "mem", Version: 9, Settings: at, Login: login("another version", "password")}))
	refused("another version", err)
	secrets["login that is refused"] = refusedLogin
	_, err = stores.UpdateStore(ctx, connect.NewRequest(&rotundav1.UpdateStoreRequest{Store: "mem", Version: 1, Settings: at, Login: map[string]string{"password": refusedLogin}}))
	must("update to a login that is refused", err)
	_, err = stores.TestStore(ctx, connect.NewRequest(&rotundav1.TestStoreRequest{Store: "mem"}))
	must("test it", err)
	_, err = stores.UpdateStore(ctx, connect.NewRequest(&rotundav1.UpdateStoreRequest{Store: "mem", Version: 2, Settings: at, Login: login("store, anew", "password")}))
	must("update", err)
	for _, list := range []error{
		errOf(stores.GetStore(ctx, connect.NewRequest(&rotundav1.GetStoreRequest{Store: "mem"}))), errOf(stores.ListStores(ctx, connect.NewRequest(&rotundav1.ListStoresRequest{}))),
		errOf(targets.GetTarget(ctx, connect.NewRequest(&rotundav1.GetTargetRequest{Target: "mem"}))), errOf(targets.ListTargets(ctx, connect.NewRequest(&rotundav1.ListTargetsRequest{}))),
	} {
		must("look", list)
	}

	b.memory.Account("hushed")
	_, err = credentials.CreateCredential(ctx, connect.NewRequest(&rotundav1.CreateCredentialRequest{Name: "hushed", Spec: &rotundav1.CredentialSpec{
		Target: "mem", Params: map[string]string{"account": "hushed"}, Stores: []*rotundav1.Placement{{Store: "mem", Path: "kv/hushed"}}, Grace: durationpb.New(1e9),
	}}))
	must("create credential", err)
	value := func(name string) {
		t.Helper()
		v := b.memory.Serves("kv/hushed").Text("password")
		if len(v) < 16 {
			t.Fatalf("%s has no value", name)
		}
		secrets["value of "+name] = v
	}
	begin := func() string {
		t.Helper()
		res, err := runs.StartRotation(ctx, connect.NewRequest(&rotundav1.StartRotationRequest{Credential: "hushed"}))
		must("start", err)
		return res.Msg.GetRotation().GetId()
	}
	b.bring(t, begin(), rotation.StepDone)
	value("the first")
	b.bring(t, begin(), rotation.StepGrace)
	value("the second")
	id := begin2(t, b, "hushed")
	b.bring(t, id, rotation.StepDone)
	b.memory.Policy("hushed", 2000)
	failed := begin()
	b.bring(t, failed, rotation.StepFailed)
	b.memory.Policy("hushed", 0)
	b.plan.Steps = []providerstest.Step{{Method: "Verify", From: b.plan.Calls("Verify") + 1, Times: -1, Fault: providerstest.Refuse}}
	_, err = runs.RetryRotation(ctx, connect.NewRequest(&rotundav1.RetryRotationRequest{Rotation: failed}))
	must("retry", err)
	b.bring(t, failed, rotation.StepFailed)
	b.plan.Steps = nil
	// What was sealed and never served, too.
	sealed, err := b.staged(ctx, "hushed")
	must("look for what is sealed", err)
	for name, v := range sealed {
		secrets["sealed "+name] = v
	}
	_, err = runs.GetRotation(ctx, connect.NewRequest(&rotundav1.GetRotationRequest{Rotation: failed}))
	must("get", err)
	_, err = runs.AbandonRotation(ctx, connect.NewRequest(&rotundav1.AbandonRotationRequest{Rotation: failed}))
	must("abandon", err)
	written := "written-by-somebody-" + rand.Text()
	secrets["what somebody else wrote"] = written
	b.memory.Write("kv/hushed", providers.Fields{}.Set("password", written))
	_, err = credentials.ProbeCredential(ctx, connect.NewRequest(&rotundav1.ProbeCredentialRequest{Credential: "hushed"}))
	must("probe", err)
	for _, look := range []error{
		errOf(credentials.GetCredential(ctx, connect.NewRequest(&rotundav1.GetCredentialRequest{Credential: "hushed"}))), errOf(credentials.ListCredentials(ctx, connect.NewRequest(&rotundav1.ListCredentialsRequest{}))),
		errOf(credentials.PreflightCredential(ctx, connect.NewRequest(&rotundav1.PreflightCredentialRequest{Credential: "hushed"}))), errOf(credentials.PlanCredential(ctx, connect.NewRequest(&rotundav1.PlanCredentialRequest{Credential: "hushed"}))),
		errOf(runs.ListRotations(ctx, connect.NewRequest(&rotundav1.ListRotationsRequest{}))),
	} {
		must("look", look)
	}

	b.kept(t, "own-hushed", "hushed/db")
	res, err := stores.ReadSecret(ctx, connect.NewRequest(&rotundav1.ReadSecretRequest{Path: "hushed/db"}))
	must("read", err)
	for name, v := range res.Msg.GetFields() {
		secrets["field "+name], shown["field "+name] = v, 1
	}
	_, err = stores.ReadSecret(ctx, connect.NewRequest(&rotundav1.ReadSecretRequest{Path: "hushed/db", Version: "999999"}))
	refused("a version that is not", err)
	if len(res.Msg.GetFields()) == 0 || len(sealed) < 2 {
		t.Fatalf("there are %d fields, and %d values that are sealed", len(res.Msg.GetFields()), len(sealed))
	}
}

func loginOf(secrets map[string]string, name string) string {
	name = "login of " + name
	if secrets[name] == "" {
		secrets[name] = "login-" + rand.Text()
	}
	return secrets[name]
}

// begin2 begins a rotation while another is in its grace.
func begin2(t testing.TB, b *bed, credential string) string {
	t.Helper()
	r, err := b.Rotations.Start(t.Context(), rotation.StartRequest{Credential: credential, Emergency: true, Reason: "leaked"})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

// staged opens the values of a credential that are sealed with us.
func (b *bed) staged(ctx context.Context, credential string) (map[string]string, error) {
	out := map[string]string{}
	list, err := b.Rotations.Values(ctx, credential)
	if err != nil {
		return nil, err
	}
	for _, held := range list {
		for _, name := range held.Fields.Names() {
			if text := held.Fields.Text(name); len(text) >= 16 {
				out[fmt.Sprintf("%d %s", held.Generation, name)] = text
			}
		}
	}
	return out, nil
}

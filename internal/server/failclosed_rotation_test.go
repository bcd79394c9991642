package server

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/rotation"
)

// rotated are requests that change something of credentials. What they leave alone is
// added to reads.
func (b *bed) rotated(t testing.TB) []changeRequest {
	t.Helper()
	ctx := t.Context()
	b.system(t)
	b.kept(t, "own-db", "orders/db")
	for _, sort := range []rotation.Sort{rotation.StoreSort, rotation.TargetSort} {
		for _, name := range []string{"changes", "goes"} {
			if _, err := b.Systems.Create(ctx, sort, name, rotation.SystemSpec{Kind: "memory", Settings: map[string]string{"address": "db.test"}}, store.Once{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"stays", "changes", "sleeps", "wakes", "goes", "turns", "leaks", "stops"} {
		b.credential(t, name)
	}
	for _, name := range []string{"stays", "leaks", "stops"} {
		b.bring(t, b.start(t, name), rotation.StepDone)
	}
	if _, err := b.Credentials.Pause(ctx, "wakes", "drill"); err != nil {
		t.Fatal(err)
	}
	incident, err := b.Incidents.StartEmergency(ctx, rotation.EmergencyRequest{Selector: rotation.Selector{Credentials: []string{"stops"}}, Reason: "drill"})
	if err != nil {
		t.Fatal(err)
	}
	retry, back, over := b.failing(t, "retry"), b.failing(t, "back"), b.failing(t, "over")

	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(receiver.Close)
	b.partner(t, "hooked")
	made, err := b.Keys.Create(ctx, apikeys.RequestSecret, apikeys.KeySpec{Partner: "hooked", Name: "hooks"})
	if err != nil {
		t.Fatal(err)
	}
	made.Value.Destroy()
	for _, name := range []string{"hook", "changes", "sleeps", "wakes", "goes"} {
		if _, err := b.Endpoints.Create(ctx, name, rotation.EndpointSpec{URL: receiver.URL, Partner: "hooked", Secret: "hooks"}, store.Once{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Endpoints.Disable(ctx, "wakes", "drill"); err != nil {
		t.Fatal(err)
	}
	delivery, err := b.Endpoints.Test(ctx, "hook")
	if err != nil || delivery.State != rotation.Delivered {
		t.Fatalf("delivery %+v, %v", delivery, err)
	}
	changes, err := b.Credentials.Get(ctx, "changes")
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(b.reads, map[string]string{
		"StoreService/GetStore": `{"store":"mem"}`, "StoreService/TestStore": `{"store":"mem","path":"kv/x"}`, "TargetService/GetTarget": `{"target":"mem"}`, "TargetService/TestTarget": `{"target":"mem"}`,
		"CredentialService/GetCredential": `{"credential":"stays"}`, "CredentialService/PreflightCredential": `{"credential":"stays"}`,
		"CredentialService/PlanCredential": `{"credential":"stays"}`, "CredentialService/ProbeCredential": `{"credential":"stays"}`,
		"RotationService/GetRotation": fmt.Sprintf(`{"rotation":%q}`, over), "RotationService/GetIncident": fmt.Sprintf(`{"incident":%q}`, incident.ID),
		"RotationService/PlanEmergency": `{"selector":{"all":true}}`,
	})
	const spec = `{"target":"mem","strategy":"dual","params":{"account":"%[1]s"},"stores":[{"store":"mem","path":"kv/%[1]s"}],"labels":{"tier":"1"}}`
	of := func(id string) string { return fmt.Sprintf(`{"rotation":%q,"reason":"drill"}`, id) }
	return []changeRequest{
		{"StoreService/CreateStore", `{"name":"new","kind":"memory","settings":{"address":"db.test"},"login":{"password":"hush-hush"}}`},
		{"StoreService/UpdateStore", `{"store":"changes","version":"1","settings":{"address":"db.test"},"login":{"password":"hush-hush"}}`},
		{"StoreService/DeleteStore", `{"store":"goes"}`},
		{"StoreService/ReadSecret", `{"path":"orders/db"}`},
		{"TargetService/CreateTarget", `{"name":"new","kind":"memory","settings":{"address":"db.test"},"login":{"password":"hush-hush"}}`},
		{"TargetService/UpdateTarget", `{"target":"changes","version":"1","settings":{"address":"db.test"},"login":{"password":"hush-hush"}}`},
		{"TargetService/DeleteTarget", `{"target":"goes"}`},
		{"CredentialService/CreateCredential", `{"name":"new","spec":` + fmt.Sprintf(spec, "new") + `}`},
		{"CredentialService/UpdateCredential", fmt.Sprintf(`{"credential":"changes","version":"%d","spec":%s}`, changes.Version, fmt.Sprintf(spec, "changes"))},
		{"CredentialService/PauseCredential", `{"credential":"sleeps","reason":"drill"}`},
		{"CredentialService/ResumeCredential", `{"credential":"wakes"}`},
		{"CredentialService/DeleteCredential", `{"credential":"goes"}`},
		{"RotationService/StartRotation", `{"credential":"turns","reason":"drill"}`},
		{"RotationService/RetryRotation", of(retry)},
		{"RotationService/RollbackRotation", of(back)},
		{"RotationService/AbandonRotation", of(over)},
		{"RotationService/StartEmergency", `{"selector":{"credentials":["leaks"]},"reason":"drill"}`},
		{"RotationService/StopIncident", fmt.Sprintf(`{"incident":%q,"reason":"drill"}`, incident.ID)},
		{"EndpointService/CreateEndpoint", fmt.Sprintf(`{"name":"new","url":%q,"partner":"hooked","secret":"hooks"}`, receiver.URL)},
		{"EndpointService/UpdateEndpoint", fmt.Sprintf(`{"endpoint":"changes","version":"1","url":%q,"partner":"hooked","secret":"hooks"}`, receiver.URL+"/other")},
		{"EndpointService/DisableEndpoint", `{"endpoint":"sleeps","reason":"drill"}`},
		{"EndpointService/EnableEndpoint", `{"endpoint":"wakes"}`},
		{"EndpointService/DeleteEndpoint", `{"endpoint":"goes"}`},
		{"EndpointService/TestEndpoint", `{"endpoint":"hook"}`},
		{"EndpointService/RedeliverMessage", fmt.Sprintf(`{"delivery":%q}`, delivery.ID)},
	}
}

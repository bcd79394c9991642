package server

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
)

// changing are the groups whose methods change something.
var changing = []group{change, tokens, trails, manage, peppers, systems, credentials, emergency, secrets}

// readsOnly are methods of changing groups that change nothing.
var readsOnly = []string{
	"TokenService/ListTokens", "StoreService/TestStore", "TargetService/TestTarget",
	"CredentialService/PreflightCredential", "CredentialService/PlanCredential", "CredentialService/ProbeCredential",
}

// unrecorded are methods that change something that is no event, each for its reason.
var unrecorded = map[string]string{
	"TrailService/AddCosignature": "a cosignature stands beside a checkpoint and changes nothing that the trail says",
}

// changes are requests that change something each, in an order in which all can be
// made one after the other.
type changeRequest struct{ short, body string }

func (b *bed) changes(t testing.TB) []changeRequest {
	t.Helper()
	kid := b.keyset(t, "failing").Keys[0].Kid
	spare := b.token(t, apikeys.Create{Role: apikeys.Signer})
	b.record(t, audit.Event{Action: "x", Actor: "ada", Partner: "acme"})
	client := b.settings(b.admin)
	for _, err := range []error{
		errOf(client.CreateSink(t.Context(), connect.NewRequest(&rotundav1.CreateSinkRequest{Sink: &rotundav1.Sink{Name: "old", Kind: "file"}}))),
		errOf(client.CreateAnchor(t.Context(), connect.NewRequest(&rotundav1.CreateAnchorRequest{Anchor: &rotundav1.Anchor{Name: "old", Kind: "file"}}))),
		errOf(client.CreateHold(t.Context(), connect.NewRequest(&rotundav1.CreateHoldRequest{Hold: &rotundav1.Hold{Name: "old", Reason: "x", Resource: "nothing"}}))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	known, fresh := newCosigner(t, "witness.test/known"), newCosigner(t, "witness.test/fresh")
	if _, err := client.CreateWitness(t.Context(), connect.NewRequest(&rotundav1.CreateWitnessRequest{Vkey: known.vkey})); err != nil {
		t.Fatal(err)
	}
	held := append(b.held(t), b.rotated(t)...)
	b.sequence(t)
	return append([]changeRequest{
		{"KeysetService/CreateKeyset", `{"name":"new","issuer":"https://new.example","policy":{"tokenTtl":"60s"}}`},
		{"KeysetService/UpdatePolicy", `{"name":"failing","policy":{"tokenTtl":"120s"},"policyVersion":"1"}`},
		{"KeysetService/RotateKeyset", `{"name":"failing","overrideLead":true,"reason":"test"}`},
		{"KeysetService/ImportKey", fmt.Sprintf(`{"name":"failing","key":%q,"state":"KEY_STATE_RETIRING","maxTokenLife":"60s"}`, base64.StdEncoding.EncodeToString(newJWK(t, true)))},
		{"KeysetService/RevokeKey", fmt.Sprintf(`{"name":"failing","kid":%q,"mode":"REVOKE_MODE_FRESH","reason":"key_compromise"}`, kid)},
		{"TokenService/CreateToken", `{"name":"new","role":"ROLE_AUDITOR"}`},
		{"TokenService/RevokeToken", fmt.Sprintf(`{"id":%q,"reason":"lost"}`, idOf(spare))},
		{"TrailService/CreateSink", `{"sink":{"name":"new","kind":"file"},"secret":"hush"}`},
		{"TrailService/DeleteSink", `{"name":"old"}`},
		{"TrailService/CreateAnchor", `{"anchor":{"name":"new","kind":"file"},"secret":"hush"}`},
		{"TrailService/DeleteAnchor", `{"name":"old"}`},
		{"TrailService/CreateWitness", fmt.Sprintf(`{"vkey":%q}`, fresh.vkey)},
		{"TrailService/DeleteWitness", fmt.Sprintf(`{"name":%q}`, known.name)},
		{"TrailService/EraseFields", `{"fields":["actor"],"actor":"ada","reason":"request"}`},
		{"TrailService/CreateHold", `{"hold":{"name":"new","reason":"court","partner":"acme"}}`},
		{"TrailService/ReleaseHold", `{"name":"old","reason":"over"}`},
		{"TrailService/SetRetention", `{"seconds":"86400"}`},
		{"TrailService/RotateTrailKey", `{"reason":"yearly"}`},
		{"TrailService/RestartTrail", `{"reason":"drill"}`},
	}, held...)
}

// held are requests that change something of partners. What they leave alone is in
// reads, for methods that only read.
func (b *bed) held(t testing.TB) []changeRequest {
	t.Helper()
	for _, name := range []string{"umbrella", "umbra", "umbro"} {
		b.partner(t, name)
	}
	if _, err := b.Partners.Suspend(t.Context(), "umbro", "unpaid"); err != nil {
		t.Fatal(err)
	}
	key := func(kind apikeys.Kind, name string) (id, value string) {
		made, err := b.Keys.Create(t.Context(), kind, apikeys.KeySpec{Partner: "umbrella", Name: name, Scopes: []string{"orders:read"}})
		if err != nil {
			t.Fatal(err)
		}
		defer made.Value.Destroy()
		return made.Key.ID, made.Value.RevealString()
	}
	id := func(kind apikeys.Kind, name string) string {
		made, _ := key(kind, name)
		return made
	}
	asleep := func(kind apikeys.Kind, name string) string {
		made := id(kind, name)
		if _, err := b.Keys.Suspend(t.Context(), kind, "umbrella", made, "drill"); err != nil {
			t.Fatal(err)
		}
		return made
	}
	// A generation that nothing was ever hashed under, and that is old enough to go.
	for range 2 {
		if _, err := b.Peppers.Rotate(t.Context(), "drill"); err != nil {
			t.Fatal(err)
		}
	}
	b.exec(t, `UPDATE peppers SET created_at = created_at - 3600000000 WHERE gen = 3`)

	id(apikeys.RequestSecret, "rolls")
	keyID, value := key(apikeys.APIKey, "stays")
	secretID, secret := key(apikeys.RequestSecret, "stays")
	signed, err := json.Marshal(signedBy(t, secretID, secret, "nonce-of-a-drill", b.clock.Now()))
	if err != nil {
		t.Fatal(err)
	}
	b.reads = map[string]string{
		"PartnerService/GetPartner": `{"partner":"umbrella"}`, "ApiKeyService/GetApiKey": fmt.Sprintf(`{"partner":"umbrella","id":%q}`, keyID),
		"RequestSecretService/GetRequestSecret": `{"partner":"umbrella","name":"stays"}`, "PepperService/ListStragglers": `{"generation":"1"}`,
		"VerificationService/VerifyApiKey": fmt.Sprintf(`{"key":%q,"scopes":["orders:read"]}`, value), "VerificationService/VerifyApiKeys": fmt.Sprintf(`{"requests":[{"key":%q}]}`, value),
		"VerificationService/VerifyRequest": strings.Replace(string(signed), "{", `{"explain":true,`, 1), // with which it can be asked more than once
	}
	on := func(id string) string { return fmt.Sprintf(`{"partner":"umbrella","id":%q}`, id) }
	return []changeRequest{
		{"PartnerService/CreatePartner", `{"name":"initrode","scopes":["a"]}`},
		{"PartnerService/UpdatePartner", `{"partner":"umbra","version":"1","scopes":["b"]}`},
		{"PartnerService/SuspendPartner", `{"partner":"umbra","reason":"drill"}`},
		{"PartnerService/ResumePartner", `{"partner":"umbro","reason":"paid"}`},
		{"ApiKeyService/CreateApiKey", `{"partner":"umbrella","name":"new"}`},
		{"ApiKeyService/ImportApiKeys", `{"partner":"umbrella","form":"IMPORT_FORM_RAW","items":[{"value":"hush-Zq81LmPx0Vt7RkWn4YcJb2Hs9DgFe6Ua","name":"old"}]}`},
		{"ApiKeyService/UpdateApiKey", fmt.Sprintf(`{"partner":"umbrella","id":%q,"version":"1","name":"other"}`, id(apikeys.APIKey, "u"))},
		{"ApiKeyService/RollApiKey", on(id(apikeys.APIKey, "r"))},
		{"ApiKeyService/SuspendApiKey", on(id(apikeys.APIKey, "s"))},
		{"ApiKeyService/ResumeApiKey", on(asleep(apikeys.APIKey, "a"))},
		{"ApiKeyService/RevokeApiKey", on(id(apikeys.APIKey, "v"))},
		{"RequestSecretService/CreateRequestSecret", `{"partner":"umbrella","name":"new"}`},
		{"RequestSecretService/RollRequestSecret", `{"partner":"umbrella","name":"rolls"}`},
		{"RequestSecretService/SuspendRequestSecret", on(id(apikeys.RequestSecret, "s"))},
		{"RequestSecretService/ResumeRequestSecret", on(asleep(apikeys.RequestSecret, "a"))},
		{"RequestSecretService/RevokeRequestSecret", on(id(apikeys.RequestSecret, "v"))},
		{"PepperService/RotatePepper", `{"reason":"yearly"}`},
		{"PepperService/RetirePepper", `{"generation":"2","reason":"unused"}`},
	}
}

// contents reads every table, but for what is no change: when a token was used,
// what was signed, when replicas spoke, and leases.
func (b *bed) contents(t testing.TB) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	ctx := context.WithoutCancel(t.Context())
	err := b.db.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		for _, table := range []string{
			"event_queue", "events", "trail", "trail_tiles", "trail_keys", "checkpoints", "cosignatures", "cursors", "sinks", "anchors", "witnesses", "retention", "holds", "open_intents",
			"keysets", "signing_keys", "access_tokens", "peppers", "idempotency", "partners", "partner_keys",
			"systems", "credentials", "credential_stores", "credential_labels", "credential_versions", "rotations", "incidents", "endpoints", "deliveries", "builtin_paths", "builtin_versions",
		} {
			rows, err := tx.Query(ctx, `SELECT * FROM `+table)
			if err != nil {
				return err
			}
			names, err := rows.Columns()
			if err != nil {
				return err
			}
			all[table] = []string{}
			for rows.Next() {
				values := make([]any, len(names))
				into := make([]any, len(names))
				for i := range values {
					into[i] = &values[i]
				}
				if err := rows.Scan(into...); err != nil {
					return err
				}
				line := ""
				for i, v := range values {
					if names[i] == "last_used_at" || names[i] == "first_used_at" || table == "trail" && names[i] == "stopped" {
						continue
					}
					if raw, ok := v.([]byte); ok {
						v = hex.EncodeToString(raw)
					}
					line += fmt.Sprintf("%s=%v ", names[i], v)
				}
				all[table] = append(all[table], line)
			}
			if err := rows.Close(); err != nil {
				return err
			}
			slices.Sort(all[table])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// refuseEvents makes the database refuse every new event, as a full disk does.
func (b *bed) refuseEvents(t testing.TB) (allow func()) {
	t.Helper()
	if b.db.Dialect() == "sqlite" {
		b.exec(t, `CREATE TRIGGER disk_full BEFORE INSERT ON event_queue BEGIN SELECT RAISE(ABORT, 'disk full'); END`)
		return func() { b.exec(t, `DROP TRIGGER disk_full`) }
	}
	b.exec(t, `CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION USING ERRCODE = 53100, MESSAGE = ''disk full''; END'`)
	b.exec(t, `CREATE TRIGGER disk_full BEFORE INSERT ON event_queue FOR EACH ROW EXECUTE FUNCTION disk_full()`)
	return func() { b.exec(t, `DROP TRIGGER disk_full ON event_queue`) }
}

// Promise: when the trail can't be written, nothing changes, by whatever method;
// what reads, signs, verifies and serves goes on.
func TestServerWhenTrailCannotBeWritten(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.recheck = time.Millisecond
		b.keyset(t, "payments")
		requests := b.changes(t)
		b.changesAreAll(t, requests)
		b.grow(t, 40)
		grown, err := b.Trail.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		watching := b.watch(t, b.keysets(b.admin), "payments", 0)
		watching.next(t, 1)
		following := b.follow(t, b.trail(b.admin), &rotundav1.FollowEventsRequest{Index: index(0)})
		following.until(t, grown)

		for name, breakIt := range map[string]func() (repair func()){
			"stopped": func() func() {
				b.exec(t, `UPDATE trail SET stopped = 'drill' WHERE id = 1`)
				return func() { b.exec(t, `UPDATE trail SET stopped = '' WHERE id = 1`) }
			},
			"disk full": func() func() { return b.refuseEvents(t) },
		} {
			repair := breakIt()
			before := b.contents(t)
			for _, r := range requests {
				if name == "stopped" && r.short == "TrailService/RestartTrail" {
					continue // it is the cure
				}
				a := b.post(t, b.admin, home, "/rotunda.v1."+r.short, r.body)
				if a.status == http.StatusOK {
					t.Errorf("%s: %s was done: %s", name, r.short, a.body)
				}
				if name == "stopped" && (a.code != "unavailable" || a.problem.GetReason() != "trail_stopped" || !strings.Contains(a.message, "the trail is stopped") || !strings.Contains(a.message, "drill")) {
					t.Errorf("%s: %s: %s %v %q", name, r.short, a.code, a.problem, a.message)
				}
				if strings.Contains(a.message, "disk_full") || strings.Contains(a.message, "hush") {
					t.Errorf("%s: %s tells too much: %q", name, r.short, a.message)
				}
			}
			b.unchanged(t, name, before)
			b.goesOn(t, name)
			if _, err := b.TrailPass(t.Context(), b.clock.Now()); err != nil {
				t.Error(err)
			}
			a := b.get(t, "", home, "/healthz")
			if a.status != http.StatusOK || strings.Contains(a.body, "degraded") != (name == "stopped") {
				t.Errorf("%s: healthz: %d %q", name, a.status, a.body)
			}
			repair()
		}
		if _, err := b.TrailPass(t.Context(), b.clock.Now()); err != nil {
			t.Error(err)
		}
		if err := b.Denials.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		// None was refused because it would have been refused anyway.
		for _, r := range requests {
			if a := b.post(t, b.admin, home, "/rotunda.v1."+r.short, r.body); a.status != http.StatusOK {
				t.Errorf("afterwards %s: %d %s %q", r.short, a.status, a.code, a.message)
			}
		}
		b.rotate(t, "payments")
		watching.next(t, 2) // the stream never ended
		b.sequence(t)
		size, err := b.Trail.Head(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := following.until(t, size); len(got) < len(requests) {
			t.Errorf("the follower saw %d events of %d changes", len(got), len(requests))
		}
	})
}

// changesAreAll fails unless there is a request for each method that the
// descriptors have in a changing group.
func (b *bed) changesAreAll(t testing.TB, requests []changeRequest) {
	t.Helper()
	for _, m := range methods(t) {
		has := slices.ContainsFunc(requests, func(r changeRequest) bool { return r.short == m.short })
		want := slices.Contains(changing, groups[m.procedure]) && !slices.Contains(readsOnly, m.short) && unrecorded[m.short] == ""
		if groups[m.procedure] == trails && strings.HasPrefix(m.short, "TrailService/List") {
			t.Errorf("%s is in the group of changes", m.short)
		}
		if has != want {
			t.Errorf("%s changes something: %v; there is a request for it: %v", m.short, want, has)
		}
	}
}

func (b *bed) unchanged(t testing.TB, name string, before map[string][]string) {
	t.Helper()
	if len(before["systems"]) < 6 || len(before["credentials"]) < 10 || len(before["credential_versions"]) < 4 || len(before["rotations"]) < 6 || len(before["deliveries"]) == 0 {
		t.Fatal("there is nothing to compare of what is rotated")
	}
	if len(before["events"]) < 10 || len(before["signing_keys"]) < 4 || len(before["access_tokens"]) < 2 {
		t.Fatal("there is nothing to compare")
	}
	for table, rows := range b.contents(t) {
		if d := cmp.Diff(before[table], rows); d != "" {
			t.Errorf("%s: table %s has changed (-before +after):\n%.2000s", name, table, d)
		}
	}
}

// goesOn calls what must go on without the trail.
func (b *bed) goesOn(t testing.TB, name string) {
	t.Helper()
	since := b.clock.Now().Format(time.RFC3339)
	for _, m := range methods(t) {
		if slices.Contains(changing, groups[m.procedure]) && !slices.Contains(readsOnly, m.short) || m.stream {
			continue
		}
		body := map[string]string{
			"KeysetService/Sign": `{"name":"payments","claims":"{}"}`, "AuditService/ProveEvent": `{"id":"none"}`,
			"AuditService/GetEvidence": fmt.Sprintf(`{"resource":"keysets/payments","since":%q}`, since),
		}[m.short]
		if body == "" {
			body = b.reads[m.short]
		}
		if body == "" {
			body = "{}"
			if m.named {
				body = `{"name":"payments"}`
			}
		}
		a := b.post(t, b.admin, home, m.procedure, body)
		if m.short == "AuditService/ProveEvent" {
			if a.code != "not_found" {
				t.Errorf("%s: %s: %d %s", name, m.short, a.status, a.message)
			}
		} else if a.status != http.StatusOK {
			t.Errorf("%s: %s: %d %s", name, m.short, a.status, a.message)
		}
		if groups[m.procedure] == verify && !strings.Contains(a.body, "VERIFY_REASON_OK") {
			t.Errorf("%s: %s: %s", name, m.short, a.body)
		}
	}
	for path, token := range map[string]string{
		"/keysets/payments/jwks.json": "", "/keysets/payments/.well-known/openid-configuration": "", "/readyz": "", "/healthz": "",
		"/metrics": b.admin, "/trail/checkpoint": b.admin, "/trail/keys": b.admin, "/trail/tile/0/000.p/9": b.admin, "/trail/tile/entries/000.p/9": b.admin, "/trail/export?format=csv": b.admin,
	} {
		if a := b.get(t, token, home, path); a.status != http.StatusOK {
			t.Errorf("%s: %s: %d %s", name, path, a.status, a.body)
		}
	}
	if a := b.post(t, "", home, "/grpc.health.v1.Health/Check", "{}"); !strings.Contains(a.body, `SERVING_STATUS_SERVING"`) {
		t.Errorf("%s: health: %s", name, a.body)
	}
	b.exported(t, &rotundav1.ExportEventsRequest{})
	b.watch(t, b.keysets(b.admin), "payments", 0).next(t, 1)
	// A stranger is denied as before; it is written later.
	if a := b.post(t, "rk_bad", "203.0.113.77", "/rotunda.v1.TokenService/WhoAmI", "{}"); a.status != http.StatusUnauthorized {
		t.Errorf("%s: a stranger: %d", name, a.status)
	}
}

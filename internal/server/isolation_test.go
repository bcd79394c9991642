package server

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// aim is what a request of a partner's token is about.
type aim struct {
	id         string // of an API key
	secretID   string // of a version of a request secret
	secretName string
	value      string // of an API key
	secret     string // value of the request secret
	page       string // of a list
}

// trespass is how a method may be tried on another partner: the request, but for its
// partner. nil: the role may not call it, whoever is named.
type trespass func(t testing.TB, a aim) map[string]any

var (
	byID       = func(_ testing.TB, a aim) map[string]any { return map[string]any{"id": a.id} }
	bySecretID = func(_ testing.TB, a aim) map[string]any { return map[string]any{"id": a.secretID} }
	byName     = func(_ testing.TB, a aim) map[string]any { return map[string]any{"name": a.secretName} }
	byPage     = func(_ testing.TB, a aim) map[string]any {
		return map[string]any{"pageToken": a.page, "pageSize": 200, "ended": true}
	}
)

// trespasses has every method of the API: one that is missing fails the test.
var trespasses = map[string]trespass{
	"PartnerService/GetPartner": func(testing.TB, aim) map[string]any { return map[string]any{} },

	"ApiKeyService/CreateApiKey": func(_ testing.TB, a aim) map[string]any {
		return map[string]any{"name": a.secretName, "scopes": []string{"orders:read"}}
	},
	"ApiKeyService/GetApiKey":   byID,
	"ApiKeyService/ListApiKeys": byPage,
	"ApiKeyService/UpdateApiKey": func(_ testing.TB, a aim) map[string]any {
		return map[string]any{"id": a.id, "version": "1", "name": "taken"}
	},
	"ApiKeyService/RollApiKey":    byID,
	"ApiKeyService/SuspendApiKey": byID,
	"ApiKeyService/ResumeApiKey":  byID,
	"ApiKeyService/RevokeApiKey":  byID,

	"RequestSecretService/CreateRequestSecret":  byName,
	"RequestSecretService/GetRequestSecret":     byName,
	"RequestSecretService/ListRequestSecrets":   byPage,
	"RequestSecretService/RollRequestSecret":    byName,
	"RequestSecretService/SuspendRequestSecret": bySecretID,
	"RequestSecretService/ResumeRequestSecret":  bySecretID,
	"RequestSecretService/RevokeRequestSecret":  bySecretID,

	"VerificationService/VerifyApiKey": func(_ testing.TB, a aim) map[string]any {
		return map[string]any{"key": a.value, "wantHeaders": true}
	},
	"VerificationService/VerifyApiKeys": func(_ testing.TB, a aim) map[string]any {
		return map[string]any{"requests": []map[string]any{{"key": a.value}, {"key": a.value, "scopes": []string{"orders:read"}}}}
	},
	"VerificationService/VerifyRequest": func(t testing.TB, a aim) map[string]any {
		return signedBy(t, a.secretID, a.secret, "nonce-"+rand.Text(), epoch)
	},

	// Of nobody's partner.
	"TokenService/WhoAmI": func(testing.TB, aim) map[string]any { return map[string]any{} },

	"PartnerService/CreatePartner": nil, "PartnerService/ListPartners": nil, "PartnerService/UpdatePartner": nil, "PartnerService/SuspendPartner": nil, "PartnerService/ResumePartner": nil,
	"ApiKeyService/ImportApiKeys": nil,
	"PepperService/ListPeppers":   nil, "PepperService/RotatePepper": nil, "PepperService/ListStragglers": nil, "PepperService/RetirePepper": nil,
	"TokenService/CreateToken": nil, "TokenService/ListTokens": nil, "TokenService/RevokeToken": nil,
	"KeysetService/CreateKeyset": nil, "KeysetService/GetKeyset": nil, "KeysetService/ListKeysets": nil, "KeysetService/UpdatePolicy": nil, "KeysetService/RotateKeyset": nil,
	"KeysetService/RevokeKey": nil, "KeysetService/ImportKey": nil, "KeysetService/ListKeys": nil, "KeysetService/ListHistory": nil, "KeysetService/ListProfiles": nil,
	"KeysetService/Sign": nil, "KeysetService/Watch": nil,
	"AuditService/ListEvents": nil, "AuditService/FollowEvents": nil, "AuditService/ExportEvents": nil, "AuditService/ProveEvent": nil, "AuditService/GetCheckpoint": nil,
	"AuditService/ProveConsistency": nil, "AuditService/ListTrailKeys": nil, "AuditService/ListOpenIntents": nil, "AuditService/GetEvidence": nil, "AuditService/GetTrailStatus": nil,
	"TrailService/CreateSink": nil, "TrailService/ListSinks": nil, "TrailService/DeleteSink": nil, "TrailService/CreateAnchor": nil, "TrailService/ListAnchors": nil,
	"TrailService/DeleteAnchor": nil, "TrailService/CreateWitness": nil, "TrailService/ListWitnesses": nil, "TrailService/DeleteWitness": nil, "TrailService/AddCosignature": nil,
	"TrailService/RotateTrailKey": nil, "TrailService/RestartTrail": nil, "TrailService/SetRetention": nil, "TrailService/CreateHold": nil, "TrailService/ListHolds": nil,
	"TrailService/ReleaseHold": nil, "TrailService/EraseFields": nil,

	// What a partner must not learn of.
	"StoreService/ListStoreKinds": nil, "StoreService/CreateStore": nil, "StoreService/GetStore": nil, "StoreService/ListStores": nil, "StoreService/UpdateStore": nil,
	"StoreService/DeleteStore": nil, "StoreService/TestStore": nil, "StoreService/ReadSecret": nil,
	"TargetService/ListTargetKinds": nil, "TargetService/CreateTarget": nil, "TargetService/GetTarget": nil, "TargetService/ListTargets": nil, "TargetService/UpdateTarget": nil,
	"TargetService/DeleteTarget": nil, "TargetService/TestTarget": nil,
	"CredentialService/CreateCredential": nil, "CredentialService/GetCredential": nil, "CredentialService/ListCredentials": nil, "CredentialService/UpdateCredential": nil,
	"CredentialService/PauseCredential": nil, "CredentialService/ResumeCredential": nil, "CredentialService/DeleteCredential": nil, "CredentialService/PreflightCredential": nil,
	"CredentialService/PlanCredential": nil, "CredentialService/ProbeCredential": nil, "CredentialService/Forecast": nil,
	"RotationService/StartRotation": nil, "RotationService/GetRotation": nil, "RotationService/ListRotations": nil, "RotationService/WatchRotation": nil,
	"RotationService/RetryRotation": nil, "RotationService/RollbackRotation": nil, "RotationService/AbandonRotation": nil, "RotationService/PlanEmergency": nil,
	"RotationService/StartEmergency": nil, "RotationService/GetIncident": nil, "RotationService/ListIncidents": nil, "RotationService/StopIncident": nil,
	"EndpointService/CreateEndpoint": nil, "EndpointService/ListEndpoints": nil, "EndpointService/UpdateEndpoint": nil, "EndpointService/DisableEndpoint": nil,
	"EndpointService/EnableEndpoint": nil, "EndpointService/DeleteEndpoint": nil, "EndpointService/TestEndpoint": nil, "EndpointService/ListDeliveries": nil,
	"EndpointService/RedeliverMessage": nil,
}

// signedBy is a VerifyRequest of a request that a secret has signed.
func signedBy(t testing.TB, keyid, secret, nonce string, at time.Time) map[string]any {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := httpsig.NewHMACKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	m := &httpsig.Message{Method: "GET", Scheme: "https", Authority: "api.test", Path: "/orders"}
	input, signature, err := httpsig.Sign(m, k, httpsig.Params{Label: "sig", Components: []string{"@method", "@authority", "@path"}, Created: at, KeyID: keyid, Nonce: nonce})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"method": "GET", "scheme": "https", "authority": "api.test", "target": "/orders", "wantHeaders": true,
		"headers": []map[string]any{{"name": "signature-input", "value": input}, {"name": "signature", "value": signature}},
	}
}

// two is an API with two partners that each have a key and a request secret.
type two struct {
	*bed
	acme, globex   string // their tokens
	mine, theirs   aim
	never          aim // nobody's, and in the same form
	secretsOfOther []string
}

// theirMark is in all that globex wrote, and in nothing that acme asks for.
const theirMark = "gxmark"

func newTwo(t testing.TB, db *store.DB) *two {
	t.Helper()
	b := newBed(t, db)
	w := &two{bed: b}
	for _, name := range []string{"acme", "globex"} {
		b.partner(t, name)
	}
	w.acme, w.globex = b.manager(t, "acme"), b.manager(t, "globex")
	w.mine = b.things(t, w.acme, "acmemark")
	b.clock.Advance(time.Second) // or where a page begins would be a matter of ids
	w.theirs = b.things(t, w.globex, theirMark)
	elsewhere := newBed(t, storetest.SQLite(t))
	elsewhere.partner(t, "globex")
	w.never = elsewhere.things(t, elsewhere.manager(t, "globex"), "nomark")
	db.Now, db.Tick = b.clock.Now, func() time.Duration { return b.clock.Now().Sub(epoch) }
	list, err := b.apiKeys(w.globex).ListApiKeys(t.Context(), connect.NewRequest(&rotundav1.ListApiKeysRequest{PageSize: 1}))
	if err != nil || list.Msg.GetNextPageToken() == "" {
		t.Fatalf("a page of globex: %v, %v", list, err)
	}
	w.theirs.page = list.Msg.GetNextPageToken()
	raw, err := base64.RawURLEncoding.DecodeString(w.theirs.page)
	if err != nil {
		t.Fatal(err)
	}
	at, _, _ := strings.Cut(string(raw), " ")
	w.never.page = base64.RawURLEncoding.EncodeToString([]byte(at + " " + w.never.id))
	w.secretsOfOther = []string{theirMark, w.theirs.id, w.theirs.secretID, w.theirs.value, w.theirs.secret}
	return w
}

func (b *bed) apiKeys(token string) v1connect.ApiKeyServiceClient {
	return v1connect.NewApiKeyServiceClient(as(token, home), b.http.URL)
}

func (b *bed) requestSecrets(token string) v1connect.RequestSecretServiceClient {
	return v1connect.NewRequestSecretServiceClient(as(token, home), b.http.URL)
}

func (b *bed) verification(token string) v1connect.VerificationServiceClient {
	return v1connect.NewVerificationServiceClient(as(token, home), b.http.URL)
}

// things makes two keys and a request secret, by a partner's own token.
func (b *bed) things(t testing.TB, token, mark string) aim {
	t.Helper()
	var a aim
	for range 2 {
		made, err := b.apiKeys(token).CreateApiKey(t.Context(), connect.NewRequest(&rotundav1.CreateApiKeyRequest{
			Name: mark + "-key", Scopes: []string{"orders:read"}, Metadata: map[string]string{"note": mark},
		}))
		if err != nil {
			t.Fatal(err)
		}
		a.id, a.value = made.Msg.GetKey().GetId(), made.Msg.GetValue()
	}
	a.secretName = mark + "-secret"
	secret, err := b.requestSecrets(token).CreateRequestSecret(t.Context(), connect.NewRequest(&rotundav1.CreateRequestSecretRequest{Name: a.secretName, Scopes: []string{"orders:read"}}))
	if err != nil {
		t.Fatal(err)
	}
	a.secretID, a.secret = secret.Msg.GetSecret().GetId(), secret.Msg.GetValue()
	return a
}

// normal is an answer without what differs anyway: the request's id and time, what
// was asked for, and the ids and values of what was made.
func normal(t testing.TB, a answer, asked ...string) string {
	t.Helper()
	var names []string
	for name := range a.header {
		if name != "Date" && name != "X-Request-Id" && name != "Content-Length" {
			names = append(names, name+"="+strings.Join(a.header[name], ","))
		}
	}
	slices.Sort(names)
	body := a.body
	var tree map[string]any
	if err := json.Unmarshal([]byte(a.body), &tree); err == nil {
		if details, ok := tree["details"].([]any); ok {
			for _, d := range details {
				delete(d.(map[string]any), "value")
				delete(d.(map[string]any), "debug")
			}
		}
		for _, made := range []string{"key", "secret"} {
			if k, ok := tree[made].(map[string]any); ok && tree["value"] != nil {
				k["id"] = "MADE"
				tree["value"] = "MADE"
			}
		}
		raw, err := json.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		body = string(raw)
	}
	text := fmt.Sprintf("%d %v\n%s\nreason %q, field %q", a.status, names, body, a.problem.GetReason(), a.problem.GetField())
	for i := range asked {
		if asked[i] != "" {
			text = strings.ReplaceAll(text, asked[i], "ASKED")
		}
	}
	return text
}

func (a aim) asked() []string {
	return []string{a.id, a.secretID, a.secretName, a.value, a.secret, a.page}
}

// body is a trespass with a partner named; "" names none.
func (w *two) body(t testing.TB, m method, try trespass, a aim, partner string) string {
	t.Helper()
	tree := try(t, a)
	if partner != "" {
		if list, ok := tree["requests"].([]map[string]any); ok {
			list[len(list)-1]["partner"] = partner
		} else if namesPartner(t, m) {
			tree["partner"] = partner
		}
	}
	raw, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// namesPartner reports whether the request of a method names a partner.
func namesPartner(t testing.TB, m method) bool {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(m.procedure, "/"), "/", ".")))
	if err != nil {
		t.Fatal(err)
	}
	return d.(protoreflect.MethodDescriptor).Input().Fields().ByName("partner") != nil || m.short == "VerificationService/VerifyApiKeys"
}

// rows are globex's, and those of its tokens.
func (w *two) rows(t testing.TB) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, table := range []string{"partners", "partner_keys", "access_tokens", "idempotency"} {
		for _, line := range w.contents(t)[table] {
			if strings.Contains(line, "globex") || strings.Contains(line, idOf(w.globex)) {
				out[table] = append(out[table], line)
			}
		}
	}
	if len(out["partners"]) != 1 || len(out["partner_keys"]) != 3 || len(out["access_tokens"]) != 1 {
		t.Fatalf("globex has %d, %d and %d rows", len(out["partners"]), len(out["partner_keys"]), len(out["access_tokens"]))
	}
	return out
}

// Promise: a partner's token sees, counts, guesses and touches nothing of another
// partner, by whatever method and whatever way in. What is another's and what never
// was get the same answer, to the byte.
func TestIsolationWhenPartnerTriesEveryMethod(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		w := newTwo(t, db)
		w.keyset(t, "payments")
		before := w.rows(t)
		all := methods(t)
		if len(all) != len(trespasses) {
			t.Errorf("the table has %d methods of %d", len(trespasses), len(all))
		}
		silent := func(m method, how string, a answer) {
			t.Helper()
			for _, s := range w.secretsOfOther {
				if strings.Contains(a.body, s) || strings.Contains(fmt.Sprint(a.header), s) {
					t.Errorf("%s, %s: the answer has something of the other partner: %s", m.short, how, a.body)
				}
			}
		}
		// Last what makes something: afterwards acme has it too.
		slices.SortStableFunc(all, func(x, y method) int {
			return strings.Count(x.short, "/Create") - strings.Count(y.short, "/Create")
		})
		for i, m := range all {
			from := block(i)
			try, ok := trespasses[m.short]
			if !ok {
				t.Errorf("%s has no entry in the table: how may it be tried on another partner?", m.short)
				continue
			}
			if try == nil {
				w.deniedAlike(t, m, from)
				continue
			}
			call := func(a aim, partner string) answer {
				return w.callWith(t, m, w.acme, from, w.body(t, m, try, a, partner))
			}
			// Another partner, and one that does not exist.
			if namesPartner(t, m) {
				theirs, nobody := call(w.mine, "globex"), call(w.mine, "initech")
				if theirs.code != "not_found" || theirs.problem.GetReason() != "partner_not_found" {
					t.Errorf("%s for another partner: %d %s", m.short, theirs.status, theirs.body)
				}
				if d := cmp.Diff(normal(t, nobody, "initech"), normal(t, theirs, "globex")); d != "" {
					t.Errorf("%s tells a partner from none (-none +other):\n%s", m.short, d)
				}
				silent(m, "another partner", theirs)
				// The other's things in the other's name, too.
				if d := cmp.Diff(normal(t, call(w.never, "initech"), append(w.never.asked(), "initech")...), normal(t, call(w.theirs, "globex"), append(w.theirs.asked(), "globex")...)); d != "" {
					t.Errorf("%s tells the other's things from none in the other's name:\n%s", m.short, d)
				}
			}
			// The other's things, and what never was, as one's own.
			for _, partner := range []string{"", "acme"} {
				theirs, never := call(w.theirs, partner), call(w.never, partner)
				if m.short == "VerificationService/VerifyRequest" && !strings.Contains(theirs.body, "VERIFY_REASON_UNKNOWN") || strings.HasPrefix(m.short, "VerificationService/VerifyApiKey") && !strings.Contains(theirs.body, "VERIFY_REASON_UNKNOWN") {
					t.Errorf("%s with the other's key: %d %s", m.short, theirs.status, theirs.body)
				}
				if d := cmp.Diff(normal(t, never, w.never.asked()...), normal(t, theirs, w.theirs.asked()...)); d != "" {
					t.Errorf("%s as %q tells the other's from what never was (-never +other):\n%s", m.short, partner, d)
				}
				if !strings.Contains(m.short, "/Create") { // whose name is the partner's own choice
					asked := theirs
					for _, s := range w.theirs.asked() {
						if s != "" && theirs.status != http.StatusOK {
							asked.body = strings.ReplaceAll(asked.body, s, "")
						}
					}
					silent(m, "the other's things", asked)
				}
			}
		}
		for table, rows := range w.rows(t) {
			if d := cmp.Diff(before[table], rows); d != "" {
				t.Errorf("%s of the other partner has changed (-before +after):\n%s", table, d)
			}
		}
		w.attemptsAreInTrail(t, all)
		// None of it was refused because it would have been refused anyway.
		for _, short := range []string{"ApiKeyService/GetApiKey", "RequestSecretService/GetRequestSecret", "VerificationService/VerifyApiKey", "VerificationService/VerifyApiKeys", "VerificationService/VerifyRequest"} {
			for _, m := range all {
				if m.short != short {
					continue
				}
				a := w.callWith(t, m, w.globex, home, w.body(t, m, trespasses[short], w.theirs, "globex"))
				if a.status != http.StatusOK || strings.HasPrefix(short, "Verif") && !strings.Contains(a.body, "VERIFY_REASON_OK") {
					t.Errorf("%s by its own partner: %d %s", short, a.status, a.body)
				}
			}
		}
	})
}

// deniedAlike calls a method that the role may not call, for each partner there may be.
func (w *two) deniedAlike(t *testing.T, m method, from string) {
	t.Helper()
	var first string
	for _, partner := range []string{"", "acme", "globex", "initech"} {
		body := "{}"
		if partner != "" && namesPartner(t, m) {
			body = fmt.Sprintf(`{"partner":%q}`, partner)
		}
		if m.short == "PartnerService/CreatePartner" {
			body = fmt.Sprintf(`{"name":%q}`, partner)
		}
		if m.named {
			body = `{"name":"payments"}`
			if partner == "globex" {
				body = `{"name":"absent"}`
			}
		}
		a := w.callWith(t, m, w.acme, from, body)
		if a.code != "permission_denied" || a.problem.GetReason() != "role" {
			t.Errorf("%s by a partner: %d %s", m.short, a.status, a.body)
		}
		a.body = a.code + a.message
		if text := normal(t, a, partner); first == "" {
			first = text
		} else if text != first {
			t.Errorf("%s for %q is denied otherwise than before:\n%s\n%s", m.short, partner, text, first)
		}
	}
}

// attemptsAreInTrail fails unless every method that was tried on another partner is in
// the trail as a denied attempt of acme, and none as one of globex.
func (w *two) attemptsAreInTrail(t *testing.T, all []method) {
	t.Helper()
	if err := w.Denials.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range w.events(t, audit.Query{Outcome: audit.Denied}) {
		if e.Actor != idOf(w.acme) || e.Partner != "acme" {
			t.Errorf("a denied attempt of %s, partner %q: %+v", e.Actor, e.Partner, e)
		}
		seen[e.Action+" "+e.Resource+" "+e.Reason] = true
	}
	for _, m := range all {
		name := actionOf(m.procedure)
		want := []string{name + "  role"}
		switch {
		case trespasses[m.short] != nil && namesPartner(t, m):
			want = []string{name + " partners/globex partner", name + " partners/initech partner"}
		case trespasses[m.short] != nil:
			continue
		case m.named:
			want = []string{name + " keysets/payments role", name + " keysets/? role"}
		}
		for _, event := range want {
			if !seen[event] {
				t.Errorf("%s was tried, and %q is not in the trail", m.short, event)
			}
		}
	}
}

package server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// who may call what. It repeats the policy on purpose: whoever changes one must
// change the other, and say so in a review.
var may = map[string]string{
	"KeysetService/CreateKeyset":    "admin operator",
	"KeysetService/GetKeyset":       "admin operator auditor",
	"KeysetService/ListKeysets":     "admin operator auditor",
	"KeysetService/UpdatePolicy":    "admin operator",
	"KeysetService/RotateKeyset":    "admin operator",
	"KeysetService/RevokeKey":       "admin operator",
	"KeysetService/ImportKey":       "admin operator",
	"KeysetService/ListKeys":        "admin operator auditor",
	"KeysetService/ListHistory":     "admin operator auditor",
	"KeysetService/ListProfiles":    "admin operator auditor",
	"KeysetService/Sign":            "admin operator signer",
	"KeysetService/Watch":           "admin operator auditor gateway",
	"AuditService/ListEvents":       "admin operator auditor",
	"AuditService/FollowEvents":     "admin operator auditor",
	"AuditService/ExportEvents":     "admin operator auditor",
	"AuditService/ProveEvent":       "admin operator auditor",
	"AuditService/GetCheckpoint":    "admin operator auditor",
	"AuditService/ProveConsistency": "admin operator auditor",
	"AuditService/ListTrailKeys":    "admin operator auditor",
	"AuditService/ListOpenIntents":  "admin operator auditor",
	"AuditService/GetEvidence":      "admin operator auditor",
	"AuditService/GetTrailStatus":   "admin operator auditor",
	"TrailService/ListSinks":        "admin operator auditor",
	"TrailService/ListAnchors":      "admin operator auditor",
	"TrailService/ListWitnesses":    "admin operator auditor",
	"TrailService/ListHolds":        "admin operator auditor",
	"TrailService/CreateSink":       "admin",
	"TrailService/DeleteSink":       "admin",
	"TrailService/CreateAnchor":     "admin",
	"TrailService/DeleteAnchor":     "admin",
	"TrailService/CreateWitness":    "admin",
	"TrailService/DeleteWitness":    "admin",
	"TrailService/AddCosignature":   "admin",
	"TrailService/RotateTrailKey":   "admin",
	"TrailService/RestartTrail":     "admin",
	"TrailService/SetRetention":     "admin",
	"TrailService/CreateHold":       "admin",
	"TrailService/ReleaseHold":      "admin",
	"TrailService/EraseFields":      "admin",
	"TokenService/CreateToken":      "admin",
	"TokenService/ListTokens":       "admin",
	"TokenService/RevokeToken":      "admin",
	"TokenService/WhoAmI":           "admin operator auditor gateway signer partner reader",

	"PartnerService/CreatePartner":  "admin operator",
	"PartnerService/GetPartner":     "admin operator auditor partner",
	"PartnerService/ListPartners":   "admin operator auditor",
	"PartnerService/UpdatePartner":  "admin operator",
	"PartnerService/SuspendPartner": "admin operator",
	"PartnerService/ResumePartner":  "admin operator",

	"ApiKeyService/CreateApiKey":  "admin operator partner",
	"ApiKeyService/ImportApiKeys": "admin operator",
	"ApiKeyService/GetApiKey":     "admin operator auditor partner",
	"ApiKeyService/ListApiKeys":   "admin operator auditor partner",
	"ApiKeyService/UpdateApiKey":  "admin operator partner",
	"ApiKeyService/RollApiKey":    "admin operator partner",
	"ApiKeyService/SuspendApiKey": "admin operator partner",
	"ApiKeyService/ResumeApiKey":  "admin operator partner",
	"ApiKeyService/RevokeApiKey":  "admin operator partner",

	"RequestSecretService/CreateRequestSecret":  "admin operator partner",
	"RequestSecretService/GetRequestSecret":     "admin operator auditor partner",
	"RequestSecretService/ListRequestSecrets":   "admin operator auditor partner",
	"RequestSecretService/RollRequestSecret":    "admin operator partner",
	"RequestSecretService/SuspendRequestSecret": "admin operator partner",
	"RequestSecretService/ResumeRequestSecret":  "admin operator partner",
	"RequestSecretService/RevokeRequestSecret":  "admin operator partner",

	"PepperService/ListPeppers":    "admin operator auditor",
	"PepperService/RotatePepper":   "admin",
	"PepperService/ListStragglers": "admin operator auditor",
	"PepperService/RetirePepper":   "admin",

	"VerificationService/VerifyApiKey":  "admin operator gateway partner",
	"VerificationService/VerifyApiKeys": "admin operator gateway partner",
	"VerificationService/VerifyRequest": "admin operator gateway partner",

	"StoreService/ListStoreKinds": "admin operator auditor",
	"StoreService/CreateStore":    "admin",
	"StoreService/GetStore":       "admin operator auditor",
	"StoreService/ListStores":     "admin operator auditor",
	"StoreService/UpdateStore":    "admin",
	"StoreService/DeleteStore":    "admin",
	"StoreService/TestStore":      "admin",
	"StoreService/ReadSecret":     "admin reader",

	"TargetService/ListTargetKinds": "admin operator auditor",
	"TargetService/CreateTarget":    "admin",
	"TargetService/GetTarget":       "admin operator auditor",
	"TargetService/ListTargets":     "admin operator auditor",
	"TargetService/UpdateTarget":    "admin",
	"TargetService/DeleteTarget":    "admin",
	"TargetService/TestTarget":      "admin",

	"CredentialService/CreateCredential":    "admin operator",
	"CredentialService/GetCredential":       "admin operator auditor",
	"CredentialService/ListCredentials":     "admin operator auditor",
	"CredentialService/UpdateCredential":    "admin operator",
	"CredentialService/PauseCredential":     "admin operator",
	"CredentialService/ResumeCredential":    "admin operator",
	"CredentialService/DeleteCredential":    "admin operator",
	"CredentialService/PreflightCredential": "admin operator",
	"CredentialService/PlanCredential":      "admin operator",
	"CredentialService/ProbeCredential":     "admin operator",
	"CredentialService/Forecast":            "admin operator auditor",

	"RotationService/StartRotation":    "admin operator",
	"RotationService/GetRotation":      "admin operator auditor",
	"RotationService/ListRotations":    "admin operator auditor",
	"RotationService/WatchRotation":    "admin operator auditor",
	"RotationService/RetryRotation":    "admin operator",
	"RotationService/RollbackRotation": "admin operator",
	"RotationService/AbandonRotation":  "admin operator",
	"RotationService/PlanEmergency":    "admin operator auditor",
	"RotationService/StartEmergency":   "admin operator",
	"RotationService/GetIncident":      "admin operator auditor",
	"RotationService/ListIncidents":    "admin operator auditor",
	"RotationService/StopIncident":     "admin operator",

	"EndpointService/CreateEndpoint":   "admin",
	"EndpointService/ListEndpoints":    "admin operator auditor",
	"EndpointService/UpdateEndpoint":   "admin",
	"EndpointService/DisableEndpoint":  "admin",
	"EndpointService/EnableEndpoint":   "admin",
	"EndpointService/DeleteEndpoint":   "admin",
	"EndpointService/TestEndpoint":     "admin",
	"EndpointService/ListDeliveries":   "admin operator auditor",
	"EndpointService/RedeliverMessage": "admin operator",
}

type method struct {
	procedure string
	short     string // "KeysetService/Sign"
	named     bool   // its request names a keyset
	stream    bool
}

// methods finds every procedure of the API in the descriptors.
func methods(t testing.TB) []method {
	t.Helper()
	var all []method
	protoregistry.GlobalFiles.RangeFilesByPackage("rotunda.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				all = append(all, method{
					procedure: fmt.Sprintf("/%s/%s", s.FullName(), m.Name()),
					short:     fmt.Sprintf("%s/%s", s.Name(), m.Name()),
					named:     s.Name() == "KeysetService" && m.Input().Fields().ByName("name") != nil,
					stream:    m.IsStreamingServer(),
				})
			}
		}
		return true
	})
	if len(all) < 17 {
		t.Fatalf("found %d methods: the descriptors are not linked in", len(all))
	}
	return all
}

// call sends the smallest request of a method, which a caller who may call it
// has refused for another reason, or answered.
func (b *bed) call(t testing.TB, m method, token, from, keyset string) answer {
	t.Helper()
	body := "{}"
	if m.named {
		body = fmt.Sprintf(`{"name":%q}`, keyset)
	}
	return b.callWith(t, m, token, from, body)
}

// callWith sends a request of a method, and reads the first message of a stream.
func (b *bed) callWith(t testing.TB, m method, token, from, body string) answer {
	t.Helper()
	if !m.stream {
		return b.post(t, token, from, m.procedure, body)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.http.URL+m.procedure, bytes.NewReader(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/connect+json")
	res, err := as(token, from).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	a := answer{status: res.StatusCode, header: res.Header}
	head := make([]byte, 5)
	if _, err := io.ReadFull(res.Body, head); err != nil {
		t.Fatalf("%s: %v", m.short, err)
	}
	raw := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(res.Body, raw); err != nil {
		t.Fatalf("%s: %v", m.short, err)
	}
	a.body = string(raw)
	if head[0]&2 != 0 { // the end of the stream, with its error
		a.read(t, []byte(strings.TrimSuffix(strings.TrimPrefix(a.body, `{"error":`), "}")))
	}
	return a
}

// Promise: nobody calls what the table does not allow, and every attempt is in
// the trail with who, from where, and what.
func TestAuthorizationWhenEachRoleCallsEachMethod(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "payments")
		values := map[string]string{"admin": b.admin}
		for _, r := range apikeys.Roles[1:] {
			req := apikeys.Create{Role: r}
			if r == apikeys.Manager {
				req.Partner = b.partner(t, "acme").Name
			}
			if r == apikeys.Reader {
				req.Paths = []string{"orders/*"}
			}
			values[string(r)] = b.token(t, req)
		}
		b.sequence(t) // so that there is a checkpoint
		all := methods(t)
		if len(may) != len(all) {
			t.Errorf("the table has %d rows for %d methods", len(may), len(all))
		}
		var want []audit.Event
		for i, m := range all {
			from := block(i)
			row, ok := may[m.short]
			if !ok {
				t.Errorf("%s has no row in the table: who may call it?", m.short)
				continue
			}
			for role, value := range values {
				a := b.call(t, m, value, from, "payments")
				if slices.Contains(strings.Fields(row), role) {
					if a.code == "permission_denied" || a.code == "unauthenticated" || a.status == http.StatusNotFound {
						t.Errorf("%s by %s: %d %s %s, want it let through", m.short, role, a.status, a.code, a.message)
					}
					continue
				}
				if a.code != "permission_denied" || a.problem.GetReason() != "role" || a.problem.GetRequestId() == "" || a.problem.GetRequestId() != a.header.Get("X-Request-Id") {
					t.Errorf("%s by %s: %s %v, want it denied with its request id %s", m.short, role, a.code, a.problem, a.header.Get("X-Request-Id"))
				}
				e := audit.Event{Actor: idOf(value), Action: "rpc." + m.short[strings.Index(m.short, "/")+1:], Outcome: audit.Denied, Reason: "role", Address: from, RequestID: a.problem.GetRequestId(), Count: 1}
				if m.named {
					e.Resource = "keysets/payments"
				}
				want = append(want, e)
			}
		}
		for _, plain := range []struct{ path, action string }{
			{"/metrics", "metrics"}, {"/trail/checkpoint", "trail.checkpoint"}, {"/trail/keys", "trail.keys"}, {"/trail/export", "trail.export"},
			{"/trail/tile/0/000.p/1", "trail.tile"}, {"/trail/tile/entries/000.p/1", ""}, // the same again, and so counted
		} {
			path, action := plain.path, plain.action
			for role, allowed := range map[string]bool{"admin": true, "operator": true, "auditor": true, "gateway": false, "signer": false, "partner": false, "reader": false} {
				a := b.get(t, values[role], home, path)
				if allowed != (a.status == http.StatusOK) || !allowed && a.status != http.StatusForbidden {
					t.Errorf("%s by %s: %d", path, role, a.status)
				}
				if !allowed && action != "" {
					want = append(want, audit.Event{Actor: idOf(values[role]), Action: action, Outcome: audit.Denied, Reason: "role", Address: home, RequestID: a.header.Get("X-Request-Id"), Count: 1})
				}
			}
		}
		compareEvents(t, want, b.events(t, audit.Query{Outcome: audit.Denied}))
	})
}

// block is an address for the method at an index: one for thirty of them, because
// what one address may fail at, and how many kinds of denial of it are told apart, is
// bounded.
func block(i int) string { return fmt.Sprintf("198.51.100.%d", 1+i/30) }

// compareEvents compares without order, ids and times.
func compareEvents(t *testing.T, want, got []audit.Event) {
	t.Helper()
	plain := func(list []audit.Event) []string {
		var out []string
		for _, e := range list {
			out = append(out, fmt.Sprintf("%s from %s: %s on %q: %s %s ×%d, request %s", e.Actor, e.Address, e.Action, e.Resource, e.Outcome, e.Reason, e.Count, e.RequestID))
		}
		slices.Sort(out)
		return out
	}
	if d := cmp.Diff(plain(want), plain(got)); d != "" {
		t.Errorf("trail (-want +got):\n%s", d)
	}
}

// Promise: whoever has no token that is accepted learns nothing, not even which
// part was wrong; the trail does.
func TestAuthenticationWhenTokenIsNotAccepted(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "payments")
		revoked := b.token(t, apikeys.Create{Role: apikeys.Admin})
		if _, err := b.Tokens.Revoke(t.Context(), idOf(revoked), "lost"); err != nil {
			t.Fatal(err)
		}
		expired := b.token(t, apikeys.Create{Role: apikeys.Admin, ExpiresIn: time.Minute})
		bound := b.token(t, apikeys.Create{Role: apikeys.Admin, CIDRs: []string{"198.51.100.0/24", "2001:db8::/48"}})
		other := newBed(t, storetest.SQLite(t)).admin // of another installation
		b.clock.Advance(time.Minute)
		altered := []byte(b.admin)
		altered[30] ^= 1
		swapped := strings.Replace(b.admin, idOf(b.admin), idOf(bound), 1)

		for i, c := range []struct{ name, header, reason string }{
			{"none", "", "missing"},
			{"other scheme", "Basic " + b.admin, "missing"},
			{"no value", "Bearer", "missing"},
			{"typo", "Bearer " + string(altered), "malformed"},
			{"id of another token", "Bearer " + swapped, "malformed"},
			{"longest nonsense", "Bearer rk_" + strings.Repeat("A", 8000), "malformed"},
			{"another installation's", "Bearer " + other, "unknown"},
			{"revoked", "Bearer " + revoked, "revoked"},
			{"expired", "Bearer " + expired, "expired"},
			{"wrong address", "Bearer " + bound, "address"},
		} {
			// Each from an address of its own, so that no limit comes into play.
			want := map[string][]audit.Event{}
			for j, m := range methods(t) {
				from := fmt.Sprintf("203.0.%d.%d", 110+j/30, i)
				header := []string{"Content-Type", "application/json"}
				if m.stream {
					header[1] = "application/connect+json"
				}
				if c.header != "" {
					header = append(header, "Authorization", c.header)
				}
				a := b.send(t, "", from, http.MethodPost, m.procedure, header...)
				if m.stream {
					if a.status != http.StatusOK || !strings.Contains(a.body, `"unauthenticated"`) {
						t.Errorf("%s, %s: %d %q", c.name, m.short, a.status, a.body)
					}
				} else if a.status != http.StatusUnauthorized || a.code != "unauthenticated" || a.problem.GetReason() != "unauthenticated" ||
					a.header.Get("Www-Authenticate") != `Bearer realm="rotunda"` || a.message != "the request carries no access token that is accepted: send `Authorization: Bearer rk_…`" {
					t.Errorf("%s, %s: %d %s %q %v", c.name, m.short, a.status, a.code, a.message, a.header)
				}
				want[from] = append(want[from], audit.Event{Actor: "anonymous", Address: from, Action: "authenticate", Resource: m.procedure, Outcome: audit.Denied, Reason: c.reason, RequestID: a.header.Get("X-Request-Id"), Count: 1})
			}
			for from, events := range want {
				compareEvents(t, events, b.events(t, audit.Query{Outcome: audit.Denied, Address: from}))
			}
		}
		for _, from := range []string{"198.51.100.7", "2001:db8::7"} {
			if a := b.call(t, method{procedure: v1connect.TokenServiceWhoAmIProcedure}, bound, from, ""); a.status != http.StatusOK {
				t.Errorf("from its own range (%s): %d %s", from, a.status, a.body)
			}
		}
	})
}

// Promise: a token for keyset A is no way to learn whether B exists.
func TestSignWhenKeysetIsOutsideScope(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		b.keyset(t, "a")
		b.keyset(t, "b")
		signer := b.token(t, apikeys.Create{Role: apikeys.Signer, Keysets: []string{"a"}})
		gateway := b.token(t, apikeys.Create{Role: apikeys.Gateway, Keysets: []string{"a"}})
		sign := func(name string) error {
			_, err := b.keysets(signer).Sign(t.Context(), connect.NewRequest(&rotundav1.SignRequest{Name: name, Claims: `{"sub":"x"}`}))
			return err
		}
		watch := func(name string) error {
			stream, err := b.keysets(gateway).Watch(t.Context(), connect.NewRequest(&rotundav1.WatchRequest{Name: name}))
			if err != nil {
				return err
			}
			defer stream.Close()
			stream.Receive()
			return stream.Err()
		}
		for name, try := range map[string]func(string) error{"sign": sign, "watch": watch} {
			if err := try("a"); err != nil {
				t.Errorf("%s a: %v", name, err)
			}
			there, absent, empty := try("b"), try("c"), try("")
			for _, err := range []error{there, absent, empty} {
				wantProblem(t, err, connect.CodePermissionDenied, "role")
			}
			if there.Error() != absent.Error() {
				t.Errorf("%s tells an existing keyset from one that is not there:\n%v\n%v", name, there, absent)
			}
		}
		for _, resource := range []string{"keysets/b", "keysets/?"} {
			if n := len(b.events(t, audit.Query{Outcome: audit.Denied, Resource: resource})); n != 2 {
				t.Errorf("%d denied attempts on %s in the trail, want 2", n, resource)
			}
		}
	})
}

// Promise: a flood of bad tokens neither fills the trail nor is missing in it,
// and blocks nobody but its own address.
func TestAuthenticationWhenFloodedWithBadTokens(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		b := newBed(t, db)
		const attacker, tries = "203.0.113.9", 80
		codes := map[string]int{}
		var last answer
		for range tries {
			a := b.post(t, "rk_bad", attacker, v1connect.TokenServiceWhoAmIProcedure, "{}")
			codes[a.code]++
			last = a
		}
		// The limit is a burst of 50, and the clock stands still.
		if codes["unauthenticated"] != 50 || codes["resource_exhausted"] != 30 {
			t.Errorf("answers %v", codes)
		}
		if last.status != http.StatusTooManyRequests || last.problem.GetReason() != "too_many_failures" || last.header.Get("Retry-After") != "1" {
			t.Errorf("beyond the limit: %d %v %v", last.status, last.problem, last.header)
		}
		if a := b.get(t, "rk_bad", attacker, "/metrics"); a.status != http.StatusTooManyRequests {
			t.Errorf("plain HTTP beyond the limit: %d", a.status)
		}
		for _, from := range []string{"203.0.113.8", home, "2001:db8::9"} {
			if a := b.post(t, b.admin, from, v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusOK {
				t.Errorf("%s is blocked too: %d %s", from, a.status, a.body)
			}
		}
		// The attempts beyond the limit were not judged, so they are no events.
		b.clock.Advance(time.Minute)
		if _, err := b.Denials.Pass(t.Context(), b.clock.Now()); err != nil {
			t.Fatal(err)
		}
		var counts []int64
		for _, e := range b.events(t, audit.Query{Address: attacker}) {
			counts = append(counts, e.Count)
		}
		if d := cmp.Diff([]int64{1, 49}, counts); d != "" {
			t.Errorf("events of the flood (-want +got):\n%s", d)
		}
		if a := b.post(t, b.admin, attacker, v1connect.TokenServiceWhoAmIProcedure, "{}"); a.status != http.StatusOK {
			t.Errorf("the address is still blocked a minute later: %d", a.status)
		}
	})
}

func TestTrailWhenPathIsAStrangers(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	for i := range 5 {
		b.post(t, "rk_bad", home, fmt.Sprintf("/no/such/%d%%0a<script>", i), "{}")
	}
	if err := b.Denials.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, e := range b.events(t, audit.Query{Outcome: audit.Denied}) {
		if e.Resource != "other" {
			t.Errorf("the trail holds what a stranger sent: %q", e.Resource)
		}
	}
}

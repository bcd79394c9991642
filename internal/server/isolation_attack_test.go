package server

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rotunda-dev/rotunda/apikeys"
	"github.com/rotunda-dev/rotunda/audit"
	"github.com/rotunda-dev/rotunda/internal/store"
	"github.com/rotunda-dev/rotunda/internal/store/storetest"
	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// Promise: a partner's lists hold its own things, whatever page is asked for.
func TestListWhenPartnerHasPageOfAnother(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		w := newTwo(t, db)
		keys, secrets := w.apiKeys(w.acme), w.requestSecrets(w.acme)
		for name, page := range map[string]string{
			"none": "", "theirs": w.theirs.page, "far": base64.RawURLEncoding.EncodeToString([]byte("9223372036854775807 " + w.theirs.id)),
			"text": "x' OR '1'='1", "number": base64.RawURLEncoding.EncodeToString([]byte("1")), "injected": base64.RawURLEncoding.EncodeToString([]byte("9223372036854775807 ' OR partner <> '")),
		} {
			k, kerr := keys.ListApiKeys(t.Context(), connect.NewRequest(&rotundav1.ListApiKeysRequest{PageToken: page, Ended: true}))
			s, serr := secrets.ListRequestSecrets(t.Context(), connect.NewRequest(&rotundav1.ListRequestSecretsRequest{PageToken: page, Ended: true}))
			if name == "text" || name == "number" {
				wantProblem(t, kerr, connect.CodeInvalidArgument, "bad_page_token")
				wantProblem(t, serr, connect.CodeInvalidArgument, "bad_page_token")
				continue
			}
			if err := errors.Join(kerr, serr); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for _, one := range k.Msg.GetKeys() {
				if one.GetPartner() != "acme" {
					t.Errorf("page %s has a key of %s", name, one.GetPartner())
				}
			}
			for _, one := range s.Msg.GetSecrets() {
				if one.GetPartner() != "acme" {
					t.Errorf("page %s has a secret of %s", name, one.GetPartner())
				}
			}
			if (name == "none" || name == "far") && (len(k.Msg.GetKeys()) != 2 || len(s.Msg.GetSecrets()) != 1) {
				t.Errorf("page %s has %d keys and %d secrets", name, len(k.Msg.GetKeys()), len(s.Msg.GetSecrets()))
			}
		}
		all, err := w.apiKeys(w.admin).ListApiKeys(t.Context(), connect.NewRequest(&rotundav1.ListApiKeysRequest{}))
		if err != nil || len(all.Msg.GetKeys()) != 4 {
			t.Errorf("an admin sees %d keys, %v", len(all.Msg.GetKeys()), err)
		}
	})
}

// Promise: an idempotency key is its caller's. Another's tells nothing and takes nothing.
func TestIdempotencyKeyWhenOfAnotherPartner(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		w := newTwo(t, db)
		create := func(token string) (string, error) {
			res, err := w.apiKeys(token).CreateApiKey(t.Context(), withKey(&rotundav1.CreateApiKeyRequest{Name: "same"}, "one-key"))
			if err != nil {
				return "", err
			}
			return res.Msg.GetKey().GetId(), nil
		}
		theirs, err := create(w.globex)
		if err != nil {
			t.Fatal(err)
		}
		mine, err := create(w.acme)
		if err != nil || mine == theirs {
			t.Fatalf("made %q, %v", mine, err)
		}
		_, err = create(w.acme)
		wantProblem(t, err, connect.CodeAlreadyExists, "value_shown_once")
		if !strings.Contains(err.Error(), mine) || strings.Contains(err.Error(), theirs) {
			t.Errorf("a repetition names %v, want %s", err, mine)
		}
		roll := func(token, id string) error {
			return errOf(w.apiKeys(token).RollApiKey(t.Context(), withKey(&rotundav1.RollApiKeyRequest{Id: id}, "roll-key")))
		}
		if err := roll(w.globex, theirs); err != nil {
			t.Fatal(err)
		}
		wantProblem(t, roll(w.acme, theirs), connect.CodeNotFound, "api_key_not_found")
		if err := roll(w.acme, mine); err != nil {
			t.Errorf("a roll that failed has spent its key: %v", err)
		}
		wantProblem(t, roll(w.acme, mine), connect.CodeAlreadyExists, "value_shown_once")
	})
}

// Promise: no spelling of another's name, and no field that is not the request's, gets
// a partner further.
func TestPartnerWhenRequestIsForged(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		w := newTwo(t, db)
		before := w.contents(t)
		get := v1connect.ApiKeyServiceGetApiKeyProcedure
		for _, name := range []string{
			"globex", "GLOBEX", "Globex", " globex", "globex ", "globex/", "/globex", "../globex", "acme/../globex", "globex\t", "globex\u200b", "globe\u0445", "ｇlobex", "globex%00", "globex\x00", "acme,globex",
			"acme\x00globex", "acme\n", "ACME", "acme ", "*", "%", "_", "' OR '1'='1", strings.Repeat("g", 64), strings.Repeat("g", 100<<10), "null", "0",
		} {
			raw, err := json.Marshal(map[string]any{"partner": name, "id": w.theirs.id})
			if err != nil {
				t.Fatal(err)
			}
			a := w.post(t, w.acme, home, get, string(raw))
			if a.code != "not_found" || a.problem.GetReason() != "partner_not_found" || a.problem.GetField() != "partner" || len(a.message) > 1000 {
				t.Errorf("partner %.40q: %d %.300s", name, a.status, a.body)
			}
		}
		for _, c := range []struct{ procedure, body, reason string }{
			{v1connect.ApiKeyServiceCreateApiKeyProcedure, `{"name":"x","id":"` + w.theirs.id + `"}`, ""},
			{v1connect.ApiKeyServiceCreateApiKeyProcedure, `{"name":"x","state":"API_KEY_STATE_ACTIVE"}`, ""},
			{v1connect.ApiKeyServiceCreateApiKeyProcedure, `{"name":"x","key":{"partner":"globex"}}`, ""},
			{v1connect.ApiKeyServiceCreateApiKeyProcedure, `{"name":"x","partner":"acme","partner":"globex"}`, ""},
			{v1connect.ApiKeyServiceCreateApiKeyProcedure, `{"name":"x","Partner":"globex"}`, ""},
			{v1connect.ApiKeyServiceCreateApiKeyProcedure, `{"name":"x","version":"9"}`, ""},
			{v1connect.ApiKeyServiceUpdateApiKeyProcedure, `{"id":"` + w.mine.id + `","version":"1","name":"x","expiresAt":"2099-01-01T00:00:00Z"}`, ""},
			{v1connect.ApiKeyServiceUpdateApiKeyProcedure, `{"id":"` + w.mine.id + `","version":"1","name":"x","environment":"test"}`, ""},
			{v1connect.ApiKeyServiceCreateApiKeyProcedure, `{"name":"x","scopes":["admin:all"]}`, "scope_not_allowed"},
			{v1connect.ApiKeyServiceCreateApiKeyProcedure, `{"name":"x","class":"KEY_CLASS_PUBLISHABLE","scopes":["orders:write"]}`, "scope_not_allowed"},
			{v1connect.ApiKeyServiceUpdateApiKeyProcedure, `{"id":"` + w.mine.id + `","version":"1","name":"x","scopes":["orders:read","admin:all"]}`, "scope_not_allowed"},
			{v1connect.RequestSecretServiceCreateRequestSecretProcedure, `{"name":"x","scopes":["admin:all"]}`, "scope_not_allowed"},
		} {
			a := w.post(t, w.acme, home, c.procedure, c.body)
			if a.code != "invalid_argument" || c.reason != "" && a.problem.GetReason() != c.reason {
				t.Errorf("%s: %d %s", c.body, a.status, a.body)
			}
		}
		for table, rows := range w.contents(t) {
			if table == "event_queue" || table == "events" { // the denied attempts
				continue
			}
			if d := cmp.Diff(before[table], rows); d != "" {
				t.Errorf("%s has changed:\n%.1000s", table, d)
			}
		}
		// Others than partners need not say whose a key is: in an emergency its id is enough.
		// What they do say is held to.
		for _, token := range []string{w.admin, w.token(t, apikeys.Create{Role: apikeys.Operator}), w.token(t, apikeys.Create{Role: apikeys.Auditor})} {
			client := w.apiKeys(token)
			for _, partner := range []string{"", "acme"} {
				if res, err := client.GetApiKey(t.Context(), connect.NewRequest(&rotundav1.GetApiKeyRequest{Partner: partner, Id: w.mine.id})); err != nil || res.Msg.GetKey().GetPartner() != "acme" {
					t.Errorf("the key of partner %q: %v", partner, err)
				}
			}
			wantProblem(t, errOf(client.GetApiKey(t.Context(), connect.NewRequest(&rotundav1.GetApiKeyRequest{Partner: "acme", Id: w.theirs.id}))), connect.CodeNotFound, "api_key_not_found")
		}
		// A name is one partner's, and so is what is made.
		wantProblem(t, errOf(w.apiKeys(w.admin).CreateApiKey(t.Context(), connect.NewRequest(&rotundav1.CreateApiKeyRequest{Name: "new"}))), connect.CodeInvalidArgument, "partner_missing")
	})
}

// Promise: an explanation of a signature by another's secret is that of a signature by
// none: neither the signature nor the policy of the other is looked at.
func TestExplanationWhenSecretIsOfAnother(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		w := newTwo(t, db)
		explain := func(token, id, secret, authority string) answer {
			t.Helper()
			tree := signedBy(t, id, secret, "nonce-of-an-explanation", epoch)
			tree["explain"], tree["authority"], tree["signerBase"] = true, authority, "\"@method\": PUT\n"
			raw, err := json.Marshal(tree)
			if err != nil {
				t.Fatal(err)
			}
			return w.post(t, token, home, v1connect.VerificationServiceVerifyRequestProcedure, string(raw))
		}
		for _, authority := range []string{"api.test", "elsewhere.test"} { // a good signature, and a bad one
			never := explain(w.acme, w.never.secretID, w.never.secret, authority)
			for name, secret := range map[string]string{"their secret": w.theirs.secret, "another": w.mine.secret} {
				theirs := explain(w.acme, w.theirs.secretID, secret, authority)
				if !strings.Contains(theirs.body, "VERIFY_REASON_UNKNOWN") {
					t.Errorf("%s by %s: %s", authority, name, theirs.body)
				}
				if d := cmp.Diff(normal(t, never, w.never.asked()...), normal(t, theirs, w.theirs.asked()...)); d != "" {
					t.Errorf("%s by %s (-never +other):\n%s", authority, name, d)
				}
			}
		}
		if a := explain(w.globex, w.theirs.secretID, w.theirs.secret, "elsewhere.test"); !strings.Contains(a.body, "VERIFY_REASON_SIGNATURE") {
			t.Errorf("by its own partner: %s", a.body)
		}
	})
}

// Promise: a partner's token is no gateway's: by the protocols of gateways it learns
// nothing about a key, its own included.
func TestGatewayProtocolsWhenAskedByPartner(t *testing.T) {
	w := newTwo(t, storetest.SQLite(t))
	for name, value := range map[string]string{"their key": w.theirs.value, "its own": w.mine.value, "none": "nothing"} {
		a := w.post(t, w.acme, home, extAuthzProcedure, fmt.Sprintf(`{"attributes":{"request":{"http":{"method":"GET","path":"/","host":"api.test","headers":{"authorization":"Bearer %s"}}}}}`, value))
		if a.code != "permission_denied" || a.problem.GetReason() != "role" {
			t.Errorf("ext_authz with %s: %d %s", name, a.status, a.body)
		}
		f := w.get(t, "", home, forwardAuthPath, gatewayToken, w.acme, "Authorization", "Bearer "+value, "X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/", "X-Forwarded-Host", "api.test", "X-Forwarded-Proto", "https")
		if f.status != http.StatusInternalServerError || f.header.Get("X-Rotunda-Error") != "gateway_misconfigured" || f.header.Get("X-Rotunda-Partner") != "" {
			t.Errorf("forward-auth with %s: %d %v", name, f.status, f.header)
		}
	}
	gateway := w.token(t, apikeys.Create{Role: apikeys.Gateway})
	if a := w.get(t, "", home, forwardAuthPath, gatewayToken, gateway, "Authorization", "Bearer "+w.theirs.value, "X-Forwarded-Method", "GET", "X-Forwarded-Uri", "/", "X-Forwarded-Host", "api.test", "X-Forwarded-Proto", "https"); a.status != http.StatusOK || a.header.Get("X-Rotunda-Partner") != "globex" {
		t.Errorf("a gateway asks the same: %d %v", a.status, a.header)
	}
}

// Promise: as many keys as may be imported at once fit into a request, and what each
// became is told.
func TestImportApiKeysWhenMany(t *testing.T) {
	b := newBed(t, storetest.SQLite(t))
	b.partner(t, "acme")
	req := &rotundav1.ImportApiKeysRequest{Partner: "acme", Form: rotundav1.ImportForm_IMPORT_FORM_SHA256}
	for i := range 500 {
		sum := sha256.Sum256([]byte(fmt.Sprint("key ", i)))
		req.Items = append(req.Items, &rotundav1.ImportItem{
			Value: hex.EncodeToString(sum[:]), Name: fmt.Sprint("imported ", i), Scopes: []string{"orders:read"}, Cidrs: []string{"203.0.113.0/24", "2001:db8::/32"},
			Metadata: map[string]string{"customer": strings.Repeat("x", 100), "note": strings.Repeat("y", 100)}, RateLimit: &rotundav1.RateLimit{Quota: 10, Window: durationpb.New(time.Second)},
		})
	}
	req.Items[7].Scopes = []string{"admin:all"}
	req.Items[8].Value = "no hash"
	req.Items[9].Value = req.Items[6].Value
	client := v1connect.NewApiKeyServiceClient(as(b.admin, home), b.http.URL, connect.WithProtoJSON())
	res, err := client.ImportApiKeys(t.Context(), connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Msg.GetResults()) != 500 {
		t.Fatalf("%d results", len(res.Msg.GetResults()))
	}
	for i, r := range res.Msg.GetResults() {
		want := map[int]string{7: "scope_not_allowed", 8: "bad_hash", 9: "exists"}[i]
		if r.GetReason() != want || (want == "") != (r.GetMessage() == "") || want == "" && r.GetId() == "" || i == 9 && r.GetId() != res.Msg.GetResults()[6].GetId() {
			t.Errorf("item %d: %v", i, r)
		}
	}
	req.Items[3].RateLimit.Window = durationpb.New(-1)
	_, err = client.ImportApiKeys(t.Context(), connect.NewRequest(req))
	if p := wantProblem(t, err, connect.CodeInvalidArgument, "duration_range"); p.GetField() != "items[3].rate_limit.window" {
		t.Errorf("field %q", p.GetField())
	}
}

// Promise: a suspended partner's tokens, keys and secrets end with the answer to
// SuspendPartner, and nobody else's.
func TestTokenWhenPartnerIsSuspended(t *testing.T) {
	storetest.Run(t, func(t *testing.T, db *store.DB) {
		w := newTwo(t, db)
		beside := newBedBeside(t, w.bed, func(*Config) {})
		partners := v1connect.NewPartnerServiceClient(as(w.admin, home), w.http.URL)
		who := func(b *bed, token string) int {
			return b.post(t, token, home, v1connect.TokenServiceWhoAmIProcedure, "{}").status
		}
		verified := func(a aim) rotundav1.VerifyReason {
			res, err := w.verification(w.admin).VerifyApiKey(t.Context(), connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: a.value}))
			if err != nil {
				t.Fatal(err)
			}
			return res.Msg.GetReason()
		}
		if who(w.bed, w.acme) != http.StatusOK || who(beside, w.acme) != http.StatusOK || verified(w.mine) != rotundav1.VerifyReason_VERIFY_REASON_OK {
			t.Fatal("not accepted before")
		}
		if _, err := partners.SuspendPartner(t.Context(), connect.NewRequest(&rotundav1.SuspendPartnerRequest{Partner: "acme", Reason: "unpaid"})); err != nil {
			t.Fatal(err)
		}
		if got := who(w.bed, w.acme); got != http.StatusUnauthorized {
			t.Errorf("its token: %d", got)
		}
		if verified(w.mine) != rotundav1.VerifyReason_VERIFY_REASON_SUSPENDED {
			t.Errorf("its key: %v", verified(w.mine))
		}
		if who(w.bed, w.globex) != http.StatusOK || verified(w.theirs) != rotundav1.VerifyReason_VERIFY_REASON_OK {
			t.Error("the other partner is suspended too")
		}
		if events := w.events(t, audit.Query{Outcome: audit.Denied}); len(events) != 1 || events[0].Reason != "suspended" || events[0].Action != "authenticate" {
			t.Errorf("the trail has %+v", events)
		}
		if _, err := partners.ResumePartner(t.Context(), connect.NewRequest(&rotundav1.ResumePartnerRequest{Partner: "acme"})); err != nil {
			t.Fatal(err)
		}
		if who(w.bed, w.acme) != http.StatusOK || verified(w.mine) != rotundav1.VerifyReason_VERIFY_REASON_OK {
			t.Error("not accepted after it was resumed")
		}
	})
}

package server

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	rotundav1 "github.com/rotunda-dev/rotunda/proto/rotunda/v1"
	v1connect "github.com/rotunda-dev/rotunda/proto/rotunda/v1/rotundav1connect"
)

// partnerSecrets makes, rolls, imports, verifies and ends keys and request secrets of a
// partner, well and badly.
func partnerSecrets(t testing.TB, b *bed, hc *http.Client, opts connect.ClientOption, secrets map[string]string, shown map[string]int) {
	t.Helper()
	ctx := t.Context()
	partners := v1connect.NewPartnerServiceClient(hc, b.http.URL, opts)
	keys := v1connect.NewApiKeyServiceClient(hc, b.http.URL, opts)
	requests := v1connect.NewRequestSecretServiceClient(hc, b.http.URL, opts)
	verification := v1connect.NewVerificationServiceClient(hc, b.http.URL, opts)
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
	once := func(name, value string) {
		t.Helper()
		if len(value) < 40 {
			t.Fatalf("%s has no value", name)
		}
		secrets[name], shown[name] = value, 1
		if strings.HasPrefix(value, "rk_") {
			secrets["secret of "+name], shown["secret of "+name] = secretOf(value), 1
			return
		}
		secrets["body of "+name], shown["body of "+name] = strings.TrimPrefix(value, "whsec_"), 1
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(value, "whsec_"))
		must("decode", err)
		for form, s := range forms(raw) {
			secrets[name+" "+form], shown[name+" "+form] = s, strings.Count(value, s) // the value is base64
		}
	}
	_, err := partners.CreatePartner(ctx, withKey(&rotundav1.CreatePartnerRequest{Name: "hushed", Scopes: []string{"orders:read"}}, "p"))
	must("create partner", err)
	_, err = partners.CreatePartner(ctx, connect.NewRequest(&rotundav1.CreatePartnerRequest{Name: "hushed"}))
	refused("a second partner of the name", err)
	token, err := v1connect.NewTokenServiceClient(hc, b.http.URL, opts).CreateToken(ctx, connect.NewRequest(&rotundav1.CreateTokenRequest{Name: "own", Role: rotundav1.Role_ROLE_PARTNER, Partner: "hushed"}))
	must("create a partner's token", err)
	once("partner's token", token.Msg.GetValue())

	made, err := keys.CreateApiKey(ctx, withKey(&rotundav1.CreateApiKeyRequest{Partner: "hushed", Name: "ci", Scopes: []string{"orders:read"}}, "k"))
	must("create key", err)
	once("API key", made.Msg.GetValue())
	_, err = keys.CreateApiKey(ctx, withKey(&rotundav1.CreateApiKeyRequest{Partner: "hushed", Name: "ci", Scopes: []string{"orders:read"}}, "k"))
	refused("a key shown twice", err)
	rolled, err := keys.RollApiKey(ctx, withKey(&rotundav1.RollApiKeyRequest{Partner: "hushed", Id: made.Msg.GetKey().GetId()}, "k"))
	must("roll key", err)
	once("rolled API key", rolled.Msg.GetValue())
	_, err = keys.RollApiKey(ctx, withKey(&rotundav1.RollApiKeyRequest{Partner: "hushed", Id: made.Msg.GetKey().GetId()}, "k"))
	refused("a rolled key shown twice", err)
	brought, weak := "legacy-"+rand.Text()+rand.Text(), "hunter2hunter2hunter2"
	secrets["imported key"], secrets["weak key"] = brought, weak
	for range 2 {
		_, err = keys.ImportApiKeys(ctx, connect.NewRequest(&rotundav1.ImportApiKeysRequest{Partner: "hushed", Form: rotundav1.ImportForm_IMPORT_FORM_RAW, Items: []*rotundav1.ImportItem{
			{Value: brought, Name: "old"}, {Value: weak, Name: "weak"}, {Value: brought + " ", Name: "with a space"}, {Value: brought, Name: "again"}, {Value: brought + "x", Scopes: []string{"none"}},
		}}))
		must("import", err)
	}
	_, err = keys.ImportApiKeys(ctx, connect.NewRequest(&rotundav1.ImportApiKeysRequest{Partner: "hushed", Form: rotundav1.ImportForm_IMPORT_FORM_SHA256, Items: []*rotundav1.ImportItem{{Value: brought, Name: "no hash"}}}))
	must("import what is no hash", err)
	for what, value := range map[string]string{
		"good": made.Msg.GetValue(), "damaged": made.Msg.GetValue() + "x", "cut": made.Msg.GetValue()[:60], "imported": brought, "weak": weak, "other": "Bearer " + brought,
		"shuffled": strings.Replace(made.Msg.GetValue(), made.Msg.GetKey().GetId(), rolled.Msg.GetKey().GetId(), 1),
	} {
		_, err = verification.VerifyApiKeys(ctx, connect.NewRequest(&rotundav1.VerifyApiKeysRequest{Requests: []*rotundav1.VerifyApiKeyRequest{{Key: value, WantHeaders: true}, {Key: value, Scopes: []string{"no"}}}}))
		must("verify "+what, err)
	}
	_, err = verification.VerifyApiKey(ctx, connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: brought, Cost: -1}))
	refused("a negative cost", err)
	_, err = verification.VerifyApiKey(ctx, connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: strings.Repeat(brought, 30)}))
	refused("a key that is too long", err)

	secret, err := requests.CreateRequestSecret(ctx, withKey(&rotundav1.CreateRequestSecretRequest{Partner: "hushed", Name: "orders"}, "k"))
	must("create request secret", err)
	once("request secret", secret.Msg.GetValue())
	_, err = requests.CreateRequestSecret(ctx, withKey(&rotundav1.CreateRequestSecretRequest{Partner: "hushed", Name: "orders"}, "k"))
	refused("a secret shown twice", err)
	_, err = requests.CreateRequestSecret(ctx, connect.NewRequest(&rotundav1.CreateRequestSecretRequest{Partner: "hushed", Name: "orders"}))
	refused("a second secret of the name", err)
	next, err := requests.RollRequestSecret(ctx, withKey(&rotundav1.RollRequestSecretRequest{Partner: "hushed", Name: "orders"}, "k"))
	must("roll request secret", err)
	once("rolled request secret", next.Msg.GetValue())
	private, err := x509.MarshalPKCS8PrivateKey(newP256(t))
	must("encode", err)
	wrong := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	for i, line := range strings.Split(strings.TrimSpace(wrong), "\n") {
		if !strings.HasPrefix(line, "-----") {
			secrets["private key of a partner, line "+string(rune('0'+i))] = line
		}
	}
	_, err = requests.CreateRequestSecret(ctx, connect.NewRequest(&rotundav1.CreateRequestSecretRequest{Partner: "hushed", Name: "public", PublicKey: wrong}))
	refused("a private key for a public one", err)
	for _, explain := range []bool{true, false, false} {
		tree := signedBy(t, secret.Msg.GetSecret().GetId(), secret.Msg.GetValue(), "nonce-of-the-secrets", b.clock.Now())
		tree["explain"] = explain
		raw, err := json.Marshal(tree)
		must("encode", err)
		a := b.post(t, b.admin, home, v1connect.VerificationServiceVerifyRequestProcedure, string(raw))
		if a.status != http.StatusOK {
			t.Fatalf("verify a request: %s", a.body)
		}
		if strings.Contains(a.body, secret.Msg.GetValue()) {
			t.Error("a verification shows the secret")
		}
	}
	_, err = keys.ListApiKeys(ctx, connect.NewRequest(&rotundav1.ListApiKeysRequest{Ended: true}))
	must("list keys", err)
	_, err = requests.GetRequestSecret(ctx, connect.NewRequest(&rotundav1.GetRequestSecretRequest{Partner: "hushed", Name: "orders"}))
	must("get request secret", err)
	_, err = requests.RevokeRequestSecret(ctx, connect.NewRequest(&rotundav1.RevokeRequestSecretRequest{Partner: "hushed", Id: secret.Msg.GetSecret().GetId()}))
	must("revoke request secret", err)
	peppers := v1connect.NewPepperServiceClient(hc, b.http.URL, opts)
	_, err = peppers.RotatePepper(ctx, connect.NewRequest(&rotundav1.RotatePepperRequest{Reason: "test"}))
	must("rotate the pepper", err)
	_, err = peppers.ListStragglers(ctx, connect.NewRequest(&rotundav1.ListStragglersRequest{Generation: 1}))
	must("list stragglers", err)
	_, err = verification.VerifyApiKey(ctx, connect.NewRequest(&rotundav1.VerifyApiKeyRequest{Key: made.Msg.GetValue()}))
	must("verify under the new pepper", err)
	if _, err := b.Verifier.Pass(ctx, b.clock.Now()); err != nil {
		t.Fatal(err)
	}
}

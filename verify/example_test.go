package verify_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"

	"github.com/rotunda-dev/rotunda/verify"
	"github.com/rotunda-dev/rotunda/verify/httpsig"
)

// A secret that everybody may know.
const exampleSecret = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw=="

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// keyring accepts what a partner signs with the secret.
func keyring() *verify.Keyring {
	key, err := verify.SecretKey(exampleSecret)
	check(err)
	k, err := verify.NewKeyring(verify.KeyringConfig{
		Keys:   []verify.LocalKey{{ID: "sec_1", Key: key, Partner: "acme", Scopes: []string{"orders:read"}}},
		Nonces: verify.NewNonces(verify.NoncesConfig{Max: 1000}),
	})
	check(err)
	return k
}

// A caller signs all that its client sends.
func ExampleSigner() {
	ring := keyring()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, err := ring.VerifyRequest(r, verify.RequestOptions{})
		check(err)
		body, err := io.ReadAll(r.Body)
		check(err)
		fmt.Fprintf(w, "%s, partner %s, %d bytes", d.Reason, d.Partner, len(body))
	}))
	defer server.Close()

	signer, err := verify.NewSigner(verify.SignerConfig{KeyID: "sec_1", Secret: exampleSecret})
	check(err)
	client := &http.Client{Transport: signer}
	res, err := client.Post(server.URL+"/orders?page=2", "application/json", strings.NewReader(`{"item":7}`))
	check(err)
	defer res.Body.Close()
	_, err = io.Copy(os.Stdout, res.Body)
	check(err)
	// Output: ok, partner acme, 10 bytes
}

// An API behind a guard. In place of the keyring a Client asks a Rotunda server, which
// also knows API keys, revocations and limits.
func ExampleGuard_Middleware() {
	guard, err := verify.NewGuard(verify.Options{Keyring: keyring(), StripCredential: true})
	check(err)
	mux := http.NewServeMux()
	mux.Handle("GET /orders", guard.Middleware("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, _ := verify.From(r.Context())
		fmt.Fprintf(w, "the orders of %s\n", id.Partner)
	})))
	mux.Handle("DELETE /orders", guard.Middleware("orders:delete")(http.NotFoundHandler()))
	server := httptest.NewServer(mux)
	defer server.Close()

	signer, err := verify.NewSigner(verify.SignerConfig{KeyID: "sec_1", Secret: exampleSecret})
	check(err)
	for _, c := range []struct {
		client *http.Client
		method string
	}{
		{&http.Client{Transport: signer}, http.MethodGet},
		{&http.Client{Transport: signer}, http.MethodDelete},
		{http.DefaultClient, http.MethodGet},
	} {
		req, err := http.NewRequestWithContext(context.Background(), c.method, server.URL+"/orders", http.NoBody)
		check(err)
		res, err := c.client.Do(req)
		check(err)
		body, err := io.ReadAll(res.Body)
		check(err)
		res.Body.Close()
		fmt.Print(res.StatusCode, " ", string(body))
	}
	// Output:
	// 200 the orders of acme
	// 403 {"error":"forbidden"}
	// 401 {"error":"unauthorized"}
}

// Tokens of an issuer whose keys are at a URL.
func ExampleTokens_Verify() {
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // an example's key
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		check(json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: private.Public(), KeyID: "k1", Algorithm: "EdDSA"}}}))
	}))
	defer server.Close()

	tokens, err := verify.NewTokens(verify.TokensConfig{
		Issuer:    "https://auth.example.com",
		JWKSURL:   server.URL + "/keysets/payments/jwks.json",
		Audiences: []string{"orders"},
	})
	check(err)
	for _, audience := range []string{"orders", "ledger"} {
		token := sign(private, `{"iss":"https://auth.example.com","aud":"`+audience+`","sub":"user-7","exp":9999999999}`)
		claims, err := tokens.Verify(context.Background(), token)
		switch denied, ok := errors.AsType[*verify.Denied](err); {
		case ok:
			fmt.Println("denied:", denied.Reason)
		case errors.Is(err, verify.ErrUnavailable):
			fmt.Println("nobody knows: answer 503")
		default:
			fmt.Println("accepted:", claims.Subject)
		}
	}
	// Output:
	// accepted: user-7
	// denied: audience
}

func sign(private ed25519.PrivateKey, claims string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: jose.JSONWebKey{Key: private, KeyID: "k1"}}, nil)
	check(err)
	jws, err := signer.Sign([]byte(claims))
	check(err)
	token, err := jws.CompactSerialize()
	check(err)
	return token
}

// A partner's public key that this service holds itself.
func ExampleKeyring_VerifyRequest() {
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)) // an example's key
	public, err := httpsig.NewPublicKey(private.Public())
	check(err)
	ring, err := verify.NewKeyring(verify.KeyringConfig{
		Keys:   []verify.LocalKey{{ID: "ledger-1", Key: public, Partner: "ledger"}},
		Nonces: verify.NewNonces(verify.NoncesConfig{Max: 1000}),
	})
	check(err)

	signer, err := verify.NewSigner(verify.SignerConfig{KeyID: "ledger-1", PrivateKey: private})
	check(err)
	out, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://api.example/balance", http.NoBody)
	check(err)
	in, err := signer.Sign(out)
	check(err)
	for range 2 {
		d, err := ring.VerifyRequest(in, verify.RequestOptions{Scheme: "https", Authority: "api.example"})
		check(err)
		fmt.Println(d.Reason, d.Partner)
	}
	// Output:
	// ok ledger
	// replay ledger
}

// A Connect service whose methods need scopes.
func ExampleGuard_Interceptor() {
	client, err := verify.NewClient(verify.ClientConfig{URL: "https://rotunda.example", Token: "rk_gateway_…"})
	check(err)
	guard, err := verify.NewGuard(verify.Options{Client: client})
	check(err)
	needs := map[string][]string{"/orders.v1.OrderService/ListOrders": {"orders:read"}}
	option := connect.WithInterceptors(guard.Interceptor(func(s connect.Spec) []string { return needs[s.Procedure] }))
	_ = option // for the handler of the service
	fmt.Println(needs)
	// Output: map[/orders.v1.OrderService/ListOrders:[orders:read]]
}

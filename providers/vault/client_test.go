package vault_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/bedtest"
	"github.com/rotunda-dev/rotunda/providers/vault"
)

func newClient(t testing.TB, c providers.Config) *vault.Client {
	t.Helper()
	client, err := vault.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func wantKind(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("%s: %v, want %v", what, err, kind)
	}
}

// asked counts the requests to a path in the audit log.
func asked(t testing.TB, v *bedtest.VaultServer, path string) int {
	t.Helper()
	n := 0
	for line := range bytes.Lines(v.AuditLog(t)) {
		var e struct {
			Type    string `json:"type"`
			Request struct {
				Path string `json:"path"`
			} `json:"request"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		if e.Type == "response" && e.Request.Path == path {
			n++
		}
	}
	return n
}

// secretTest is something to read with a policy that allows nothing else.
func secretTest(t testing.TB, v *bedtest.VaultServer) (path, policy string) {
	t.Helper()
	mount := newKV(t, v)
	v.Write(t, mount+"/data/a", map[string]any{"data": map[string]string{"k": "v"}})
	return mount + "/data/a", v.NewPolicy(t, kvPolicy(mount))
}

func appRoleLogin(t testing.TB, v *bedtest.VaultServer, policy string, ttl, longest string) (mount string, login providers.Fields) {
	t.Helper()
	mount = v.Auth(t, "approle", "")
	at := "auth/" + mount + "/role/rotunda"
	v.Write(t, at, map[string]any{"token_policies": policy, "token_ttl": ttl, "token_max_ttl": longest})
	return mount, providers.Fields{}.
		Set("role_id", v.Read(t, at+"/role-id")["role_id"].(string)).
		Set("secret_id", v.Write(t, at+"/secret-id", nil)["secret_id"].(string)+"\n")
}

func TestLoginWithAppRole(t *testing.T) {
	v := bedtest.Vault(t)
	path, policy := secretTest(t, v)
	mount, login := appRoleLogin(t, v, policy, "1h", "2h")
	c := config(t, v, vault.Settings(), "", "auth", "approle", "auth_mount", mount)
	c.Login = login
	client := newClient(t, c)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := client.Read(t.Context(), path, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := asked(t, v, "auth/"+mount+"/login"); n != 1 {
		t.Errorf("20 calls at once made %d logins, want 1", n)
	}

	c.Login = login.Set("secret_id", "not-the-secret-id-of-anyone")
	err := newClient(t, c).Read(t.Context(), path, nil)
	wantKind(t, "log in with a wrong secret id", err, fault.ErrDenied)
	if providers.OutcomeOf(err) != providers.Refused || strings.Contains(err.Error(), "not-the-secret") {
		t.Errorf("a refused login is %s: %v", providers.OutcomeOf(err), err)
	}
}

// The method jwt at the path kubernetes: the same request that Vault's method of that
// name takes. The file changes, as the kubelet's does.
func TestLoginWithKubernetes(t *testing.T) {
	v := bedtest.Vault(t)
	path, policy := secretTest(t, v)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	v.Auth(t, "jwt", "kubernetes")
	v.Write(t, "auth/kubernetes/config", map[string]any{"jwt_validation_pubkeys": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))})
	v.Write(t, "auth/kubernetes/role/rotunda", map[string]any{
		"role_type": "jwt", "bound_audiences": "vault", "user_claim": "sub", "bound_subject": "system:serviceaccount:security:rotunda",
		"token_policies": policy, "token_ttl": "1h",
	})
	file := filepath.Join(t.TempDir(), "token")
	write := func(subject string) {
		t.Helper()
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		token, err := jwt.Signed(signer).Claims(jwt.Claims{Subject: subject, Audience: jwt.Audience{"vault"}, Expiry: jwt.NewNumericDate(now.Add(time.Hour)), IssuedAt: jwt.NewNumericDate(now)}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	client := newClient(t, config(t, v, vault.Settings(), "", "auth", "kubernetes", "auth_role", "rotunda", "jwt_path", file))
	wantKind(t, "log in without the file", client.Read(t.Context(), path, nil), fault.ErrUnavailable)
	write("system:serviceaccount:security:somebody-else")
	wantKind(t, "log in as another service account", client.Read(t.Context(), path, nil), fault.ErrDenied)
	write("system:serviceaccount:security:rotunda")
	if err := client.Read(t.Context(), path, nil); err != nil {
		t.Errorf("after the file was replaced: %v", err)
	}
}

func TestLoginWithCertificate(t *testing.T) {
	v := bedtest.VaultTLS(t)
	path, policy := secretTest(t, v)
	certPEM, keyPEM := newCertificate(t)
	v.Auth(t, "cert", "cert")
	v.Write(t, "auth/cert/certs/rotunda", map[string]any{"certificate": certPEM, "token_policies": policy, "token_ttl": "1h"})
	c := config(t, v, vault.Settings(), "", "auth", "cert", "auth_role", "rotunda")
	c.Login = providers.Fields{}.Set("client_cert", certPEM).Set("client_key", keyPEM)
	if err := newClient(t, c).Read(t.Context(), path, nil); err != nil {
		t.Error(err)
	}
	otherCert, otherKey := newCertificate(t)
	c.Login = providers.Fields{}.Set("client_cert", otherCert).Set("client_key", otherKey)
	wantKind(t, "log in with another certificate", newClient(t, c).Read(t.Context(), path, nil), fault.ErrDenied)

	c.Login = providers.Fields{}.Set("client_cert", otherCert).Set("client_key", keyPEM)
	_, err := vault.NewClient(c)
	wantKind(t, "a certificate with the key of another", err, fault.ErrInvalid)
}

func newCertificate(t testing.TB) (certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "rotunda"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}

func TestTLSWhenCertificateIsNotTrusted(t *testing.T) {
	v := bedtest.VaultTLS(t)
	c := config(t, v, vault.Settings(), v.Token)
	if err := newClient(t, c).Read(t.Context(), "sys/mounts/secret", nil); err != nil {
		t.Fatal(err)
	}
	delete(c.Settings, "ca_cert")
	t.Setenv("VAULT_SKIP_VERIFY", "true")
	err := newClient(t, c).Read(t.Context(), "sys/mounts/secret", nil)
	wantKind(t, "Vault with a certificate of an authority that nobody knows", err, fault.ErrUnavailable)
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok {
		t.Errorf("%v: want an error of verification", err)
	}
}

// clock is one that the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func TestTokenWhenTwoThirdsAreOver(t *testing.T) {
	v := bedtest.NewVault(t)
	path, policy := secretTest(t, v)
	mount, login := appRoleLogin(t, v, policy, "90m", "3h")
	clock := &clock{at: time.Now()}
	c := config(t, v, vault.Settings(), "", "auth", "approle", "auth_mount", mount)
	c.Login, c.Now = login, clock.now
	client := newClient(t, c)
	for _, step := range []struct {
		pass             time.Duration
		logins, renewals int
	}{
		{0, 1, 0},
		{59 * time.Minute, 1, 0},
		{2 * time.Minute, 1, 1}, // 61 of 90 minutes
		{30 * time.Minute, 1, 1},
		{31 * time.Minute, 1, 2},
		{91 * time.Minute, 2, 2}, // ended, as far as its clock says
	} {
		clock.advance(step.pass)
		if err := client.Read(t.Context(), path, nil); err != nil {
			t.Fatal(err)
		}
		logins, renewals := asked(t, v, "auth/"+mount+"/login"), asked(t, v, "auth/token/renew-self")
		if logins != step.logins || renewals != step.renewals {
			t.Fatalf("after %s more: %d logins and %d renewals, want %d and %d", step.pass, logins, renewals, step.logins, step.renewals)
		}
	}
}

func TestTokenWhenItEndsBeforeItsTime(t *testing.T) {
	v := bedtest.NewVault(t)
	path, policy := secretTest(t, v)
	mount, login := appRoleLogin(t, v, policy, "1s", "2s")
	c := config(t, v, vault.Settings(), "", "auth", "approle", "auth_mount", mount)
	still := &clock{at: time.Now()}
	c.Login, c.Now = login, still.now // its clock stands: it believes in the token
	client := newClient(t, c)
	if err := client.Read(t.Context(), path, nil); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		var all struct {
			Data struct {
				Keys []string `json:"keys"`
			} `json:"data"`
		}
		if err := v.Ask("LIST", "auth/token/accessors", nil, &all); err != nil {
			t.Fatal(err)
		}
		if len(all.Data.Keys) == 1 { // the root token
			break
		}
		if time.Now().After(end) {
			t.Fatal("the token does not end")
		}
	}
	if err := client.Read(t.Context(), path, nil); err != nil {
		t.Fatalf("after the token ended: %v", err)
	}
	if n := asked(t, v, "auth/"+mount+"/login"); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}

	// A token that was given can't be replaced.
	given := newClient(t, config(t, v, vault.Settings(), "hvs.ended-long-ago-0123456789"))
	err := given.Read(t.Context(), path, nil)
	wantKind(t, "a token that has ended", err, fault.ErrDenied)
	if strings.Contains(err.Error(), "ended-long-ago") {
		t.Errorf("the token is in the error: %v", err)
	}
}

// A permission that is missing is not asked for again and again by logins.
func TestDeniedDoesNotLogInEachTime(t *testing.T) {
	v := bedtest.Vault(t)
	mount, login := appRoleLogin(t, v, "default", "1h", "2h")
	c := config(t, v, vault.Settings(), "", "auth", "approle", "auth_mount", mount)
	clock := &clock{at: time.Now()}
	c.Login, c.Now = login, clock.now
	client := newClient(t, c)
	for range 5 {
		wantKind(t, "read what is not allowed", client.Read(t.Context(), "sys/mounts/secret", nil), fault.ErrDenied)
	}
	if n := asked(t, v, "auth/"+mount+"/login"); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	// An hour later the role may have another policy: that is worth one login.
	clock.advance(2 * time.Minute)
	for range 5 {
		wantKind(t, "read what is not allowed", client.Read(t.Context(), "sys/mounts/secret", nil), fault.ErrDenied)
	}
	if n := asked(t, v, "auth/"+mount+"/login"); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}

func TestCallWhenSealed(t *testing.T) {
	v := bedtest.NewVault(t)
	path, policy := secretTest(t, v)
	mount, login := appRoleLogin(t, v, policy, "1h", "2h")
	c := config(t, v, vault.Settings(), "", "auth", "approle", "auth_mount", mount)
	c.Login = login
	before, fresh := newClient(t, c), newClient(t, c)
	if err := before.Read(t.Context(), path, nil); err != nil {
		t.Fatal(err)
	}
	v.Seal(t)
	for what, client := range map[string]*vault.Client{"a call": before, "a login": fresh} {
		err := client.Read(t.Context(), path, nil)
		wantKind(t, what+" while Vault is sealed", err, fault.ErrUnavailable)
		if providers.OutcomeOf(err) != providers.Unknown {
			t.Errorf("%s while Vault is sealed: %s", what, providers.OutcomeOf(err))
		}
	}
	found, err := before.Health(t.Context())
	if err != nil || len(found) != 1 || found[0].OK {
		t.Errorf("health while Vault is sealed: %+v, %v", found, err)
	}
	v.Unseal(t)
	for _, client := range []*vault.Client{before, fresh} {
		if err := client.Read(t.Context(), path, nil); err != nil {
			t.Errorf("after the seal: %v", err)
		}
	}
}

func TestCallWhenLimited(t *testing.T) {
	v := bedtest.NewVault(t)
	path, _ := secretTest(t, v)
	mount, _, _ := strings.Cut(path, "/")
	client := newClient(t, config(t, v, vault.Settings(), v.Token))
	if err := client.Read(t.Context(), path, nil); err != nil {
		t.Fatal(err)
	}
	v.Write(t, "sys/quotas/rate-limit/slow", map[string]any{"path": mount + "/", "rate": 0.01, "interval": "1s"})
	var err error
	for range 10 {
		if err = client.Read(t.Context(), path, nil); err != nil {
			break
		}
	}
	wantKind(t, "calls beyond the quota", err, fault.ErrLimited)
	if providers.OutcomeOf(err) != providers.Throttled {
		t.Errorf("the outcome is %s", providers.OutcomeOf(err))
	}
}

// What no Vault does, a thing that poses as one might.
func TestCallWhenAnswersAreWrong(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the redirect was followed, with token %t", r.Header.Get("X-Vault-Token") != "")
	}))
	defer elsewhere.Close()
	for name, answer := range map[string]http.HandlerFunc{
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, http.StatusTemporaryRedirect)
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"data":{"k":"%s"}}`, strings.Repeat("x", 3<<20))
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html>") },
		"echo": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			var in map[string]any
			_ = json.NewDecoder(r.Body).Decode(&in)
			_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{fmt.Sprint("cannot store ", in)}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v1/auth/token/lookup-self" {
					_, _ = fmt.Fprint(w, `{"data":{"ttl":0}}`)
					return
				}
				answer(w, r)
			}))
			defer server.Close()
			v := &bedtest.VaultServer{Address: server.URL}
			client := newClient(t, config(t, v, vault.Settings(), "a-token-of-nobody"))
			var out map[string]any
			err := client.Write(t.Context(), "kv/data/a", map[string]any{"data": map[string]string{"k": "the-new-password"}}, &out)
			wantKind(t, name, err, fault.ErrUnavailable)
			for _, s := range []string{"the-new-password", "a-token-of-nobody", "xxxxxx"} {
				if strings.Contains(err.Error(), s) {
					t.Errorf("%q is in the error: %v", s, err)
				}
			}
		})
	}
}

func TestCallWhenAnswerComesInPieces(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprint(w, `{"data":{"ttl":0,`)
		_ = http.NewResponseController(w).Flush()
		time.Sleep(50 * time.Millisecond) // the call must not end with the headers
		_, _ = fmt.Fprint(w, `"k":"v"}}`)
	}))
	defer server.Close()
	client := newClient(t, config(t, &bedtest.VaultServer{Address: server.URL}, vault.Settings(), "ours"))
	var out struct{ K string }
	if err := client.Write(t.Context(), "kv/a", map[string]any{}, &out); err != nil || out.K != "v" {
		t.Errorf("%q, %v", out.K, err)
	}
}

// Who may set up a store is no user of the server's machine: its files are not his to read.
func TestLoginWhenTheFileIsNoToken(t *testing.T) {
	asked := false
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer server.Close()
	for name, content := range map[string]string{
		"a key file": `{"keys":[{"id":"k1","key":"c2VjcmV0LXNlY3JldA=="}]}`, "a password": "hunter2-hunter2\n", "of users": "root:$6$abc$def:19000:0:99999:7:::\n",
		"two lines": "eyJh.eyJi.c2ln\neyJh.eyJi.c2ln\n", "no signature": "eyJh.eyJi.", "empty": "",
	} {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		client := newClient(t, config(t, &bedtest.VaultServer{Address: server.URL}, vault.Settings(), "", "auth", "kubernetes", "auth_role", "rotunda", "jwt_path", file))
		err := client.Read(t.Context(), "kv/data/a", nil)
		if !errors.Is(err, fault.ErrUnavailable) || asked || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "c2Vj") {
			t.Errorf("%s: asked %t, %v", name, asked, err)
		}
	}
}

// A 101 hands over the bare connection: its bytes are no answer, and no deadline ends it.
func TestCallWhenProtocolIsSwitched(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, buffer, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = buffer.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		_ = buffer.Flush()
		<-release
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	client := newClient(t, config(t, &bedtest.VaultServer{Address: server.URL}, vault.Settings(), "ours"))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- client.Write(ctx, "kv/a", map[string]any{"k": "v"}, nil) }()
	select {
	case err := <-done:
		if providers.OutcomeOf(err) != providers.Unknown {
			t.Errorf("%v, want an unknown outcome", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("a server that switches protocols holds up the call for ever")
	}
}

func TestClientWhenEnvironmentSaysOtherwise(t *testing.T) {
	var sent []http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent = append(sent, r.Header)
		_, _ = fmt.Fprint(w, `{"data":{}}`)
	}))
	defer server.Close()
	for name, value := range map[string]string{
		"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_TOKEN": "of-somebody-else", "VAULT_NAMESPACE": "elsewhere", "VAULT_MAX_RETRIES": "9",
		"VAULT_AGENT_ADDR": "http://127.0.0.1:1", "VAULT_HEADERS": `{"x-a":"b"}`, "VAULT_WRAP_TTL": "1m",
	} {
		t.Setenv(name, value)
	}
	for namespace, want := range map[string][]string{"": nil, "team": {"team"}} {
		sent = nil
		client := newClient(t, config(t, &bedtest.VaultServer{Address: server.URL}, vault.Settings(), "ours", "namespace", namespace))
		if err := client.Read(t.Context(), "kv/data/a", nil); err != nil {
			t.Fatal(err)
		}
		if len(sent) == 0 {
			t.Fatal("nothing was sent to the address of the settings")
		}
		for _, h := range sent {
			if h.Get("X-Vault-Token") != "ours" || h.Get("X-A") != "" || h.Get("X-Vault-Wrap-TTL") != "" || !slices.Equal(h.Values("X-Vault-Namespace"), want) {
				t.Errorf("namespace %q: the headers are %q", namespace, slices.Sorted(maps.Keys(h)))
			}
		}
	}
}

func TestClientWhenConfigurationIsWrong(t *testing.T) {
	for name, c := range map[string]struct {
		pairs []string
		login providers.Fields
	}{
		"plain text to another machine": {[]string{"address", "http://vault.example.com:8200"}, providers.Fields{}.Set("token", "t")},
		"user in the address":           {[]string{"address", "https://u:p@vault.example.com"}, providers.Fields{}.Set("token", "t")},
		"no token":                      {[]string{"address", "https://vault.example.com"}, nil},
		"token with a line break":       {[]string{"address", "https://vault.example.com"}, providers.Fields{}.Set("token", "a\nb")},
		"no secret id":                  {[]string{"address", "https://vault.example.com", "auth", "approle"}, providers.Fields{}.Set("role_id", "r")},
		"no role":                       {[]string{"address", "https://vault.example.com", "auth", "kubernetes"}, nil},
		"no certificate":                {[]string{"address", "https://vault.example.com", "auth", "cert"}, nil},
		"certificate without TLS":       {[]string{"address", "http://127.0.0.1:8200", "auth", "cert"}, providers.Fields{}.Set("client_cert", "c").Set("client_key", "k")},
		"ca_cert that is none":          {[]string{"address", "https://vault.example.com", "ca_cert", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}, providers.Fields{}.Set("token", "t")},
	} {
		t.Run(name, func(t *testing.T) {
			conf := config(t, &bedtest.VaultServer{}, vault.Settings(), "", c.pairs...)
			conf.Login = c.login
			_, err := vault.NewClient(conf)
			wantKind(t, name, err, fault.ErrInvalid)
		})
	}
	conf := config(t, &bedtest.VaultServer{}, vault.Settings(), "", "address", "http://vault.example.com:8200", "plaintext", "allow")
	conf.Login = providers.Fields{"token": secret.FromString("t")}
	if _, err := vault.NewClient(conf); err != nil {
		t.Errorf("plain text that is allowed: %v", err)
	}
}

package bedtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// VaultServer is a real Vault in dev mode: in memory, unsealed, on 127.0.0.1. Stop and
// Start lose everything that it holds but its root token: to interrupt it, Seal it.
type VaultServer struct {
	*process
	Address string // http://127.0.0.1:PORT; https with VaultTLS
	Token   string // root
	CA      string // PEM; with VaultTLS

	client *http.Client
}

// The dev server makes its certificate at its start, into a folder that must be there.
const vaultScript = `
vault=$2 plugin=$3 port=$4 tls=$5
signal=TERM # so that it ends its plugins
prepare() {
	mkdir -m 700 "$folder/plugins" "$folder/tls" && cp "$plugin" "$folder/plugins/postgresql-database-plugin"
}
serve() {
	VAULT_DEV_ROOT_TOKEN_ID=$(cat "$folder/token") SKIP_SETCAP=1
	export VAULT_DEV_ROOT_TOKEN_ID SKIP_SETCAP
	exec "$vault" server -dev -dev-no-store-token -dev-listen-address=127.0.0.1:"$port" -dev-plugin-dir="$folder/plugins" -log-level=error $tls
}
`

// Vault is the server of this test process. A test isolates itself by fresh mounts
// ([VaultServer.Mount], [VaultServer.Auth]), and doesn't seal it.
func Vault(t testing.TB) *VaultServer {
	t.Helper()
	v, err := sharedVault()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var sharedVault = sync.OnceValues(func() (*VaultServer, error) { return startVault(false) })

// NewVault is a server for this test alone.
func NewVault(t testing.TB) *VaultServer {
	t.Helper()
	return newVault(t, false)
}

// VaultTLS is NewVault with TLS, under an authority of its own.
func VaultTLS(t testing.TB) *VaultServer {
	t.Helper()
	return newVault(t, true)
}

func newVault(t testing.TB, tls bool) *VaultServer {
	t.Helper()
	v, err := startVault(tls)
	if err != nil {
		t.Fatal(err)
	}
	v.endWith(t)
	return v
}

func startVault(tls bool) (*VaultServer, error) {
	binary, err := vaultBinary("vault", "ROTUNDA_VAULT")
	if err != nil {
		return nil, err
	}
	plugin, err := vaultBinary("postgresql-database-plugin", "ROTUNDA_VAULT_POSTGRESQL_PLUGIN")
	if err != nil {
		return nil, err
	}
	v := &VaultServer{Token: "root-" + rand.Text()}
	v.process, err = launch("vault", func(folder string, port, _ int) recipe {
		v.Address = "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		flag := ""
		v.client = &http.Client{Timeout: ready}
		if tls {
			v.Address = "https" + strings.TrimPrefix(v.Address, "http")
			flag = "-dev-tls -dev-tls-cert-dir=" + filepath.Join(folder, "tls")
		}
		return recipe{
			name: "Vault", user: "root", script: vaultScript, args: []string{binary, plugin, strconv.Itoa(port), flag},
			files: map[string][]byte{"token": []byte(v.Token)},
			probe: func(context.Context) error {
				if tls {
					if err := v.trust(folder); err != nil {
						return err
					}
				}
				return v.open(folder)
			},
		}
	})
	return v, err
}

// trust makes the client take the certificate that the server made for itself.
func (v *VaultServer) trust(folder string) error {
	ca, err := os.ReadFile(filepath.Join(folder, "tls", "vault-ca.pem"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return errors.New("its certificate is not written yet")
	}
	v.CA = string(ca)
	v.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	return nil
}

// open turns the audit log on as soon as the server answers.
func (v *VaultServer) open(folder string) error {
	var have map[string]any
	if err := v.Ask(http.MethodGet, "sys/audit", nil, &have); err != nil {
		return err
	}
	if _, there := have["file/"]; there {
		return nil
	}
	return v.Ask(http.MethodPut, "sys/audit/file", map[string]any{"type": "file", "options": map[string]string{"file_path": filepath.Join(folder, "audit.log"), "mode": "0600"}}, nil)
}

// unsealKey is the one that the server printed at its last start.
func (v *VaultServer) unsealKey(t testing.TB) string {
	t.Helper()
	const title = "Unseal Key: "
	log := v.Log(t)
	at := strings.LastIndex(log, title)
	if at < 0 {
		t.Fatal("Vault printed no unseal key")
	}
	key, _, _ := strings.Cut(log[at+len(title):], "\n")
	return strings.TrimSpace(key)
}

// Seal seals it: every call is answered 503 until Unseal. What it holds stays.
func (v *VaultServer) Seal(t testing.TB) {
	t.Helper()
	v.Write(t, "sys/seal", nil)
}

// Unseal ends a Seal, and waits until calls are answered again.
func (v *VaultServer) Unseal(t testing.TB) {
	t.Helper()
	v.Write(t, "sys/unseal", map[string]any{"key": v.unsealKey(t)})
	v.await(t, "sys/mounts/secret")
}

// await waits until root can read path.
func (v *VaultServer) await(t testing.TB, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ready)
	defer cancel()
	for {
		err := v.Ask(http.MethodGet, path, nil, nil)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("Vault does not answer %s after %s: %v", path, ready, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Mount mounts a secrets engine under a fresh path, and returns it. options may be nil:
// {"version": "2"} for KV.
func (v *VaultServer) Mount(t testing.TB, kind string, options map[string]string) string {
	t.Helper()
	path := kind + "-" + strings.ToLower(rand.Text()[:12])
	v.Write(t, "sys/mounts/"+path, map[string]any{"type": kind, "options": options})
	if kind == "kv" && options["version"] == "2" {
		// Right after its mounting KV v2 answers that it upgrades itself.
		v.await(t, path+"/config")
	}
	return path
}

// Auth mounts an auth method at path, or at a fresh one when that is empty.
func (v *VaultServer) Auth(t testing.TB, kind, path string) string {
	t.Helper()
	if path == "" {
		path = kind + "-" + strings.ToLower(rand.Text()[:12])
	}
	v.Write(t, "sys/auth/"+path, map[string]any{"type": kind})
	return path
}

// NewToken makes a token with a policy of its own (HCL) that lives for ttl.
func (v *VaultServer) NewToken(t testing.TB, policy string, ttl time.Duration) string {
	t.Helper()
	name := v.NewPolicy(t, policy)
	var out struct {
		Auth struct {
			ClientToken string `json:"client_token"`
		} `json:"auth"`
	}
	in := map[string]any{"policies": []string{name}, "ttl": ttl.String(), "no_parent": true}
	if err := v.AskWith(v.Token, http.MethodPut, "auth/token/create", in, &out); err != nil {
		t.Fatal(err)
	}
	return out.Auth.ClientToken
}

// NewPolicy makes a policy (HCL) under a fresh name.
func (v *VaultServer) NewPolicy(t testing.TB, policy string) string {
	t.Helper()
	name := "test-" + strings.ToLower(rand.Text()[:12])
	v.Write(t, "sys/policies/acl/"+name, map[string]any{"policy": policy})
	return name
}

// Read reads path as root and returns the "data" of the answer.
func (v *VaultServer) Read(t testing.TB, path string) map[string]any {
	t.Helper()
	var out struct {
		Data map[string]any `json:"data"`
	}
	if err := v.Ask(http.MethodGet, path, nil, &out); err != nil {
		t.Fatal(err)
	}
	return out.Data
}

// Write writes to path as root and returns the "data" of the answer, if there is any.
func (v *VaultServer) Write(t testing.TB, path string, in map[string]any) map[string]any {
	t.Helper()
	var out struct {
		Data map[string]any `json:"data"`
	}
	if err := v.Ask(http.MethodPut, path, in, &out); err != nil {
		t.Fatal(err)
	}
	return out.Data
}

// Delete deletes path as root.
func (v *VaultServer) Delete(t testing.TB, path string) {
	t.Helper()
	if err := v.Ask(http.MethodDelete, path, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// VaultError is an answer that is no success.
type VaultError struct {
	Status int
	Body   string
}

func (e *VaultError) Error() string { return fmt.Sprintf("Vault answered %d: %s", e.Status, e.Body) }

// Ask makes one call as root; out is the whole answer, and may be nil.
func (v *VaultServer) Ask(method, path string, in, out any) error {
	return v.AskWith(v.Token, method, path, in, out)
}

// AskWith is Ask with another token; "" is without.
func (v *VaultServer) AskWith(token, method, path string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequest(method, v.Address+"/v1/"+path, &body) //nolint:noctx // the client has a time limit
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return &VaultError{resp.StatusCode, string(text)}
	}
	if out == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, out)
}

// AuditLog is everything that Vault was asked so far, as its audit device writes it: a
// JSON object per line, with strings hashed but for paths, metadata and a few more.
func (v *VaultServer) AuditLog(t testing.TB) []byte {
	t.Helper()
	return []byte(v.read(t, "audit.log"))
}

// vaultBinary finds a program: in the environment, on PATH (only vault itself, of
// whichever version is in use), or built from tools/vault.
func vaultBinary(name, env string) (string, error) {
	if path := os.Getenv(env); path != "" {
		return path, nil
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	var said bytes.Buffer
	cmd := exec.Command(filepath.Join(root, "scripts", "tool.sh"), name)
	cmd.Dir, cmd.Stderr = root, &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s is not on PATH, and `scripts/tool.sh %s` failed; set %s to one: %s: %w", name, name, env, bytes.TrimSpace(said.Bytes()), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// moduleRoot is the folder of the go.mod above the one that a test runs in.
func moduleRoot() (string, error) {
	at, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(at, "scripts", "tool.sh")); err == nil {
			return at, nil
		}
		above := filepath.Dir(at)
		if above == at {
			return "", errors.New("scripts/tool.sh is in no folder above: run the tests inside of the module")
		}
		at = above
	}
}

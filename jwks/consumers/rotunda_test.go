package consumers

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// rotunda is a server of this repository's own source, run as users run it: the
// binary, its command line, TLS and a data folder.
type rotunda struct {
	binary string
	url    string
	ca     *authority
	env    []string
}

var listening = regexp.MustCompile(`127\.0\.0\.1:([1-9][0-9]*)`)

func newRotunda(t *testing.T) *rotunda {
	t.Helper()
	ca, dir := newAuthority(t), t.TempDir()
	binary := filepath.Join(dir, "rotunda")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./cmd/rotunda")
	build.Dir = filepath.Join("..", "..")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build cmd/rotunda: %v: %s", err, text)
	}
	data := filepath.Join(dir, "data")
	log := filepath.Join(dir, "log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(binary, "serve", "--data-dir", data, "--listen", "127.0.0.1:0", "--tls-cert", ca.certFile, "--tls-key", ca.keyFile)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = childAttr(syscall.SIGKILL)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Error("the server did not end within 30 s of SIGTERM")
			cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			text, _ := os.ReadFile(log)
			t.Logf("the server's last output:\n%s", text[max(0, len(text)-8<<10):])
		}
	})

	r := &rotunda{binary: binary, ca: ca}
	client := r.client(t)
	wait(t, "the server's /readyz", 60*time.Second, func() (bool, error) {
		select {
		case err := <-ended:
			ended <- err
			text, _ := os.ReadFile(log)
			t.Fatalf("the server ended at once: %v\n%s", err, text)
		default:
		}
		text, err := os.ReadFile(log)
		if err != nil {
			return false, err
		}
		m := listening.FindSubmatch(text)
		if m == nil {
			return false, errors.New("it has not printed its address")
		}
		r.url = "https://" + string(m[0])
		resp, err := client.Get(r.url + "/readyz")
		if err != nil {
			return false, err
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK, errors.New(resp.Status)
	})
	token, err := os.ReadFile(filepath.Join(data, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	r.env = append(cmd.Env, "ROTUNDA_SERVER="+r.url, "ROTUNDA_TOKEN="+strings.TrimSpace(string(token)), "SSL_CERT_FILE="+ca.caFile)
	return r
}

func (r *rotunda) client(t *testing.T) *http.Client {
	t.Helper()
	client, err := Config{CAFile: r.ca.caFile}.client()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// cli runs one command line and gives what it printed.
func (r *rotunda) cli(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.binary, args...)
	cmd.Env = r.env
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("rotunda %s: %w: %s", strings.Join(args, " "), err, &complaint)
	}
	return out.String(), nil
}

// create makes a keyset that serves every consumer of [Starters], with honest
// figures for one machine: one clock, one replica, no failing fetches.
func (r *rotunda) create(t *testing.T, name, algorithm string, rotateEvery, tokenTTL time.Duration) {
	t.Helper()
	args := []string{
		"keyset", "create", name, "--issuer", testIssuer, "--algorithm", algorithm,
		"--rotate-every", rotateEvery.String(), "--token-ttl", tokenTTL.String(),
		"--max-age", "60s", "--propagation", "1s", "--skew", "1s", "--leeway", "0s", "--fetch-failure", "0s",
	}
	for _, s := range Starters() {
		profile := s.Profile
		for _, k := range slices.Sorted(maps.Keys(s.Overrides)) {
			profile += "," + k + "=" + s.Overrides[k]
		}
		args = append(args, "--profile", profile)
	}
	if _, err := r.cli(t.Context(), args...); err != nil {
		t.Fatal(err)
	}
}

type keyset struct {
	Keys []struct {
		Kid   string    `json:"kid"`
		State string    `json:"state"` // KEY_STATE_ACTIVE
		Since time.Time `json:"since"`
	} `json:"keys"`
}

func (r *rotunda) show(ctx context.Context, name string) (keyset, error) {
	out, err := r.cli(ctx, "keyset", "show", name, "-o", "json")
	if err != nil {
		return keyset{}, err
	}
	var resp struct{ Keyset keyset }
	if err := json.Unmarshal([]byte(out), &resp); err != nil {
		return keyset{}, fmt.Errorf("keyset show %s: %w: %s", name, err, out)
	}
	if len(resp.Keyset.Keys) == 0 {
		return keyset{}, fmt.Errorf("keyset show %s: no keys in %s", name, out)
	}
	return resp.Keyset, nil
}

// describe says what the keyset holds of kid, for failures.
func (r *rotunda) describe(ctx context.Context, name, kid string) string {
	k, err := r.show(ctx, name)
	if err != nil {
		return err.Error()
	}
	for _, key := range k.Keys {
		if key.Kid == kid {
			return fmt.Sprintf("key is %s since %s", state(key.State), time.Since(key.Since).Round(time.Second))
		}
	}
	return "key is not published"
}

func state(s string) string { return strings.ToLower(strings.TrimPrefix(s, "KEY_STATE_")) }

// signed is a token as its receiver sees it.
type signed struct {
	token string
	kid   string
	at    time.Time
	exp   time.Time
}

func (r *rotunda) sign(ctx context.Context, name string, ttl time.Duration) (signed, error) {
	at := time.Now()
	out, err := r.cli(ctx, "sign", name, "--claims", `{"sub":"order-7","aud":"`+testAudience+`"}`, "--ttl", ttl.String())
	if err != nil {
		return signed{}, err
	}
	return readToken(strings.TrimSpace(out), at)
}

func readToken(token string, at time.Time) (signed, error) {
	s := signed{token: token, at: at}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return s, fmt.Errorf("sign printed %d parts, not a compact JWS", len(parts))
	}
	var header struct{ Kid string }
	var body struct{ Exp int64 }
	for i, v := range []any{&header, &body} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return s, fmt.Errorf("token part %d: %w", i, err)
		}
		if err := json.Unmarshal(b, v); err != nil {
			return s, fmt.Errorf("token part %d: %w", i, err)
		}
	}
	if header.Kid == "" || body.Exp == 0 {
		return s, errors.New("the token has no kid or no exp")
	}
	s.kid, s.exp = header.Kid, time.Unix(body.Exp, 0)
	return s, nil
}

// member is one consumer of one keyset, behind a proxy of its own that counts
// its fetches.
type member struct {
	Consumer
	name    string
	keyset  string
	fetches atomic.Int64

	// Owned by the goroutine that asks the consumer.
	verified, refused int
	slowest           time.Duration
	kids              map[string]bool
}

// newFleet starts every consumer for a keyset and warms it up with a token.
func newFleet(t *testing.T, r *rotunda, name string, first signed) []*member {
	t.Helper()
	var fleet []*member
	for _, s := range Starters() {
		m := &member{name: s.Name, keyset: name, kids: map[string]bool{}}
		m.Consumer = newConsumer(t, s, r.ca, r.proxy(t, &m.fetches)+"/keysets/"+name+"/jwks.json")
		if ok, why := verify(t, m, first.token); !ok {
			t.Fatalf("%s refused the first token of %s: %s", m.Name(), name, why)
		}
		fleet = append(fleet, m)
	}
	return fleet
}

// proxy passes requests on to the server and counts them.
func (r *rotunda) proxy(t *testing.T, count *atomic.Int64) string {
	t.Helper()
	target, err := url.Parse(r.url)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{
		Rewrite:   func(p *httputil.ProxyRequest) { p.SetURL(target) },
		Transport: r.client(t).Transport,
	}
	return newTLSServer(t, r.ca, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		count.Add(1)
		forward.ServeHTTP(w, req)
	}))
}

// wait asks until done says so, or fails the test with the last reason.
func wait(t *testing.T, what string, limit time.Duration, done func() (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		case <-tick.C:
		}
	}
}

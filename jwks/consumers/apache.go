package consumers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"
)

const (
	apacheBinary  = "/usr/sbin/apache2"
	apacheModules = "/usr/lib/apache2/modules"
)

// apacheConf guards one file with mod_auth_openidc as an OAuth 2.0 resource
// server that verifies JWTs by itself. The module leaves issuer and audience to
// the Require lines. Two processes share its cache, as in a real Apache.
var apacheConf = template.Must(template.New("httpd.conf").Parse(`
ServerRoot "{{.Dir}}"
ServerName 127.0.0.1
Listen 127.0.0.1:{{.Port}}
PidFile "{{.Dir}}/httpd.pid"
DefaultRuntimeDir "{{.Dir}}"
ErrorLog "{{.Dir}}/error.log"
LogLevel warn
DocumentRoot "{{.Dir}}/www"
LoadModule mpm_event_module "{{.Modules}}/mod_mpm_event.so"
LoadModule authn_core_module "{{.Modules}}/mod_authn_core.so"
LoadModule authz_core_module "{{.Modules}}/mod_authz_core.so"
LoadModule authz_user_module "{{.Modules}}/mod_authz_user.so"
LoadModule auth_openidc_module "{{.Modules}}/mod_auth_openidc.so"
StartServers 2
MinSpareThreads 8
MaxSpareThreads 32
ThreadsPerChild 8
MaxRequestWorkers 32
OIDCCryptoPassphrase "{{.Passphrase}}"
OIDCCABundlePath "{{.Dir}}/ca.pem"
OIDCOAuthVerifyJwksUri "{{.JWKSURL}}"
<Location "/">
	AuthType oauth20
	<RequireAll>
		Require claim iss:{{.Issuer}}
		Require claim aud:{{.Audience}}
	</RequireAll>
</Location>
`))

// apache is an Apache of its own, in the foreground, asked over HTTP.
type apache struct {
	dir    string
	url    string
	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has been reaped
	stderr *tail
	client *http.Client
}

func startApache(ctx context.Context, c Config) (verifier, error) {
	if _, err := os.Stat(apacheBinary); err != nil {
		return nil, missing("the Debian package apache2-bin")
	}
	if _, err := os.Stat(filepath.Join(apacheModules, "mod_auth_openidc.so")); err != nil {
		return nil, missing("the Debian package libapache2-mod-auth-openidc")
	}
	// The port is free when it is chosen and may be taken a moment later:
	// Apache can't be handed an open listener.
	var err error
	for range 3 {
		var a *apache
		if a, err = launchApache(ctx, c); err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

func launchApache(ctx context.Context, c Config) (_ *apache, err error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "rotunda-apache-")
	if err != nil {
		return nil, err
	}
	a := &apache{
		dir:    dir,
		url:    fmt.Sprintf("http://127.0.0.1:%d/ok", port),
		stderr: &tail{},
		done:   make(chan struct{}),
		client: &http.Client{Transport: &http.Transport{}},
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	if err := a.files(c, port); err != nil {
		return nil, err
	}
	a.cmd = exec.Command(apacheBinary, "-d", dir, "-f", filepath.Join(dir, "httpd.conf"), "-DFOREGROUND")
	a.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C"}
	a.cmd.Stderr = a.stderr
	a.cmd.Stdout = a.stderr
	// Not SIGKILL: only a clean end takes the worker processes along.
	a.cmd.SysProcAttr = childAttr(syscall.SIGTERM)
	if err := a.dropRoot(); err != nil {
		return nil, err
	}
	if err := a.cmd.Start(); err != nil {
		a.cmd = nil
		return nil, err
	}
	go func() {
		defer close(a.done)
		a.cmd.Wait()
	}()
	return a, a.ready(ctx)
}

func (a *apache) files(c Config, port int) error {
	ca, err := os.ReadFile(c.CAFile)
	if err != nil {
		return fmt.Errorf("read the CA file: %w", err)
	}
	var conf strings.Builder
	err = apacheConf.Execute(&conf, map[string]any{
		"Dir": a.dir, "Port": port, "Modules": apacheModules, "Passphrase": rand.Text(),
		"JWKSURL": c.JWKSURL, "Issuer": c.Issuer, "Audience": c.Audience,
	})
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(a.dir, "www"), 0o700); err != nil {
		return err
	}
	for name, text := range map[string]string{"httpd.conf": conf.String(), "ca.pem": string(ca), "www/ok": "ok\n"} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// dropRoot makes Apache run as www-data from its first instruction when the
// caller is root, for Apache refuses to serve as root. The folder changes
// hands with it.
func (a *apache) dropRoot() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("www-data")
	if err != nil {
		return fmt.Errorf("find a user to run Apache as: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	a.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return filepath.WalkDir(a.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, gid)
	})
}

// ready waits until Apache refuses a request that has no token.
func (a *apache) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, childStart)
	defer cancel()
	for {
		ok, _, err := a.Verify(ctx, "")
		if ok {
			return errors.New("it lets a request without a token pass")
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it did not answer within %s: %w: %s", childStart, err, a.complaint())
		case <-a.done:
			return fmt.Errorf("it ended at once: %s", a.complaint())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (a *apache) Verify(ctx context.Context, token string) (bool, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url, nil)
	if err != nil {
		return false, "", err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return false, "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)); err != nil {
		return false, "", fmt.Errorf("read the answer: %w", err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return true, "", nil
	case http.StatusUnauthorized:
		why := resp.Header.Get("WWW-Authenticate")
		if why == "" {
			why = "401 without WWW-Authenticate"
		}
		return false, why, nil
	default:
		return false, "", fmt.Errorf("status %s: %s", resp.Status, a.complaint())
	}
}

// complaint is what Apache said last, on its standard error or in its log.
func (a *apache) complaint() string {
	var t tail
	if f, err := os.Open(filepath.Join(a.dir, "error.log")); err == nil {
		io.Copy(&t, io.LimitReader(f, 1<<20))
		f.Close()
	}
	return a.stderr.String() + "\n" + t.String()
}

func (a *apache) Close() {
	a.client.CloseIdleConnections()
	if a.cmd != nil && a.cmd.Process != nil {
		a.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-a.done:
		case <-time.After(childStop):
			a.cmd.Process.Kill()
			<-a.done
		}
	}
	os.RemoveAll(a.dir)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

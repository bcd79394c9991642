package vault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// Finding names of this package.
const (
	checkHealth     = "health"
	checkLogin      = "login"
	checkPermission = "permission"
	checkClock      = "clock"
)

func good(check, format string, args ...any) providers.Finding {
	return providers.Finding{Check: check, OK: true, Detail: fmt.Sprintf(format, args...)}
}

func bad(check, remedy, format string, args ...any) providers.Finding {
	return providers.Finding{Check: check, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

func warn(check, remedy, format string, args ...any) providers.Finding {
	f := bad(check, remedy, format, args...)
	f.Warning = true
	return f
}

// fine reports whether nothing in found stops a rotation.
func fine(found []providers.Finding) bool {
	return !slices.ContainsFunc(found, func(f providers.Finding) bool { return !f.OK && !f.Warning })
}

// finding turns a refusal into a finding. What is no refusal means that Vault could not
// be asked, and stays an error.
func finding(check, remedy string, err error) ([]providers.Finding, error) {
	for _, kind := range []error{fault.ErrDenied, fault.ErrInvalid, fault.ErrNotFound} {
		if errors.Is(err, kind) {
			return []providers.Finding{bad(check, remedy, "%v", err)}, nil
		}
	}
	return nil, err
}

// clockTolerance is how far the clocks may be apart without a word.
const clockTolerance = 5 * time.Second

// Health asks Vault how it is, and whether Rotunda may log in.
func (c *Client) Health(ctx context.Context) ([]providers.Finding, error) {
	var h struct {
		Initialized bool   `json:"initialized"`
		Sealed      bool   `json:"sealed"`
		Version     string `json:"version"`
		ServerTime  int64  `json:"server_time_utc"`
	}
	if err := c.health(ctx, &h); err != nil {
		return nil, err
	}
	if !h.Initialized || h.Sealed {
		return []providers.Finding{bad(checkHealth, "unseal Vault", "Vault at %s is sealed or not initialized", c.address.Host)}, nil
	}
	found := []providers.Finding{{Check: checkHealth, OK: true, Detail: "Vault answers", Measured: "version " + h.Version}}
	skew := c.now().Sub(time.Unix(h.ServerTime, 0)).Truncate(time.Second)
	f := providers.Finding{Check: checkClock, OK: true, Detail: "the clocks agree", Measured: fmt.Sprintf("clock skew %s", skew)}
	if skew.Abs() > clockTolerance {
		f.OK, f.Warning, f.Detail, f.Remedy = false, true, "the clocks of Rotunda and Vault are apart: ends of tokens and secret ids come early or late", "synchronize both by NTP"
	}
	found = append(found, f)
	s, err := c.session(ctx)
	if err != nil {
		more, err := finding(checkLogin, "correct the login, or the role and policy that it has in Vault", err)
		return append(found, more...), err
	}
	f = good(checkLogin, "logged in (auth=%s)", c.login.method)
	if c.login.method == "token" && !s.expires.IsZero() && !s.renewable {
		f = warn(checkLogin, "give a periodic token, or use approle, kubernetes or cert", "the token ends at %s and can't be renewed", s.expires.UTC().Format(time.RFC3339))
	}
	return append(found, f), nil
}

func (c *Client) health(ctx context.Context, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	// A standby or sealed node answers with codes of its own, unless told not to.
	const ok = "200"
	query := map[string][]string{"standbyok": {"true"}, "perfstandbyok": {"true"}, "sealedcode": {ok}, "uninitcode": {ok}, "drsecondarycode": {ok}}
	resp, err := c.bare.Logical().ReadRawWithDataWithContext(ctx, "sys/health", query)
	if resp != nil && resp.Response != nil && resp.Body != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		return c.classify(ctx, get, "sys/health", nil, err)
	}
	if resp.StatusCode != http.StatusOK || resp.DecodeJSON(out) != nil {
		return fault.New(fault.ErrUnavailable, "vault_answer", "read sys/health of %s: the answer is not what Vault gives", c.name)
	}
	return nil
}

// need is what must be allowed on a path.
type need struct {
	path  string
	may   []string // capabilities
	why   string
	extra bool // it works without, in part
}

// permissions asks Vault which of the needs are met, and says which lines of policy are
// missing. The token is asked about itself, so no call is tried.
func (c *Client) permissions(ctx context.Context, needs []need) ([]providers.Finding, error) {
	paths := make([]string, len(needs))
	for i, n := range needs {
		paths[i] = n.path
	}
	var have map[string]any
	if err := c.Write(ctx, "sys/capabilities-self", map[string]any{"paths": paths}, &have); err != nil {
		if errors.Is(err, fault.ErrDenied) {
			return []providers.Finding{warn(checkPermission, policy([]need{{path: "sys/capabilities-self", may: []string{"update"}}}), "what Rotunda may do can't be told: it may not ask Vault")}, nil
		}
		return nil, err
	}
	var found []providers.Finding
	for _, n := range needs {
		var given []string
		list, _ := have[n.path].([]any)
		for _, v := range list {
			if s, ok := v.(string); ok {
				given = append(given, s)
			}
		}
		missing := slices.DeleteFunc(slices.Clone(n.may), func(want string) bool { return slices.Contains(given, want) })
		switch {
		case slices.Contains(given, "root") || len(missing) == 0:
			found = append(found, good(checkPermission, "%s: %s", n.path, n.why))
		case n.extra:
			found = append(found, warn(checkPermission, policy([]need{n}), "%s on %s is missing: %s", strings.Join(missing, ", "), n.path, n.why))
		default:
			found = append(found, bad(checkPermission, policy([]need{n}), "%s on %s is missing: %s", strings.Join(missing, ", "), n.path, n.why))
		}
	}
	return found, nil
}

// policy is the HCL that meets the needs.
func policy(needs []need) string {
	var b strings.Builder
	b.WriteString("add to the policy of Rotunda's login:")
	for _, n := range needs {
		fmt.Fprintf(&b, "\npath %q { capabilities = [", n.path)
		for i, may := range n.may {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%q", may)
		}
		b.WriteString("] }")
	}
	return b.String()
}

// mountOf asks what is mounted at a path. It needs no permission beyond any on the mount.
func (c *Client) mountOf(ctx context.Context, mount string) (kind, version string, err error) {
	var m struct {
		Type    string            `json:"type"`
		Options map[string]string `json:"options"`
	}
	if err := c.Read(ctx, "sys/internal/ui/mounts/"+mount, &m); err != nil {
		return "", "", err
	}
	return m.Type, m.Options["version"], nil
}

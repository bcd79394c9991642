package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// Bounds of a target and of one call.
const (
	maxNodes    = 100
	callTimeout = 45 * time.Second
	nodeTimeout = 10 * time.Second
	tries       = 5 // of the compare-and-swap, against others on the same user
)

// Kind is the target kind "redis".
func Kind() providers.TargetKind {
	return providers.TargetKind{
		Name: "redis",
		Doc:  "The passwords of ACL users of Redis servers, version 6 and newer.",
		Settings: []providers.Setting{
			{Name: "addresses", Doc: "HOST:PORT of every node, replicas too, separated by commas: ACLs do not replicate", Required: true, Pattern: `\S{1,1000}(,\s*\S{1,1000})*`},
			{Name: "user", Doc: "ACL user that the target logs in as; it needs +acl +client|list +client|kill", Default: "default"},
			{Name: "tls", Doc: "verify: TLS, certificate and name checked; off: loopback only, or with plaintext=allow", Default: "verify", OneOf: []string{"verify", "off"}},
			{Name: "ca", Doc: "certificates of the authorities to trust, as PEM text; none: those of the system", Pattern: `(?s)\s*-----BEGIN CERTIFICATE-----.*`},
			{Name: "persist", Doc: "how a change outlives a restart: acl (ACL SAVE), config (CONFIG REWRITE), auto (the first of them that works), none", Default: "auto", OneOf: []string{"auto", "acl", "config", "none"}},
			providers.Plaintext(),
		},
		Login: []providers.Setting{{Name: "password", Doc: "password of the login user", Required: true}},
		Params: append([]providers.Setting{
			{Name: "user", Doc: "the ACL user", Required: true, Pattern: `[^\s\x00]{1,128}`},
		}, providers.PasswordParams()...),
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Dual, providers.Replace}},
		Open:   func(_ context.Context, c providers.Config) (providers.Target, error) { return open(c) },
	}
}

type target struct {
	name     string
	user     string
	password string
	persist  string
	nodes    []*node
	now      func() time.Time
}

// node is one server. Its client makes no try by itself: an effect is repeated only by
// those who know what it means.
type node struct {
	address string
	options redis.Options
	client  *redis.Client
}

var (
	_ providers.Target    = (*target)(nil)
	_ providers.Scratcher = (*target)(nil)
)

func open(c providers.Config) (*target, error) {
	t := &target{name: c.Name, user: c.Settings["user"], password: c.Login.Text("password"), persist: c.Settings["persist"], now: c.Now}
	var roots *x509.CertPool
	if pem := c.Settings["ca"]; pem != "" {
		roots = x509.NewCertPool()
		if len(pem) > providers.MaxValue || !roots.AppendCertsFromPEM([]byte(pem)) {
			return nil, fault.Invalid("settings.ca", "certificate_malformed", "%s: ca is not PEM text of certificates", c.Name)
		}
	}
	addresses := strings.Split(c.Settings["addresses"], ",")
	if len(addresses) > maxNodes {
		return nil, fault.Invalid("settings.addresses", "too_many_nodes", "%s: %d nodes, at most %d are allowed", c.Name, len(addresses), maxNodes)
	}
	seen := map[string]bool{}
	for _, address := range addresses {
		host, port, err := net.SplitHostPort(strings.TrimSpace(address))
		if err != nil {
			host, port = strings.Trim(strings.TrimSpace(address), "[]"), "6379"
		}
		n, err := strconv.ParseUint(port, 10, 16)
		address = net.JoinHostPort(host, port)
		if err != nil || n == 0 || host == "" || strings.ContainsAny(host, "/@ ") || seen[address] {
			return nil, fault.Invalid("settings.addresses", "address_malformed", "%s: the address of a node is HOST:PORT, each once", c.Name)
		}
		seen[address] = true
		o := redis.Options{
			Addr: address, Protocol: 2, DisableIdentity: true, MaxRetries: -1, DialerRetries: 1, PoolSize: 4, ContextTimeoutEnabled: true,
			DialTimeout: nodeTimeout, ReadTimeout: nodeTimeout, WriteTimeout: nodeTimeout, ConnMaxIdleTime: time.Minute,
		}
		var config *tls.Config
		if c.Settings["tls"] == "off" {
			if err := providers.CheckPlaintext(c, host); err != nil {
				return nil, err
			}
		} else {
			config = &tls.Config{ServerName: host, RootCAs: roots, MinVersion: tls.VersionTLS12}
		}
		o.Dialer = dial(config)
		login := o
		login.Username, login.Password = t.user, t.password
		t.nodes = append(t.nodes, &node{address: address, options: o, client: redis.NewClient(&login)})
	}
	return t, nil
}

func (t *target) Close() error {
	var errs []error
	for _, n := range t.nodes {
		errs = append(errs, n.client.Close())
	}
	return errors.Join(errs...)
}

// account is the user of a credential.
func (t *target) account(c providers.Change) (string, error) {
	name := c.Params["user"]
	if name == "" || len(name) > 128 || strings.ContainsAny(name, " \t\r\n\x00") {
		return "", fault.Invalid("params.user", "user_malformed", "%s: the name of an ACL user is 1 to 128 bytes without spaces", t.name)
	}
	switch c.Strategy {
	case providers.Dual:
	case providers.Replace:
		if name == t.user {
			return "", fault.Invalid("params.user", "self_reference", "%s: %q is the user that this target logs in as, and would be locked out: use strategy dual, or another login", t.name, name)
		}
	default:
		return "", fault.Invalid("strategy", "strategy_unknown", "%s: Redis has no strategy %q: use dual or replace", t.name, c.Strategy)
	}
	return name, nil
}

// get reads a user; nil: there is none.
func (n *node) get(ctx context.Context, name string) (*user, error) {
	reply, err := n.client.Do(ctx, "ACL", "GETUSER", name).Result()
	if errors.Is(err, redis.Nil) {
		return nil, nil //nolint:nilnil // no user is an answer, not an error
	}
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	switch r := reply.(type) {
	case []any:
		for i := 0; i+1 < len(r); i += 2 {
			if key, ok := r[i].(string); ok {
				fields[key] = r[i+1]
			}
		}
	case map[any]any:
		for key, v := range r {
			if key, ok := key.(string); ok {
				fields[key] = v
			}
		}
	}
	if fields["flags"] == nil || fields["passwords"] == nil {
		return nil, errors.New("the answer to ACL GETUSER has no flags or no passwords")
	}
	u := newUser(texts(fields["flags"]), texts(fields["passwords"]))
	return &u, nil
}

func texts(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, x := range list {
		if s, ok := x.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// save makes the node's ACL outlive a restart.
func (t *target) save(ctx context.Context, n *node) error {
	switch t.persist {
	case "acl":
		return n.client.Do(ctx, "ACL", "SAVE").Err()
	case "config":
		return n.client.Do(ctx, "CONFIG", "REWRITE").Err()
	case "none":
		return nil
	}
	err := n.client.Do(ctx, "ACL", "SAVE").Err()
	if err == nil || !says(err, "not configured to use an ACL file") {
		return err
	}
	err = n.client.Do(ctx, "CONFIG", "REWRITE").Err()
	if err != nil && says(err, "without a config file") {
		return nil // Check has warned
	}
	return err
}

// says tells whether the server itself answered with an error that has this text.
func says(err error, text string) bool {
	answer, ok := errors.AsType[redis.Error](err)
	return ok && strings.Contains(answer.Error(), text)
}

package bedtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisServer is a Redis server. Its default user may do everything.
type RedisServer struct {
	*process
	Port     int
	TLSPort  int
	User     string
	Password string
	CA       string // PEM of the authority of its certificate
}

// RedisOptions are how a Redis server differs from [Redis]: a server with an ACL file.
type RedisOptions struct {
	NoACLFile    bool // users are in the configuration file
	NoConfigFile bool // nor is there one: users are lost when the server stops
}

const redisScript = `
signal=KILL
options=$2
prepare() { command -v redis-server; }
serve() {
	cd "$folder"
	if [ "$options" = bare ]; then
		# Settings on standard input are no configuration file.
		exec redis-server - <"$folder/redis.conf"
	fi
	exec redis-server "$folder/redis.conf"
}
`

var sharedRedis = sync.OnceValues(func() (*RedisServer, error) { return startRedis(RedisOptions{}) })

// Redis is the server of this test process.
func Redis(t testing.TB) *RedisServer {
	t.Helper()
	r, err := sharedRedis()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// NewRedis is a server for this test alone.
func NewRedis(t testing.TB, o RedisOptions) *RedisServer {
	t.Helper()
	r, err := startRedis(o)
	if err != nil {
		t.Fatal(err)
	}
	r.endWith(t)
	return r
}

func startRedis(o RedisOptions) (*RedisServer, error) {
	cert, key, err := certificate()
	if err != nil {
		return nil, err
	}
	r := &RedisServer{User: "default", Password: rand.Text(), CA: string(cert)}
	r.process, err = launch("redis", func(folder string, port, tlsPort int) recipe {
		r.Port, r.TLSPort = port, tlsPort
		lines := []string{
			"bind 127.0.0.1", fmt.Sprintf("port %d", port), fmt.Sprintf("tls-port %d", tlsPort), "tls-auth-clients no",
			"tls-cert-file " + filepath.Join(folder, "cert.pem"), "tls-key-file " + filepath.Join(folder, "key.pem"), "tls-ca-cert-file " + filepath.Join(folder, "cert.pem"),
			"dir " + folder, `save ""`, "loglevel debug", "slowlog-log-slower-than 0",
		}
		files := map[string][]byte{"cert.pem": cert, "key.pem": key}
		kind := "file"
		if o.NoACLFile || o.NoConfigFile {
			lines = append(lines, "requirepass "+r.Password)
			if o.NoConfigFile {
				kind = "bare"
			}
		} else {
			lines = append(lines, "aclfile "+filepath.Join(folder, "users.acl"))
			files["users.acl"] = []byte("user default on >" + r.Password + " ~* &* +@all\n")
		}
		files["redis.conf"] = []byte(strings.Join(lines, "\n") + "\n")
		return recipe{
			name: "Redis", user: "redis", script: redisScript, args: []string{kind}, files: files,
			probe: func(ctx context.Context) error {
				client := r.client(r.User, r.Password)
				defer client.Close() //nolint:errcheck // nothing is lost with this connection
				return client.Ping(ctx).Err()
			},
		}
	})
	return r, err
}

// Address is HOST:PORT without TLS.
func (r *RedisServer) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.Port)) }

// TLSAddress is HOST:PORT with TLS.
func (r *RedisServer) TLSAddress() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.TLSPort))
}

// Client is a client of the default user, closed at the end of the test.
func (r *RedisServer) Client(t testing.TB) *redis.Client {
	t.Helper()
	return r.ClientOf(t, r.User, r.Password)
}

// ClientOf is a client of another user, closed at the end of the test. It never retries.
func (r *RedisServer) ClientOf(t testing.TB, user, password string) *redis.Client {
	t.Helper()
	client := r.client(user, password)
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func (r *RedisServer) client(user, password string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: r.Address(), Username: user, Password: password, Protocol: 2, DisableIdentity: true,
		MaxRetries: -1, DialTimeout: 5 * time.Second, PoolSize: 2,
	})
}

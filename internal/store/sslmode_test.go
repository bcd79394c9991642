package store

import (
	"errors"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Without a choice of sslmode, the password and what is sealed must not go to
// whoever answers.
func TestPostgresURLWhenNothingIsVerified(t *testing.T) {
	for _, name := range []string{"PGSSLMODE", "PGSSLROOTCERT", "PGHOST", "PGSERVICE", "PGSERVICEFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir()) // pgx takes ~/.postgresql/root.crt
	const refused, taken = true, false
	for _, c := range []struct {
		url, env string
		want     bool
	}{
		{"postgres://u:s3cret@db.example.com/d", "", refused},
		{"postgres://u:s3cret@10.0.0.1/d", "", refused},
		{"postgres://u:s3cret@db.example.com/d?sslmode=", "", refused},
		{"postgres://u:s3cret@db.example.com/d?sslmode=", "verify-full", refused},
		{"postgres://u:s3cret@db.example.com/d?ssl=true", "", refused},
		{"postgres://u:s3cret@db.example.com/d?sslnegotiation=direct", "", refused},
		{"postgres://u:s3cret@localhost,db.example.com/d", "", refused},
		{"postgres://u:s3cret@db.example.com,localhost/d", "", refused},
		{"postgres://u:s3cret@localhost/d?host=db.example.com", "", refused},
		{"postgres://u:s3cret@localhost.db.example.com/d", "", refused},
		{"postgres://u:x?sslmode=require&s3cret@db.example.com/d", "", refused}, // in the password
		{"postgres://u:s3cret@db.example.com/d?sslmode= ", "", refused},
		{"postgres://u:s3cret@db.example.com/d?sslmode=verify-full&ssl=true", "", refused},

		{"postgres://u:s3cret@db.example.com/d?sslmode=disable", "", taken},
		{"postgres://u:s3cret@db.example.com/d?sslmode=require", "", taken},
		{"postgres://u:s3cret@db.example.com/d?sslmode=verify-full", "", taken},
		{"postgres://u:s3cret@a.example.com:5432,b.example.com:5433/d?application_name=x&sslmode=require", "", taken},
		{"postgres://u:s3cret@db.example.com/d?sslrootcert=system", "", taken}, // means verify-full
		{"postgres://u:s3cret@db.example.com/d", "require", taken},
		{"postgres://u:s3cret@localhost/d", "", taken},
		{"postgres://u:s3cret@127.0.0.2/d", "", taken},
		{"postgres://u:s3cret@[::1]/d", "", taken},
		{"postgres:///d?host=/run/postgresql", "", taken},
	} {
		t.Setenv("PGSSLMODE", c.env)
		config, err := parsePostgres(c.url)
		if c.want == taken {
			if err != nil || config == nil {
				t.Errorf("%s with PGSSLMODE=%q: %v", c.url, c.env, err)
			}
			continue
		}
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || !errors.Is(err, fault.ErrInvalid) || f.Reason != "database_plaintext" || !strings.Contains(err.Error(), "sslmode=verify-full") {
			t.Errorf("%s with PGSSLMODE=%q: got %v, want a refusal", c.url, c.env, err)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error holds the password", c.url)
		}
	}
}

// A password that is not percent-encoded ends up in the host, the database or
// a parameter, and so in every message: such a URL is refused as a whole.
func TestPostgresURLWhenPasswordIsNotEncoded(t *testing.T) {
	for _, raw := range []string{
		"postgres://u:x@s3cret@db.example.com/d?sslmode=disable",
		"postgres://u:1/s3cret@db.example.com/d?sslmode=disable",
		"postgres://u:x@s3cret@a:1,b:2/d?sslmode=disable",
		"postgres://u:1?s3cret@db.example.com/d",
	} {
		_, err := parsePostgres(raw)
		if !errors.Is(err, fault.ErrInvalid) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got %v, want a refusal without the password", raw, err)
		}
	}
}

package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Whatever a URL holds, the result is one absolute path that can't smuggle
// settings into the DSN, or fault.ErrInvalid.
func FuzzSQLitePath(f *testing.F) {
	for _, name := range []string{"", "/x.db", "///x.db", "//h/x", ":memory:", "a b#%3f.db", "x?mode=memory", "\x00", "../x"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		path, err := sqlitePath(name)
		if err != nil {
			if !errors.Is(err, fault.ErrInvalid) {
				t.Errorf("%q: %v is not fault.ErrInvalid", name, err)
			}
			return
		}
		if !filepath.IsAbs(path) || strings.ContainsAny(path, "?\x00") || strings.Contains(path, ":memory:") {
			t.Errorf("%q gave %q", name, path)
		}
		if again, err := sqlitePath(path); err != nil || again != path {
			t.Errorf("%q gave %q, which gave %q, %v", name, path, again, err)
		}
	})
}

// No message of Open holds any part of a password that is written as a URL
// demands, percent-encoded. The context is over before Open begins, so nothing is dialled:
// the URL is read, and the pool refuses to connect.
func FuzzPostgresURL(f *testing.F) {
	for _, seed := range [][2]string{
		{"", "localhost:5432/rotunda?sslmode=disable"},
		{"@/?#%", "localhost/rotunda"},
		{"%zz", "[::1]:5432/rotunda"},
		{" '\\\"", "/rotunda?host=/run/postgresql"},
		{"@h", "a:1,b:2/rotunda?target_session_attrs=read-write"},
		{":5432", "h:99999/"},
		{"\x00\n", "h/d?sslmode=none&connect_timeout=x"},
		{"é", "h/d?sslrootcert=/nowhere/root.pem"},
	} {
		f.Add(seed[0], seed[1])
	}
	over, cancel := context.WithCancel(f.Context())
	cancel()
	f.Fuzz(func(t *testing.T, password, rest string) {
		const mark = "Xw7Kq2Zr"
		if strings.Contains(password+rest, mark) {
			return
		}
		password = mark + password + mark
		for form, raw := range map[string]string{
			"raw":       "postgresql://rotunda:" + password + "@" + rest,
			"encoded":   "postgres://rotunda:" + url.QueryEscape(password) + "@" + rest,
			"parameter": "postgres://rotunda@" + rest + "?password=" + url.QueryEscape(password),
		} {
			db, err := Open(over, raw)
			if err == nil {
				t.Fatalf("%s: opened %v although its time was over", form, db.Dialect())
			}
			if !errors.Is(err, fault.ErrInvalid) && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: neither the URL nor the time: %v", form, err)
			}
			if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, mark) || strings.Contains(err.Error(), mark) {
				t.Errorf("%s: the password is in the message: %s", form, text)
			}
		}
	})
}

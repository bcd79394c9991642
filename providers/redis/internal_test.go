package redis

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMarkerWhenEncoded(t *testing.T) {
	m := marker{"0e4c5d5e-0000-4000-8000-000000000001", 7, 19}
	got, err := m.encode()
	if want := "52544e440e4c5d5e000040008000000000000001000000000007000000000013"; got != want || err != nil {
		t.Fatalf("%q, %v, want %q", got, err, want)
	}
	for _, bad := range []marker{{"x", 1, 1}, {strings.ToUpper(m.Rotation), 1, 1}, {strings.ReplaceAll(m.Rotation, "-", ""), 1, 1}, {m.Rotation, -1, 1}, {m.Rotation, 1, counter}} {
		if got, err := bad.encode(); err == nil {
			t.Errorf("%+v became %q", bad, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("52544e440e4c5d5e000040008000000000000001000000000007000000000013")
	f.Add(hash("secret"))
	f.Add("52544e44")
	f.Fuzz(func(t *testing.T, entry string) {
		m, ok := decode(entry)
		if !ok {
			return
		}
		again, err := m.encode()
		if err != nil || again != strings.ToLower(entry) {
			t.Fatalf("%q is %+v, and that is %q (%v)", entry, m, again, err)
		}
	})
}

func FuzzParseSession(f *testing.F) {
	f.Add("id=3 addr=127.0.0.1:1 age=12 idle=3 flags=N user=app lib-name=\n")
	f.Fuzz(func(t *testing.T, line string) {
		s, ok := parseSession(line)
		if ok && (s.user == "" || s.age < 0 || s.idle < 0) {
			t.Fatalf("%q is %+v", line, s)
		}
	})
}

func TestParseSessionWhenLineIsReal(t *testing.T) {
	got, ok := parseSession("id=3 addr=127.0.0.1:43150 laddr=127.0.0.1:6379 fd=8 name= age=12 idle=3 flags=N db=0 cmd=ping user=app redir=-1 resp=2\n")
	if diff := cmp.Diff(session{"app", 12 * time.Second, 3 * time.Second}, got, cmp.AllowUnexported(session{})); diff != "" || !ok {
		t.Error(diff, ok)
	}
	if _, ok := parseSession("id=3 age=x user=app"); ok {
		t.Error("a session whose age is no number was taken")
	}
}

package mysql

import (
	"errors"
	"testing"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

func TestFlavourWhenVersionIsRead(t *testing.T) {
	for version, want := range map[string]struct {
		text string
		dual bool
	}{
		"10.11.6-MariaDB-0+deb12u1":        {"MariaDB 10.11.6", false},
		"5.5.5-10.6.1-MariaDB":             {"MariaDB 10.6.1", false},
		"8.4.3":                            {"MySQL 8.4.3", true},
		"8.0.21-log":                       {"MySQL 8.0.21", true},
		"8.0.20":                           {"MySQL 8.0.20", false},
		"5.7.44":                           {"MySQL 5.7.44", false},
		"9.1.0-commercial":                 {"MySQL 9.1.0", true},
		"8.0.35-google":                    {"MySQL 8.0.35", true},
		"":                                 {"MySQL 0.0.0", false},
		"x.y.z.999999999999999999999999.1": {"MySQL 0.0.0", false},
	} {
		if f := flavourOf(version); f.String() != want.text || f.dual() != want.dual {
			t.Errorf("%q: %s, dual %v; want %s, %v", version, f, f.dual(), want.text, want.dual)
		}
	}
}

func TestStatementsWhenServerDiffers(t *testing.T) {
	maria, my := flavour{maria: true, version: [3]int{10, 11, 6}}, flavour{version: [3]int{8, 4, 0}}
	a := account{`o'neil"\`, "10.%"}
	m := marker{"0e4c5d5e-0000-4000-8000-000000000001", 7, 19}
	const name = `'o''neil"\'@'10.%'`
	for _, s := range []struct{ got, want string }{
		{maria.set(a, maria.auth(native, "*AB", ""), false, m), "ALTER USER " + name + " IDENTIFIED VIA mysql_native_password USING '*AB' ACCOUNT UNLOCK"},
		{maria.set(a, maria.auth(ed25519, "", "pa'ss"), false, m), "ALTER USER " + name + " IDENTIFIED VIA ed25519 USING PASSWORD('pa''ss') ACCOUNT UNLOCK"},
		{maria.end(a, maria.auth(native, "*AB", "")), "ALTER USER " + name + " IDENTIFIED VIA mysql_native_password USING '*AB' ACCOUNT LOCK"},
		{my.set(a, my.auth(cachingSHA2, "$A$005$x", ""), false, m), "ALTER USER " + name + " IDENTIFIED WITH caching_sha2_password AS 0x2441243030352478 ACCOUNT UNLOCK" +
			` ATTRIBUTE '{"rotunda":{"rotation":"0e4c5d5e-0000-4000-8000-000000000001","generation":7,"epoch":19}}'`},
		{my.set(a, my.auth(cachingSHA2, "", "text"), true, m), "ALTER USER " + name + " IDENTIFIED WITH caching_sha2_password BY 'text' RETAIN CURRENT PASSWORD ACCOUNT UNLOCK" +
			` ATTRIBUTE '{"rotunda":{"rotation":"0e4c5d5e-0000-4000-8000-000000000001","generation":7,"epoch":19}}'`},
		{my.end(a, my.auth(native, "*AB", "")), "ALTER USER " + name + " IDENTIFIED WITH mysql_native_password AS '*AB' ACCOUNT LOCK"},
		{discard(a), "ALTER USER " + name + " DISCARD OLD PASSWORD"},
	} {
		if s.got != s.want {
			t.Errorf("got\n%s\nwant\n%s", s.got, s.want)
		}
	}
}

// RETAIN CURRENT PASSWORD done twice drops the old password.
func TestStatementWhenDualWasDoneAlready(t *testing.T) {
	tg, my := &target{}, flavour{version: [3]int{8, 4, 0}}
	a := account{"app", "%"}
	c := providers.Change{Strategy: providers.Dual, Params: map[string]string{}}
	m := marker{"r", 2, 5}
	kept, err := hash(cachingSHA2, "new-password")
	if err != nil {
		t.Fatal(err)
	}
	const again = `ALTER USER 'app'@'%' ACCOUNT UNLOCK ATTRIBUTE '{"rotunda":{"rotation":"r","generation":2,"epoch":5}}'`
	for name, x := range map[string]struct {
		st   state
		want string
	}{
		"first":                {state{there: true, marked: true, marker: marker{"q", 1, 4}}, my.set(a, my.auth(cachingSHA2, "", "new-password"), true, m)},
		"the marker is ours":   {state{there: true, marked: true, marker: marker{"r", 2, 4}}, again},
		"it has that password": {state{there: true, readable: true, plugin: cachingSHA2, kept: kept}, again},
	} {
		got, _, err := tg.statement(my, a, c, x.st, "new-password", m)
		if err != nil || got != x.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got, x.want)
		}
	}
	if _, _, err := tg.statement(flavour{maria: true}, a, c, state{}, "new-password", m); !errors.Is(err, fault.ErrInvalid) {
		t.Errorf("dual on MariaDB: %v, want invalid", err)
	}
}

func TestAccountWhenParsed(t *testing.T) {
	for text, want := range map[string]account{"app": {"app", "%"}, " app@10.% ": {"app", "10.%"}, "a@b@%": {"a@b", "%"}, "日本@localhost": {"日本", "localhost"}} {
		if got, err := parseAccount(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "@host", "app@", "a\x00b", "a\nb"} {
		if got, err := parseAccount(text); !errors.Is(err, fault.ErrInvalid) {
			t.Errorf("%q: %+v, %v, want invalid", text, got, err)
		}
	}
}

func FuzzParseAttribute(f *testing.F) {
	f.Add(`{"rotunda":{"rotation":"r","generation":2,"epoch":5},"comment":"x"}`)
	f.Add(`{"rotunda":3}`)
	f.Fuzz(func(t *testing.T, text string) {
		if m, ok := parseAttribute(text); ok && m.Generation <= 0 {
			t.Fatalf("%q is %+v", text, m)
		}
	})
}

func TestKindWhenServerReports(t *testing.T) {
	for _, c := range []struct {
		at      stage
		number  uint16
		message string
		want    error
	}{
		{atLogin, 1045, "", fault.ErrDenied}, {atProof, 1045, "", fault.ErrRejected}, {atProof, 4151, "", fault.ErrRejected}, {atProof, 3118, "", fault.ErrRejected},
		{atProof, 1040, "", fault.ErrUnavailable}, {atPassword, 1819, "", fault.ErrRejected}, {atPassword, 3638, "", fault.ErrRejected}, {atPassword, 1396, "", fault.ErrNotFound},
		{atPassword, 1290, "--strict-password-validation", fault.ErrDenied}, {atPassword, 1290, "the --read-only option", fault.ErrUnavailable},
		{atPassword, 1227, "", fault.ErrDenied}, {atPassword, 1064, "", fault.ErrInvalid}, {atWork, 1205, "", fault.ErrLimited}, {atWork, 2013, "", fault.ErrUnavailable},
	} {
		if _, got := kindOf(c.at, c.number, c.message); !errors.Is(got, c.want) {
			t.Errorf("%d at %d: %v, want %v", c.number, c.at, got, c.want)
		}
	}
}

package apikeys

import (
	"math/big"
	"regexp"
	"strings"
	"testing"
)

func TestKeyStringForm(t *testing.T) {
	form := regexp.MustCompile(`^rk_operator_[0-9A-Za-z]{16}_[0-9A-Za-z]{49}$`)
	seen := map[string]bool{}
	for range 500 {
		k, v := newKeyString("operator")
		s := v.RevealString()
		if !form.MatchString(s) {
			t.Fatal("a key does not have the form rk_<env>_<16>_<49>")
		}
		got, ok := parseKeyString(s)
		if !ok || got != k {
			t.Fatal("a key does not parse to what it was made of")
		}
		if seen[k.id] || seen[k.secret] {
			t.Fatal("an id or a secret came twice")
		}
		seen[k.id], seen[k.secret] = true, true
	}
}

// GitHub's published sample token, without its prefix: ghp_ + 30 + 6 characters.
func TestChecksumWhenGitHubsVector(t *testing.T) {
	if got := checksum("zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ"); got != "0mLq17" {
		t.Errorf("got %s, want 0mLq17", got)
	}
}

func TestBase62Order(t *testing.T) {
	for i := range len(digits) {
		if got := base62(big.NewInt(int64(i))); got != digits[i:i+1] {
			t.Errorf("digit %d is %q, want %q", i, got, digits[i:i+1])
		}
	}
	// 256 bits fit into the secret's length, and one digit less would not do.
	most := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))
	if n := len(base62(most)); n != secretLength {
		t.Errorf("2^256-1 has %d digits, want %d", n, secretLength)
	}
	for range 1000 {
		if s := random(secretLength, 1); len(s) != secretLength || !strings.HasPrefix(s, strings.Repeat("0", secretLength-2)) {
			t.Fatalf("one random byte became %q", s)
		}
	}
}

// No change of a single character, swap of neighbours, cut or addition gets past the form and the checksum.
func TestParseKeyStringWhenMutated(t *testing.T) {
	_, v := newKeyString("gateway")
	good := v.RevealString()
	if _, ok := parseKeyString(good); !ok {
		t.Fatal("the key itself does not parse")
	}
	refuse := func(what, s string) {
		t.Helper()
		if s == good {
			return
		}
		if _, ok := parseKeyString(s); ok {
			t.Errorf("%s: parsed", what)
		}
	}
	for i := range len(good) {
		for _, c := range digits + "_-. \x00é" {
			refuse("a character replaced", good[:i]+string(c)+good[i+1:])
		}
		refuse("a character cut", good[:i]+good[i+1:])
		refuse("a character twice", good[:i+1]+good[i:])
		refuse("cut short", good[:i])
		if i > 0 {
			refuse("neighbours swapped", good[:i-1]+good[i:i+1]+good[i-1:i]+good[i+1:])
		}
	}
	sum := func(body string) string { return body + checksum(body) }
	id, sec := strings.Repeat("a", idLength), strings.Repeat("b", secretLength)
	if _, ok := parseKeyString(sum("rk_x_" + id + "_" + sec)); !ok {
		t.Fatal("a key made by hand does not parse")
	}
	for what, body := range map[string]string{
		"another brand":        "rx_x_" + id + "_" + sec,
		"no env":               "rk__" + id + "_" + sec,
		"a short id":           "rk_x_" + id[1:] + "_" + sec,
		"a long id":            "rk_x_" + id + "a_" + sec,
		"a short secret":       "rk_x_" + id + "_" + sec[1:],
		"a long secret":        "rk_x_" + id + "_" + sec + "b",
		"three parts":          "rk_" + id + "_" + sec,
		"five parts":           "rk_x_y_" + id + "_" + sec,
		"a dash in env":        "rk_x-y_" + id + "_" + sec,
		"a space in the id":    "rk_x_" + id[1:] + " _" + sec,
		"UTF-8 in the secret":  "rk_x_" + id + "_" + sec[2:] + "é",
		"more than 128 bytes":  "rk_" + strings.Repeat("x", 100) + "_" + id + "_" + sec,
		"a newline at the end": "rk_x_" + id + "_" + sec[1:] + "\n",
	} {
		refuse(what, sum(body))
	}
	refuse("nothing", "")
	refuse("a megabyte", "rk_"+strings.Repeat("_", 1<<20))
}

// The form of an API key is that of a token, with a brand and an environment of its
// own; neither is taken for the other.
func TestParseKeyWhenBrands(t *testing.T) {
	id, sec := strings.Repeat("a", idLength), strings.Repeat("b", secretLength)
	sum := func(body string) string { return body + checksum(body) }
	for _, c := range []struct {
		brand, s string
		want     keyString
		ok       bool
	}{
		{"rk", "rk_live_" + id + "_" + sec, keyString{"live", id, sec, false}, true},
		{"rk", "rkpub_live_" + id + "_" + sec, keyString{"live", id, sec, true}, true},
		{"acme", "acme_live_" + id + "_" + sec, keyString{"live", id, sec, false}, true},
		{"acme", "acmepub_0123456789abcdef_" + id + "_" + sec, keyString{"0123456789abcdef", id, sec, true}, true},
		{"acmepub", "acmepub_live_" + id + "_" + sec, keyString{"live", id, sec, false}, true},
		{"acmepub", "acmepubpub_live_" + id + "_" + sec, keyString{"live", id, sec, true}, true},
		{"rk", "acme_live_" + id + "_" + sec, keyString{}, false},
		{"acme", "rk_live_" + id + "_" + sec, keyString{}, false},
		{"acme", "acmepubpub_live_" + id + "_" + sec, keyString{}, false},
		{"rk", "rk_0123456789abcdefg_" + id + "_" + sec, keyString{}, false},
		{"rk", "rkpub" + id + "_" + sec, keyString{}, false},
		{"rk", "rkpub__" + id + "_" + sec, keyString{}, false},
	} {
		if got, ok := parseKey(sum(c.s), c.brand); ok != c.ok || got != c.want {
			t.Errorf("%s: got %+v, %v", c.s, got, ok)
		}
	}
	if _, ok := parseKeyString(sum("rkpub_admin_" + id + "_" + sec)); ok {
		t.Error("a publishable key is taken for an access token")
	}
	for s, want := range map[string]bool{"rk_": true, "rkpub_x": true, "acme_x": true, "acmepub_x": true, "rk": false, "rkx_": false, "acmex_": false, "sk_live": false, "": false, "ACME_": false} {
		if got := own(s, "acme"); got != want {
			t.Errorf("own(%q) is %v", s, got)
		}
	}
	for s, want := range map[string]bool{"live": true, "a": true, "0": true, "admin": false, "operator": false, "auditor": false, "gateway": false, "signer": false, "partner": false, "": false, "Live": false, "a_b": false, strings.Repeat("a", 17): false} {
		if got := checkEnvironment(s); got != want {
			t.Errorf("checkEnvironment(%q) is %v", s, got)
		}
	}
}

// Reading a key, good or bad, leaves nothing for the garbage collector: whoever sends
// many can't make it work.
func TestParseKeyAllocatesNothing(t *testing.T) {
	_, v := writeKey("acme", keyString{env: "live", id: random(idLength, 12), secret: random(secretLength, 32), public: true})
	good := v.RevealString()
	for what, s := range map[string]string{"a good key": good, "a wrong checksum": good[:len(good)-1] + "_", "something else": strings.Repeat("x", 1<<16), "nothing": ""} {
		if n := testing.AllocsPerRun(100, func() { parseKey(s, "acme") }); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

func BenchmarkParseKey(b *testing.B) {
	_, v := newKeyString("live")
	s := v.RevealString()
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := parseKey(s, brand); !ok {
			b.Fatal("it does not parse")
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, public := range []bool{false, true} {
		_, v := writeKey("acme", keyString{env: "live", id: random(idLength, 12), secret: random(secretLength, 32), public: public})
		f.Add(v.RevealString(), "acme")
	}
	f.Add("rkpub____", "rk")
	f.Add("", "rk")
	f.Fuzz(func(t *testing.T, s, brand string) {
		if !checkBrand(brand) {
			return
		}
		k, ok := parseKey(s, brand)
		if !ok {
			if k != (keyString{}) {
				t.Error("a refused string gave parts")
			}
			return
		}
		if _, again := writeKey(brand, k); again.RevealString() != s {
			t.Error("the parts do not make the string again")
		}
		if !own(s, brand) || k.env == "" || len(k.env) > maxEnv || len(k.id) != idLength || len(k.secret) != secretLength || !isBase62(k.env+k.id+k.secret) {
			t.Error("the parts have a wrong form")
		}
	})
}

func FuzzParseKeyString(f *testing.F) {
	_, v := newKeyString("admin")
	f.Add(v.RevealString())
	f.Add("rk_signer_0000000000000000_" + strings.Repeat("0", secretLength+sumLength))
	f.Add("rk____")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		k, ok := parseKeyString(s)
		if !ok {
			if k != (keyString{}) {
				t.Errorf("a refused string gave parts")
			}
			return
		}
		body := "rk_" + k.env + "_" + k.id + "_" + k.secret
		if s != body+checksum(body) {
			t.Errorf("the parts do not make the string again")
		}
		if k.env == "" || len(k.id) != idLength || len(k.secret) != secretLength || strings.Trim(k.env+k.id+k.secret, digits) != "" {
			t.Errorf("the parts have a wrong form")
		}
	})
}

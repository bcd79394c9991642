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

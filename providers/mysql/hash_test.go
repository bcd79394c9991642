package mysql

import (
	"encoding/hex"
	"strings"
	"testing"
)

// What crypt(3) of glibc makes, and hashcat's example of a
// hash of MySQL 8 (mode 7401), whose salt is longer than those.
func TestShaCryptWhenVectorsAreKnown(t *testing.T) {
	for _, v := range []struct{ password, salt, want string }{
		{"Hello world!", "saltstring", "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"},
		{"This is just a test", "toolongsaltstrin", "Un/5jzAHMgOGZ5.mWJpuVolil07guHPvOW8mGRcvxa5"},
		{strings.Repeat("x", 70), "abcdefghijklmnop", "9Hb3FAWHMjTRmtGxp5A6xgyNw0NwnVFXs5ShXabRso2"},
	} {
		if got := shaCrypt(v.password, v.salt); got != v.want {
			t.Errorf("%q: %s, want %s", v.password, got, v.want)
		}
	}
	salt, _ := hex.DecodeString("F9CC98CE08892924F50A213B6BC571A2C11778C5")
	want, _ := hex.DecodeString("625479393559393965414D45316477456B484F41316E64484742577A2E3162785353526B7554584647562F")
	if got := shaCrypt("hashcat", string(salt)); got != string(want) {
		t.Errorf("hashcat's example: %s, want %s", got, want)
	}
	if same, known := matches(cachingSHA2, shaPrefix+string(salt)+string(want), "hashcat"); !same || !known {
		t.Error("hashcat's example does not match")
	}
}

func TestHashWhenVectorsAreKnown(t *testing.T) {
	for _, v := range []struct{ plugin, password, want string }{
		{native, "password", "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19"},
		{ed25519, "secret", "ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY"},
	} {
		if got, err := hash(v.plugin, v.password); got != v.want || err != nil {
			t.Errorf("%s of %q: %s (%v), want %s", v.plugin, v.password, got, err, v.want)
		}
	}
	for _, plugin := range []string{native, ed25519, cachingSHA2} {
		h, err := hash(plugin, "one")
		if err != nil {
			t.Fatal(err)
		}
		for password, want := range map[string]bool{"one": true, "two": false, "": false} {
			if same, _ := matches(plugin, h, password); same != want {
				t.Errorf("%s: %q matches the hash of one: %v", plugin, password, same)
			}
		}
		if _, err := hash(plugin, "a\x00b"); err == nil {
			t.Errorf("%s: a password with a zero byte was taken", plugin)
		}
	}
	for _, kept := range []string{"", "$A$005$short", "$A$010$" + strings.Repeat("x", 63)} {
		if _, known := matches(cachingSHA2, kept, "one"); known {
			t.Errorf("%q was understood", kept)
		}
	}
}

package httpsig

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

// A program that prints a struct of its own with a key in an unexported field gets
// what reflection reaches: fmt calls no method there.
func TestKeyWhenPrinted(t *testing.T) {
	seed := bytes.Repeat([]byte("seed"), 8)
	private, err := NewPrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	shared, err := NewHMACKey(seed)
	if err != nil {
		t.Fatal(err)
	}
	shared.Verify([]byte("base"), nil) // its state is in the pool now
	for name, k := range map[string]*Key{"private": private, "shared": shared} {
		type own struct {
			key   *Key
			named string
		}
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
			for _, x := range []any{k, own{k, "x"}, &own{k, "x"}, []own{{k, "x"}}} {
				text := fmt.Sprintf(verb, x)
				for _, part := range []string{string(seed[:8]), hex.EncodeToString(seed[:8]), strings.Trim(fmt.Sprint(seed[:8]), "[]")} {
					if strings.Contains(text, part) {
						t.Errorf("%s key, %s of %T shows the secret", name, verb, x)
					}
				}
			}
		}
	}
}

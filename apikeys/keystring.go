package apikeys

import (
	"crypto/rand"
	"hash/crc32"
	"math/big"
	"strings"

	"github.com/rotunda-dev/rotunda/internal/secret"
)

const (
	brand        = "rk"
	digits       = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	idLength     = 16
	secretLength = 43 // 62^43 > 2^256
	sumLength    = 6  // 62^6 > 2^32
)

// keyString is a parsed key.
type keyString struct {
	env    string
	id     string
	secret string
}

// newKeyString makes a key with 256 random bits.
func newKeyString(env string) (keyString, secret.Value) {
	k := keyString{env: env, id: random(idLength, 12), secret: random(secretLength, 32)}
	body := brand + "_" + k.env + "_" + k.id + "_" + k.secret
	return k, secret.FromString(body + checksum(body))
}

// random returns n base62 digits that carry the given number of random bytes.
func random(n, bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails (Go 1.24 and later)
	s := base62(new(big.Int).SetBytes(b))
	return strings.Repeat("0", max(0, n-len(s))) + s[max(0, len(s)-n):]
}

func base62(i *big.Int) string {
	// big.Int writes 0-9a-zA-Z; GitHub's order, which others follow, is 0-9A-Za-z.
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		}
		return r
	}, i.Text(62))
}

// checksum is the CRC-32 (IEEE) of s in six base62 digits, as in GitHub's tokens.
func checksum(s string) string {
	sum := crc32.ChecksumIEEE([]byte(s))
	out := [sumLength]byte{}
	for i := sumLength - 1; i >= 0; i-- {
		out[i] = digits[sum%62]
		sum /= 62
	}
	return string(out[:])
}

// parseKeyString splits a key and checks its form and checksum. It says only
// whether the string can be a key.
func parseKeyString(s string) (keyString, bool) {
	if len(s) > 128 || !strings.HasPrefix(s, brand+"_") {
		return keyString{}, false
	}
	parts := strings.Split(s, "_")
	if len(parts) != 4 || parts[1] == "" || len(parts[2]) != idLength || len(parts[3]) != secretLength+sumLength {
		return keyString{}, false
	}
	for _, p := range parts[1:] {
		if strings.Trim(p, digits) != "" {
			return keyString{}, false
		}
	}
	body := s[:len(s)-sumLength]
	if checksum(body) != s[len(body):] {
		return keyString{}, false
	}
	return keyString{env: parts[1], id: parts[2], secret: parts[3][:secretLength]}, true
}

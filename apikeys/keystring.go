package apikeys

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"hash/crc32"
	"math/big"
	"slices"
	"strings"
	"unsafe"

	"github.com/rotunda-dev/rotunda/internal/secret"
)

const (
	brand        = "rk"  // of access tokens, and of API keys unless they have another
	publicMark   = "pub" // after the brand of a publishable key
	digits       = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	idLength     = 16
	idRandom     = 10 // of them; the rest is a mark: see Peppers.issued
	secretLength = 43 // 62^43 > 2^256
	sumLength    = 6  // 62^6 > 2^32
	maxEnv       = 16
)

// keyString is a parsed key. Its parts are substrings of what was parsed.
type keyString struct {
	env    string
	id     string
	secret string
	public bool // publishable
}

// newKeyString makes an access token with 256 random bits.
func newKeyString(env string) (keyString, secret.Value) {
	return writeKey(brand, keyString{env: env, id: random(idLength, 12), secret: random(secretLength, 32)})
}

// writeKey writes a key of these parts.
func writeKey(brand string, k keyString) (keyString, secret.Value) {
	mark := ""
	if k.public {
		mark = publicMark
	}
	body := brand + mark + "_" + k.env + "_" + k.id + "_" + k.secret
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
	sum := sum(s)
	return string(sum[:])
}

func sum(s string) [sumLength]byte {
	if s == "" {
		return sixDigits(0)
	}
	// hash/crc32 takes bytes, and only reads them; a copy would be an allocation on
	// each verification.
	return sixDigits(uint64(crc32.ChecksumIEEE(unsafe.Slice(unsafe.StringData(s), len(s)))))
}

// sixDigits are the last six base62 digits of n.
func sixDigits(n uint64) (out [6]byte) {
	for i := len(out) - 1; i >= 0; i-- {
		out[i] = digits[n%62]
		n /= 62
	}
	return out
}

// parseKeyString splits an access token and checks its form and checksum. It says
// only whether the string can be a token.
func parseKeyString(s string) (keyString, bool) {
	k, ok := parseKey(s, brand)
	if k.public {
		return keyString{}, false
	}
	return k, ok
}

// parseKey splits a key of a brand and checks its form and checksum. It says only
// whether the string can be a key, and allocates nothing.
//
//	<brand>[pub]_<env: 1 to 16 base62 digits>_<id: 16>_<secret: 43><checksum: 6>
func parseKey(s, brand string) (keyString, bool) {
	rest, ok := strings.CutPrefix(s, brand)
	if !ok {
		return keyString{}, false
	}
	rest, public := strings.CutPrefix(rest, publicMark)
	const tail = 1 + idLength + 1 + secretLength + sumLength
	env := len(rest) - 1 - tail
	if env < 1 || env > maxEnv || rest[0] != '_' || rest[1+env] != '_' || rest[1+env+1+idLength] != '_' {
		return keyString{}, false
	}
	k := keyString{env: rest[1 : 1+env], public: public}
	rest = rest[1+env+1:]
	k.id, rest = rest[:idLength], rest[idLength+1:]
	k.secret = rest[:secretLength]
	if !isBase62(k.env) || !isBase62(k.id) || !isBase62(k.secret) {
		return keyString{}, false
	}
	if want := sum(s[:len(s)-sumLength]); string(want[:]) != s[len(s)-sumLength:] {
		return keyString{}, false
	}
	return k, true
}

func isBase62(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// own reports whether a string begins as keys of the brand and access tokens do.
// Such a string is never an imported key, so it need not be looked for among them.
func own(s, keyBrand string) bool {
	for _, b := range []string{keyBrand, brand} {
		rest, ok := strings.CutPrefix(s, b)
		if ok && (strings.HasPrefix(rest, "_") || strings.HasPrefix(rest, publicMark+"_")) {
			return true
		}
	}
	return false
}

// newID makes the id of an API key or a request secret.
func (p *Peppers) newID() string {
	id := random(idRandom, 16)
	mark := p.mark(id)
	return id + string(mark[:])
}

// issued reports whether an id can have come from newID: who made it up is told
// apart with certainty 1 - 62^-6, without any look-up. The comparison takes the
// same time for all ids.
func (p *Peppers) issued(id string) bool {
	if len(id) != idLength {
		return false
	}
	mark := p.mark(id[:idRandom])
	return subtle.ConstantTimeCompare(mark[:], []byte(id[idRandom:])) == 1
}

// mark is the last part of an id, made of its first.
func (p *Peppers) mark(random string) [6]byte {
	h := newMAC(p.idKey)
	h.Write([]byte(random))
	return sixDigits(binary.BigEndian.Uint64(h.Sum(nil)))
}

// checkBrand says whether key strings can begin with it.
func checkBrand(s string) bool {
	return len(s) >= 2 && len(s) <= 12 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") == ""
}

// checkEnvironment says whether a key can be of an environment. One that is called
// like a role would let a key look like an access token.
func checkEnvironment(s string) bool {
	return len(s) >= 1 && len(s) <= maxEnv && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == "" && !slices.Contains(Roles, Role(s))
}

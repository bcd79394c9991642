package mysql

import (
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // it is how mysql_native_password is defined
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"filippo.io/edwards25519"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// The authentication plugins whose form of a password can be computed here.
const (
	native      = "mysql_native_password"
	ed25519     = "ed25519"
	cachingSHA2 = "caching_sha2_password"
)

// hash is what the server keeps of a password for a plugin.
func hash(plugin, password string) (string, error) {
	if password == "" || len(password) > 255 || strings.ContainsRune(password, 0) {
		return "", fault.Invalid("fields.password", "password_unusable", "a password has from 1 to 255 bytes here, and none of them is zero")
	}
	switch plugin {
	case native:
		return nativeHash(password), nil
	case ed25519:
		return ed25519Hash(password)
	case cachingSHA2:
		salt := rand.Text()[:saltLength]
		return shaPrefix + salt + shaCrypt(password, salt), nil
	}
	return "", fault.Invalid("params.plugin", "plugin_unknown", "the plugin %q is none of %s, %s, %s", plugin, native, ed25519, cachingSHA2)
}

// matches says whether kept is of the password; known is false when that can't be told.
func matches(plugin, kept, password string) (same, known bool) {
	if password == "" {
		return false, false
	}
	var want string
	switch plugin {
	case native, "":
		want = nativeHash(password)
	case ed25519:
		h, err := ed25519Hash(password)
		if err != nil {
			return false, false
		}
		want = h
	case cachingSHA2:
		rest, ok := strings.CutPrefix(kept, shaPrefix)
		if !ok || len(rest) != saltLength+43 {
			return false, false
		}
		want = shaPrefix + rest[:saltLength] + shaCrypt(password, rest[:saltLength])
	default:
		return false, false
	}
	return subtle.ConstantTimeCompare([]byte(want), []byte(kept)) == 1, true
}

// nativeHash is SHA1(SHA1(password)), as PASSWORD() returns it.
func nativeHash(password string) string {
	one := sha1.Sum([]byte(password)) //nolint:gosec // as above
	two := sha1.Sum(one[:])           //nolint:gosec // as above
	return "*" + strings.ToUpper(hex.EncodeToString(two[:]))
}

// ed25519Hash is the public key whose secret is the password, of any length, in the
// place of the seed (RFC 8032, section 5.1.5), in base64 without padding.
func ed25519Hash(password string) (string, error) {
	digest := sha512.Sum512([]byte(password))
	scalar, err := edwards25519.NewScalar().SetBytesWithClamping(digest[:32])
	if err != nil {
		return "", fmt.Errorf("derive an ed25519 key: %w", err)
	}
	return base64.RawStdEncoding.EncodeToString(new(edwards25519.Point).ScalarBaseMult(scalar).Bytes()), nil
}

// caching_sha2_password has 5,000 rounds, in thousands after "A", and a salt of 20 bytes
// where other users of SHA-crypt have 16.
const (
	shaPrefix  = "$A$005$"
	saltLength = 20
)

package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// iterations is PostgreSQL's own default (scram_iterations).
const iterations = 4096

// verifier is what PostgreSQL keeps of a password, with a fresh salt (RFC 5803, RFC 5802
// section 3). SASLprep (RFC 4013) leaves printable ASCII as it is; other passwords
// are refused, because servers and drivers disagree about them.
func verifier(password string) (string, error) {
	if password == "" || len(password) > 512 {
		return "", fault.Invalid("fields.password", "password_unusable", "a password has from 1 to 512 characters here")
	}
	for i := range len(password) {
		if password[i] < 0x20 || password[i] > 0x7e {
			return "", fault.Invalid("fields.password", "password_unusable", "the password has a character that is not printable ASCII, and could not be prepared for SCRAM in a way that all drivers agree on")
		}
	}
	var salt [16]byte
	_, _ = rand.Read(salt[:]) // never fails: crypto/rand
	return verifierWith(password, salt[:], iterations)
}

func verifierWith(password string, salt []byte, iterations int) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("derive a SCRAM verifier: %w", err)
	}
	clientKey := mac(salted, "Client Key")
	storedKey := sha256.Sum256(clientKey)
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(storedKey[:]), b64(mac(salted, "Server Key"))), nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

package jwks

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"
)

// Document is a keyset's JWKS document (RFC 7517, section 5), rendered once
// and served as it is. It never changes.
type Document struct {
	Name      string
	Issuer    string
	Algorithm Algorithm
	Version   int64
	Body      []byte
	ETag      string // strong, quoted (RFC 9110, section 8.8.3)

	maxAge  time.Duration
	removal time.Time // when a key leaves it; zero when none does
}

func render(s *Keyset) (*Document, error) {
	doc := struct {
		Keys []json.RawMessage `json:"keys"`
	}{Keys: make([]json.RawMessage, len(s.Keys))}
	for i, k := range s.Keys {
		doc.Keys[i] = k.Public
	}
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("render keyset %q: %w", s.Name, err)
	}
	sum := sha256.Sum256(body)
	d := &Document{
		Name: s.Name, Issuer: s.Issuer, Algorithm: s.Algorithm, Version: s.Version,
		Body: body, ETag: `"` + base64.RawURLEncoding.EncodeToString(sum[:15]) + `"`,
		maxAge: s.Policy.maxAge(), removal: s.nextRemoval(),
	}
	return d, nil
}

// MaxAge is how long a cache may use the document at now: no longer than the
// policy and its emergency target allow, and not beyond the next planned
// removal of a key. Whole seconds, rounded down, and never zero: some consumers
// take zero as "no answer" and use a longer time of their own.
func (d *Document) MaxAge(now time.Time) time.Duration {
	age := d.maxAge
	if !d.removal.IsZero() {
		age = min(age, d.removal.Sub(now))
	}
	return max(time.Second, age.Truncate(time.Second))
}

package verify

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json" // tells names apart by case, and refuses one that is there twice
)

// Claims are those of a verified token (RFC 7519, section 4.1).
type Claims struct {
	Issuer    string
	Subject   string
	Audience  []string
	ID        string
	ExpiresAt time.Time
	NotBefore time.Time // zero when the token has none
	IssuedAt  time.Time // zero when the token has none
	Scopes    []string  // of "scope" (RFC 8693, section 4.2), else of "scp"

	KeyID     string
	Algorithm string
	Type      string // the typ header, as it is written

	payload []byte
}

// Decode reads all claims into a struct with json tags or a map, as
// encoding/json would. A claim that is there twice was refused before.
func (c *Claims) Decode(into any) error {
	if err := json.Unmarshal(c.payload, into); err != nil {
		return fmt.Errorf("reading the claims of a token: %w", err)
	}
	return nil
}

// Has says whether the token has the scope.
func (c *Claims) Has(scope string) bool { return slices.Contains(c.Scopes, scope) }

func parseClaims(payload []byte) (*Claims, error) {
	var in struct {
		Issuer   string  `json:"iss"`
		Subject  string  `json:"sub"`
		Audience texts   `json:"aud"`
		ID       string  `json:"jti"`
		Exp      instant `json:"exp"`
		Nbf      instant `json:"nbf"`
		Iat      instant `json:"iat"`
		Scope    texts   `json:"scope"`
		Scp      texts   `json:"scp"`
	}
	if err := json.Unmarshal(payload, &in); err != nil {
		return nil, err
	}
	c := &Claims{
		Issuer: in.Issuer, Subject: in.Subject, Audience: in.Audience, ID: in.ID,
		ExpiresAt: in.Exp.Time, NotBefore: in.Nbf.Time, IssuedAt: in.Iat.Time,
		payload: payload,
	}
	scopes := in.Scope
	if scopes == nil {
		scopes = in.Scp
	}
	for _, s := range scopes {
		c.Scopes = append(c.Scopes, strings.Fields(s)...)
	}
	return c, nil
}

// texts is a string or a list of strings.
type texts []string

func (t *texts) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*t = make(texts, 1)
		return json.Unmarshal(b, &(*t)[0])
	}
	var list []string
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*t = list
	return nil
}

// instant is a NumericDate (RFC 7519, section 2), to the second.
type instant struct{ time.Time }

func (i *instant) UnmarshalJSON(b []byte) error {
	const lastYear9999 = 253_402_300_799
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || !(f >= 0 && f <= lastYear9999) {
		return errors.New("a time is not a number of seconds since 1970")
	}
	i.Time = time.Unix(int64(f), 0).UTC()
	return nil
}

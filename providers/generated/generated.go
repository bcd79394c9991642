// Package generated is the target kind "generated": a random value that no system has
// to be told of, because only those who read it from the store use it: a key for
// cookies, a token between two services of one deployment.
//
// # The value
//
// With encoding=text it is length characters of an alphabet. Each character is drawn on
// its own, all with the same probability: bytes of the system's random generator that
// would favour some characters are thrown away. With encoding=hex, base64 or base64url
// it is length random bytes in that form. A value of less than 128 bits is refused,
// unless allow_weak=true says that whoever takes it can't take more.
//
// # The strategy
//
// There is one value, which consumers read; so it is replace, without a window: nothing
// accepts the value but the consumers themselves, from the moment when they read it.
// There is nothing to apply, verify, retire or revoke. The previous value stays with
// the store for as long as the store keeps it.
package generated

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/internal/secret"
	"github.com/rotunda-dev/rotunda/providers"
)

const (
	strong       = 128  // bits
	maxLength    = 4096 // characters, or bytes before they are encoded
	minAlphabet  = 10
	maxAlphabet  = 256
	sampleAtOnce = 256
)

const (
	digits = "0123456789"
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

func alphabetOf(name string) string {
	switch name {
	case "base62":
		return digits + upper + lower
	case "base64url":
		return upper + lower + digits + "-_"
	case "hex":
		return digits + "abcdef"
	case "digits":
		return digits
	case "ascii":
		all := make([]byte, 0, '~'-'!'+1)
		for c := byte('!'); c <= '~'; c++ {
			all = append(all, c)
		}
		return string(all)
	}
	return ""
}

// Kind is the kind "generated".
func Kind() providers.TargetKind {
	return providers.TargetKind{
		Name: "generated",
		Doc:  "A random value that no system has to be told of: consumers agree on it by reading it.",
		Params: []providers.Setting{
			{Name: "length", Doc: "how many characters, or with another encoding than text how many random bytes; 1 to 4096", Default: "32", Pattern: `[1-9][0-9]{0,3}`},
			{Name: "alphabet", Doc: "what the characters are drawn from; ascii is everything printable but the space", Default: "base62", OneOf: []string{"base62", "hex", "base64url", "ascii", "digits"}},
			{Name: "characters", Doc: "an alphabet of your own, instead: 10 to 256 different printable characters"},
			{Name: "encoding", Doc: "text: characters of the alphabet; else random bytes in that form", Default: "text", OneOf: []string{"text", "hex", "base64", "base64url"}},
			{Name: "field", Doc: "the name of the field that consumers read", Default: "value", Pattern: `[A-Za-z_][A-Za-z0-9_.-]{0,127}`},
			{Name: "allow_weak", Doc: "true: also values of less than 128 bits", Default: "false", OneOf: []string{"true", "false"}},
		},
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Replace}},
		Open:   func(context.Context, providers.Config) (providers.Target, error) { return target{}, nil },
	}
}

// recipe is how a value is made.
type recipe struct {
	length   int
	alphabet []rune // nil: random bytes
	encoding string
	field    string
	bits     float64
}

func recipeOf(c providers.Change) (recipe, error) {
	p, err := providers.Complete("params", Kind().Params, c.Params)
	if err != nil {
		return recipe{}, err
	}
	r := recipe{encoding: p["encoding"], field: p["field"]}
	if r.length, err = strconv.Atoi(p["length"]); err != nil || r.length > maxLength {
		return recipe{}, fault.Invalid("params.length", "length", "a generated value has 1 to %d characters, not %.20q", maxLength, p["length"])
	}
	if _, ok := c.Static[r.field]; ok {
		return recipe{}, fault.Invalid("params.field", "field_static", "the generated value would replace the static field %s: give one of them another name", r.field)
	}
	each := 8.0
	if r.encoding == "text" {
		if r.alphabet, err = parseAlphabet(p["alphabet"], p["characters"]); err != nil {
			return recipe{}, err
		}
		each = math.Log2(float64(len(r.alphabet)))
	} else if p["characters"] != "" {
		return recipe{}, fault.Invalid("params.characters", "not_text", "an alphabet of its own goes with encoding=text, not %s", r.encoding)
	}
	r.bits = each * float64(r.length)
	if r.bits < strong && p["allow_weak"] != "true" {
		return recipe{}, fault.Invalid("params.length", "weak", "a generated value would have %.0f bits, less than %d: use length=%d or more, or set allow_weak=true",
			math.Floor(r.bits), strong, int(math.Ceil(strong/each)))
	}
	return r, nil
}

func parseAlphabet(name, characters string) ([]rune, error) {
	if characters == "" {
		return []rune(alphabetOf(name)), nil
	}
	if !utf8.ValidString(characters) {
		return nil, fault.Invalid("params.characters", "malformed", "the alphabet is not text in UTF-8")
	}
	set := []rune(characters)
	seen := make(map[rune]bool, len(set))
	for _, c := range set {
		if seen[c] || !unicode.IsPrint(c) {
			return nil, fault.Invalid("params.characters", "malformed", "the alphabet holds %q twice, or can't be printed: each character once, so that all are equally likely", c)
		}
		seen[c] = true
	}
	if len(set) < minAlphabet || len(set) > maxAlphabet {
		return nil, fault.Invalid("params.characters", "size", "the alphabet has %d characters: use %d to %d", len(set), minAlphabet, maxAlphabet)
	}
	return set, nil
}

// make draws a value from the random bytes of random.
func (r recipe) make(random io.Reader) (secret.Value, error) {
	if r.alphabet == nil {
		raw := make([]byte, r.length)
		defer clear(raw)
		if _, err := io.ReadFull(random, raw); err != nil {
			return secret.Value{}, fmt.Errorf("draw random bytes: %w", err)
		}
		return secret.FromString(r.encode(raw)), nil
	}
	text := make([]byte, 0, 4*r.length)
	defer func() { clear(text) }()
	pool := make([]byte, sampleAtOnce)
	defer clear(pool)
	for left := r.length; left > 0; {
		if _, err := io.ReadFull(random, pool); err != nil {
			return secret.Value{}, fmt.Errorf("draw random bytes: %w", err)
		}
		for _, b := range pool {
			if i, ok := draw(b, len(r.alphabet)); ok && left > 0 {
				text = utf8.AppendRune(text, r.alphabet[i])
				left--
			}
		}
	}
	return secret.New(text), nil
}

func (r recipe) encode(raw []byte) string {
	switch r.encoding {
	case "hex":
		return hex.EncodeToString(raw)
	case "base64":
		return base64.StdEncoding.EncodeToString(raw)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// draw makes a number below n (1 to 256) of a random byte. Bytes at or above the last
// whole multiple of n are thrown away: with them some numbers would come more often.
func draw(b byte, n int) (int, bool) {
	if int(b) >= 256-256%n {
		return 0, false
	}
	return int(b) % n, true
}

type target struct{}

func (target) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("check a generated value: %w", err)
	}
	r, err := recipeOf(c)
	if err != nil {
		return []providers.Finding{{Check: "parameters", Detail: err.Error(), Remedy: "change the credential's parameters"}}, nil //nolint:nilerr // what is wrong is the finding
	}
	bits := fmt.Sprintf("%.0f bits", math.Floor(r.bits))
	if r.bits < strong {
		return []providers.Finding{{
			Check: "strength", Warning: true, Measured: bits,
			Detail: fmt.Sprintf("values have less than %d bits and can be guessed by who can try often", strong),
			Remedy: "use a greater length, and drop allow_weak, if what reads the value can take it",
		}}, nil
	}
	return []providers.Finding{{Check: "strength", OK: true, Measured: bits}}, nil
}

// Prepare makes the value. Parameters that can't be used are refused here, too: they
// may have changed since the preflight.
func (target) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	if err := ctx.Err(); err != nil {
		return providers.Change{}, fmt.Errorf("prepare a generated value: %w", err)
	}
	r, err := recipeOf(c)
	if err != nil {
		return providers.Change{}, err
	}
	v, err := r.make(rand.Reader)
	if err != nil {
		return providers.Change{}, err
	}
	f := providers.Fields{r.field: v}
	for name, text := range c.Static {
		f[name] = secret.FromString(text)
	}
	c.New = providers.Held{Generation: c.Generation, Rotation: c.Rotation, Account: c.Credential, Fields: f}
	return c, nil
}

func (target) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	if err := ctx.Err(); err != nil {
		return providers.Held{}, fmt.Errorf("apply a generated value: %w", err)
	}
	if len(c.New.Fields) == 0 {
		return providers.Held{}, fault.Invalid("new", "not_prepared", "apply a generated value: there is none, because Prepare was not called")
	}
	return c.New, nil
}

// Verify returns nil: there is nobody to ask.
func (target) Verify(ctx context.Context, _ providers.Change, _ providers.Held) error {
	return ctx.Err()
}

func (target) Applied(context.Context, providers.Change, string) (providers.Applied, error) {
	return providers.Applied{}, nil
}

func (target) Usage(context.Context, providers.Change, providers.Held) (providers.Evidence, error) {
	return providers.Evidence{}, nil
}

func (target) Retire(context.Context, providers.Change, providers.Held, time.Time) error { return nil }

func (target) Revoke(context.Context, providers.Change, providers.Held) error { return nil }

func (target) Close() error { return nil }

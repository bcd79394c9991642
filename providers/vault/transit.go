package vault

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/providers"
)

// TransitKind is the target kind "vault-transit".
func TransitKind() providers.TargetKind {
	return providers.TargetKind{
		Name: "vault-transit",
		Doc:  "Versions of a key in HashiCorp Vault Transit.",
		Settings: append(Settings(),
			providers.Setting{Name: "mount", Doc: "path of the Transit mount", Default: "transit", Pattern: mountPattern}),
		Login: Logins(),
		Params: []providers.Setting{
			{Name: "key", Doc: "name of the key", Required: true, Pattern: namePattern},
			{Name: "trim", Doc: "true: delete revoked versions for good; what they encrypted can never be read again", OneOf: []string{"false", "true"}, Default: "false"},
		},
		Traits: providers.Traits{Strategies: []providers.Strategy{providers.Dual}, Valueless: true, Parallel: 8},
		Open: func(_ context.Context, c providers.Config) (providers.Target, error) {
			client, err := NewClient(c)
			if err != nil {
				return nil, err
			}
			return &transit{client, c.Settings["mount"]}, nil
		},
	}
}

type transit struct {
	*Client
	mount string
}

// TransitKey is what Vault tells of a Transit key.
type TransitKey struct {
	Type               string `json:"type"`
	Latest             int64  `json:"latest_version"`
	MinDecryption      int64  `json:"min_decryption_version"` // also of verification
	MinEncryption      int64  `json:"min_encryption_version"` // also of signing; 0: no minimum
	MinAvailable       int64  `json:"min_available_version"`  // older ones are deleted
	Signs              bool   `json:"supports_signing"`
	Encrypts           bool   `json:"supports_encryption"`
	Derived            bool   `json:"derived"`
	Exportable         bool   `json:"exportable"`
	PlaintextBackup    bool   `json:"allow_plaintext_backup"`
	DeletionAllowed    bool   `json:"deletion_allowed"`
	AutoRotatePeriod   int64  `json:"auto_rotate_period"` // seconds
	ImportedKey        bool   `json:"imported_key"`
	AllowImportedTurns bool   `json:"imported_key_allow_rotation"`

	// Keys are the versions that are not below the minimum. Of symmetric keys they are
	// numbers, and not read.
	Keys map[string]json.RawMessage `json:"keys"`
}

// Transit reads a key.
func (c *Client) Transit(ctx context.Context, mount, key string) (TransitKey, error) {
	var k TransitKey
	if err := c.Read(ctx, mount+"/keys/"+key, &k); err != nil {
		return k, fmt.Errorf("Transit key %s: %w", key, err)
	}
	return k, nil
}

// TransitEnd says which versions of a key are to end.
type TransitEnd struct {
	Mount, Key string
	Oldest     int64 // the first one that stays usable
	Signing    bool  // also for whoever signs or encrypts with a version by its number
	Trim       bool  // delete them for good
}

// EndTransit makes old versions unusable. It never lowers a minimum, and repeats as
// nothing.
func (c *Client) EndTransit(ctx context.Context, e TransitEnd) error {
	k, err := c.Transit(ctx, e.Mount, e.Key)
	if err != nil {
		return err
	}
	if e.Oldest > k.Latest {
		return fault.New(fault.ErrTransition, "transit_newest", "Transit key %s: version %d is the newest, and can only end when there is a newer one", e.Key, k.Latest)
	}
	in := map[string]any{}
	if k.MinDecryption < e.Oldest {
		in["min_decryption_version"] = e.Oldest
	}
	// 0 is the latest for whoever names no version; else it must not be below the other
	// one. Trimming wants it set.
	if (k.MinEncryption != 0 || e.Signing || e.Trim) && k.MinEncryption < e.Oldest {
		in["min_encryption_version"] = e.Oldest
	}
	at := e.Mount + "/keys/" + e.Key
	if len(in) > 0 {
		if err := c.Write(ctx, at+"/config", in, nil); err != nil {
			return fmt.Errorf("Transit key %s: raise its minimum versions to %d: %w", e.Key, e.Oldest, err)
		}
	}
	if e.Trim && k.MinAvailable < e.Oldest {
		if err := c.Write(ctx, at+"/trim", map[string]any{"min_available_version": e.Oldest}, nil); err != nil {
			return fmt.Errorf("Transit key %s: delete the versions before %d: %w", e.Key, e.Oldest, err)
		}
	}
	return nil
}

func version(h providers.Held) (int64, error) {
	n, err := strconv.ParseInt(h.ID, 10, 64)
	if err != nil || n < 1 {
		return 0, fault.New(fault.ErrInvalid, "version_missing", "Transit key %s: generation %d has no version in the records", h.Account, h.Generation)
	}
	return n, nil
}

// Prepare notes the latest version.
func (t *transit) Prepare(ctx context.Context, c providers.Change) (providers.Change, error) {
	k, err := t.Transit(ctx, t.mount, c.Params["key"])
	if err != nil {
		return c, err
	}
	c.New.Account, c.New.ID = c.Params["key"], ""
	c.Before = []string{strconv.FormatInt(k.Latest, 10)}
	return c, nil
}

// Apply adds the version after the noted one, unless it is there.
func (t *transit) Apply(ctx context.Context, c providers.Change) (providers.Held, error) {
	h := c.New
	if len(c.Before) != 1 {
		return h, fault.New(fault.ErrInvalid, "before_missing", "rotate Transit key %s: the plan has no latest version", h.Account)
	}
	before, err := strconv.ParseInt(c.Before[0], 10, 64)
	if err != nil {
		return h, fault.New(fault.ErrInvalid, "before_missing", "rotate Transit key %s: the plan has no latest version", h.Account)
	}
	k, err := t.Transit(ctx, t.mount, h.Account)
	if err != nil {
		return h, err
	}
	switch {
	case k.Latest < before:
		return h, fault.New(fault.ErrStale, "transit_restored", "rotate Transit key %s: its latest version is %d, and was %d: an older state was restored", h.Account, k.Latest, before)
	case k.Latest == before:
		if err := t.Write(ctx, t.mount+"/keys/"+h.Account+"/rotate", map[string]any{}, nil); err != nil {
			return h, fmt.Errorf("rotate Transit key %s: %w", h.Account, err)
		}
	}
	// Also when there are more by now: of equal calls each has to say the same.
	h.ID = strconv.FormatInt(before+1, 10)
	return h, nil
}

// Verify uses the version: signs and verifies, or encrypts and decrypts. Of a version
// that no longer makes anything, as an old one, Vault tells whether it still reads.
func (t *transit) Verify(ctx context.Context, _ providers.Change, h providers.Held) error {
	n, err := version(h)
	if err != nil {
		return err
	}
	k, err := t.Transit(ctx, t.mount, h.Account)
	if err != nil {
		return err
	}
	rejected := func(why string) error {
		return fault.New(fault.ErrRejected, "transit_version", "Transit key %s: version %d %s", h.Account, n, why)
	}
	switch {
	case n > k.Latest:
		return rejected("does not exist")
	case n < k.MinDecryption || n < k.MinAvailable:
		return rejected("is below the minimum version")
	case n < k.MinEncryption:
		return nil
	}
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (Go 1.24 and later)
	sample := base64.StdEncoding.EncodeToString(b[:])
	in := map[string]any{"key_version": n}
	if k.Derived {
		in["context"] = base64.StdEncoding.EncodeToString([]byte("rotunda"))
	}
	var out struct {
		Signature  string `json:"signature"`
		Ciphertext string `json:"ciphertext"`
		HMAC       string `json:"hmac"`
		Plaintext  string `json:"plaintext"`
		Valid      bool   `json:"valid"`
	}
	do := func(what string, in map[string]any) error {
		if err := t.Write(ctx, t.mount+"/"+what+"/"+h.Account, in, &out); err != nil {
			return fmt.Errorf("Transit key %s: %s with version %d: %w", h.Account, what, n, err)
		}
		return nil
	}
	if k.Encrypts {
		in["plaintext"] = sample
		if err := do("encrypt", in); err != nil {
			return err
		}
		delete(in, "plaintext")
		delete(in, "key_version")
		in["ciphertext"] = out.Ciphertext
		if err := do("decrypt", in); err != nil {
			return err
		}
		if out.Plaintext != sample {
			return rejected("does not decrypt what it encrypted")
		}
		return nil
	}
	make, field := "sign", func() (string, string) { return "signature", out.Signature }
	if !k.Signs {
		make, field = "hmac", func() (string, string) { return "hmac", out.HMAC }
	}
	in["input"] = sample
	if err := do(make, in); err != nil {
		return err
	}
	delete(in, "key_version")
	name, made := field()
	in[name] = made
	if err := do("verify", in); err != nil {
		return err
	}
	if !out.Valid {
		return rejected("does not verify what it signed")
	}
	return nil
}

// Applied is unknown: Transit keeps no word of who made a version.
func (t *transit) Applied(context.Context, providers.Change, string) (providers.Applied, error) {
	return providers.Applied{}, nil
}

// Usage is unknown: Transit does not count the uses of a version.
func (t *transit) Usage(context.Context, providers.Change, providers.Held) (providers.Evidence, error) {
	return providers.Evidence{}, nil
}

// Retire can't do anything: a version has no end of its own.
func (t *transit) Retire(context.Context, providers.Change, providers.Held, time.Time) error {
	return nil
}

// Revoke ends h and every older version by the minimum versions. A version that is
// newer than the one in use (a rotation that is taken back) can't be ended alone; it
// holds no value that could be known to anybody, and ends with the first Revoke after
// which it is old.
func (t *transit) Revoke(ctx context.Context, c providers.Change, h providers.Held) error {
	n, err := version(h)
	if err != nil {
		return err
	}
	for _, keep := range []providers.Held{c.New, c.Current} {
		if keep.ID == "" || keep.ID == h.ID {
			continue
		}
		k, err := version(keep)
		if err != nil {
			return err
		}
		if k < n {
			return nil
		}
	}
	return t.EndTransit(ctx, TransitEnd{Mount: t.mount, Key: h.Account, Oldest: n + 1, Trim: c.Params["trim"] == "true"})
}

// manyVersions is when a key comes near what Vault's storage takes (817 versions of
// P-256 in an entry of 512 KiB, 116 of RSA-2048).
const manyVersions = 100

// Check looks at the policy and the key.
func (t *transit) Check(ctx context.Context, c providers.Change) ([]providers.Finding, error) {
	found, err := t.Health(ctx)
	if err != nil || !fine(found) {
		return found, err
	}
	key := c.Params["key"]
	at := t.mount + "/keys/" + key
	more, err := t.permissions(ctx, []need{{path: at, may: []string{"read"}, why: "to see its versions"}})
	found = append(found, more...)
	if err != nil || !fine(found) {
		return found, err
	}
	k, err := t.Transit(ctx, t.mount, key)
	if err != nil {
		more, err := finding("key", "make the key, or correct its name and the mount", err)
		return append(found, more...), err
	}
	needs := []need{
		{path: at + "/rotate", may: []string{"update"}, why: "to add a version"},
		{path: at + "/config", may: []string{"update"}, why: "to end old versions"},
	}
	if c.Params["trim"] == "true" {
		needs = append(needs, need{path: at + "/trim", may: []string{"update"}, why: "to delete old versions"})
	}
	for _, what := range proofs(k) {
		needs = append(needs, need{path: t.mount + "/" + what + "/" + key, may: []string{"update"}, why: "to prove the new version"})
	}
	if more, err = t.permissions(ctx, needs); err != nil {
		return found, err
	}
	found = append(found, more...)
	if k.ImportedKey && !k.AllowImportedTurns {
		found = append(found, bad("key", "import it again with allow_rotation=true", "the key was imported and may not be rotated"))
	}
	if k.AutoRotatePeriod > 0 {
		found = append(found, warn("schedule", "set auto_rotate_period=0", "Vault rotates the key by itself every %s, too", time.Duration(k.AutoRotatePeriod)*time.Second))
	}
	if k.Exportable || k.PlaintextBackup {
		found = append(found, warn("export", "make a key that can't be exported", "the key can be exported in plain text: rotating it does not end copies"))
	}
	if kept := k.Latest - max(k.MinAvailable, 1) + 1; kept >= manyVersions {
		f := warn("versions", "revoke with trim=true when nothing needs the old ones", "Vault keeps all versions of a key in one entry of limited size")
		f.Measured = fmt.Sprintf("%d versions", kept)
		found = append(found, f)
	}
	return found, nil
}

func proofs(k TransitKey) []string {
	switch {
	case k.Encrypts:
		return []string{"encrypt", "decrypt"}
	case k.Signs:
		return []string{"sign", "verify"}
	}
	return []string{"hmac", "verify"}
}

// Scratch makes a key of the same type.
func (t *transit) Scratch(ctx context.Context, c providers.Change, suffix string) (map[string]string, error) {
	k, err := t.Transit(ctx, t.mount, c.Params["key"])
	if err != nil {
		return nil, err
	}
	params := maps.Clone(c.Params)
	params["key"] += suffix
	if err := t.Write(ctx, t.mount+"/keys/"+params["key"], map[string]any{"type": k.Type, "derived": k.Derived}, nil); err != nil {
		return nil, fmt.Errorf("make the Transit key %s: %w", params["key"], err)
	}
	return params, nil
}

// Unscratch deletes the key that Scratch made.
func (t *transit) Unscratch(ctx context.Context, c providers.Change, suffix string) error {
	if suffix == "" {
		return fault.New(fault.ErrInvalid, "suffix_missing", "delete a scratch Transit key: no suffix")
	}
	key := c.Params["key"] + suffix
	_, err := t.Transit(ctx, t.mount, key)
	if errors.Is(err, fault.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = t.Write(ctx, t.mount+"/keys/"+key+"/config", map[string]any{"deletion_allowed": true}, nil)
	}
	if err == nil {
		err = t.call(ctx, remove, t.mount+"/keys/"+key, nil, nil)
	}
	if err != nil {
		return fmt.Errorf("delete the Transit key %s: %w", key, err)
	}
	return nil
}

var _ providers.Scratcher = (*transit)(nil)

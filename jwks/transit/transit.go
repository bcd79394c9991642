// Package transit keeps signing keys in HashiCorp Vault Transit: the private halves are
// made there and never leave it.
//
// # Model
//
// A keyset has one Transit key, named by a prefix and the keyset's id; each of its
// signing keys is a version of that. A row holds mount, name and number of the version,
// which are no secrets; what the row says is sealed like every row of a key, and the
// public half that Vault has must be the one that is published.
//
// Create adds a version. Whether an unanswered rotate happened is told by reading: a
// version that is newer than every one that the keyset has or had, and is published
// nowhere, was left by an earlier try, and is handed out instead of a new one. So tries
// that fail leave at most one version behind, however many there are.
//
// Transit ends versions in order: minimums end all that are older. After a withdrawal
// they are raised to the oldest version that signs or may come to sign. (A retiring key
// needs Vault no more: its tokens are verified with the published half.) A version that
// is withdrawn while an older one signs, as a revoked standby, stays able to sign for
// whoever may call Vault, until that older one is withdrawn: Destroy says so. With trim
// versions below the minimum are deleted; without, an administrator of Vault can lower
// the minimum again. A Destroy that failed is made good by the next one: it ends all
// that is older, too.
//
// A keyset whose creation fails after Create leaves its Transit key behind, unused.
//
// # Failure
//
// Sealed, out of reach, too many requests: fault.ErrUnavailable, and the policy's
// fallback applies; documents are served as before. As all versions are in one Vault,
// only a standby with another home can stand in. Nothing is tried for a rotation while
// Vault was out of reach at the last call; Prepare looks whether it is back.
package transit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	_ "crypto/sha256" // the hashes of algorithms
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/rotunda-dev/rotunda/internal/fault"
	"github.com/rotunda-dev/rotunda/jwks"
	"github.com/rotunda-dev/rotunda/providers"
	"github.com/rotunda-dev/rotunda/providers/vault"
)

// Name is the home's usual name in policies and rows.
const Name = "transit"

// Settings are what a home is set up with; its login is [vault.Logins].
func Settings() []providers.Setting {
	return append(vault.Settings(),
		providers.Setting{Name: "mount", Doc: "path of the Transit mount", Default: "transit", Pattern: `[A-Za-z0-9_-][A-Za-z0-9_./-]{0,127}`},
		providers.Setting{Name: "prefix", Doc: "begin of the names of keys", Default: "rotunda-", Pattern: `[A-Za-z0-9_-]{0,64}`},
		providers.Setting{Name: "trim", Doc: "true: delete versions of withdrawn keys for good; needs the capability to trim", OneOf: []string{"false", "true"}, Default: "false"},
	)
}

// Home makes and uses keys in one Transit mount.
type Home struct {
	client        *vault.Client
	mount, prefix string
	trim          bool
	away          atomic.Bool // out of reach at the last call
}

// Open checks the configuration. It does not reach Vault.
func Open(c providers.Config) (*Home, error) {
	client, err := vault.NewClient(c)
	if err != nil {
		return nil, err
	}
	return &Home{client: client, mount: c.Settings["mount"], prefix: c.Settings["prefix"], trim: c.Settings["trim"] == "true"}, nil
}

// Close frees connections.
func (h *Home) Close() error { return h.client.Close() }

// reference is the Private of a key.
type reference struct {
	Mount   string `json:"mount"`
	Key     string `json:"key"`
	Version int64  `json:"version"`
}

func referenceOf(k jwks.Key) (reference, error) {
	var r reference
	if err := json.Unmarshal(k.Private, &r); err != nil || r.Mount == "" || r.Key == "" || r.Version < 1 {
		return r, fmt.Errorf("key %s: its row does not name a version of a Transit key", k.Kid)
	}
	return r, nil
}

// kind is how Transit calls an algorithm.
type kind struct {
	key    string      // type of the key
	hash   crypto.Hash // 0: the input is signed as it is
	name   string      // of the hash
	scheme string      // of RSA
	size   int         // of a signature, bytes
}

var kinds = map[jwks.Algorithm]kind{
	jwks.ES256:   {"ecdsa-p256", crypto.SHA256, "sha2-256", "", 64},
	jwks.ES384:   {"ecdsa-p384", crypto.SHA384, "sha2-384", "", 96},
	jwks.ES512:   {"ecdsa-p521", crypto.SHA512, "sha2-512", "", 132},
	jwks.Ed25519: {"ed25519", 0, "", "", 64},
	jwks.RS256:   {"rsa-2048", crypto.SHA256, "sha2-256", "pkcs1v15", 256},
	jwks.RS384:   {"rsa-3072", crypto.SHA384, "sha2-384", "pkcs1v15", 384},
	jwks.RS512:   {"rsa-4096", crypto.SHA512, "sha2-512", "pkcs1v15", 512},
	jwks.PS256:   {"rsa-2048", crypto.SHA256, "sha2-256", "pss", 256},
	jwks.PS384:   {"rsa-3072", crypto.SHA384, "sha2-384", "pss", 384},
	jwks.PS512:   {"rsa-4096", crypto.SHA512, "sha2-512", "pss", 512},
}

// note remembers whether Vault was in reach, and makes a limit of calls what it is to
// a signer: a reason to ask again.
func (h *Home) note(err error) error {
	away := providers.OutcomeOf(err) == providers.Unknown && err != nil
	h.away.Store(away)
	if errors.Is(err, fault.ErrLimited) {
		return fault.New(fault.ErrUnavailable, "vault_limited", "%w", err)
	}
	return err
}

// Ready reports whether Vault was in reach at the last call.
func (h *Home) Ready(jwks.Algorithm) bool { return !h.away.Load() }

// Prepare looks whether Vault is back, when it was away. It makes no keys ahead.
func (h *Home) Prepare(ctx context.Context, _ []jwks.Algorithm) (int, error) {
	if !h.away.Load() {
		return 0, nil
	}
	found, err := h.client.Health(ctx)
	if err == nil {
		for _, f := range found {
			if !f.OK && !f.Warning {
				err = fault.New(fault.ErrUnavailable, "signer_unreachable", "%s", f.Detail)
			}
		}
	}
	if h.note(err) != nil {
		return 0, fmt.Errorf("signing keys in Vault Transit: %w", err)
	}
	return 0, nil
}

// Create hands out a version of the keyset's Transit key that was never published.
func (h *Home) Create(ctx context.Context, keysetID string, alg jwks.Algorithm, taken []string) (jwks.Made, error) {
	m, err := h.create(ctx, h.prefix+keysetID, alg, taken)
	return m, h.note(err)
}

func (h *Home) create(ctx context.Context, name string, alg jwks.Algorithm, taken []string) (jwks.Made, error) {
	at := h.mount + "/keys/" + name
	for attempt := range 3 {
		k, err := h.client.Transit(ctx, h.mount, name)
		if errors.Is(err, fault.ErrNotFound) {
			// Of two at once, one makes the key and the other finds it.
			err = h.client.Write(ctx, at, map[string]any{"type": kinds[alg].key, "exportable": false, "allow_plaintext_backup": false}, nil)
			if err == nil {
				k, err = h.client.Transit(ctx, h.mount, name)
			}
		}
		if err != nil {
			return jwks.Made{}, err
		}
		if k.Type != kinds[alg].key {
			return jwks.Made{}, fault.New(fault.ErrTransition, "wrong_key_type", "Transit key %s is of type %s, and %s needs %s: somebody else made it", name, k.Type, alg, kinds[alg].key)
		}
		m, found, err := h.unpublished(k, name, alg, taken)
		if err != nil || found {
			return m, err
		}
		if attempt < 2 {
			if err := h.client.Write(ctx, at+"/rotate", map[string]any{}, nil); err != nil {
				return jwks.Made{}, fmt.Errorf("the Transit key %s: rotate: %w", name, err)
			}
		}
	}
	return jwks.Made{}, fault.New(fault.ErrUnavailable, "vault_answer", "Transit key %s: Vault says that it rotated the key, and shows no new version", name)
}

// unpublished finds the oldest version that is newer than all that are taken.
func (h *Home) unpublished(k vault.TransitKey, name string, alg jwks.Algorithm, taken []string) (jwks.Made, bool, error) {
	var out jwks.Made
	found := false
	for v := k.Latest; v >= max(k.MinDecryption, k.MinEncryption, 1); v-- {
		m, err := h.made(k, reference{h.mount, name, v}, alg)
		if err != nil {
			return m, false, err
		}
		if slices.Contains(taken, m.Kid) {
			break
		}
		out, found = m, true
	}
	return out, found, nil
}

// made is a version as Rotunda publishes it.
func (h *Home) made(k vault.TransitKey, r reference, alg jwks.Algorithm) (jwks.Made, error) {
	pub, err := publicKey(k.Keys[strconv.FormatInt(r.Version, 10)], alg)
	if err != nil {
		return jwks.Made{}, fmt.Errorf("the Transit key %s, version %d: %w", r.Key, r.Version, err)
	}
	private, err := json.Marshal(r)
	if err != nil {
		return jwks.Made{}, fmt.Errorf("the Transit key %s, version %d: %w", r.Key, r.Version, err)
	}
	return jwks.NewMade(pub, alg, private)
}

// publicKey reads what Vault shows of a version: PEM, or the bytes of an Ed25519 key.
func publicKey(text json.RawMessage, alg jwks.Algorithm) (crypto.PublicKey, error) {
	var v struct {
		PublicKey string `json:"public_key"`
	}
	if len(text) == 0 || json.Unmarshal(text, &v) != nil || v.PublicKey == "" {
		return nil, errors.New("no public key is shown")
	}
	if alg == jwks.Ed25519 {
		b, err := base64.StdEncoding.DecodeString(v.PublicKey)
		if err != nil || len(b) != ed25519.PublicKeySize {
			return nil, errors.New("what is shown is no Ed25519 key")
		}
		return ed25519.PublicKey(b), nil
	}
	block, _ := pem.Decode([]byte(v.PublicKey))
	if block == nil {
		return nil, errors.New("what is shown is no PEM")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, errors.New("what is shown is no public key")
	}
	return pub, nil
}

// Open checks that Vault has the key whose public half is published.
func (h *Home) Open(ctx context.Context, k jwks.Key) (jwks.Signer, error) {
	r, err := referenceOf(k)
	if err != nil {
		return nil, err
	}
	if _, ok := kinds[k.Algorithm]; !ok {
		return nil, fmt.Errorf("key %s: algorithm %q is unknown", k.Kid, k.Algorithm)
	}
	t, err := h.client.Transit(ctx, r.Mount, r.Key)
	if err := h.note(err); err != nil {
		return nil, err
	}
	m, err := h.made(t, r, k.Algorithm)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(m.Public, k.Public) {
		return nil, fmt.Errorf("key %s: version %d of Transit key %s has another public half than the one that is published", k.Kid, r.Version, r.Key)
	}
	return &signer{h, r, kinds[k.Algorithm]}, nil
}

// Destroy raises the minimum versions to the oldest one that signs or may come to.
func (h *Home) Destroy(ctx context.Context, k jwks.Key, signing []jwks.Key) error {
	gone, err := referenceOf(k)
	if err != nil {
		return err
	}
	oldest := gone.Version + 1
	if len(signing) > 0 {
		oldest = 1<<63 - 1
		for _, s := range signing {
			r, err := referenceOf(s)
			if err != nil {
				return err
			}
			if r.Mount == gone.Mount && r.Key == gone.Key {
				oldest = min(oldest, r.Version)
			}
		}
		if oldest == 1<<63-1 {
			oldest = gone.Version + 1
		}
	}
	err = h.client.EndTransit(ctx, vault.TransitEnd{Mount: gone.Mount, Key: gone.Key, Oldest: oldest, Signing: true, Trim: h.trim})
	if err := h.note(err); err != nil {
		return err
	}
	if oldest <= gone.Version {
		return fault.New(fault.ErrTransition, "older_version_signs", "version %d of Transit key %s can only end when version %d, which signs, is withdrawn: until then rely on who may call %s/sign/%s", gone.Version, gone.Key, oldest, gone.Mount, gone.Key)
	}
	return nil
}

// signer signs with one version.
type signer struct {
	home *Home
	at   reference
	kind kind
}

// Sign sends the hash of the input, or for Ed25519 the input.
func (s *signer) Sign(ctx context.Context, input []byte) ([]byte, error) {
	in := map[string]any{"key_version": s.at.Version}
	if s.kind.hash != 0 {
		d := s.kind.hash.New()
		d.Write(input)
		input = d.Sum(nil)
		in["prehashed"], in["hash_algorithm"] = true, s.kind.name
	}
	in["input"] = base64.StdEncoding.EncodeToString(input)
	switch {
	case s.kind.scheme != "":
		in["signature_algorithm"] = s.kind.scheme
		if s.kind.scheme == "pss" {
			in["salt_length"] = "hash" // RFC 7518, section 3.5
		}
	case s.kind.hash != 0:
		in["marshaling_algorithm"] = "jws" // R and S as RFC 7518, section 3.4, has them
	}
	var out struct {
		Signature string `json:"signature"`
	}
	err := s.home.client.Write(ctx, s.at.Mount+"/sign/"+s.at.Key, in, &out)
	if err := s.home.note(err); err != nil {
		return nil, err
	}
	text, ok := strings.CutPrefix(out.Signature, fmt.Sprintf("vault:v%d:", s.at.Version))
	if !ok {
		return nil, fmt.Errorf("the Transit key %s: the signature is not one of version %d", s.at.Key, s.at.Version)
	}
	encoding := base64.StdEncoding
	if in["marshaling_algorithm"] != nil {
		encoding = base64.RawURLEncoding
	}
	signature, err := encoding.DecodeString(text)
	if err != nil || len(signature) != s.kind.size {
		return nil, fmt.Errorf("the Transit key %s: the signature has not the form that was asked for", s.at.Key)
	}
	return signature, nil
}

var _ jwks.Home = (*Home)(nil)

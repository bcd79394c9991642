package verify

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/rotunda-dev/rotunda/verify/httpsig"
	"github.com/rotunda-dev/rotunda/verify/webhook"
)

// LocalKey is a key with which somebody signs requests to this service.
type LocalKey struct {
	// ID is the keyid of its signatures.
	ID string
	// Key is made with httpsig.NewPublicKey, or of a shared secret with [SecretKey].
	Key *httpsig.Key
	// Who holds it, and with which scopes.
	Partner string
	Scopes  []string
	// Environment is that of the key. Empty: none, and where one is named the key is
	// not let in.
	Environment string
	// NotAfter ends it. Zero: no end.
	NotAfter time.Time
}

// SecretKey makes a key of a request secret as Rotunda shows it: whsec_ and base64.
func SecretKey(text string) (*httpsig.Key, error) {
	secret, err := webhook.ParseSecret(text)
	if err != nil {
		return nil, fmt.Errorf("reading a request secret: %w", err)
	}
	raw, err := sharedSecret(secret)
	if err != nil {
		return nil, err
	}
	return httpsig.NewHMACKey(raw)
}

// KeyringConfig says whose signatures are accepted, and which.
type KeyringConfig struct {
	Keys []LocalKey
	// Policy; nil: httpsig.DefaultPolicy.
	Policy *httpsig.Policy
	// Nonces remembers the nonces that were used. Required when the policy demands
	// one, and shared by all replicas of the service.
	Nonces NonceStore
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Keyring verifies signed requests without a Rotunda server. It is safe for
// concurrent use. What the server knows and a keyring does not: revocations, address
// ranges and rate limits.
type Keyring struct {
	keys   map[string]LocalKey
	policy httpsig.Policy
	nonces NonceStore
	now    func() time.Time
}

// Format prints no key.
func (k Keyring) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "verify.Keyring(%d keys)", len(k.keys)) }

// Format prints no key.
func (k LocalKey) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "verify.LocalKey(%s)", k.ID) }

// NewKeyring checks the configuration.
func NewKeyring(cfg KeyringConfig) (*Keyring, error) {
	k := &Keyring{keys: map[string]LocalKey{}, policy: httpsig.DefaultPolicy(), nonces: cfg.Nonces, now: cfg.Now}
	if cfg.Policy != nil {
		k.policy = *cfg.Policy
	}
	if k.policy.RequireNonce && k.nonces == nil {
		return nil, errors.New("making a keyring: Nonces is nil, and the policy demands a nonce: without a store every request can be replayed")
	}
	if k.now == nil {
		k.now = time.Now
	}
	for _, key := range cfg.Keys {
		switch {
		case key.ID == "" || key.Key == nil:
			return nil, errors.New("making a keyring: a key needs ID and Key")
		case k.keys[key.ID].Key != nil:
			return nil, fmt.Errorf("making a keyring: the key id %q is there twice", key.ID)
		}
		key.Scopes = slices.Clone(key.Scopes)
		k.keys[key.ID] = key
	}
	return k, nil
}

// VerifyRequest verifies a signed request. The body is read only once the signature
// has proved right, and put back. The error is [ErrUnavailable], when the nonce store
// can't say whether a request is new; a denial is a [Decision].
func (k *Keyring) VerifyRequest(r *http.Request, o RequestOptions) (Decision, error) {
	in, d := readRequest(r, &o)
	if in == nil {
		return d, nil
	}
	sig, now := in.signature, k.now()
	key, ok := k.keys[sig.KeyID]
	if !ok || o.Partner != "" && o.Partner != key.Partner || o.Environment != "" && o.Environment != key.Environment {
		return denied(ReasonUnknown, "the key id "+quote(sig.KeyID)+" is not known"), nil
	}
	// Whether there is a body is not known yet.
	if err := k.policy.Check(sig, &in.msg, false, now); err != nil {
		return refused(err), nil
	}
	if _, err := httpsig.Verify(sig, &in.msg, key.Key, nil); err != nil {
		return refused(err), nil
	}
	d = Decision{Partner: key.Partner, KeyID: key.ID, Environment: key.Environment, Scopes: slices.Clone(key.Scopes), ExpiresAt: key.NotAfter}
	deny := func(because Decision) (Decision, error) {
		d.Reason, d.Message, d.Status = because.Reason, because.Message, because.Status
		return d, nil
	}
	if !key.NotAfter.IsZero() && !now.Before(key.NotAfter) {
		return deny(denied(ReasonExpired, "the key has expired"))
	}
	if because := in.readBody(r, &o); because.Reason != "" {
		return deny(because)
	}
	if err := k.policy.Check(sig, &in.msg, len(in.body) > 0, now); err != nil {
		return deny(refused(err))
	}
	for _, s := range o.Scopes {
		if !slices.Contains(key.Scopes, s) {
			return deny(denied(ReasonScope, "the scope "+quote(s)+" is needed"))
		}
	}
	// Last, because a nonce is spent by it.
	if sig.HasNonce && k.nonces != nil {
		created := time.Unix(sig.Created, 0)
		err := k.nonces.Use(r.Context(), Nonce{
			KeyID: sig.KeyID, Value: sig.Nonce, Created: created,
			// One second for the fraction that created does not have.
			Until: created.Add(k.policy.MaxAge + time.Second),
		})
		switch {
		case errors.Is(err, ErrReplay):
			return deny(denied(ReasonReplay, "the nonce was used before"))
		case errors.Is(err, ErrBeforeStart):
			return deny(denied(ReasonWindow, err.Error()))
		case err != nil:
			return Decision{}, fmt.Errorf("%w: looking up a nonce: %w", ErrUnavailable, err)
		}
	}
	d.Reason, d.Status = ReasonOK, http.StatusOK
	return d, nil
}

// Nonce is one that a right signature carries.
type Nonce struct {
	KeyID, Value string
	Created      time.Time // of the signature
	Until        time.Time // from then on the signature is refused for its age
}

// NonceStore remembers nonces. Use returns nil exactly once for a KeyID and Value
// until Until, whoever asks at the same time, and else ErrReplay. With any other
// error the request is refused: a store that can't remember must say so.
type NonceStore interface {
	Use(ctx context.Context, n Nonce) error
}

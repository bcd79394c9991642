// Package verify is what a gateway or an API server imports to accept the
// credentials of Rotunda's callers, and what a caller imports to sign requests.
//
//   - [Tokens] verifies signed tokens (JWT) with a JWKS that it keeps fresh.
//   - [Client] asks a Rotunda server about API keys and signed requests.
//   - [Keyring] verifies signed requests with keys that are held here.
//   - [Guard] puts these in front of net/http handlers and Connect services.
//   - [Signer] is the http.RoundTripper that signs what a caller sends.
//
// # What holds
//
// A credential is accepted, denied, or could not be looked at. A denial is an
// answer: a [Decision] with a [Reason], or a [Denied] of [Tokens]. What could not
// be looked at is an error that is [ErrUnavailable], and nothing is let through:
// every failure here is closed. Neither answer says more to a stranger than the
// status code does.
//
// Nothing that was accepted by a [Client] is remembered: a revoked key is refused
// from the moment that the server knows. For tokens the reach of a withdrawn key
// is bounded. While the JWKS can be fetched it is TokensConfig.MaxAge, or the
// server's max-age when that is shorter, but not below ten seconds; while it can't
// be, TokensConfig.MaxStale longer, and then no token is accepted.
//
// # Bounds
//
// Tokens have at most 16 KiB, JWKS documents 1 MiB and 256 keys, bodies of signed
// requests what Options.MaxBody says. There is at most one fetch of a JWKS at a
// time, and a stranger who makes up key ids causes one in ten seconds: neither more
// nor, for the key id that is real, fewer.
package verify

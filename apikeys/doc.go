// Package apikeys issues and verifies keys that callers present to prove who
// they are. Today these are Rotunda's own access tokens, with which people and
// machines call its API.
//
// # Model
//
// A key string is
//
//	rk_<env>_<id>_<43 base62 digits: 256 random bits><6 base62 digits: CRC-32>
//
// For an access token, env is its role. The checksum covers everything before
// it: a typo is told apart from a wrong key before any look-up, and scanners
// recognise a key with certainty. No authenticity rests on it.
//
// The database holds the id and HMAC-SHA-256(pepper[gen], partner ‖ 0 ‖ secret),
// never the key. Peppers are sealed under the KEK, so neither a dump of the
// database nor write access to it lets anyone test or forge a key.
//
// # Freshness
//
// A verified token is remembered for [FreshFor]. A revocation holds at once in
// the process that made it, and in every other within FreshFor. While the
// database is out of reach, remembered tokens are accepted for [GraceFor] and
// then nobody is; JWKS documents need no token and go on.
package apikeys

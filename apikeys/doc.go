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
// Behind that HMAC stands a second one, the seal, over the rest of the row: id,
// name, role, keysets, address ranges, expiry, state. Whoever can write to the
// database but has no pepper can't give a token he knows another role, a longer
// life or somebody else's id, nor undo its revocation: such a row is denied with
// the reason "tampered", and counts neither as a gateway nor as an admin. What a
// seal can't tell is a whole row put back as it once was, from a backup: that is
// seen in the trail only.
//
// # Freshness
//
// A verified token is remembered for [FreshFor]. A revocation holds at once in
// the process that made it, and in every other within FreshFor. While the
// database is out of reach, or hangs, remembered tokens are accepted for
// [GraceFor] and then nobody is; JWKS documents need no token and go on.
//
// # Who can't be locked out
//
// The first token is made when there is none, by one of the replicas that start
// together. Its value is handed out before it is committed: a crash in between
// leaves a value that nobody accepts, and the next start makes another. The
// last usable admin token can't be revoked.
package apikeys

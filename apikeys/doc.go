// Package apikeys keeps what callers present to prove who they are: Rotunda's own
// access tokens, and the API keys and request-signing secrets of partners. It
// issues, imports, rolls and ends them, and it verifies them.
//
// # Model
//
// A [Partner] is a company or team. It has scopes, limits on the number and the
// life of its keys, and a policy for signed requests. Its keys are API keys and
// versions of request secrets: one type, [Key], one table, one lifecycle. A request
// secret has a name, under which versions follow each other; the id of a version is
// the keyid of its signatures. A [Token] is an access token to Rotunda's own API;
// one of role partner manages the keys of one partner, one of role reader reads values in
// the built-in store of credentials, at the paths that it names.
//
// A key has scopes (some of its partner's; what the partner loses, the key loses at
// once), address ranges, a rate limit, an environment and metadata. A publishable
// key may be in a browser: it has publishable scopes only, and its string says so.
//
// Whoever makes something of a partner's locks the partner's row first, so that
// replicas can't both find the last free place, or a partner active that is being
// suspended.
//
// # Key string
//
//	<brand>_<env>_<id: 16>_<secret: 43 base62 digits, 256 random bits><CRC-32: 6>
//	<brand>pub_<env>_…                                         a publishable key
//	rk_<role>_…                                                an access token
//
// The brand is "rk" unless set otherwise, env is "live" unless the key says
// otherwise, and never the name of a role. The checksum covers everything before it:
// a typo is told apart from a wrong key before any look-up, and scanners recognise a
// key with certainty. No authenticity rests on it.
//
// The id of an API key or request secret is 10 random digits and a mark: six digits
// of an HMAC over them. Who makes an id up is told so, all but once in 62^6 times,
// before any look-up. A mark proves no more than that: what makes a key is its secret.
//
// A request secret is "whsec_" and the base64 of 64 random bytes, as in Standard
// Webhooks; or the partner registers a public key, and Rotunda holds no secret at all.
//
// # What is stored
//
// Of a key the database holds the id and HMAC-SHA-256(pepper[gen], partner ‖ 0 ‖
// secret), never the key. Request secrets, which signatures are verified with, are
// sealed under the KEK, each for its row. Peppers are sealed under the KEK too, so
// neither a dump of the database nor write access to it lets anyone test or forge a
// key.
//
// Behind that stands the seal of the row, an HMAC over all that it says but for when
// it was used. Whoever can write to the database but has no key of Rotunda's can't
// give a key he knows another partner, scope, range or longer life, nor undo its
// revocation, nor widen a partner: such a row is "tampered". It is shown, as what it
// is ([Key.Tampered]); nothing is accepted for it, and nothing is decided by it: not
// even revoking it works, for that would make it genuine. What a seal can't tell is
// a whole row put back as it once was, from a backup: that is seen in the trail only.
//
// # Peppers
//
// There are generations; new keys are hashed under the newest, and each row names
// its own, so nothing is tried twice. After [Peppers.Rotate], keys and tokens move to
// the newest when they are next used, and [Peppers.Stragglers] tells which did not.
// [Peppers.Retire] destroys a generation; it is refused while something usable is
// under it, and for ten minutes after its successor was made, because a replica may
// still use it. A replica that has not heard of the successor even then makes nothing.
//
// Generation 0 is no pepper but the root of the keys for seals and ids. It never
// changes: rows and ids outlive peppers.
//
// # Lifecycle
//
//	from       to                    by
//	(nothing)  active                create, roll (the successor), import
//	active     retiring              roll: it has a successor, and works until its grace ends
//	active     retired               roll without a grace; a name that is taken from an expired secret
//	retiring   retired               the grace is over, or the key was quiet for long enough
//	active, retiring     suspended   suspend
//	suspended  active, retiring      resume: whichever it was
//	suspended  retired               the grace is over
//	active, retiring, suspended   revoked   revoke, for a reason of RFC 5280
//
// Expired is computed, not stored: an expired key can be revoked, and a rolled one is
// retired, and nothing else. A key whose grace is over is refused at once; the next
// pass writes that it is retired. Nothing leads away from retired and revoked, and a
// request secret is destroyed with the move there. Rows are never deleted.
//
// One function, move, makes these moves: it checks them against a table, swaps the row
// (compared by its version), seals it, records the event in the same transaction, and
// tells the caches. What is due is decided purely, by judge and nextAt; [Keys.Pass]
// acts on it. Recovery after a crash is the next pass.
//
// A roll makes a successor with the same attributes. The old key's grace ends with
// its life at the latest. The successor ends when the old key would have, unless it is
// asked for a life of its own, which is bounded as that of any new key. With Quiet the
// grace ends on evidence: once the old key was not used for so long. While it still
// is used in the last quarter of its grace (a day at most), an event says so, once a
// day.
//
// Keys that were rolled don't count against the partner's max_keys, so that a roll is
// never refused for want of room; instead a line of rolls has at most ten keys inside
// their grace. Expired keys don't count either.
//
// # Import
//
// Keys that partners hold already are taken over, as values or as SHA-256 hashes. Both
// are stored as HMAC(pepper[gen], partner ‖ 0 ‖ 0 ‖ SHA-256(value)), and found by 16
// bytes of another HMAC, the lookup. A value is held once in a database: whoever
// brings it again learns that it exists, and whose it is only if it is his own.
//
// A value of less than 80 bits, by a wary estimate, is weak. It is hashed with
// argon2id (19 MiB, 2 passes), and found by two bytes of the lookup: a bucket, too
// small to test guesses with, should the pepper ever leak. It lives for 30 days unless
// said otherwise, 90 at most, and there are at most 1,000 in a database, because
// each bucket that is hit costs a slow hash. Its successor is a key of Rotunda's own
// form with a life of its own. Of a hash nobody knows how strong its key is.
//
// # Invariants
//
//   - GraceEndsAt ≤ ExpiresAt, and both never grow once they are set.
//   - What is retired or revoked never comes back; what has expired is not accepted
//     unless the clock is set back to before its end.
//   - A roll without a life of its own lengthens no life, neither of the key nor of its line.
//   - Every change of a partner or a key, and its event, are there together or not at all.
//     (When a key was used, its move to a newer pepper, and when a pass looks at it again
//     are no changes.)
//   - A row that is not sealed as it is decides nothing.
//   - A name has one version of a request secret that was neither rolled nor has ended.
//   - No value leaves memory but in the answer to who made it.
//
// # Verification
//
// A [Verifier] decides from memory, for RPC, ext_authz and forward-auth alike. A key
// is known by a salted SHA-256 of its one value; its row is read when it is first
// presented. What is taken away holds in the process that did it for every
// verification that begins afterwards, in other replicas after one NOTIFY or at most a
// second and a query, and in one that is cut off from the database after StaleFor,
// when it stops answering. Lives and graces are compared with the clock each time.
//
// Made-up keys are told by checksum and mark, and reach neither database nor memory.
// Quota is taken last, a nonce only after a right signature; every outcome of a known
// key is counted before the caller learns it. When nobody knows, the answer is
// fault.ErrUnavailable, never yes.
//
// # Access tokens
//
// A verified token is remembered for [FreshFor]. A revocation holds at once in
// the process that made it, and in every other within FreshFor; so does that its
// partner was suspended. While the database is out of reach, or hangs, remembered
// tokens are accepted for [GraceFor] and then nobody is; JWKS documents need no token
// and go on.
//
// The first token is made when there is none, by one of the replicas that start
// together. Its value is handed out before it is committed: a crash in between
// leaves a value that nobody accepts, and the next start makes another. The
// last usable admin token can't be revoked.
//
// # Failure
//
// A crash leaves each key before or after its move. The answer to a create or a roll
// that was lost can't be had again: under the same idempotency key the caller is told
// which key it was, and makes another. Of replicas that change one row at once, one
// does; the others get fault.ErrChanged, or see what it did.
//
// When the wall clock jumps, no pass ends keys for two minutes: what is over is refused
// anyway by computation, and what was ended too early could not come back. A row that
// was tampered with is put aside by the pass that meets it, with an event, and holds up
// no other.
//
// Without the KEK, or with peppers missing, nothing starts: values would be refused
// that are good.
package apikeys

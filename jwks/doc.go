// Package jwks keeps signing keys: it makes them, publishes them as JWKS
// documents, signs tokens with them, and moves them through their life.
//
// # Model
//
// A [Keyset] belongs to one issuer and one [Algorithm]; its [Policy] says how
// often it rotates, how long tokens live, and which consumers read it. A [Key]
// is pending (published, not signing), active (published, signing; one per
// keyset), retiring (published, no longer signing), retired (withdrawn) or
// revoked (withdrawn early). The moves between these states are data (see
// [Diagram]), and one function, move, makes them: it writes the row, compared
// and swapped, and its event in one transaction.
//
// What is due is decided purely, by [Keyset.Due] over the whole set at an
// instant; [Keysets.Pass] acts on it. A rotation that a person asks for takes
// the same path. Recovery after a crash is the next pass.
//
// # Invariants
//
//   - Every unexpired token's key is published, unless it was revoked.
//   - No key signs before it has been served for the policy's lead, except the
//     first of a keyset, an imported one, a fresh one of an emergency, and an
//     override with a reason, which is an event.
//   - A key is withdrawn only when the longest life that was ever issued under
//     it, with leeway, skew and the signer lease, is over. That life is committed
//     before a token with it is handed out.
//   - There is exactly one active key, and at most one pending.
//   - A revoked or retired key has no private half, is never published again,
//     and its kid is never used again.
//   - The version of a published set only grows. A document's max-age does not
//     reach beyond the next planned removal of a key.
//
// The lead and the reach of a revocation are computed from [Profiles], data
// about how real consumers cache; [Policy.Check] refuses what is not safe with
// the two figures that disagree.
//
// # Several processes
//
// Any number of processes may share a database. A change takes the keyset's row,
// compared and swapped; the loser of a race gets fault.ErrChanged and does
// nothing. Nobody who holds rows of keysets waits for publication's, and only
// the start of leads anew holds more than one of them, so there is no deadlock.
//
// Each process serves and signs from its own copy of the published sets, which
// follows the trail: [Keysets.Refresh] reads those keysets again that have events
// since the leaf index at which it last stopped, also events that still wait for
// their index, so that it needs no living sequencer. Pass calls it about once a
// second, [Keysets.Follow] as soon as the trail grows. What changes without an
// event is no part of what is served: max_token_life, of which each process only
// believes what it read or wrote itself, and next_at, which is read again once it
// is past.
//
// # Homes
//
// A [Home] has the private halves. [Local] seals them into the database; package
// jwks/transit leaves them in Vault. A policy names the home of new keys, and each
// key's row its own, so that a keyset moves from one home to another by a rotation.
//
// # Failure
//
// While the database is out of reach, documents are served from memory for as
// long as the process lives; signing stops within [SignerLease], because
// another process may have revoked the key. While the active key's home is out
// of reach, the standby may sign in its place if the policy says so and its
// lead is over. A time without service longer than the policy's FetchFailure
// starts the lead of a standby again. When the wall clock jumps, scheduled
// moves wait. Rows that somebody else changed are not used: see rowSeal.
package jwks

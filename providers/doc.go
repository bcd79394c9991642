// Package providers holds the two contracts by which Rotunda reaches the systems
// outside of it, and what all adapters share. An adapter is a folder below.
//
//   - A [Target] accepts a credential: a database, a cloud account, a partner's API.
//   - A [Store] is where consumers read it: Vault KV, AWS Secrets Manager, Rotunda itself.
//
// # Model
//
// Rotation (package rotation) decides, remembers and repeats; an adapter does one
// effect at a time and remembers nothing. Before each call everything that the call
// needs is durable: the [Change] of a target, the [Version] of a store. After a
// crash, or when a reply was lost, the same call is made again with the same
// arguments, maybe by another process, maybe while the first call is still under way.
//
// The effects are those of the protocol E0 to E8 (docs/concepts.md):
//
//	E0  Target.Prepare  reads, chooses, and makes the new value; changes nothing
//	E1  Store.Stage     a second copy of the new value, which no consumer reads
//	E2  Target.Apply    the target accepts the new value
//	E3  Target.Verify   proof: a login with the new value, as a consumer does it
//	E4  Store.Publish   consumers read the new value
//	E6  Target.Usage    evidence that the old value is no longer used
//	    Target.Retire   the old value ends by itself at the end of the grace
//	E7  Target.Revoke   the old value is no longer accepted
//	E8  Store.Discard   what was staged is gone
//
// # Rules that every adapter keeps
//
//   - An effect may be repeated with the same arguments, any number of times and at
//     the same time, and comes out as if it had been done once: because it sets the
//     same value, or because it compares and swaps. What can't be repeated (a key
//     that the target makes) begins by finding and deleting what an earlier try left.
//   - Delete only by recorded id. Never "the oldest", never "all others".
//   - An error says whether the effect may have happened; see [Outcome].
//   - No secret in an error, a log, a statement's text that the other side logs, an
//     argument list or a path. Answers are quoted only as far as they hold none.
//   - Every call ends soon after its context does; every answer that is read is
//     bounded. TLS is verified; plain text is refused unless the address is loopback
//     or the settings say plaintext=allow.
//   - Safe for concurrent use.
//
// Package providerstest has the suite that each adapter passes.
package providers

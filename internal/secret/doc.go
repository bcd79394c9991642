// Package secret holds secrets in memory and seals them for storage.
//
// # In memory
//
// A [Value] is a secret that cannot print itself. Every formatter, encoder and
// logger that asks it gets [redacted] or a refusal; those that go around it by
// reflection find a function, not bytes. The bytes come out through Reveal and
// RevealString only, so a search for ".Reveal" lists every use.
//
// # At rest
//
// A [Sealer] encrypts a Value for one [Place]: a table, row and column. The place
// is associated data, so a sealed value that is copied to another row or column
// does not open there. Two layers of keys are used:
//
//   - a key-encryption key, [KEK], wraps data keys. It is a file on this machine
//     ([FileKEK]) or, through the same interface, a service that never gives it out;
//   - a data key encrypts a value. Each value gets a fresh one, stored beside it in
//     wrapped form.
//
// One fresh data key per value is the simplest form that is sound: no nonce is
// ever used twice under a data key, nothing needs a table of keys, sealing needs
// no state, and a new KEK re-wraps 32 bytes without touching the value. It costs
// one wrap per value; with a local KEK that is a few microseconds, and a KEK that is
// a service may cache what it unwrapped.
//
// The local KEK is XAES-256-GCM, whose 192-bit random nonces have no practical
// limit on the number of wraps under one key; values are AES-256-GCM.
//
// # Format
//
// A sealed value is self-contained. Lengths are unsigned, big-endian:
//
//	version      1 byte, 0x01
//	KEK id       1-byte length, then 1 to 128 printable ASCII bytes without spaces
//	data-key id  1-byte length; 0: the data key is the wrapped one that follows.
//	             Other lengths are reserved for shared data keys and are refused.
//	wrapped key  2-byte length, then 1 to 2048 bytes, as the KEK made it
//	ciphertext   the rest: 12-byte nonce, AES-256-GCM ciphertext, 16-byte tag
//
// Both layers authenticate the place, the version and the data-key id; the wrap
// also authenticates the KEK id. So every byte of a sealed value is covered.
//
// # What happens on failure
//
// Opening fails with [ErrCorrupt] when the value was altered, cut or moved, and
// with fault.ErrUnavailable, naming the KEK id that is needed, when the KEK is
// unknown to this process or out of reach. The first needs a backup, the second
// a key file or a retry; they are never mixed up. No error holds secret bytes.
//
// Losing the KEK file loses every value sealed under it. Key files are written
// to a temporary file, synced, and put in place by one atomic step, so a crash
// leaves the old file or the new one. Key files need a Unix system.
package secret

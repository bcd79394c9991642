// Package trail is what an auditor needs to read Rotunda's trail: events, their
// leaves in the Merkle tree, checkpoints and the keys that sign them. It uses no
// server, no network and no database.
//
// # Model
//
// A log is a list of leaves, numbered from 0. It is an RFC 6962 tree
// (golang.org/x/mod/sumdb/tlog) whose head is signed now and then: a
// [Checkpoint]. Who holds a checkpoint and the log's public key can tell whether
// an event stands at an index of that log, and whether a later checkpoint
// extends it.
//
// A [Leaf] holds an event's clear fields (id, time, action, resource, outcome,
// count, intent) and a commitment for each field that may tell of a person
// (actor, partner, reason, request_id, address, detail). Who has the event's
// salt can check the values; who has only the leaf learns nothing of them. A
// field is erased by destroying its value and its salt and keeping its
// commitment: leaf, tree and proofs stay as they are.
//
//	seed               16 random bytes of each event
//	salt of a field    the first 16 bytes of SHA-256(0x03 ‖ field ‖ seed)
//	commitment         SHA-256(0x02 ‖ field ‖ salt ‖ value); 32 zero bytes when
//	                   the value is empty (for detail: the text {})
//	leaf               see [Leaf.Encode]
//	leaf hash          SHA-256(0x00 ‖ leaf)
//
// Fields are numbered: 0 actor, 1 partner, 2 reason, 3 request_id, 4 address,
// 5 detail.
//
// # Keys
//
// Checkpoints are signed notes (C2SP signed-note, Ed25519) by a key whose name
// is the log's origin. When the key is rotated, the old and the new one both
// sign a [Handover]. A verifier that was given one key trusts those that it
// handed over to, each for the sizes of its time; so a key that was merely put
// into the database signs nothing that verifies.
package trail

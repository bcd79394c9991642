// Package redis rotates the passwords of ACL users of Redis servers (6 and newer).
//
// # Model
//
// An ACL user may have several passwords, each kept as its SHA-256. With dual, the new
// one is added beside the old one, which is removed by its own hash when it is revoked:
// nobody is refused at any moment. With replace, the new one takes the place of all
// others. What the server is told is the hash, never the password. (A SHA-256 without
// salt is no protection for a password that a person made up; ours are random.)
//
// ACLs do not replicate, and a cluster does not spread them: the setting addresses lists
// every node, replicas too, and each call goes to all of them in that order. The new
// value is accepted only when all nodes have it. A call that failed in the middle has an
// unknown outcome, whatever the failing node said, and the same call again completes it.
//
// # The marker
//
// A user's password list has room for a note: one more entry of 32 bytes, which is no
// hash of anything, but "RTND", the id of the rotation, its generation, and the epoch.
//
//	52544e44 0e4c5d5e000040008000000000000001 000000000007 000000000013
//
// Nobody can log in by it: that would take a password whose SHA-256 is just this text,
// and finding one is as hard as for any other. It is written by the command that sets
// the password, so it is true at every instant, and it is saved with it. The command
// also removes the marker which was read before: ACL SETUSER does all or nothing, and
// fails when what it removes is not there, which makes it a compare-and-swap. A call of
// an older epoch or generation is refused (fault.ErrStale). Only two calls that race to
// be the first ever on a user are not kept apart.
//
// # Durability
//
// Redis forgets ACL changes at a restart unless they are saved: with ACL SAVE where
// there is an ACL file, else with CONFIG REWRITE. The setting persist says which; auto
// tries them in that order. Where neither is possible, Check warns: after a restart the
// server would accept what its configuration says, and nothing else.
//
// # Ending a value
//
// Revoke removes one hash. With replace there is nothing left to remove. Redis keeps
// sessions whose password is gone; in an emergency Revoke ends all of the user's
// sessions, because the server does not say by which password they came, and who has
// the new value comes back. Redis has no expiry for passwords: Retire does nothing.
//
// For the same reason Usage knows little: a session from before the rotation proves
// that an old value is in use, and that there is none proves nothing.
//
// # The login
//
// It needs +acl +client|list +client|kill, and +config|rewrite where that is used. It
// may be the user that is rotated, with dual: both values work until the old one is
// revoked, and that is refused as long as it is what the login itself uses.
package redis

// Package postgres rotates the passwords of roles of a PostgreSQL server (10 and newer).
//
// # Model
//
// A role has one password. With alternate, two roles take turns, and the one that
// consumers use keeps its password until it is revoked; with replace, one role gets the
// new password in the place of the old one, which ends at that moment. Sessions that are
// open stay open in both.
//
// The password is ours: ASCII characters, for which SASLprep changes nothing. What the
// server is told is the SCRAM-SHA-256 verifier of it (RFC 5803), computed here, so that
// the password is in no statement and in no log of the server, whatever it logs. A
// verifier is no password, but can be searched with a dictionary; ours are random.
//
// # One transaction
//
// Apply takes an advisory lock on the role's name, reads the marker, sets the verifier,
// and writes the marker, in one transaction: the marker is true at every instant.
// Synchronous commit is switched on where it is off, because a value that is published
// must not be lost by a crash of the server. Advisory locks are per database: all
// targets of a server should name the same one; two that don't are still kept apart by
// the server's own locks, and one of them is told to try again.
//
// The marker ends the role's comment, behind what a person wrote there:
//
//	reads the orders [rotunda rotation=0e4c… generation=7 epoch=19]
//
// A call of an older epoch or generation is refused (fault.ErrStale): a process that was
// thought dead can't put an older value back. Retire and Revoke act only on a role that
// still has the value which they are to end: never on one that a newer generation has
// taken. Without a marker (a person has changed the comment, the value is from before
// Rotunda) the records of the change decide, and in doubt nothing is ended.
//
// # Ending a value
//
// With alternate, Retire sets VALID UNTIL, so that the password ends even if nobody
// comes back, and Revoke takes the password away. VALID UNTIL is of the server's clock,
// which Check compares with ours. Apply sets it to infinity. In an emergency Revoke also
// ends the role's sessions: with replace these are everybody's, and who holds the new
// value comes back; with alternate the old role's only.
//
// Usage counts the role's sessions in pg_stat_activity. With replace both values have
// the same role: a session from before the rotation proves that the old one is in use,
// but nothing proves that it isn't. Password logins leave no other trace.
//
// # The login
//
// It needs CREATEROLE, and from PostgreSQL 16 on ADMIN OPTION on the roles; no superuser.
// To count sessions it needs nothing; to see when they were last used it needs
// pg_read_all_stats (or to be a member of the roles), to end them pg_signal_backend.
// Check tries the statements of Apply in a transaction that it rolls back.
//
// The role of the login itself can be rotated with replace, not with alternate. The
// target's login must then be kept up to date from where the credential is published;
// until it is, calls whose change has the new or an earlier value log in with that.
// Revoke and Retire never touch the login's role.
//
// # Errors
//
// All changes are in a transaction, so an error that the server reports means that
// nothing was changed: 42501 and the like are refused, a missing role is not found, a
// password hook (22xxx, as of passwordcheck) has rejected the value, a lock that was not
// free is throttled. Everything else is unknown, as is everything that the network does.
// A login that is being proven makes one try, so as not to lock an account out: class 28
// is a rejected value, and all others say nothing about it.
package postgres

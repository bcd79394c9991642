// Package mysql rotates the passwords of accounts of MariaDB (10.4.2 and newer) and of
// MySQL (8.0.21 and newer). An account is USER@HOST; the host is % unless given.
//
// # Model
//
// With alternate two accounts take turns; with replace one account's password is
// replaced, and the old one ends at that moment. With dual, which only MySQL has, the
// account keeps the old password beside the new one (RETAIN CURRENT PASSWORD) until it
// is revoked (DISCARD OLD PASSWORD). On MariaDB Check says so and Prepare refuses.
//
// MySQL's own branch has not been run against a MySQL server: its statements are tested
// as text, its hash of caching_sha2_password by known vectors. All that is said of
// MariaDB here is tested against a server.
//
// # What the server is told
//
// The hash, computed here for mysql_native_password, ed25519 and caching_sha2_password:
// MariaDB writes statements into its logs as they come. (Of 256 logins with ed25519 Go's
// usual driver fails one, because it misreads the challenge; other drivers don't. So it
// is not the default.) With dual MySQL takes the text
// only, and replaces it in its logs. The setting send=text is for servers whose
// password policy insists on reading the password; MariaDB's general and slow log then
// have it, if they are on, and Check warns.
//
// # Fencing
//
// A statement about accounts commits by itself, so there is no transaction around the
// password and a marker. GET_LOCK on the account's name keeps calls apart; it goes with
// the connection.
//
//   - MySQL: the marker is in the account's ATTRIBUTE, set by the same statement: true
//     at every instant. With dual it also says whether the statement was done already:
//     done twice, it would drop the old password.
//   - MariaDB: accounts have no room for a marker. With the setting marker_table there
//     is a table of them; its fence, the newest epoch that was at work, is raised before
//     the password is set, and the marker is written behind it. A crash between leaves
//     the older marker beside the newer value, and the same call again completes it.
//     Without the table Applied is never known, and a call of an older rotation can't
//     be refused.
//
// Revoke does not need a marker where the login may read the accounts: it compares the
// account's hash with that of the value, and ends nothing but that.
//
// # Ending a value
//
// Revoke gives the account a password that nobody knows, and locks it; Apply unlocks it.
// In an emergency the sessions of the user name are ended, too: with replace everybody's,
// and who holds the new value comes back. Sessions show their user name and not their
// account, so accounts of one name are not told apart; Check warns. Retire does nothing:
// passwords expire by whole days, and an expired one can still be used to set another.
//
// Usage counts sessions in the process list, which needs PROCESS, given to the login
// itself; without it nothing is known. Where both values have one account nothing tells
// them apart.
//
// # The login
//
// CREATE USER ON *.*, SELECT ON mysql.*; PROCESS to see sessions; CONNECTION ADMIN
// (MySQL: CONNECTION_ADMIN) to end them; SELECT, INSERT, UPDATE, DELETE on the marker
// table. The login can't rotate itself: a change of one's own password is subject to
// other rules there, and a locked login could not be mended by us.
//
// # Errors
//
// A statement about one account is done or not, so what the server reports as an error
// was not done: 1819 and 3638 have rejected the value, 1142, 1227 and the like are
// refused, 1396 is a missing account. Everything else is unknown, as is everything that
// the network does.
package mysql

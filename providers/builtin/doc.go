// Package builtin is the store kind "builtin": values sealed in Rotunda's own database,
// for those who have no other store, and read through Rotunda's API.
//
// # Model
//
// A path has versions, numbered 1, 2, 3, …, and labels on them: current (what consumers
// read), previous (what they read before), staged (what they will read). A version is
// one row with its sealed value, and a row is written once and never changed. The labels
// of a path are its head: one sealed row, which lists all versions that are kept. Every
// change replaces the head by compare-and-swap on its revision, in the transaction that
// writes or deletes the versions and records the event. So readers see a state from
// before or from after a change, and of two writers one begins again.
//
// The last ten versions are kept, whatever their labels; those with a label always.
// The rest is deleted with the change that made it one too many.
//
// # What sealing protects
//
// A value opens only as the version of the path that it was sealed for, and a head only
// as the head of its path and revision. Whoever can write to the database, but has no
// key-encryption key, can't read a value, can't alter one, can't put an earlier version
// in the place of the current one, and can't move a value or a head to another path:
// such a row does not open, and reads of the path are refused (reason "tampered").
//
// What he can do: delete rows, which is a refusal, or nothing at a path; and put back a
// whole path as it was at an earlier time, head and versions together. The second opens,
// because it was true once. It is found outside of these tables: rotation records which
// version it published and compares (drift), and the trail has the event of each
// publication, with its version, in a tree that can't be cut without being seen.
//
// # Reads
//
// A read is an event, secret.read, of who read which version, and no value is given out
// before its event is committed; where the trail can't be written, reads are refused.
// The first read of a version by an actor at an address is written at once; those that
// follow within a minute are counted and written as one event with their count. A
// process that is killed loses the counts of less than a minute, never the fact.
// What rotation itself reads (Store.Read), to compare, is no read by a consumer, and no
// event.
package builtin

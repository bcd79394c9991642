// Package crashtest kills processes in the middle of rotations, and looks whether
// anything was lost.
//
// # How
//
// [Run] takes a [Bed]: a target, a store, a strategy, and how a consumer logs in and
// reads. It makes a credential, has a child process rotate it once to see which points
// of the protocol there are (before and after each of the effects E0 to E8), and then,
// for each point:
//
//   - a child rotates, and sends itself SIGKILL at the point; the next one recovers;
//   - a child rotates, and kills itself at the point; the next one recovers, and kills itself
//     at the same effect; the next one recovers, and kills itself two points later; the
//     next one recovers.
//
// A child is the test binary itself: [Main], called from TestMain, is where it begins. It
// opens the same database, key and systems as the program does. Nobody cleans up between
// two children.
//
// # What must hold
//
// After each kill: what consumers read is accepted by the target, or a value that is
// sealed in the database is; the second only with strategy replace, which has a window.
// After each recovery also: consumers read the new value, it is the only one that is
// accepted and the only one that is sealed, the target holds no value beside it, no
// staged copy is left, and the trail has exactly one end for each start, of the run and
// of all its effects.
//
// [Table] is the outcome, as Markdown for the docs.
package crashtest

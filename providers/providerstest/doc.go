// Package providerstest has the suites that every adapter of package providers
// passes, and an in-memory system to test their callers with.
//
// # The suites
//
// [Target] and [Store] drive an adapter as rotation does, against a real system that
// the adapter's own tests start. What consumers see is asked of the system by its own
// client ([TargetBed].Accepts, [StoreBed].Read), never of the adapter under test. The
// invariant at every point of a life is that what consumers read is accepted; only with
// providers.Replace there is a window, from Apply to the publishing of the new value.
//
// Each call is made twice, by two handles, and what has to survive a crash goes through
// its encoded form, so that an adapter that remembers things in the process fails.
// All errors and findings are searched for the values that went through the calls.
//
// # The system
//
// [Memory] is a small system that accepts credentials and keeps values: one object that
// any number of handles share, also from other processes ([Memory.Serve], [Remote]), so
// that it outlives a process that is killed. [BrokenTarget] and [BrokenStore] put
// planned failures before or behind an effect. The suites are tested by faults that are
// planted into Memory: each has to be found.
package providerstest

// Package rotation runs what has to happen on time.
//
// Today it holds one thing, the [Scheduler]: the loop that calls each domain's
// pass. A pass is one bounded look at what is due followed by the work; it is
// named, tested alone, and callable by hand ([Scheduler.RunOnce]). The loop adds
// nothing to what a pass does, so "rotate now" and "rotate on schedule" are the
// same code.
//
// # Model
//
// Each [Pass] has a loop of its own, in a goroutine of its own: run the pass,
// sleep until the instant it asked for, and never longer than Every; then run it
// again. The table in the database is the queue. The loop remembers nothing that
// a restart would lose, so a crash is a pause.
//
// # Invariants
//
//   - A pass never overlaps itself inside one Scheduler, by hand or by the loop.
//     Between processes it may; passes claim their rows by compare-and-swap.
//   - A pass that fails, panics or hangs delays only itself.
//   - A Wake that arrives while a pass runs makes it run once more afterwards.
//   - Sleeping follows the monotonic clock. A wall clock that is stepped, in
//     either direction and by any amount, delays a pass by at most Every.
//
// # What happens on failure
//
// An error is logged once and given to Observe, and the pass is tried again after
// a delay that doubles from half a second to 15 seconds, with jitter, until it
// succeeds. A Wake cuts that delay short. A panic is an error whose stack is in
// the log. A pass gets a context that ends after Timeout; one that ignores it is
// reported while it is still running, once, and keeps only its own loop waiting.
// A wall clock that jumps against the monotonic clock is logged and given to
// Observe as [Outcome.Step]: schedules are wall-clock times, so somebody should know.
package rotation

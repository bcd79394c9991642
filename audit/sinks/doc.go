// Package sinks copies the trail to systems that watch it: a syslog collector,
// Splunk, any HTTPS endpoint, an OpenTelemetry Collector, or files.
//
// # Model
//
// The trail is the record; a sink holds a copy. A [Pump] reads the sequenced
// trail from a durable cursor, gives batches to a [Sink], and moves the cursor
// past what was delivered. One pump serves one sink, in a goroutine of its own:
// a sink that is slow or dead delays its own copy and nothing else.
//
// # Promises
//
//   - Nothing is lost: the cursor moves only past what the other side took, as
//     far as its protocol can tell. What each protocol can tell is said at its
//     sink, and in docs/sinks.md.
//   - Order is kept, except inside what is sent again.
//   - Every record may arrive more than once. The pair of origin and index tells
//     repeats; both are in every message of every kind.
//   - Secrets are in no error and no log line. Errors name the scheme and host of
//     an address and never the rest, since a path may be a credential too.
//
// # What happens on failure
//
//	refused connection, time-out,   the same records again, after 1 s, doubling up to 1 min,
//	401, 403, 408, 429, 5xx         with jitter; later when Retry-After says so
//	400, 413, 422                   the batch is halved down to the records that the other
//	                                side refuses; each goes to Pump.Rejected, and the rest on.
//	                                After ten refused in a row with none taken between, the
//	                                pump stops there: then it is not the records
//	reply lost                      sent again: repeats
//	killed before the cursor moved  sent again: repeats, at most a batch (and what was held)
//	cursor moved by another replica goes on from where that one is
//
// Some receivers acknowledge what they hold in memory only. For those a sink says
// how long to hold the cursor back ([Holder]); if the connection breaks meanwhile,
// everything that was held is sent again.
package sinks

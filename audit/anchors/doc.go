// Package anchors takes the newest checkpoints of the trail off this machine.
//
// # Model
//
// The trail's Merkle tree lets anybody who holds an older checkpoint see that
// the log was cut or rewritten since. Whoever runs the server can replace the
// database and all checkpoints in it, so somebody else has to hold some.
//
//   - An [Anchor] is a place that receives the newest signed checkpoint: a
//     folder (file), a receiver of HTTP posts (webhook) or an S3 bucket (s3).
//     It keeps each under its size and replaces none.
//   - A witness (C2SP tlog-witness) is somebody else's server that verifies that
//     a checkpoint extends the one it saw before, and cosigns it:
//     [WitnessClient].
//   - The [Pusher] brings the newest checkpoint to all of them, each at its own
//     pace.
//
// Anchors and witnesses hold checkpoints, which are public: names of logs, sizes
// and hashes. No event leaves the server this way.
//
// # Invariants
//
//   - What an anchor holds is never overwritten. Pushing a checkpoint again
//     changes nothing and succeeds, so a lost reply is answered by a repetition.
//   - An anchor that holds another tree of the same size is an error of kind
//     fault.ErrChanged, reason "anchor_fork"; one that holds a larger tree than
//     the log's newest, "anchor_ahead": the log went back. Of witnesses:
//     "witness_fork", "witness_ahead". These stand until the anchor takes a
//     checkpoint again: nothing here decides which of two histories is true.
//   - With [Config.Check], only what the log's keys signed can raise these
//     alarms; anything else that lies in the place is "anchor_garbage".
//   - A cosignature is verified before it is handed on.
//   - `latest` is a convenience for people and a hint for [Anchor.Newest], which
//     does not believe it: the numbered checkpoints decide.
//   - TLS is always verified; plain http reaches loopback only; redirects are not
//     followed; at most 64 KiB of a reply are read (512 KiB of an S3 server's); errors hold no secret, of
//     an address its host only, and of a webhook's reply its status only.
//
// # What happens on failure
//
// A destination that fails is tried again after a delay that doubles from one
// second to five minutes, with jitter, always with the newest checkpoint of that
// moment; what it missed in between it does not need. Each destination has its
// own goroutine, deadline and delay: one that hangs delays no other. Nothing in
// the trail waits for an anchor.
package anchors

// Package awstest is a simulator of the parts of AWS that Rotunda speaks to: AWS
// Secrets Manager, IAM access keys, and STS. It is for tests.
//
// # Why
//
// No emulator can be had that keeps the rules on which a rotation stands: the usual
// ones overwrite a version when its request token comes with another value, let go of
// AWSCURRENT, leave it on two versions, and check no signature. They hide just the
// faults that a rotation has to survive.
//
// # What it is pinned to
//
//   - AWS's own API model (testdata/*.json, cut down by trim.go from the AWS SDK for
//     Go): which operations there are, what a request has to have, its limits and
//     patterns, what an answer may hold, and by which code and status an error comes.
//     A request that the model does not allow is refused; an answer that it does not
//     allow is a fault of the simulator, which fails the test that saw it.
//   - Recordings of the real service (testdata/recordings), replayed in its tests.
//   - The examples of AWS's own documentation, replayed in its tests.
//   - The rules that are only prose in the model, each a row of its tests.
//
// It is spoken to over HTTP by the real SDK, and verifies Signature Version 4 of every
// request. It is no proof about a live account: latency, the reach of IAM policies,
// KMS, and the moments at which AWS is inconsistent are as its switches say.
//
// # How to use it
//
// [Start] runs one for a test. Other processes, also ones that a test kills, reach it
// by the environment that [Sim.Env] gives. State is read from outside of the API by
// [Sim.Secret], [Sim.Keys] and [Sim.Calls]; faults are switched by [Sim.Inject],
// [Sim.Lag] and [Sim.ExpireSessions].
package awstest

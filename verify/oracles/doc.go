// Package oracles holds verify/httpsig and verify/webhook against programs that
// other people wrote for the same specifications, in both directions: they sign
// and ours verifies, ours signs and they verify. It is a module of its own, so that
// these programs are no dependency of Rotunda's.
//
//	HTTP Message Signatures   github.com/yaronf/httpsign, github.com/remitly-oss/httpsig-go,
//	                          http-message-signatures (npm)
//	structured fields         github.com/dunglas/httpsfv
//	Standard Webhooks         the official library in Go and in JavaScript
//
// The JavaScript ones run in one Node process, which is told what to do by lines
// of JSON; keys go there over its standard input. setup.sh installs them in the
// versions that package-lock.json pins.
//
// The benchmarks have the Go libraries as peers of BenchmarkVerifyHMAC1KiB.
package oracles

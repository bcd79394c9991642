// Package aws has the adapters for Amazon Web Services: the store aws-secrets-manager
// and the target aws-iam. They are proven against a simulator that is pinned to AWS's
// own API model, examples and recordings (package awstest), not against a live account.
// Nothing in them knows of the simulator: AWS_ENDPOINT_URL, which every SDK of AWS
// reads, and the SDK's default chain lead to either.
//
// # The store
//
// A version of a secret is named by its rotation: ClientRequestToken is the rotation's
// id, which makes every write repeatable, and a version can't be changed. Stage puts
// the version under the label ROTUNDA_STAGED, which nobody else uses; AWSPENDING is
// left to AWS's own rotation, which it would block. Publish moves AWSCURRENT from the
// version that was read before to ours, naming both: AWS compares and swaps. What was
// read before has AWSPREVIOUS then. Discard takes ROTUNDA_STAGED off.
//
// AWS gives AWSCURRENT to the first version of a secret, whatever labels were asked
// for. So where a secret has no version, or does not exist, Stage keeps nothing: a
// staged copy would be what consumers read. Publish makes that first version, and AWS
// decides which of two was first.
//
// Reads are eventually consistent. A version that was just written and is not found
// yet is waited for, within the context and about two seconds; it is never made anew.
// Nothing is decided by a read that contradicts the caller before it was repeated.
//
// # The target
//
// IAM makes the key and tells its secret once; a user has at most two. Apply first
// deletes what an earlier try of the same rotation left: a key that was not there
// before, is not recorded, and is not older than the rotation. No other key is ever
// deleted, least of all the oldest. If two keys are in the way that does not fit,
// Apply refuses and names them.
//
// A tag on the user, one per lease (rotunda-rotation-EPOCH), says which rotation and
// generation was at work. IAM can't compare and swap, so the tags are read again after
// ours was written, before each deletion, and after the key was made: whoever finds a
// newer one withdraws, and deletes the key that it made itself. What is left of the
// race is one round trip between a look at the tags and a deletion.
//
// # When it fails
//
// The SDK makes one attempt: rotation repeats. Refused logins are tried once more with
// credentials that are resolved afresh, since a session may have ended and the clock
// may have been corrected. Answers are read up to 1 MiB. Errors name what was asked of AWS, its
// code and request id; AWS's own words only where they can't hold a value.
package aws

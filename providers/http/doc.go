// Package httptarget is the target kind "http": a partner's own endpoints, by which the
// partner's system accepts a credential of ours.
//
// # What the partner offers
//
// Endpoints below one address, each for POST with a JSON body:
//
//	set      accept a new value
//	test     say whether a value is accepted, changing nothing
//	revoke   accept a value no longer
//	retire   optional: end a value by itself at a time
//	usage    optional: say what is known of the use of a value
//
// # What Rotunda sends
//
// A request is a webhook after the Standard Webhooks specification: headers webhook-id,
// webhook-timestamp and webhook-signature, signed with the login's signing_secret. The
// content type is application/json. The body is one JSON object without white space, in
// UTF-8, its members in exactly this order; none is ever left out but those in brackets:
//
//	{"type":"credential.set","rotation":"…","generation":2,"epoch":7,"strategy":"dual",
//	 "account":"orders","fields":{"password":"…","username":"orders"}}
//	{"type":"credential.test","rotation":"…","generation":2,"epoch":7,"strategy":"dual",
//	 "account":"orders","fields":{…}}
//	{"type":"credential.revoke","rotation":"…","generation":1,"epoch":7,"strategy":"dual",
//	 "account":"orders","fields":{…}[,"emergency":true]}
//	{"type":"credential.retire",…,"fields":{…}[,"end":"2026-11-22T12:00:00Z"]}
//	{"type":"credential.usage",…,"fields":{…}}
//
// (The line breaks are the documentation's.) rotation and generation are those of the
// value that is meant: the rotation is a UUID, or empty for a value from before Rotunda,
// whose generation is 0. epoch is of the lease under which the request is made; it only
// grows. account names whose value it is. fields is the value as consumers read it, its
// names sorted; it is {} where the records hold it no more, and the value is then found
// by account and generation. emergency is there if the value is in the wrong hands: end
// its sessions, too. end is in RFC 3339, UTC, seconds; a retire
// without it takes an earlier end back: the value is current again, and one with an
// earlier epoch that comes after it is answered 409.
//
// webhook-id is the id of the rotation that is under way and the step, so that a request
// that is repeated, because its answer was lost, has the id of the first:
//
//	ROTATION_set                    ROTATION_retire_GENERATION_UNIXTIME
//	ROTATION_revoke_GENERATION      ROTATION_retire_GENERATION_never  (it has no end)
//	ROTATION_revoke_GENERATION_now  (in an emergency)
//	ROTATION_test_RANDOM            ROTATION_usage_RANDOM
//
// Whoever remembers ids to do each request once keys his memory by them. Questions are
// asked anew each time, and have new ids.
//
// # What the partner does
//
// With strategy dual a set leaves the values that are accepted as they are, with replace
// it ends them, with alternate each account has one value and a set touches its account
// only. A set whose epoch or generation is below that of an earlier set of the account
// is answered 409 and does nothing. The same set again is answered as the first was.
//
// # What an answer means
//
//	2xx            done; of a test: the value is accepted
//	409            stale: a newer rotation or lease was at work        moved
//	422            the value will never be taken; of a test: it is not accepted   rejected
//	400 401 403 404 405 410 413 415 and all 3xx                        refused
//	429            too busy, Retry-After says until when               throttled
//	anything else, and no answer: it may have been done                unknown
//
// A revoke or retire that is answered 410 is done: the value is gone. The body of an answer
// is not looked at, but for usage, whose 200 has {"sessions":0,"last_used":"…"}, where
// both members may be left out and last_used is in RFC 3339.
//
// # What protects this side
//
// TLS is verified, against ca_cert if that is set. Redirects are not followed. Answers
// are read up to 64 KiB. An address that is not public (loopback, private, link-local
// with the metadata services of clouds, shared, reserved) is refused after its name was
// resolved and before a byte is sent, unless allow_private=true: a partner's name must
// not lead into our own network. No proxy of the environment is used.
package httptarget

// Package httpsig makes and verifies HTTP Message Signatures (RFC 9421) and
// Content-Digest (RFC 9530). It is for gateways and for services that verify each
// request they get: strict, bounded, and about twice the cost of its cryptography.
//
// # Model
//
// A signer names the components of a message (its method, path, fields) in the
// field Signature-Input. Both sides write one line per component, and last the
// parameters: the signature base. The signature is over these bytes, in the field
// Signature. A body is covered by covering content-digest.
//
// A receiver does this, in this order; the key and the replay store are its own:
//
//	s, err := httpsig.Parse(m, "")           // what the fields say: a claim
//	k := …                                   // the key whose id is s.KeyID
//	err = policy.Check(s, m, hasBody, now)   // covers enough, new enough, has a nonce
//	_, err = httpsig.Verify(s, m, k, nil)    // the signature is right
//	err = s.CheckBody(m, body)               // Content-Digest is that of the body
//	…                                        // the nonce was not seen before
//
// None can be left out. Without Check a signature over nothing is a valid one;
// without CheckBody a body can be exchanged, or taken away, although content-digest
// is covered; without a replay store a request can be sent twice. Put the nonce into the
// store last, or strangers fill it.
//
// # Keys decide
//
// A [Key] has one algorithm, which follows from the kind of the key. The message
// can't choose: an alg parameter that says something else is refused, and a public
// key can't become an HMAC secret. HMACs are compared in constant time, and their
// whole length counts.
//
// # What is refused, and why
//
// Two programs that read one request differently are two different requests, one of
// which nobody signed. So what is not the canonical form is refused and not
// repaired:
//
//   - Signature-Input that a serializer of structured fields (RFC 9651) would
//     write in another way: other spaces, ;sf=?1, numbers with a leading zero, a
//     sign or a point. Some sign the text as it came, others write it anew.
//   - anything twice: a label, a parameter, a component, a digest of one name, a
//     query parameter that is covered by name. Some take the first, some the last.
//   - more than one signature when no label was chosen; labels in Signature that
//     are not in Signature-Input.
//   - a parameter that is not known: it might forbid what would be allowed.
//   - a member that goes over two lines of a field; an empty line.
//   - base64 with spare bits, without padding, or with line ends.
//   - bytes that are not printable ASCII, in paths, queries, authorities and covered
//     fields (tab is allowed there, and ;bs covers any field), and above all a line
//     end, which would add a line to the base. The line folding of old times
//     becomes one space, as RFC 9421 section 2.1 says.
//   - an authority with a user name, a comma, an escape, an odd port.
//   - @request-target, which proxies change between versions of HTTP: cover
//     @path and @query. (Policy refuses it, the base knows it.)
//   - ;req in a request, and parameters that contradict each other.
//   - sizes and numbers beyond what signers send: 8 KiB of a field, 8 labels, 32
//     components, 256 characters of a keyid, 64 KiB of a base.
//
// A query that is empty and no query at all have the same base (RFC 9421 section
// 2.2.7), and the spelling of a path is part of it: /a and /%61 are two paths.
//
// # Failures
//
// Every error is an [*Error] with a reason and a message for the signer. No error
// and no [Explanation] holds a key or a MAC. A response can be verified, too, and
// can cover parts of its request with ;req.
package httpsig

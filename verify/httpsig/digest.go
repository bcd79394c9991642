package httpsig

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"strings"
)

// Digest is the Content-Digest of a body (RFC 9530), with SHA-256.
func Digest(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// CheckBody compares the body with Content-Digest when the signature covers that
// field. It does so of an empty body too: one that was taken away would pass for a
// request that never had one. That a request with a body has to cover
// content-digest is for [Policy.Check].
func (s *Signature) CheckBody(m *Message, body []byte) error {
	for i := range s.Components {
		if c := &s.Components[i]; c.name() == "content-digest" && c.flags&(flagTR|flagReq) == 0 {
			return CheckDigest(m.Header["Content-Digest"], body)
		}
	}
	return nil
}

// CheckDigest compares the lines of a Content-Digest field with the body. At
// least one of sha-256 and sha-512 must be there, and each that is must be right.
// Other algorithms are only read: those that collide (md5, sha) or check against
// accidents only (unixsum, unixcksum, adler, crc32c) prove nothing.
//
// The body is what was sent, with its Content-Encoding. An empty one has a digest
// too: use [Signature.CheckBody], which knows when to ask.
func CheckDigest(values []string, body []byte) error {
	if len(values) == 0 {
		return refuse(ReasonDigest, "the message has no Content-Digest")
	}
	// What nearly every message has, at the cost of the hash.
	if prefix := "sha-256=:"; len(values) == 1 && strings.HasPrefix(values[0], prefix) && len(values[0]) == len(prefix)+44+1 {
		sum := sha256.Sum256(body)
		var buf [44]byte
		base64.StdEncoding.Encode(buf[:], sum[:])
		if text := values[0][len(prefix):]; text[:44] == string(buf[:]) && text[44] == ':' {
			return nil
		}
	}
	d := dictionary{name: "Content-Digest"}
	known := false
	for d.start(values); d.more(); {
		name, err := d.member()
		if err != nil {
			return err
		}
		text, err := d.bytes()
		if err != nil {
			return err
		}
		if err := d.end(); err != nil {
			return err
		}
		var buf [88]byte
		want := buf[:0]
		switch name {
		case "sha-256":
			sum := sha256.Sum256(body)
			want = base64.StdEncoding.AppendEncode(want, sum[:])
		case "sha-512":
			sum := sha512.Sum512(body)
			want = base64.StdEncoding.AppendEncode(want, sum[:])
		default:
			if _, ok := appendBase64(nil, text); !ok {
				return refuse(ReasonMalformed, "Content-Digest: the value of %s is not base64 with padding", clip(name))
			}
			continue
		}
		known = true
		if text != string(want) {
			if _, ok := appendBase64(nil, text); !ok {
				return refuse(ReasonMalformed, "Content-Digest: the value of %s is not base64 with padding", name)
			}
			return refuse(ReasonDigest, "Content-Digest: %s is not that of the body of %d bytes that arrived: digest exactly the bytes that are sent", name, len(body))
		}
	}
	if d.err != nil {
		return d.err
	}
	if !known {
		return refuse(ReasonDigest, "Content-Digest has neither sha-256 nor sha-512")
	}
	return nil
}

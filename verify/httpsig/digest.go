package httpsig

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
)

// Digest is the Content-Digest of a body (RFC 9530), with SHA-256.
func Digest(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// CheckDigest compares the lines of a Content-Digest field with the body. At
// least one of sha-256 and sha-512 must be there, and each that is must be right.
// Other algorithms are only read: those that collide (md5, sha) or check against
// accidents only (unixsum, unixcksum, adler, crc32c) prove nothing.
func CheckDigest(values []string, body []byte) error {
	if len(values) == 0 {
		return refuse(ReasonDigest, "the message has no Content-Digest")
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

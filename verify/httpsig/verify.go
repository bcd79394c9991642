package httpsig

import "crypto/sha256"

// Verify checks the signature of a message under a key. It appends the signature
// base to buf and returns it, also with an error of reason "signature", for
// [Explain]. Which components are covered, when it was made and whether it was
// seen before is not looked at: that is for [Policy.Check] and a replay store.
func Verify(s *Signature, m *Message, k *Key, buf []byte) (base []byte, err error) {
	if s.hasAlg && s.Alg != string(k.alg) {
		return buf, refuse(ReasonAlgorithm, "alg is %s, and the key %s is for %s: leave alg out", clip(s.Alg), clip(s.KeyID), k.alg)
	}
	start := len(buf)
	base, err = s.Base(buf, m)
	if err != nil {
		return base, err
	}
	if !k.Verify(base[start:], s.Value) {
		if k.alg == HMACSHA256 && len(s.Value) != sha256.Size {
			return base, refuse(ReasonSignature, "an HMAC-SHA-256 has %d bytes, and this one %d", sha256.Size, len(s.Value))
		}
		return base, refuse(ReasonSignature, "the signature is not that of this message under the key %s: compare what was signed with the signature base", clip(s.KeyID))
	}
	return base, nil
}

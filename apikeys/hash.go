package apikeys

import (
	"crypto/hmac"
	"crypto/sha256"
	"hash"

	"golang.org/x/crypto/argon2"
)

// What is put into the HMACs of imported keys, so that none can be taken for
// another, nor for the hash of a secret that Rotunda made: those are base62.
const (
	markDigest = 0 // a SHA-256
	markWeak   = 1 // an argon2id
	markLookup = 2
)

// Argon2id for weak keys (RFC 9106; the lowest setting that OWASP recommends).
// Each verification of such a key costs about 30 ms and 19 MiB.
const (
	argonTime    = 2
	argonMemory  = 19 << 10 // KiB
	argonThreads = 1
	argonSize    = 32
	saltSize     = 16
)

const (
	lookupSize = 16
	bucketSize = 2
)

func newMAC(key []byte) hash.Hash { return hmac.New(sha256.New, key) }

// mac is what is stored of a key that Rotunda made: HMAC-SHA-256 over
// partner ‖ 0 ‖ secret. Access tokens belong to no partner.
func mac(pepper []byte, partner, secret string) []byte {
	h := newMAC(pepper)
	h.Write([]byte(partner))
	h.Write([]byte{0})
	h.Write([]byte(secret))
	return h.Sum(nil)
}

// apiKeyHash is what is stored of an API key that Rotunda made. secret is the part
// of the key string before the checksum.
func apiKeyHash(pepper []byte, partner, secret string) []byte { return mac(pepper, partner, secret) }

// foreignDigest is what all else is made of for an imported key.
func foreignDigest(value string) [sha256.Size]byte { return sha256.Sum256([]byte(value)) }

// foreignHash is what is stored of an imported key that is not weak.
func foreignHash(pepper []byte, partner string, digest [sha256.Size]byte) []byte {
	h := newMAC(pepper)
	h.Write([]byte(partner))
	h.Write([]byte{0, markDigest})
	h.Write(digest[:])
	return h.Sum(nil)
}

// foreignLookup is how an imported key that is not weak is found by its value:
// the column lookup.
func foreignLookup(pepper []byte, digest [sha256.Size]byte) []byte {
	h := newMAC(pepper)
	h.Write([]byte{markLookup})
	h.Write(digest[:])
	return h.Sum(nil)[:lookupSize]
}

// weakBucket is the column lookup of a weak key. It is so short that it can't be
// used to test guesses: the slow hash has to be.
func weakBucket(pepper []byte, digest [sha256.Size]byte) []byte {
	return foreignLookup(pepper, digest)[:bucketSize]
}

// weakHash is what is stored of a weak key. It takes about 30 ms and 19 MiB: call
// it behind a rate limit only.
func weakHash(pepper []byte, partner, value string, salt []byte) []byte {
	slow := argon2.IDKey([]byte(value), salt, argonTime, argonMemory, argonThreads, argonSize)
	h := newMAC(pepper)
	h.Write([]byte(partner))
	h.Write([]byte{0, markWeak})
	h.Write(slow)
	return h.Sum(nil)
}

// lookups returns what the column lookup of an imported key may be, under each
// generation that lives, newest first: in full, and of a weak one.
func (p *Peppers) lookups(digest [sha256.Size]byte) (full, buckets [][]byte) {
	for _, gen := range p.live() {
		pepper, ok := p.get(gen)
		if !ok {
			continue
		}
		l := foreignLookup(pepper, digest)
		full, buckets = append(full, l), append(buckets, l[:bucketSize:bucketSize])
	}
	return full, buckets
}

// matchSecret reports whether a key that Rotunda made has this secret. The pepper
// is that of k.PepperGen.
func (k *Key) matchSecret(pepper []byte, secret string) bool {
	return k.Origin == OriginRotunda && hmac.Equal(apiKeyHash(pepper, k.Partner, secret), k.hash)
}

// matchDigest reports whether an imported key that is not weak has this digest.
func (k *Key) matchDigest(pepper []byte, digest [sha256.Size]byte) bool {
	return k.Origin != OriginRotunda && !k.Weak && hmac.Equal(foreignHash(pepper, k.Partner, digest), k.hash)
}

// matchWeak reports whether a weak key has this value. It is as slow as weakHash.
func (k *Key) matchWeak(pepper []byte, value string) bool {
	return k.Weak && hmac.Equal(weakHash(pepper, k.Partner, value, k.salt), k.hash)
}

package mysql

import (
	"crypto/sha256"
)

// rounds of caching_sha2_password: the 005 of $A$005$, in thousands.
const rounds = 5000

// shaCrypt is the digest of Ulrich Drepper's "Unix crypt using SHA-256" (the steps are
// those of its text), as 43 characters, without the limit of 16 bytes for the salt.
func shaCrypt(password, salt string) string {
	p, s := []byte(password), []byte(salt)
	sum := func(parts ...[]byte) []byte {
		h := sha256.New()
		for _, part := range parts {
			h.Write(part)
		}
		return h.Sum(nil)
	}
	b := sum(p, s, p)                 // steps 4 to 8
	a := [][]byte{p, s}               // 1 to 3
	a = append(a, stretch(b, len(p))) // 9, 10
	for n := len(p); n > 0; n >>= 1 { // 11
		if n&1 == 1 {
			a = append(a, b)
		} else {
			a = append(a, p)
		}
	}
	digest := sum(a...) // 12
	var dp, ds [][]byte
	for range len(p) { // 13 to 15
		dp = append(dp, p)
	}
	for range 16 + int(digest[0]) { // 17 to 19
		ds = append(ds, s)
	}
	pp, ss := stretch(sum(dp...), len(p)), stretch(sum(ds...), len(s)) // 16, 20
	for i := range rounds {                                            // 21
		var parts [][]byte
		if i%2 == 1 {
			parts = append(parts, pp)
		} else {
			parts = append(parts, digest)
		}
		if i%3 != 0 {
			parts = append(parts, ss)
		}
		if i%7 != 0 {
			parts = append(parts, pp)
		}
		if i%2 == 1 {
			parts = append(parts, digest)
		} else {
			parts = append(parts, pp)
		}
		digest = sum(parts...)
	}
	return crypt64(digest)
}

// stretch repeats b to n bytes.
func stretch(b []byte, n int) []byte {
	out := make([]byte, 0, n)
	for len(out) < n {
		out = append(out, b[:min(len(b), n-len(out))]...)
	}
	return out
}

// crypt64 writes a digest in crypt's own order and alphabet (step 22).
func crypt64(d []byte) string {
	const alphabet = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var out []byte
	put := func(x, y, z byte, n int) {
		for w := uint32(x)<<16 | uint32(y)<<8 | uint32(z); n > 0; n-- {
			out = append(out, alphabet[w&63])
			w >>= 6
		}
	}
	for i, j, k, n := 0, 10, 20, 0; n < 10; i, j, k, n = k+1, i+1, j+1, n+1 {
		put(d[i], d[j], d[k], 4)
	}
	put(0, d[31], d[30], 3)
	return string(out)
}

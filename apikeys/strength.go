package apikeys

import (
	"math"
	"strings"
)

// strongEnough is how many bits an imported key needs so as not to be weak.
const strongEnough = 80

const (
	wordBits   = 1.5 // of a letter in a word
	stepBits   = 1.0 // of a character that goes on as those before it did
	commonBits = 8.0 // of a common word
)

// common are words that people make keys of, in small letters and without digits.
// Those of three letters and fewer would be found in random keys too.
var common = strings.Fields(`
	access account admin administrator apikey auth backup bearer change changeme client company corp customer database default demo
	development dragon example foobar gateway hello integration internal letmein live local login master monkey partner pass password
	passwort private prod production public qwerty root sample sandbox secret secure server service shop staging supplier super
	system temp test token user vendor welcome winter summer spring autumn
	january february march april june july august september october november december`)

// walks are characters that stand side by side.
var walks = []string{
	"abcdefghijklmnopqrstuvwxyz", "01234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p", "!@#$%^&*()",
}

// strength estimates how many bits whoever guesses a key has to guess. It is wary:
// what random generators make is rarely taken for less than 80 bits when it has 128;
// what people make up is mostly found out, but for what looks like nothing at all.
//
// A character counts the logarithm of the size of the alphabet that the key is of (10
// digits, 16 hex digits, 26 letters, digits and letters, …), and at most half a bit
// more than the logarithm of how many different ones there are. Less count:
//
//   - a piece of three and more characters that was there before: one character
//   - a character that repeats the one before it, or goes on with its neighbour in
//     the alphabet or on the keyboard (aaa, 123, cba, qwe, 1qaz): 1 bit
//   - a common word, also with 0 for o, 3 for e and the like: 8 bits
//   - a letter of a word, when half of the key or more stands in small letters, with
//     or without one capital in front, or in capitals, and has vowels as words do: 1.5 bits
//   - a separator (_ - . : /): 1 bit.
//
// So 20 random hex digits are about at the limit and a UUID is above it; "correct-horse-
// battery-staple", "Password123!Password123!", a date after some words, and 20 digits are
// below.
func strength(key string) float64 {
	size, distinct := alphabet(key)
	most := min(math.Log2(float64(max(2, size))), math.Log2(float64(max(1, distinct)))+0.5)
	if distinct == 1 {
		most = stepBits
	}
	words := words(key)
	plain := unleet(key)
	bits := 0.0
	for i := 0; i < len(key); {
		if n := seenBefore(key, i); n >= 3 {
			bits += most
			i += n
			continue
		}
		if n := commonAt(plain, i); n > 0 {
			bits += commonBits
			i += n
			continue
		}
		cost := most
		switch k := kindOf(key[i]); {
		case follows(key, i), k == separator:
			cost = stepBits
		case words != nil && words[i]:
			cost = wordBits
		case words != nil && k == digit:
			cost = math.Log2(10)
		}
		bits += min(cost, most)
		i++
	}
	return bits
}

type charKind byte

const (
	special charKind = iota
	separator
	digit
	lower
	upper
)

func kindOf(c byte) charKind {
	switch {
	case '0' <= c && c <= '9':
		return digit
	case 'a' <= c && c <= 'z':
		return lower
	case 'A' <= c && c <= 'Z':
		return upper
	case strings.IndexByte("_-.:/", c) >= 0:
		return separator
	}
	return special
}

// alphabet returns of how many characters the key's alphabet has, without
// separators, and how many different ones are in the key.
func alphabet(key string) (size, distinct int) {
	var seen [256]bool
	var kinds [upper + 1]bool
	hex := true
	for i := range len(key) {
		c := key[i]
		k := kindOf(c)
		if k == separator {
			continue
		}
		if !seen[c] {
			seen[c] = true
			distinct++
		}
		kinds[k] = true
		hex = hex && (k == digit || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F')
	}
	if hex && kinds[digit] && kinds[lower] != kinds[upper] {
		return 16, distinct
	}
	for k, n := range map[charKind]int{digit: 10, lower: 26, upper: 26, special: 20} {
		if kinds[k] {
			size += n
		}
	}
	return size, distinct
}

// words marks the letters that stand as in words, or returns nil for a key that does
// not look as if it were made of words. Whether it does is judged by the long ones.
func words(key string) []bool {
	const long = 4
	marked := make([]bool, len(key))
	in, letters, vowels, others := 0, 0, 0, 0
	for i := 0; i < len(key); {
		k := kindOf(key[i])
		if k != lower && k != upper {
			if k != separator {
				others++
			}
			i++
			continue
		}
		end := i + 1
		if k == upper && end < len(key) && kindOf(key[end]) == lower {
			k = lower // a capital in front
		}
		for end < len(key) && kindOf(key[end]) == k {
			end++
		}
		letters += end - i
		for j := i; j < end; j++ {
			if strings.IndexByte("aeiouyAEIOUY", key[j]) >= 0 {
				vowels++
			}
			marked[j] = end-i > 1
		}
		if end-i >= long {
			in += end - i
		}
		i = end
	}
	if 2*in < letters+others || 3*vowels < letters {
		return nil
	}
	return marked
}

// unleet writes a key in small letters, and letters for what stands for them, byte
// for byte.
func unleet(key string) string {
	out := []byte(key)
	for i, c := range out {
		if kindOf(c) == upper {
			out[i] = c + 'a' - 'A'
		} else if j := strings.IndexByte("0134578@$!", c); j >= 0 {
			out[i] = "oieastbasi"[j]
		}
	}
	return string(out)
}

// commonAt returns the length of the longest common word at i.
func commonAt(plain string, i int) (longest int) {
	for _, w := range common {
		if len(w) > longest && strings.HasPrefix(plain[i:], w) {
			longest = len(w)
		}
	}
	return longest
}

// follows reports whether a character repeats the one before it, or goes on in a
// walk as the one before it did.
func follows(key string, i int) bool {
	if i == 0 {
		return false
	}
	if key[i] == key[i-1] {
		return true
	}
	step := walk(key, i)
	return step != 0 && (i == 1 || walk(key, i-1) == step || i+1 < len(key) && walk(key, i+1) == step)
}

// walk names the walk, and its direction, that leads to a character from the one
// before it; 0: none.
func walk(key string, i int) int {
	one, two := key[i-1], key[i]
	if kindOf(one) == upper {
		one += 'a' - 'A'
	}
	if kindOf(two) == upper {
		two += 'a' - 'A'
	}
	pair, back := string([]byte{one, two}), string([]byte{two, one})
	for n, w := range walks {
		if strings.Contains(w, pair) {
			return n + 1
		}
		if strings.Contains(w, back) {
			return -n - 1
		}
	}
	return 0
}

// seenBefore returns how many characters from i on were there before, in one piece.
func seenBefore(key string, i int) int {
	longest := 0
	for j := range i {
		n := 0
		for i+n < len(key) && j+n < i && key[j+n] == key[i+n] {
			n++
		}
		longest = max(longest, n)
	}
	return longest
}

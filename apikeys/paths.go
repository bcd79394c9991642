package apikeys

import (
	"slices"
	"strings"

	"github.com/rotunda-dev/rotunda/internal/fault"
)

// Bounds of the paths of a reader's token.
const (
	maxPaths     = 64
	maxPath      = 512     // bytes
	maxPathsText = 8 << 10 // of all of one token: its event tells them
)

const pathLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

// checkPaths checks the paths that a token is to be limited to.
func checkPaths(role Role, paths []string) error {
	if (role == Reader) != (len(paths) > 0) {
		return fault.Invalid("paths", "paths_and_role", "a token of role %s names the paths that it may read, and no other token does", Reader)
	}
	if len(paths) > maxPaths {
		return fault.Invalid("paths", "too_many", "a token has at most %d paths", maxPaths)
	}
	total := 0
	for i, p := range paths {
		if total += len(p); total > maxPathsText {
			return fault.Invalid("paths", "too_many", "the paths of a token have at most %d bytes together", maxPathsText)
		}
		if !pathWellFormed(p) {
			return fault.Invalid("paths", "bad_path", "%q is no path: it has 1 to %d letters, digits and . _ - in parts between slashes, of which none is empty, . or .., and may end in /* for all below", p[:min(len(p), 64)], maxPath)
		}
		if slices.Contains(paths[:i], p) {
			return fault.Invalid("paths", "path_twice", "%q is there twice", p[:min(len(p), 64)])
		}
	}
	return nil
}

func pathWellFormed(p string) bool {
	if len(p) > maxPath {
		return false
	}
	p = strings.TrimSuffix(p, "/*")
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." || strings.Trim(part, pathLetters) != "" {
			return false
		}
	}
	return true
}

// Patterns are what a token's Paths may have so that it may read a path: the path
// itself, and each folder that it is in, ending in "/*". A path that is not well
// formed has none.
func Patterns(path string) []string {
	if strings.HasSuffix(path, "/*") || !pathWellFormed(path) {
		return nil
	}
	out := []string{path}
	for i, r := range path {
		if r == '/' {
			out = append(out, path[:i]+"/*")
		}
	}
	return out
}

// MayRead reports whether one of a reader's paths covers a path of the built-in
// store: "orders/*" covers "orders/db" and "orders/eu/db", not "orders" and not
// "orders2/db".
func (t *Token) MayRead(path string) bool {
	return t.Role == Reader && slices.ContainsFunc(Patterns(path), func(p string) bool { return slices.Contains(t.Paths, p) })
}

#!/usr/bin/env bash
# Prints the path of a development tool, building it first when needed.
#
#   scripts/tool.sh NAME...     one path per line
#
# The versions are the `tool` lines of tools/go.mod and tools/*/go.mod. A tool
# that brings hundreds of modules has a go.mod of its own, so that its choices
# of versions can't move another tool's. A file `flags` beside a go.mod has more
# flags of `go build`, one per line. Binaries are kept in .tools/<key>/, where
# the key is the hash of the go.mod, the go.sum, the flags and the Go version,
# so they are built again only when one of these changes.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

build() { # NAME
	local name=$1 gomod="" pkg="" f
	for f in "$root"/tools/go.mod "$root"/tools/*/go.mod; do
		pkg=$(awk -v want="$name" '
			$1 == "tool" && $2 == "(" { inside = 1; next }
			inside && $1 == ")" { inside = 0 }
			$1 == "tool" { p = $2 }
			inside { p = $1 }
			p != "" { n = split(p, part, "/"); if (part[n] == want) print p; p = "" }
		' "$f")
		if [ -n "$pkg" ]; then
			gomod=$f
			break
		fi
	done
	if [ -z "$gomod" ]; then
		echo "tool $name: no tool line ends in /$name in tools/go.mod or tools/*/go.mod" >&2
		return 1
	fi

	local dir key out start flags=()
	dir=$(dirname "$gomod")
	if [ -f "$dir/flags" ]; then
		mapfile -t flags <"$dir/flags"
	fi
	key=$(cat "$dir/go.mod" "$dir/go.sum" <(printf '%s' "${flags[@]}") <(cd "$dir" && go env GOVERSION GOOS GOARCH) | sha256sum | cut -c1-16)
	out=$root/.tools/$key/$name
	if [ ! -x "$out" ]; then
		start=$SECONDS
		echo "building $name (once; kept in .tools)" >&2
		mkdir -p "$root/.tools/$key"
		# Built under another name and moved: an interrupted build must not
		# leave a broken tool that looks finished.
		if ! (cd "$dir" && GOFLAGS=-mod=readonly go build -trimpath -buildvcs=false "${flags[@]}" -o "$out.$$" "$pkg") >&2; then
			rm -f "$out.$$"
			echo "tool $name: go build $pkg in ${dir#"$root"/} failed; the lines above say why" >&2
			return 1
		fi
		mv -f "$out.$$" "$out"
		echo "built $name in $((SECONDS - start)) s" >&2
	fi
	echo "$out"
}

if [ $# -eq 0 ]; then
	echo "usage: scripts/tool.sh NAME..." >&2
	exit 2
fi
for name in "$@"; do
	build "$name"
done

#!/usr/bin/env bash
# Generates Go code from proto/, beside the .proto files.
#
#   scripts/generate.sh            writes it, and removes what no longer has a source
#   scripts/generate.sh --check    writes nothing; shows the difference and fails if there is one
#
# Both generate into an empty folder first: a failure leaves the tree as it was,
# and --check works in a tree with changes that are not committed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

mode=${1:-}
case $mode in
"" | --check) ;;
*)
	echo "usage: scripts/generate.sh [--check]" >&2
	exit 2
	;;
esac

tools=$(scripts/tool.sh buf protoc-gen-go protoc-gen-connect-go)
path=""
while IFS= read -r tool; do
	path=$path$(dirname "$tool"):
done <<<"$tools"
buf=$(head -n 1 <<<"$tools")

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

PATH=$path$PATH "$buf" generate --path proto/rotunda --output "$tmp"

generated() { # DIR: the generated files below it, one per line
	(cd "$1" && find proto -path proto/third_party -prune -o \
		\( -name '*.pb.go' -o -name '*.connect.go' \) -type f -print | LC_ALL=C sort)
}

mkdir -p "$tmp/proto"
want=$(generated "$tmp")
have=$(generated "$root")
if [ -z "$want" ]; then
	echo "generate: proto/ gave no code: is there a .proto file below proto/rotunda?" >&2
	exit 1
fi

if [ "$mode" = --check ]; then
	bad=0
	while IFS= read -r f; do
		[ -n "$f" ] || continue
		diff -u --label "$f (in the tree)" --label "$f (generated)" -N "$root/$f" "$tmp/$f" | head -n 60 || bad=1
	done < <(printf '%s\n%s\n' "$want" "$have" | LC_ALL=C sort -u)
	if [ $bad -ne 0 ]; then
		echo "generate: generated code does not match proto/: run 'make generate' and commit the result" >&2
		exit 1
	fi
	exit 0
fi

while IFS= read -r f; do
	[ -n "$f" ] || continue
	mkdir -p "$(dirname "$f")"
	# An unchanged file keeps its time stamp.
	cmp -s "$tmp/$f" "$f" || cp "$tmp/$f" "$f"
done <<<"$want"
LC_ALL=C comm -13 <(printf '%s\n' "$want") <(printf '%s\n' "$have") | while IFS= read -r f; do
	[ -n "$f" ] || continue
	rm -- "$f"
done

# The tables of the documentation that follow tables in the code.
ROTUNDA_UPDATE_DOCS=1 go test -count=1 -run '^TestDocsWhen' ./jwks ./internal/server ./cmd/rotunda >/dev/null

#!/usr/bin/env bash
# Runs every test: the main module, then each module below it that has tests.
#
#   scripts/test.sh [go test flags]
#
# A module below is a folder with a go.mod of its own, so that what only its tests
# needs stays out of the main module. Its setup.sh, where it has one, runs first.
# What its tests log (tables per consumer) is shown also when they pass.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A Node that scripts/setup.sh had to fetch goes before an older one.
PATH=$PWD/.tools/node/bin:$PATH

modules() {
	find . -mindepth 2 \( -name node_modules -o -name testdata -o -name '.?*' \) -prune -o \
		-name go.mod -type f -print | LC_ALL=C sort
}

# A real Vault, which tests start: built here, so that no test's time limit pays for it.
# One that is on the PATH is used as it is.
command -v vault >/dev/null || scripts/tool.sh vault >/dev/null
scripts/tool.sh postgresql-database-plugin >/dev/null

# quiet drops from `go test -v` the lines that say when a test starts, waits and
# goes on, and the subtests that passed, and takes four blanks off the rest. awk
# writes each line at once; with pipefail the exit status is that of go test.
quiet() {
	awk '/^=== (RUN|PAUSE|CONT|NAME) / || /^ +--- PASS: / { next } { sub(/^    /, ""); print; fflush() }'
}

failed=()
go test "$@" ./... || failed+=(.)

while IFS= read -r gomod; do
	dir=$(dirname "$gomod")
	[ -n "$(find "$dir" \( -name node_modules -o -name testdata \) -prune -o -name '*_test.go' -print -quit)" ] || continue
	if [ -x "$dir/setup.sh" ] && ! "$dir/setup.sh" </dev/null; then
		echo "FAIL	$dir: its setup.sh failed; the lines above say why" >&2
		failed+=("$dir")
		continue
	fi
	(cd "$dir" && go test -v "$@" ./... | quiet) || failed+=("$dir")
done < <(modules)

if [ ${#failed[@]} -gt 0 ]; then
	echo "FAIL	modules with failures: ${failed[*]}" >&2
	exit 1
fi

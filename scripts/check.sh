#!/usr/bin/env bash
# Everything that reads the code without running it, one line per part.
#
#   scripts/check.sh [PART]...     all parts when none is named; see the list below
#
# Goes on after a failure, so that one run shows all of them.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The version comes from git describe, and stamping fails in a clone owned by somebody else.
export GOFLAGS="${GOFLAGS:-} -buildvcs=false"

parts=(format vet staticcheck golangci proto generated modules scripts links)

# Every module that holds Go files, the main one first.
modules() {
	echo .
	local f dir
	while IFS= read -r f; do
		dir=$(dirname "$f")
		if [ -n "$(find "$dir" -name node_modules -prune -o -name '*.go' -print -quit)" ]; then
			echo "$dir"
		fi
	done < <(all_modules)
}

# Every go.mod below the main one, those that only pin tools too.
all_modules() {
	find . -mindepth 2 \( -name node_modules -o -name testdata -o -name '.?*' \) -prune -o \
		-name go.mod -type f -print | LC_ALL=C sort
}

in_modules() { # COMMAND...
	local dir bad=0
	while IFS= read -r dir; do
		(cd "$dir" && "$@" </dev/null) || bad=1
	done < <(modules)
	return $bad
}

check_format() {
	local bad
	bad=$(find . \( -name node_modules -o -name '.?*' \) -prune -o -name '*.go' -print0 | xargs -0 gofmt -l)
	if [ -n "$bad" ]; then
		echo "not formatted; run gofmt -w on:"
		echo "$bad"
		return 1
	fi
}

check_vet() { in_modules go vet ./...; }

check_staticcheck() {
	local tool
	tool=$(scripts/tool.sh staticcheck) || return 1
	in_modules "$tool" ./...
}

check_golangci() {
	local tool root=$PWD
	tool=$(scripts/tool.sh golangci-lint) || return 1
	in_modules "$tool" run --config "$root/.golangci.yml" --allow-parallel-runners ./...
}

check_proto() {
	local tool
	tool=$(scripts/tool.sh buf) || return 1
	"$tool" lint && "$tool" format --diff --exit-code --path proto/rotunda
}

check_generated() { scripts/generate.sh --check; }

check_modules() {
	local dir bad=0
	go mod verify >/dev/null || bad=1
	while IFS= read -r dir; do
		(cd "$dir" && go mod tidy -diff) || {
			echo "go.mod or go.sum of $dir is not tidy: run 'go mod tidy' there"
			bad=1
		}
	done < <(modules)
	return $bad
}

check_scripts() {
	local -a files
	mapfile -t files < <(
		{
			find . \( -name node_modules -o -name testdata -o -name '.?*' \) -prune -o -name '*.sh' -type f -print
			echo .ci/run
		} | LC_ALL=C sort
	)
	local f bad=0 first
	for f in "${files[@]}"; do
		# Without a first line that names its shell a script is handed to sh by other code.
		IFS= read -r first <"$f" || true
		local -a as=()
		[[ $first == '#!'* ]] || as=(--shell=sh)
		# SC1010: "done" as a word of its own is a false alarm. SC3013: Debian's sh has -nt.
		shellcheck --exclude=SC1010,SC3013 "${as[@]}" "$f" || bad=1
	done
	return $bad
}

check_links() { (cd tools && go run ./doclinks ..); }

[ $# -gt 0 ] || set -- "${parts[@]}"
failed=()
for part in "$@"; do
	if ! declare -F "check_$part" >/dev/null; then
		echo "usage: scripts/check.sh [${parts[*]}]" >&2
		exit 2
	fi
	start=$SECONDS
	# In a subshell with errexit: a command that fails in the middle of a part fails the part.
	set +e
	(
		set -e
		"check_$part"
	)
	code=$?
	set -e
	if [ $code -eq 0 ]; then
		printf 'ok    %-12s %4d s\n' "$part" $((SECONDS - start))
	else
		printf 'FAIL  %-12s %4d s\n' "$part" $((SECONDS - start))
		failed+=("$part")
	fi
done
if [ ${#failed[@]} -gt 0 ]; then
	echo "check: failed: ${failed[*]}" >&2
	exit 1
fi

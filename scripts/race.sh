#!/usr/bin/env bash
# Runs, under the race detector, the tests of the packages where goroutines share
# memory. The detector costs five to ten times the time, and the simulations are
# single-threaded by design, so they run in short mode here.
#
#   scripts/race.sh [PACKAGE]...
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -eq 0 ]; then
	# A package that starts a goroutine or holds a lock, in its code or its tests.
	mapfile -t dirs < <(grep -rlE --include='*.go' --exclude='*.pb.go' \
		--exclude-dir=node_modules --exclude-dir=testdata --exclude-dir='.?*' --exclude-dir=tools \
		'^[[:space:]]*go (func\(|[A-Za-z_.]+\()|sync\.(Mutex|RWMutex|WaitGroup|Once|Map|Pool)|"sync/atomic"|"golang.org/x/sync/|synctest\.' . |
		xargs -r -n 1 dirname | LC_ALL=C sort -u)
	# A folder of another module is not a package of this one.
	for dir in "${dirs[@]}"; do
		[ "$(cd "$dir" && go list -m -f '{{.Path}}' 2>/dev/null)" = "$(go list -m)" ] && set -- "$@" "$dir"
	done
fi
if [ $# -eq 0 ]; then
	echo "race: no package starts a goroutine or holds a lock"
	exit 0
fi
# What is skipped is one goroutine, or waits for other processes: the race detector would find
# nothing there, slowly.
CGO_ENABLED=1 go test -race -short -timeout 30m -skip '^TestSimulation|^TestTamperingCorpus|^TestHonestLog|^TestPruneProperty|^TestSequenceWhenDatabaseWasAltered|^TestExportFindsWhatSearchFinds|^TestLifeWhateverHappens|^TestFloodWhenKeysAreMadeUp|^TestForeignWhenWeakKeysAreGuessed|ChangeWhenItsEventCannotBeWritten|^TestCrashTable|^TestContinuityUnder|^TestRotationWhenThe(Network|Disk)|^TestRotationWhenServers|^TestRotationsThrough|Conformance|SuiteWhen|^TestFailureTable|^TestNoCredentialIsLost|^TestRecoveryOfMany|^TestForecast' "$@"

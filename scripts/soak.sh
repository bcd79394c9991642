#!/usr/bin/env bash
# Looks for rare faults for as long as it is given.
#
#   scripts/soak.sh SIMULATION FUZZ      two Go durations, e.g. 30m 2m
#
# First every simulation test, with ROTUNDA_SOAK set to SIMULATION (a simulation
# that sees it goes on with new seeds for that long, and prints each failing seed);
# then each fuzz target for FUZZ. Stops at the first failure.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
simulation=${1:?usage: scripts/soak.sh SIMULATION FUZZ}
fuzz=${2:?usage: scripts/soak.sh SIMULATION FUZZ}

echo "simulations, $simulation"
ROTUNDA_SOAK=$simulation go test -count=1 -timeout=0 -run 'Simulat' ./...

echo "the trail: replicas killed, a long honest log"
go test -count=1 -timeout=0 -run 'TestReplicasWhenKilled' ./audit -trail.kills 500
go test -count=1 -timeout=0 -run 'TestTamperingCorpus|TestHonest' ./audit -corpus.events 1000000

echo "rotation: crashes on real servers, a thousand rotations under clients, no credential is lost"
go test -count=1 -timeout=0 -run 'TestCrashTable|TestContinuity' ./rotation/realtest -crash.full -continuity.credentials 50 -continuity.times 20
go test -count=1 -timeout=0 -run 'TestNoCredentialIsLost' ./rotation -rapid.checks 20000

# Only packages that hold a fuzz target are built for it.
grep -rl --include='*_test.go' --exclude-dir=node_modules --exclude-dir=testdata '^func Fuzz' . |
	xargs -r -n 1 dirname | LC_ALL=C sort -u | while IFS= read -r dir; do
	listed=$(cd "$dir" && go test -list '^Fuzz' . </dev/null)
	while IFS= read -r target; do
		[[ $target == Fuzz* ]] || continue
		echo "fuzz $dir $target, $fuzz"
		(cd "$dir" && go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzz" . </dev/null)
	done <<<"$listed"
done

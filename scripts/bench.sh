#!/usr/bin/env bash
# Runs the benchmarks of the main module, then the load run when there is one.
#
#   scripts/bench.sh COUNT PATTERN [go test flags]
#
# The result is also kept in .bench/<time>.txt, in the format benchstat reads:
#   $(scripts/tool.sh benchstat) .bench/before.txt .bench/after.txt
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
count=${1:?usage: scripts/bench.sh COUNT PATTERN}
pattern=${2:?usage: scripts/bench.sh COUNT PATTERN}
shift 2

mkdir -p .bench
out=.bench/$(date -u +%Y%m%dT%H%M%SZ).txt
# One package at a time: benchmarks that share the cores measure each other.
go test -p 1 -run '^$' -bench "$pattern" -benchmem -count "$count" "$@" ./... |
	{ grep -v -e '\[no test files\]$' -e '^ok .*\[no tests to run\]$' || true; } | tee "$out"
echo "kept in $out"

if [ -x bench/load.sh ]; then
	bench/load.sh
fi

#!/usr/bin/env bash
# Exports and verifies a trail of a given size with the real program: seconds and
# peak memory of each step.
#
#   bench/trail.sh [EVENTS]        1000000 when it is left out; about 3 minutes
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
events=${1:-1000000}
dir=$(mktemp -d)
server=""
finish() {
	[ -z "$server" ] || kill "$server" 2>/dev/null || true
	rm -rf "$dir"
}
trap finish EXIT

CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$dir/rotunda" ./cmd/rotunda
go build -buildvcs=false -o "$dir/fill" ./bench/trail

start() {
	"$dir/rotunda" serve --data-dir "$dir/data" --listen 127.0.0.1:0 --log-level warn >"$dir/out" 2>&1 &
	server=$!
	for _ in $(seq 100); do
		ROTUNDA_SERVER=$(sed -n 's/.* serves on //p' "$dir/out")
		[ -z "$ROTUNDA_SERVER" ] || break
		sleep 0.1
	done
	export ROTUNDA_SERVER ROTUNDA_DATA_DIR="$dir/data"
}

stop() {
	kill -TERM "$server"
	wait "$server" || true
	server=""
}

# step NAME COMMAND...: runs it, and prints wall clock, CPU and peak memory.
step() {
	local name=$1 before after used
	shift
	before=$(date +%s.%N)
	"$@" >"$dir/step" 2>&1 &
	local pid=$! peak=0 rss
	while kill -0 "$pid" 2>/dev/null; do
		rss=$(awk '/VmHWM/ { print $2 }' "/proc/$pid/status" 2>/dev/null || true)
		[ -z "$rss" ] || peak=$rss
		sleep 0.05
	done
	wait "$pid" || { cat "$dir/step"; exit 1; }
	after=$(date +%s.%N)
	used=$(awk "BEGIN { printf \"%.1f\", $after - $before }")
	printf '%-28s %8s s   peak %4d MB\n' "$name" "$used" $((peak / 1024))
}

start
stop
step "record and sequence" "$dir/fill" -data-dir "$dir/data" -events "$events"
start
"$dir/rotunda" audit key >"$dir/trail.pub" 2>/dev/null
token="Authorization: Bearer $(cat "$dir/data/admin.token")"
for format in jsonl parquet; do
	step "export $format" "$dir/rotunda" audit export -q --format "$format" --out "$dir/$format"
	step "verify $format" "$dir/rotunda" audit verify -q "$dir/$format" --key "$dir/trail.pub"
done
step "export one actor of 200" "$dir/rotunda" audit export -q --actor k3v9x0m2q8r7t007 --out "$dir/one"
step "verify it" "$dir/rotunda" audit verify -q "$dir/one" --key "$dir/trail.pub"
step "HTTP download jsonl" curl -fsS -H "$token" -o "$dir/plain" "$ROTUNDA_SERVER/trail/export?format=jsonl"
printf 'server: peak %d MB\n' $(($(awk '/VmHWM/ { print $2 }' "/proc/$server/status") / 1024))
printf 'database %s MB, jsonl %s MB, parquet %s MB\n' "$(du -sm "$dir/data" | cut -f1)" "$(du -sm "$dir/jsonl" | cut -f1)" "$(du -sm "$dir/parquet" | cut -f1)"

#!/usr/bin/env bash
# Starts a real `rotunda serve` with no API keys and with many, and loads its
# verification with wrk beside a bare server of the same answers, one after the other
# in turns. It prints seconds, memory, medians and ratios, and asserts nothing: see
# docs/benchmarks.md for what the figures mean.
#
#   bench/keys.sh [KEYS] [ROUNDS] [SECONDS]     1000000 keys, 5 rounds of 3 seconds each
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
keys=${1:-1000000}
rounds=${2:-5}
seconds=${3:-3}
connections=32
threads=2

tmp=$(mktemp -d)
declare -A pid
finish() {
	for p in "${pid[@]}"; do
		kill "$p" 2>/dev/null || true
		wait "$p" 2>/dev/null || true
	done
	rm -rf "$tmp"
}
trap finish EXIT
umask 077

export CGO_ENABLED=0
go build -trimpath -buildvcs=false -o "$tmp/" ./cmd/rotunda ./bench/bare
go build -trimpath -buildvcs=false -o "$tmp/fill" ./bench/keys

# launch NAME COMMAND...: starts it in the background; url_of NAME is where it serves.
launch() {
	local name=$1
	shift
	"$@" >"$tmp/$name.out" 2>"$tmp/$name.err" &
	pid[$name]=$!
	for _ in $(seq 6000); do
		grep -qs 'http://' "$tmp/$name.out" && return
		sleep 0.01
	done
	echo "keys: $name did not start:" >&2
	cat "$tmp/$name.err" >&2
	return 1
}
url_of() { grep -o 'http://[0-9.:]*' "$tmp/$1.out" | head -1; }
stop() {
	kill -TERM "${pid[$1]}"
	wait "${pid[$1]}" || true
	unset "pid[$1]"
}
resident() { awk '/VmRSS/ { print int($2 / 1024) }' "/proc/${pid[$1]}/status"; }
serve() { launch rotunda "$tmp/rotunda" serve --data-dir "$tmp/data" --listen 127.0.0.1:0 --log-level warn; }

# started TITLE: starts Rotunda, and prints how long it took and what it holds a while later.
started() {
	local before after
	before=$(date +%s.%N)
	serve
	until curl -fsS -o /dev/null "$(url_of rotunda)/readyz" 2>/dev/null; do sleep 0.01; done
	after=$(date +%s.%N)
	sleep 5
	printf '%-33s %8.2f s   %5d MB resident 5 s later\n' "$1" "$(awk "BEGIN { print $after - $before }")" "$(resident rotunda)"
}

echo "$(nproc) cores, $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1), $(go version | cut -d' ' -f3), load at the start $(cut -d' ' -f1-3 /proc/loadavg)"
serve
stop rotunda
started "start, no keys"
stop rotunda
before=$(date +%s)
"$tmp/fill" -data-dir "$tmp/data" -keys "$keys" -sample 100000 >"$tmp/values"
printf 'filled with %d keys in %d s; database %s MB\n' "$keys" $(($(date +%s) - before)) "$(du -sm "$tmp/data" | cut -f1)"
started "start, $keys keys"

rotunda=$(url_of rotunda)
export ROTUNDA_SERVER=$rotunda ROTUNDA_DATA_DIR=$tmp/data VALUES=$tmp/values TOKEN_FILE=$tmp/gateway.token
"$tmp/rotunda" token create wrk --role gateway --cidr 127.0.0.1/32 >"$TOKEN_FILE" 2>/dev/null
launch bare "$tmp/bare"

ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/${pid[$1]}/stat"; }
# load SERVER: requests per second, CPU time for each in microseconds, p99 latency.
load() {
	local out before
	before=$(ticks "$1")
	out=$(wrk -t "$threads" -c "$connections" -d "${seconds}s" --latency -s bench/verify.lua "$(url_of "$1")")
	if grep -q -e 'Non-2xx' -e 'Socket errors' <<<"$out"; then
		echo "keys: requests failed: $out" >&2
		return 1
	fi
	awk -v cpu=$(($(ticks "$1") - before)) -v hz="$(getconf CLK_TCK)" \
		'/requests in/ { n = $1 } /99%/ { p = $2 } /^Requests\/sec:/ { printf "%s %.2f %s\n", $2, cpu / hz * 1e6 / n, p }' <<<"$out"
}
median() { sort -g | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
column() { awk -v n="$1" '{ print $n }' "$tmp/pairs"; }

echo "$rounds rounds of ${seconds}s, wrk with $connections connections on $threads threads of the same machine, a sample of $(wc -l <"$tmp/values") keys in turn; medians"
printf '%-33s %9s %9s %6s  %-12s %7s %7s %9s\n' "" rotunda/s beside/s ratio "low to high" "us CPU" beside "p99"
for way in rpc forward; do
	export WAY=$way
	load rotunda >/dev/null # reads the keys once
	: >"$tmp/pairs"
	for _ in $(seq "$rounds"); do
		echo "$(load rotunda) $(load bare)" >>"$tmp/pairs"
	done
	ratios=$(awk '{ print $1 / $4 }' "$tmp/pairs" | sort -g)
	printf '%-33s %9.0f %9.0f %6.2f  %-12s %7.1f %7.1f %9s\n' "verify, $way | no-op" "$(column 1 | median)" "$(column 4 | median)" "$(median <<<"$ratios")" \
		"$(head -1 <<<"$ratios" | cut -c1-4) to $(tail -1 <<<"$ratios" | cut -c1-4)" "$(column 2 | median)" "$(column 5 | median)" "$(column 3 | sort -g | tail -1)"
done
printf 'resident after the load: %d MB\n' "$(resident rotunda)"
echo "load at the end $(cut -d' ' -f1-3 /proc/loadavg)"

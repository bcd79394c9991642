#!/usr/bin/env bash
# Loads a real `rotunda serve` with wrk beside a bare server of the same answers,
# one after the other in turns, and prints medians and ratios. It asserts nothing:
# see docs/benchmarks.md for what the figures mean.
#
#   bench/load.sh [ROUNDS] [SECONDS]     3 rounds of 3 seconds each, unless given
#   LOG_LEVEL=warn bench/load.sh         without a log line for each call
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
rounds=${1:-3}
seconds=${2:-3}
connections=32
threads=2

tmp=$(mktemp -d)
pids=()
finish() {
	for p in "${pids[@]}"; do
		kill "$p" 2>/dev/null || true
		wait "$p" 2>/dev/null || true
	done
	rm -rf "$tmp"
}
trap finish EXIT

export CGO_ENABLED=0
go build -trimpath -buildvcs=false -o "$tmp/" ./cmd/rotunda ./bench/bare ./bench/fill
go test -c -o "$tmp/crypto" ./bench

# launch NAME COMMAND...: starts it in the background; url_of NAME is where it serves.
launch() {
	local name=$1
	shift
	"$@" >"$tmp/$name.out" 2>"$tmp/$name.err" &
	pids+=($!)
	echo $! >"$tmp/$name.pid"
	for _ in $(seq 200); do
		grep -qs 'http://' "$tmp/$name.out" && return
		sleep 0.05
	done
	echo "load: $name did not start:" >&2
	cat "$tmp/$name.err" >&2
	return 1
}
url_of() { grep -o 'http://[0-9.:]*' "$tmp/$1.out" | head -1; }

data=$tmp/data
launch rotunda "$tmp/rotunda" serve --data-dir "$data" --listen 127.0.0.1:0 --log-level "${LOG_LEVEL:-info}"
rotunda=$(url_of rotunda)
export ROTUNDA_SERVER=$rotunda ROTUNDA_DATA_DIR=$data
"$tmp/fill" --server "$rotunda" --token-file "$data/admin.token" --keysets 1000
for alg in ES256 RS256 Ed25519; do
	"$tmp/fill" --server "$rotunda" --token-file "$data/admin.token" --name "sign-${alg,,}" --algorithm "$alg"
done
# Exempts this machine, which is one client, from the limit on public documents.
"$tmp/rotunda" token create wrk --role gateway --cidr 127.0.0.1/32 >/dev/null 2>&1
(umask 077 && "$tmp/rotunda" token create wrk --role signer >"$tmp/signer.token" 2>/dev/null)
export TOKEN_FILE=$tmp/signer.token
sleep 2 # the next pass learns of the gateway
launch bare "$tmp/bare" --from "$rotunda" --keysets 1000

# load SCRIPT SERVER: requests per second, and the server's CPU time for each in
# microseconds, which others on the machine disturb less. A failed request
# spoils the figures.
load() {
	local out before
	before=$(ticks "$2")
	out=$(wrk -t "$threads" -c "$connections" -d "${seconds}s" -s "bench/$1" "$(url_of "$2")")
	if grep -q -e 'Non-2xx' -e 'Socket errors' <<<"$out"; then
		echo "load: requests failed: $out" >&2
		return 1
	fi
	awk -v cpu=$(($(ticks "$2") - before)) -v hz="$(getconf CLK_TCK)" \
		'/requests in/ { n = $1 } /^Requests\/sec:/ { printf "%s %.2f\n", $2, cpu / hz * 1e6 / n }' <<<"$out"
}
# ticks SERVER: its CPU time so far, user and system.
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$(cat "$tmp/$1.pid")/stat"; }
crypto() { # ALGORITHM: signatures per second on all cores, and CPU for each
	"$tmp/crypto" -test.run '^$' -test.bench "^BenchmarkCrypto/$1\$" -test.benchtime "${seconds}s" |
		awk '/ns\/op/ { for (i = 4; i < NF; i++) if ($(i + 1) == "cpu-us/op") cpu = $i; printf "%.0f %.2f\n", 1e9 / $3, cpu }'
}
median() { sort -g | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

column() { awk -v n="$1" '{ print $n }' "$tmp/pairs"; }
# row TITLE: medians of $tmp/pairs: rate and CPU of Rotunda, rate and CPU of what
# it is beside, and of the ratios of neighbours.
row() {
	local ratios
	ratios=$(awk '{ print $1 / $3 }' "$tmp/pairs" | sort -g)
	printf '%-33s %9.0f %9.0f %6.2f  %-12s %7.1f %7.1f\n' "$1" "$(column 1 | median)" "$(column 3 | median)" "$(median <<<"$ratios")" \
		"$(head -1 <<<"$ratios" | cut -c1-4) to $(tail -1 <<<"$ratios" | cut -c1-4)" "$(column 2 | median)" "$(column 4 | median)"
}

echo "$(nproc) cores, $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -1), $(go version | cut -d' ' -f3), load at the start $(cut -d' ' -f1-3 /proc/loadavg)"
echo "$rounds rounds of ${seconds}s, wrk with $connections connections on $threads threads of the same machine; medians"
printf '%-33s %9s %9s %6s  %-12s %7s %7s\n' "" rotunda/s beside/s ratio "low to high" "us CPU" beside
for n in 1 1000; do
	export KEYSETS=$n
	: >"$tmp/pairs"
	for _ in $(seq "$rounds"); do
		echo "$(load jwks.lua rotunda) $(load jwks.lua bare)" >>"$tmp/pairs"
	done
	row "GET JWKS, $n keysets | bare"
done
for alg in ES256 RS256 Ed25519; do
	export KEYSET=sign-${alg,,}
	: >"$tmp/pairs"
	: >"$tmp/raw"
	for _ in $(seq "$rounds"); do
		signed=$(load sign.lua rotunda)
		echo "$signed $(load sign.lua bare)" >>"$tmp/pairs"
		echo "$signed $(crypto "$alg")" >>"$tmp/raw"
	done
	row "Sign $alg, JSON | no-op"
	mv "$tmp/raw" "$tmp/pairs"
	row "Sign $alg, JSON | crypto"
done
echo "load at the end $(cut -d' ' -f1-3 /proc/loadavg)"

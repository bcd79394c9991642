#!/usr/bin/env bash
# Installs from Debian what a run needs and this machine lacks.
#
#   scripts/setup.sh test     PostgreSQL, MariaDB, Redis, Apache with mod_auth_openidc, Node 20.19 or newer, Python's JWT,
#                             rsyslog, NGINX, Caddy, HAProxy, wrk
#   scripts/setup.sh check    shellcheck
#   scripts/setup.sh race     a C compiler, which Go's race detector needs
#
# Several groups may be named. Quiet and quick when nothing is missing. What is
# present is used as it is: nothing is upgraded or replaced. Root or sudo does the
# installing; without either this prints the one line to run, and fails.
# Where Node is too old for the pinned npm packages (Debian 12 has 18), a newer one is
# put into .tools/node for the tests alone, from npm; scripts/test.sh looks there first.
#
# The tests start their own servers, so nothing installed here is left running or
# starts at boot. Services and clusters that were here before are not touched.
set -euo pipefail

missing=() # Debian package names
reasons=()

need() { # PACKAGES REASON
	local -a packages
	read -ra packages <<<"$1"
	missing+=("${packages[@]}")
	reasons+=("$2")
}

have_initdb() {
	local f
	for f in /usr/lib/postgresql/*/bin/initdb; do
		[ -x "$f" ] && return 0
	done
	command -v initdb >/dev/null
}

node_version=22.23.3
own_node=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.tools/node/bin/node
wants_node=""

node_is_new() { # NODE
	command -v "$1" >/dev/null && [ "$("$1" -p '
		const [major, minor] = process.versions.node.split(".").map(Number);
		major > 20 || (major === 20 && minor >= 19)')" = true ]
}

# What the npm package "node" installs on this kind of machine, without its install script.
fetch_node() {
	local arch tmp
	case $(uname -m) in
	x86_64) arch=x64 ;;
	aarch64) arch=arm64 ;;
	*)
		echo "setup: Node on this machine is older than 20.19, which the tests need: install a newer one" >&2
		return 1
		;;
	esac
	echo "setup: Node here is older than 20.19: fetching $node_version into .tools/node" >&2
	tmp=$(mktemp -d)
	if ! npm install --prefix "$tmp" --ignore-scripts --no-audit --no-fund --loglevel=error \
		"node-linux-$arch@$node_version" </dev/null >&2; then
		rm -rf "$tmp"
		echo "setup: npm could not fetch Node $node_version: install Node 20.19 or newer, then try again" >&2
		return 1
	fi
	mkdir -p "$(dirname "$own_node")"
	mv -f "$tmp/node_modules/node-linux-$arch/bin/node" "$own_node"
	rm -rf "$tmp"
}

group_test() {
	[ -s /etc/ssl/certs/ca-certificates.crt ] || need ca-certificates "certificates of the public authorities"
	have_initdb || need postgresql "PostgreSQL: the same tests run on it and on SQLite"
	if [ ! -x /usr/sbin/apache2 ] || [ ! -e /usr/lib/apache2/modules/mod_auth_openidc.so ]; then
		# apache2-bin is the server without the service.
		need "apache2-bin libapache2-mod-auth-openidc" "Apache with mod_auth_openidc: verifies tokens through rotations"
	fi
	if ! node_is_new "$own_node" && ! node_is_new node; then
		wants_node=yes
		command -v npm >/dev/null || need "nodejs npm" "Node: its JWT libraries verify tokens through rotations"
	else
		command -v npm >/dev/null || need npm "npm: installs the pinned libraries that read our documents and exports"
	fi
	/usr/bin/python3 -c 'import cryptography, jwt' 2>/dev/null ||
		need "python3 python3-jwt python3-cryptography" "PyJWT: verifies tokens through rotations"
	if [ ! -x /usr/sbin/rsyslogd ] || [ ! -e /usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_ossl.so ] && [ ! -e /usr/lib/aarch64-linux-gnu/rsyslog/lmnsd_ossl.so ] ||
		[ ! -e /usr/lib/x86_64-linux-gnu/rsyslog/lmnsd_gtls.so ] && [ ! -e /usr/lib/aarch64-linux-gnu/rsyslog/lmnsd_gtls.so ]; then
		need "rsyslog rsyslog-openssl rsyslog-gnutls" "rsyslog: receives the trail over TLS"
	fi
	command -v psql >/dev/null || need postgresql-client "psql: what the README's tour types"
	command -v openssl >/dev/null || need openssl "openssl: makes a password in the README's tour"
	command -v curl >/dev/null || need curl "curl: sends what the examples sign"
	command -v redis-server >/dev/null || need redis-server "Redis: rate limits that replicas share, and a target of rotations"
	command -v mariadbd >/dev/null || [ -x /usr/sbin/mariadbd ] || need mariadb-server "MariaDB: a target of rotations"
	[ -x /usr/sbin/nginx ] || need nginx-light "NGINX: asks Rotunda about each request"
	command -v caddy >/dev/null || need caddy "Caddy: asks Rotunda about each request"
	[ -x /usr/sbin/haproxy ] || need haproxy "HAProxy: asks Rotunda about each request"
	command -v wrk >/dev/null || need wrk "wrk: the load part of make bench"
}

group_check() {
	command -v shellcheck >/dev/null || need shellcheck "shellcheck: reads the scripts"
}

group_race() {
	if ! command -v gcc >/dev/null || [ ! -e /usr/include/stdio.h ]; then
		need "gcc libc6-dev" "a C compiler: Go's race detector needs it"
	fi
}

[ $# -gt 0 ] || set -- test
for group in "$@"; do
	case $group in
	test | check | race) "group_$group" ;;
	*)
		echo "usage: scripts/setup.sh [test] [check] [race]" >&2
		exit 2
		;;
	esac
done

# Runs as root, with the packages as its arguments.
# shellcheck disable=SC2016 # expanded by the inner shell
install='
set -euo pipefail
clusters() { ls -d /etc/postgresql/*/* 2>/dev/null || true; }
before=$(clusters)
# Debian asks this file before a package may start its service.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap "rm -f $policy" EXIT
	printf "#!/bin/sh\nexit 101\n" >"$policy"
	chmod 0755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=300 update
apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
# A database cluster that the package has just made must not start at boot.
clusters | while IFS= read -r dir; do
	if ! printf "%s\n" "$before" | grep -qxF "$dir" && [ -f "$dir/start.conf" ]; then
		echo manual >"$dir/start.conf"
	fi
done
'

install_missing() {
	echo "setup: missing on this machine:" >&2
	printf 'setup:   %s\n' "${reasons[@]}" >&2

	by_hand() { # REASON
		echo "setup: $1. Run this once, then try again:" >&2
		echo "    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
		exit 1
	}

	command -v apt-get >/dev/null || by_hand "there is no apt-get here; the names below are Debian's, find your system's"
	if [ "$(id -u)" -eq 0 ]; then
		as_root=()
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		as_root=(sudo -n)
	elif command -v sudo >/dev/null && [ -t 0 ] && [ -t 2 ] && [ -z "${CI:-}" ]; then
		echo "setup: installing them with sudo" >&2
		as_root=(sudo)
	else
		by_hand "installing needs root, and sudo is not available here"
	fi
	local log
	log=$(mktemp)
	# shellcheck disable=SC2064 # the name as it is now
	trap "rm -f '$log'" EXIT
	echo "setup: installing ${missing[*]}" >&2
	if ! "${as_root[@]}" bash -c "$install" setup "${missing[@]}" </dev/null >"$log" 2>&1; then
		tail -n 30 "$log" >&2
		by_hand "apt-get failed; the lines above are its last"
	fi
}

[ ${#missing[@]} -eq 0 ] || install_missing
if [ -n "$wants_node" ] && ! node_is_new node; then
	fetch_node
fi

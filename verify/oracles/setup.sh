#!/bin/sh
# Installs the npm packages that package-lock.json pins. Quiet, and quick when
# there is nothing to do. Node.js and npm come from `make setup`.
set -eu
cd "$(dirname "$0")"

# npm writes the second file last, so an interrupted install is done again.
[ -n "$(find node_modules/.package-lock.json -newer package-lock.json 2>/dev/null)" ] && exit 0

command -v npm >/dev/null || { echo "setup: npm is missing: run 'make setup'" >&2; exit 1; }
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2 </dev/null
touch node_modules/.package-lock.json

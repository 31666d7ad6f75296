#!/usr/bin/env bash
# Runs the quickstart from a fresh clone: builds mecha unless bin/mecha is there, installs the
# JavaScript SDK for the checkout app, and starts both apps. Ctrl-C stops everything. Arguments
# replace those of `mecha run`; MECHA_BIN names another binary.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)

for tool in go node npm; do
	if ! command -v "$tool" >/dev/null 2>&1; then
		echo "the quickstart needs $tool; install it and run this again" >&2
		exit 1
	fi
done
mecha=${MECHA_BIN:-$root/bin/mecha}
if [ ! -x "$mecha" ]; then
	mecha=$root/bin/mecha
	(cd "$root" && CGO_ENABLED=0 go build -tags grpcnotrace -trimpath -o bin/mecha ./cmd/mecha)
fi
if [ ! checkout/node_modules/.package-lock.json -nt checkout/package-lock.json ]; then
	echo "installing the JavaScript SDK (once)"
	(cd checkout && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
fi
if [ $# -eq 0 ]; then
	set -- -f mecha.yaml
fi
exec "$mecha" run "$@"

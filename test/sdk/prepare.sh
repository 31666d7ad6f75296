#!/usr/bin/env bash
# Makes the SDK programs ready to run: prepare.sh [go|js|python|java|quickstart]..., all without
# arguments.
# All but the sample's node_modules lands below .dev/sdk; neither is part of the repository. What is
# there and still fits is kept. Exit code 3: the machine lacks the language itself.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
root=$(cd ../.. && pwd)
cache=$root/.dev/sdk

need() {
	local tool
	for tool in "$@"; do
		if ! command -v "$tool" >/dev/null 2>&1; then
			echo "$tool is not installed; deploy/dev/prepare installs it" >&2
			exit 3
		fi
	done
}

# fresh NAME FILES...: whether NAME was prepared from exactly these files.
fresh() {
	local dir=$cache/$1
	shift
	[ -f "$dir/.stamp" ] && [ "$(cat "$@" | cksum)" = "$(cat "$dir/.stamp")" ]
}

stamp() {
	local dir=$cache/$1
	shift
	cat "$@" | cksum >"$dir/.stamp"
}

prepare_go() {
	need go
	mkdir -p "$cache/go"
	CGO_ENABLED=0 go build -o "$cache/go/scenario" ./go
}

prepare_js() {
	need node npm
	mkdir -p "$cache/js"
	cp js/*.js js/package.json js/package-lock.json "$cache/js/"
	fresh js js/package-lock.json && return
	rm -f "$cache/js/.stamp"
	(cd "$cache/js" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
	stamp js js/package-lock.json
}

prepare_python() {
	need python3
	mkdir -p "$cache/python"
	cp python/*.py "$cache/python/"
	fresh python python/requirements.txt && return
	rm -rf "$cache/python/venv" "$cache/python/.stamp"
	python3 -m venv "$cache/python/venv" || { echo "python3 cannot make a venv; deploy/dev/prepare installs python3-venv" >&2; exit 3; }
	"$cache/python/venv/bin/pip" install -q --disable-pip-version-check -r python/requirements.txt
	stamp python python/requirements.txt
}

prepare_java() {
	need mvn java
	mkdir -p "$cache/java"
	local sources
	sources=$(find java/src java/pom.xml -type f | sort)
	# shellcheck disable=SC2086 # one word per file
	fresh java $sources && return
	rm -rf "$cache/java/src" "$cache/java/.stamp"
	cp -r java/src java/pom.xml "$cache/java/"
	(cd "$cache/java" && { mvn -q -o -B package >/dev/null 2>&1 || mvn -q -B package; })
	# shellcheck disable=SC2086
	stamp java $sources
}

prepare_quickstart() {
	need go node npm
	cd "$root/deploy/samples/quickstart/checkout"
	if [ ! node_modules/.package-lock.json -nt package-lock.json ]; then
		npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	fi
}

languages=("$@")
[ ${#languages[@]} -gt 0 ] || languages=(go js python java quickstart)
mkdir -p "$cache"
for language in "${languages[@]}"; do
	# One at a time: tests and people may call this at once.
	exec 9>"$cache/.$language.lock"
	if command -v flock >/dev/null 2>&1; then flock 9; fi
	cd "$here"
	"prepare_$language"
	exec 9>&-
done

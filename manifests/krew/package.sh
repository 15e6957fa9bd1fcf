#!/usr/bin/env bash
# Packs the plugin as krew wants it, into out/krew, and fills in the manifest for the archives that lie there.
#
#   manifests/krew/package.sh BINARY [OS ARCH]      OS linux|darwin and ARCH amd64|arm64: those of this machine
#   manifests/krew/package.sh                       fills in the manifest and packs nothing
#
# Platforms without an archive are left out of the manifest, so that it installs as it is. KREW_OUT is another folder than out/krew.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
binary=${1:-}
os=${2:-$(uname -s | tr '[:upper:]' '[:lower:]')}
arch=${3:-$(uname -m | sed -e 's/^x86_64$/amd64/' -e 's/^aarch64$/arm64/')}
out=${KREW_OUT:-$root/out/krew}
archive=$out/kubectl-hawkeye_${os}_${arch}.tar.gz
mkdir -p "$out"

if [[ -n $binary ]]; then
    stage=$(mktemp -d)
    trap 'rm -rf "$stage"' EXIT
    install -m 0755 "$binary" "$stage/kubectl-hawkeye"
    install -m 0644 "$root/LICENSE" "$stage/LICENSE"
    # Time stamps and owners would make each archive another one.
    TZ=UTC0 touch -t 197001010000 "$stage"/*
    if tar --version | grep -q GNU; then owned=(--owner=0 --group=0 --numeric-owner); else owned=(--uid 0 --gid 0); fi
    tar -C "$stage" "${owned[@]}" -cf - LICENSE kubectl-hawkeye | gzip -n >"$archive"
    echo "$archive"
fi

if command -v sha256sum >/dev/null; then sum=sha256sum; else sum="shasum -a 256"; fi
version=v$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
awk -v version="$version" -v out="$out" -v sum="$sum" '
    function flush() { if (block != "" && keep) printf "%s", block; block = ""; keep = 1 }
    BEGIN { keep = 1 }
    /^#/ { next }
    /^    - selector:/ { flush() }
    {
        gsub(/\{\{ \.TagName \}\}/, version)
        if (match($0, /https:[^"]*\.tar\.gz/)) {
            uri = substr($0, RSTART, RLENGTH)
            name = uri
            sub(/.*\//, "", name)
            command = sum " " out "/" name " 2>/dev/null"
            keep = (command | getline line) > 0
            close(command)
            $0 = "      uri: " uri "\n      sha256: " substr(line, 1, 64)
        }
        block = block $0 "\n"
    }
    END { flush() }
' "$root/manifests/krew/hawkeye.yaml" >"$out/hawkeye.yaml"
echo "$out/hawkeye.yaml"

#!/usr/bin/env bash
# `make test-arm64`: a cluster of an x86-64 and an arm64 node, Hawkeye on both. Ends with what passed, failed and was skipped;
# where this machine can have no arm64 node, that is everything, and it says why.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. e2e/env.sh

log=$HAWKEYE_CACHE/logs/test-arm64.log
mkdir -p "$HAWKEYE_CACHE/logs"
HAWKEYE_ARM64=1 cargo test --locked -p hawkeye-e2e --test arm64 -- "$@" 2>&1 | tee "$log"
status=$?
awk '/^test result: / {
        for (i = 1; i < NF; i++) {
            if ($(i + 1) == "passed;") passed += $i
            if ($(i + 1) == "failed;") failed += $i
            if ($(i + 1) == "ignored;") skipped += $i
        }
    }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
exit "$status"

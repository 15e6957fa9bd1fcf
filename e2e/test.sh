#!/usr/bin/env bash
# `make test`: every suite, none skipped because an earlier one failed; ends with the sum over all of them.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. e2e/env.sh

started=$SECONDS
logs=$HAWKEYE_CACHE/logs
hawkeye=$CARGO_TARGET_DIR/debug/hawkeye-e2e
mkdir -p "$logs"
failed_suites=()
part() { printf '\n== [%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$1"; }
# suite NAME command…: its output goes to the screen and to a log that is counted at the end.
suite() {
    local name=$1
    shift
    part "$name"
    if ! "$@" 2>&1 | tee "$logs/test-$name.log"; then failed_suites+=("$name"); fi
}
# What the suites need; nothing can be tested without it.
need() {
    part "$1"
    shift
    "$@" || exit 1
}

rm -f "$logs"/test-*.log
need "the cluster's programs" "$hawkeye" tools
need "images and the model bundle" "$hawkeye" images build
need "a bundle with captions for tests" inference/export/captions-test.sh

suite charts charts/test.sh
suite python env PYTHONDONTWRITEBYTECODE=1 "$HAWKEYE_PYTHON" -m pytest -p no:cacheprovider inference/export
suite bench env PYTHONDONTWRITEBYTECODE=1 "$HAWKEYE_PYTHON" -m pytest -p no:cacheprovider inference/bench
suite rust cargo test --locked --workspace --no-fail-fast
# A cluster of its own, whose traces on this machine it looks for.
if [[ $(uname -s) == Linux && $(id -u) == 0 ]]; then
    suite cluster cargo test --locked -p hawkeye-e2e --test cluster -- --ignored
fi

# The sum: of cargo's and libtest-mimic's result lines, pytest's last line, and the charts' own.
count() { # count passed|failed
    awk -v word="$1" '
        /^test result: / || /^charts: / || /^[=]* ?[0-9]+ (passed|failed|error).* in [0-9.:]+/ {
            n = split($0, part, /[^A-Za-z0-9]+/)
            for (i = 1; i < n; i++) if (part[i] ~ /^[0-9]+$/ && part[i + 1] ~ "^(" word ")$") total += part[i]
        }
        END { print total + 0 }' "$logs"/test-*.log
}
part "all suites"
if ((${#failed_suites[@]} > 0)); then echo "failed: ${failed_suites[*]} (logs: $logs/test-*.log)"; fi
failed=$(count 'failed|errors?')
# A suite that broke before it could count (a compile error, say) is one failure.
if ((failed == 0)); then failed=${#failed_suites[@]}; fi
printf '%d passed, %d failed\n' "$(count passed)" "$failed"
((failed == 0))

#!/usr/bin/env bash
# `make check`: format, lints, licences and advisories, generated files. Runs all of them and fails if one did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. e2e/env.sh

bad=()
check() {
    printf '\n== %s\n' "$1"
    if ! "${@:2}"; then bad+=("$1"); fi
}

check "format" cargo fmt --all --check
check "clippy" cargo clippy --locked --workspace --all-targets -- --deny warnings
if [[ ${CARGO_DENY:-} == 1 ]] && ! command -v cargo-deny >/dev/null 2>&1; then
    check "install cargo-deny" cargo install --locked cargo-deny
fi
if command -v cargo-deny >/dev/null 2>&1; then
    # Advisories come from a git repository on the network: where it cannot be reached, the rest is still checked.
    check "licences, bans, sources" cargo deny --locked check licenses bans sources
    if [[ ${CARGO_DENY_ADVISORIES:-} == 1 ]]; then check "advisories" cargo deny --locked check advisories; fi
else
    printf '\n== licences, bans, sources: skipped, no cargo-deny here; CARGO_DENY=1 make check installs it\n'
fi

# Made afresh in a copy, then compared: a check changes nothing.
generated_from_types() {
    local copy status=0
    copy=$(mktemp -d)
    cp -R crds/yaml crds/classes "$copy"
    cargo run --quiet --locked --package hawkeye-crds --example generate || status=1
    if ! diff -ru "$copy/yaml" crds/yaml || ! diff -ru "$copy/classes" crds/classes; then
        status=1
        echo "crds/ was out of date: run 'make gen' and commit"
    fi
    cp -R "$copy"/yaml "$copy"/classes crds/
    rm -rf "$copy"
    return "$status"
}
check "generated: CRDs and class lists" generated_from_types
generated_charts() {
    if [[ ! -x $HAWKEYE_CACHE/tools/bin/helm ]]; then
        cargo build --quiet --locked --package hawkeye-e2e && "$CARGO_TARGET_DIR/debug/hawkeye-e2e" tools helm >/dev/null || return 1
    fi
    charts/gen.sh --check
}
check "generated: charts and install.yaml" generated_charts
for script in e2e/setup.sh e2e/test.sh e2e/test-arm64.sh e2e/check.sh .ci/run; do check "syntax of $script" bash -n "$script"; done

printf '\n'
if ((${#bad[@]} > 0)); then
    printf 'check failed: %s\n' "${bad[@]}"
    exit 1
fi
echo "check passed"

#!/usr/bin/env bash
# Tries the models on a GPU machine that has torch 2.11 in its python3 but neither Rust nor a network.
#
#   inference/torch/gpu.sh pack    here: builds the program and the parity test and puts them, with the demo bundle cut into
#                                  parts that travel well, into .gpu/ (ignored by git)
#   inference/torch/gpu.sh run     there, in the same checkout: parity against the Python stack on CUDA, then the program
#
# PARTS: where `run` finds the bundle's parts (default .gpu).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case ${1:-} in
pack)
    . e2e/env.sh
    rm -rf .gpu && mkdir -p .gpu/bin
    cargo build --locked --release --package hawkeye-inference
    cargo build --locked --release --package hawkeye-torch --example time_stages
    test=$(cargo test --locked --package hawkeye-torch --test parity --no-run --message-format=json |
        jq -r 'select(.executable != null and .target.name == "parity").executable')
    cp "$CARGO_TARGET_DIR"/release/hawkeye-inference "$CARGO_TARGET_DIR"/release/examples/time_stages .gpu/bin/
    cp "$test" .gpu/bin/parity && strip .gpu/bin/parity
    tar -C "$HAWKEYE_CACHE/bundles" -cf - demo | split -b 50M -d - .gpu/bundle.part
    du -h .gpu/*
    ;;
run)
    parts=${PARTS:-.gpu}
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cat "$parts"/bundle.part* | tar -C "$work" -xf -
    torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
    export LD_LIBRARY_PATH=$torch/lib HAWKEYE_TEST_BUNDLE=$work/demo HAWKEYE_TEST_SCREENS=$PWD/inference/export/testdata/screens
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
    HAWKEYE_TEST_DEVICE=cuda .gpu/bin/parity --nocapture --test-threads=1
    .gpu/bin/hawkeye-inference parse "$HAWKEYE_TEST_SCREENS/demo.png" --bundle "$work/demo" --device cuda --profile quality | tail -n 3
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

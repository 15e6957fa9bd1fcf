#!/usr/bin/env bash
# Tries the models on a GPU machine that has torch 2.11 in its python3 but neither Rust nor a network.
#
#   inference/torch/gpu.sh pack    here: builds the program and the tests and puts them, with the bundles cut into parts that
#                                  travel well, into .gpu/ (ignored by git)
#   inference/torch/gpu.sh run     there, in the same checkout: detector and OCR against the Python stack on CUDA, captions
#                                  against the exporter's reference in each number format, then the program and its server
#
# PARTS: where `run` finds the bundles' parts (default .gpu).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case ${1:-} in
pack)
    . e2e/env.sh
    rm -rf .gpu && mkdir -p .gpu/bin
    cargo build --locked --release --package hawkeye-inference
    cargo build --locked --release --package hawkeye-torch --example time_stages
    tests=$(cargo test --locked --package hawkeye-torch --test parity --test captions --no-run --message-format=json |
        jq -r 'select(.executable != null).executable')
    inference/export/captions-test.sh
    cp "$CARGO_TARGET_DIR"/release/hawkeye-inference "$CARGO_TARGET_DIR"/release/examples/time_stages .gpu/bin/
    for test in $tests; do
        name=$(basename "$test")
        strip -o ".gpu/bin/${name%-*}" "$test"
    done
    # One bundle: the tests' has the demo's models, too.
    tar -C "$HAWKEYE_CACHE/bundles" -cf - captions-test | split -b 45M -d - .gpu/bundle.part
    du -h .gpu/*
    ;;
run)
    parts=${PARTS:-.gpu}
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cat "$parts"/bundle.part* | tar -C "$work" -xf -
    torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
    export LD_LIBRARY_PATH=$torch/lib HAWKEYE_TEST_SCREENS=$PWD/inference/export/testdata/screens HAWKEYE_TEST_DEVICE=cuda
    export HAWKEYE_TEST_BUNDLE=$work/captions-test HAWKEYE_TEST_CAPTION_BUNDLE=$work/captions-test
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
    failed=0
    .gpu/bin/parity --nocapture --test-threads=1 || failed=1
    .gpu/bin/captions --nocapture --test-threads=1 || failed=1
    options=(--bundle "$work/captions-test" --allow-test-bundle --device cuda --profile quality)
    .gpu/bin/hawkeye-inference parse "$HAWKEYE_TEST_SCREENS/demo.png" "${options[@]}" | tail -n 3 || failed=1
    .gpu/bin/hawkeye-inference serve --host 127.0.0.1 --port 9989 "${options[@]}" >"$work/serve.log" 2>&1 &
    server=$!
    python3 - "$HAWKEYE_TEST_SCREENS/demo.png" <<'PYTHON' || failed=1
import base64, json, sys, time, urllib.request

def ask(path, body=None):
    request = urllib.request.Request("http://127.0.0.1:9989" + path, body and json.dumps(body).encode())
    if body:
        request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as answer:
        return answer.read()

for _ in range(60):
    try:
        ask("/readyz")
        break
    except OSError:
        time.sleep(1)
print(ask("/device").decode())
picture = base64.b64encode(open(sys.argv[1], "rb").read()).decode()
for _ in range(6):
    answer = json.loads(ask("/parse", {"image": picture}))
    print(answer["count"], answer["device_name"], answer["processing_time_ms"], answer["timings_ms"])
PYTHON
    kill -TERM "$server"
    wait "$server" || failed=1
    if ((failed)); then tail -n 20 "$work/serve.log"; fi
    exit "$failed"
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

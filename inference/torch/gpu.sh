#!/usr/bin/env bash
# Tries the models on a GPU machine that has torch 2.11 in its python3 but neither Rust nor a network.
#
#   inference/torch/gpu.sh pack    here: builds the program and the tests and puts them, with the bundles cut into parts that
#                                  travel well, into .gpu/ (ignored by git)
#   inference/torch/gpu.sh run     there, in the same checkout: detector and OCR against the Python stack on CUDA, captions
#                                  against the exporter's reference in each number format, CUDA graphs against single kernels,
#                                  then the program and its server
#   inference/torch/gpu.sh with COMMAND…   there: any command with the bundles unpacked, for one test out of many for example:
#                                  gpu.sh with .gpu/bin/captions --nocapture recorded_captions
#   inference/torch/gpu.sh time    there: each model's time with CUDA graphs and without
#   inference/torch/gpu.sh memory  there: what a pod's memory is made of, by number format and batch
#   inference/torch/gpu.sh bench   there: the service beside the Python pipeline; the report comes into OUT (default out/bench)
#
# PARTS: where the bundles' parts are found (default .gpu). WORK: where they are unpacked, and kept (default: a folder that goes
# away). The last three make a bundle with a captioner of the published size and seeded random weights, from the packed one.
#
# What the machine must have beside torch: transformers, tokenizers, onnxruntime, opencv, numpy, pillow, scipy, matplotlib, pyyaml,
# requests, psutil, tqdm. ultralytics, rapidocr and what they need beyond that are packed as wheels for its Python (3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case ${1:-} in
pack)
    . e2e/env.sh
    rm -rf .gpu && mkdir -p .gpu/bin
    git describe --always --dirty >.gpu/commit
    cargo build --locked --release --package hawkeye-inference
    cargo build --locked --release --package hawkeye-torch --examples
    tests=$(cargo test --locked --package hawkeye-torch --test parity --test captions --no-run --message-format=json |
        jq -r 'select(.executable != null).executable')
    cargo run --quiet --locked --package hawkeye-e2e -- images bundle
    inference/export/captions-test.sh
    cp "$CARGO_TARGET_DIR"/release/hawkeye-inference "$CARGO_TARGET_DIR"/release/examples/{time_device,measure_memory} .gpu/bin/
    for test in $tests; do
        name=$(basename "$test")
        strip -o ".gpu/bin/${name%-*}" "$test"
    done
    rm -rf .gpu/wheels
    platforms=()
    for glibc in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
    for package in ultralytics ultralytics-thop rapidocr pyclipper shapely omegaconf colorlog; do
        sed -nE "s/^($package==[^ ;\\\\]+).*/\1/p" inference/export/requirements.lock
    done >.gpu/wheels.txt
    "$HAWKEYE_PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" --dest .gpu/wheels --requirement .gpu/wheels.txt
    # One bundle: the tests' has the demo's models, too. The detector as published is the Python pipeline's.
    tar -C "$HAWKEYE_CACHE" -cf - bundles/captions-test weights -C "$PWD/.gpu" wheels | split -b 45M -d - .gpu/bundle.part
    rm -rf .gpu/wheels .gpu/wheels.txt
    du -h .gpu/*
    ;;
run | with | time | memory | bench)
    parts=${PARTS:-.gpu}
    if [[ -z ${WORK:-} ]]; then
        WORK=$(mktemp -d)
        trap 'rm -rf "$WORK"' EXIT
    fi
    work=$WORK
    export WORK
    mkdir -p "$work"
    if [[ ! -d $work/wheels ]]; then cat "$parts"/bundle.part* | tar -C "$work" -xf -; fi
    torch=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))')
    export LD_LIBRARY_PATH=$torch/lib HAWKEYE_TEST_SCREENS=$PWD/inference/export/testdata/screens HAWKEYE_TEST_DEVICE=cuda
    export HAWKEYE_TEST_BUNDLE=$work/bundles/captions-test HAWKEYE_TEST_CAPTION_BUNDLE=$work/bundles/captions-test
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
    ;;&
time | memory | bench)
    if [[ ! -d $work/site ]]; then
        python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" "$work"/wheels/*.whl
    fi
    export PYTHONPATH=$work/site:inference/bench:inference/export/src PYTHONDONTWRITEBYTECODE=1 HAWKEYE_CACHE=$work
    dtypes=float16
    # The weights that keep captions from ending overflow in float16 on some processors, where the exporter checks them.
    if [[ $1 == time ]]; then dtypes=bfloat16; fi
    # bfloat16 takes what float16 takes.
    if [[ $1 == memory ]]; then dtypes=float16,float32; fi
    bundle=$work/bundles/bench-$1
    python3 -m hawkeye_bench.bundle "$HAWKEYE_TEST_BUNDLE" "$bundle" "$dtypes"
    python3 -m hawkeye_bench.screens "$work"
    ;;&
with)
    shift
    "$@"
    ;;
time)
    .gpu/bin/time_device "$bundle" cuda "$dtypes" "$work/text.png"
    ;;
memory)
    .gpu/bin/measure_memory "$bundle" cuda "$work/text.png" "$dtypes" 1,64,128,256
    ;;
bench)
    HAWKEYE_COMMIT=$(cat .gpu/commit) python3 -m hawkeye_bench --program .gpu/bin/hawkeye-inference --models "$HAWKEYE_TEST_BUNDLE" --bundle "$bundle" \
        --only "${ONLY:-gpu}" --out "${OUT:-out/bench}/inference.json"
    ;;
run)
    failed=0
    for dtype in float32 float16 bfloat16; do
        echo "== detector and OCR in $dtype"
        HAWKEYE_TEST_DTYPE=$dtype .gpu/bin/parity --nocapture --test-threads=1 || failed=1
    done
    .gpu/bin/captions --nocapture --test-threads=1 || failed=1
    options=(--bundle "$HAWKEYE_TEST_BUNDLE" --allow-test-bundle --device cuda --profile quality)
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
    sed -n '2,19s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac

#!/usr/bin/env bash
# Makes the bundle that inference/torch/tests/captions.rs loads: the demo's models (`make bundle`) and a narrow captioner of
# seeded random weights. Returns at once when it is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ../../e2e/env.sh
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=src
exec "$HAWKEYE_PYTHON" -m hawkeye_export bundle --out "$HAWKEYE_CACHE/bundles/captions-test" \
    --reuse "$HAWKEYE_CACHE/bundles/demo" --caption random --caption-dtypes float32,bfloat16,float16,int8

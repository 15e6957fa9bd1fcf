# The environment of every build and test here; sourced by the Makefile, .ci/run and `make env`. POSIX sh, no side effects
# but exports. Only what is there is added: on a machine that `make setup` has not prepared, the host's own tools count.
: "${HAWKEYE_CACHE:=${HOME:?}/.cache/hawkeye}"
export HAWKEYE_CACHE
# One target folder for every checkout, so that a fresh clone does not compile the dependencies again.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HAWKEYE_CACHE/target}"

# First on PATH: the cluster's tools, then a Go toolchain and a Rust toolchain if this machine had none that serve.
for hawkeye_dir in "$HOME/.cargo/bin" "$HAWKEYE_CACHE/go/bin" "$HAWKEYE_CACHE/tools/bin"; do
    case ":$PATH:" in
        *":$hawkeye_dir:"*) ;;
        *) if [ -d "$hawkeye_dir" ] || [ "$hawkeye_dir" = "$HAWKEYE_CACHE/tools/bin" ]; then PATH="$hawkeye_dir:$PATH"; fi ;;
    esac
done
export PATH
# A Go that downloads another Go by itself is one more thing that can fail half way.
export GOTOOLCHAIN="${GOTOOLCHAIN:-local}"

export HAWKEYE_PYTHON="$HAWKEYE_CACHE/python/venv/bin/python"
for hawkeye_dir in "$HAWKEYE_CACHE"/python/venv/lib/python3*/site-packages/torch; do
    if [ -d "$hawkeye_dir/lib" ]; then
        export LIBTORCH="$hawkeye_dir"
        export LIBTORCH_CXX11_ABI=1
        export LD_LIBRARY_PATH="$hawkeye_dir/lib"
    fi
done
unset hawkeye_dir

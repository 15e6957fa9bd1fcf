#!/bin/sh
# Puts one program and exactly the shared libraries that it loads into a folder that is then an image's root.
#
#   images/rootfs.sh DEST BINARY                      a program of libc and libgcc alone
#   images/rootfs.sh DEST BINARY cpu|cuda PACKAGES    PACKAGES: the site-packages folder that holds torch and nvidia
#
# System libraries keep their path, so the loader finds them without a cache; those of torch go to /opt/libtorch/lib, one
# flat folder, where their own RPATH ($ORIGIN) finds the rest. Runs in the Dockerfiles' build stages and on a Linux host.
#
# SYSROOT, if set, is the root of another architecture's system, for which BINARY was compiled: its libraries are found by
# their names, since the loader of this machine cannot be asked.
set -eu

dest=$1 binary=$2 variant=${3:-} packages=${4:-}
libtorch=/opt/libtorch/lib

rm -rf "$dest"
mkdir -p "$dest/usr/local/bin" "$dest/etc" "$dest/models"
install -d -m 1777 "$dest/tmp"
install -m 0755 "$binary" "$dest/usr/local/bin/$(basename "$binary")"
printf 'root:x:0:0:root:/:/nonexistent\nhawkeye:x:65532:65532:hawkeye:/:/nonexistent\n' >"$dest/etc/passwd"
printf 'root:x:0:\nhawkeye:x:65532:\n' >"$dest/etc/group"
printf 'hosts: files dns\n' >"$dest/etc/nsswitch.conf"
# NVIDIA's container toolkit mounts the driver's libraries into Debian's library folder when it sees this file.
if [ -e /etc/debian_version ]; then cp -L /etc/debian_version "$dest/etc/debian_version"; fi

# What `ldd` prints, also for the other architecture: readelf names what a file needs, the folders are searched in order.
list() {
    if [ -z "${SYSROOT:-}" ]; then
        ldd "$@"
        return
    fi
    seen=' '
    while [ $# -gt 0 ]; do
        file=$1
        shift
        interpreter=$(readelf --wide --program-headers "$file" | sed -n 's/.*program interpreter: \(.*\)]$/\1/p')
        for name in $interpreter $(readelf --wide --dynamic "$file" | sed -n 's/.*(NEEDED).*\[\(.*\)]$/\1/p'); do
            # A library that names the loader, by its bare name, means the one that is loading it.
            case $name in ld-linux*) continue ;; esac
            case $seen in *" $name "*) continue ;; esac
            seen="$seen$name "
            found=
            for folder in $(echo "${LD_LIBRARY_PATH:-}" | tr : ' ') "$SYSROOT" "$SYSROOT"/lib/*-linux-gnu "$SYSROOT"/usr/lib/*-linux-gnu; do
                if [ -e "$folder/$name" ]; then
                    found=$folder/$name
                    break
                fi
            done
            if [ -z "$found" ]; then
                echo "$name => not found"
                continue
            fi
            echo "$name => $found (0x0)"
            set -- "$@" "$found"
        done
    done
}

# An unresolved library is an error, and vdso lines (no path) are left out. libcuda.so.1 is the driver's: it comes with the
# node, never with the image.
libraries_of() {
    list "$@" | awk '
        $1 == "libcuda.so.1" { next }
        /not found/ { print "missing library: " $1 > "/dev/stderr"; bad = 1 }
        $2 == "=>" && $3 ~ /^\// { print $3 }
        $1 ~ /^\// && $1 !~ /:$/ && $2 != "=>" { print $1 }
        END { exit bad }'
}

add() { # add FILE…: each file's libraries, to their place
    libraries=$(libraries_of "$@")
    for library in $libraries; do
        case $packages:$library in
            ?*:"$packages"/*) target=$libtorch/$(basename "$library") ;;
            *) target=${library#"${SYSROOT:-}"} ;;
        esac
        if [ ! -e "$dest$target" ]; then install -D -m 0755 "$library" "$dest$target"; fi
    done
}

if [ -n "$packages" ]; then
    packages=$(cd "$packages" && pwd)
    LD_LIBRARY_PATH=$packages/torch/lib
    for folder in "$packages"/nvidia/*/lib; do LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$folder; done
    export LD_LIBRARY_PATH
elif [ -n "${SYSROOT:-}" ]; then
    unset LD_LIBRARY_PATH
fi
add "$binary"

# A linker may have taken a symbol of libstdc++ from one of torch's libraries that need CUDA's.
if [ "$variant" = cpu ] && [ -e "$dest$libtorch/libtorch_cuda.so" ]; then
    echo "$binary needs libtorch_cuda.so, which an image without CUDA cannot hold" >&2
    exit 1
fi
case $variant in
    '') exit 0 ;;
    cpu) exit 0 ;;
    cuda) ;;
    *) echo "unknown variant: $variant" >&2; exit 2 ;;
esac

# Opened at run time, not linked: the CUDA half of torch, and what cuBLAS, cuDNN and the kernel compiler open themselves.
if [ ! -e "$packages/torch/lib/libtorch_cuda.so" ]; then
    echo "no libtorch_cuda.so in $packages/torch/lib" >&2
    exit 1
fi
for library in "$packages"/torch/lib/libtorch_cuda.so "$packages"/torch/lib/libtorch_cuda_linalg.so \
    "$packages"/torch/lib/libcaffe2_nvrtc.so "$packages"/nvidia/cudnn/lib/libcudnn*.so.* \
    "$packages"/nvidia/cu*/lib/libnvrtc*.so.*; do
    case $library in *.alt.so.*) continue ;; esac
    [ -e "$library" ] || continue
    install -D -m 0755 "$library" "$dest$libtorch/$(basename "$library")"
    add "$library"
done

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# check_aarch64.sh [CTEST OPTION...]: builds the whole tree for 64-bit ARM with warnings as errors and
# runs its unit tests under qemu-user: by default all of base, kernels, kvstore and text.
#
# It takes packages of a foreign architecture, which it names and never installs. Where you would
# rather not have them, make a Debian to throw away: debootstrap bookworm FOLDER, then chroot FOLDER;
# or unpack them (dpkg -x) into a folder and name it in WEFT_ARM_ROOT.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

# The library of Rust for ARM, from Debian or from rustup.
has_rust() {
    [ -d "$(rustc --print sysroot 2>/dev/null)/lib/rustlib/aarch64-unknown-linux-gnu/lib" ]
}

missing_packages() {
    local library
    command -v aarch64-linux-gnu-gcc >/dev/null || echo gcc-aarch64-linux-gnu
    command -v qemu-aarch64-static qemu-aarch64 >/dev/null || echo qemu-user-static
    has_rust || echo libstd-rust-web-dev:arm64
    [ -z "${WEFT_ARM_ROOT:-}" ] || return 0
    for library in $(sed -nE 's/^pkg_check_modules.*# apt: (.*)/\1/p' cmake/libraries.cmake); do
        [ "$(dpkg-query -W -f='${Status}' "$library:arm64" 2>/dev/null)" = "install ok installed" ] ||
            echo "$library:arm64"
    done
}

missing=$(missing_packages | tr '\n' ' ')
if [ -n "$missing" ]; then
    echo "check_aarch64: missing; as root:" >&2
    echo "  dpkg --add-architecture arm64 && apt-get update && apt-get install $missing" >&2
    exit 1
fi
[ $# -gt 0 ] || set -- -L '^(base|kernels|kvstore|text)$'
cmake -G Ninja -S . -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake \
    -DCMAKE_BUILD_TYPE=Release -DWEFT_WERROR=ON ${WEFT_ARM_ROOT:+-DCMAKE_SYSROOT="$WEFT_ARM_ROOT"}
cmake --build build/aarch64 -j "${DEV_JOBS:-$(nproc)}"
ctest --test-dir build/aarch64 --output-on-failure -j "${DEV_JOBS:-$(nproc)}" "$@"

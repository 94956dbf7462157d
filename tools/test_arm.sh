#!/bin/sh
# Tests the kernels of 64-bit ARM on another machine: builds the extension with a cross compiler and runs its tests under
# qemu's emulation of user programs, with Debian's own Python and NumPy for that architecture.
# usage: tools/test_arm.sh [pytest arguments]      Needs Debian, and as root: apt-get install g++-aarch64-linux-gnu qemu-user
# PYTHON must have nanobind, cmake and ninja. QEMU_CPU=cortex-a72 tests a processor without dot products.
set -eu
cd "$(dirname "$0")/.."
PYTHON=$(command -v "${PYTHON:-python3}")
here=$PWD/build/arm
root=$here/root
for tool in aarch64-linux-gnu-g++ qemu-aarch64 apt-get dpkg-deb; do
    command -v $tool >/dev/null || { echo "$0: $tool is missing; on Debian: apt-get install g++-aarch64-linux-gnu qemu-user" >&2; exit 2; }
done

# Packages are fetched by apt, from where this machine has its own, and unpacked in a folder: nothing is installed.
if [ ! -e "$root/usr/bin/python3" ]; then
    mkdir -p "$here/apt/lists/partial" "$here/apt/cache/archives/partial" "$root"
    : >"$here/apt/status"
    cat >"$here/apt/conf" <<EOF
APT::Architecture "arm64"; APT::Architectures { "arm64"; }; APT::Install-Recommends "false"; APT::Sandbox::User "$(id -un)";
Dir::State "$here/apt"; Dir::State::status "$here/apt/status"; Dir::State::lists "$here/apt/lists"; Dir::Cache "$here/apt/cache";
EOF
    APT_CONFIG=$here/apt/conf apt-get update -qq
    APT_CONFIG=$here/apt/conf apt-get install -qq -y --download-only python3-numpy python3-pytest python3-dev libstdc++6
    for package in "$here"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
fi

include=$(echo "$root"/usr/include/python3.*)
cmake -S . -B "$here/native" -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    -DCMAKE_CXX_FLAGS="-isystem $root/usr/include" -DPython_EXECUTABLE="$PYTHON" -DPython_INCLUDE_DIR="$include" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$here/out" >/dev/null
cmake --build "$here/native"
rm -rf "$here/src"
cp -r src "$here/src"
rm -f "$here"/src/qtransformers/_native*
cp "$here"/out/_native*.so "$here/src/qtransformers/_native.so"

[ $# -gt 0 ] || set -- tests/kernels tests/quants
export PYTHONPATH="$here/src" PYTHONDONTWRITEBYTECODE=1 QEMU_CPU="${QEMU_CPU:-max}"
libraries=/usr/lib/aarch64-linux-gnu
exec qemu-aarch64 -L "$root" -E LD_LIBRARY_PATH="$libraries:$libraries/blas:$libraries/lapack" "$root/usr/bin/python3" -m pytest -q -p no:cacheprovider "$@"

#!/usr/bin/env bash
# Horovod for the synchronous mode: builds its unmodified source against the torch and the MPI of an environment, and installs it there.
#   bash env/horovod.sh mpich|openmpi           into .venv/FAMILY
#   source env/horovod.sh; install_horovod mpich|openmpi     into the active virtual environment
# A build takes minutes; its wheel is kept in HPCNMT_CACHE (default ~/.cache/hpcnmt), one for each MPI family, torch and Python. Nothing is
# done where it is installed already. Both MPI families give wheels of the same name, so pip's own cache must never see them.

horovod_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# compiler, make, and Python's headers: by apt-get for root, otherwise a message
_horovod_tools() {
    local missing=()
    command -v c++ > /dev/null || missing+=(g++)
    command -v make > /dev/null || missing+=(make)
    if [ ! -f "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then
        missing+=("python$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')-dev")
    fi
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        echo "installing ${missing[*]}"
        apt-get install -qy --no-install-recommends "${missing[@]}" > /dev/null 2>&1 ||
            { apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"; } > /dev/null && return 0
    fi
    echo "cannot build Horovod: found no ${missing[*]}; install them (as root: apt-get install ${missing[*]}) and run this again" >&2
    return 1
}

# cmake 3.21 or newer, from PyPI where the machine has none
_horovod_cmake() {
    local version
    version=$(cmake --version 2> /dev/null | sed -n 's/^cmake version \([0-9.]*\).*/\1/p')
    [ -n "$version" ] && [ "$(printf '%s\n' 3.21 "$version" | sort -V | head -n 1)" = 3.21 ] && return 0
    pip install -q -c "$horovod_here/constraints.txt" cmake
}

_horovod_build() {
    local folder=$1
    _horovod_tools && _horovod_cmake || return 1
    pip install -q -c "$horovod_here/constraints.txt" setuptools wheel cffi || return 1
    echo "building Horovod for $(basename "$folder") (a few minutes, once)"
    # One compiler takes up to 2.3 GB. The wheel appears in the cache only when it is whole.
    (
        export CMAKE_TOOLCHAIN_FILE=$horovod_here/horovod-cxx20.cmake MAKEFLAGS=${HPCNMT_BUILD_FLAGS:--j2}
        export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1
        [ "$(uname -m)" != x86_64 ] || export HOROVOD_BUILD_ARCH_FLAGS="-mf16c -mavx -mfma"
        pip wheel --no-cache-dir --no-deps --no-build-isolation --no-binary horovod -c "$horovod_here/constraints.txt" \
            -w "$folder.part" horovod > "$folder.log" 2>&1
    ) || { tail -n 40 "$folder.log" >&2; echo "Horovod could not be built; the whole log: $folder.log" >&2; return 1; }
    rm -rf "$folder"
    mv "$folder.part" "$folder"
}

install_horovod() {
    local family=$1 key cache=${HPCNMT_CACHE:-$HOME/.cache/hpcnmt}/wheels
    [ -n "${VIRTUAL_ENV:-}" ] || { echo "found no active virtual environment: use env/horovod.sh as its first lines say" >&2; return 1; }
    key=horovod$(sed -n 's/^horovod==//p' "$horovod_here/constraints.txt")-$(python -c "
import platform, sys
from importlib.metadata import version
mpi = '$family' + version('$family')
print('-'.join([mpi, 'torch' + version('torch'), 'python%d.%d' % sys.version_info[:2], platform.machine()]))") ||
        { echo "found no torch, or no $family, in $VIRTUAL_ENV: pip install 'hpcnmt[$family]' there first" >&2; return 1; }
    [ "$(cat "$VIRTUAL_ENV/horovod-stamp" 2> /dev/null)" != "$key" ] || return 0
    mkdir -p "$cache"
    # Cloudpickle and psutil are needed to build it, too; --no-deps keeps pip's hands off torch and MPI.
    pip install -q -c "$horovod_here/constraints.txt" cloudpickle psutil packaging PyYAML || return 1
    (
        flock 9 || exit 1
        compgen -G "$cache/$key/horovod-*.whl" > /dev/null || _horovod_build "$cache/$key"
    ) 9> "$cache/$key.lock" || return 1
    pip install -q --no-cache-dir --no-deps --force-reinstall "$cache/$key"/horovod-*.whl || return 1
    python -c "import torch, horovod.torch" || { echo "Horovod was built, but does not load: remove $cache/$key and try again" >&2; return 1; }
    echo "$key" > "$VIRTUAL_ENV/horovod-stamp"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    case ${1:-} in
    mpich | openmpi) ;;
    *) echo "usage: bash env/horovod.sh mpich|openmpi" >&2; exit 2 ;;
    esac
    source "$horovod_here/common.sh"
    use_environment "$1"
    install_horovod "$1"
    echo "Horovod is installed in $VIRTUAL_ENV"
fi

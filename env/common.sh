# Sourced by env/*.sh: makes (or reuses) the virtual environment .venv/FAMILY with the package and activates it.
#   use_environment mpich|openmpi
use_environment() {
    local family=$1 root stamp
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    local folder=$root/.venv/$family
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        { echo "found $(python3 --version), expected Python 3.11 or newer as python3: put one first on PATH" >&2; return 1; }
    stamp=$(cat "$root/setup.py" "$root/env/constraints.txt" | sha256sum | cut -c1-16)
    if [ "$(cat "$folder/stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "setting up $folder (a few minutes the first time)"
        rm -rf "$folder"
        python3 -m venv "$folder"
        "$folder/bin/pip" install -q -c "$root/env/constraints.txt" setuptools wheel
        "$folder/bin/pip" install -q -c "$root/env/constraints.txt" --no-build-isolation -e "$root[$family,dev]"
        echo "$stamp" > "$folder/stamp"
    fi
    # The kernels are compiled again when their sources change.
    stamp=$(cat "$root"/hpcnmt/ops/csrc/*.h "$root"/hpcnmt/ops/csrc/*/* | sha256sum | cut -c1-16)
    if [ "$(cat "$folder/kernel-stamp" 2>/dev/null)" != "$stamp" ]; then
        (cd "$root" && "$folder/bin/python" setup.py -q build_ext --inplace > "$folder/kernels.log" 2>&1) ||
            { cat "$folder/kernels.log" >&2; return 1; }
        echo "$stamp" > "$folder/kernel-stamp"
    fi
    # shellcheck disable=SC1091
    source "$folder/bin/activate"
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    if [ "$family" = openmpi ]; then
        # Open MPI refuses root and more ranks than cores unless told otherwise; osc ucx only prints a harmless line.
        [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
        export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none OMPI_MCA_osc=^ucx
    fi
}

#!/usr/bin/env bash
# All checks: ruff, mypy, every test on MPICH, and the MPI tests on Open MPI. Does its own set-up, and builds Horovod for both.
#   bash env/test.sh [--fast]      --fast leaves out the Open MPI pass
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source env/common.sh
source env/horovod.sh
# The tests on virtual hosts need root and iproute2; without them they are skipped with a message.
if [ "$(id -u)" = 0 ] && ! command -v ip > /dev/null && command -v apt-get > /dev/null; then
    apt-get install -qy --no-install-recommends iproute2 > /dev/null || { apt-get update -q && apt-get install -qy iproute2; } > /dev/null
fi
bash env/slurm.sh
[ "${1:-}" = --fast ] || (use_environment openmpi) # first: both environments compile the kernels into the same place
use_environment mpich
install_horovod mpich
ruff check .
mypy
tests=(python -m pytest -q --durations=15)
# Runs of several ranks wait a good part of the time: two at once, but the tests of one file one after the other.
processes=$(nproc)
[ "$processes" -le 4 ] || processes=4
# The Slurm tests mostly wait: they run beside the unit tests.
logs=$(mktemp -d)
"${tests[@]}" tests/slurm > "$logs/slurm" 2>&1 &
slurm=$!
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$logs"' EXIT
"${tests[@]}" -n "$processes" tests/unit
code=0
wait "$slurm" || code=$?
cat "$logs/slurm"
[ "$code" = 0 ]
if [ "${1:-}" != --fast ]; then
    # Runs of several ranks leave cores idle: enough for the other build.
    (deactivate; exec nice -n 19 bash env/horovod.sh openmpi) > "$logs/openmpi" 2>&1 &
    openmpi=$!
fi
"${tests[@]}" -n "$processes" --dist loadfile tests/mpi tests/system tests/gpu
if [ "${1:-}" != --fast ]; then
    wait "$openmpi" || { cat "$logs/openmpi" >&2; exit 1; }
fi
"${tests[@]}" tests/netns # they compare rates: by themselves
if [ "${1:-}" != --fast ]; then
    deactivate
    use_environment openmpi
    "${tests[@]}" -n "$processes" --dist loadfile -m "mpi and not one_family" tests/mpi tests/system
    "${tests[@]}" -m "mpi and not one_family" tests/slurm
fi

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
use_environment mpich
install_horovod mpich
ruff check .
mypy
tests=(python -m pytest -q --durations=15)
# Runs of several ranks wait a good part of the time: two at once, but the tests of one file one after the other.
processes=$(nproc)
[ "$processes" -le 4 ] || processes=4
# The Slurm tests mostly wait: they run beside the unit tests.
slurm_log=$(mktemp)
"${tests[@]}" tests/slurm > "$slurm_log" 2>&1 &
slurm=$!
trap 'kill "$slurm" 2> /dev/null || true; rm -f "$slurm_log"' EXIT
"${tests[@]}" -n "$processes" tests/unit
code=0
wait "$slurm" || code=$?
cat "$slurm_log"
[ "$code" = 0 ]
"${tests[@]}" -n "$processes" --dist loadfile tests/mpi tests/system tests/gpu
"${tests[@]}" tests/netns # they compare rates: by themselves
if [ "${1:-}" != --fast ]; then
    deactivate
    use_environment openmpi
    install_horovod openmpi
    "${tests[@]}" -n "$processes" --dist loadfile -m "mpi and not one_family" tests/mpi tests/system
    "${tests[@]}" -m "mpi and not one_family" tests/slurm
fi

#!/usr/bin/env bash
# All checks: ruff, mypy, the MPI tests on Open MPI, then every test on MPICH. Does its own set-up, and builds Horovod for both.
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
if [ "${1:-}" != --fast ]; then
    (use_environment openmpi && install_horovod openmpi && python -m pytest -q -m "mpi and not one_family")
fi
use_environment mpich
install_horovod mpich
ruff check .
mypy
python -m pytest -q -n "$(nproc)" tests/unit
python -m pytest -q --ignore tests/unit

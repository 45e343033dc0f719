#!/usr/bin/env bash
# All checks: ruff, mypy, the MPI tests on Open MPI, then every test on MPICH. Does its own set-up.
#   bash env/test.sh [--fast]      --fast leaves out the Open MPI pass
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source env/common.sh
if [ "${1:-}" != --fast ]; then
    (use_environment openmpi && python -m pytest -q -m mpi)
fi
use_environment mpich
ruff check .
mypy
python -m pytest -q

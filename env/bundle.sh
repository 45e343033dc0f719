#!/usr/bin/env bash
# Collects what a GPU machine without a network needs beside its own torch: wheels, and prepared corpora.
#   bash env/bundle.sh OUT [--python 3.12] [PREPARED ...]     there: pip install --no-index --no-deps OUT/wheels/*.whl
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: bash env/bundle.sh OUT [--python 3.12] [PREPARED ...]" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$1 python=3.12
shift
if [ "${1:-}" = --python ]; then python=${2:?--python needs a version}; shift 2; fi
mkdir -p "$out/wheels" "$out/data"
# torch, its CUDA libraries and numpy are the machine's own; --no-deps keeps them out.
grep -E '^(mpi4py|mpich|sentencepiece|sacrebleu|safetensors|PyYAML|rich|tensorboard|matplotlib|pytest|hypothesis|setuptools)==' \
    "$here/constraints.txt" > "$out/wanted.txt"
# what those need in turn, but for what no part of hpcnmt reaches (grpcio, lxml): about 55 MB in all
printf '%s\n' markdown-it-py mdurl pygments portalocker regex tabulate colorama absl-py markdown protobuf werkzeug MarkupSafe \
    tensorboard-data-server packaging pillow contourpy cycler fonttools kiwisolver pyparsing python-dateutil six iniconfig pluggy sortedcontainers \
    >> "$out/wanted.txt"
python3 -m pip download -q --no-deps --only-binary :all: --python-version "$python" --platform manylinux2014_x86_64 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 -d "$out/wheels" -r "$out/wanted.txt"
for prepared in "$@"; do
    [ -d "$prepared" ] || { echo "found no folder $prepared, expected one of hpcnmt prepare" >&2; exit 2; }
    cp -r "$prepared" "$out/data/"
done
du -sh "$out"

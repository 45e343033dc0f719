#!/usr/bin/env bash
# From nothing to a translation model trained asynchronously by 2 workers and 1 shard over MPI, on a generated language pair.
#   bash env/quickstart.sh [--reduced]      --reduced trains on fewer words (for CI)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source env/common.sh
use_environment mpich
runs=${HPCNMT_RUNS:-runs}/quickstart-$(date +%Y%m%d-%H%M%S)
settings=()
[ "${1:-}" != --reduced ] || settings=(--set training.max_target_words=150000 --set training.validate_every_words=60000)
mkdir -p "$runs"
hpcnmt sample-corpus --out "$runs/text"
hpcnmt prepare --train-source "$runs/text/train.src" --train-target "$runs/text/train.trg" \
    --valid-source "$runs/text/valid.src" --valid-target "$runs/text/valid.trg" --vocabulary-size 400 --out "$runs/prepared"
hpcnmt train sample --data "$runs/prepared" --run "$runs/run" --workers 2 --shards 1 "${settings[@]}"
head -n 3 "$runs/text/test.src"
head -n 3 "$runs/text/test.src" | hpcnmt translate --run "$runs/run"
hpcnmt evaluate --run "$runs/run" --src "$runs/text/test.src" --ref "$runs/text/test.trg"
echo "run folder: $runs/run"

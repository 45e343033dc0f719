#!/usr/bin/env bash
# From nothing to a translation model trained asynchronously by 2 workers and 1 shard over MPI, on a generated language pair.
#   bash env/quickstart.sh [--reduced]      --reduced trains on fewer words (for CI)
# Runs go to runs/ (HPCNMT_RUNS names another folder), each into a fresh one.
set -euo pipefail
settings=()
case ${1:-} in
"") ;;
--reduced) settings=(--set training.max_target_words=250000 --set validation.every_words=100000) ;;
*) echo "found the option $1, expected --reduced or nothing" >&2; exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.."
begin=$SECONDS
source env/common.sh
use_environment mpich
runs=${HPCNMT_RUNS:-runs}/quickstart-$(date +%Y%m%d-%H%M%S)
mkdir -p "$runs"
echo "1. a generated language pair";  hpcnmt sample-corpus --out "$runs/text"
echo "2. vocabulary and corpus"
hpcnmt prepare --train-source "$runs/text/train.src" --train-target "$runs/text/train.trg" \
    --valid-source "$runs/text/valid.src" --valid-target "$runs/text/valid.trg" --vocabulary-size 400 --out "$runs/prepared"
echo "3. training: 2 workers + 1 shard"
hpcnmt train sample --data "$runs/prepared" --run "$runs/run" --workers 2 --shards 1 ${settings[@]+"${settings[@]}"}
echo "4. translation of unseen sentences"
head -n 3 "$runs/text/test.src" > "$runs/first.src"
hpcnmt translate --run "$runs/run" < "$runs/first.src" | paste -d '\n' "$runs/first.src" -
echo "5. evaluation"
hpcnmt evaluate --run "$runs/run" --src "$runs/text/test.src" --ref "$runs/text/test.trg" --json > "$runs/run/evaluation.json"
hpcnmt summary --run "$runs/run"
echo "$((SECONDS - begin)) s in all"

#!/usr/bin/env bash
# A job like train.sbatch with counting.py in the place of the training. Arguments: ROOT of the tree, RUN, corpus, ranks.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@30
#SBATCH --time=10
#SBATCH --output=%x.log
root=$1 run=$2 data=$3 ranks=$4
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"
choose_mpi
bind_ranks
if [ -n "${SLURM_HET_SIZE:-}" ]; then
    export MPIR_CVAR_NOLOCAL=1
    unset CUDA_VISIBLE_DEVICES
    launch+=("--het-group=0,1")
else
    launch+=(--nodes="$SLURM_JOB_NUM_NODES" --ntasks="$ranks" --distribution=cyclic)
fi
train_in_job "$ranks" "$python" "$root/tests/slurm/counting.py" "$run"

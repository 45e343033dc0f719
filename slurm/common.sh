# shellcheck shell=bash disable=SC2016,SC2154
# What all job scripts of hpcnmt share. They source this file (hpcnmt slurm writes it into the script) after their settings and call
#   train_in_job   one run of hpcnmt train with all that belongs to it: staging, signals, requeue, back-off, cleaning up
# or, for other programs, choose_mpi alone. Invariants: at most one requeue for each start of a job, by this batch shell; wrong input and
# diverged training are never requeued; nothing is done that Slurm does itself (a job that it has taken off its nodes is left to it).
#
# Read from the environment, all optional:
#   HPCNMT_SITE      a file to source first: your copy of env/site-example.sh (modules, environment)
#   HPCNMT_PYTHON    the Python that has hpcnmt (default: python3 of PATH)
#   HPCNMT_SRUN_MPI  srun's plugin (default: pmi2 for MPICH and its relatives, pmix for Open MPI)
#   HPCNMT_CPU_BIND  none, or another value of srun --cpu-bind (default: cores, where the cluster binds at all)
#   HPCNMT_STAGE     0: no copy of the corpus on each node's own disk
#   HPCNMT_STAGE_DIR where that disk is (default: SLURM_TMPDIR, TMPDIR, /tmp, the first that is set)
#   HPCNMT_RESTARTS  failures in a row, each within HPCNMT_FAST_S seconds (60) and without a new checkpoint, after which the job gives up (3)
# shellcheck disable=SC1090
[ -z "${HPCNMT_SITE:-}" ] || source "$HPCNMT_SITE" # before set -u: module systems read unset variables
set -uo pipefail
USER_ERROR=2 DIVERGED=3 SAVED=75 # exit codes of hpcnmt train
job=${SLURM_JOB_ID:-}            # as scontrol takes it; an array's own number would mean all its tasks
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
stopped="" step="" # the signal that was caught; the process that a signal goes to

say() { echo "hpcnmt job $job: $*" >&2; }
refuse() { say "$*"; exit $USER_ERROR; }

# MPI: a plugin that the library does not speak would start every rank as a world of its own.
choose_mpi() {
    local library wanted listed
    library=$("$python" -c 'import mpi4py; mpi4py.rc.initialize = mpi4py.rc.finalize = False
from mpi4py import MPI; print(MPI.Get_library_version().strip(chr(0)))') || refuse "found no usable mpi4py in $python: check HPCNMT_SITE and HPCNMT_PYTHON"
    case $library in
    *"Open MPI"*) mpi_family=openmpi wanted=pmix ;;
    *MPICH* | *MVAPICH* | *Intel* | *CRAY*) mpi_family=mpich wanted=pmi2 ;;
    *) mpi_family=other wanted=${HPCNMT_SRUN_MPI:?found an MPI library other than MPICH and Open MPI, expected HPCNMT_SRUN_MPI to name its plugin} ;;
    esac
    mpi_plugin=${HPCNMT_SRUN_MPI:-$wanted}
    listed=$(timeout 60 srun --mpi=list 2>&1 | tr -cs '[:alnum:]_' '\n')
    grep -qxF -- "$mpi_plugin" <<< "$listed" ||
        refuse "found no plugin $mpi_plugin for $mpi_family in srun --mpi=list: $(xargs <<< "$listed"); ask for it, or set HPCNMT_SRUN_MPI"
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # newer srun does not take it over from sbatch
    unset "${!SLURM_NTASKS_PER_NODE@}" # srun warns of it where ranks cannot be dealt out evenly
    launch=(srun --kill-on-bad-exit=1 --mpi="$mpi_plugin") # without it the others would wait for a dead rank until the time limit
}

# Every rank sees all GPUs of its node, which is what srun does without a --gpu option: hpcnmt spreads the workers of a host over them by their
# local rank. With --gpus-per-task a shard would take a GPU too, and NCCL could not reach the others'; --gpu-bind=none hides all of them in
# Slurm 22.05. Cores are bound so that memory stays near the core that touched it first.
bind_ranks() {
    local bind=${HPCNMT_CPU_BIND:-}
    if [ -z "$bind" ] && timeout 60 scontrol show config 2> /dev/null | grep -qE '^TaskPlugin +=.*affinity'; then bind=cores; fi
    [ -z "$bind" ] || [ "$bind" = none ] || launch+=(--cpu-bind="$bind")
}

# Runs a command so that signals are heard meanwhile; a caught one is passed on as USR1. Returns its exit code.
run_step() {
    local code=0
    "$@" &
    step=$!
    while kill -0 "$step" 2> /dev/null; do wait "$step"; done # a caught signal ends a wait
    wait "$step" || code=$?
    step=""
    return $code
}

state_of_job() { timeout 60 scontrol show job "$job" --oneliner 2> /dev/null | tr ' ' '\n' | sed -n '/^JobState=/{s///p;q}'; }

on_signal() { # USR1: asked for with --signal, before the time limit and at preemption. TERM: Slurm ends the job, or somebody stops the batch shell
    [ -z "$stopped" ] || return 0 # a second signal would end the ranks at once
    stopped=$1
    # Slurm, when it ends a job, sends TERM to the ranks itself
    [ "$1" = USR1 ] || [ "$(state_of_job)" = RUNNING ] || return 0
    say "caught $1: the run saves and ends"
    [ -z "$step" ] || kill -USR1 "$step" 2> /dev/null # srun forwards it to all tasks
}

# On each node, before and after the ranks. MPICH names shared memory by job and step: what killed ranks have left would hang the same step of
# the requeued job, so what no process has mapped goes. Copies of the corpus go when Slurm no longer knows their job ($4: those it knows).
sweep_program='
for old in /dev/shm/mpich_shm_*; do
    [ -O "$old" ] || continue
    grep -qsF -- "$old" /proc/[0-9]*/maps || rm -f -- "$old"
done
for old in "$1"/hpcnmt-stage-*; do
    [ -d "$old" ] && [ -O "$old" ] || continue
    case " $4 " in *" all "* | *" ${old##*-} "*) ;; *) rm -rf -- "$old" ;; esac
done
'
# A copy of the corpus $3 for job $2 below $1, whole or not at all.
stage_program='
[ -n "$3" ] || exit 0
set -eu
mine=$1/hpcnmt-stage-$2
rm -rf -- "$mine"
mkdir -m 700 -- "$mine"
cp -R -- "$3/." "$mine/part"
sizes() { (cd "$1" && find . -type f -printf "%P %s\n" | LC_ALL=C sort); }
[ "$(sizes "$3")" = "$(sizes "$mine/part")" ]
mv -- "$mine/part" "$mine/data"'
prepare_nodes() {
    local alive staged=$data
    disk=${HPCNMT_STAGE_DIR:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}} data_here=$data
    [ "${HPCNMT_STAGE:-1}" != 0 ] || staged=""
    alive=$(timeout 60 squeue -h -u "$(id -u)" -o %A | xargs) || alive=all
    if ! on_every_node bash -c "$sweep_program$stage_program" prepare "$disk" "$SLURM_JOB_ID" "$staged" "$alive $SLURM_JOB_ID"; then
        [ -n "$stopped" ] || say "could not copy $data to $disk of every node: the ranks read $data itself"
    elif [ -n "$staged" ]; then
        data_here=$disk/hpcnmt-stage-$SLURM_JOB_ID/data
    fi
}

on_every_node() { # COMMAND...: one task on each node, of all components of a heterogeneous job
    local group count words=(srun --mpi=none --kill-on-bad-exit=1)
    for ((group = 0; group < ${SLURM_HET_SIZE:-1}; group++)); do
        count=${SLURM_JOB_NUM_NODES:-1}
        if [ -n "${SLURM_HET_SIZE:-}" ]; then
            count=SLURM_JOB_NUM_NODES_HET_GROUP_$group count=${!count}
            [ "$group" = 0 ] || words+=(:)
            words+=(--het-group="$group")
        fi
        words+=(--nodes="$count" --ntasks="$count" --ntasks-per-node=1 --cpus-per-task=1 "$@")
    done
    run_step "${words[@]}"
}

clean_nodes() { # what the ranks may have left: shared memory, this job's copy of the corpus
    local program='"$5" -m hpcnmt.training.leftovers > /dev/null 2>&1 || true' mine=$disk/hpcnmt-stage-$SLURM_JOB_ID
    rm -rf -- "$mine"
    [ "$(state_of_job)" != RUNNING ] || on_every_node bash -c "rm -rf -- \"\$1/hpcnmt-stage-\$2\"; $sweep_program$program" \
        clean "$disk" "$SLURM_JOB_ID" "" all "$python"
}

requeue() { # once: a job that Slurm has requeued or ended meanwhile is no longer running
    local try state
    for try in 1 2 3; do
        state=$(state_of_job)
        case $state in
        RUNNING)
            if timeout 60 scontrol requeue "$job"; then say "requeued ($1)"; exit 0; fi
            ;;
        ?*) say "$1; state $state: Slurm goes on with this job by itself, or it was cancelled"; exit $SAVED ;;
        esac
        [ "$try" = 3 ] || sleep 5
    done
    say "$1; Slurm did not take the requeue: submit the script again, it goes on from the newest checkpoint"
    exit $SAVED
}

newest_checkpoint() { # the latest of RUN/checkpoints/cut-*/COMPLETE; their names are numbered
    local found=("$run"/checkpoints/cut-*/COMPLETE)
    [ ! -e "${found[-1]}" ] || echo "${found[-1]}"
}

# After the step: what its exit code means for the job. $1: code, $2: seconds it lived, $3: newest checkpoint before it.
conclude() {
    local code=$1 lived=$2 before=$3 failures=0 pause
    case $code in
    0) rm -f -- "$counter"; say "training has finished"; exit 0 ;;
    "$USER_ERROR") say "wrong input (above): no requeue"; exit "$code" ;;
    "$DIVERGED") say "training has diverged (above): no requeue"; exit "$code" ;;
    "$SAVED") rm -f -- "$counter"; requeue "saved" ;;
    esac
    [ -z "$stopped" ] || requeue "stopped by $stopped before it could save (exit code $code)"
    if [ "$lived" -ge "${HPCNMT_FAST_S:-60}" ] || [ "$(newest_checkpoint)" != "$before" ]; then
        rm -f -- "$counter"
        requeue "failed with exit code $code after $lived s"
    fi
    [ ! -s "$counter" ] || read -r failures < "$counter"
    [[ $failures =~ ^[0-9]+$ ]] || failures=0
    failures=$((failures + 1))
    if [ "$failures" -ge "${HPCNMT_RESTARTS:-3}" ]; then
        rm -f -- "$counter"
        say "failed $failures times in a row, each after a few seconds, the last time with exit code $code: giving up"
        exit "$code"
    fi
    echo "$failures" > "$counter"
    pause=$((${HPCNMT_PAUSE_S:-10} * 2 ** (failures - 1)))
    say "failed with exit code $code after $lived s (number $failures in a row): requeue in $pause s"
    run_step sleep "$pause"
    requeue "failed fast"
}

# The whole life of one start of the job. $1: number of tasks; then the command, without the corpus, which is added as --data.
train_in_job() {
    local tasks=$1 code=0 begun before beside
    shift
    [ "${SLURM_NTASKS:-0}" = "$tasks" ] || [ -n "${SLURM_HET_SIZE:-}" ] || refuse "found $SLURM_NTASKS tasks, expected $tasks: set #SBATCH --ntasks"
    beside=$(dirname -- "$run")/.$(basename -- "$run")
    mkdir -p -- "$(dirname -- "$run")" || refuse "cannot make the folder of $run"
    counter=$beside.failures
    export HPCNMT_EXIT_CODE=$beside.exit # a file; srun's own code tells of the ranks that were killed because one failed
    trap 'on_signal USR1' USR1
    trap 'on_signal TERM' TERM
    prepare_nodes
    rm -f -- "$HPCNMT_EXIT_CODE"
    before=$(newest_checkpoint) begun=$SECONDS
    if [ -z "$stopped" ]; then run_step "${launch[@]}" "$@" --data "$data_here" || code=$?; else code=$SAVED; fi
    if [ -s "$HPCNMT_EXIT_CODE" ]; then read -r code < "$HPCNMT_EXIT_CODE" || true; fi # it may have no newline
    rm -f -- "$HPCNMT_EXIT_CODE"
    clean_nodes
    conclude "$code" $((SECONDS - begun)) "$before"
}

python=${HPCNMT_PYTHON:-python3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}

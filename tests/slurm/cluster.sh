#!/usr/bin/env bash
# A throw-away Slurm cluster on this host, without systemd: controller, munge and four virtual nodes, c1 c2 (CPU) and g1 g2 (four counted GPUs each).
#   cluster.sh run FOLDER COMMAND...   starts it, runs COMMAND with SLURM_CONF set, stops it; the exit code is COMMAND's
#   cluster.sh node FOLDER NAME        inside: starts the daemon of a node (again)
# Everything lives in private pid, network, mount and UTS namespaces: no port, process or shared memory of the host is touched, and nothing
# outlives `run`, however it ends. Each node has its own host name, /dev/shm and FOLDER/local (node-local disk), as nodes do.
# Needs root, iproute2 and the packages of env/slurm.sh. FOLDER holds configuration and logs (FOLDER/log) and stays.
set -uo pipefail
self=$(readlink -f "${BASH_SOURCE[0]}")
action=${1:-} folder=${2:-}
{ [[ $action =~ ^(run|inside|node)$ ]] && [ -n "$folder" ] && [ $# -ge 3 ]; } || { sed -n '3,4s/^# *//p' "$self" >&2; exit 2; }
shift 2
nodes=(c1 c2 g1 g2)
export SLURM_CONF=$folder/etc/slurm.conf

write_configuration() {
    local port=17010 node more
    # config_overrides: more CPUs than the host has. cred_expire: a requeued job waits so long (below 5: 120 s, the default).
    cat << END
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=/run/munge.sock,cred_expire=5
CredType=cred/munge
SlurmctldPort=17000
SlurmdPort=17001
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
TmpFS=$folder/tmp/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=${TASK_PLUGIN:-task/none}
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=20
MinJobAge=300
UnkillableStepTimeout=20
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=200000,bf_interval=1,batch_sched_delay=0
SlurmctldParameters=preempt_send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/log/jobcomp.txt
JobRequeue=1
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillOnBadExit=0
PropagateResourceLimits=NONE
END
    for node in "${nodes[@]}"; do
        more="Feature=cpu"
        [[ $node != g* ]] || more="Feature=gpu Gres=gpu:h200:4"
        echo "NodeName=$node NodeHostname=$node NodeAddr=127.0.0.1 Port=$port CPUs=8 RealMemory=4000 $more State=UNKNOWN"
        port=$((port + 1))
    done
    # main: preempted with a grace time and the signal that the job asked for; bare: preempted without either
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20 State=UP"
    echo "PartitionName=bare Nodes=ALL MaxTime=INFINITE PriorityTier=1 State=UP"
    echo "PartitionName=cpu Nodes=c1,c2 MaxTime=INFINITE PriorityTier=1 State=UP"
    echo "PartitionName=gpu Nodes=g1,g2 MaxTime=INFINITE PriorityTier=1 State=UP"
    echo "PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP"
}

write_files() {
    local node index
    mkdir -p "$folder"/{etc,state,log,run,spool,dev,local}
    for node in "${nodes[@]}"; do mkdir -p "$folder/spool/$node" "$folder/tmp/$node"; done
    for index in 0 1 2 3; do ln -sf /dev/null "$folder/dev/gpu$index"; done # must resolve to a character device
    write_configuration > "$SLURM_CONF"
    echo "NodeName=g1,g2 Name=gpu Type=h200 File=$folder/dev/gpu[0-3]" > "$folder/etc/gres.conf"
    # the host's cgroups are left alone; also lets slurmd start where there is no /sys/fs/cgroup
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint=%s/no-cgroup\n' "$folder" > "$folder/etc/cgroup.conf"
    (umask 077; head -c 128 /dev/urandom > "$folder/etc/munge.key")
}

start_node() {
    # shellcheck disable=SC2016
    unshare --uts --mount bash -c 'hostname "$1" && mount -t tmpfs tmpfs /dev/shm && mount --bind "$2/tmp/$1" "$2/local" && exec slurmd -N "$1"' \
        _ "$1" "$folder"
}

ready() { [ "$(timeout 3 sinfo -h -N -p main -o %t 2> /dev/null | grep -cxE 'idle|mix|alloc')" -ge ${#nodes[@]} ]; }

start() {
    local node end=$((SECONDS + 60))
    munged --key-file="$folder/etc/munge.key" --socket=/run/munge.sock --pid-file=/run/munged.pid \
        --log-file="$folder/log/munged.log" --seed-file=/run/munge.seed --num-threads=2 || return 1
    slurmctld || return 1
    for node in "${nodes[@]}"; do start_node "$node" || return 1; done
    until ready; do
        [ $SECONDS -lt $end ] || { echo "found no cluster after 60 s: see $folder/log" >&2; return 1; }
        sleep 0.2
    done
}

case $action in
node) start_node "$1" ;;
run)
    { mkdir -p "$folder" && folder=$(readlink -f "$folder"); } || exit 1
    exec unshare --pid --fork --kill-child=KILL --mount --mount-proc --net --uts --ipc bash "$self" inside "$folder" "$@"
    ;;
inside) # process 1 of its namespace: when it ends, the kernel ends everything in there
    ip link set lo up
    # slurmctld cannot listen where there is no address besides loopback (AI_ADDRCONFIG)
    ip link add other type bridge && ip address add 10.213.76.1/32 dev other && ip link set other up
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs -o mode=755 tmpfs /run # munge wants a folder that all can reach, as FOLDER need not be
    write_files && start || exit 99
    "$@"
    ;;
esac

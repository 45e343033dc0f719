#!/usr/bin/env bash
# A cluster of virtual hosts on one machine: network namespaces on a bridge, each link limited in both directions. Needs root and iproute2.
#   virtual_cluster.sh up N [RATE]       N hosts hpcnmt1..N (10.77.0.1..N); RATE as tc writes it: 1gbit, 10gbit; none = unlimited
#   virtual_cluster.sh run RANKS CMD...  runs CMD on RANKS ranks, dealt to the hosts in turn, with the mpiexec on PATH (MPICH: ofi over tcp)
#                                        HPCNMT_RANKS_PER_HOST=1,1,2: so many of the ranks to the first host, to the second, ...
#   virtual_cluster.sh slow HOST SHARE   a straggler: what is started on host number HOST from now on gets SHARE percent of one core (100 a core)
#   virtual_cluster.sh down
set -euo pipefail
bridge=hpcnmt0
# cgroup v1 has a tree for each controller, v2 one for all
groups=/sys/fs/cgroup/cpu members=tasks
[ -d $groups ] || { groups=/sys/fs/cgroup members=cgroup.procs; }
hosts() { ip netns list | awk '/^hpcnmt[0-9]+( |$)/{print $1}' | sort -V; }

up() {
    local count=$1 rate=${2:-} name index other
    ip link add $bridge type bridge
    ip link set $bridge up
    ip addr add 10.77.0.254/24 dev $bridge
    for index in $(seq "$count"); do
        name=hpcnmt$index
        ip netns add "$name"
        ip link add "hpcv$index" type veth peer name eth0 netns "$name"
        ip link set "hpcv$index" master $bridge up
        ip -n "$name" addr add "10.77.0.$index/24" dev eth0
        ip -n "$name" link set eth0 up
        ip -n "$name" link set lo up
        mkdir -p "/etc/netns/$name"
        { echo "127.0.0.1 localhost"
          for other in $(seq "$count"); do echo "10.77.0.$other hpcnmt$other"; done
          echo "10.77.0.254 $(hostname)"; } > "/etc/netns/$name/hosts"
        [ -z "$rate" ] || { ip netns exec "$name" tc qdisc replace dev eth0 root tbf rate "$rate" burst 128kb latency 4ms
                            tc qdisc replace dev "hpcv$index" root tbf rate "$rate" burst 128kb latency 4ms; }
    done
}

down() {
    local name link
    # a namespace outlives its name while a process is in it, and its link with it
    for link in $(ip -o link show type veth | sed -n 's/^[0-9]*: \(hpcv[0-9]*\)@.*/\1/p'); do ip link del "$link"; done
    for name in $(hosts); do
        ip netns del "$name"
        rm -rf "/etc/netns/$name"
        [ ! -d "$groups/$name" ] || rmdir "$groups/$name"
    done
    ! ip link show $bridge > /dev/null 2>&1 || ip link del $bridge
}

slow() {
    local name=hpcnmt$1 share=$2
    ip netns list | grep -q "^$name\b" || { echo "found no virtual host $1: run $0 up N first" >&2; exit 2; }
    mkdir -p "$groups/$name"
    if [ -f "$groups/$name/cpu.cfs_quota_us" ]; then
        echo 20000 > "$groups/$name/cpu.cfs_period_us"
        echo $((200 * share)) > "$groups/$name/cpu.cfs_quota_us"
    else
        echo +cpu > $groups/cgroup.subtree_control
        echo "$((200 * share)) 20000" > "$groups/$name/cpu.max"
    fi
}

agent() { # stands in for ssh: agent [options] HOST COMMAND...
    local host
    while [[ ${1:-} == -* ]]; do case $1 in -l | -p | -o | -i) shift 2 ;; *) shift ;; esac; done
    host=$1
    shift
    case $host in 10.77.0.*) host=hpcnmt${host##*.} ;; esac
    [ ! -d "$groups/$host" ] || echo $$ > "$groups/$host/$members"
    exec ip netns exec "$host" unshare --uts -- /bin/bash -c "hostname $host; $*"
}

run() {
    local ranks=$1 self list
    shift
    self=$(readlink -f "${BASH_SOURCE[0]}")
    list=$(hosts)
    [ -n "$list" ] || { echo "found no virtual hosts: run $0 up N first" >&2; exit 2; }
    if [ -n "${HPCNMT_RANKS_PER_HOST:-}" ]; then
        [ "$(tr , '\n' <<< "$HPCNMT_RANKS_PER_HOST" | wc -l)" -le "$(wc -l <<< "$list")" ] ||
            { echo "found HPCNMT_RANKS_PER_HOST=$HPCNMT_RANKS_PER_HOST for $(wc -l <<< "$list") virtual hosts: run $0 up with more" >&2; exit 2; }
        list=$(paste -d : <(head -n "$(tr , '\n' <<< "$HPCNMT_RANKS_PER_HOST" | wc -l)" <<< "$list") <(tr , '\n' <<< "$HPCNMT_RANKS_PER_HOST"))
    fi
    if mpiexec --version 2>&1 | grep -q 'Open MPI'; then
        local order=node
        if [ -n "${HPCNMT_RANKS_PER_HOST:-}" ]; then order=slot; else list=$(sed 's/$/:16/' <<< "$list"); fi
        HPCNMT_VIRTUAL_AGENT=1 exec mpiexec --allow-run-as-root --prtemca plm_ssh_agent "$self" --prtemca prte_if_include 10.77.0.0/24 \
            --mca btl_tcp_if_include 10.77.0.0/24 --mca osc '^ucx' --host "$(paste -sd, <<< "$list")" \
            --map-by $order:oversubscribe --bind-to none -n "$ranks" "$@"
    fi
    # without these two MPICH would cross the namespaces through shared memory
    HPCNMT_VIRTUAL_AGENT=1 MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp exec mpiexec -launcher ssh -launcher-exec "$self" -iface $bridge \
        -hosts "$(paste -sd, <<< "$list")" -n "$ranks" "$@"
}

if [ -n "${HPCNMT_VIRTUAL_AGENT:-}" ]; then agent "$@"; fi
case ${1:-} in
up | run | slow | down) command=$1; shift; $command "$@" ;;
*) sed -n '2,7p' "$0"; exit 2 ;;
esac

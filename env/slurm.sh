#!/usr/bin/env bash
# Slurm for the tests on a throw-away cluster (tests/slurm): controller, daemons, munge and PMIx of Debian or Ubuntu. Starts nothing. Needs root;
# without it says so and goes on: those tests are skipped then, with a message.
#   bash env/slurm.sh
set -euo pipefail
link_pmix() { # srun's pmix plugin opens libpmix.so, which Debian's libpmix2 leaves out
    local library
    for library in /usr/lib/*/pmix2/lib/libpmix.so.2; do
        [ ! -e "$library" ] || [ -e "${library%.2}" ] || ln -s libpmix.so.2 "${library%.2}"
    done
}
have_all() {
    local program
    for program in slurmctld slurmd sbatch munged ip nsenter; do command -v "$program" > /dev/null || return 1; done
    compgen -G '/usr/lib/*/pmix2/lib/libpmix.so' > /dev/null
}
if have_all; then
    exit 0
elif [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "found no Slurm, and no root or apt-get to install it: tests/slurm will be skipped"
    exit 0
fi
packages=(slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins libpmix2 iproute2 util-linux)
install() { DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${packages[@]}" > /dev/null; }
# the packages would start daemons of the host
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
install || { apt-get update -q > /dev/null && install; }
link_pmix
have_all || { echo "installed ${packages[*]}, but slurmctld, slurmd, sbatch, munged or libpmix is still missing" >&2; exit 1; }

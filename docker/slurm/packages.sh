#!/bin/sh
# Find the programs of a SLURM; install them if this is root on Debian or Ubuntu; otherwise say how. --check only looks.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
packages="slurm-wlm slurmdbd munge mariadb-server"
missing=""
for name in munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch srun sacct; do
    command -v "$name" >/dev/null || missing="$missing $name"
done
[ -n "$missing" ] || exit 0
if [ "${1:-}" = --check ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no$missing; install: sudo apt-get install -y --no-install-recommends $packages" >&2
    exit 2
fi
echo "installing system packages: $packages"
# Debian's way to tell maintainer scripts not to start daemons; ours run inside a folder of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
said=$(apt-get update -qq 2>&1 && apt-get install -y -qq --no-install-recommends $packages 2>&1) || {
    echo "apt-get could not install $packages: $(echo "$said" | tail -n 1)" >&2
    exit 3
}

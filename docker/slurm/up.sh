#!/bin/sh
# Start a SLURM on this machine: up.sh [FOLDER] [--nodes 4] [--grace 10] … (--help lists the flags).
# The line that it prints makes it the SLURM of a shell: eval "$(sh docker/slurm/up.sh)".
exec python3 "$(dirname "$0")/one_host.py" up "$@"

#!/bin/sh
# Stop the SLURM that up.sh started, and what its jobs left: down.sh [FOLDER] [--wipe].
exec python3 "$(dirname "$0")/one_host.py" down "$@"

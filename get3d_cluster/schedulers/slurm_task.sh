#!/bin/sh
# One worker of an attempt, started by srun: slurm_task.sh PYTHON ARGUMENTS...
#
# Says who the worker is in torchrun's words, gives it its GPUs and its log, and keeps signals that come before the
# worker's own handlers stand: the worker starts with them ignored and finds them in a record. Later ones it gets from
# here as well, since some clusters signal only the process that srun started.
folder="$GET3D_RUN/attempts/$(printf %04d "$GET3D_ATTEMPT")"
RANK=${GET3D_ELEMENT:-$SLURM_PROCID}
LOCAL_RANK=${SLURM_LOCALID:-0}
WORLD_SIZE=${GET3D_ELEMENTS:-$SLURM_NTASKS}
GET3D_NODE=${SLURM_NODEID:-0}
number=$(printf %04d "$RANK")
GET3D_EARLY="$folder/early.rank$number"
export RANK LOCAL_RANK WORLD_SIZE GET3D_NODE GET3D_EARLY
worker=
keep() {
    echo "$1 $(date +%s.%N)" >>"$GET3D_EARLY"
    [ -z "$worker" ] || kill -s "$1" "$worker" 2>/dev/null
}
trap 'keep TERM' TERM
trap 'keep USR1' USR1
trap 'keep USR2' USR2
trap 'keep INT' INT

gpus=${GET3D_GPUS_PER_WORKER:-0}
case ${CUDA_VISIBLE_DEVICES:-} in
*,*)
    # All GPUs of the node: this worker's share, unless SLURM bound them already.
    if [ "$gpus" -gt 0 ] && [ "$(echo "$CUDA_VISIBLE_DEVICES" | tr , '\n' | wc -l)" -gt "$gpus" ]; then
        first=$((LOCAL_RANK * gpus + 1))
        CUDA_VISIBLE_DEVICES=$(echo "$CUDA_VISIBLE_DEVICES" | cut -d, -f "$first-$((first + gpus - 1))")
        export CUDA_VISIBLE_DEVICES
    fi
    ;;
esac

exec >>"$folder/rank$number.log" 2>&1
cd "$GET3D_CODE" || exit 2
(
    trap '' TERM USR1 USR2 INT
    exec "$@"
) &
worker=$!
while :; do
    wait "$worker"
    code=$?
    kill -0 "$worker" 2>/dev/null || break # a signal ends the wait, not the worker
done
echo "$code" >"$folder/exit.rank$number"
exit "$code"

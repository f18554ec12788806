# One task of `launch.py doctor --probe`: sh probe_node.sh FOLDER NUM_TASKS PYTHON. Prints one line of JSON.
folder=$1 tasks=$2 python=$3
host=${SLURMD_NODENAME:-$(hostname)}
wrote=false
if echo "$host" >"$folder/task.${SLURM_PROCID:-0}" 2>/dev/null; then wrote=true; fi

# A network file system may show a new file of another node seconds later; listing the folder asks it again.
seen=0
for _ in $(seq 150); do
    seen=$(($(ls "$folder" 2>/dev/null | grep -c '^task\.') - 1))
    if [ "$seen" -ge "$((tasks - 1))" ] || [ "$wrote" = false ]; then break; fi
    sleep 0.1
done
now=$(date +%s.%N)
if [ "$seen" -lt 0 ]; then seen=0; fi

version=$("$python" -c 'import platform; print(platform.python_version())' 2>/dev/null)
torch=false
if "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null; then torch=true; fi
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
printf '{"host": "%s", "t": %s, "seen": %s, "wrote": %s, "python": "%s", "has_torch": %s, "gpus": %s}\n' \
    "$host" "$now" "$seen" "$wrote" "$version" "$torch" "$gpus"

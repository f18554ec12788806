"""Programs in place of SLURM's, first on PATH: a small SLURM that answers as told, oddly, late or not at all.

Its state are files: ``queue`` has what squeue prints, ``job.N`` what scontrol prints of a job, ``X.mode`` how program X
behaves. Each program writes its calls into ``X.calls``.
"""

import os
import shutil
import stat
from pathlib import Path

import pytest

NAMES = ("sbatch", "squeue", "scontrol", "sacct", "sacctmgr", "scancel", "sinfo")
CONFIG = """\
JobRequeue              = {requeue}
KillWait                = 5 sec
MaxArraySize            = {max_array}
PreemptMode             = {mode}
PreemptType             = preempt/partition_prio
SchedulerParameters     = (null)
SlurmctldParameters     = (null)
SLURM_VERSION           = 22.05.8
"""
PARTITION = """\
PartitionName=low Default=YES DefaultTime=NONE GraceTime=10 MaxTime=UNLIMITED PreemptMode={mode} State=UP
"""
HEADER = "JOBID ARRAY_JOB_ID ARRAY_TASK_ID STATE REASON NODELIST COMMENT START_TIME DEPENDENCY"

PROLOGUE = """\
#!/bin/sh
cd {folder} || exit 9
echo "$*" >>{name}.calls
mode=$(cat {name}.mode 2>/dev/null)
case $mode in
down) echo "{name}: error: Unable to contact slurm controller (connect failure)" >&2; exit 1 ;;
empty) exit 0 ;;
slow) sleep 120; exit 0 ;;
esac
"""
SBATCH = """\
case $1 in --test-only) cat >/dev/null; exit 0 ;; esac
case $mode in
refuses) cat sbatch.words >&2; exit 1 ;;
lost) echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1 ;;
esac
job=$(($(cat last 2>/dev/null || echo 100) + 1))
echo $job >last
value() { sed -n "s/^#SBATCH --$1=//p" "$2"; }
[ -n "$(value array "$1")" ] && task="[$(value array "$1")]" || task=N/A
printf '%s\\037%s\\037%s\\037PENDING\\037Priority\\037\\037%s\\037N/A\\037%s\\n' \\
    $job $job "$task" "$(value comment "$1")" "$(value dependency "$1")" >>queue
name=$(value job-name "$1")
echo "JobId=$job JobName=$name UserId=me(1) JobState=PENDING Reason=Priority Restarts=0 Requeue=1" >job.$job
cp "$1" script.$job
case $mode in
then-down) echo down >squeue.mode; exit 1 ;;
second-refused) [ $job = 101 ] || { cat sbatch.words >&2; exit 1; } ;;
times-out) echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1 ;;
hangs) sleep 120 ;;
mumbles) echo "the weather is fine"; exit 0 ;;
esac
echo "Submitted batch job $job"
"""
SQUEUE = "cat header queue 2>/dev/null; exit 0\n"
SCONTROL = """\
case "$1 $2" in
"show config") cat config ;;
"show partition") cat partition ;;
"show job") cat job.$4 2>/dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; } ;;
requeue*)
    [ "$mode" != refuses ] || { echo "Requested operation is presently disabled for job $2" >&2; exit 1; }
    ;;
esac
"""
SACCT = "cat past 2>/dev/null; exit 0\n"
BODIES = {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "sacct": SACCT}


class FakeSlurm:
    """The programs, what they say, and what they were asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name in NAMES:
            self.program(name, PROLOGUE.format(folder=folder, name=name) + BODIES.get(name, "exit 0\n"))
        self.promises()
        (folder / "header").write_text("\x1f".join(HEADER.split()) + "\n")
        (folder / "queue").touch()
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def program(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def mode(self, name: str, mode: str, words: str = "") -> None:
        """Have a program behave: ``down``, ``empty``, ``slow``, or as its own text knows; empty: as it should."""
        (self.folder / f"{name}.mode").write_text(mode)
        (self.folder / f"{name}.words").write_text(words)

    def promises(self, *, mode: str = "REQUEUE", max_array: int = 1001, requeue: int = 1) -> None:
        config = CONFIG.format(mode=mode, max_array=max_array, requeue=requeue)
        (self.folder / "config").write_text(config)
        (self.folder / "partition").write_text(PARTITION.format(mode=mode))

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def queued(self) -> list[str]:
        """Return the ids of the jobs in the queue."""
        return [line.split("\x1f")[0] for line in (self.folder / "queue").read_text().splitlines()]

    def script(self, job: str) -> str:
        return (self.folder / f"script.{job}").read_text()

    def put(
        self, job: str, comment: str, *, state: str, reason: str = "None", task: str = "N/A", nodes: str = ""
    ) -> None:
        """Put a job into the queue in a state of choice."""
        row = [job, job, task, state, reason, nodes, comment, "N/A", "(null)"]
        with (self.folder / "queue").open("a") as queue:
            queue.write("\x1f".join(row) + "\n")

    def record(self, job: str, *, name: str = "a", **fields: str) -> None:
        """Say what scontrol shows of a job."""
        values = {"JobId": job, "JobName": name, "UserId": "me(1)"} | fields
        text = " ".join(f"{name}={value}" for name, value in values.items())
        (self.folder / f"job.{job}").write_text(text + "\n")

    def past(self, *rows: str) -> None:
        """Say what sacct prints: fields divided by |, below its header."""
        header = "JobID|State|ExitCode|NodeList|Start|End|FailedNode|Restarts"
        (self.folder / "past").write_text("\n".join([header, *rows, ""]).replace("|", "\x1f"))


def shim(folder: Path, name: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script before a real program, which it can call as "$real"; its calls go to ``name.calls``."""
    folder.mkdir(exist_ok=True)
    real = shutil.which(name)
    path = folder / name
    path.write_text(f'#!/bin/sh\nreal={real}\necho "$*" >>{folder}/{name}.calls\n{body}\n')
    path.chmod(0o755)
    if not os.environ["PATH"].startswith(f"{folder}:"):
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

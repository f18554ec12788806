"""Files of the SLURM scheduler in the folder of a run.

RUN/slurm/                     submitit's: batch scripts, one pickle a job that holds the run's path, batch outputs
RUN/slurm/jobs.jsonl           one line for each job that was submitted: id, t, why, newest attempt so far, element
RUN/attempts/NNNN/slurm.json   the job, incarnation and nodes of an attempt, its batch output
RUN/attempts/NNNN/early.rankRRRR   signals that came before the worker's handlers stood: name, time
RUN/attempts/NNNN/exit.rankRRRR    exit code of a worker, written by the script that started it
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from get3d_cluster.core.job import Outcome
from get3d_cluster.errors import StorageError
from get3d_cluster.runtime.events import append_line, read_rows
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.schedulers.ending import Exit, code_from_shell
from get3d_cluster.schedulers.notes import read_or_nothing

SUBMITTED = "submitted"
SUCCESSOR = "successor"
"""Why a job was submitted: by a person, or by the job before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an attempt runs: one incarnation of a SLURM job. SLURM keeps the id when it starts a job anew."""

    job: str
    restarts: int = 0
    array: str = ""
    task: str = ""
    hosts: tuple[str, ...] = ()
    element: int | None = None
    started: float = 0.0
    """Seconds since 1970 on the first node's clock; for display only."""
    start_step: int = 0
    grace_s: float = 0.0
    """GraceTime that the cluster promises a preempted job."""
    kill_wait_s: float = 30.0
    """KillWait of the cluster when the attempt began."""
    warning_s: float = 30.0
    """Of --signal: how long before the time limit the notice comes."""

    @property
    def name(self) -> str:
        """What people and ``scontrol requeue`` call the job."""
        return f"{self.array}_{self.task}" if self.array else self.job


def comment_of(run: RunFolder) -> str:
    """Return the comment by which the jobs of a run are found again in SLURM's queue."""
    return f"get3d:{run.key}"


def note_job(run: RunFolder, job: str, why: str, element: int | None = None) -> None:
    """Append a submitted job to the run's list; with ``element`` it is the successor of that one of an array.

    Raises: StorageError.
    """
    path = run.slurm_dir / "jobs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    newest = max(run.attempts(), default=0)
    row = {"id": job, "t": round(time.time(), 3), "why": why, "attempt": newest}
    line = json.dumps(row if element is None else {**row, "element": element}) + "\n"
    if not append_line(path, line.encode()):
        what = f"job {job} of {run.name} is queued, but cannot be written into {path}"
        raise StorageError(what, "make room there; launch.py status finds the job by its comment")


def jobs(run: RunFolder, element: int | None = None) -> list[str]:
    """Return the jobs that were submitted for a run, oldest first; or the successors of one ``element`` of an array."""
    rows = [row for row in read_rows(run.slurm_dir / "jobs.jsonl") if "id" in row]
    return [str(row["id"]) for row in rows if element is None or row.get("element") == element]


def since_submitted_s(run: RunFolder) -> float:
    """Return how long ago a person submitted the run last, about; 0 if never."""
    rows = read_rows(run.slurm_dir / "jobs.jsonl")
    times = [float(row["t"]) for row in rows if row.get("why") == SUBMITTED and "t" in row]
    return max(0.0, time.time() - times[-1]) if times else 0.0


def recent_outcomes(run: RunFolder, element: int | None) -> list[Outcome]:
    """Return the outcomes since a person last submitted the run: what is older spends no budget."""
    rows = [row for row in read_rows(run.slurm_dir / "jobs.jsonl") if row.get("why") == SUBMITTED]
    since = int(rows[-1].get("attempt", 0)) if rows else 0
    return [outcome for outcome in run.outcomes(element) if outcome.attempt > since]


def write_place(run: RunFolder, attempt: int, place: Place) -> None:
    """Write down where ``attempt`` runs, and where its batch output lies."""
    stem = f"{place.array}_{place.task}" if place.array else place.job
    output = f"slurm/{stem}_0_log.out"
    write_json(run.attempt_dir(attempt) / "slurm.json", asdict(place) | {"output": output})


def read_place(run: RunFolder, attempt: int) -> Place | None:
    """Return where ``attempt`` ran, or None if it was not started by SLURM."""
    data = read_or_nothing(run.attempt_dir(attempt) / "slurm.json")
    if data is None:
        return None
    data.pop("output", None)
    return Place(**data | {"hosts": tuple(data["hosts"])})


def output_of(run: RunFolder, attempt: int) -> Path | None:
    """Return the batch output of ``attempt``."""
    data = read_or_nothing(run.attempt_dir(attempt) / "slurm.json")
    return run.path / str(data["output"]) if data else None


def exits(run: RunFolder, attempt: int) -> list[Exit]:
    """Return how the workers of ``attempt`` ended, as far as the scripts that started them could write it."""
    found = []
    for path in run.attempt_dir(attempt).glob("exit.rank*"):
        text = path.read_text().strip()
        if text.isdigit():
            at = path.stat().st_mtime
            found.append(Exit(rank=int(path.name[9:]), code=code_from_shell(int(text)), at=at))
    return sorted(found, key=lambda end: end.rank)

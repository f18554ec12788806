"""The only reader of the environment: who this worker is, and on what it computes."""

import contextlib
import os
import platform
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from get3d_cluster.errors import UsageError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
CUBLAS_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Without it cuBLAS may choose another order of sums from call to call, and torch refuses to use it."""


@dataclass(frozen=True, kw_only=True)
class WorkerEnv:
    """Place of one worker in its attempt, in torchrun's words."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    node: int = 0
    attempt: int = 0
    """Number that the scheduler gave; 0 means that the worker was started by hand."""
    scheduler_job: str = ""
    """The scheduler's own name for the attempt, if rank 0 is to ask for the requeue."""
    element: int | None = None
    """Number within a job array, whose elements come back each alone; None: all ranks are one attempt."""
    hosts: tuple[str, ...] = ()
    """Nodes of the attempt; empty: this machine alone."""

    @property
    def is_lead(self) -> bool:
        """Whether this worker opens and closes its attempt: rank 0, or any element of an array."""
        return self.rank == 0 or self.element is not None


def read_worker_env() -> WorkerEnv:
    """Return what the scheduler told this worker; alone, rank 0 of 1.

    Raises: UsageError naming the variable that is not a number or out of range.
    """
    env = WorkerEnv(
        rank=_number("RANK", 0),
        local_rank=_number("LOCAL_RANK", 0),
        world_size=_number("WORLD_SIZE", 1),
        node=_number("GET3D_NODE", 0),
        attempt=_number("GET3D_ATTEMPT", 0),
        scheduler_job=os.environ.get("GET3D_SCHEDULER_JOB", ""),
        element=_number("GET3D_ELEMENT", -1) if os.environ.get("GET3D_ELEMENT") else None,
        hosts=tuple(name for name in os.environ.get("GET3D_HOSTS", "").split(",") if name) or (node_name(),),
    )
    if not 0 <= env.rank < env.world_size:
        raise UsageError(
            f"RANK={env.rank} is outside WORLD_SIZE={env.world_size}", "set both, or neither to run alone"
        )
    return env


def worker_variables(env: WorkerEnv, cpus: int, gpus: str = "") -> dict[str, str]:
    """Return the variables that make a child process the worker ``env``; the inverse of ``read_worker_env``."""
    variables = {
        "RANK": str(env.rank),
        "LOCAL_RANK": str(env.local_rank),
        "WORLD_SIZE": str(env.world_size),
        "GET3D_NODE": str(env.node),
        "GET3D_ATTEMPT": str(env.attempt),
        "GET3D_SCHEDULER_JOB": env.scheduler_job,
    }
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = gpus
    return variables | common_variables(cpus)


def common_variables(cpus: int) -> dict[str, str]:
    """Return the variables that all workers of an attempt need; ``cpus`` are the cores, and threads, of each."""
    return {"PYTHONUNBUFFERED": "1"} | CUBLAS_VARIABLES | dict.fromkeys(THREAD_VARIABLES, str(cpus))


def early_notices() -> Path | None:
    """Return the file in which whoever started this worker recorded signals that came before its handlers stood."""
    path = os.environ.get("GET3D_EARLY")
    return Path(path) if path else None


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """The SLURM job in which this process runs."""

    id: str
    """SLURM_JOB_ID: one of its own for each element of an array."""
    array: str = ""
    """Number that the elements of its array share, if it is one of them."""
    task: str = ""
    """Index in the array."""
    restarts: int = 0
    """How often SLURM has started the job anew."""
    nodes: str = ""
    """Node list as SLURM writes it, such as node[1-3]."""


@contextlib.contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Hide from what is started meanwhile that this process is a job: one that it submits must not inherit that."""
    names = (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "GET3D_NODE",
        "GET3D_ATTEMPT",
        "GET3D_ELEMENT",
        "GET3D_HOSTS",
    )
    kept = ("SLURM_CONF",)
    mine = {
        name: value
        for name, value in os.environ.items()
        if name not in kept
        and (name in names or name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")))
    }
    for name in mine:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(mine)


def slurm_job() -> SlurmJob | None:
    """Return the SLURM job in which this process runs, or None outside of one."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job:
        return None
    return SlurmJob(
        id=job,
        array=os.environ.get("SLURM_ARRAY_JOB_ID", ""),
        task=os.environ.get("SLURM_ARRAY_TASK_ID", ""),
        restarts=_number("SLURM_RESTART_COUNT", 0),
        nodes=os.environ.get("SLURM_JOB_NODELIST", ""),
    )


def device_of(env: WorkerEnv, gpus_per_worker: int) -> str:
    """Return what this worker computes on: the first of its own GPUs, or the CPU. For a GPU it imports torch.

    A scheduler may show a worker its own GPUs only, or all GPUs of the node: both are right here. More workers than
    GPUs share them.

    Raises: UsageError if no GPU can be used.
    """
    if not gpus_per_worker:
        return "cpu"
    import torch

    for name, value in CUBLAS_VARIABLES.items():
        os.environ.setdefault(name, value)  # a worker started by hand; read when CUDA is first used
    visible = torch.cuda.device_count()
    if not visible:
        raise UsageError(
            f"resources.gpus_per_worker={gpus_per_worker}, but torch {torch.__version__} sees no GPU on {host()} "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')})",
            "set resources.gpus_per_worker=0 to compute on the CPU, or check nvidia-smi and the build of torch",
        )
    return f"cuda:{env.local_rank * gpus_per_worker % visible}"


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with ``extra`` on top, for a child."""
    return {**os.environ, **extra}


def queue_folder() -> Path:
    """Return where the local scheduler keeps its state: GET3D_QUEUE, or the user's state folder."""
    if chosen := os.environ.get("GET3D_QUEUE"):
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "get3d_cluster" / "queue"


def num_slots() -> int:
    """Return how many cores the local scheduler gives out: GET3D_SLOTS, or those this process may use."""
    return _number("GET3D_SLOTS", len(os.sched_getaffinity(0)))


def host() -> str:
    """Return this machine's name."""
    return socket.gethostname()


def node_name() -> str:
    """Return what the scheduler calls this machine: SLURM may have a name of its own for it."""
    return os.environ.get("SLURMD_NODENAME") or host()


def boot_id() -> str:
    """Return a name of this machine's current boot, so that process ids are not mistaken after a restart."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def process_start(pid: int) -> str:
    """Return when process ``pid`` started (clock ticks since boot), or an empty text if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


@dataclass(frozen=True, kw_only=True)
class ProcessId:
    """A process, told apart from a later one with the same number."""

    host: str
    pid: int
    start: str
    boot: str

    @classmethod
    def mine(cls) -> "ProcessId":
        """Return the identity of this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """Return the identity of process ``pid`` of this machine."""
        return cls(host=host(), pid=pid, start=process_start(pid), boot=boot_id())

    def is_alive(self) -> bool | None:
        """Say whether the process lives; None if it is on another machine and cannot be told."""
        if self.host != host():
            return None
        return self.boot == boot_id() and bool(self.start) and process_start(self.pid) == self.start


def variables_set(names: Iterable[str]) -> dict[str, str]:
    """Return those of the variables ``names`` that are set, with their values."""
    return {name: os.environ[name] for name in names if name in os.environ}


def describe() -> dict[str, Any]:
    """Return what an attempt ran on, for env.json. No secrets: variables by name only where they are ours."""
    ours = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("GET3D_", "SLURM_", "OMP_", "CUDA_VISIBLE", "CUBLAS_"))
    }
    return {
        "host": host(),
        "boot": boot_id(),
        "python": sys.version,
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "variables": ours,
    }


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise UsageError(f"environment variable {name}={text!r} is not a number", f"unset {name}") from None

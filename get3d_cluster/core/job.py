"""What a run, an attempt and its end are. Pure values; the words are those of docs/architecture.md."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

FORMAT = 1
"""Version of spec.json, outcome.json and the checkpoint manifest."""


class Cause(StrEnum):
    """Why an attempt ended."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time-limit"
    SUSPENDED = "suspended"
    CANCELLED = "cancelled"
    NODE_FAILURE = "node-failure"
    REQUEUED = "requeued"
    CRASHED = "crashed"
    HUNG = "hung"
    DIVERGED = "diverged"
    FENCED = "fenced"
    REFUSED = "refused"
    """Usage, configuration or data: trying again would end the same."""


FREE_CAUSES = frozenset({Cause.PREEMPTED, Cause.TIME_LIMIT, Cause.NODE_FAILURE, Cause.REQUEUED})
"""Not the run's fault: it comes back at once, without spending its crash budget."""


class RunState(StrEnum):
    """What a run is doing, as `status` shows it."""

    NEW = "NEW"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    BACKING_OFF = "BACKING-OFF"
    HELD = "HELD"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    DONE = "DONE"
    LOST = "LOST"
    """Nothing of it runs or is queued although it is not finished; `resume` brings it back."""


CONTAINER_RUNTIMES = ("apptainer", "pyxis")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one attempt asks of the scheduler."""

    __changeable__: ClassVar[bool] = True

    nodes: int = 1
    """Machines; the local scheduler starts one process group for each."""
    workers_per_node: int = 1
    """Processes on each node."""
    cpus_per_worker: int = 1
    """Cores of each process; also its number of threads."""
    gpus_per_worker: int = 0
    """GPUs of each process; 0 computes on the CPU."""
    memory_gb: int = 0
    """Memory of each node in GB; 0 leaves it to the scheduler."""
    time_limit_min: int = 0
    """Longest attempt in minutes; 0 means none. At the limit the run is saved and comes back."""
    grace_s: float = 30.0
    """Seconds between the notice to stop and the kill."""
    priority: int = 0
    """The local scheduler preempts runs of lower priority when a higher one does not fit."""
    port: int = 0
    """TCP port at which the workers meet; 0 lets the system choose a free one."""
    partition: str = ""
    """SLURM partition, or several with commas; empty takes the cluster's default."""
    qos: str = ""
    """SLURM quality of service."""
    account: str = ""
    """SLURM account that is charged."""
    constraint: str = ""
    """Features that SLURM's nodes must have, such as a100|h100."""
    exclude: str = ""
    """SLURM nodes that are never used, such as node[3,7-9]; those that failed the run twice are added."""
    array: int = 0
    """Elements of a SLURM job array that share out the work items of a run, each started, preempted and brought back
    alone; 0 is one job. Only for jobs of kind items."""
    array_limit: int = 0
    """Elements that run at a time; 0 leaves it to SLURM."""
    container: str = ""
    """Image in which SLURM starts the workers: apptainer:IMAGE or pyxis:IMAGE."""
    mounts: tuple[str, ...] = ()
    """Folders that the container sees besides the run and the code, as OUTSIDE or OUTSIDE:INSIDE."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on SLURM's first node before the workers start, such as "module load cuda"."""
    sbatch: tuple[str, ...] = ()
    """Any further flags of sbatch, such as "--reservation=night"."""
    srun: tuple[str, ...] = ()
    """Any further flags of srun, such as "--cpu-bind=cores" for NUMA binding."""

    def __post_init__(self) -> None:
        for name in ("mounts", "setup", "sbatch", "srun"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON knows lists only
        for name in ("nodes", "workers_per_node", "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("gpus_per_worker", "memory_gb", "time_limit_min", "grace_s", "array", "array_limit"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port} must be between 0 and 65535")
        if self.container and self.container.partition(":")[0] not in CONTAINER_RUNTIMES:
            raise ValueError(f"container={self.container} must be apptainer:IMAGE or pyxis:IMAGE")
        for name in ("sbatch", "srun"):
            if wrong := [flag for flag in getattr(self, name) if not flag.startswith("-")]:
                raise ValueError(f"{name} has {wrong[0]!r}, which is no flag: write it as --name=value")

    @property
    def num_workers(self) -> int:
        """World size of an attempt."""
        return self.nodes * self.workers_per_node


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When state is saved and what is kept."""

    __changeable__: ClassVar[bool] = True

    every_s: float = 300.0
    """Seconds of training between periodic checkpoints; 0 saves on notice and at the end only."""
    auto: bool = False
    """Choose the period from what a save was measured to cost and how often work was lost, instead of
    ``every_s``: sqrt(2 * cost * training between losses). Source: Young 1974."""
    every_steps: int = 0
    """Steps between periodic checkpoints; 0 leaves it to ``every_s``."""
    keep_last: int = 2
    """Newest checkpoints that are kept."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of this step are kept for good; 0 keeps none."""
    background_mb: float = 4.0
    """States of at least so many megabytes are written by another process while training goes on; the worker writes
    smaller ones itself, which takes less than to hand them over."""
    local: str = ""
    """Folder on a fast disk or in memory of the node, such as /dev/shm/checkpoints, for more checkpoints in between;
    empty: none. Only for runs on one node: after a crash there they are newer than the run's own."""
    local_every_steps: int = 0
    """Steps between checkpoints in ``local``."""
    url: str = ""
    """A second place for checkpoints, such as s3://bucket/runs; empty: none. They are copied there once they are in the
    run's folder, the newest first; it may be slow, or fail, without harm to the run."""

    def __post_init__(self) -> None:
        if self.keep_last < 2:
            raise ValueError(
                f"keep_last={self.keep_last} must be at least 2: a damaged newest needs an older one"
            )
        for name in ("every_s", "every_steps", "keep_every_steps", "background_mb", "local_every_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if bool(self.local) != bool(self.local_every_steps):
            raise ValueError(
                f"local={self.local!r} and local_every_steps={self.local_every_steps} need each other: set both"
            )
        if self.local and "://" in self.local:
            raise ValueError(f"local={self.local} must be a folder")
        if self.url and "://" not in self.url:
            raise ValueError(f"url={self.url} must be a URL such as s3://bucket/runs")


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """How often a run comes back by itself. Preemptions and time limits are free while there is progress."""

    __changeable__: ClassVar[bool] = True

    max_crashes: int = 3
    """Crashes in a row without a new checkpoint after which the run is held for a person."""
    max_without_progress: int = 5
    """Attempts in a row that end without a new checkpoint, whatever the cause, before the run is held."""
    backoff_s: float = 5.0
    """Wait before the first return after a crash; doubles with each further one, up to ten minutes."""
    hang_s: float = 1800.0
    """Seconds without a step after which a worker counts as hung, is ended and comes back; 0 never. The start and a
    save get ten minutes at least."""

    def __post_init__(self) -> None:
        for name in ("max_crashes", "max_without_progress"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1: 1 never comes back by itself"
                )
        for name in ("backoff_s", "hang_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands."""

    step: int
    num_steps: int
    epoch: int = 0
    images: int = 0
    given_up: int = 0
    """Of the steps of a run of items, those that came to nothing, such as quarantined models."""


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What a run is: written once at submission as spec.json, beside config.yaml."""

    name: str
    job: str
    """Name of a module in ``jobs``, or a dotted module name."""
    kind: str
    """``steps``: all workers advance together and save checkpoints. ``items``: workers share out files."""
    created: str
    scheduler: str = "local"
    python: str = ""
    """Interpreter that starts the workers; empty means the one that submitted."""
    after: tuple[str, ...] = ()
    """Paths of the runs that must be DONE before this one starts."""
    format: int = FORMAT


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended: attempts/NNNN/outcome.json. Authoritative, where exit codes may get lost."""

    attempt: int
    cause: Cause
    exit_code: int
    start_step: int = 0
    end_step: int = 0
    saved_step: int = 0
    """Step of the newest published checkpoint when the attempt ended."""
    seconds: float = 0.0
    message: str = ""
    world_size: int = 1
    hosts: tuple[str, ...] = field(default_factory=tuple)
    """Nodes of the attempt."""
    failed_hosts: tuple[str, ...] = ()
    """Those of them that failed, as far as the scheduler says."""
    element: int | None = None
    """Number within a job array, whose elements come back each alone; None: the run is one job."""
    format: int = FORMAT

    @property
    def made_progress(self) -> bool:
        """Whether the run owns a later checkpoint than when the attempt began, or ended in order."""
        return self.saved_step > self.start_step or self.cause is Cause.FINISHED

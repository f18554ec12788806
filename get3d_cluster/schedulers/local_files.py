"""Files of the local scheduler, in the queue's folder and in the folder of a run.

inbox/*.json          requests; dropped by clients, removed by the queue process once the jobs reflect them
jobs/ID.json          one per pending or running run; written by the queue process alone
queue.json            who the queue process is and what it gives out; absent while there is none
queue.lock, queue.log
RUN/attempts/NNNN/    order.json (queue), processes.json, exit.json, supervisor.log (supervisor)

What every scheduler notes in the folder of a run is in ``notes``.
"""

import contextlib
import dataclasses
import os
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import get3d_cluster
from get3d_cluster.core.job import Cause, Resources
from get3d_cluster.errors import Get3dError, SchedulerError
from get3d_cluster.runtime import env
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.schedulers.local_plan import Capacity, Job
from get3d_cluster.schedulers.notes import read_or_nothing

START_TIMEOUT_S = 60
QUEUE_MODULE = "get3d_cluster.schedulers.local_queue"
ATTEMPT_MODULE = "get3d_cluster.schedulers.local_attempt"


class Kind(StrEnum):
    """What a client asks of the queue."""

    SUBMIT = "submit"
    STOP = "stop"
    REQUEUE = "requeue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One wish of a client."""

    kind: Kind
    run: str
    """Path of the run folder."""
    resources: Resources = field(default_factory=Resources)
    after: tuple[str, ...] = ()
    delay_s: float = 0.0
    cause: Cause = Cause.SUSPENDED
    now: bool = False

    @property
    def job(self) -> str:
        return job_id(RunFolder(Path(self.run)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What the queue hands to the supervisor of an attempt."""

    job: str
    resources: Resources
    gpus: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """A worker that its supervisor started."""

    rank: int
    process: ProcessId


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """Who runs an attempt."""

    supervisor: ProcessId
    started: float
    """Monotonic clock."""
    start_step: int
    workers: tuple[Worker, ...] = ()
    all_started: bool = False


def job_id(run: RunFolder) -> str:
    """Return the queue's name for a run: the same for every path that leads to its folder."""
    return run.key


class QueueFolder:
    """The queue's files."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.inbox = self.path / "inbox"
        self.jobs_dir = self.path / "jobs"
        self.process_path = self.path / "queue.json"
        self.lock_path = self.path / "queue.lock"
        self.log_path = self.path / "queue.log"

    def create(self) -> None:
        """Make the folders, closed to other users: who can drop a request can run programs."""
        try:
            for folder in (self.path, self.inbox, self.jobs_dir):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SchedulerError(
                f"cannot create the queue's folder {self.path}: {error.strerror}",
                "set GET3D_QUEUE to a folder of yours on this machine",
            ) from error

    def drop(self, request: Request) -> None:
        """Leave a request durably. Names sort in the order of the machine's clock since boot."""
        self.create()
        name = f"{time.monotonic_ns():020d}-{secrets.token_hex(3)}-{request.kind}-{request.job}.json"
        write_json(self.inbox / name, dataclasses.asdict(request))

    def requests(self) -> list[Path]:
        """Return the files of the waiting requests, oldest first."""
        return sorted(path for path in self.inbox.iterdir() if path.suffix == ".json")

    def is_submitted(self, job: str) -> bool:
        """Say whether a request that brings ``job`` into the queue waits."""
        ends = (f"-{Kind.SUBMIT}-{job}.json", f"-{Kind.REQUEUE}-{job}.json")
        return any(path.name.endswith(ends) for path in self.requests())

    def job(self, job: str) -> Job | None:
        data = read_or_nothing(self.jobs_dir / f"{job}.json")
        return None if data is None else _as_job(data)

    def jobs(self) -> list[Job]:
        found = [self.job(path.stem) for path in self.jobs_dir.iterdir() if path.suffix == ".json"]
        return [job for job in found if job]

    def put(self, job: Job) -> None:
        write_json(self.jobs_dir / f"{job.id}.json", dataclasses.asdict(job))

    def remove(self, job: str) -> None:
        (self.jobs_dir / f"{job}.json").unlink(missing_ok=True)

    def announce(self, capacity: Capacity) -> None:
        """Say that this process is the queue now."""
        data = {"process": dataclasses.asdict(ProcessId.mine()), "capacity": dataclasses.asdict(capacity)}
        write_json(self.process_path, data)

    def process(self) -> ProcessId | None:
        """Return who announced itself as the queue last, alive or not."""
        data = read_or_nothing(self.process_path)
        return None if data is None else ProcessId(**data["process"])

    def is_attended(self) -> bool:
        """Say whether a queue process lives here. Raises: SchedulerError if the folder is another machine's."""
        process = self.process()
        if process and process.is_alive() is None:
            raise SchedulerError(
                f"{self.process_path}: the local queue of this folder runs on host {process.host}",
                f"use the command on {process.host}, set GET3D_QUEUE to a folder of this machine, "
                "or remove that file if the host is gone",
            )
        return bool(process and process.is_alive())

    def capacity(self) -> Capacity | None:
        """Return what the living queue process gives out, or None if there is none."""
        data = read_or_nothing(self.process_path)
        if data is None or not ProcessId(**data["process"]).is_alive():
            return None
        return Capacity(slots=data["capacity"]["slots"], gpus=tuple(data["capacity"]["gpus"]))

    def is_empty(self) -> bool:
        """Say whether nothing is queued, running or asked for."""
        if not self.inbox.is_dir() or not self.jobs_dir.is_dir():
            return True
        return not self.requests() and not any(path.suffix == ".json" for path in self.jobs_dir.iterdir())

    def environment(self) -> dict[str, str]:
        """Return the environment in which one of our programs finds this very package and this folder."""
        inherited = env.child_environment({}).get("PYTHONPATH", "")
        path = search_path(source_root(), inherited)
        return env.child_environment({"PYTHONPATH": path, "GET3D_QUEUE": str(self.path)})

    def attend(self) -> None:
        """Make sure that a queue process looks after this folder; returns once it was started.

        It outlives this process, its shell and its terminal. Raises: SchedulerError with the log's path.
        """
        if self.is_attended():
            return
        self.create()
        with self.log_path.open("ab") as log:
            try:
                code = subprocess.run(
                    module_command(QUEUE_MODULE),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.path,
                    env=self.environment(),
                    start_new_session=True,
                    timeout=START_TIMEOUT_S,
                    check=False,
                ).returncode
            except (OSError, subprocess.TimeoutExpired) as error:
                raise SchedulerError(
                    f"cannot start the local queue: {error}", f"see {self.log_path}"
                ) from error
        if code != 0:
            raise SchedulerError(f"the local queue did not start (exit code {code})", f"see {self.log_path}")


def source_root() -> Path:
    """Return the folder from which this package was imported."""
    return Path(get3d_cluster.__file__).resolve().parents[1]


def module_command(module: str, *arguments: str) -> list[str]:
    """Return how to start one of our own programs, whatever lies in the current folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


def search_path(first: Path, inherited: str) -> str:
    """Return a PYTHONPATH that begins with ``first`` and holds no other copy of this package's own root."""
    mine = (str(first), str(source_root()))
    rest = [entry for entry in inherited.split(os.pathsep) if entry and entry not in mine]
    return os.pathsep.join([str(first), *rest])


def read_request(path: Path) -> Request | None:
    """Return the request in a file of the inbox, or None if it makes no sense."""
    with contextlib.suppress(Get3dError, KeyError, TypeError, ValueError):
        data = read_json(path)
        values = data | {
            "kind": Kind(data["kind"]),
            "cause": Cause(data["cause"]),
            "after": tuple(data["after"]),
        }
        return Request(**values | {"resources": Resources(**data["resources"])})
    return None


def write_order(run: RunFolder, attempt: int, order: Order) -> None:
    """Hand ``order`` to the supervisor that is about to be started."""
    write_json(run.attempt_dir(attempt) / "order.json", dataclasses.asdict(order))


def read_order(run: RunFolder, attempt: int) -> Order:
    """Return what ``attempt`` was started with."""
    data = read_json(run.attempt_dir(attempt) / "order.json")
    return Order(job=data["job"], resources=Resources(**data["resources"]), gpus=tuple(data["gpus"]))


def claim(run: RunFolder, attempt: int, processes: Processes) -> bool:
    """Write processes.json unless it is there; of several claimants one wins, and no one ever sees half a file."""
    target = _processes_path(run, attempt)
    aside = target.with_name(f".claim-{os.getpid()}")
    write_json(aside, dataclasses.asdict(processes))
    try:
        target.hardlink_to(aside)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True


def write_processes(run: RunFolder, attempt: int, processes: Processes) -> None:
    """Replace what ``claim`` wrote, by its winner."""
    write_json(_processes_path(run, attempt), dataclasses.asdict(processes))


def read_processes(run: RunFolder, attempt: int) -> Processes | None:
    """Return who runs ``attempt``, or None if no supervisor has come up yet."""
    data = read_or_nothing(_processes_path(run, attempt))
    if data is None:
        return None
    workers = tuple(
        Worker(rank=worker["rank"], process=ProcessId(**worker["process"])) for worker in data["workers"]
    )
    return Processes(**data | {"supervisor": ProcessId(**data["supervisor"]), "workers": workers})


def _processes_path(run: RunFolder, attempt: int) -> Path:
    return run.attempt_dir(attempt) / "processes.json"


def _as_job(data: dict[str, Any]) -> Job:
    lists = {name: tuple(data[name]) for name in ("after", "gpus")}
    stop = Cause(data["stop"]) if data["stop"] else None
    return Job(**data | lists | {"stop": stop, "resources": Resources(**data["resources"])})

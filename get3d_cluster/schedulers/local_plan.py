"""Decisions of the local scheduler. Pure: who starts, who is preempted, what is due now, why a run waits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from get3d_cluster.core.job import Cause, Resources
from get3d_cluster.errors import UsageError

SUPERVISOR_REST_S = 10.0
"""After the workers were killed, what the supervisor of an attempt gets to write down how they ended."""
USER_CAUSES = (Cause.SUSPENDED, Cause.CANCELLED)
"""A person wants the run to stay away until a person brings it back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """Cores and GPUs."""

    slots: int = 0
    gpus: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(slots=self.slots + other.slots, gpus=self.gpus + other.gpus)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(slots=self.slots - other.slots, gpus=self.gpus - other.gpus)

    def fits(self, room: "Amount") -> bool:
        """Say whether this amount can be taken from ``room``; one that needs no GPU does not mind that none is left."""
        return self.slots <= room.slots and (not self.gpus or self.gpus <= room.gpus)


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What the machine has."""

    slots: int
    gpus: tuple[str, ...] = ()

    @property
    def amount(self) -> Amount:
        return Amount(slots=self.slots, gpus=len(self.gpus))


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run in the local queue. Times are of the monotonic clock of boot ``boot``; another boot makes them void."""

    id: str
    run: str
    """Path of the run folder."""
    resources: Resources
    sequence: int
    """Place in the queue; lower is earlier."""
    boot: str
    after: tuple[str, ...] = ()
    """Paths of the runs that must be DONE first."""
    refilled_at: int = 0
    """Number of the newest attempt when a person last submitted the run; the crash budget starts after it."""
    not_before: float = 0.0
    why: str = ""
    """What it waits for, while pending."""
    attempt: int = 0
    """Attempt that runs, or 0 while pending."""
    started: float = 0.0
    gpus: tuple[str, ...] = ()
    """GPUs of the running attempt, in the order of its ranks."""
    stop: Cause | None = None
    """Why the attempt has to leave; the notice is given as soon as all its workers were started."""
    now: bool = False
    """The attempt gets no grace."""
    kill_at: float | None = None
    """When the workers are killed; None until the notice is given."""
    again: bool = False
    """A person resumed the run while its attempt was leaving: it comes back whatever the policy says."""

    @property
    def is_running(self) -> bool:
        return self.attempt > 0

    @property
    def need(self) -> Amount:
        return needed(self.resources)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moves:
    """What the queue does next: jobs to start and to preempt, and why each remaining pending job waits."""

    starts: tuple[str, ...]
    preempts: tuple[str, ...]
    whys: Mapping[str, str]


def needed(resources: Resources) -> Amount:
    """Return what all workers of an attempt take together."""
    workers = resources.num_workers
    return Amount(slots=workers * resources.cpus_per_worker, gpus=workers * resources.gpus_per_worker)


def check_can_fit(resources: Resources, capacity: Capacity) -> None:
    """Raise UsageError if ``resources`` are more than the whole machine has."""
    need = needed(resources)
    shape = f"nodes={resources.nodes} x workers_per_node={resources.workers_per_node}"
    if need.slots > capacity.slots:
        raise UsageError(
            f"{shape} x cpus_per_worker={resources.cpus_per_worker} need {need.slots} cores; "
            f"the local scheduler has {capacity.slots}",
            "lower resources.workers_per_node or resources.cpus_per_worker, "
            "or set GET3D_SLOTS to share cores between workers",
        )
    if need.gpus > len(capacity.gpus):
        raise UsageError(
            f"{shape} x gpus_per_worker={resources.gpus_per_worker} need {need.gpus} GPUs; "
            f"this machine shows {len(capacity.gpus)}",
            "set resources.gpus_per_worker=0 to compute on the CPU, or check nvidia-smi -L and CUDA_VISIBLE_DEVICES",
        )


def moves(jobs: Sequence[Job], capacity: Capacity, waiting: Mapping[str, str]) -> Moves:
    """Decide who starts and who is preempted.

    Pending jobs are served by priority, then in order of submission; one that does not fit lets later ones pass
    unless the room it waits for is already being cleared. ``waiting`` names what keeps a job from starting even if
    there were room.
    """
    running = [job for job in jobs if job.is_running]
    free = capacity.amount - _total(running)
    # Room once those that leave are gone: what a job claims of it must not go to another one in the meantime.
    later = free + _total(job for job in running if job.stop)
    starts: list[str] = []
    preempts: list[str] = []
    whys: dict[str, str] = {}
    for job in sorted((job for job in jobs if not job.is_running), key=_service_order):
        if job.id in waiting:
            whys[job.id] = waiting[job.id]
        elif job.need.fits(free) and job.need.fits(later):
            starts.append(job.id)
            free, later = free - job.need, later - job.need
        else:
            whys[job.id] = _why_no_room(job, capacity)
            victims = _victims(
                job, later, [job for job in running if not job.stop and job.id not in preempts]
            )
            if victims is not None:
                preempts += [victim.id for victim in victims]
                later = later + _total(victims) - job.need
    return Moves(starts=tuple(starts), preempts=tuple(preempts), whys=whys)


def free_gpus(jobs: Iterable[Job], capacity: Capacity) -> list[str]:
    """Return the GPUs that no running job holds."""
    taken = {gpu for job in jobs if job.is_running for gpu in job.gpus}
    return [gpu for gpu in capacity.gpus if gpu not in taken]


def due_stop(job: Job, now: float) -> Cause | None:
    """Return why a running job has to be told to leave by itself: its time limit has come."""
    limit_s = job.resources.time_limit_min * 60
    return Cause.TIME_LIMIT if limit_s and not job.stop and now >= job.started + limit_s else None


def kill_time(job: Job, now: float) -> float:
    """Return when the workers are killed if the notice is given ``now``."""
    return now if job.now else now + job.resources.grace_s


def _service_order(job: Job) -> tuple[int, int]:
    return -job.resources.priority, job.sequence


def _total(jobs: Iterable[Job]) -> Amount:
    return sum((job.need for job in jobs), Amount())


def _why_no_room(job: Job, capacity: Capacity) -> str:
    need = job.need
    parts = [f"{need.slots} of {capacity.slots} slots"]
    if need.gpus:
        parts.append(f"{need.gpus} of {len(capacity.gpus)} GPUs")
    return f"waits for {' and '.join(parts)}"


def _victims(job: Job, later: Amount, running: Sequence[Job]) -> list[Job] | None:
    """Return the fewest low and young jobs whose leaving makes ``job`` fit ([] if it will fit anyway), or None."""
    lower = [other for other in running if other.resources.priority < job.resources.priority]
    chosen: list[Job] = []
    for other in sorted(lower, key=lambda other: (other.resources.priority, -other.started)):
        if job.need.fits(later + _total(chosen)):
            break
        chosen.append(other)
    if not job.need.fits(later + _total(chosen)):
        return None
    for other in reversed(chosen):
        rest = [kept for kept in chosen if kept is not other]
        if job.need.fits(later + _total(rest)):
            chosen = rest
    return chosen

"""What a scheduler has to do: seven verbs. To add one: a module with them, and a line in ``schedulers/__init__``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.runtime.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a scheduler knows of a run."""

    state: str
    """``absent``, ``pending``, ``running`` or ``unknown`` (the scheduler does not answer)."""
    why: str = ""
    """One phrase: what it waits for, or where it runs."""
    job: str = ""
    """The scheduler's own name for it."""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StopReason:
    """Why an attempt is told to stop, and how long it has."""

    cause: Cause
    grace_s: float | None = None
    """Seconds from the notice to the kill; None if the scheduler does not say."""


class Scheduler(Protocol):
    """Starts attempts of runs. All arguments are facts of the run folder; nothing is pickled but one path."""

    def plan(self, run: RunFolder, resources: Resources, after: Sequence[RunFolder] = ()) -> str:
        """Return, as text for people, what ``submit`` would ask for. No side effect.

        Raises: UsageError if the request can never be met here, naming the key, the value and the way out.
        """
        ...

    def submit(
        self, run: RunFolder, resources: Resources, after: Sequence[RunFolder] = (), delay_s: float = 0
    ) -> str:
        """Queue an attempt that starts once all ``after`` are DONE; return the scheduler's name for it.

        Raises: UsageError as ``plan``; SchedulerError if the scheduler refuses or cannot be reached.
        """
        ...

    def standing(self, run: RunFolder) -> Standing:
        """Return what the scheduler knows of the run now. Never raises for an unreachable scheduler."""
        ...

    def stop_reason(self, run: RunFolder, attempt: int) -> StopReason:
        """Return why ``attempt`` was told to stop. Called by the worker after a notice; PREEMPTED when in doubt."""
        ...

    def stop(self, run: RunFolder, cause: Cause, *, now: bool = False) -> None:
        """Ask the running attempt to stop (or drop a pending one) with ``cause`` SUSPENDED, CANCELLED or PREEMPTED.

        With ``now`` the attempt is killed without its grace. Raises: SchedulerError.
        """
        ...

    def requeue(self, run: RunFolder, resources: Resources, delay_s: float = 0) -> None:
        """Bring the run back once its present attempt has left, ``delay_s`` later. Calling it twice is harmless."""
        ...

    def post_mortem(self, run: RunFolder, attempt: int) -> Outcome | None:
        """Return how an attempt ended that left no word, as far as the scheduler knows; writes nothing.

        None if it does not know, or if the attempt lives. Never raises for an unreachable scheduler.
        """
        ...

"""How an attempt ended whose rank 0 could not say it: the outcome made from the exits of its workers. Nearly pure."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from get3d_cluster.core.job import Cause, Outcome
from get3d_cluster.errors import ExitCode
from get3d_cluster.schedulers.notes import Notice

ORDERLY_CODES = (ExitCode.SUSPENDED, ExitCode.SUSPENDED_PERIODIC, ExitCode.CANCELLED)
"""A worker with such a code saw a stop; rank 0 leaves last and may be saving for as long as the grace."""

CAUSES = {
    ExitCode.USAGE: Cause.REFUSED,
    ExitCode.NO_CHECKPOINT: Cause.REFUSED,
    ExitCode.SUSPENDED: Cause.PREEMPTED,
    ExitCode.SUSPENDED_PERIODIC: Cause.PREEMPTED,
    ExitCode.FENCED: Cause.FENCED,
    ExitCode.CANCELLED: Cause.CANCELLED,
    ExitCode.HELD: Cause.DIVERGED,
    ExitCode.HUNG: Cause.HUNG,
}
"""What an exit code says if rank 0 could not write the outcome; any other failure is a crash."""

FAILURES = (Cause.CRASHED, Cause.HUNG, Cause.REFUSED, Cause.FENCED, Cause.DIVERGED)
"""Causes of a notice that only tells the other workers of a failed one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How a worker ended: its exit code, or minus the signal that killed it."""

    rank: int
    code: int
    at: float
    """Monotonic clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """Facts at the end of an attempt from which the outcome is made if rank 0 left none."""

    attempt: int
    exits: tuple[Exit, ...]
    notice: Notice | None
    start_step: int
    saved_step: int
    end_step: int
    """Last step that is known to be done, saved or not."""
    seconds: float
    world_size: int
    is_done: bool
    hosts: tuple[str, ...]
    element: int | None = None
    failure: str = ""
    """What the worker that failed first left about it, if it could."""
    last_words: str = ""
    """Last line in the log of the worker that failed first."""


def first_failure(exits: Sequence[Exit]) -> Exit | None:
    """Return the exit that most likely brought the others down.

    The earliest; among those seen at the same moment a signal before an error before an orderly leave, since peers
    of a killed worker fail within milliseconds when their connection closes.
    """
    failures = [end for end in exits if end.code != 0]
    return min(failures, key=lambda end: (end.at, _order_of_guilt(end.code), end.rank), default=None)


def code_from_shell(status: int) -> int:
    """Return a worker's exit code from the status that a shell saw: minus the signal if one killed it.

    >>> code_from_shell(137), code_from_shell(75)
    (-9, 75)
    """
    return 128 - status if status > 128 else status


def describe_exit(end: Exit) -> str:
    """Return an exit as people say it.

    >>> describe_exit(Exit(rank=3, code=-9, at=0.0))
    'rank 3 was killed by SIGKILL'
    """
    if end.code >= 0:
        return f"rank {end.rank} exited {end.code}"
    return f"rank {end.rank} was killed by {signal.Signals(-end.code).name}"


def cause_of(end: Exit | None, *, is_done: bool) -> Cause:
    """Return why an attempt ended whose workers were not told to stop, from its first failure."""
    if end is None:
        return Cause.FINISHED if is_done else Cause.CRASHED
    return CAUSES.get(ExitCode(end.code), Cause.CRASHED) if end.code in list(ExitCode) else Cause.CRASHED


def missing_outcome(ending: Ending) -> Outcome:
    """Return the outcome of an attempt whose rank 0 could not write it."""
    end = first_failure(ending.exits)
    told = is_told(ending.notice)
    cause = ending.notice.cause if ending.notice else cause_of(end, is_done=ending.is_done)
    what = describe_exit(end) if end else "all workers exited 0 without an outcome"
    if not told and (ending.failure or ending.last_words):
        what = ending.failure or f"{what}: {ending.last_words}"
    if told:
        stands = (
            f"checkpoint of step {ending.saved_step}" if ending.saved_step else "state from before the run"
        )
        what = f"{what} after the notice ({cause}): only the {stands} stands"
    return Outcome(
        attempt=ending.attempt,
        cause=cause,
        exit_code=exit_code_of(cause, end),
        start_step=ending.start_step,
        end_step=max(ending.end_step, ending.saved_step),
        saved_step=ending.saved_step,
        seconds=round(ending.seconds, 3),
        message=what,
        world_size=ending.world_size,
        hosts=ending.hosts,
        element=ending.element,
    )


def corrected(outcome: Outcome, end: Exit | None) -> Outcome:
    """Return the outcome that rank 0 wrote, with the reason if another worker was killed, which it could not know."""
    if outcome.cause is not Cause.CRASHED or end is None or end.code >= 0 or end.rank == 0:
        return outcome
    way_out = (
        "the run comes back from its newest checkpoint; if it was not you, see the machine's memory (dmesg)"
    )
    message = f"{describe_exit(end)}\n{way_out}"
    return replace(outcome, exit_code=int(ExitCode.BUG), message=message)


def exit_code_of(cause: Cause, end: Exit | None) -> int:
    """Return the exit code that goes with ``cause`` when nothing could be saved at the end."""
    codes = {
        Cause.FINISHED: ExitCode.FINISHED,
        Cause.CANCELLED: ExitCode.CANCELLED,
        Cause.FENCED: ExitCode.FENCED,
        Cause.HUNG: ExitCode.HUNG,
        Cause.DIVERGED: ExitCode.HELD,
    }
    if cause in (Cause.CRASHED, Cause.REFUSED):
        return end.code if end and end.code > 0 else ExitCode.BUG
    return codes.get(cause, ExitCode.SUSPENDED_PERIODIC)


def last_words_of(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def is_told(notice: Notice | None) -> bool:
    """Say whether somebody wants the attempt to leave, rather than one worker taking the others along."""
    return notice is not None and notice.cause not in FAILURES


def _order_of_guilt(code: int) -> int:
    if code < 0:
        return 0
    return 2 if code in ORDERLY_CODES else 1

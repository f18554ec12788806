"""Which runs are stopped and which come back, what a person is told of it, and the wait until one has left."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence

from get3d_cluster.cli import status, submission
from get3d_cluster.cli.endings import write_post_mortems
from get3d_cluster.cli.facts import Inquiry, gather
from get3d_cluster.cli.output import duration, say
from get3d_cluster.config import read_section
from get3d_cluster.core.job import Cause, Resources, RunState
from get3d_cluster.errors import Get3dError, SchedulerError, UsageError
from get3d_cluster.runtime import lease
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import open_scheduler
from get3d_cluster.schedulers.base import Scheduler

LEAVE_S = 180.0
"""Longest wait for a run that was told to leave, beyond its grace: a cluster takes a minute to let go of a job."""
FIRST_POLL_S = 0.1
LONGEST_POLL_S = 2.0
"""Between two questions: a local run leaves within a second, a controller is not asked more often than this."""
PROGRESS_S = 5.0
"""Between two lines about a run that takes its time, where a line cannot be overwritten."""
RESUMED_BY_ALL = (RunState.SUSPENDED, RunState.LOST)
STOPPED_BY_A_PERSON: Mapping[Cause, RunState] = {
    Cause.SUSPENDED: RunState.SUSPENDED,
    Cause.CANCELLED: RunState.CANCELLED,
}
LEFT_BEHIND: Mapping[Cause, Sequence[RunState]] = {
    Cause.CRASHED: (RunState.LOST, RunState.HELD),
    Cause.HUNG: (RunState.LOST, RunState.HELD),
    Cause.DIVERGED: (RunState.LOST, RunState.HELD),
    Cause.REFUSED: (RunState.FAILED,),
}
"""The states to which a cause itself leads; any other one leaves a run LOST at worst."""


def stop(run: RunFolder, cause: Cause, *, now: bool, wait: bool) -> None:
    """Stop a run and say what that means in its present state.

    Raises: SchedulerError if its scheduler does not answer; UsageError for a run that a person started by hand.
    """
    scheduler = open_scheduler(run.spec().scheduler)
    standing = scheduler.standing(run)
    row = status.row_of(gather(run))
    if standing.state == "unknown":
        raise SchedulerError(f"the scheduler does not answer: {standing.why}", "try again later")
    if standing.state == "absent" and row.state == RunState.RUNNING:
        raise UsageError(f"{run.name} was started by hand, not queued: {_by_whom(run)}", _by_hand(run))
    if standing.state == "absent":
        why = f" ({row.why})" if row.why else ""
        say(f"{run.name} is {row.state}{why}: nothing to stop")
        return
    scheduler.stop(run, cause, now=now)
    say(_answer(run, cause, standing.state, now=now))
    if wait and standing.state == "running":
        attempt = max(run.attempts(), default=0)
        say(_after_leaving(run, scheduler, attempt))


def resumable(found: Sequence[RunFolder], cause: Cause | None) -> list[RunFolder]:
    """Return the runs that ``resume --cause`` means; without a cause those of ``resume --all``.

    Writes down first how attempts ended that left no word. Raises: StorageError.
    """
    for run in found:
        write_post_mortems(run)
    rows = [status.row_of(facts) for facts in Inquiry().look(found)]
    return [run for run, row in zip(found, rows, strict=True) if is_wanted(row, cause)]


def is_wanted(row: status.Row, cause: Cause | None) -> bool:
    """Say whether a run comes back; what a person stopped since its last attempt only if that is asked for."""
    if cause is None:
        return row.state in RESUMED_BY_ALL
    if cause in STOPPED_BY_A_PERSON:
        return row.state == STOPPED_BY_A_PERSON[cause]
    return cause in (row.last_cause, *row.last_causes) and row.state in LEFT_BEHIND.get(
        cause, (RunState.LOST,)
    )


def resume_many(chosen: Sequence[RunFolder]) -> None:
    """Resume each run; one that fails does not keep the others from coming back. Raises: SchedulerError."""
    failed = []
    for run in chosen:
        try:
            submitted = submission.resume(run)
        except Get3dError as error:
            failed.append(f"{run.name} ({error.what})")
            continue
        say(f"{run.name} {submitted.state} {submitted.job}".rstrip())
    if not chosen:
        say("nothing to resume")
    if failed:
        raise SchedulerError(f"not resumed: {'; '.join(failed)}", "mend that, then give the same command")


def _after_leaving(run: RunFolder, scheduler: Scheduler, attempt: int) -> str:
    """Wait until the scheduler has let go of the run; say how ``attempt``, the one that was stopped, ended.

    A scheduler that does not answer meanwhile is asked again. Ctrl-C ends the waiting alone.
    """
    begun_s, poll_s, line = time.monotonic(), FIRST_POLL_S, WaitingLine()
    longest_s = LEAVE_S + read_section(Resources, run.config_path, "resources").grace_s
    later = f"watch it with: python launch.py status {run.path} --watch"
    with line:
        while (standing := scheduler.standing(run)).state in ("running", "unknown"):
            waited_s = time.monotonic() - begun_s
            if waited_s > longest_s:
                return f"{run.name} is still leaving after {duration(waited_s)}: {standing.why}; {later}"
            line.show(
                f"  leaving for {duration(waited_s)}{f': {standing.why}' if standing.why else ''}", waited_s
            )
            try:
                time.sleep(poll_s)
            except KeyboardInterrupt:
                return f"{run.name} is still leaving; {later}"
            poll_s = min(2 * poll_s, LONGEST_POLL_S)
    outcome = run.outcome(attempt) if attempt else None
    return f"{run.name}: {outcome.cause}, {outcome.message}" if outcome else f"{run.name} has left"


class WaitingLine:
    """One line that is overwritten on a terminal, and repeated now and then elsewhere; none for a short wait."""

    def __init__(self) -> None:
        self._is_live = sys.stdout.isatty()
        self._shown_s = 0.0
        self._is_open = False

    def __enter__(self) -> "WaitingLine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_open:
            sys.stdout.write("\r\033[2K")
            sys.stdout.flush()

    def show(self, text: str, waited_s: float) -> None:
        """Show ``text``, the wait having taken ``waited_s``."""
        if self._is_live:
            sys.stdout.write(f"\r\033[2K{text[: shutil.get_terminal_size().columns - 1]}")
            sys.stdout.flush()
            self._is_open = True
        elif waited_s - self._shown_s >= PROGRESS_S:
            say(text)
            self._shown_s = waited_s


def _answer(run: RunFolder, cause: Cause, state: str, *, now: bool) -> str:
    back = f"; bring it back with: python launch.py resume {run.path}"
    if state == "pending":
        stopped = "cancelled" if cause is Cause.CANCELLED else "suspended"
        return f"{stopped} {run.name}: it did not run, and is out of the queue{back}"
    verb = "cancelling" if cause is Cause.CANCELLED else "suspending"
    how = " now: its last checkpoint stands" if now else ": it saves first"
    return f"{verb} {run.name}{how}{back if cause is Cause.SUSPENDED else ''}"


def _by_whom(run: RunFolder) -> str:
    held = lease.read_lease(run.lease_path) or {}
    return f"pid {held.get('pid', '?')} on {held.get('host', '?')}"


def _by_hand(run: RunFolder) -> str:
    held = lease.read_lease(run.lease_path) or {}
    return f"it saves and leaves on: kill -TERM {held.get('pid', 'PID')}"

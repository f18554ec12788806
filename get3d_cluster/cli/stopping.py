"""Which runs are stopped and which come back, what a person is told of it, and the wait until one has left."""

import time
from collections.abc import Mapping, Sequence

from get3d_cluster.cli import status, submission
from get3d_cluster.cli.facts import gather
from get3d_cluster.cli.output import say
from get3d_cluster.core.job import Cause, RunState
from get3d_cluster.errors import Get3dError, SchedulerError, UsageError
from get3d_cluster.runtime import lease
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import open_scheduler
from get3d_cluster.schedulers.base import Scheduler

LEAVE_S = 120.0
"""Longest wait for a run that was told to leave."""
LEAVE_POLL_S = 0.1
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
        say(_after_leaving(run, scheduler))


def resumable(found: Sequence[RunFolder], cause: Cause | None) -> list[RunFolder]:
    """Return the runs that ``resume --cause`` means; without a cause those of ``resume --all``."""
    return [run for run in found if is_wanted(status.row_of(gather(run)), cause)]


def is_wanted(row: status.Row, cause: Cause | None) -> bool:
    """Say whether a run comes back; what a person stopped since its last attempt only if that is asked for."""
    if cause is None:
        return row.state in RESUMED_BY_ALL
    if cause in STOPPED_BY_A_PERSON:
        return row.state == STOPPED_BY_A_PERSON[cause]
    return row.last_cause == cause and row.state in LEFT_BEHIND.get(cause, (RunState.LOST,))


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


def _after_leaving(run: RunFolder, scheduler: Scheduler) -> str:
    """Wait until the scheduler has let go of the run; say how its last attempt ended."""
    end_s = time.monotonic() + LEAVE_S
    while scheduler.standing(run).state == "running":
        if time.monotonic() > end_s:
            return f"{run.name} is still leaving; watch it with: python launch.py status {run.path}"
        time.sleep(LEAVE_POLL_S)
    outcomes = run.outcomes()
    return f"{run.name}: {outcomes[-1].cause}, {outcomes[-1].message}" if outcomes else f"{run.name} has left"


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

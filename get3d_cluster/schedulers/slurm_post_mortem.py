"""How attempts ended, and why running ones have to leave, from what SLURM says: its queue, accounting and output."""

import contextlib
import time

from get3d_cluster.core.job import Cause, Outcome
from get3d_cluster.errors import SchedulerError
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import notes, slurm_files, slurm_plan, slurm_query
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.schedulers.ending import exit_code_of
from get3d_cluster.schedulers.slurm_files import Place
from get3d_cluster.schedulers.slurm_query import PastRow

ASK_S = 1.0
"""Longest wait of a worker for SLURM's word about its end, twice at most: the save comes after it."""


def asked_reason(place: Place, *, timeout_s: float = ASK_S, past_state: str = "") -> StopReason:
    """Return what SLURM says about why a job has to leave; PREEMPTED when it says nothing.

    Without ``past_state``, from the accounting, a preemption without GraceTime looks like a requeue by hand.
    """
    try:
        record = slurm_query.job_record(place.job, timeout_s=timeout_s)
    except SchedulerError:
        return StopReason(cause=Cause.PREEMPTED)
    return slurm_plan.cause_of(
        record,
        place.restarts,
        kill_wait_s=place.kill_wait_s,
        now=time.time(),
        warning_s=place.warning_s,
        past_state=past_state,
        promised_s=place.grace_s,
    )


def past_of(place: Place) -> PastRow | None:
    """Return what the accounting knows of an attempt; None if nothing, or if it does not answer."""
    past = slurm_query.past(place.name)
    return past[place.restarts] if len(past) > place.restarts else None


def state_of(past: PastRow | None) -> str:
    """Return what the accounting calls the end of an attempt; empty while it runs, or if nobody knows."""
    state = past.state if past else ""
    return "" if state.startswith(("RUNNING", "PENDING", "COMPLETING")) else state


def obituary(run: RunFolder, attempt: int, place: Place) -> Outcome:
    """Return the outcome of an attempt that is over and left no word."""
    cause, message, failed = how_ended(run, attempt, place)
    return Outcome(
        attempt=attempt,
        cause=cause,
        exit_code=exit_code_of(cause, None),
        start_step=place.start_step,
        end_step=max(place.start_step, run.reached_step(attempt)),
        saved_step=run.saved_step(),
        message=message,
        world_size=max(1, len(slurm_files.exits(run, attempt))),
        hosts=place.hosts,
        failed_hosts=failed,
        element=place.element,
    )


def how_ended(run: RunFolder, attempt: int, place: Place) -> tuple[Cause, str, tuple[str, ...]]:
    """Return cause, words and failed nodes of an attempt that is over and left no outcome.

    SLURM's accounting says it, or else what SLURM wrote into the batch output; without both it counts as requeued.
    """
    notice, past = notes.read_notice(run, attempt), past_of(place)
    state = state_of(past) or slurm_plan.last_cancellation(_output(run, attempt))
    cause, words = slurm_plan.ending_of(state, past.exit_code if past else "")
    is_lost = cause is Cause.NODE_FAILURE
    failed = failed_nodes(run, attempt, place, past) if is_lost else past.failed_nodes if past else ()
    if notice is not None:
        cause = notice.cause
    return cause, f"{words}: only step {run.saved_step()} stands", failed


def failed_nodes(run: RunFolder, attempt: int, place: Place, past: PastRow | None) -> tuple[str, ...]:
    """Return the nodes that an attempt lost: those that the accounting names, or srun, or that are down now."""
    if past and past.failed_nodes:
        return past.failed_nodes
    told = slurm_plan.told_failures(_output(run, attempt), f"attempt {attempt} of {run.name} on ")
    return told or slurm_query.down_nodes(place.hosts)  # not those that are back already


def _output(run: RunFolder, attempt: int) -> str:
    """Return the end of an attempt's batch output."""
    path = slurm_files.output_of(run, attempt)
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")[-8192:] if path else ""
    return ""

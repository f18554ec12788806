"""Last act of a batch script: ``python -m get3d_cluster.schedulers.slurm_end RUN CODE``, once all workers have left.

Writes the outcome if rank 0 could not, mends one that a worker without ``scontrol`` had to guess, and brings the run
back if the policy says so. It is here, not in rank 0, since asking SLURM for a requeue ends everything that still runs
within a tenth of a second, and since a container may have no ``scontrol``.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from get3d_cluster.config import read_section, read_section_or_default
from get3d_cluster.core.job import Cause, Outcome, Resources, RetryConfig
from get3d_cluster.core.policy import Action, after_attempt
from get3d_cluster.errors import Get3dError, SchedulerError, UsageError
from get3d_cluster.runtime import env, failures, lease, watchdog
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import notes, slurm_files, slurm_query
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.schedulers.ending import (
    Ending,
    Exit,
    code_from_shell,
    corrected,
    first_failure,
    last_words_of,
    missing_outcome,
)
from get3d_cluster.schedulers.notes import Notice
from get3d_cluster.schedulers.slurm import SlurmScheduler
from get3d_cluster.schedulers.slurm_files import Place
from get3d_cluster.schedulers.slurm_post_mortem import asked_reason, failed_nodes, obituary, past_of, state_of

RULED = (Cause.PREEMPTED, Cause.TIME_LIMIT, Cause.CANCELLED, Cause.NODE_FAILURE, Cause.REQUEUED)
"""What SLURM says of a job that leaves, where a worker that could not ask took it for a preemption."""


def end(path: Path, code: int) -> str:
    """Settle the attempt of the job in which this process runs; return what was done, for the batch output."""
    run = RunFolder.open(path)
    worker = env.read_worker_env()
    attempt = worker.attempt
    place = slurm_files.read_place(run, attempt)
    if place is None:
        raise UsageError(f"attempt {attempt} of {run.path} has no slurm.json", "start it by launch.py submit")
    outcome = settled(run, attempt, place, code)
    if outcome != run.outcome(attempt):
        run.write_outcome(outcome)
    said = f"attempt {attempt} of {run.name}: {outcome.cause}"
    if is_superseded(run, attempt, place):
        return f"{said}; a newer attempt owns the run"
    retry = read_section_or_default(RetryConfig, run.config_path, "retry")
    decision = after_attempt(slurm_files.recent_outcomes(run, place.element), retry)
    if decision.action is Action.HOLD:
        notes.hold(run, decision.why)
        return f"{said}; held: {decision.why}"
    if decision.action is Action.STOP or run.is_done():
        return said
    resources = read_section(Resources, run.config_path, "resources")
    SlurmScheduler().requeue(run, resources, decision.delay_s)
    return f"{said}; comes back" + (f" in {decision.delay_s:g} s" if decision.delay_s else "")


def settled(run: RunFolder, attempt: int, place: Place, code: int) -> Outcome:
    """Return the outcome that rank 0 wrote, mended where it could not know better, or one made from the exits."""
    exits = _exits(run, attempt, code)
    written = run.outcome(attempt)
    if written is None:
        return _made(run, attempt, place, exits)
    written = _with_guilty(run, corrected(written, first_failure(exits)))
    if written.cause in (Cause.PREEMPTED, Cause.REQUEUED) and notes.read_notice(run, attempt) is None:
        past = past_of(place)
        ruled = asked_reason(place, past_state=state_of(past)).cause
        failed = failed_nodes(run, attempt, place, past) if ruled is Cause.NODE_FAILURE else ()
        return replace(written, cause=ruled, failed_hosts=failed) if ruled in RULED else written
    return written


def is_superseded(run: RunFolder, attempt: int, place: Place) -> bool:
    """Say whether a newer attempt owns the run, so that this one must not bring it back a second time."""
    if place.element is not None:
        return False
    held = lease.read_lease(run.lease_path)
    return held is not None and int(held["fence"]) > attempt


def _made(run: RunFolder, attempt: int, place: Place, exits: Sequence[Exit]) -> Outcome:
    notice = notes.read_notice(run, attempt)
    if notice is None:
        notice = _notice_of_slurm(run, attempt, place, exits)
    if notice is not None and notice.cause is Cause.NODE_FAILURE:
        return obituary(run, attempt, place)
    first = first_failure(exits)
    was_killed = first is not None and first.code < 0  # what the others then say is only that it is gone
    failure = None if was_killed else failures.first(run.attempt_dir(attempt))
    log = run.log_path(attempt, first.rank) if first else None
    ending = Ending(
        attempt=attempt,
        exits=tuple(exits),
        notice=notice,
        start_step=place.start_step,
        saved_step=run.saved_step(),
        end_step=run.reached_step(attempt),
        seconds=time.time() - place.started,
        world_size=max(1, len(exits)),
        is_done=run.is_done(),
        hosts=place.hosts,
        element=place.element,
        failure="\n".join(failure.lines) if failure else "",
        last_words=last_words_of(log) if log and log.is_file() else "",
    )
    return _with_guilty(run, missing_outcome(ending))


def _with_guilty(run: RunFolder, outcome: Outcome) -> Outcome:
    """Return the outcome of a hang with the nodes of those that hung: the next attempts go elsewhere."""
    found = watchdog.read_verdict(run.attempt_dir(outcome.attempt)) if outcome.cause is Cause.HUNG else None
    return replace(outcome, failed_hosts=found.hosts) if found else outcome


def _notice_of_slurm(run: RunFolder, attempt: int, place: Place, exits: Sequence[Exit]) -> Notice | None:
    """Return why SLURM told the workers to leave, or killed them, or lost their node; None if it did nothing."""
    is_early = any(run.attempt_dir(attempt).glob("early.rank*"))
    if exits and not is_early and not any(exit_.code in (-9, -15) for exit_ in exits):
        return None
    reason = asked_reason(place, past_state=state_of(past_of(place)))
    if reason == StopReason(cause=Cause.PREEMPTED) and not is_early and _is_running(place):
        return None  # a SIGKILL of somebody else, such as the kernel when memory is short
    return Notice(cause=reason.cause, grace_s=reason.grace_s)


def _is_running(place: Place) -> bool:
    """Say whether SLURM counts the job as running; a controller that does not answer is no proof."""
    with contextlib.suppress(SchedulerError):
        return slurm_query.job_record(place.job).get("JobState") == "RUNNING"
    return False


def _exits(run: RunFolder, attempt: int, code: int) -> list[Exit]:
    """Return how the workers ended; what srun returned stands for those whose script was killed as well."""
    found = slurm_files.exits(run, attempt)
    if not found and code:
        return [Exit(rank=0, code=code_from_shell(code), at=time.time())]
    return found


def main(arguments: Sequence[str]) -> int:
    """End the attempt of the run at ``arguments[0]``, whose workers left with ``arguments[1]``."""
    try:
        print(end(Path(arguments[0]), int(arguments[1])))
    except Get3dError as error:
        print(error.what, error.way_out, sep="\n", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

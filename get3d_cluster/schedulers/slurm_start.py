"""First act of a batch script: ``python -m get3d_cluster.schedulers.slurm_start RUN``, on the attempt's first node.

Decides whether the job is to start at all, numbers the attempt, and prints the lines that the batch shell evaluates.
A job that has nothing to do ends here: the run is done, stopped or held, a newer job has taken over, the runs it comes
after are not done, or one of its nodes failed the run twice.
"""

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from get3d_cluster.config import read_section, read_section_or_default
from get3d_cluster.core.job import Cause, Outcome, Resources, RetryConfig
from get3d_cluster.core.policy import Action, after_attempt
from get3d_cluster.errors import ExitCode, Get3dError, SchedulerError
from get3d_cluster.runtime import env
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import notes, slurm_files, slurm_plan, slurm_query
from get3d_cluster.schedulers.slurm import (
    SlurmScheduler,
    leave_pickle,
    predecessors,
    successor_of,
)
from get3d_cluster.schedulers.slurm_files import Place
from get3d_cluster.schedulers.slurm_plan import Promise
from get3d_cluster.schedulers.slurm_post_mortem import how_ended, obituary


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a job starts an attempt, and if not, why and with which exit code it ends."""

    starts: bool
    why: str = ""
    code: ExitCode = ExitCode.FINISHED
    succeeds: bool = False
    """Another job has to be submitted in its place."""


def start(path: Path) -> str:
    """Return the shell lines that go on with the attempt, or that end the job."""
    run = RunFolder.open(path)
    here = env.slurm_job()
    if here is None:
        raise SchedulerError(
            "SLURM_JOB_ID is not set", "this program is part of a batch script: launch.py submit"
        )
    element = env.read_worker_env().element
    resources = read_section(Resources, run.config_path, "resources")
    settle(run, here, element)
    verdict = judge(run, here, element)
    if not verdict.starts:
        if verdict.succeeds:
            job = SlurmScheduler().succeed(run, resources)
            return ended(f"{verdict.why}; job {job} goes on", verdict.code)
        return ended(verdict.why, verdict.code)
    attempt = run.new_attempt()
    hosts = slurm_plan.expand_nodes(here.nodes)
    promise = _promise(resources)
    place = Place(
        job=here.id,
        restarts=here.restarts,
        array=here.array,
        task=here.task,
        hosts=hosts,
        element=element,
        started=round(time.time(), 3),
        start_step=run.saved_step(),
        grace_s=promise.grace_s,
        kill_wait_s=promise.kill_wait_s,
        warning_s=float(slurm_plan.signal_s(resources.grace_s)),
    )
    slurm_files.write_place(run, attempt, place)
    leave_pickle(run, place.name)
    variables = env.common_variables(resources.cpus_per_worker) | {
        "GET3D_ATTEMPT": str(attempt),
        "GET3D_HOSTS": ",".join(hosts),
        "GET3D_GPUS_PER_WORKER": str(resources.gpus_per_worker),
    }
    return exports(variables, f"attempt {attempt} of {run.name} on {here.nodes}, job {place.name}")


def judge(run: RunFolder, here: env.SlurmJob, element: int | None) -> Verdict:
    """Decide whether the job in which this process runs starts an attempt."""
    return (
        _unwanted(run, here, element) or _held(run, element) or _misplaced(run, here) or Verdict(starts=True)
    )


def _unwanted(run: RunFolder, here: env.SlurmJob, element: int | None) -> Verdict | None:
    """Return why nobody needs this job now."""
    if run.is_done():
        return Verdict(starts=False, why=f"{run.name} is done already")
    if stopped := notes.stopped_cause(run):
        code = ExitCode.CANCELLED if stopped is Cause.CANCELLED else ExitCode.SUSPENDED
        return Verdict(starts=False, why=f"{run.name} was {stopped} by a person", code=code)
    if newer := successor_of(run, here) if element is None else "":
        return Verdict(starts=False, why=f"job {newer} has taken over {run.name}", code=ExitCode.FENCED)
    if waits := [other.name for other in predecessors(run) if not other.is_done()]:
        return Verdict(
            starts=False, why=f"{run.name} comes after {', '.join(waits)}, not done yet", succeeds=True
        )
    return None


def _held(run: RunFolder, element: int | None) -> Verdict | None:
    """Return why the run has to wait for a person, though SLURM brought it back by itself."""
    outcomes = slurm_files.recent_outcomes(run, element)
    if not outcomes:
        return None
    retry = read_section_or_default(RetryConfig, run.config_path, "retry")
    decision = after_attempt(outcomes, retry)
    if decision.action is not Action.HOLD:
        return None
    notes.hold(run, decision.why)
    return Verdict(starts=False, why=f"{run.name} is held: {decision.why}", code=ExitCode.HELD)


def _misplaced(run: RunFolder, here: env.SlurmJob) -> Verdict | None:
    """Return why the run has to go to other nodes."""
    bad = set(slurm_plan.bad_nodes(run.outcomes())) & set(slurm_plan.expand_nodes(here.nodes))
    if not bad:
        return None
    return Verdict(starts=False, why=f"{', '.join(sorted(bad))} failed {run.name} twice", succeeds=True)


def settle(run: RunFolder, here: env.SlurmJob, element: int | None) -> None:
    """Write the outcomes of earlier attempts that left none: their job is over, or has been started anew.

    The accounting also knows by now whether the last one was preempted or requeued by hand.
    """
    for attempt in run.attempts():
        place = slurm_files.read_place(run, attempt)
        if place is None or place.element != element:
            continue
        written = run.outcome(attempt)
        if written is None and place.job == here.id:
            outcome: Outcome | None = obituary(run, attempt, place)
        elif written is None:
            outcome = SlurmScheduler().post_mortem(run, attempt)
        elif written.cause is Cause.REQUEUED and attempt == max(run.attempts()):
            cause, _, failed = how_ended(run, attempt, place)
            outcome = dataclasses.replace(written, cause=cause, failed_hosts=failed)
        else:
            continue
        if outcome is not None and outcome != written:
            run.write_outcome(outcome)


def exports(variables: Mapping[str, str], said: str) -> str:
    """Return shell lines that say a sentence into the batch output and set ``variables``."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([f"echo {shlex.quote(said)}", *lines])


def ended(why: str, code: ExitCode) -> str:
    """Return shell lines that say ``why`` and end the job with ``code``."""
    return f"echo {shlex.quote(why)}\nexit {int(code)}"


def _promise(resources: Resources) -> Promise:
    """Return what the cluster promises, or SLURM's defaults if it does not answer."""
    try:
        return slurm_query.cluster_facts(resources.partition, resources.qos)
    except SchedulerError:
        return Promise()


def main(arguments: Sequence[str]) -> int:
    """Print the shell lines for the run at ``arguments[0]``."""
    try:
        print(start(Path(arguments[0])))
    except Get3dError as error:
        print(error.what, error.way_out, sep="\n", file=sys.stderr)
        with contextlib.suppress(Get3dError, OSError):
            notes.hold(RunFolder.open(Path(arguments[0])), error.what)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""SLURM, reached through submitit: jobs that are preempted, run out of time, lose nodes, and come back.

submitit writes the batch script and hands it to sbatch. What it does around a job (handlers, requeue, results) is not
used: the script numbers the attempt first (``slurm_start``), starts each worker through ``slurm_task.sh``, and sees to
the outcome and the return at the end (``slurm_end``). How decisions are made is in ``slurm_plan``; what is asked of
SLURM in ``slurm_query``; how attempts ended in ``slurm_post_mortem``; which files there are in ``slurm_files``.
"""

import contextlib
import dataclasses
import io
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from get3d_cluster.core.job import Cause, Outcome, Resources
from get3d_cluster.errors import SchedulerError, UsageError
from get3d_cluster.runtime import env
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import notes, slurm_files, slurm_plan, slurm_query
from get3d_cluster.schedulers.base import Standing, StopReason
from get3d_cluster.schedulers.notes import Notice
from get3d_cluster.schedulers.slurm_plan import PENDING_STATES, Chunk, Promise, QueueRow
from get3d_cluster.schedulers.slurm_post_mortem import asked_reason, obituary

GATE_S = 15.0
"""A run whose predecessors are not done, and have no job to wait for, looks again after so long."""
GATE_SHARE = 0.1
LONGEST_GATE_S = 600.0
"""It looks again less often the longer it waits: after this part of the time so far, up to so long."""
SUBMIT_S = 60.0
TRY_AGAIN_S = (5.0, 20.0, 60.0)
"""Waits of a job that has to bring its run back while SLURM does not answer: a controller restarts in a minute."""
LOOKS = 3
LOOK_AGAIN_S = 2.0
"""After an sbatch that neither queued nor refused, the queue is looked at so often, so long apart."""
TASK_SCRIPT = "get3d_cluster/schedulers/slurm_task.sh"
STEP = 0
"""Number of the step in which a batch script starts the workers."""
SIGNAL = "USR1"
"""What a person's stop sends to the workers; why is said in a file before."""
UNUSED_SIGNAL = "URG"
"""submitit's own handler listens to this one, which SLURM never sends: ours are the only ones that matter."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One call of sbatch."""

    parameters: dict[str, Any]
    """Of ``submitit.SlurmExecutor.update_parameters``."""
    python: str
    num_elements: int = 0
    """Elements of an array, or 0 for one job."""


class SlurmScheduler:
    """Runs attempts on a SLURM cluster."""

    def plan(self, run: RunFolder, resources: Resources, after: Sequence[RunFolder] = ()) -> str:
        promise = self._promise(resources)
        submissions = self._submissions(run, resources, promise, after=after)
        text = batch_text(run, submissions[0])
        self._test(text, resources)
        lines = [text.rstrip(), ""]
        if len(submissions) > 1:
            counts = ", ".join(str(each.num_elements) for each in submissions)
            lines.append(
                f"# {len(submissions)} arrays of {counts} elements: MaxArraySize={promise.max_array_size}"
            )
        warnings = slurm_plan.warnings_of(promise, resources, longest_save_s(run))
        return "\n".join([*lines, *(f"# warning: {warning}" for warning in warnings)]).rstrip()

    def submit(
        self, run: RunFolder, resources: Resources, after: Sequence[RunFolder] = (), delay_s: float = 0
    ) -> str:
        live = jobs_now(run)
        run.release()
        _keep_predecessors(run, after)
        if live:
            return live[0].array_job or live[0].job
        promise = self._promise(resources)
        submissions = self._submissions(run, resources, promise, after=after, delay_s=delay_s)
        self._test(batch_text(run, submissions[0]), resources)
        return ",".join(self._sbatch_all(run, submissions))

    def standing(self, run: RunFolder) -> Standing:
        try:
            rows = slurm_query.jobs_of(slurm_files.comment_of(run))
        except SchedulerError as error:
            return Standing(state="unknown", why=error.what)
        if not rows:
            return Standing(state="absent", why=notes.why_away(run))
        standing = slurm_plan.standing_of(rows)
        missing = [other for other in predecessors(run) if not other.is_done()]
        if standing.state == "pending" and missing:
            awaited = ", ".join(map(awaited_of, missing))
            return Standing(state="pending", why=f"waits for run {awaited}", job=standing.job)
        return standing

    def stop_reason(self, run: RunFolder, attempt: int) -> StopReason:
        notice = notes.read_notice(run, attempt)
        if notice is not None:
            return StopReason(cause=notice.cause, grace_s=notice.grace_s)
        stopped = notes.stopped_cause(run)
        if stopped is not None:
            return StopReason(cause=stopped)
        place = slurm_files.read_place(run, attempt)
        if place is None:
            return StopReason(cause=Cause.PREEMPTED)
        return asked_reason(place)

    def stop(self, run: RunFolder, cause: Cause, *, now: bool = False) -> None:
        rows = jobs_now(run)
        if cause in (Cause.SUSPENDED, Cause.CANCELLED):
            notes.note_stopped(run, cause)
        for attempt in living_attempts(run, rows):
            notes.write_notice(run, attempt, Notice(cause=cause, grace_s=0 if now else None))
        pending = [row for row in rows if is_pending(row)]
        running = [row for row in rows if not is_pending(row)]
        if pending and cause is not Cause.PREEMPTED:
            _call("scancel", "--state=PENDING", *_ids(pending))
        if running and now:
            # The step alone: killed as a whole, the job could not say how it ended.
            _call("scancel", "--signal=KILL", *(f"{name}.{STEP}" for name in _ids(running)))
        elif running:
            _call("scancel", f"--signal={SIGNAL}", *_ids(running))

    def requeue(self, run: RunFolder, resources: Resources, delay_s: float = 0) -> None:
        here = env.slurm_job()
        if here is None:
            self.submit(run, resources, predecessors(run), delay_s)
            return
        for pause_s in TRY_AGAIN_S:
            try:
                self._requeue_here(run, resources, here, delay_s)
            except SchedulerError:
                time.sleep(pause_s)
            else:
                return
        self._requeue_here(run, resources, here, delay_s)

    def _requeue_here(self, run: RunFolder, resources: Resources, here: env.SlurmJob, delay_s: float) -> None:
        """Bring the run back from within its job. Raises: SchedulerError if SLURM does not answer."""
        record = slurm_query.job_record(here.id)
        if is_coming_back(record, here.restarts) or successor_of(run, here, env.read_worker_env().element):
            return
        promise = self._promise(resources)
        must_move = set(self._excluded(run)) & set(slurm_plan.expand_nodes(here.nodes))
        if not delay_s and not must_move and promise.mode != "CANCEL" and record.get("Requeue", "1") != "0":
            with contextlib.suppress(SchedulerError):
                # One element has the number of the whole array, with which all of them would be requeued.
                _call("scontrol", "requeue", f"{here.array}_{here.task}" if here.array else here.id)
                return
        self.succeed(run, resources, delay_s=delay_s)

    def succeed(self, run: RunFolder, resources: Resources, *, delay_s: float = 0) -> str:
        """Submit the job that goes on once the one in which this process runs has left; return its id."""
        here = env.slurm_job()
        element = env.read_worker_env().element if here else None
        promise = self._promise(resources)
        [submission] = self._submissions(
            run, resources, promise, after=predecessors(run), delay_s=delay_s, element=element, follows=True
        )
        return self._sbatch(run, submission, slurm_files.SUCCESSOR, element)

    def post_mortem(self, run: RunFolder, attempt: int) -> Outcome | None:
        place = slurm_files.read_place(run, attempt)
        if place is None:
            return None
        try:
            rows = slurm_query.jobs_of(slurm_files.comment_of(run))
        except SchedulerError:
            return None
        return None if attempt in living_attempts(run, rows) else obituary(run, attempt, place)

    def _promise(self, resources: Resources) -> Promise:
        return slurm_query.cluster_facts(resources.partition, resources.qos)

    def _excluded(self, run: RunFolder) -> tuple[str, ...]:
        return slurm_plan.bad_nodes(run.outcomes())

    def _submissions(
        self,
        run: RunFolder,
        resources: Resources,
        promise: Promise,
        *,
        after: Sequence[RunFolder] = (),
        delay_s: float = 0,
        element: int | None = None,
        follows: bool = False,
    ) -> list[Submission]:
        """Return the calls of sbatch for a run: several if an array is longer than the cluster allows.

        With ``element`` only that one of an array; with ``follows`` it waits for the job that runs now.
        """
        spec = run.spec() if run.spec_path.is_file() else None
        if resources.array and spec is not None and spec.kind != "items":
            raise UsageError(
                f"resources.array={resources.array}, but a {spec.job} run has no items to share out",
                "set array=0; workers of such a run are nodes x workers_per_node",
            )
        code = str(run.import_root())
        python = spec.python if spec and spec.python else sys.executable
        command = slurm_plan.worker_command(resources, python, f"{code}/{TASK_SCRIPT}", [str(run.path), code])
        waited_s = slurm_files.since_submitted_s(run) if follows else 0.0
        gate = gate_of(after, follows=follows and element is None, waited_s=waited_s)
        delay_s = max(delay_s, gate.delay_s)
        whole = not resources.array
        parts = (
            [Chunk(offset=element or 0, count=1)]
            if whole or element is not None
            else slurm_plan.chunks(resources.array, promise.max_array_size)
        )
        found = []
        for part in parts:
            parameters = slurm_plan.parameters(
                resources,
                name=run.key if whole else f"{run.key}-{part.offset}",
                comment=slurm_files.comment_of(run),
                setup=list(setup_lines(run, resources, code, python, part, whole=whole)),
                teardown=teardown_lines(python),
                begin_s=delay_s,
                dependency=gate.dependency,
                exclude=self._excluded(run),
                folders=[str(run.path), code],
            )
            num_elements = 0 if whole or element is not None else part.count
            found.append(Submission(parameters=parameters, python=command, num_elements=num_elements))
        return found

    def _test(self, text: str, resources: Resources) -> None:
        """Let SLURM say whether it could ever start this. Raises: UsageError with its words, SchedulerError."""
        try:
            done = subprocess.run(
                ["sbatch", "--test-only"],
                input=text,
                capture_output=True,
                text=True,
                timeout=SUBMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SchedulerError(f"sbatch does not answer: {error}", "python launch.py doctor") from error
        if done.returncode == 0:
            return
        said = (
            " ".join(done.stderr.split()).replace("allocation failure: ", "").replace("sbatch: error: ", "")
        )
        if is_unreachable(said):
            raise SchedulerError(
                f"sbatch cannot reach SLURM: {said}", "try again later; python launch.py doctor"
            )
        shape = (
            f"nodes={resources.nodes} x workers_per_node={resources.workers_per_node} "
            f"x cpus_per_worker={resources.cpus_per_worker}, gpus_per_worker={resources.gpus_per_worker}"
        )
        raise UsageError(f"SLURM refuses {shape}: {said}", "sinfo -o '%P %D %c %G %l' shows what there is")

    def _sbatch_all(self, run: RunFolder, submissions: Sequence[Submission]) -> list[str]:
        jobs: list[str] = []
        for submission in submissions:
            try:
                jobs.append(self._sbatch(run, submission, slurm_files.SUBMITTED))
            except SchedulerError as error:
                if not jobs:
                    raise
                what = f"{error.what}; the elements in {', '.join(jobs)} are queued and will do all the items"
                way_out = f"to have all elements: suspend {run.name}, then resume it"
                raise SchedulerError(what, way_out) from error
        return jobs

    def _sbatch(self, run: RunFolder, submission: Submission, why: str, element: int | None = None) -> str:
        executor = _executor(run, submission)
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from get3d_cluster.schedulers.slurm_entry import Start

        run.slurm_dir.mkdir(parents=True, exist_ok=True)
        start = Start(str(run.path))
        try:
            with env.outside_of_jobs(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints it, too
                if submission.num_elements > 1:
                    jobs = executor.submit_array([start] * submission.num_elements)
                else:
                    jobs = [executor.submit(start)]
            job = str(jobs[0].job_id).partition("_")[0]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            said = " ".join(str(error).split())[-300:] or f"no answer in {SUBMIT_S:g} s"
            if is_refusal(said):
                way_out = "python launch.py plan shows what was asked"
                raise SchedulerError(f"sbatch refused {run.name}: {said}", way_out) from error
            job = taken_job(run, submission, said)
        slurm_query.forget()
        slurm_files.note_job(run, job, why, element)
        return job


def is_refusal(said: str) -> bool:
    """Say whether words of sbatch mean that SLURM has not taken the job; otherwise only the queue can tell.

    >>> is_refusal("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    False
    """
    return ("submission failed" in said and not is_unreachable(said)) or "No such file or directory" in said


def taken_job(run: RunFolder, submission: Submission, said: str) -> str:
    """Return the job that SLURM took although sbatch did not say so: it has our comment and name, and is new.

    Raises: SchedulerError if it took none, or if it cannot be asked.
    """
    here = env.slurm_job()
    known = {*slurm_files.jobs(run), *((here.id, here.array) if here else ())}
    trouble = ""
    for look in range(LOOKS):
        time.sleep(LOOK_AGAIN_S * min(look, 1))
        try:
            new = {row.array_job or row.job for row in jobs_now(run)} - known
            named = [
                job
                for job in sorted(new, key=int)
                if slurm_query.job_record(job).get("JobName") == submission.parameters["job_name"]
            ]
        except SchedulerError as error:
            trouble = error.what
            continue
        trouble = ""
        if named:
            return named[-1]
    if trouble:
        what = f"nobody knows whether SLURM took {run.name}: sbatch said {said!r}, then {trouble}"
        way_out = f"python launch.py status {run.name} shows it once SLURM answers; the same command looks there, too"
        raise SchedulerError(what, way_out)
    raise SchedulerError(
        f"sbatch did not queue {run.name}: {said}", "give the same command again once SLURM answers"
    )


def leave_pickle(run: RunFolder, job: str) -> None:
    """Write what submitit starts in ``job`` (12 or 12_3), unless whoever submitted it did.

    They may be late, or have died or given up on sbatch although SLURM took the job.
    """
    path = run.slurm_dir / f"{job}_submitted.pkl"
    if path.exists():
        return
    from submitit.core.utils import DelayedSubmission

    from get3d_cluster.schedulers.slurm_entry import Start

    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    DelayedSubmission(Start(str(run.path))).dump(aside)
    aside.replace(path)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a job waits for besides room."""

    dependency: str = ""
    delay_s: float = 0.0


def gate_of(after: Sequence[RunFolder], *, follows: bool, waited_s: float = 0.0) -> Gate:
    """Return what keeps a job back: the one before it of the same run, the jobs of the runs it comes after.

    ``afterok`` would never be satisfied once a parent was requeued after a failure: the start of the batch script asks
    whether the parents are DONE. One that has no job to wait for, since it waits for a person, is asked again after a
    while, which grows with ``waited_s``.
    """
    words = ["singleton"] if follows else []
    delay_s = 0.0
    for other in after:
        if other.is_done():
            continue
        ids = _live_ids(other)
        words += [f"afterany:{id_}" for id_ in ids]
        delay_s = delay_s if ids else max(GATE_S, min(GATE_SHARE * waited_s, LONGEST_GATE_S))
    return Gate(dependency=",".join(words), delay_s=delay_s)


def awaited_of(run: RunFolder) -> str:
    """Return the name of a run that others wait for, and why it will not come by itself, if that is so.

    >>> awaited_of(RunFolder(Path("runs/pack")))
    'pack (its folder is gone)'
    """
    if not run.spec_path.is_file():
        return f"{run.name} (its folder is gone)"
    if _live_ids(run):
        return run.name
    outcomes = run.outcomes()
    why = notes.why_away(run)
    if not why and outcomes and outcomes[-1].cause is Cause.REFUSED:
        why = f"failed: {outcomes[-1].message}".splitlines()[0]
    return f"{run.name} ({why})" if why else run.name


def jobs_now(run: RunFolder) -> list[QueueRow]:
    """Return the jobs of a run in SLURM's queue, asked anew. Raises: SchedulerError."""
    slurm_query.forget()
    return slurm_query.jobs_of(slurm_files.comment_of(run))


def is_pending(row: QueueRow) -> bool:
    """Say whether a job waits, so that signals reach nobody."""
    return row.state in PENDING_STATES


def predecessors(run: RunFolder) -> list[RunFolder]:
    """Return the runs that must be DONE before this one starts."""
    return [RunFolder(Path(path)) for path in run.spec().after]


def living_attempts(run: RunFolder, rows: Sequence[QueueRow]) -> list[int]:
    """Return the attempts without an outcome that belong to jobs in SLURM's queue; of each the newest."""
    live = {row.job for row in rows if not is_pending(row)}
    newest: dict[str, int] = {}
    for attempt in run.attempts():
        place = slurm_files.read_place(run, attempt)
        if place and place.job in live:
            newest[place.job] = attempt
    return sorted(attempt for attempt in newest.values() if run.outcome(attempt) is None)


def successor_of(run: RunFolder, here: env.SlurmJob, element: int | None = None) -> str:
    """Return a job in the queue that was submitted after the one in which this process runs and goes on with its work.

    For an ``element`` that is one of its own only.
    """
    mine = here.array or here.id
    known = slurm_files.jobs(run)
    later = known[known.index(mine) + 1 :] if mine in known else []
    if element is not None:
        later = [job for job in later if job in slurm_files.jobs(run, element)]
    with contextlib.suppress(SchedulerError):
        live = {row.array_job or row.job for row in jobs_now(run)}
        return next((job for job in reversed(later) if job in live), "")
    return ""


def is_coming_back(record: dict[str, str], restarts: int) -> bool:
    """Say whether SLURM has put the job back into the queue already."""
    return int(record.get("Restarts", "0") or 0) > restarts or record.get("JobState") in (
        "PENDING",
        "REQUEUED",
    )


def longest_save_s(run: RunFolder) -> float | None:
    """Return how long the longest save of the run took so far."""
    seconds = [
        row["seconds"]
        for row in read_rows(run.events_path)
        if row.get("event") == "save" and "seconds" in row
    ]
    return max(seconds, default=None)


def setup_lines(
    run: RunFolder, resources: Resources, code: str, python: str, part: Chunk, *, whole: bool
) -> Iterator[str]:
    """Yield the lines of the batch script before the workers start."""
    yield "trap : TERM USR1 USR2 CONT  # a notice is the workers' business; this shell waits for them"
    yield f"export GET3D_RUN={shlex.quote(str(run.path))} GET3D_CODE={shlex.quote(code)}"
    yield f"export SUBMITIT_PREEMPT_SIGNAL={UNUSED_SIGNAL}"
    if not whole:
        yield f"export GET3D_ELEMENT=$(({part.offset} + ${{SLURM_ARRAY_TASK_ID:-0}})) GET3D_ELEMENTS={resources.array}"
    yield from resources.setup
    yield f"export PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}}"
    yield f'started=$({shlex.quote(python)} -P -m get3d_cluster.schedulers.slurm_start "$GET3D_RUN") || exit $?'
    yield 'eval "$started"'


def teardown_lines(python: str) -> list[str]:
    """Return the lines of the batch script after the workers have left."""
    return [
        "code=$?",
        f'{shlex.quote(python)} -P -m get3d_cluster.schedulers.slurm_end "$GET3D_RUN" "$code"',
        "exit $code",
    ]


def batch_text(run: RunFolder, submission: Submission) -> str:
    """Return the batch script as submitit hands it to sbatch."""
    executor = _executor(run, submission)
    if submission.num_elements > 1:
        executor.parameters["map_count"] = submission.num_elements
    return str(executor._make_submission_file_text(executor._submitit_command_str, "plan"))  # noqa: SLF001  submitit has no public way


def is_unreachable(said: str) -> bool:
    """Say whether words of sbatch are about the way to the controller, not about the request."""
    return any(
        word in said
        for word in ("Unable to contact", "slurm_load", "Socket timed out", "configuration source")
    )


def _keep_predecessors(run: RunFolder, after: Sequence[RunFolder]) -> None:
    """Write down what the run comes after: its job asks again each time it starts."""
    spec, paths = run.spec(), tuple(str(other.path) for other in after)
    if spec.after != paths:
        run.write_spec(dataclasses.replace(spec, after=paths))


def _executor(run: RunFolder, submission: Submission) -> Any:
    import submitit

    # Of the class, since submitit makes an executor of its own for an array.
    submitit.SlurmExecutor._make_submission_command = _sbatch_command  # type: ignore[method-assign,assignment]  # noqa: SLF001
    executor = submitit.SlurmExecutor(folder=run.slurm_dir, python=submission.python)
    executor.update_parameters(**submission.parameters)
    return executor


def _sbatch_command(_: object, script: Path) -> list[str]:
    """Return the call of sbatch, which submitit itself would wait for without end."""
    return ["timeout", "-k", "5", f"{SUBMIT_S:g}", "sbatch", str(script)]


def _live_ids(run: RunFolder) -> list[str]:
    with contextlib.suppress(SchedulerError):
        rows = slurm_query.jobs_of(slurm_files.comment_of(run))
        return sorted({row.array_job or row.job for row in rows})
    return []


def _ids(rows: Sequence[QueueRow]) -> list[str]:
    return sorted({row.name for row in rows})


def _call(*command: str) -> None:
    """Run a command of SLURM that changes something. Raises: SchedulerError with its words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SUBMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(f"{command[0]} does not answer: {error}", "try again later") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())[:300]
        raise SchedulerError(f"{' '.join(command)}: {said}", "python launch.py doctor looks at the cluster")

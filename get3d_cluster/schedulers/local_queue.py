"""The queue process of the local scheduler: one per user and machine, started on demand, gone when nothing is left.

``python -m get3d_cluster.schedulers.local_queue``. All it knows lies in files (``local_files``), so it may be killed
at any time: the next one finds the running attempts and goes on. Attempts do not depend on it to run or to end; it
starts them, gives notice, kills after the grace, and decides by ``core.policy`` what comes back.

One pass: look who has ended; take the requests, so that what a worker asked for on its way out is known; settle the
ended; enforce deadlines; start and preempt.
"""

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from io import BufferedRandom
from pathlib import Path

from get3d_cluster.config import read_section_or_default
from get3d_cluster.core.job import Cause, Outcome, RetryConfig
from get3d_cluster.core.policy import Action, after_attempt
from get3d_cluster.errors import ExitCode, Get3dError, SchedulerError, StorageError
from get3d_cluster.runtime import env
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import local_files as files
from get3d_cluster.schedulers import notes
from get3d_cluster.schedulers.local_files import Kind, Order, Processes, QueueFolder, Request
from get3d_cluster.schedulers.local_machine import capacity, session_members, signal_groups
from get3d_cluster.schedulers.local_plan import (
    SUPERVISOR_REST_S,
    USER_CAUSES,
    Capacity,
    Job,
    due_stop,
    free_gpus,
    kill_time,
    moves,
)

POLL_S = 0.1
IDLE_S = 2.0
TROUBLE_S = 2.0
"""Wait after an error of the file system before everything is read again."""
LOCK_TIMEOUT_S = 30.0
START_UP_S = 10.0
"""A notice waits so long at most for an attempt to start all its workers."""

_log = logging.getLogger(__name__)


class LocalQueue:
    """The state of the queue: ``jobs`` mirrors the folder ``jobs/``."""

    def __init__(self, folder: QueueFolder, machine: Capacity) -> None:
        self.folder = folder
        self.machine = machine
        self.jobs: dict[str, Job] = {}
        self._supervisors: dict[str, subprocess.Popen[bytes]] = {}
        self._processes: dict[str, Processes] = {}
        """Of attempts whose workers are all started, by the name of the job."""
        self._trouble_until: dict[str, float] = {}
        """Until when nothing is tried for a job, by its name."""

    def load(self) -> None:
        """Read everything again and go on where a killed queue process left off."""
        self._processes.clear()
        self.jobs = {job.id: _in_this_boot(job) for job in self.folder.jobs()}
        for job in self.jobs.values():
            if job.is_running and job.id not in self._supervisors and self._find_processes(job) is None:
                self._start_supervisor(job)

    def one_pass(self) -> None:
        """Do what is due now."""
        ended = [job.id for job in self.jobs.values() if job.is_running and self._has_ended(job)]
        for path in self.folder.requests():
            self._take(path)
        for job in [self.jobs[name] for name in ended if name in self.jobs]:
            self._try(self._settle, job)
        for job in [job for job in self.jobs.values() if job.is_running]:
            self._try(self._enforce, job)
        self._move()

    def _try(self, act: Callable[[Job], None], job: Job) -> None:
        """Act on one job; trouble with the disk of its run must not keep the other runs waiting."""
        if time.monotonic() < self._trouble_until.get(job.id, 0.0):
            return
        try:
            act(job)
            self._trouble_until.pop(job.id, None)
        except (OSError, Get3dError):
            _log.exception("%s: tries again in %g s", job.id, TROUBLE_S)
            self._trouble_until[job.id] = time.monotonic() + TROUBLE_S

    def _put(self, job: Job) -> None:
        if self.jobs.get(job.id) != job:
            self.folder.put(job)
        self.jobs[job.id] = job

    def _drop(self, job: Job) -> None:
        self.folder.remove(job.id)
        self.jobs.pop(job.id, None)

    def _next_sequence(self) -> int:
        return max((job.sequence for job in self.jobs.values()), default=0) + 1

    # Requests

    def _take(self, path: Path) -> None:
        request = files.read_request(path)
        if request is None:
            _log.warning("ignored %s: not a request", path.name)
        elif request.kind is Kind.STOP:
            self._take_stop(request)
        else:
            self._take_submit(request)
        path.unlink(missing_ok=True)

    def _take_submit(self, request: Request) -> None:
        """Queue a run. A requeue by a worker changes nothing: when its attempt ends the policy decides."""
        job = self.jobs.get(request.job)
        run = RunFolder(Path(request.run))
        if not run.path.is_dir() or (job and request.kind is Kind.REQUEUE):
            return
        if job is None or not job.is_running:
            run.release()
            self._put(self._pending(request, job))
        elif job.stop in USER_CAUSES or _outcome(run, job.attempt):
            run.release()
            self._put(replace(job, again=True, resources=request.resources))

    def _pending(self, request: Request, job: Job | None) -> Job:
        why = f"starts {request.delay_s:g} s after it was submitted" if request.delay_s else ""
        return Job(
            id=request.job,
            run=request.run,
            resources=request.resources,
            sequence=job.sequence if job else self._next_sequence(),
            boot=env.boot_id(),
            after=request.after,
            refilled_at=max(RunFolder(Path(request.run)).attempts(), default=0),
            not_before=time.monotonic() + request.delay_s,
            why=why,
        )

    def _take_stop(self, request: Request) -> None:
        job = self.jobs.get(request.job)
        if job is None:
            return
        if not job.is_running:
            if request.cause in USER_CAUSES:
                notes.note_stopped(RunFolder(Path(job.run)), request.cause)
                self._drop(job)
            return
        cause = request.cause if request.cause in USER_CAUSES or job.stop is None else job.stop
        changed = replace(job, stop=cause, now=job.now or request.now, again=False)
        if job.kill_at is not None:
            self._revise_notice(changed, is_new_cause=cause is not job.stop)
        else:
            self._put(changed)

    def _revise_notice(self, job: Job, *, is_new_cause: bool) -> None:
        """Correct the notice of an attempt that leaves already, without a second signal."""
        assert job.kill_at is not None
        now = time.monotonic()
        kill_at = min(job.kill_at, now) if job.now else job.kill_at
        if is_new_cause:
            assert job.stop is not None
            notice = notes.Notice(cause=job.stop, grace_s=max(0.0, kill_at - now))
            notes.write_notice(RunFolder(Path(job.run)), job.attempt, notice)
        self._put(replace(job, kill_at=kill_at))

    # Attempts

    def _find_processes(self, job: Job) -> Processes | None:
        if job.id not in self._processes:
            found = files.read_processes(RunFolder(Path(job.run)), job.attempt)
            if found is None or not found.all_started:
                return found
            self._processes[job.id] = found
        return self._processes[job.id]

    def _has_ended(self, job: Job) -> bool:
        child = self._supervisors.get(job.id)
        is_reaped = child is not None and child.poll() is not None
        processes = self._find_processes(job)
        if processes is None:
            return child is None or is_reaped
        return not processes.supervisor.is_alive() and not session_members(processes.supervisor)

    def _start(self, job: Job) -> None:
        run = RunFolder(Path(job.run))
        taken = job.resources.num_workers * job.resources.gpus_per_worker
        gpus = tuple(free_gpus(self.jobs.values(), self.machine)[:taken])
        attempt = run.new_attempt()
        try:
            files.write_order(run, attempt, Order(job=job.id, resources=job.resources, gpus=gpus))
        except StorageError:
            run.attempt_dir(attempt).rmdir()
            raise
        job = replace(job, attempt=attempt, started=time.monotonic(), gpus=gpus, why="", boot=env.boot_id())
        self._put(job)
        self._start_supervisor(job)
        _log.info("%s: attempt %d starts", job.id, attempt)

    def _start_supervisor(self, job: Job) -> None:
        """Start the supervisor of an attempt; doing so twice is harmless, since only one can claim it."""
        log_path = RunFolder(Path(job.run)).attempt_dir(job.attempt) / "supervisor.log"
        with contextlib.suppress(FileNotFoundError), log_path.open("ab") as log:
            self._supervisors[job.id] = subprocess.Popen(
                files.module_command(files.ATTEMPT_MODULE, job.run, str(job.attempt)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder.path,
                env=self.folder.environment(),
                start_new_session=True,
            )

    def _enforce(self, job: Job) -> None:
        """Give notice when it is due, and kill after the grace whether the supervisor lives or not."""
        now = time.monotonic()
        processes = self._find_processes(job)
        if job.kill_at is not None:
            if processes and now >= job.kill_at:
                _kill(processes, with_supervisor=now >= job.kill_at + SUPERVISOR_REST_S)
            return
        is_orphaned = processes is not None and not processes.supervisor.is_alive()
        stop = job.stop or due_stop(job, now) or (Cause.NODE_FAILURE if is_orphaned else None)
        if stop is None:
            return
        self._put(replace(job, stop=stop))
        is_up = is_orphaned or (processes is not None and processes.all_started)
        if processes and (is_up or job.now or now >= job.started + START_UP_S):
            self._give_notice(self.jobs[job.id], processes, now)

    def _give_notice(self, job: Job, processes: Processes, now: float) -> None:
        """Say why, then send TERM, then note the time of the kill: cut short in between, it is given again."""
        assert job.stop is not None
        grace_s = 0.0 if job.now else job.resources.grace_s
        notes.write_notice(
            RunFolder(Path(job.run)), job.attempt, notes.Notice(cause=job.stop, grace_s=grace_s)
        )
        if not job.now:
            members = session_members(processes.supervisor)
            signal_groups(members, signal.SIGTERM, spare_group=processes.supervisor.pid)
        self._put(replace(job, kill_at=kill_time(job, now)))
        _log.info("%s: attempt %d has to leave (%s), killed in %g s", job.id, job.attempt, job.stop, grace_s)

    def _settle(self, job: Job) -> None:
        """Make sure that an ended attempt has an outcome, and decide whether the run comes back."""
        child = self._supervisors.pop(job.id, None)
        if child is not None:
            child.wait()
        run = RunFolder(Path(job.run))
        if not run.attempt_dir(job.attempt).is_dir():
            _log.warning("%s: the folder of the run is gone", job.id)
            self._forget(job)
            return
        outcome = _outcome(run, job.attempt)
        if outcome is None:
            outcome = lost_outcome(run, job, self._find_processes(job))
            run.write_outcome(outcome)
        _log.info("%s: attempt %d ended: %s", job.id, job.attempt, outcome.cause)
        self._decide(run, job, outcome)

    def _decide(self, run: RunFolder, job: Job, outcome: Outcome) -> None:
        if outcome.cause is Cause.FINISHED and run.is_done():
            self._forget(job)
        elif job.again:
            self._come_back(replace(job, refilled_at=job.attempt), 0, "resumed", keeps_place=False)
        elif job.stop in USER_CAUSES:
            if outcome.cause is not job.stop:
                notes.note_stopped(run, job.stop)
            self._forget(job)
        else:
            self._obey_policy(run, job, outcome)

    def _obey_policy(self, run: RunFolder, job: Job, outcome: Outcome) -> None:
        since = [past for past in run.outcomes() if past.attempt > job.refilled_at] or [outcome]
        decision = after_attempt(since, read_section_or_default(RetryConfig, run.config_path, "retry"))
        if decision.action is Action.REQUEUE:
            why = f"backing off {decision.delay_s:g} s ({outcome.cause})" if decision.delay_s else ""
            self._come_back(job, decision.delay_s, why, keeps_place=outcome.cause is Cause.PREEMPTED)
            return
        if decision.action is Action.HOLD:
            notes.hold(run, decision.why)
        self._forget(job)

    def _come_back(self, job: Job, delay_s: float, why: str, *, keeps_place: bool) -> None:
        """Queue a run again. A preempted one keeps its place; others let the next one have its turn."""
        self._processes.pop(job.id, None)
        pending = replace(
            job,
            attempt=0,
            gpus=(),
            stop=None,
            now=False,
            kill_at=None,
            again=False,
            why=why,
            not_before=time.monotonic() + delay_s,
            sequence=job.sequence if keeps_place else self._next_sequence(),
        )
        self._put(pending)

    def _forget(self, job: Job) -> None:
        self._processes.pop(job.id, None)
        self._drop(job)

    # Starting and preempting

    def _move(self) -> None:
        now = time.monotonic()
        pending = [job for job in self.jobs.values() if not job.is_running]
        waiting = {job.id: why for job in pending if (why := self._why_waiting(job, now))}
        plan = moves(list(self.jobs.values()), self.machine, waiting)
        for name in plan.preempts:
            self._put(replace(self.jobs[name], stop=Cause.PREEMPTED))
        for name, why in plan.whys.items():
            self._put(replace(self.jobs[name], why=why))
        for name in plan.starts:
            self._try(self._start_or_forget, self.jobs[name])

    def _start_or_forget(self, job: Job) -> None:
        if Path(job.run).is_dir():
            self._start(job)
        else:
            _log.warning("%s: the folder of the run is gone", job.id)
            self._forget(job)

    def _why_waiting(self, job: Job, now: float) -> str:
        if now < job.not_before:
            return job.why
        awaited = [RunFolder(Path(path)) for path in job.after]
        blocking = next((run for run in awaited if not run.is_done()), None)
        if blocking is None:
            return ""
        return (
            f"waits for run {blocking.name}{'' if files.job_id(blocking) in self.jobs else _away(blocking)}"
        )


def lost_outcome(run: RunFolder, job: Job, processes: Processes | None) -> Outcome:
    """Return the outcome of an attempt whose supervisor is gone without having written one."""
    step = run.saved_step()
    if processes is None:
        cause, message = Cause.CRASHED, "the supervisor of the attempt did not start: see supervisor.log"
    elif processes.supervisor.boot != env.boot_id():
        cause, message = Cause.NODE_FAILURE, "the machine was restarted"
    else:
        cause, message = Cause.NODE_FAILURE, "the supervisor of the attempt was killed"
    stopped = job.stop and processes is not None
    return Outcome(
        attempt=job.attempt,
        cause=job.stop if stopped and job.stop else cause,
        exit_code=ExitCode.BUG if processes is None else ExitCode.SUSPENDED_PERIODIC,
        start_step=processes.start_step if processes else step,
        end_step=run.reached_step(job.attempt),
        saved_step=step,
        seconds=round(max(0.0, time.monotonic() - job.started), 3),
        message=message,
        world_size=job.resources.num_workers,
        hosts=(env.host(),),
    )


def _outcome(run: RunFolder, attempt: int) -> Outcome | None:
    with contextlib.suppress(Get3dError, KeyError, TypeError, ValueError):
        return run.outcome(attempt)
    return None


def _away(run: RunFolder) -> str:
    """Return why a run that somebody waits for is not in the queue."""
    last = next(iter(reversed(run.attempts())), 0)
    outcome = _outcome(run, last) if last else None
    why = notes.why_away(run) or (str(outcome.cause) if outcome else "")
    return f", which is not queued{f' ({why})' if why else ''}"


def _kill(processes: Processes, *, with_supervisor: bool) -> None:
    members = session_members(processes.supervisor)
    signal_groups(members, signal.SIGKILL, spare_group=processes.supervisor.pid)
    if with_supervisor and processes.supervisor.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(processes.supervisor.pid, signal.SIGKILL)


def _in_this_boot(job: Job) -> Job:
    """Return the job with its waits over if the machine was restarted since: the old clock's times mean nothing."""
    return (
        job
        if job.boot == env.boot_id()
        else replace(job, boot=env.boot_id(), not_before=0.0, started=time.monotonic())
    )


def serve(folder: QueueFolder) -> None:
    """Attend ``folder`` until nothing is queued or running. The caller holds the lock."""
    queue = LocalQueue(folder, capacity())
    folder.announce(queue.machine)
    is_fresh = False
    last_busy = time.monotonic()
    while True:
        try:
            if not is_fresh:
                queue.load()
                is_fresh = True
            queue.one_pass()
            if queue.jobs:
                last_busy = time.monotonic()
            elif time.monotonic() - last_busy > IDLE_S and leave(folder, queue.machine):
                return
        except (OSError, Get3dError):
            _log.exception("tries again in %g s", TROUBLE_S)
            is_fresh = False
            time.sleep(TROUBLE_S)
        time.sleep(POLL_S)


def leave(folder: QueueFolder, machine: Capacity) -> bool:
    """Say good-bye, then look once more: who dropped a request before saw a living queue and relies on it."""
    folder.process_path.unlink(missing_ok=True)
    if folder.is_empty():
        return True
    folder.announce(machine)
    return False


def lock(folder: QueueFolder) -> BufferedRandom | None:
    """Become the only queue process of ``folder``; None if there is one. The lock is held while the file is open.

    A holder that lives but has not announced itself is on its way in or out: wait until it shows which.
    """
    file = folder.lock_path.open("a+b")
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        if folder.is_attended():
            break
        time.sleep(POLL_S / 2)
    file.close()
    return None


def main() -> int:
    """Serve the folder of the environment in the background; return at once."""
    folder = QueueFolder(env.queue_folder())
    if os.fork():
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        held = lock(folder)
        if held is not None:
            serve(folder)
    except SchedulerError as error:
        _log.error("%s; %s", error.what, error.way_out)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

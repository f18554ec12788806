"""What a worker does in an attempt: find its job, build the session, run it, say how it ended, leave in order.

The order of leaving: saved and published; outcome.json written; lease given back; the requeue last, undisturbed.
"""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from get3d_cluster.config import find_job, read_run_config
from get3d_cluster.core.job import Cause, Outcome, RetryConfig
from get3d_cluster.core.policy import Action, after_attempt
from get3d_cluster.dist.group import Group, SoloGroup, meet
from get3d_cluster.errors import ExitCode, Get3dError, UsageError
from get3d_cluster.runtime import failures, lease, watchdog
from get3d_cluster.runtime.checkpoint import Checkpoints, more_tiers
from get3d_cluster.runtime.ending import End, Ended
from get3d_cluster.runtime.env import describe, device_of, host, read_worker_env
from get3d_cluster.runtime.events import EventLog, MetricLog
from get3d_cluster.runtime.failures import Failure
from get3d_cluster.runtime.items import run_items
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.notices import Notices
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.runtime.session import Session
from get3d_cluster.schedulers import open_scheduler
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.local import create

FIRST_ERROR_S = 1.0
"""How long a failing rank 0 waits for the word of a rank that failed first and took it along."""

_CAUSES = {
    ExitCode.FENCED: Cause.FENCED,
    ExitCode.HELD: Cause.DIVERGED,
    ExitCode.HUNG: Cause.HUNG,
    ExitCode.STORAGE: Cause.CRASHED,
    ExitCode.BUG: Cause.CRASHED,
}
_TOLD = (
    Cause.PREEMPTED,
    Cause.TIME_LIMIT,
    Cause.SUSPENDED,
    Cause.CANCELLED,
    Cause.NODE_FAILURE,
    Cause.REQUEUED,
)
"""Causes with which somebody outside tells an attempt to leave."""


def run_worker(arguments: list[str], notices: Notices) -> int:
    """Run one worker of a run's attempt; return its exit code. Errors that a person can act on are printed short."""
    try:
        if len(arguments) != 1:
            raise UsageError(
                "the worker takes one argument, the folder of a run", "python -m get3d_cluster.worker RUN"
            )
        worker = _Worker(Path(arguments[0]), notices)
    except Get3dError as error:
        _print(failures.lines_of(error))
        return int(error.exit_code)
    return worker.run()


class _Worker:
    """One worker from its start to its exit code."""

    def __init__(self, path: Path, notices: Notices) -> None:
        self._begun_s = time.monotonic()
        self._notices = notices
        self._run = RunFolder.open(path)
        self._env = read_worker_env()
        self._attempt = self._env.attempt
        self._lease: lease.Lease | None = None
        self._digest = ""
        self._not_bitwise_from: int | None = None
        self._shares_items = False

    def run(self) -> int:
        try:
            return self._run_attempt()
        except Exception as error:  # noqa: BLE001  whatever it is, it is told in the same way
            return self._failed(error).exit_code

    def _run_attempt(self) -> int:
        self._spec = self._run.spec()
        self._shares_items = self._spec.kind == "items"
        self._job = find_job(self._spec.job)
        self._config: Any = read_run_config(self._job.Config, self._run.config_path)
        if self._run.is_done():
            print(f"{self._run.path} is done already", flush=True)
            return int(ExitCode.FINISHED)
        if self._env.is_lead:
            self._take_over()
        if self._env.attempt and self._run.is_stopped(self._attempt):
            self._notices.take()  # a person was faster than our handlers
        outcome = self._outcome_of_work()
        if self._env.is_lead:
            self._leave(outcome)
        return outcome.exit_code

    def _take_over(self) -> None:
        """Become the one attempt that may publish. Raises: FencedError, UsageError."""
        if not self._attempt:
            if self._env.world_size > 1:
                raise UsageError(
                    "GET3D_ATTEMPT is not set although WORLD_SIZE > 1", "start it by launch.py submit"
                )
            lease.refuse_second_copy(self._run.lease_path)
            self._attempt = self._run.new_attempt()
            self._run.release()
        if self._env.element is None:  # elements of an array own nothing but their claims
            self._lease = lease.Lease(self._run.lease_path, self._attempt)
            self._lease.acquire()
            self._run.clean(is_one_writer=not self._shares_items)
        write_json(self._run.attempt_dir(self._attempt) / "env.json", describe())

    def _outcome_of_work(self) -> Outcome:
        start_step = self._run.saved_step()
        try:
            return self._ended_well(self._work())
        except Exception as error:  # noqa: BLE001  a bug must leave an outcome, too
            return self._outcome_of_failure(self._failed(error), start_step)

    def _failed(self, error: Exception) -> Failure:
        """Say why this worker failed, or that another one took it along; return the failure that came first."""
        mine = failures.failure_of(error, self._env.rank, self._run.path)
        if self._attempt:
            failures.leave(self._run.attempt_dir(self._attempt), mine)
        first = self._first_failure(mine)
        if first.rank != mine.rank:
            _print([f"rank {first.rank} failed and took this worker along:", *first.lines[:2]])
        elif mine.is_bug:
            with contextlib.suppress(OSError):
                traceback.print_exception(error)
        else:
            _print(mine.lines)
        return first

    def _first_failure(self, mine: Failure) -> Failure:
        """Return the failure of the worker that failed first; workers of items do not take each other along."""
        if not self._attempt or self._env.world_size == 1 or self._shares_items:
            return mine
        folder = self._run.attempt_dir(self._attempt)
        end_s = time.monotonic() + (FIRST_ERROR_S if mine.is_bug else 0.0)
        while (first := failures.first(folder) or mine) == mine and time.monotonic() < end_s:
            time.sleep(FIRST_ERROR_S / 10)
        return first

    def _outcome_of_failure(self, failure: Failure, start_step: int) -> Outcome:
        code = ExitCode(failure.exit_code)
        message = "\n".join(failure.lines)
        if code is ExitCode.BUG and self._notices.requested and (told := self._stop_reason().cause) in _TOLD:
            # Whoever tells all to leave may kill one of them first, or what it works with.
            code = ExitCode.CANCELLED if told is Cause.CANCELLED else ExitCode.SUSPENDED_PERIODIC
            return self._outcome(told, code, start_step, message=f"failed while leaving: {message}")
        return self._outcome(_CAUSES.get(code, Cause.REFUSED), code, start_step, message=message)

    def _work(self) -> Ended:
        pulse = self._watched()
        session = self._session(watchdog.CountedGroup(self._meet(), pulse), pulse)
        if self._env.is_lead:
            who = {} if self._env.element is None else {"element": self._env.element}
            hosts = self._env.hosts
            session.events.write("attempt-start", world_size=self._env.world_size, host=hosts[0], **who)
        work = self._job.make(self._config, session)
        if self._shares_items:
            return run_items(work, session, self._stop_reason)
        checkpoints = Checkpoints(
            open_storage(self._run.checkpoints_dir),
            self._config.checkpoint,
            self._check_owner,
            more_tiers(self._config.checkpoint, self._spec, self._config.resources.nodes),
        )
        ended = run_steps(
            work, session, checkpoints, self._config.checkpoint, self._stop_reason, self._is_fenced
        )
        session.group.close()
        return ended

    def _check_owner(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _is_fenced(self) -> bool:
        return self._lease is not None and self._lease.is_lost

    def _meet(self) -> Group:
        env = self._env
        if self._shares_items:
            return SoloGroup(env.rank, env.world_size)
        folder = self._run.attempt_dir(self._attempt)
        port = self._config.resources.port
        return meet(folder, env.rank, env.world_size, host=host(), port=port, device=self._device())

    def _device(self) -> str:
        return device_of(self._env, self._config.resources.gpus_per_worker)

    def _watched(self) -> watchdog.Pulse:
        retry = getattr(self._config, "retry", RetryConfig())
        together = not self._shares_items
        return watchdog.watch(
            self._run,
            self._attempt,
            self._env.rank,
            self._env.world_size,
            hang_s=retry.hang_s,
            together=together,
        )

    def _session(self, group: Group, pulse: watchdog.Pulse) -> Session:
        return Session(
            run=self._run,
            attempt=self._attempt,
            group=group,
            resources=self._config.resources,
            notices=self._notices,
            events=EventLog(self._run.events_path, self._attempt, self._env.rank),
            metrics=MetricLog(self._run.metrics_path, enabled=self._env.rank == 0),
            device=self._device(),
            element=self._env.element,
            pulse=pulse,
        )

    def _stop_reason(self) -> StopReason:
        if not self._env.attempt:
            return StopReason(cause=Cause.SUSPENDED)
        return open_scheduler(self._spec.scheduler).stop_reason(self._run, self._attempt)

    def _ended_well(self, ended: Ended) -> Outcome:
        self._digest, self._not_bitwise_from = ended.digest, ended.not_bitwise_from
        start, end, saved = ended.start_step, ended.step, ended.saved_step
        if ended.end is End.FINISHED:
            return self._outcome(Cause.FINISHED, ExitCode.FINISHED, start, end_step=end, saved_step=saved)
        cause = self._stop_reason().cause
        first = failures.first(self._run.attempt_dir(self._attempt))
        if first and cause not in _TOLD:
            return self._outcome_of_failure(first, start)
        code, message = ExitCode.SUSPENDED, f"saved at step {saved}"
        if ended.end is End.SUSPENDED_PERIODIC:
            code = ExitCode.SUSPENDED_PERIODIC
            message = f"no time to save: {end - saved} steps since step {saved} will be done again"
        code = ExitCode.CANCELLED if cause is Cause.CANCELLED else code
        return self._outcome(cause, code, start, message=message, end_step=end, saved_step=saved)

    def _outcome(
        self, cause: Cause, code: ExitCode, start_step: int, *, message: str = "", **steps: int
    ) -> Outcome:
        saved = self._run.saved_step()
        return Outcome(
            attempt=self._attempt,
            cause=cause,
            exit_code=int(code),
            start_step=start_step,
            end_step=steps["end_step"] if "end_step" in steps else self._run.reached_step(self._attempt),
            saved_step=steps.get("saved_step", saved),
            seconds=round(time.monotonic() - self._begun_s, 2),
            message=message,
            world_size=self._env.world_size,
            hosts=self._env.hosts,
            element=self._env.element,
        )

    def _leave(self, outcome: Outcome) -> None:
        self._log_end(outcome)
        if outcome.cause is not Cause.FENCED or self._run.outcome(self._attempt) is None:
            self._run.write_outcome(
                outcome
            )  # whoever took over may have said already why this attempt was lost
        if self._lease:
            self._lease.release()
        self._notices.ignore()
        decision = after_attempt(self._run.outcomes(), getattr(self._config, "retry", RetryConfig()))
        if decision.action is Action.REQUEUE and self._env.scheduler_job:
            self._requeue(decision.delay_s)

    def _requeue(self, delay_s: float) -> None:
        """Ask to come back; the outcome stands whether the scheduler hears it or not."""
        try:
            open_scheduler(self._spec.scheduler).requeue(self._run, self._config.resources, delay_s)
        except Get3dError as error:
            _print(failures.lines_of(error))

    def _log_end(self, outcome: Outcome) -> None:
        events = EventLog(self._run.events_path, self._attempt, 0)
        if outcome.cause is Cause.FINISHED:
            done: dict[str, Any] = {
                "step": outcome.end_step,
                "digest": self._digest,
                "attempt": self._attempt,
                "t": time.time(),
            }
            if self._not_bitwise_from is not None:
                done["not_bitwise_from"] = self._not_bitwise_from
            # Several elements of an array may see at once that nothing is left: one of them says it.
            if self._env.element is not None and not create(self._run.done_path, json.dumps(done).encode()):
                return
            events.write("finish", step=outcome.end_step, digest=self._digest)
            if self._env.element is None:
                write_json(self._run.done_path, done)
        elif outcome.exit_code in (ExitCode.SUSPENDED, ExitCode.SUSPENDED_PERIODIC, ExitCode.CANCELLED):
            stop: dict[str, Any] = {
                "cause": outcome.cause,
                "signal": self._notices.signal_name,
                "step": outcome.end_step,
            }
            events.write("suspend", **stop, saved_step=outcome.saved_step, digest=self._digest)
        else:
            events.write(
                "crash",
                step=outcome.end_step,
                saved_step=outcome.saved_step,
                cause=outcome.cause,
                error=outcome.message,
            )


def _print(lines: Sequence[str]) -> None:
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        print(*lines, sep="\n", file=sys.stderr, flush=True)

"""The loop of a ``steps`` job: resume, step, agree, save, and suspend at the same step on all workers."""

import time
from collections.abc import Callable
from typing import Any

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import FencedError
from get3d_cluster.runtime.checkpoint import Checkpoints, Loaded
from get3d_cluster.runtime.checkpoint_copies import awaited_until_s
from get3d_cluster.runtime.checkpoint_files import not_bitwise_from
from get3d_cluster.runtime.ending import End, Ended, Plan, Reason, write_notice
from get3d_cluster.runtime.fingerprint import fingerprint_of_all, told
from get3d_cluster.runtime.history import History
from get3d_cluster.runtime.notices import STOP_SIGNALS
from get3d_cluster.runtime.progress import Progress, say
from get3d_cluster.runtime.resume import give_back, load_together
from get3d_cluster.runtime.rollback import Rollbacks
from get3d_cluster.runtime.session import DependentWork, Session, Work
from get3d_cluster.runtime.step_saves import StepSaves
from get3d_cluster.runtime.watchdog import process_age_s


def run_steps(
    work: Work,
    session: Session,
    checkpoints: Checkpoints,
    config: CheckpointConfig,
    stop_reason: Callable[[], Reason],
    is_fenced: Callable[[], bool] = lambda: False,
) -> Ended:
    """Resume ``work`` where its newest checkpoint is, and run it to its end or to the first notice to any worker.

    ``stop_reason`` is asked once, on rank 0, after a notice. ``is_fenced`` is asked after each step, on rank 0: once a
    newer attempt owns the run, this one must not go on writing what both write.

    Raises: CheckpointError, FencedError, StorageError, and whatever the work raises.
    """
    loop = _StepLoop(work, session, checkpoints, config, is_fenced)
    try:
        loop.resume()
        stopped = loop.is_stopped() and not loop.is_done()
        while not stopped and not loop.is_done():
            stopped = loop.step()
        return loop.suspend(stop_reason) if stopped else loop.finish()
    finally:
        session.pulse.beat("leaving", session.pulse.step)
        loop.close()


class _StepLoop:
    """The parts of ``run_steps`` and what they share."""

    def __init__(
        self,
        work: Work,
        session: Session,
        checkpoints: Checkpoints,
        config: CheckpointConfig,
        is_fenced: Callable[[], bool],
    ) -> None:
        self._work = work
        self._session = session
        self._pulse = session.pulse
        self._checkpoints = checkpoints
        self._is_fenced = is_fenced
        self._progress = Progress(session)
        self._history = History(session)
        self._rollbacks = Rollbacks(work, session, checkpoints, self._history)
        self._saves = StepSaves(work, session, checkpoints, config, self._history)
        session.ballot.ask(self._flags)
        self._start_step = self._next_step = 0

    def resume(self) -> None:
        self._pulse.beat("starting", 0)
        loaded = load_together(self._checkpoints, self._session)
        if loaded is not None:
            give_back(self._work, loaded)
            self._history.go_on_from(loaded.meta)
            for what in loaded.damaged:
                say(f"a checkpoint or a tier was passed over: {what}")
        position = self._work.position()
        self._start_step = position.step
        self._session.metrics.rewind(position.step)
        self._history.on = self._numeric_environment()
        if self._session.rank == 0:
            self._write_beginning(loaded)
        self._progress.more = self._history.rollbacks_told()
        self._progress.show(position, self._history.active_s, always=True)
        self._saves.stand_at(position.step)
        self._pulse.beat("starting", position.step)  # until the first step, which may have to compile

    def _numeric_environment(self) -> dict[str, Any]:
        """Return what decides bits in this attempt beside the state. All ranks call it."""
        on = fingerprint_of_all(self._session.group, self._session.device)
        on["code"] = self._session.group.broadcast(self._session.run.code_digest())
        if isinstance(self._work, DependentWork):
            on |= self._work.bits_depend_on()
        return on

    def _write_beginning(self, loaded: Loaded | None) -> None:
        """Write from where it goes on, and what changed of what decides bits: the promise of equal bits ends there."""
        position, events = self._work.position(), self._session.events
        events.write(
            "resume" if loaded else "start",
            step=position.step,
            epoch=position.epoch,
            images=position.images,
            digest=loaded.digest if loaded else "",
            damaged=list(loaded.damaged) if loaded else [],
            world_size=self._session.world_size,
            since_s=round(process_age_s(), 3),
        )
        for row in self._history.compare_environment(loaded.meta if loaded else {}, position.step):
            events.write("environment", step=position.step, changed=row["changed"])
            say(f"not bitwise from step {position.step} on: {told(row['changed'])}")

    def is_stopped(self) -> bool:
        """Say whether any worker got a notice before the first step."""
        return self._session.group.any([self._session.notices.requested])[0]

    def is_done(self) -> bool:
        """Say whether nothing is left to do, not even to go back."""
        return self._work.is_done() and self._rollbacks.target() is None

    def step(self) -> bool:
        """Do one step, take saves further, begin one that is due; say whether all workers stop here.

        A training that has diverged goes back first. It is not saved before it has done a step from there: what
        decides that it goes back is in the state from before, so that it goes the same way whenever it is stopped.
        """
        if (target := self._rollbacks.target()) is not None:
            self._go_back(target)
        with self._pulse.counting("step"):
            start = time.monotonic()
            self._next_step = self._work.position().step + 1
            self._work.step()
            self._history.active_s += time.monotonic() - start
            position = self._work.position()
            stop, save, fenced, *flags = self._agreed()
        self._pulse.beat("step", position.step)
        if fenced:
            raise FencedError(
                f"a newer attempt owns this run, not {self._session.attempt}",
                "nothing to do: the newer attempt goes on from the last checkpoint",
            )
        self._saves.advance(flags)
        if not stop and not self._work.is_done() and self._rollbacks.target() is None:
            self._saves.prepare()
            if position.step == self._rollbacks.missing_step:
                self._saves.settle()
            self._saves.save_if_due(position, is_due=save)
        self._progress.show(position, self._history.active_s)
        return stop and not self.is_done()

    def _go_back(self, target: int) -> None:
        """Go back to ``target`` or before, and stand there as if the attempt had resumed there."""
        self._pulse.beat("starting", self._work.position().step)
        self._saves.settle()
        step = self._rollbacks.go_back(target)
        self._saves.stand_at(step)
        self._start_step = min(self._start_step, step)
        self._session.metrics.rewind(step)
        self._progress.more = self._history.rollbacks_told()
        self._progress.show(self._work.position(), self._history.active_s, always=True)

    def _flags(self) -> list[bool]:
        """Return what this worker has to tell all at the end of the step that it is in."""
        is_lead = self._session.rank == 0
        due, fenced = is_lead and self._saves.is_due(self._next_step), is_lead and self._is_fenced()
        return [self._session.notices.requested, due, fenced, *self._saves.flags()]

    def _agreed(self) -> list[bool]:
        """Return what any worker has to tell all. A worker alone hears also what came after it was counted."""
        counted, group = self._session.ballot.take(), self._session.group
        if counted is None:
            return group.any(self._flags())
        if group.world_size > 1:
            return counted
        return [early or now for early, now in zip(counted, self._flags(), strict=True)]

    def suspend(self, stop_reason: Callable[[], Reason]) -> Ended:
        told, signals = self._told()
        plan, until_s = Plan.NOTHING, 0.0
        if self._session.rank == 0:
            reason = stop_reason()
            write_notice(self._session, reason, self._work.position(), told, signals)
            plan = self._saves.plan(reason.grace_s)
            until_s = awaited_until_s(self._session.notices.first_s, reason.grace_s)
        plan = Plan(self._session.group.broadcast(plan))
        self._saves.leave(plan, until_s)
        end = End.SUSPENDED_PERIODIC if plan is Plan.NOTHING else End.SUSPENDED
        return self._ended(end)

    def _told(self) -> tuple[list[int], list[str]]:
        """Return the ranks that got a notice so far, and its signals. All ranks call it."""
        notices, ranks = self._session.notices, range(self._session.world_size)
        names = [number.name for number in STOP_SIGNALS]
        mine = [notices.requested and rank == self._session.rank for rank in ranks]
        flags = self._session.group.any(mine + [notices.signal_name == name for name in names])
        signals = [name for name, heard in zip(names, flags[len(mine) :], strict=True) if heard]
        return [rank for rank in ranks if flags[rank]], signals

    def finish(self) -> Ended:
        self._saves.end()
        return self._ended(End.FINISHED)

    def _ended(self, end: End) -> Ended:
        position = self._work.position()
        self._progress.show(position, self._history.active_s, always=True)
        return Ended(
            end=end,
            start_step=self._start_step,
            step=position.step,
            saved_step=self._saves.saved_step,
            digest=self._saves.digest,
            not_bitwise_from=not_bitwise_from({"not_bitwise": self._history.not_bitwise}),
        )

    def close(self) -> None:
        self._saves.close()

"""The two loops: step, agree, save, suspend. Workers of a ``steps`` job stop at the same step; ``items`` each alone."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from get3d_cluster.core.job import Cause, CheckpointConfig, Position
from get3d_cluster.errors import CheckpointError, FencedError, Get3dError, HeldError, StorageError, UsageError
from get3d_cluster.runtime.cadence import Cadence, interruptions_of
from get3d_cluster.runtime.checkpoint import RUN, Checkpoints, DamagedError, Loaded, Saved
from get3d_cluster.runtime.checkpoint_copies import FAR, LAST_S, LEAVE_S, PATIENCE_S, Copies, wait_together
from get3d_cluster.runtime.checkpoint_files import not_bitwise_from
from get3d_cluster.runtime.checkpoint_flight import Verdict
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.checkpoint_tree import shape_differences
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.fingerprint import fingerprint_of_all, not_bitwise_rows, told
from get3d_cluster.runtime.notices import STOP_SIGNALS
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.runtime.session import (
    ComparingWork,
    DependentWork,
    FrozenWork,
    ItemWork,
    RecoveringWork,
    ReplicatedWork,
    Session,
    Work,
)
from get3d_cluster.runtime.watchdog import process_age_s
from get3d_cluster.storage.local import sync_file

PROGRESS_S = 1.0
ELEMENTS_A_SECOND = 8
"""Of a job array each element tells its progress, since none is sure to be there; together so often a second."""
NEWS_S = 60.0
"""What another element told no longer ago, and what is further, is not overwritten."""
FAILED_SAVE_RATIO = 10
"""After a save that failed, so many times its duration go by before the next: a full disk costs a tenth at most."""
MOST_SHOWN = 4
"""Tensors that an error names."""
SAFETY = 1.5
"""A save is begun only if the deadline leaves this many times the longest save so far."""


class End(StrEnum):
    """How a loop ended."""

    FINISHED = "finished"
    SUSPENDED = "suspended"
    SUSPENDED_PERIODIC = "suspended-periodic"
    """The deadline was too short to save: the newest periodic checkpoint stands."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a loop ended, and where."""

    end: End
    start_step: int
    step: int
    saved_step: int
    digest: str = ""
    not_bitwise_from: int | None = None
    """Step from which on the bits may be others than those of the uninterrupted run; None: they are the same."""


class _Plan(StrEnum):
    """What to do about saving before leaving on a notice."""

    SAVE = "save"
    """After the save in flight, if there is one."""
    DROP_AND_SAVE = "drop-and-save"
    NOTHING = "nothing"
    """But to finish the save in flight: the newest checkpoint stands."""


class Reason(Protocol):
    """Why an attempt was told to stop."""

    @property
    def cause(self) -> Cause: ...

    @property
    def grace_s(self) -> float | None:
        """Seconds from the notice to the kill, if known."""
        ...


class Progress:
    """Tells people about once a second how far a run is (progress.json). Rank 0 only, or each element of an array."""

    def __init__(self, session: Session, start_step: int | None = None) -> None:
        self._run = session.run
        self._start = {} if start_step is None else {"start_step": start_step}
        self._attempt = session.attempt
        self._enabled = session.is_lead
        self._is_shared = session.element is not None
        self._every_s = PROGRESS_S
        if self._is_shared:
            self._every_s = max(PROGRESS_S, session.world_size / ELEMENTS_A_SECOND)
        self._last_s = -math.inf
        self.more: dict[str, int] = {}
        """What else there is to tell each time."""

    def show(self, position: Position, active_s: float, *, always: bool = False) -> None:
        now = time.monotonic()
        if not self._enabled or (now - self._last_s < self._every_s and not always):
            return
        self._last_s = now
        if self._is_shared and self._is_behind(position):
            return
        values = {
            "attempt": self._attempt,
            "step": position.step,
            "num_steps": position.num_steps,
            "epoch": position.epoch,
            "images": position.images,
            **({"given_up": position.given_up} if position.given_up else {}),
            **self._start,
            **self.more,
        }
        with contextlib.suppress(StorageError):  # a full disk is told where state is saved
            write_json(self._run.progress_path, values | {"t": time.time(), "active_s": round(active_s, 3)})

    def _is_behind(self, position: Position) -> bool:
        """Say whether another element has counted further just now: work that it ended since we looked."""
        with contextlib.suppress(UsageError):
            told = read_json(self._run.progress_path)
            is_news = abs(time.time() - told.get("t", 0.0)) < NEWS_S
            return bool(is_news and told.get("step", 0) > position.step)
        return False


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
        self._config = config
        self._is_fenced = is_fenced
        self._progress = Progress(session)
        self._active_s = 0.0
        self._copies = Copies(checkpoints, session.group)
        self._saver = Saver(checkpoints, session.group, self._copies.held)
        session.copying.ask(self._wait_for_copies)
        session.ballot.ask(self._flags)
        self._later = work.frozen_parts() if isinstance(work, FrozenWork) else ()
        self._recovering = work if isinstance(work, RecoveringWork) else None
        checkpoints.rollback_every_steps = self._recovering.rollback_every_steps() if self._recovering else 0
        is_asked = config.auto and session.rank == 0
        self._cadence = Cadence(config, interruptions_of(session.run, session.attempt) if is_asked else 0)
        self._is_prepared = False
        self._saved: Saved | None = None
        self._saved_step = self._start_step = 0
        self._begun_step = self._local_step = self._next_step = 0
        self._begun_s = time.monotonic()
        self._stall_s = self._waited_s = 0.0
        """What the save under way, or the last one, took from training: between steps, and inside of them."""
        self._longest_save_s = 0.0
        self._next_save_s = 0.0
        self._on: dict[str, Any] = {}
        """Numeric environment of this attempt."""
        self._not_bitwise: list[dict[str, Any]] = []
        """Where the run went on in another numeric environment, oldest first."""
        self._rollbacks: list[dict[str, int]] = []
        """From which step it went back to which, oldest first."""
        self._missing_step = -1
        """To which it had to go back, and could not: on the way there again."""

    def resume(self) -> None:
        self._pulse.beat("starting", 0)
        loaded = self._load()
        if loaded is not None:
            _give_back(self._work, loaded)
            self._active_s = float(loaded.meta.get("active_s", 0.0))
            for what in loaded.damaged:
                self._say(f"a checkpoint or a tier was passed over: {what}")
        position = self._work.position()
        self._start_step = self._saved_step = self._begun_step = self._local_step = position.step
        self._note_rollbacks(loaded.meta if loaded else {})
        self._session.metrics.rewind(position.step)
        self._on = fingerprint_of_all(self._session.group, self._session.device)
        self._on["code"] = self._session.group.broadcast(self._session.run.code_digest())
        if isinstance(self._work, DependentWork):
            self._on |= self._work.bits_depend_on()
        if self._session.rank == 0:
            values = {"step": position.step, "epoch": position.epoch, "images": position.images}
            self._session.events.write(
                "resume" if loaded else "start",
                **values,
                digest=loaded.digest if loaded else "",
                damaged=list(loaded.damaged) if loaded else [],
                world_size=self._session.world_size,
                since_s=round(process_age_s(), 3),
            )
            self._compare_environment(loaded.meta if loaded else {}, position.step)
        self._progress.show(position, self._active_s, always=True)
        self._begun_s = time.monotonic()
        self._pulse.beat("starting", position.step)  # until the first step, which may have to compile

    def _compare_environment(self, meta: Mapping[str, Any], step: int) -> None:
        """Say what changed of what decides bits; to go on is allowed, the promise of equal bits ends there."""
        before = len(meta.get("not_bitwise", ()))
        self._not_bitwise = not_bitwise_rows(meta, self._on, step, self._session.attempt)
        for row in self._not_bitwise[before:]:
            self._session.events.write("environment", step=step, changed=row["changed"])
            self._say(f"not bitwise from step {step} on: {told(row['changed'])}")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # the log may lie on the disk that is full
            print(line, flush=True)

    def is_stopped(self) -> bool:
        """Say whether any worker got a notice before the first step."""
        return self._session.group.any([self._session.notices.requested])[0]

    def close(self) -> None:
        self._session.copying.ask(lambda _: None)
        self._saver.close()
        self._copies.close()
        self._tell_of_copies()

    def is_done(self) -> bool:
        """Say whether nothing is left to do, not even to go back."""
        return self._work.is_done() and self._rollback_step() is None

    def step(self) -> bool:
        """Do one step, take saves further, begin one that is due; say whether all workers stop here.

        A training that has diverged goes back first. It is not saved before it has done a step from there: what
        decides that it goes back is in the state from before, so that it goes the same way whenever it is stopped.
        """
        if (target := self._rollback_step()) is not None:
            self._go_back(target)
        with self._pulse.counting("step"):
            start = time.monotonic()
            self._next_step = self._work.position().step + 1
            self._work.step()
            self._active_s += time.monotonic() - start
            position = self._work.position()
            stop, save, fenced, *flags = self._agreed()
        self._pulse.beat("step", position.step)
        if fenced:
            raise FencedError(
                f"a newer attempt owns this run, not {self._session.attempt}",
                "nothing to do: the newer attempt goes on from the last checkpoint",
            )
        self._advance(flags)
        if not stop and not self._work.is_done() and self._rollback_step() is None:
            self._prepare()
            self._save_if_due(position, is_due=save)
        self._progress.show(position, self._active_s)
        return stop and not self.is_done()

    def _save_if_due(self, position: Position, *, is_due: bool) -> None:
        every = self._checkpoints.rollback_every_steps
        is_target = bool(every) and position.step % every == 0
        if self._saver.flight is not None and position.step == self._missing_step:
            self._finish_flight()
        if (is_due or is_target) and self._saver.flight is None:
            self._try_periodic_save()
        elif self._is_local_save_due(position):
            self._begin_local_save(position)

    def _rollback_step(self) -> int | None:
        return self._recovering.rollback_step() if self._recovering else None

    def _go_back(self, target: int) -> None:
        """Go back to the checkpoint of ``target`` and on with other random numbers, on all workers alike.

        If it is missing or damaged the training goes on from an older one, by which it comes to be what it was: the
        same steps up to ``target``, and further, until it has to go back again.

        Raises: HeldError, after which the newest checkpoint is that of ``target``; CheckpointError, StorageError.
        """
        work, position = self._recovering, self._work.position()
        assert work is not None
        self._pulse.beat("starting", position.step)
        if self._saver.flight is not None:
            self._finish_flight()
        loaded = self._load(target)
        there = loaded.step if loaded else 0
        if there < target:
            self._refuse_to_go_back_twice(target, loaded)
        held = work.why_held()
        number = len(self._rollbacks) + (held is None and there == target)
        self._write_rollback(number, position.step, there, target, is_held=held is not None)
        if held:
            raise held
        meta = loaded.meta if loaded else {}
        if there == target:
            work.roll_back(loaded.state if loaded else None)
            self._rollbacks.append({"from": position.step, "to": target})
        elif loaded:
            work.load(loaded.state)
            self._missing_step = target
        self._note_rollbacks({"rollbacks": self._rollbacks} if there == target else meta)
        self._stand_at(there, float(meta.get("active_s", 0.0)))

    def _refuse_to_go_back_twice(self, target: int, loaded: Loaded | None) -> None:
        """Raises: HeldError if there is no checkpoint from before; StorageError if ``target`` was missing before."""
        if loaded is None:
            raise HeldError(
                f"the training diverged, and no checkpoint up to step {target} is left to go back to",
                "lower the learning rates with --allow-config-change, or start another run",
            )
        if target == self._missing_step:
            raise StorageError(
                f"the checkpoint of step {target}, to go back to, is missing again after it was computed again",
                f"see the events save-failed in {self._session.run.events_path}; free or mend that disk",
            )

    def _write_rollback(self, number: int, step: int, there: int, target: int, *, is_held: bool) -> None:
        """Write the event ``rollback``, then set later checkpoints aside: without them it tells why they are gone."""
        if self._session.rank:
            return
        spent = {f"{part}_s": round(seconds, 3) for part, seconds in self._pulse.seconds.items()}
        missing = {} if there == target else {"missing": target}
        held = {"held": True} if is_held else {}
        self._session.events.write("rollback", step=step, to=there, number=number, **missing, **held, **spent)
        with contextlib.suppress(OSError):
            sync_file(self._session.run.events_path)
        aside = self._checkpoints.set_aside_after(there)
        self._session.events.write("set-aside", after=there, what=aside)
        what = f"the training diverged at step {step} and goes back to step {there}"
        why = f", to compute that of step {target} again" if missing else ""
        self._say(f"{what}{why}; {len(aside)} later checkpoints were set aside in checkpoints/.rolled-back-*")

    def _stand_at(self, step: int, active_s: float) -> None:
        """Be where a checkpoint of ``step`` is the newest."""
        self._saved, self._active_s = None, active_s
        self._saved_step = self._begun_step = self._local_step = step
        self._start_step = min(self._start_step, step)
        self._begun_s = time.monotonic()
        self._not_bitwise = [{**row, "step": min(row["step"], step)} for row in self._not_bitwise]
        self._session.metrics.rewind(step)
        self._progress.show(self._work.position(), active_s, always=True)

    def _note_rollbacks(self, meta: Mapping[str, Any]) -> None:
        """Remember, and tell people, how often the training went back."""
        self._rollbacks = [dict(row) for row in meta.get("rollbacks", ())]
        last = self._rollbacks[-1] if self._rollbacks else {}
        told = {f"rolled_back_{key}": value for key, value in last.items()}
        self._progress.more = {"rollbacks": len(self._rollbacks), **told} if told else {}

    def _agreed(self) -> list[bool]:
        """Return what any worker has to tell all. A worker alone hears also what came after it was counted."""
        counted, group = self._session.ballot.take(), self._session.group
        if counted is None:
            return group.any(self._flags())
        if group.world_size > 1:
            return counted
        return [early or now for early, now in zip(counted, self._flags(), strict=True)]

    def _prepare(self) -> None:
        """Get ready for saves once the first step has filled the optimizers."""
        config = self._config
        if not self._is_prepared and (config.every_s or config.every_steps or config.local):
            self._saver.prepare(self._work.state())
        self._is_prepared = True

    def _advance(self, flags: Sequence[bool]) -> None:
        """Take the save in flight further, and note its verdict."""
        with self._pulse.counting("save"):
            flight, verdict = self._saver.flight, self._saver.advance(flags)
        if flight is not None and verdict is not None:
            self._landed(verdict, flight.why, flight.meta)
        self._tell_of_copies()

    def _tell_of_copies(self) -> None:
        for copied in self._copies.news():
            if copied.skipped_for is not None:
                self._tell("copy-skipped", step=copied.step, newer=copied.skipped_for)
            elif copied.problem:
                self._tell("copy-failed", step=copied.step, error=copied.problem)
            else:
                self._tell("copy", step=copied.step, num_bytes=copied.num_bytes, seconds=copied.seconds)

    def _flags(self) -> list[bool]:
        """Return what this worker has to tell all at the end of the step that it is in."""
        is_lead = self._session.rank == 0
        due, fenced = is_lead and self._is_save_due(), is_lead and self._is_fenced()
        return [self._session.notices.requested, due, fenced, *self._saver.flags()]

    def _is_save_due(self) -> bool:
        now = time.monotonic()
        is_due = self._cadence.is_due(self._next_step - self._begun_step, now - self._begun_s, self._active_s)
        return is_due and now >= self._next_save_s and self._saver.flight is None

    def _is_local_save_due(self, position: Position) -> bool:
        """Say, alike on all ranks, whether the near tier gets a checkpoint now."""
        every = self._config.local_every_steps
        is_due = bool(every) and position.step - self._local_step >= every
        return is_due and "local" in self._checkpoints.tiers and self._saver.flight is None

    def _begin_local_save(self, position: Position) -> None:
        begun_s = time.monotonic()
        with self._pulse.counting("save"):
            self._begin(position, self._agreed_state(), "local", "local")
        self._stall_s = time.monotonic() - begun_s
        self._local_step = position.step

    def suspend(self, stop_reason: Callable[[], Reason]) -> Ended:
        told, signals = self._told()
        plan, until_s = _Plan.NOTHING, 0.0
        if self._session.rank == 0:
            reason = stop_reason()
            write_notice(self._session, reason, self._work.position(), told, signals)
            plan, until_s = self._plan(reason.grace_s), self._copies_until_s(reason.grace_s)
        plan = _Plan(self._session.group.broadcast(plan))
        if plan is _Plan.DROP_AND_SAVE:
            self._saver.drop()
        elif self._saver.flight is not None:
            self._finish_flight()
        if plan is not _Plan.NOTHING:
            self._save("notice")
            self._let_copies_arrive(until_s, lambda: self._session.notices.is_urgent)
        end = End.SUSPENDED_PERIODIC if plan is _Plan.NOTHING else End.SUSPENDED
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
        if self._saver.flight is not None:
            self._finish_flight()
        self._save("end")
        self._let_copies_arrive(time.monotonic() + LAST_S, lambda: self._session.notices.requested)
        return self._ended(End.FINISHED)

    def _copies_until_s(self, grace_s: float | None) -> float:
        """Return until when, by the monotonic clock, this attempt may wait for copies before it leaves."""
        noticed_s = self._session.notices.first_s
        if grace_s is None or noticed_s is None:
            return time.monotonic() + PATIENCE_S
        return noticed_s + grace_s - LEAVE_S

    def _let_copies_arrive(self, until_s: float, is_called_away: Callable[[], bool]) -> None:
        """Let what is saved in the run's folder reach the URL, too, while there is time."""
        if FAR not in self._checkpoints.tiers:
            return
        self._pulse.beat("saving", self._work.position().step)
        with self._pulse.counting("save"):
            wait_together(self._copies, self._session.group, until_s, is_called_away)

    def _ended(self, end: End) -> Ended:
        position = self._work.position()
        self._progress.show(position, self._active_s, always=True)
        digest = self._saved.digest if self._saved else ""
        return Ended(
            end=end,
            start_step=self._start_step,
            step=position.step,
            saved_step=self._saved_step,
            digest=digest,
            not_bitwise_from=not_bitwise_from({"not_bitwise": self._not_bitwise}),
        )

    def _load(self, up_to: int | None = None) -> Loaded | None:
        """Rank 0 chooses and verifies; the others read the same one."""
        if self._session.rank == 0:
            checkpoints = self._checkpoints
            loaded = checkpoints.load() if up_to is None else checkpoints.load_up_to(up_to)
            if loaded is None and up_to is None:
                _refuse_to_start_over(self._session.run)
            self._session.group.broadcast([loaded.step, loaded.tier] if loaded else None)
            return loaded
        chosen = self._session.group.broadcast(None)
        try:
            return None if chosen is None else self._checkpoints.read_step(*chosen)
        except DamagedError as error:
            raise CheckpointError(
                f"rank {self._session.rank} reads another checkpoint than rank 0: {error}"
            ) from error

    def _plan(self, grace_s: float | None) -> "_Plan":
        """Decide on rank 0 what there is time for before the kill."""
        step, flight, noticed_s = (
            self._work.position().step,
            self._saver.flight,
            self._session.notices.first_s,
        )
        is_known = grace_s is not None and noticed_s is not None
        left_s = grace_s - (time.monotonic() - noticed_s) if is_known else math.inf  # type: ignore[operator]
        one_s = SAFETY * self._longest_save_s
        is_it_in_flight = flight is not None and flight.step == step and flight.tier == RUN
        is_older_in_flight = flight is not None and not is_it_in_flight
        is_enough = left_s > one_s * (2 if is_older_in_flight else 1)
        if step == self._saved_step or is_enough:
            return _Plan.SAVE
        if is_older_in_flight and left_s > one_s:
            return _Plan.DROP_AND_SAVE
        if is_it_in_flight:
            return _Plan.SAVE  # it is on its way, and nothing is faster
        lost = step - self._saved_step
        self._session.events.write(
            "too-late", left_s=round(left_s, 2), save_s=self._longest_save_s, steps_lost=lost
        )
        return _Plan.NOTHING

    def _finish_flight(self) -> None:
        """Wait for the save in flight. One that fails costs no more than that checkpoint."""
        flight = self._saver.flight
        assert flight is not None
        self._pulse.beat("saving", flight.step)
        with self._pulse.counting("save"):
            verdict = self._saver.finish()
        self._landed(verdict, flight.why, flight.meta)

    def _try_periodic_save(self) -> None:
        """A storage that is full now may be free later: the older checkpoint stands and training goes on."""
        position = self._work.position()
        self._pulse.beat("saving", position.step)
        begun_s = time.monotonic()
        with self._pulse.counting("save"):
            state = self._agreed_state()
            is_begun = self._begin(position, state, "periodic")
        self._stall_s = time.monotonic() - begun_s
        self._begun_step, self._begun_s, self._local_step = position.step, begun_s, position.step
        if not is_begun:
            self._landed(self._write_here(position, state), "periodic", self._meta_of(position))
        self._pulse.beat("step", position.step)

    def _agreed_state(self) -> Mapping[str, Any]:
        """Return the state to save, once all workers were found to have the same, if the work can tell.

        Raises: HeldError on all workers otherwise, so that the newest checkpoint is one that they agreed on.
        """
        if isinstance(self._work, ComparingWork):
            self._work.compare_replicas()
        return self._work.state()

    def _begin(self, position: Position, state: Mapping[str, Any], why: str, tier: str = RUN) -> bool:
        """Send a save on its way, if another process can do it."""
        self._session.metrics.flush()
        self._waited_s = 0.0
        meta = self._meta_of(position)
        return self._saver.begin(
            position.step,
            state,
            meta,
            why=why,
            later=self._later,
            tier=tier,
            agreed_step=self._agreed_step(),
        )

    def _wait_for_copies(self, parts: Iterable[str]) -> None:
        begun_s = time.monotonic()
        self._saver.wait_for(parts)
        self._waited_s += time.monotonic() - begun_s

    def _agreed_step(self) -> int | None:
        return self._work.agreed_step() if isinstance(self._work, ReplicatedWork) else None

    def _write_here(self, position: Position, state: Mapping[str, Any]) -> Verdict:
        """Write the state once for all workers, in the process of rank 0; the others wait for the verdict."""
        verdict: Verdict = {}
        begun_s = time.monotonic()
        with self._pulse.counting("save"):
            if self._session.rank == 0:
                verdict = self._publish(position, state)
            verdict = self._session.group.broadcast(verdict)
        self._stall_s += time.monotonic() - begun_s
        return verdict

    def _landed(self, verdict: Verdict, why: str, meta: Mapping[str, Any]) -> None:
        """Note how a save ended. A periodic one that the storage refused is tried again later.

        Raises: FencedError; StorageError from the last save.
        """
        if "error" not in verdict:
            self._note(verdict, why, meta)
        elif verdict["kind"] == "fenced":
            raise FencedError(verdict["error"], verdict["way_out"])
        elif verdict["kind"] == "writer" and why != "local":
            self._tell("writer-failed", error=verdict["error"])
            position = self._work.position()
            self._landed(self._write_here(position, self._agreed_state()), why, self._meta_of(position))
        elif why in ("periodic", "local"):
            now = time.monotonic()
            if why == "periodic":
                self._next_save_s = now + FAILED_SAVE_RATIO * (now - self._begun_s)
                self._begun_step, self._begun_s = self._saved_step, now
            self._tell("save-failed", error=verdict["error"], way_out=verdict["way_out"], why=why)
        else:
            raise StorageError(verdict["error"], verdict["way_out"])

    def _tell(self, event: str, **fields: Any) -> None:
        if self._session.rank == 0:
            self._session.events.write(event, **fields)

    def _note(self, verdict: Verdict, why: str, meta: Mapping[str, Any]) -> None:
        """Write the event of a save that stands, and remember it."""
        values = {key: verdict[key] for key in ("step", "digest", "num_bytes", "seconds")}
        if why == "local":
            self._tell("save-local", **values)
            return
        self._saved = Saved(**values)
        stall_s = self._stall_s + self._waited_s
        self._cadence.note(stall_s, self._saved.seconds)
        self._saved_step = self._saved.step
        self._longest_save_s = max(self._longest_save_s, self._saved.seconds)
        self._copies.offer(self._saved.step, self._agreed_step())
        if self._session.rank == 0:
            before = self._pulse.seconds | {"save": max(0.0, self._pulse.seconds["save"] - self._stall_s)}
            spent = {f"{part}_s": round(seconds, 3) for part, seconds in before.items()}
            place = {"epoch": meta["epoch"], "images": meta["images"], "stall_s": round(stall_s, 4)}
            self._session.events.write("save", why=why, **place, **values, **spent)

    def _save(self, why: str) -> None:
        """Publish the state as fast as possible, while all workers wait. Raises: FencedError, StorageError."""
        position = self._work.position()
        if self._saved is not None and self._saved.step == position.step:
            return
        self._pulse.beat("saving", position.step)
        begun_s = time.monotonic()
        with self._pulse.counting("save"):
            state = self._agreed_state()
            verdict = self._saver.finish() if self._begin(position, state, why) else None
        self._stall_s = time.monotonic() - begun_s
        self._landed(verdict or self._write_here(position, state), why, self._meta_of(position))
        self._pulse.beat("step", position.step)

    def _publish(self, position: Position, state: Mapping[str, Any]) -> Verdict:
        try:
            meta, agreed = self._meta_of(position), self._agreed_step()
            saved = self._checkpoints.save(position.step, state, meta, agreed, self._copies.held())
        except (FencedError, StorageError) as error:
            kind = "fenced" if isinstance(error, FencedError) else "storage"
            return {"error": error.what, "way_out": error.way_out, "kind": kind}
        return dataclasses.asdict(saved)

    def _meta_of(self, position: Position) -> dict[str, Any]:
        return {
            "epoch": position.epoch,
            "images": position.images,
            "active_s": self._active_s,
            **self._meta(),
        }

    def _meta(self) -> dict[str, Any]:
        return {
            "attempt": self._session.attempt,
            "world_size": self._session.world_size,
            "on": self._on,
            **({"not_bitwise": self._not_bitwise} if self._not_bitwise else {}),
            **({"rollbacks": self._rollbacks} if self._rollbacks else {}),
            **self._session.run.identity(),
        }


def _give_back(work: Work, loaded: Loaded) -> None:
    """Let ``work`` take over a saved state. Raises: UsageError naming tensors of other shapes, if it cannot."""
    try:
        work.load(loaded.state)
    except Get3dError:
        raise
    except Exception as error:
        differing = shape_differences(loaded.state, work.state())
        if not differing:
            raise
        shown = "; ".join(differing[:MOST_SHOWN])
        more = f"; {len(differing) - MOST_SHOWN} more" if len(differing) > MOST_SHOWN else ""
        raise UsageError(
            f"the checkpoint of step {loaded.step} does not fit the configuration: {shown}{more}",
            "nothing was lost: give the values of before with --allow-config-change, or train under another --name",
        ) from error


def _refuse_to_start_over(run: RunFolder) -> None:
    """Make sure that no checkpoint was ever published, or that the training went back to its beginning since.

    Raises: CheckpointError if the run's history knows one.
    """
    rows = read_rows(run.events_path)
    starts = [place for place, row in enumerate(rows) if row["event"] == "rollback" and row["to"] == 0]
    since, attempt = (starts[-1], rows[starts[-1]]["attempt"]) if starts else (0, 0)
    saved = [outcome.saved_step for outcome in run.outcomes() if outcome.attempt >= attempt]
    saved += [row["step"] for row in rows[since:] if row["event"] == "save"]
    if run.is_done() or max(saved, default=0) > 0:
        raise CheckpointError(
            f"{run.checkpoints_dir} holds no checkpoint, although this run saved step {max(saved, default=0)}",
            "restore the folder, or mount its disk, then resume; to start over take another --name",
        )


def write_notice(
    session: Session, reason: Reason | None, position: Position, told: list[int], signals: list[str]
) -> None:
    """Write the event ``notice``, at the moment at which this worker got it if it did."""
    first_s = session.notices.first_s
    known: dict[str, Any] = {"cause": reason.cause, "grace_s": reason.grace_s} if reason else {}
    session.events.write(
        "notice",
        age_s=time.monotonic() - first_s if first_s is not None else 0.0,
        **known,
        signal=",".join(signals),
        ranks=told,
        step=position.step,
    )


def run_items(work: ItemWork, session: Session, stop_reason: Callable[[], Reason] | None = None) -> Ended:
    """Run a worker of an ``items`` job until every item has come to its end, or until a notice to this worker.

    ``stop_reason`` is asked after a notice, by each worker that got it.
    """
    pulse = session.pulse
    position = work.position()
    start_step = position.step
    if session.is_lead:
        session.events.write("start", step=start_step, since_s=round(process_age_s(), 3))
    progress = Progress(session, start_step)
    progress.show(position, 0.0)
    begun_s = time.monotonic()
    try:
        while not work.is_done() and not session.notices.requested:
            with pulse.counting("step"):
                work.step()
            position = work.position()
            pulse.beat("step", position.step)
            progress.show(position, time.monotonic() - begun_s)
        done = work.is_done()
        if not done:
            reason = stop_reason() if stop_reason else None
            told, signals = [session.rank], [session.notices.signal_name]
            write_notice(session, reason, work.position(), told, signals)
    finally:
        pulse.beat("leaving", pulse.step)
        work.close()
    position = work.position()
    progress.show(position, time.monotonic() - begun_s, always=True)
    end = End.FINISHED if done else End.SUSPENDED
    return Ended(end=end, start_step=start_step, step=position.step, saved_step=position.step)

"""The saves of a run of steps: when one is due, how it is made while training goes on, and what came of it."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from get3d_cluster.core.job import CheckpointConfig, Position
from get3d_cluster.errors import FencedError, StorageError
from get3d_cluster.runtime.cadence import Cadence, interruptions_of
from get3d_cluster.runtime.checkpoint import RUN, Checkpoints, Saved
from get3d_cluster.runtime.checkpoint_copies import FAR, LAST_S, Copies, wait_together
from get3d_cluster.runtime.checkpoint_flight import Verdict
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.ending import Plan, plan_for
from get3d_cluster.runtime.history import History
from get3d_cluster.runtime.session import ComparingWork, FrozenWork, ReplicatedWork, Session, Work

FAILED_SAVE_RATIO = 10
"""After a save that failed, so many times its duration go by before the next: a full disk costs a tenth at most."""


class StepSaves:
    """Saves ``work`` and keeps account of it. All ranks call the same methods at the same steps."""

    def __init__(
        self,
        work: Work,
        session: Session,
        checkpoints: Checkpoints,
        config: CheckpointConfig,
        history: History,
    ) -> None:
        self._work = work
        self._session = session
        self._pulse = session.pulse
        self._checkpoints = checkpoints
        self._config = config
        self._history = history
        self._copies = Copies(checkpoints, session.group)
        self._saver = Saver(checkpoints, session.group, self._copies.held)
        session.copying.ask(self._wait_for_copies)
        self._later = work.frozen_parts() if isinstance(work, FrozenWork) else ()
        is_asked = config.auto and session.rank == 0
        self._cadence = Cadence(config, interruptions_of(session.run, session.attempt) if is_asked else 0)
        self._is_prepared = False
        self._stall_s = self._waited_s = 0.0
        """What the save under way, or the last one, took from training: between steps, and inside of them."""
        self._longest_save_s = 0.0
        self._next_save_s = 0.0
        self.stand_at(0)

    def stand_at(self, step: int) -> None:
        """Be where a checkpoint of ``step`` is the newest."""
        self._saved: Saved | None = None
        self.saved_step = step
        """Of the newest checkpoint in the run's folder."""
        self._begun_step = self._local_step = step
        self._begun_s = time.monotonic()

    @property
    def digest(self) -> str:
        """Digest of the newest checkpoint, if it was made since ``stand_at``; else empty."""
        return self._saved.digest if self._saved else ""

    # In each step

    def flags(self) -> list[bool]:
        """Return what this worker has to tell all of the save in flight; see ``advance``."""
        return self._saver.flags()

    def advance(self, flags: Sequence[bool]) -> None:
        """Take the save in flight further by the ``flags`` of all workers together, and note its verdict."""
        with self._pulse.counting("save"):
            flight, verdict = self._saver.flight, self._saver.advance(flags)
        if flight is not None and verdict is not None:
            self._landed(verdict, flight.why, flight.meta)
        self._tell_of_copies()

    def is_due(self, next_step: int) -> bool:
        """Say, on rank 0, whether a save is due once ``next_step`` is done."""
        now = time.monotonic()
        steps, seconds = next_step - self._begun_step, now - self._begun_s
        is_due = self._cadence.is_due(steps, seconds, self._history.active_s)
        return is_due and now >= self._next_save_s and self._saver.flight is None

    def prepare(self) -> None:
        """Get ready for saves once the first step has filled the optimizers."""
        config = self._config
        if not self._is_prepared and (config.every_s or config.every_steps or config.local):
            self._saver.prepare(self._work.state())
        self._is_prepared = True

    def save_if_due(self, position: Position, *, is_due: bool) -> None:
        """Begin a save if all agreed that one ``is_due``, or if it may be gone back to; or one for the near tier."""
        every = self._checkpoints.rollback_every_steps
        is_target = bool(every) and position.step % every == 0
        if (is_due or is_target) and self._saver.flight is None:
            self._try_periodic_save()
        elif self._is_local_save_due(position):
            self._begin_local_save(position)

    def settle(self) -> None:
        """Wait for the save in flight, if there is one. One that fails costs no more than that checkpoint."""
        flight = self._saver.flight
        if flight is None:
            return
        self._pulse.beat("saving", flight.step)
        with self._pulse.counting("save"):
            verdict = self._saver.finish()
        self._landed(verdict, flight.why, flight.meta)

    # At the end

    def plan(self, grace_s: float | None) -> Plan:
        """Decide on rank 0 what there is time for before the kill."""
        step, flight = self._work.position().step, self._saver.flight
        noticed_s = self._session.notices.first_s
        is_known = grace_s is not None and noticed_s is not None
        left_s = grace_s - (time.monotonic() - noticed_s) if is_known else math.inf  # type: ignore[operator]
        is_it = flight is not None and flight.step == step and flight.tier == RUN
        is_older = flight is not None and not is_it
        plan = plan_for(left_s, self._longest_save_s, is_it_in_flight=is_it, is_older_in_flight=is_older)
        if step == self.saved_step:
            return Plan.SAVE
        if plan is Plan.NOTHING:
            told = {"left_s": round(left_s, 2), "save_s": self._longest_save_s}
            self._session.events.write("too-late", **told, steps_lost=step - self.saved_step)
        return plan

    def leave(self, plan: Plan, copies_until_s: float) -> None:
        """Carry out rank 0's ``plan``, whose clock says how long copies may take to arrive at the URL."""
        if plan is Plan.DROP_AND_SAVE:
            self._saver.drop()
        else:
            self.settle()
        if plan is not Plan.NOTHING:
            self._save("notice")
            self._let_copies_arrive(copies_until_s, lambda: self._session.notices.is_urgent)

    def end(self) -> None:
        """Save the end of the work. Raises: FencedError, StorageError."""
        self.settle()
        self._save("end")
        self._let_copies_arrive(time.monotonic() + LAST_S, lambda: self._session.notices.requested)

    def close(self) -> None:
        """Put down what is under way. Called on every way out."""
        self._session.copying.ask(lambda _: None)
        self._saver.close()
        self._copies.close()
        self._tell_of_copies()

    # The parts of a save

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
            self._landed(self._write_here(position, state), "periodic", self._history.meta(position))
        self._pulse.beat("step", position.step)

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
        self._landed(verdict or self._write_here(position, state), why, self._history.meta(position))
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
        meta = self._history.meta(position)
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

    def _publish(self, position: Position, state: Mapping[str, Any]) -> Verdict:
        try:
            meta, agreed = self._history.meta(position), self._agreed_step()
            saved = self._checkpoints.save(position.step, state, meta, agreed, self._copies.held())
        except (FencedError, StorageError) as error:
            kind = "fenced" if isinstance(error, FencedError) else "storage"
            return {"error": error.what, "way_out": error.way_out, "kind": kind}
        return dataclasses.asdict(saved)

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
            self._landed(self._write_here(position, self._agreed_state()), why, self._history.meta(position))
        elif why in ("periodic", "local"):
            now = time.monotonic()
            if why == "periodic":
                self._next_save_s = now + FAILED_SAVE_RATIO * (now - self._begun_s)
                self._begun_step, self._begun_s = self.saved_step, now
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
        self.saved_step = self._saved.step
        self._longest_save_s = max(self._longest_save_s, self._saved.seconds)
        self._copies.offer(self._saved.step, self._agreed_step())
        if self._session.rank == 0:
            before = self._pulse.seconds | {"save": max(0.0, self._pulse.seconds["save"] - self._stall_s)}
            spent = {f"{part}_s": round(seconds, 3) for part, seconds in before.items()}
            place = {"epoch": meta["epoch"], "images": meta["images"], "stall_s": round(stall_s, 4)}
            self._session.events.write("save", why=why, **place, **values, **spent)

    def _tell_of_copies(self) -> None:
        for copied in self._copies.news():
            if copied.skipped_for is not None:
                self._tell("copy-skipped", step=copied.step, newer=copied.skipped_for)
            elif copied.problem:
                self._tell("copy-failed", step=copied.step, error=copied.problem)
            else:
                self._tell("copy", step=copied.step, num_bytes=copied.num_bytes, seconds=copied.seconds)

    def _let_copies_arrive(self, until_s: float, is_called_away: Callable[[], bool]) -> None:
        """Let what is saved in the run's folder reach the URL, too, while there is time."""
        if FAR not in self._checkpoints.tiers:
            return
        self._pulse.beat("saving", self._work.position().step)
        with self._pulse.counting("save"):
            wait_together(self._copies, self._session.group, until_s, is_called_away)

"""Going back: a training that diverged takes over a checkpoint of before, and goes on with other random numbers."""

import contextlib

from get3d_cluster.errors import HeldError, StorageError
from get3d_cluster.runtime.checkpoint import Checkpoints, Loaded
from get3d_cluster.runtime.history import History
from get3d_cluster.runtime.progress import say
from get3d_cluster.runtime.resume import load_together
from get3d_cluster.runtime.session import RecoveringWork, Session, Work
from get3d_cluster.storage.local import sync_file


class Rollbacks:
    """Takes work back that can be, on all workers alike; other work never has to go back."""

    def __init__(self, work: Work, session: Session, checkpoints: Checkpoints, history: History) -> None:
        self._work = work if isinstance(work, RecoveringWork) else None
        self._session = session
        self._checkpoints = checkpoints
        self._history = history
        checkpoints.rollback_every_steps = self._work.rollback_every_steps() if self._work else 0
        self.missing_step = -1
        """To which it had to go back, and could not: on the way there again."""

    def target(self) -> int | None:
        """Return the step to which the training has to go back now; None: it goes on."""
        return self._work.rollback_step() if self._work else None

    def go_back(self, target: int) -> int:
        """Go back to the checkpoint of ``target``, and return the step of which it is the newest one now.

        If it is missing or damaged the training goes on from an older one, by which it comes to be what it was: the
        same steps up to ``target``, and further, until it has to go back again. No save may be in flight.

        Raises: HeldError, after which the newest checkpoint is that of ``target``; CheckpointError, StorageError.
        """
        work = self._work
        assert work is not None
        step = work.position().step
        loaded = load_together(self._checkpoints, self._session, target)
        there = loaded.step if loaded else 0
        if there < target:
            self._refuse_to_go_back_twice(target, loaded)
        held = work.why_held()
        number = len(self._history.rollbacks) + (held is None and there == target)
        self._write(number, step, there, target, is_held=held is not None)
        if held:
            raise held
        meta = dict(loaded.meta) if loaded else {}
        if there == target:
            work.roll_back(loaded.state if loaded else None)
            meta["rollbacks"] = [*self._history.rollbacks, {"from": step, "to": target}]
        elif loaded:
            work.load(loaded.state)
            self.missing_step = target
        self._history.go_back(there, meta)
        return there

    def _refuse_to_go_back_twice(self, target: int, loaded: Loaded | None) -> None:
        """Raises: HeldError if there is no checkpoint from before; StorageError if ``target`` was missing before."""
        if loaded is None:
            raise HeldError(
                f"the training diverged, and no checkpoint up to step {target} is left to go back to",
                "lower the learning rates with --allow-config-change, or start another run",
            )
        if target == self.missing_step:
            raise StorageError(
                f"the checkpoint of step {target}, to go back to, is missing again after it was computed again",
                f"see the events save-failed in {self._session.run.events_path}; free or mend that disk",
            )

    def _write(self, number: int, step: int, there: int, target: int, *, is_held: bool) -> None:
        """Write the event ``rollback``, then set later checkpoints aside: without them it tells why they are gone."""
        if self._session.rank:
            return
        spent = {f"{part}_s": round(seconds, 3) for part, seconds in self._session.pulse.seconds.items()}
        missing = {} if there == target else {"missing": target}
        held = {"held": True} if is_held else {}
        self._session.events.write("rollback", step=step, to=there, number=number, **missing, **held, **spent)
        with contextlib.suppress(OSError):
            sync_file(self._session.run.events_path)
        aside = self._checkpoints.set_aside_after(there)
        self._session.events.write("set-aside", after=there, what=aside)
        what = f"the training diverged at step {step} and goes back to step {there}"
        why = f", to compute that of step {target} again" if missing else ""
        say(f"{what}{why}; {len(aside)} later checkpoints were set aside in checkpoints/.rolled-back-*")

"""What changes from step to step beside the tensors, and what follows from that alone: when a training goes back."""

from dataclasses import dataclass
from typing import Self

from get3d_cluster.core.philox import key_of
from get3d_cluster.train.config import GuardConfig


@dataclass(kw_only=True)
class Counters:
    """Of one run; part of its state."""

    step: int = 0
    images: int = 0
    """Real images shown; decides the ramp-up of the running average, and the end."""
    position: int = 0
    """Of the sampler: samples of the data order that were taken."""
    skipped_steps: int = 0
    """Steps so far in which a phase was skipped."""
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    """Times that the training diverged and went back so far; decides all that is drawn."""
    rollback_step: int = 0
    """Where it went back to the last time."""
    rollbacks_there: int = 0
    """Times in a row that it was there."""

    def count_step(self, batch_size: int, *, was_skipped: bool) -> None:
        """Count a step, in which perhaps a phase was skipped."""
        self.step += 1
        self.images += batch_size
        self.position += batch_size
        self.skipped_steps += was_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if was_skipped else 0

    def have_diverged(self, guard: GuardConfig) -> bool:
        return self.skipped_in_a_row >= guard.max_skipped_steps

    def step_to_go_back_to(self, guard: GuardConfig) -> int | None:
        """Return the last multiple before the first of too many skipped steps; None: go on."""
        if not guard.max_rollbacks or not self.have_diverged(guard):
            return None
        good_step = self.step - self.skipped_in_a_row
        return good_step - good_step % guard.rollback_every_steps

    def rollbacks_to(self, step: int) -> int:
        """Return how often in a row the training went back to ``step`` until now."""
        return self.rollbacks_there if self.rollbacks and self.rollback_step == step else 0

    def count_rollback_from(self, before: Self) -> None:
        """Count that the training went back to these counters from ``before``, which know of the other times."""
        self.rollbacks = before.rollbacks + 1
        self.rollbacks_there = before.rollbacks_to(self.step) + 1
        self.rollback_step = self.step

    def seed_of_draws(self, seed: int) -> int:
        """Return what decides all that is drawn from now on, in a run with ``seed``.

        Numbers with which the training diverged are not drawn again.
        """
        return key_of("roll-back", str(seed), str(self.rollbacks)) if self.rollbacks else seed

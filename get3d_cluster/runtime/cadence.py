"""When periodic saves are due: by steps, by time, or by what a save costs and how often work was lost."""

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.core.policy import best_period_s, is_save_due
from get3d_cluster.errors import Get3dError
from get3d_cluster.runtime.run_folder import RunFolder

CONTENTION = 0.05
"""What a save in the background takes from training, as a share of the time that it is under way."""


class Cadence:
    """Says when a save is due; told of each save, it learns what one costs."""

    def __init__(self, config: CheckpointConfig, interruptions: int) -> None:
        """``interruptions`` is how often work was lost before."""
        self._config = config
        self._interruptions = interruptions
        self._cost_s: float | None = None

    def note(self, stall_s: float, save_s: float) -> None:
        """Take notice of a save for which training waited ``stall_s``, and that was over after ``save_s``."""
        self._cost_s = stall_s + CONTENTION * max(0.0, save_s - stall_s)

    def period_s(self, trained_s: float) -> float:
        """Return the seconds between saves, after ``trained_s`` of training in all attempts; 0: none by time."""
        if not self._config.auto or self._cost_s is None:
            return self._config.every_s
        return best_period_s(self._cost_s, self._interruptions, trained_s)

    def is_due(self, steps_since: int, seconds_since: float, trained_s: float) -> bool:
        """Say whether a save is due, so long after the one before was begun."""
        config = self._config
        return is_save_due(steps_since, seconds_since, config, every_s=self.period_s(trained_s))


def interruptions_of(run: RunFolder, attempt: int) -> int:
    """Return how many attempts before this one ended with steps that had to be done again.

    One that was told to leave and saved is none: it lost nothing. One that left no word counts.
    """
    return sum(_has_lost(run, number) for number in run.attempts() if number < attempt)


def _has_lost(run: RunFolder, attempt: int) -> bool:
    try:
        end = run.outcome(attempt)
    except (Get3dError, ValueError, KeyError, TypeError):  # torn, or of another version
        return True
    return end is None or end.end_step > end.saved_step

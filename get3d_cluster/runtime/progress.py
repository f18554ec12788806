"""What people are told while a run is under way: how far it is, in progress.json, and lines in the worker's log."""

import contextlib
import math
import time

from get3d_cluster.core.job import Position
from get3d_cluster.errors import StorageError, UsageError
from get3d_cluster.runtime.run_folder import read_json, write_json
from get3d_cluster.runtime.session import Session

PROGRESS_S = 1.0
ELEMENTS_A_SECOND = 8
"""Of a job array each element tells its progress, since none is sure to be there; together so often a second."""
NEWS_S = 60.0
"""What another element told no longer ago, and what is further, is not overwritten."""


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


def say(line: str) -> None:
    """Write a line to this worker's log."""
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        print(line, flush=True)

"""Watch runs until all have ended or Ctrl-C: a live table on a terminal, elsewhere a line for each change."""

import contextlib
import time
from collections.abc import Callable, Sequence

from rich.live import Live

from get3d_cluster.cli.facts import Inquiry
from get3d_cluster.cli.output import console, say
from get3d_cluster.cli.status import ENDED, Row, row_of
from get3d_cluster.cli.status_table import one_line, status_table
from get3d_cluster.core.job import RunState
from get3d_cluster.runtime.run_folder import RunFolder

WATCH_S = 2.0
LINE_S = 30.0
"""Seconds between lines of a run whose state does not change."""
LOST_S = 10.0
"""So long a run may look lost between the end of an attempt and its requeue."""


class Lines:
    """Says which rows are worth a line: those that changed their state or attempt, and all others now and then."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[tuple[str, int], float]] = {}

    def of(self, rows: Sequence[Row], now_s: float) -> list[str]:
        """Return the lines to print at ``now_s`` (monotonic)."""
        return [one_line(row) for row in rows if self._is_news(row, now_s)]

    def _is_news(self, row: Row, now_s: float) -> bool:
        standing = (row.state, row.attempt)
        before, shown_s = self._shown.get(row.path, (None, now_s))
        is_news = standing != before or (row.state not in ENDED and now_s - shown_s >= LINE_S)
        if is_news:
            self._shown[row.path] = (standing, now_s)
        return is_news


class Patience:
    """Says when nothing happens any more; a run that looks lost may be on its way back."""

    def __init__(self) -> None:
        self._lost_since_s: float | None = None

    def is_over(self, rows: Sequence[Row], now_s: float) -> bool:
        """Say whether all ``rows`` have ended, and have been for a while if one looks lost."""
        if any(row.state not in ENDED for row in rows):
            self._lost_since_s = None
            return False
        if all(row.state != RunState.LOST for row in rows):
            return True
        self._lost_since_s = now_s if self._lost_since_s is None else self._lost_since_s
        return now_s - self._lost_since_s >= LOST_S


class Ending:
    """Says whether nothing happens to a run any more; asks its scheduler every two seconds at most."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._inquiry = Inquiry()
        self._patience = Patience()
        self._next_s = float("-inf")

    def __call__(self) -> bool:
        now_s = time.monotonic()
        if now_s < self._next_s and not self._run.is_done():
            return False
        self._next_s = now_s + WATCH_S
        return self._patience.is_over([row_of(facts) for facts in self._inquiry.look([self._run])], now_s)


def watch(find: Callable[[], Sequence[RunFolder]]) -> None:
    """Show the runs that ``find`` returns, again and again. Ctrl-C ends the watching, not the runs."""
    inquiry = Inquiry()

    def look() -> list[Row]:
        return [row_of(facts) for facts in inquiry.look(find())]

    with contextlib.suppress(KeyboardInterrupt):
        _watch_live(look) if console().is_terminal else _watch_lines(look)


def _watch_live(look: Callable[[], list[Row]]) -> None:
    screen, patience = console(), Patience()
    with Live(console=screen, auto_refresh=False) as live:
        while True:
            rows = look()
            live.update(status_table(rows, screen.width), refresh=True)
            if patience.is_over(rows, time.monotonic()):
                return
            time.sleep(WATCH_S)


def _watch_lines(look: Callable[[], list[Row]]) -> None:
    lines, patience = Lines(), Patience()
    while True:
        rows, now_s = look(), time.monotonic()
        for line in lines.of(rows, now_s):
            say(line)
        if patience.is_over(rows, now_s):
            return
        time.sleep(WATCH_S)

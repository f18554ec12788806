"""What holds of every rehearsal, whatever was hit."""

from collections.abc import Sequence
from pathlib import Path

from get3d_cluster.runtime.events import read_rows
from get3d_cluster.simulate import Stop


def assert_only_unsaved_steps_are_lost(stops: Sequence[Stop], stopped: Path) -> None:
    """Each stop is followed by an attempt that begins no earlier than the last checkpoint which was told of before."""
    saved = 0
    by_attempt: dict[int, int] = {}
    for row in read_rows(stopped / "events.jsonl"):
        if row["event"] == "save":
            saved = max(saved, row["step"])
        by_attempt[row["attempt"]] = saved
    for number, stop in enumerate(stops, 1):
        assert stop.resumed_step >= by_attempt[number], (number, stop)

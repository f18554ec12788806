"""What holds of every rehearsal, whatever was hit."""

from collections.abc import Sequence
from pathlib import Path

from get3d_cluster.runtime.events import read_rows
from get3d_cluster.simulate import Stop


def assert_only_unsaved_steps_are_lost(stops: Sequence[Stop], stopped: Path) -> None:
    """Each stop is followed by an attempt that begins no earlier than the last checkpoint which was told of before."""
    saves = [row for row in read_rows(stopped / "events.jsonl") if row["event"] == "save"]
    for number, stop in enumerate(stops, 1):
        told = [row["step"] for row in saves if row["attempt"] <= number]
        assert stop.resumed_step >= max(told, default=0), (number, stop)

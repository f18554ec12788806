"""How long runs took to leave and to come back: ``python -m tests.slurm.latencies FOLDER``, FOLDER holding runs.

Tests leave their runs in a folder with ``pytest --basetemp FOLDER``. All clocks are those of one host.
"""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import slurm_files

COLUMNS = ("notice to left", "to the next job", "to its first step", "of that the worker")


@dataclass(frozen=True, kw_only=True)
class Return:
    """One attempt that was told to leave, and the next one; seconds from the notice on, None where nothing is told."""

    left_s: float | None
    """Saved, and the outcome written."""
    placed_s: float | None
    """The next attempt's batch script has a number."""
    ready_s: float | None
    """Its workers have loaded the checkpoint and begin a step."""
    started_s: float | None
    """How long its rank 0 took to come so far: interpreter, imports, meeting, loading."""

    @property
    def columns(self) -> tuple[float | None, ...]:
        return (self.left_s, self.placed_s, self.ready_s, self.started_s)


def returns(run: RunFolder) -> Iterator[Return]:
    """Yield every leave of a run that an attempt came back from."""
    rows = read_rows(run.events_path)
    for attempt in run.attempts()[:-1]:
        notice = _first(rows, attempt, "notice")
        if notice is None:
            continue  # before the handlers stood, or without a notice at all
        left = _first(rows, attempt, "suspend")
        place = slurm_files.read_place(run, attempt + 1)
        ready = _first(rows, attempt + 1, "resume") or _first(rows, attempt + 1, "start")
        yield Return(
            left_s=left["t"] - notice["t"] if left else None,
            placed_s=place.started - notice["t"] if place else None,
            ready_s=ready["t"] - notice["t"] if ready else None,
            started_s=ready["since_s"] if ready else None,
        )


def table(folder: Path) -> list[str]:
    """Return a line for each run below ``folder``, least, median and most of each column; none for job arrays."""
    lines = [" | ".join(("run", "nodes", "steps lost", *COLUMNS))]
    for spec in sorted(folder.rglob("spec.json")):
        run = RunFolder(spec.parent)
        outcomes = run.outcomes()
        if any(outcome.element is not None for outcome in outcomes):
            continue  # the next attempt may be another element's
        found = [each.columns for each in returns(run)]
        lost = [outcome.end_step - outcome.saved_step for outcome in outcomes]
        if not found:
            continue
        cells = (_span([row[column] for row in found]) for column in range(len(COLUMNS)))
        name = str(run.path.relative_to(folder.absolute()))
        nodes = max(len(outcome.hosts) for outcome in outcomes)
        lines.append(" | ".join((name, str(nodes), ", ".join(map(str, lost)), *cells)))
    return lines


def _first(rows: Sequence[Mapping[str, Any]], attempt: int, event: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if (row["attempt"], row["event"]) == (attempt, event)), None)


def _span(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return "-"
    return f"{known[0]:.2f} / {statistics.median(known):.2f} / {known[-1]:.2f} s"


if __name__ == "__main__":
    print(*table(Path(sys.argv[1])), sep="\n")

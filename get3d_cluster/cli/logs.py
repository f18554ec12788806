"""The logs of a run, stitched over its attempts; lines of several workers carry their rank.

Where a worker wrote nothing, what the scheduler itself wrote about the attempt follows: a node that could not start it,
a shell line that failed. Elements of a job array are attempts of their own.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from get3d_cluster.cli.output import duration
from get3d_cluster.errors import Get3dError, UsageError
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import slurm_files

POLL_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which logs a person wants to see; None is all."""

    attempt: int | None = None
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One file of an attempt, and what its lines begin with where there are several."""

    path: Path
    label: str
    rank: int | None = None
    """None: the scheduler wrote it."""


@dataclass
class _Reader:
    """Hands out the whole lines that were added to one file; from its start again if it was begun anew."""

    path: Path
    offset: int = 0
    rest: bytes = field(default=b"", repr=False)

    def lines(self, *, ended: bool) -> list[str]:
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self.offset:
                    self.offset, self.rest = 0, b""
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self.offset += len(data)
        *whole, self.rest = (self.rest + data).split(b"\n")
        if ended and self.rest:
            whole, self.rest = [*whole, self.rest], b""
        return [line.decode(errors="replace").rstrip("\r") for line in whole]


def stitched(run: RunFolder, chosen: Selection) -> Iterator[str]:
    """Yield the lines of all chosen attempts, oldest first, rank by rank, with one heading for each attempt.

    Raises: UsageError if there is no such attempt or rank.
    """
    _check(run, chosen)
    for attempt in _attempts(run, chosen):
        sources = _sources(run, attempt, chosen)
        yield _heading(run, attempt)
        for source in sources:
            yield from _labelled(source, _Reader(source.path).lines(ended=True), alone=len(sources) == 1)
    for path in _unclaimed(run, chosen):
        yield f"=== {path.relative_to(run.path)}: no attempt began ==="
        yield from _Reader(path).lines(ended=True)


def followed(run: RunFolder, chosen: Selection, is_over: Callable[[], bool]) -> Iterator[str]:
    """Yield what is there, then what is added, over all attempts to come, until ``is_over``.

    Raises: UsageError if there is no such attempt or rank; a run without any log yet is waited for.
    """
    _check(run, chosen)
    readers: dict[Path, _Reader] = {}
    headed: set[int] = set()
    while True:
        over = is_over()  # asked before reading, so that the last lines are not missed
        for attempt in _attempts(run, chosen):
            sources = _sources(run, attempt, chosen)
            if attempt not in headed:
                headed.add(attempt)
                yield _heading(run, attempt)
            for source in sources:
                lines = readers.setdefault(source.path, _Reader(source.path)).lines(ended=over)
                yield from _labelled(source, lines, alone=len(sources) == 1)
        if over:
            return
        time.sleep(POLL_S)


def stacks(run: RunFolder, chosen: Selection) -> Iterator[str]:
    """Yield the stacks that the workers of the newest hang left, or of the chosen attempt.

    Raises: UsageError if there are none.
    """
    _check(run, Selection(attempt=chosen.attempt))
    found = {attempt: _stack_paths(run, attempt, chosen) for attempt in _attempts(run, chosen)}
    newest = max((attempt for attempt, paths in found.items() if paths), default=None)
    if newest is None:
        where = f"attempt {chosen.attempt} of {run.name}" if chosen.attempt else f"run {run.name}"
        whose = f" of rank {chosen.rank}" if chosen.rank is not None else ""
        raise UsageError(
            f"{where} left no stacks{whose}: no hang was found", "python launch.py logs RUN shows the logs"
        )
    yield _heading(run, newest)
    for path in found[newest]:
        yield f"--- {path.stem} ---"
        yield from _Reader(path).lines(ended=True)


def _check(run: RunFolder, chosen: Selection) -> None:
    """Raises: UsageError if the chosen attempt is not there, or if all logs there are belong to other ranks."""
    there = run.attempts()
    if chosen.attempt is not None and chosen.attempt not in there:
        listing = f"attempts are 1 to {there[-1]}" if there else "it has none yet"
        raise UsageError(f"run {run.name} has no attempt {chosen.attempt}", f"{listing}: --attempt N")
    everyone = Selection(attempt=chosen.attempt)
    sources = [source for attempt in _attempts(run, chosen) for source in _sources(run, attempt, everyone)]
    ranks = sorted({source.rank for source in sources if source.rank is not None})
    if ranks and chosen.rank is not None and chosen.rank not in ranks:
        where = f"run {run.name}" if chosen.attempt is None else f"attempt {chosen.attempt} of {run.name}"
        raise UsageError(
            f"{where} has no rank {chosen.rank}", f"ranks are: {', '.join(map(str, ranks))}: --rank R"
        )


def _attempts(run: RunFolder, chosen: Selection) -> list[int]:
    return [attempt for attempt in run.attempts() if chosen.attempt in (None, attempt)]


def _sources(run: RunFolder, attempt: int, chosen: Selection) -> list[_Source]:
    """Return the logs of the chosen ranks, and what the scheduler wrote if one of them is empty or missing."""
    folder = run.attempt_dir(attempt)
    paths = sorted(folder.glob("rank*.log")) if chosen.rank is None else [run.log_path(attempt, chosen.rank)]
    logs = [_Source(path=path, label=f"[rank {_rank(path)}] ", rank=_rank(path)) for path in paths]
    outputs = _outputs(run, attempt)
    if not outputs or (logs and all(_size(path) for path in paths)):
        return logs
    return [*logs, *(_Source(path=path, label="[slurm] ") for path in outputs)]


def _outputs(run: RunFolder, attempt: int) -> list[Path]:
    """Return what SLURM wrote about the job of an attempt: the batch script first, then the tasks of srun."""
    batch = slurm_files.output_of(run, attempt)
    if batch is None:
        return []
    tasks = sorted(run.slurm_dir.glob(f"{_job(batch)}_*_log.out"))
    return [batch, *(path for path in tasks if path != batch and _size(path))]


def _unclaimed(run: RunFolder, chosen: Selection) -> list[Path]:
    """Return what SLURM wrote about jobs that failed before they became an attempt."""
    if chosen.attempt is not None or chosen.rank is not None:
        return []
    claimed = {_job(path) for attempt in run.attempts() if (path := slurm_files.output_of(run, attempt))}
    return [path for path in sorted(run.slurm_dir.glob("*.out")) if _job(path) not in claimed and _size(path)]


def _job(output: Path) -> str:
    """Return the job in the name of an output: 12 of 12_0_log.out, 12_3 of 12_3_0_log.out."""
    return output.name.removesuffix("_log.out").rpartition("_")[0]


def _stack_paths(run: RunFolder, attempt: int, chosen: Selection) -> list[Path]:
    which = "*" if chosen.rank is None else f"{chosen.rank:04d}"
    return sorted(run.attempt_dir(attempt).glob(f"stacks.rank{which}.txt"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _rank(path: Path) -> int:
    digits = path.stem.removeprefix("rank")
    return int(digits) if digits.isdigit() else 0


def _labelled(source: _Source, lines: Sequence[str], *, alone: bool) -> Iterator[str]:
    label = "" if alone and source.rank is not None else source.label
    for line in lines:
        yield f"{label}{line}"


def _heading(run: RunFolder, attempt: int) -> str:
    try:
        outcome = run.outcome(attempt)
    except (Get3dError, ValueError, KeyError, TypeError):
        outcome = None  # torn: the log itself is still worth reading
    place = slurm_files.read_place(run, attempt)
    element = outcome.element if outcome else place.element if place else None
    name = f"attempt {attempt}" if element is None else f"attempt {attempt} (element {element})"
    if outcome is None:
        return f"=== {name} ==="
    saved = f"saved step {outcome.saved_step}"
    return f"=== {name}: {outcome.cause} after {duration(outcome.seconds)}, {saved} ==="

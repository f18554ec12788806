"""The logs of a run, stitched over its attempts; lines of several workers carry their rank."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from get3d_cluster.cli.output import duration
from get3d_cluster.errors import Get3dError, UsageError
from get3d_cluster.runtime.run_folder import RunFolder

POLL_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which logs a person wants to see; None is all."""

    attempt: int | None = None
    rank: int | None = None


@dataclass
class _Reader:
    """Hands out the whole lines that were added to one file."""

    path: Path
    offset: int = 0
    rest: bytes = field(default=b"", repr=False)

    def lines(self, *, ended: bool) -> list[str]:
        try:
            with self.path.open("rb") as file:
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
        paths = _paths(run, attempt, chosen)
        yield _heading(run, attempt)
        for path in paths:
            yield from _labelled(path, _Reader(path).lines(ended=True), alone=len(paths) == 1)


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
            paths = _paths(run, attempt, chosen)
            if attempt not in headed:
                headed.add(attempt)
                yield _heading(run, attempt)
            for path in paths:
                lines = readers.setdefault(path, _Reader(path)).lines(ended=over)
                yield from _labelled(path, lines, alone=len(paths) == 1)
        if over:
            return
        time.sleep(POLL_S)


def _check(run: RunFolder, chosen: Selection) -> None:
    """Raises: UsageError if the chosen attempt is not there, or if all logs there are belong to other ranks."""
    there = run.attempts()
    if chosen.attempt is not None and chosen.attempt not in there:
        listing = f"attempts are 1 to {there[-1]}" if there else "it has none yet"
        raise UsageError(f"run {run.name} has no attempt {chosen.attempt}", f"{listing}: --attempt N")
    everyone = Selection(attempt=chosen.attempt)
    paths = [path for attempt in _attempts(run, chosen) for path in _paths(run, attempt, everyone)]
    ranks = sorted({_rank(path) for path in paths})
    if ranks and chosen.rank is not None and chosen.rank not in ranks:
        where = f"run {run.name}" if chosen.attempt is None else f"attempt {chosen.attempt} of {run.name}"
        raise UsageError(
            f"{where} has no rank {chosen.rank}", f"ranks are: {', '.join(map(str, ranks))}: --rank R"
        )


def _attempts(run: RunFolder, chosen: Selection) -> list[int]:
    return [attempt for attempt in run.attempts() if chosen.attempt in (None, attempt)]


def _paths(run: RunFolder, attempt: int, chosen: Selection) -> list[Path]:
    if chosen.rank is None:
        return sorted(run.attempt_dir(attempt).glob("rank*.log"))
    return [run.log_path(attempt, chosen.rank)]


def _rank(path: Path) -> int:
    digits = path.stem.removeprefix("rank")
    return int(digits) if digits.isdigit() else 0


def _labelled(path: Path, lines: Sequence[str], *, alone: bool) -> Iterator[str]:
    label = "" if alone else f"[rank {_rank(path)}] "
    for line in lines:
        yield f"{label}{line}"


def _heading(run: RunFolder, attempt: int) -> str:
    try:
        outcome = run.outcome(attempt)
    except (Get3dError, ValueError, KeyError, TypeError):
        outcome = None  # torn: the log itself is still worth reading
    if outcome is None:
        return f"=== attempt {attempt} ==="
    saved = f"saved step {outcome.saved_step}"
    return f"=== attempt {attempt}: {outcome.cause} after {duration(outcome.seconds)}, {saved} ==="

"""How things are shown: tables that survive a pipe, JSON, ages and sizes in words."""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 240
"""Width of what is not shown on a terminal: nobody wants rows that are wrapped before grep sees them."""
UNBROKEN_COLUMNS = 10_000
"""Width for one line a row, whatever it says."""


class PipeClosedError(Exception):
    """Whoever read stdout has seen enough. Not an OSError: Typer would exit with the code of a bug."""


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise PipeClosedError


def console(pipe_columns: int = PIPE_COLUMNS) -> Console:
    """Return what prints to stdout as it is now."""
    return _Console(width=None if sys.stdout.isatty() else pipe_columns, highlight=False, soft_wrap=False)


def say(text: str = "") -> None:
    """Print ``text`` as it is."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise PipeClosedError from None


def say_json(value: Any) -> None:
    """Print ``value`` as JSON for programs."""
    say(json.dumps(value, indent=2, default=_jsonable))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], wrap: Sequence[str] = ()) -> Table:
    """Return a table without lines; only the columns named in ``wrap`` are broken when the terminal is narrow."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        made.add_column(header, no_wrap=header not in wrap, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def duration(seconds: float | None) -> str:
    """Return ``seconds`` in the largest unit that says enough: 40 s, 12 min, 3.5 h, 2.1 d; '-' for None."""
    if seconds is None:
        return "-"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{max(0, seconds) / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def size(num_bytes: float) -> str:
    """Return a number of bytes in words: 820 B, 3.1 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return None if value is dataclasses.MISSING else str(value)

"""Links, durations, times and counts, as people and browsers read them. Pure."""

import os
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

_LAST_SECOND = 253402300799.0
"""End of the year 9999, the last that has a date."""


def link(path: Path) -> str:
    """Return a relative link that any browser follows, whatever the name holds."""
    return "./" + quote(os.fsencode(path.as_posix()))


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that matter.

    >>> [duration(s) for s in (0.25, 12.3, 75, 4000, 100000)]
    ['0.25 s', '12.3 s', '1 min 15 s', '1 h 7 min', '1 d 4 h']
    """
    if seconds < 60.0:
        return f"{seconds:.3g} s"
    units = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    large, name, small, rest = next(u for u in units if seconds >= u[0])
    whole, remainder = divmod(round(seconds), large)
    return f"{whole} {name}" + (f" {remainder // small} {rest}" if remainder >= small else "")


def clock(t: float) -> str:
    """Return a Unix time as date and time, UTC."""
    return datetime.fromtimestamp(min(max(t, 0.0), _LAST_SECOND), UTC).strftime("%Y-%m-%d %H:%M:%S")


def counted(count: int, thing: str) -> str:
    """Return how many there are of a thing.

    >>> [counted(n, "attempt") for n in (0, 1, 2)]
    ['0 attempts', '1 attempt', '2 attempts']
    """
    return f"{count} {thing}" + ("" if count == 1 else "s")

"""JSON lines that survive kills: what happened (events.jsonl) and what was measured (metrics.jsonl)."""

import json
import os
import time
from pathlib import Path
from typing import Any

from get3d_cluster.storage.local import write_atomic


class EventLog:
    """Appends one line per event; each line is written by one call, so that lines of several ranks do not mix."""

    def __init__(self, path: Path, attempt: int, rank: int) -> None:
        self._path = path
        self._who = {"attempt": attempt, "rank": rank, "pid": os.getpid()}

    def write(self, event: str, **fields: Any) -> None:
        """Append ``event`` with the time, this worker's identity and ``fields``."""
        _append(self._path, {"t": round(time.time(), 3), "event": event, **self._who, **fields})


class MetricLog:
    """Rows of numbers over steps: one row a step at most, no gap and no duplicate across attempts."""

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self._path = path
        self._enabled = enabled

    def write(self, step: int, **values: Any) -> None:
        """Append the row of ``step``."""
        if self._enabled:
            _append(self._path, {"step": step, **values})

    def rewind(self, step: int) -> None:
        """Drop rows beyond ``step``: the attempt that resumes there writes them again."""
        if not self._enabled or not self._path.exists():
            return
        kept = [row for row in read_rows(self._path) if row.get("step", 0) <= step]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file; a line torn by a kill is skipped, a missing file is empty."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _append(path: Path, row: dict[str, Any]) -> None:
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        os.write(handle, (b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
    finally:
        os.close(handle)

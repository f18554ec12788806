"""JSON lines that survive kills: what happened (events.jsonl) and what was measured (metrics.jsonl).

A full disk loses no line either: what cannot be written waits in memory for the next line, while the run goes on.
"""

import json
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from get3d_cluster.storage.local import sync_file, write_atomic


class EventLog:
    """Appends one line per event; each line is written by one call, so that lines of several ranks do not mix."""

    def __init__(self, path: Path, attempt: int, rank: int) -> None:
        self._lines = _Lines(path)
        self._who = {"attempt": attempt, "rank": rank, "pid": os.getpid()}

    def write(self, event: str, *, age_s: float = 0.0, **fields: Any) -> None:
        """Append ``event``, which happened ``age_s`` ago, with its time, this worker's identity and ``fields``."""
        self._lines.append({"t": round(time.time() - age_s, 3), "event": event, **self._who, **fields})


class MetricLog:
    """Rows of numbers over steps: one row a step at most, no gap and no duplicate across attempts."""

    def __init__(self, path: Path, *, enabled: bool = True) -> None:
        self._path = path
        self._lines = _Lines(path)
        self._enabled = enabled

    def write(self, step: int, **values: Any) -> None:
        """Append the row of ``step``."""
        if self._enabled:
            self._lines.append({"step": step, **values})

    def flush(self) -> None:
        """Try again to write what could not be written, and make all rows durable: a checkpoint relies on them."""
        self._lines.flush()
        if self._enabled and self._path.exists():
            sync_file(self._path)

    def rewind(self, step: int) -> None:
        """Drop rows beyond ``step``: the attempt that resumes there writes them again."""
        if not self._enabled or not self._path.exists():
            return
        kept = [row for row in read_rows(self._path) if row.get("step", 0) <= step]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept).encode())


class _Lines:
    """Lines on their way into one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: deque[bytes] = deque()

    def append(self, row: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(row).encode() + b"\n")
        self.flush()

    def flush(self) -> None:
        while self._waiting and append_line(self._path, self._waiting[0]):
            self._waiting.popleft()


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


def append_line(path: Path, line: bytes) -> bool:
    """Append one line; say whether it lies in the file whole. One that was cut short is ended by the next one."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        return False
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        data = b"\n" + line if torn else line
        return os.write(handle, data) == len(data)
    except OSError:
        return False
    finally:
        os.close(handle)

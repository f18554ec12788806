"""Share out items among workers that know nothing of each other: a claim is a file in a common folder.

A claim is created atomically and belongs to one holder, who beats its heart while at work. A dead holder's claim is
stolen: at once if its process is provably gone from this machine, otherwise when its heartbeat has not changed for a
while as seen by the observer's own clock; clocks of different machines are never compared.

What it refuses to promise: a holder that slept longer than that while comes back to a claim it has lost, and two then
work on one item. So the work must be safe to do twice, with the result published by one rename.
"""

import contextlib
import errno
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from get3d_cluster.runtime.env import ProcessId

STALE_S = 120.0
"""A heart that has not beaten for so long is dead. Above the longest attribute cache of NFS (60 s)."""
BEATS_PER_STALE = 8
_COUNTER = "{:012d}\n"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who holds a claim."""

    process: ProcessId
    attempt: int = 0
    name: str = ""
    """Tells apart holders inside one process; empty if there is one."""


@dataclass(kw_only=True)
class _Held:
    path: Path
    handle: int
    """Kept open: a beat into a claim that was stolen goes to the removed file and harms nobody."""
    beats: int = 0
    beaten_at: float = 0.0


class Claims:
    """The claims of one worker on the items in ``folder``.

    The file of a claim is ``<item>.<generation>``, and the highest generation holds. A thief creates the next
    generation: of several, the file system lets one through. Files: a counter line, then the owner as JSON.
    """

    def __init__(self, folder: Path, owner: Owner, *, stale_s: float = STALE_S) -> None:
        self.folder = folder
        self.owner = owner
        self.stale_s = stale_s
        self._held: dict[str, _Held] = {}
        self._seen: dict[Path, tuple[bytes, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def claim(self, item: str) -> bool:
        """Take ``item`` unless another live worker has it; True if it is now ours."""
        if item in self._held:
            return self.holds(item)
        generation, judged = self._top(item)
        if generation and not self._is_dead(self._path(item, generation), judged):
            return False
        return self._take(item, generation + 1, judged)

    def holds(self, item: str) -> bool:
        """Say whether the claim is still ours: it was not stolen while we were not looking."""
        held = self._held.get(item)
        if held is None:
            return False
        try:
            same = os.fstat(held.handle).st_ino == held.path.stat().st_ino
        except OSError:
            same = False
        return same and self._top(item)[0] == _generation(held.path)

    def beat(self) -> None:
        """Show that this worker lives. Call it often: it writes a few times in ``stale_s``."""
        now = time.monotonic()
        for held in self._held.values():
            if now - held.beaten_at >= self.stale_s / BEATS_PER_STALE:
                held.beats, held.beaten_at = held.beats + 1, now
                with contextlib.suppress(OSError):  # a lost claim is found by ``holds``
                    os.pwrite(held.handle, _COUNTER.format(held.beats).encode(), 0)
                    os.fsync(held.handle)

    def release(self, item: str) -> None:
        """Give ``item`` back; nothing happens if it is not ours."""
        held = self._held.pop(item, None)
        if held is None:
            return
        with contextlib.suppress(OSError):
            if os.fstat(held.handle).st_ino == held.path.stat().st_ino:
                held.path.unlink()
        os.close(held.handle)

    def release_all(self) -> None:
        """Give everything back, on the way out."""
        for item in list(self._held):
            self.release(item)

    def _take(self, item: str, generation: int, judged: bytes) -> bool:
        path = self._path(item, generation)
        content = _COUNTER.format(0) + json.dumps(asdict(self.owner)) + "\n"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            _write_whole(handle, path, content.encode())
        except OSError:
            os.close(handle)
            path.unlink(missing_ok=True)  # or the item would be nobody's until this looked dead
            raise
        self._held[item] = _Held(path=path, handle=handle, beaten_at=time.monotonic())
        if not self._is_next(item, generation, judged):
            self.release(item)
            return False
        for old in self._files(item):
            if _generation(old) < generation:
                old.unlink(missing_ok=True)
                self._seen.pop(old, None)
        return True

    def _is_next(self, item: str, generation: int, judged: bytes) -> bool:
        """Say whether what we judged dead is still what we succeed: others may have come and gone meanwhile."""
        others = [path for path in self._files(item) if _generation(path) != generation]
        if any(_generation(path) > generation for path in others):
            return False
        return generation == 1 or _read(self._path(item, generation - 1)) == judged

    def _is_dead(self, path: Path, content: bytes) -> bool:
        now = time.monotonic()
        last, since = self._seen.get(path, (b"", now))
        if content != last:
            self._seen[path] = (content, now)
            since = now
        owner = _owner(content)
        alive = owner.process.is_alive() if owner else None
        return alive is False or now - since > self.stale_s

    def _top(self, item: str) -> tuple[int, bytes]:
        paths = self._files(item)
        if not paths:
            return 0, b""
        newest = max(paths, key=_generation)
        return _generation(newest), _read(newest)

    def _files(self, item: str) -> list[Path]:
        prefix = quote(item, safe="") + "."
        with os.scandir(self.folder) as entries:
            names = [each.name for each in entries if each.name.startswith(prefix)]
        return [self.folder / name for name in names if name.removeprefix(prefix).isdigit()]

    def _path(self, item: str, generation: int) -> Path:
        return self.folder / f"{quote(item, safe='')}.{generation}"


def _write_whole(handle: int, path: Path, data: bytes) -> None:
    if os.write(handle, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    os.fsync(handle)


def _generation(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _owner(content: bytes) -> Owner | None:
    """Return whom a claim names; None while it is being written, or if its writer died over it."""
    try:
        data = json.loads(content.split(b"\n", 1)[1])
        return Owner(process=ProcessId(**data["process"]), attempt=data["attempt"], name=data["name"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None

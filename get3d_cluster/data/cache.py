"""Copies of remote pieces on this machine's disk, shared by all its workers and bounded in size.

    FOLDER/total            bytes promised so far; its lock is the only one, and a killed holder gives it back
    FOLDER/ab/<digest>-<n>  a piece named by its content, so that no dataset, URL or later version can mix up another's

One worker at a time writes a piece, which appears by one rename. Space is promised before, and what was used longest
ago goes when the promise would pass the limit, so the folder never outgrows it, whatever is killed when. Readers take
no lock: who holds a piece open keeps it, deleted or not. Pieces are not fsynced: who takes one checks its digest.
Torch-free.
"""

import contextlib
import fcntl
import os
import stat
import tempfile
import time
import warnings
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from get3d_cluster.errors import UsageError

KEPT_SHARE = 7 / 8
"""What is left after making room: looking at every piece has to pay."""
LOCK_S, LOCK_PAUSE_S = 5.0, 0.002
"""A worker that waits so long for another one, which may be stopped, goes on without keeping its piece."""
_ASIDE = ".writing-"

Numbers = npt.NDArray[np.int64]


def default_folder() -> Path:
    """Return the user's own cache folder on this machine: in TMPDIR, which clusters point at a disk of the node."""
    return Path(tempfile.gettempdir()) / f"get3d-cluster-cache-{os.getuid()}"


class PieceCache:
    """At most ``limit_bytes`` of pieces below ``folder``, for any number of processes and threads."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._total = folder / "total"
        self._is_broken = False
        _own(folder)

    def get(self, name: str) -> bytes | None:
        """Return a piece and mark it as just used; None if it is not here."""
        try:
            with self._path(name).open("rb", buffering=0) as file:
                os.utime(file.fileno())
                return file.read()
        except OSError:  # gone, or the disk fails: either way the piece is fetched
            return None

    def put(self, name: str, data: bytes) -> None:
        """Keep a piece, if it fits. A cache that fails is said once and costs time, not the run."""
        if len(data) > KEPT_SHARE * self._limit_bytes or self._is_broken or self._path(name).exists():
            return
        try:
            with self._locked() as count:
                if count is not None:
                    self._promise(count, len(data))
                    self._publish(name, data)
        except OSError as error:
            self._is_broken = True
            warnings.warn(f"the cache {self.folder} takes nothing more in this worker: {error}", stacklevel=2)

    def drop(self, name: str) -> None:
        """Forget a piece, which turned out to be damaged."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _publish(self, name: str, data: bytes) -> None:
        target = self._path(name)
        target.parent.mkdir(exist_ok=True)
        aside = target.with_name(f"{_ASIDE}{name}")  # one writer at a time: the one that has the lock
        try:
            aside.write_bytes(data)
            aside.replace(target)
        except OSError:
            aside.unlink(missing_ok=True)
            raise

    def _promise(self, count: IO[bytes], size: int) -> None:
        """Count ``size`` more bytes; if they would not fit, look at what is there and make room first."""
        text = count.read()
        total = int(text) + size if text.isdigit() else self._limit_bytes + 1
        if total > self._limit_bytes:
            total = self._make_room(size) + size
        count.seek(0)
        count.truncate()
        count.write(b"%d" % total)
        count.flush()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes] | None]:
        """Hold the file that counts, alone; None if somebody does not let go of it."""
        with self._total.open("a+b") as file:
            end_s = time.monotonic() + LOCK_S
            while not _try_lock(file):
                if time.monotonic() > end_s:
                    yield None
                    return
                time.sleep(LOCK_PAUSE_S)
            file.seek(0)
            yield file

    def _make_room(self, size: int) -> int:
        """Delete what was used longest ago until ``size`` fits well; return how many bytes are left."""
        used_ns, sizes = array("q"), array("q")
        for _, facts in self._pieces():
            used_ns.append(facts.st_mtime_ns)
            sizes.append(facts.st_size)
        total = sum(sizes)
        if total + size <= self._limit_bytes:
            return total
        excess = total + size - int(KEPT_SHARE * self._limit_bytes)
        newest_to_go_ns = _newest_to_go(np.asarray(used_ns), np.asarray(sizes), excess)
        for path, facts in self._pieces():
            if facts.st_mtime_ns > newest_to_go_ns or excess <= 0:
                continue  # looked at anew: a piece used since the first look stays
            path.unlink(missing_ok=True)
            total, excess = total - facts.st_size, excess - facts.st_size
        return total

    def _pieces(self) -> Iterator[tuple[Path, os.stat_result]]:
        """List the pieces; remove what killed writers left."""
        for folder in self.folder.iterdir():
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        if entry.name.startswith(_ASIDE):
                            Path(entry.path).unlink()
                        else:
                            yield Path(entry.path), entry.stat(follow_symlinks=False)


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _newest_to_go(used_ns: Numbers, sizes: Numbers, excess: int) -> int:
    """Return the time up to which pieces have to go so that ``excess`` bytes become free."""
    order = np.argsort(used_ns, kind="stable")
    freed = np.cumsum(sizes[order])
    return int(used_ns[order][min(int(np.searchsorted(freed, excess)), len(order) - 1)])


def _own(folder: Path) -> None:
    """Make the folder for this user alone. Raises: UsageError if it cannot be used, or is another user's."""
    way_out = "set data.read.cache to a folder of your own on a disk of this machine, or data.read.cache_gb=0"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
            raise PermissionError("it belongs to another user, or is no folder")
        (folder / "total").touch()
    except OSError as error:
        raise UsageError(f"the cache {folder} cannot be used: {error}", way_out) from error

"""Storage on a POSIX file system: written aside, fsynced, published by one rename."""

import contextlib
import errno
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

from get3d_cluster.errors import StorageError
from get3d_cluster.storage.base import Data

ASIDE = ".writing-"
"""What begins the names of files and folders that are not whole yet."""
_GOING = ".deleting-"
_WRITE_S = 60.0
"""An older file beside its target was left by a writer that was killed; writing one takes much less."""
_STALE_WAITS_S = (0.1, 0.4, 1.6)
"""A network file system whose server came back says ESTALE once or twice, and works when the path is looked up anew."""

RANGE_BYTES = 1 << 24
READERS = 4

_T = TypeVar("_T")


def write_atomic(path: Path, data: Data) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a crash at any instant, sees the old or the new whole file.

    Raises: StorageError naming the path and the reason.
    """
    aside = path.with_name(f"{ASIDE}{path.name}-{secrets.token_hex(4)}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_durably(aside, [data])
            aside.replace(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def create(path: Path, data: Data) -> bool:
    """Create ``path`` with ``data`` unless it is there; say whether it was this call that did, among all machines.

    A reader may see it empty or cut short for a moment. Raises: StorageError naming the path and the reason.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("xb")
        except FileExistsError:
            return False
        try:
            with file:
                _write_to(file, [data])
        except OSError:
            path.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return True


def clean_folder(folder: Path, *, is_ours: bool = False, is_deep: bool = False) -> None:
    """Remove what ``write_atomic`` left in ``folder`` when it was killed; with ``is_deep`` in the folders below, too.

    Others may be writing there now, so that what is young stays; unless the folder ``is_ours`` alone.
    """
    left: list[Path] = []
    with contextlib.suppress(OSError):
        left += (folder.rglob if is_deep else folder.glob)(f"{ASIDE}*")
    for path in left:
        with contextlib.suppress(OSError):
            if is_ours or _now_there_s(folder) - path.stat().st_mtime > _WRITE_S:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def sync_file(path: Path) -> None:
    """Make the content of a file durable, as far as the disk does it; nothing happens if it refuses."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now_there_s(folder: Path) -> float:
    """Return the time by the clock that dates the files of ``folder``: on a network it is not this machine's."""
    probe = folder / f"{ASIDE}clock-{secrets.token_hex(4)}"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


class LocalStorage:
    """Groups of files as folders below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, files: Mapping[str, Data | Sequence[Data]]) -> None:
        target = self.root / name
        aside = self.root / f"{ASIDE}{name}-{secrets.token_hex(4)}"
        with explained(target):
            try:
                aside.mkdir(parents=True)
                for file, data in files.items():
                    write_durably(aside / file, [data] if isinstance(data, Data) else data)
                sync_folder(aside)
                aside.rename(target)
                sync_folder(self.root)
            except OSError:
                shutil.rmtree(aside, ignore_errors=True)
                raise

    def read(self, name: str, file: str) -> memoryview:
        return _unless_stale(lambda: _whole(self.root / name / file))

    def list(self) -> list[str]:
        return _unless_stale(lambda: _groups(self.root))

    def delete(self, name: str) -> None:
        going = self.root / f"{_GOING}{name}-{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):
            (self.root / name).rename(going)
            sync_folder(
                self.root
            )  # before the first file goes: killed, or without power, it is whole or gone
            shutil.rmtree(going, ignore_errors=True)

    def set_aside(self, name: str, why: str = "damaged") -> str:
        aside = self.root / f".{why}-{name}-{secrets.token_hex(4)}"
        with explained(aside):
            (self.root / name).rename(aside)
        return str(aside)

    def clean(self) -> None:
        with contextlib.suppress(OSError):  # what cannot be seen now is cleaned another time
            for begin in (ASIDE, _GOING) if self.root.is_dir() else ():
                for path in self.root.glob(f"{begin}*"):
                    shutil.rmtree(path, ignore_errors=True)


def _groups(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _whole(path: Path) -> memoryview:
    """Return a file; a large one is read by ranges, several at the same time, into memory that may be written to.

    Not mapped: an error of the disk would end the process instead of being told.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= RANGE_BYTES:
            return memoryview(file.readall())
        whole = fresh_memory(size)
        with ThreadPoolExecutor(READERS) as readers:
            starts = range(0, size, RANGE_BYTES)
            counts = readers.map(lambda start: _read_range(file.fileno(), whole, start), starts)
            return whole[: sum(counts)]


def fresh_memory(num_bytes: int) -> memoryview:
    """Return memory that is zero and may be written to, of large pages where the system has them.

    With small ones, to touch a file's worth of memory for the first time takes longer than to read the file.
    """
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _read_range(handle: int, whole: memoryview, start: int) -> int:
    """Fill the range of ``whole`` that begins at ``start``; return how many bytes were there to be read."""
    piece = whole[start : start + RANGE_BYTES]
    done = 0
    while done < len(piece) and (count := os.preadv(handle, [piece[done:]], start + done)):
        done += count
    return done


def write_durably(path: Path, parts: Sequence[Data]) -> None:
    """Write a file, and return when its bytes are on the disk. Raises: OSError."""
    with path.open("wb") as file:
        _write_to(file, parts)


def _write_to(file: IO[bytes], parts: Sequence[Data]) -> None:
    for part in parts:
        file.write(part)
    file.flush()
    os.fsync(file.fileno())


def _unless_stale(act: Callable[[], _T]) -> _T:
    """Return the result of ``act``, which looks its path up anew each time, trying again when that is stale."""
    for wait_s in _STALE_WAITS_S:
        try:
            return act()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        time.sleep(wait_s)
    return act()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Tell of an error in words that name ``path``."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            "free space or mend the permissions there, then run the same command again: nothing saved was lost",
        ) from error

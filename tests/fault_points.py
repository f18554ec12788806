"""Fault points: each call that reads or changes a file below a folder, one after the other, for a test to break.

``fault_points`` hands every such call of this thread to the test, which lets it go on, fails it, or ends the process
there: as a kill (``die``), in the middle of a write (``tear``), or as a power failure (``lose_power``), after which
nothing that was not made durable is left.
"""

import contextlib
import gc
import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

KILLED = 137
"""Exit code of a child that ended at a fault point."""
CHANGES = frozenset({"mkdir", "create", "write", "fsync", "rename", "remove"})
"""Calls that change what lies there; the others are ``open``, ``read``, ``list`` and ``look``, which finds that nothing
is to be made or removed."""


@dataclass(kw_only=True)
class Call:
    """One call that is about to be made."""

    kind: str
    path: Path
    target: Path | None = None
    """New name, of a rename."""
    data: bytes | memoryview | None = None
    go: Callable[[], Any]
    """Make it after all."""
    write: Callable[[bytes], Any] | None = None
    number: int = 0
    """Counts from 1."""
    fragile: "Fragile"


@dataclass(kw_only=True)
class Fragile:
    """What a power failure would take away: names and bytes that were not synced."""

    files: set[Path] = field(default_factory=set)
    renames: list[tuple[Path, Path]] = field(default_factory=list)

    def note(self, call: Call) -> None:
        if call.kind in ("create", "write"):
            self.files.add(call.path)
        elif call.kind == "fsync":
            self.files.discard(call.path)
            self.renames = [(old, new) for old, new in self.renames if new.parent != call.path]
        elif call.kind == "rename" and call.target is not None:
            moved = {path for path in self.files if path.is_relative_to(call.path)}
            self.files = self.files - moved | {call.target / path.relative_to(call.path) for path in moved}
            self.renames.append((call.path, call.target))

    def take(self) -> None:
        """Cut what was not synced to half, and undo renames of groups whose folder was not."""
        for path in self.files:
            with contextlib.suppress(OSError):
                os.truncate(path, path.stat().st_size // 2)
        for old, new in reversed(self.renames):
            with contextlib.suppress(OSError):
                if new.is_dir():
                    new.rename(old)


@contextlib.contextmanager
def fault_points(folder: Path, meet: Callable[[Call], Any]) -> Iterator[list[Call]]:
    """Hand each call of this thread below ``folder`` to ``meet``, which returns its result; yield those met so far."""
    points = _Points(folder, meet)
    with contextlib.ExitStack() as stack:
        for target, name, replacement in points.replacements():
            stack.enter_context(mock.patch.object(target, name, replacement))
        yield points.met


def die(_call: Call) -> None:
    """End the process as a kill would: nothing is flushed, no handler runs."""
    os._exit(KILLED)


def tear(call: Call) -> None:
    """End it with half of a write done."""
    if call.write is not None and call.data is not None:
        call.write(bytes(call.data)[: len(call.data) // 2])
    os._exit(KILLED)


def lose_power(call: Call) -> None:
    """End it, and take away what was not durable yet."""
    call.fragile.take()
    os._exit(KILLED)


def in_a_child(act: Callable[[], int], log: Path) -> int:
    """Return the exit code of ``act`` in a forked child, whose output goes to ``log``."""
    pid = os.fork()
    if pid == 0:
        try:
            gc.disable()  # it would touch, and so copy, all the memory of the parent
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            code = act()
        except BaseException:  # the child must never return into the test
            import traceback

            traceback.print_exc()
            code = 99
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class _Points:
    def __init__(self, folder: Path, meet: Callable[[Call], Any]) -> None:
        self._folder = folder
        self._meet = meet
        self._thread = threading.get_ident()
        self._busy = False
        self._fragile = Fragile()
        self.met: list[Call] = []

    def replacements(self) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
        for name, kind in (
            ("mkdir", "mkdir"),
            ("unlink", "remove"),
            ("remove", "remove"),
            ("rmdir", "remove"),
        ):
            yield os, name, self._of_a_path(kind, getattr(os, name))
        for name in ("listdir", "scandir"):
            yield os, name, self._of_a_path("list", getattr(os, name))
        for name in ("rename", "replace"):
            yield os, name, self._rename(getattr(os, name))
        for name, kind in (("write", "write"), ("pwrite", "write"), ("fsync", "fsync")):
            yield os, name, self._of_a_handle(kind, getattr(os, name))
        yield os, "open", self._os_open(os.open)
        yield io, "open", self._io_open(io.open)

    def _at(self, kind: str, path: Any, go: Callable[[], Any], **more: Any) -> Any:
        place = self._place(path, more.pop("dir_fd", None))
        ours = threading.get_ident() == self._thread and not self._busy
        if not ours or place is None or not place.is_relative_to(self._folder):
            return go()
        self._busy = True  # what a test does at a point is no point
        try:
            call = Call(kind=kind, path=place, go=go, fragile=self._fragile, **more)
            self.met.append(call)
            call.number = len(self.met)
            result = self._meet(call)
            self._fragile.note(call)
            return result
        finally:
            self._busy = False

    @staticmethod
    def _place(path: Any, dir_fd: int | None) -> Path | None:
        try:
            if isinstance(path, int):
                return Path(f"/proc/self/fd/{path}").readlink()
            base = Path(f"/proc/self/fd/{dir_fd}").readlink() if dir_fd is not None else Path.cwd()
            return base / os.fspath(path)
        except OSError:
            return None

    def _of_a_path(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def patched(path: Any = ".", *args: Any, dir_fd: int | None = None, **options: Any) -> Any:
            more = options if dir_fd is None else {**options, "dir_fd": dir_fd}
            place = self._place(path, dir_fd)
            is_moot = kind in ("mkdir", "remove") and place and place.exists() == (kind == "mkdir")
            return self._at(
                "look" if is_moot else kind, path, lambda: real(path, *args, **more), dir_fd=dir_fd
            )

        return patched

    def _rename(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def patched(old: Any, new: Any, **options: Any) -> Any:
            return self._at("rename", old, lambda: real(old, new, **options), target=Path(new))

        return patched

    def _of_a_handle(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def patched(handle: int, *args: Any) -> Any:
            if kind == "fsync":
                # nothing waits for the disk: what a power failure takes away is played, too
                return self._at(kind, handle, lambda: self._unless_ours(handle, real))
            rest = args[1:]
            whole = {"data": args[0], "write": lambda data: real(handle, data, *rest)}
            return self._at(kind, handle, lambda: real(handle, *args), **whole)

        return patched

    def _unless_ours(self, handle: int, real: Callable[[int], None]) -> None:
        place = self._place(handle, None)
        if place is None or not place.is_relative_to(self._folder):
            real(handle)

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def patched(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            kind = "create" if flags & os.O_CREAT and not Path(path).exists() else "open"
            return self._at(kind, path, lambda: real(path, flags, mode, dir_fd=dir_fd), dir_fd=dir_fd)

        return patched

    def _io_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def patched(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set("wxa") & set(mode):
                return self._at("read", path, lambda: real(path, mode, *args, **options))
            if isinstance(path, int) or "b" not in mode:
                return self._at("create", path, lambda: real(path, mode, *args, **options))
            return self._at(
                "create", path, lambda: io.BufferedWriter(_Raw(path, mode.replace("b", ""), self))
            )

        return patched

    def write_raw(self, file: "_Raw", data: Any) -> int:
        def write(part: Any) -> int:
            return io.FileIO.write(file, part)

        return self._at("write", file.name, lambda: write(data), data=data, write=write)


class _Raw(io.FileIO):
    """A file whose every write is a point."""

    def __init__(self, path: Any, mode: str, points: _Points) -> None:
        super().__init__(path, mode)
        self._points = points

    def write(self, data: Any) -> int:  # type: ignore[override]  # takes any buffer
        return self._points.write_raw(self, data)

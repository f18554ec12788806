"""An object store that misbehaves on demand: slow, full, torn, out of reach, or with lists that lag behind."""

import errno
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from fsspec.implementations.memory import MemoryFileSystem

from get3d_cluster.storage import remote

FAULTS = ("slow", "full", "torn", "torn in silence", "stale list", "error on write", "error on read")


class FaultyStore:
    """Stands for an fsspec file system. ``fault`` names what goes wrong, in a call by ``chance``; empty: nothing."""

    def __init__(self, seed: int = 0, *, slow_s: float = 0.002, chance: float = 0.35) -> None:
        self.fs = MemoryFileSystem(skip_instance_cache=True)
        self.fs.store, self.fs.pseudo_dirs = {}, [""]  # of this store alone
        self.fault = ""
        self.met: dict[str, int] = {}
        self._slow_s, self._chance = slow_s, chance
        self._random = random.Random(seed)
        self._lists: dict[str, list[str]] = {}

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        self._meet_write(path, data)
        if self._happens("torn in silence"):
            data = data[: len(data) // 2]
        self.fs.pipe_file(path, data, mode=mode)

    @contextmanager
    def open(self, path: str, mode: str) -> Iterator[Any]:
        assert mode == "wb"
        parts: list[bytes] = []
        writer = mock.Mock(write=lambda part: parts.append(bytes(part)))
        yield writer
        self.pipe_file(path, b"".join(parts))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        self._meet_read()
        data: bytes = self.fs.cat_file(path, start=start, end=end)
        return data

    def size(self, path: str) -> int:
        self._meet_read()
        return int(self.fs.size(path))

    def exists(self, path: str) -> bool:
        self._meet_read()
        return bool(self.fs.exists(path))

    def glob(self, pattern: str) -> list[str]:
        return self._listed(f"glob {pattern}", lambda: list(self.fs.glob(pattern)))

    def ls(self, path: str, detail: bool = False) -> list[str]:
        assert not detail
        return self._listed(f"ls {path}", lambda: list(self.fs.ls(path, detail=False)))

    def rm(self, path: str, recursive: bool = False) -> None:
        self._meet_read()
        self.fs.rm(path, recursive=recursive)

    def _listed(self, key: str, look: Any) -> list[str]:
        """Return a list; while lists lag, the one that was seen last before."""
        self._meet_read()
        if self.fault == "stale list" and key in self._lists:
            self.met["stale list"] = self.met.get("stale list", 0) + 1
            return self._lists[key]
        found: list[str] = look()
        self._lists[key] = found
        return found

    def _meet_write(self, path: str, data: bytes) -> None:
        if self._happens("slow"):
            time.sleep(self._slow_s)
        if self._happens("full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self._happens("error on write"):
            raise TimeoutError(errno.ETIMEDOUT, "the connection was lost")
        if self._happens("torn"):
            self.fs.pipe_file(path, data[: len(data) // 2])
            raise ConnectionResetError(errno.ECONNRESET, "the connection was reset")

    def _meet_read(self) -> None:
        if self._happens("error on read"):
            raise TimeoutError(errno.ETIMEDOUT, "no answer")

    def _happens(self, fault: str) -> bool:
        """Say whether it goes wrong in this call: by chance, so that each file meets it some time."""
        happens = self.fault == fault and self._random.random() < self._chance
        if happens:
            self.met[fault] = self.met.get(fault, 0) + 1
        return happens


@contextmanager
def faulty_store(store: FaultyStore) -> Iterator[str]:
    """Let every URL of this process lead to ``store``; yield one."""
    with mock.patch.object(remote, "connect", lambda url: (store, f"/{url.partition('://')[2].rstrip('/')}")):
        yield "memory://bucket/run"

"""What lies behind an fsspec URL: checkpoints (``RemoteStorage``) and files read by range (``RemoteFolder``).

Every object is atomic by itself, the manifest is written last. There is no rename on object stores, so a group exists
if and only if its ``manifest.json`` does. ``mode="create"`` makes two attempts that publish one step at once fail for
one of them. Source: fsspec documentation.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import fsspec

from get3d_cluster.errors import Get3dError, StorageError, UsageError
from get3d_cluster.storage.base import Data
from get3d_cluster.storage.local import fresh_memory

LAST = "manifest.json"
RANGE_BYTES = 1 << 24
READERS = 8
"""Ranges of one file on their way at a time."""
WAITS_S = (0.5, 2.0, 8.0)
"""Pauses before a read is tried again; the backends try again by themselves for shorter troubles."""
_PACKAGES = {
    "s3": f"s3fs=={fsspec.__version__}",  # both are released together, and s3fs asks for exactly its own
    "s3a": f"s3fs=={fsspec.__version__}",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
}

_T = TypeVar("_T")


def connect(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for ``url``, which no one else uses, and the path in it.

    Raises: UsageError if the protocol is unknown or its package is not installed.
    """
    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        package = _PACKAGES.get(protocol, f"the package that fsspec names: {error}")
        raise UsageError(
            f"{url} needs a package that is not installed: {error}", f"pip install {package}"
        ) from error
    except ValueError as error:
        known = ", ".join(sorted(_PACKAGES))
        raise UsageError(f"{url} cannot be opened: {error}", f"use a folder, or one of {known}") from error
    return fs, str(root).rstrip("/")


class RemoteStorage:
    """Groups of files as key prefixes below ``url``."""

    def __init__(self, url: str) -> None:
        self._fs: Any
        self._root: str
        self._fs, self._root = connect(url)
        self.url = url

    def write(self, name: str, files: Mapping[str, Data | Sequence[Data]]) -> None:
        folder = f"{self._root}/{name}"
        try:
            if self._fs.exists(f"{folder}/{LAST}"):
                raise FileExistsError(LAST)
            for file in sorted(files, key=lambda file: file == LAST):
                data = files[file]
                whole = b"".join(bytes(part) for part in ([data] if isinstance(data, Data) else data))
                self._fs.pipe_file(f"{folder}/{file}", whole, mode="create" if file == LAST else "overwrite")
        except FileExistsError as error:
            raise StorageError(f"{self.url}/{name} exists already", "resume from it") from error
        except OSError as error:
            raise StorageError(
                f"cannot write {self.url}/{name}: {error}", "check the credentials and the space there"
            ) from error

    def read(self, name: str, file: str) -> memoryview:
        path = f"{self._root}/{name}/{file}"
        size = int(self._fs.size(path))
        return _by_ranges(self._fs, path, size) if size > RANGE_BYTES else memoryview(self._fs.cat_file(path))

    def list(self) -> list[str]:
        manifests = self._fs.glob(f"{self._root}/*/{LAST}")
        return sorted(path.split("/")[-2] for path in manifests)

    def delete(self, name: str) -> None:
        for file in (LAST, ""):
            if self._fs.exists(f"{self._root}/{name}/{file}"):
                self._fs.rm(f"{self._root}/{name}/{file}", recursive=not file)

    def set_aside(self, name: str, why: str = "damaged") -> str:
        path = f"{self._root}/{name}/{LAST}"
        self._fs.pipe_file(f"{path}.{why}", self._fs.cat_file(path))
        self._fs.rm(path)
        return f"{path}.{why}"

    def clean(self) -> None:
        for folder in self._fs.ls(self._root, detail=False) if self._fs.exists(self._root) else ():
            if not self._fs.glob(f"{folder}/{LAST}*"):
                self._fs.rm(folder, recursive=True)


def _by_ranges(fs: Any, path: str, size: int) -> memoryview:
    """Return a large file, several ranges of which travel at the same time. Raises: OSError if it is cut short."""
    whole = fresh_memory(size)

    def fetch(start: int) -> None:
        end = min(start + RANGE_BYTES, size)
        data = fs.cat_file(path, start=start, end=end)
        if len(data) != end - start:
            raise OSError(f"{len(data)} of {end - start} bytes came of {path}")
        whole[start:end] = data

    with ThreadPoolExecutor(READERS) as readers:
        for _ in readers.map(fetch, range(0, size, RANGE_BYTES)):
            pass
    return whole


class RemoteFolder:
    """Files below a URL, read by range. For any number of threads; a forked or spawned process connects anew."""

    def __init__(self, url: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        if not url.partition("://")[2].strip("/"):
            raise UsageError(f"{url} names no place in its store", "add it, such as s3://bucket/cars")
        self.url = url.rstrip("/")
        self._sleep = sleep
        self._lock = threading.Lock()
        self._connection: tuple[int, Any, str] | None = None
        self._connected()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]  # what is left out is made anew

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return ``size`` bytes of a file from ``offset``, or all from there.

        Raises: UsageError if there is no such file, or it must not be read; StorageError if it stays out of reach.
        """

        def act(fs: Any, root: str) -> bytes:
            if size == 0:
                return b""
            end = None if size is None else offset + size
            data: bytes = fs.cat_file(f"{root}/{name}", start=offset or None, end=end)
            if size is not None and len(data) != size:
                raise OSError(f"{len(data)} of {size} bytes came")
            return data

        whole = size is None and not offset
        part = "" if whole else f" (bytes {offset} to {'the end' if size is None else offset + size})"
        return self._tried(f"{self.url}/{name}{part}", act)

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Return how long the files are, asked for at the same time. Raises: as ``read``."""

        def act(fs: Any, root: str) -> list[int]:
            return list(fs.sizes([f"{root}/{name}" for name in names]))

        what = f"{self.url}/{names[0]}" if len(names) == 1 else f"{self.url} ({len(names)} files)"
        return self._tried(what, act)

    def _tried(self, what: str, act: Callable[[Any, str], _T]) -> _T:
        """Return what ``act`` does, trying again where that can help."""
        for wait_s in (*WAITS_S, None):
            try:
                return act(*self._connected())
            except Exception as error:
                refusal = _refusal(what, error)
                if refusal or wait_s is None:
                    raise (refusal or _out_of_reach(what, error)) from error
            self._sleep(wait_s)
        raise AssertionError

    def _connected(self) -> tuple[Any, str]:
        """Return this process's file system: a connection must not cross a fork."""
        known = self._connection
        if known is None or known[0] != os.getpid():
            if known is not None:
                self._lock = threading.Lock()  # another thread of the parent may have held it
            with self._lock:
                known = self._connection
                if known is None or known[0] != os.getpid():
                    known = self._connection = (os.getpid(), *connect(self.url))
        return known[1], known[2]


def _refusal(what: str, error: Exception) -> Get3dError | None:
    """Return what to tell about an error that stays however often one tries, or None."""
    if isinstance(error, Get3dError):
        return error
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{what} is missing: {error}", "check the URL; list it with the tool of your store")
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return UsageError(
            f"{what} must not be read with the credentials found here: {error}",
            "give this machine credentials that may read it, the way the store's own tools take them",
        )
    return None


def _out_of_reach(what: str, error: Exception) -> StorageError:
    return StorageError(
        f"{what} stays out of reach, tried {len(WAITS_S) + 1} times: {type(error).__name__}: {error}",
        "check the network and the endpoint; resume goes on where the run was",
    )

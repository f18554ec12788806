"""Groups that several processes write together: each its own files, one of them publishes all at the end.

On a file system the files lie aside until one rename; behind a URL their keys carry a token of the save, so that two
attempts never write one key, and the manifest, which names them, comes last.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from get3d_cluster.errors import StorageError
from get3d_cluster.storage.base import Data, Storage
from get3d_cluster.storage.local import ASIDE, LocalStorage, explained, sync_folder, write_durably

CHUNK = 1 << 24
MANIFEST = "manifest.json"


class Staging(Protocol):
    """A group that is being written."""

    def stored(self, file: str) -> str:
        """Return the name that a file has in the group."""
        ...

    def write(self, file: str, data: Data | Iterable[Data]) -> str:
        """Make a file durable, not visible yet; return its name in the group. Raises: StorageError."""
        ...

    def read(self, stored: str) -> memoryview:
        """Return a file, whoever wrote it. Raises: OSError."""
        ...

    def publish(self, manifest: bytes) -> None:
        """Make all of it visible at once. Raises: StorageError, if the group exists too."""
        ...

    def abandon(self) -> None:
        """Remove what was written so far, unless it was published."""
        ...


def location_of(storage: Storage) -> str | None:
    """Return what ``stage`` and ``open_storage`` need in another process; None for a storage that has no such place."""
    if isinstance(storage, LocalStorage):
        return str(storage.root)
    url = getattr(storage, "url", None)
    return url if isinstance(url, str) else None


def stage(location: str, name: str, token: str) -> Staging:
    """Begin, or join, the writing of the group ``name`` below a folder or a URL."""
    if "://" in location:
        return _RemoteStaging(location, name, token)
    return _LocalStaging(Path(location), name, token)


class _LocalStaging:
    def __init__(self, root: Path, name: str, token: str) -> None:
        self._root = root
        self._target = root / name
        self._token = token
        self._aside = root / f"{ASIDE}{name}-{token}"

    def stored(self, file: str) -> str:
        return file

    def write(self, file: str, data: Data | Iterable[Data]) -> str:
        with explained(self._target):
            self._aside.mkdir(parents=True, exist_ok=True)
            write_durably(self._aside / file, list(_chunks(data)))
            sync_folder(self._aside)
        return file

    def read(self, stored: str) -> memoryview:
        return LocalStorage(self._root).read(self._aside.name, stored)

    def publish(self, manifest: bytes) -> None:
        with explained(self._target):
            write_durably(self._aside / MANIFEST, [manifest])
            sync_folder(self._aside)
            self._aside.rename(self._target)
            sync_folder(self._root)

    def abandon(self) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)


class _RemoteStaging:
    def __init__(self, url: str, name: str, token: str) -> None:
        from get3d_cluster.storage.remote import connect

        self._url = f"{url.rstrip('/')}/{name}"
        self._token = token
        self._fs: Any
        self._fs, root = connect(url)
        if hasattr(self._fs, "auto_mkdir"):
            self._fs.auto_mkdir = True  # object stores have no folders; other file systems have to make them
        self._folder = f"{root}/{name}"
        self._sizes: dict[str, int] = {}
        """Bytes of each file that was written here."""

    def stored(self, file: str) -> str:
        return f"{self._token}-{file}"

    def write(self, file: str, data: Data | Iterable[Data]) -> str:
        stored, size = self.stored(file), 0
        with self._told(), self._fs.open(f"{self._folder}/{stored}", "wb") as out:
            for chunk in _chunks(data):
                out.write(chunk)
                size += len(chunk)
        self._sizes[stored] = size
        return stored

    def read(self, stored: str) -> memoryview:
        return memoryview(self._fs.cat_file(f"{self._folder}/{stored}"))

    def publish(self, manifest: bytes) -> None:
        with self._told():
            self._make_sure()
            self._fs.pipe_file(f"{self._folder}/{MANIFEST}", manifest, mode="create")

    def _make_sure(self) -> None:
        """Find what was cut short unsaid, and what the start of another attempt took for remains. Raises: OSError."""
        for stored, size in self._sizes.items():
            if (there := self._fs.size(f"{self._folder}/{stored}")) != size:
                raise OSError(f"{there} of {size} bytes are there of {stored}")

    def _is_in_manifest(self) -> bool:
        try:
            return bool(self._token.encode() in self._fs.cat_file(f"{self._folder}/{MANIFEST}"))
        except FileNotFoundError:
            return False

    def abandon(self) -> None:
        with contextlib.suppress(Exception):  # what stays is found and removed by the next attempt
            if self._is_in_manifest():  # by an earlier writer of this save, which died before it said so
                return
            for path in self._fs.glob(f"{self._folder}/{self._token}-*"):
                self._fs.rm(path)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell of an error in words; each backend has kinds of its own."""
        try:
            yield
        except StorageError:
            raise  # of whoever hands the data over
        except FileExistsError as error:
            raise StorageError(f"{self._url} exists already", "resume from it") from error
        except Exception as error:
            raise StorageError(
                f"cannot write {self._url}: {type(error).__name__}: {error}",
                "check the credentials and the space there",
            ) from error


def _chunks(data: Data | Iterable[Data]) -> Iterator[memoryview]:
    if not isinstance(data, Data):
        for each in data:
            yield from _chunks(each)
        return
    whole = memoryview(data)
    for start in range(0, len(whole), CHUNK):
        yield whole[start : start + CHUNK]

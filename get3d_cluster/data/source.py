"""Where the files of a packed dataset lie: a folder, or any URL that fsspec knows. Torch-free."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Location = str | Path
"""A folder, or a URL such as ``s3://bucket/data``; ``file://`` reads a folder as if it were remote."""


class Source(Protocol):
    """Files below one place. For any number of threads; holds no file open."""

    @property
    def is_remote(self) -> bool:
        """Whether reading is slow enough to be worth a copy on this machine."""
        ...

    def path_of(self, name: str) -> str:
        """Return a file's whole name, for people."""
        ...

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return ``size`` bytes of a file from ``offset``, fewer at its end. Raises: OSError, Get3dError."""
        ...

    def sizes(self, names: Sequence[str]) -> list[int]:
        """Return the lengths of files. Raises: OSError, Get3dError."""
        ...


def open_source(location: Location) -> Source:
    """Return the source at ``location``. Raises: UsageError if its protocol cannot be used here."""
    if "://" in str(location):
        return RemoteSource(str(location))
    return LocalSource(Path(location))


class LocalSource:
    """A folder."""

    is_remote = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path_of(self, name: str) -> str:
        return str(self._folder / name)

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        with (self._folder / name).open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(-1 if size is None else size)

    def sizes(self, names: Sequence[str]) -> list[int]:
        return [(self._folder / name).stat().st_size for name in names]


class RemoteSource:
    """A URL."""

    is_remote = True

    def __init__(self, url: str) -> None:
        from get3d_cluster.storage.remote import (
            RemoteFolder,  # fsspec is slow to import, and most data is local
        )

        self._folder = RemoteFolder(url)

    def path_of(self, name: str) -> str:
        return f"{self._folder.url}/{name}"

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        return self._folder.read(name, offset, size)

    def sizes(self, names: Sequence[str]) -> list[int]:
        return self._folder.sizes(names)

"""Storage behind any fsspec URL: every object is atomic by itself, the manifest is written last.

There is no rename on object stores, so a group exists if and only if its ``manifest.json`` does.
``mode="create"`` makes two attempts that publish one step at once fail for one of them. Source: fsspec documentation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from get3d_cluster.errors import StorageError
from get3d_cluster.storage.base import Data

LAST = "manifest.json"


class RemoteStorage:
    """Groups of files as key prefixes below ``url``."""

    def __init__(self, url: str) -> None:
        self._fs: Any
        self._root: str
        self._fs, self._root = fsspec.core.url_to_fs(url)
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
        return memoryview(self._fs.cat_file(f"{self._root}/{name}/{file}"))

    def list(self) -> list[str]:
        manifests = self._fs.glob(f"{self._root}/*/{LAST}")
        return sorted(path.split("/")[-2] for path in manifests)

    def delete(self, name: str) -> None:
        for file in (LAST, ""):
            if self._fs.exists(f"{self._root}/{name}/{file}"):
                self._fs.rm(f"{self._root}/{name}/{file}", recursive=not file)

    def set_aside(self, name: str) -> str:
        path = f"{self._root}/{name}/{LAST}"
        self._fs.pipe_file(f"{path}.damaged", self._fs.cat_file(path))
        self._fs.rm(path)
        return f"{path}.damaged"

    def clean(self) -> None:
        for folder in self._fs.ls(self._root, detail=False) if self._fs.exists(self._root) else ():
            if not self._fs.exists(f"{folder}/{LAST}") and not self._fs.exists(f"{folder}/{LAST}.damaged"):
                self._fs.rm(folder, recursive=True)

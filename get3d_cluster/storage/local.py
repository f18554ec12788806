"""Storage on a POSIX file system: written aside, fsynced, published by one rename."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from get3d_cluster.errors import StorageError
from get3d_cluster.storage.base import Data

_ASIDE = ".writing-"
_DAMAGED = ".damaged-"


def write_atomic(path: Path, data: Data) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a crash at any instant, sees the old or the new whole file.

    Raises: StorageError naming the path and the reason.
    """
    aside = path.with_name(f"{_ASIDE}{path.name}-{secrets.token_hex(4)}")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_durably(aside, [data])
            aside.replace(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class LocalStorage:
    """Groups of files as folders below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, files: Mapping[str, Data | Sequence[Data]]) -> None:
        target = self.root / name
        aside = self.root / f"{_ASIDE}{name}-{secrets.token_hex(4)}"
        with _explained(target):
            try:
                aside.mkdir(parents=True)
                for file, data in files.items():
                    _write_durably(aside / file, [data] if isinstance(data, Data) else data)
                sync_folder(aside)
                aside.rename(target)
                sync_folder(self.root)
            except OSError:
                shutil.rmtree(aside, ignore_errors=True)
                raise

    def read(self, name: str, file: str) -> memoryview:
        return memoryview((self.root / name / file).read_bytes())

    def list(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(
            path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )

    def delete(self, name: str) -> None:
        shutil.rmtree(self.root / name, ignore_errors=True)

    def set_aside(self, name: str) -> str:
        aside = self.root / f"{_DAMAGED}{name}-{secrets.token_hex(4)}"
        with _explained(aside):
            (self.root / name).rename(aside)
        return str(aside)

    def clean(self) -> None:
        for path in self.root.glob(f"{_ASIDE}*") if self.root.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True)


def _write_durably(path: Path, parts: Sequence[Data]) -> None:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            "free space or mend the permissions there, then run the same command again: nothing saved was lost",
        ) from error

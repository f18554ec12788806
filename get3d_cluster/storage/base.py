"""Where checkpoints live: named groups of files that appear whole or not at all."""

from collections.abc import Mapping, Sequence
from typing import Protocol

Data = bytes | bytearray | memoryview


class Storage(Protocol):
    """Write, read, list, delete, and two for the unhappy day.

    ``name`` is a relative path such as ``step-000000100``; it stands for a group of files.
    """

    def write(self, name: str, files: Mapping[str, Data | Sequence[Data]]) -> None:
        """Publish ``files`` as ``name``: afterwards all of them are durable, or none is visible.

        A name is written once: replacing a group would leave a moment with neither.
        Raises: StorageError if the name exists, or the storage is full or not writable.
        """
        ...

    def read(self, name: str, file: str) -> memoryview:
        """Return one file of a published group. Raises: FileNotFoundError."""
        ...

    def list(self) -> list[str]:
        """Return the names of the published groups, sorted."""
        ...

    def delete(self, name: str) -> None:
        """Remove a group; nothing happens if there is none."""
        ...

    def set_aside(self, name: str, why: str = "damaged") -> str:
        """Take a group out of the list without destroying it; return where it is now, by a name with ``why`` in it."""
        ...

    def clean(self) -> None:
        """Remove what killed writers left behind. Only for the one owner of the run."""
        ...

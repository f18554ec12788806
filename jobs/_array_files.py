"""The files that items are made of: arrays and JSON, as bytes that depend on nothing but the values."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs._staged import Item

ITEM_IMAGES = 64
"""Images of an item."""
BLOCK_FILES = 16
"""Files in memory at a time."""

Stage = list[Item]
Rows = NDArray[np.float32]


class FeatureFiles:
    """Features in files of ``ITEM_IMAGES`` rows, read from the disk as they are asked for."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self._paths = [folder / f"{i:05d}.npy" for i in range(-(-count // ITEM_IMAGES))]

    def items(self, make: Callable[[int, int], bytes]) -> Stage:
        """Return the items that make the files, from their first row and the one after their last."""
        bounds = [(i * ITEM_IMAGES, min((i + 1) * ITEM_IMAGES, self.count)) for i in range(len(self._paths))]
        return [Item(path=p, make=partial(make, *b)) for p, b in zip(self._paths, bounds, strict=True)]

    def chunks(self) -> Iterator[Rows]:
        """Return all rows in order, a block of files at a time."""
        for first in range(0, len(self._paths), BLOCK_FILES):
            yield np.concatenate([np.load(path) for path in self._paths[first : first + BLOCK_FILES]])

    def rows(self, numbers: NDArray[np.int64]) -> Rows:
        """Return some rows, given ascending."""
        parts = []
        for i, path in enumerate(self._paths):
            own = numbers[(numbers >= i * ITEM_IMAGES) & (numbers < (i + 1) * ITEM_IMAGES)] - i * ITEM_IMAGES
            if len(own):
                parts.append(np.load(path, mmap_mode="r")[own])
        return np.concatenate(parts)


def key_of(*values: Any) -> str:
    """Return a digest of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def as_bytes(values: Any) -> bytes:
    """Return JSON as a file holds it."""
    return (json.dumps(values, indent=1, sort_keys=False, allow_nan=False) + "\n").encode()


def npy(array: NDArray[Any]) -> bytes:
    """Return the content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array))
    return buffer.getvalue()


def npz(**arrays: NDArray[Any]) -> bytes:
    """Return the content of a .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def text(values: Any) -> NDArray[Any]:
    """Return JSON as an array."""
    return np.array(json.dumps(values))


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return all arrays of a .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def read(path: Path, name: str) -> Any:
    """Return one value of a JSON file."""
    return json.loads(path.read_text())[name]

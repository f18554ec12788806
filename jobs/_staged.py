"""Work in stages of items that workers share out by claims. What an item makes is one file; the files are the state."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from get3d_cluster.runtime.claims import Claims
from get3d_cluster.storage.local import write_atomic

WAIT_S = 0.1
"""Pause while other workers hold what is left of a stage."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file to be made, from files of earlier stages alone: whoever makes it, it holds the same."""

    path: Path
    make: Callable[[], bytes]

    def is_made(self) -> bool:
        """Say whether it is there."""
        return self.path.exists()


class Stages:
    """One worker's way through stages: each begins when all files of those before it are there."""

    def __init__(
        self, stages: Sequence[Sequence[Item]], claims: Claims, root: Path, rank: int, world_size: int
    ) -> None:
        self._stages = [_from_own_part(stage, rank, world_size) for stage in stages]
        self._claims = claims
        self._root = root
        self.items = [item for stage in stages for item in stage]

    def is_done(self) -> bool:
        """Say whether every file of every stage was seen."""
        while self._stages and not self._stages[0]:
            del self._stages[0]
        return not self._stages

    def step(self) -> Item | None:
        """Make one file, and return it; or pass over what is there, or wait a moment for other workers."""
        if self.is_done():
            return None
        left = self._stages[0] = [item for item in self._stages[0] if not item.is_made()]
        for item in left:
            name = item.path.relative_to(self._root).as_posix()
            if self._claims.claim(name):
                try:
                    return self._make(item, name)
                finally:
                    self._claims.release(name)
        if left:
            time.sleep(WAIT_S)
        return None

    def _make(self, item: Item, name: str) -> Item | None:
        if item.is_made():  # by another worker, between our look and our claim
            return None
        content = item.make()
        if not self._claims.holds(name):
            return None
        write_atomic(item.path, content)
        return item


def _from_own_part(stage: Sequence[Item], rank: int, world_size: int) -> list[Item]:
    first = rank * len(stage) // world_size
    return [*stage[first:], *stage[:first]]

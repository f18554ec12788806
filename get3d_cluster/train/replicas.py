"""When all workers were last found to have the same state, bit for bit."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from get3d_cluster.dist.group import Group
from get3d_cluster.dist.replicas import check_replicas
from get3d_cluster.runtime.checkpoint_tree import flatten


class Replicas:
    """Compares the copies of a state that the workers of ``group`` have, and remembers when; ``every`` 0: never."""

    def __init__(self, group: Group, every: int) -> None:
        self._group = group
        self._every = every
        self._start_step = 0
        self._agreed_step: int | None = None

    def begin(self, step: int) -> None:
        """Note where this attempt goes on from: a state that all workers read."""
        self._start_step, self._agreed_step = step, None

    def agreed_step(self) -> int | None:
        """Return when all workers were last known to have the same weights; None if nobody compares."""
        if self._group.world_size == 1 or not self._every:
            return None
        return self._start_step if self._agreed_step is None else self._agreed_step

    def is_due(self, step: int) -> bool:
        return bool(self._every) and step % self._every == 0

    def compare(self, state: Callable[[], Mapping[str, Any]], step: int) -> None:
        """Make sure that all have the same ``state``, unless it was compared. Raises: HeldError if they do not."""
        if not self._every or self._agreed_step == step:
            return
        check_replicas(self._group, _numbers_of(state()), step, self._agreed_step)
        self._agreed_step = step


def _numbers_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return all tensors of a state, and its single numbers as tensors, by name."""
    leaves = (
        (".".join(path), leaf) for path, leaf in flatten(state) if isinstance(leaf, Tensor | int | float)
    )
    return {
        name: leaf if isinstance(leaf, Tensor) else torch.tensor([leaf], dtype=torch.float64)
        for name, leaf in leaves
    }

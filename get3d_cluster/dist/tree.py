"""Sums over the micro-shards of a global batch whose bits do not depend on the number of workers.

Each worker adds its own shards along the tree of ``core.shards``, the workers exchange these partial sums, and every
worker finishes the same additions. Plain and synchronous: one all-gather of a worker's partial sums.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from get3d_cluster.core.shards import Block, blocks_of, fold, merge, shards_of
from get3d_cluster.dist.group import Group


class TreeSum:
    """Adds one vector per micro-shard into one vector, equal on every worker for any number of workers."""

    def __init__(self, group: Group, num_shards: int) -> None:
        self._group = group
        self.shards = shards_of(group.rank, group.world_size, num_shards)
        self._blocks = [
            blocks_of(shards_of(rank, group.world_size, num_shards)) for rank in range(group.world_size)
        ]
        self._stack: list[tuple[Block, Tensor]] = []
        self._next = self.shards.start

    def push(self, vector: Tensor) -> None:
        """Add the vector of this worker's next shard. The tensor is kept and written to."""
        assert self._next in self.shards, "more vectors than this worker has shards"
        self._stack = merge([*self._stack, ((self._next, 0), vector)], _add_into)
        self._next += 1

    def total(self) -> Tensor:
        """Return the sum over all shards of all workers, and begin anew."""
        assert self._next == self.shards.stop, "a shard of this worker is missing"
        stack, self._stack, self._next = self._stack, [], self.shards.start
        return fold(self._exchange(stack), _add_into)

    def _exchange(self, stack: list[tuple[Block, Tensor]]) -> list[tuple[Block, Tensor]]:
        if self._group.world_size == 1:
            return stack
        assert [block for block, _ in stack] == self._blocks[self._group.rank]
        most = max(len(blocks) for blocks in self._blocks)
        mine = [vector for _, vector in stack]
        padded = mine + [torch.zeros_like(mine[0])] * (most - len(mine))
        gathered = self._group.all_gather(torch.stack(padded))
        return [
            (block, part[i])
            for blocks, part in zip(self._blocks, gathered, strict=True)
            for i, block in enumerate(blocks)
        ]


class PhasePlan:
    """Which parameters a phase gives gradients to, in a fixed order; the rest of the vector are the phase's extras.

    A parameter that a shard leaves without a gradient counts as zero, on every worker alike.
    """

    def __init__(
        self, name: str, parameters: Iterable[tuple[str, nn.Parameter]], num_extras: int = 0
    ) -> None:
        self.name = name
        self._named = [(key, parameter) for key, parameter in parameters if parameter.requires_grad]
        self.num_extras = num_extras

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self._named]

    def describe(self) -> list[str]:
        """Return what all workers must agree on, one line a parameter."""
        return [
            self.name,
            str(self.num_extras),
            *(f"{key} {tuple(p.shape)} {p.dtype}" for key, p in self._named),
        ]

    def take(self, extras: Sequence[Tensor]) -> Tensor:
        """Return the gradients of one shard and its extras as one new vector; clears the gradients."""
        parts = [
            torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in self.parameters
        ]
        parts += [extra.detach().reshape(-1) for extra in extras]
        for parameter in self.parameters:
            parameter.grad = None
        return torch.cat(parts)

    def give(self, vector: Tensor) -> Tensor:
        """Write the gradients in ``vector`` back to the parameters; return its extras."""
        start = 0
        for parameter in self.parameters:
            parameter.grad = vector[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()
        assert vector.numel() - start == self.num_extras, (
            f"phase {self.name}: {vector.numel() - start} extras"
        )
        return vector[start:]


class GradientReducer:
    """Averages the gradients of a phase over the micro-shards.

    Use, on every worker: for each shard of ``start()``: forward, backward, ``add(extras)``; then ``finish()``,
    after which the gradients are in place for the optimizer.
    """

    def __init__(self, plan: PhasePlan, group: Group, num_shards: int) -> None:
        _check_agreement(plan, group)
        self._plan = plan
        self._sum = TreeSum(group, num_shards)
        self._num_shards = num_shards

    @property
    def shards(self) -> range:
        """The micro-shards that this worker computes."""
        return self._sum.shards

    def start(self) -> range:
        """Forget the gradients of the step before, and return the micro-shards to compute."""
        for parameter in self._plan.parameters:
            parameter.grad = None
        return self._sum.shards

    def add(self, *extras: Tensor) -> None:
        """Take the gradients of the shard just computed, and its extra numbers."""
        self._sum.push(self._plan.take(extras))

    def finish(self) -> Tensor:
        """Put the mean gradients in place and return the mean of the extras."""
        return self._plan.give(self._sum.total().div_(self._num_shards))


def _check_agreement(plan: PhasePlan, group: Group) -> None:
    mine = plan.describe()
    theirs = group.broadcast(mine)
    if mine != theirs:
        first = next(
            (pair for pair in zip(mine, theirs, strict=False) if pair[0] != pair[1]), ("length", "length")
        )
        raise RuntimeError(
            f"phase {plan.name} differs between workers: {first[0]!r} here, {first[1]!r} on rank 0"
        )


def _add_into(left: Tensor, right: Tensor) -> Tensor:
    return left.add_(right)

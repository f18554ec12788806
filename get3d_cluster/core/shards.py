"""The fixed binary tree over the micro-shards of a global batch, and who computes which. Pure.

A global batch is cut into ``num_shards`` micro-shards, fixed for the life of a run. Their sums are added along one
tree whose shape depends on ``num_shards`` alone, so any number of workers up to ``num_shards`` gives the same bits.
A node of the tree is a *block*: ``2**level`` shards starting at a multiple of ``2**level``. What is left over when
``num_shards`` is not a power of two is folded from right to left.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Value = TypeVar("Value")
Block = tuple[int, int]
"""First shard and level: the shards ``first .. first + 2**level - 1``."""


def shards_of(rank: int, world_size: int, num_shards: int) -> range:
    """Return the contiguous shards that worker ``rank`` computes; sizes differ by one at most.

    >>> [list(shards_of(r, 3, 8)) for r in range(3)]
    [[0, 1, 2], [3, 4, 5], [6, 7]]

    Raises: ValueError if there are more workers than shards.
    """
    if not 1 <= world_size <= num_shards:
        raise ValueError(
            f"{world_size} workers cannot share num_shards={num_shards}: use 1 to {num_shards} workers"
        )
    each, more = divmod(num_shards, world_size)
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))


def blocks_of(shards: range) -> list[Block]:
    """Cut contiguous shards into the largest aligned blocks, left to right.

    >>> blocks_of(range(3, 8))
    [(3, 0), (4, 2)]
    """
    blocks, first = [], shards.start
    while first < shards.stop:
        level = 0
        while first % 2 ** (level + 1) == 0 and first + 2 ** (level + 1) <= shards.stop:
            level += 1
        blocks.append((first, level))
        first += 2**level
    return blocks


def merge(
    values: Iterable[tuple[Block, Value]], add: Callable[[Value, Value], Value]
) -> list[tuple[Block, Value]]:
    """Add neighbouring blocks, left to right, as far as the tree allows (a binary counter).

    ``values`` must be contiguous and in order. At most ``log2(n) + 1`` values are held at a time.
    """
    stack: list[tuple[Block, Value]] = []
    for block, value in values:
        stack.append((block, value))
        while len(stack) > 1 and _are_siblings(stack[-2][0], stack[-1][0]):
            (_, right), ((first, level), left) = stack.pop(), stack.pop()
            stack.append(((first, level + 1), add(left, right)))
    return stack


def fold(values: Sequence[tuple[Block, Value]], add: Callable[[Value, Value], Value]) -> Value:
    """Return the sum over all shards: merge along the tree, then fold what is left from right to left."""
    rest = merge(values, add)
    _, total = rest.pop()
    while rest:
        total = add(rest.pop()[1], total)
    return total


def _are_siblings(left: Block, right: Block) -> bool:
    (first, level), (next_first, next_level) = left, right
    return level == next_level and first % 2 ** (level + 1) == 0 and next_first == first + 2**level

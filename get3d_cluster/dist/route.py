"""Which worker sends what to whom, so that every element is added along the tree of ``core.shards``. Pure.

An exchange is a chain of stages. In a stage, a few workers (its peers) cut the part of the vector that they have in
common into as many pieces, and each adds one piece for all of them; after the last stage the pieces are gathered back,
stage by stage. With two peers a stage this is recursive halving and doubling; peers within one node first, then across
nodes, make a hierarchical all-reduce. Stages decide who adds and what crosses which wire; the tree decides the bits.

Source of the scheme: Thakur, Rabenseifner, Gropp 2005 (recursive halving and doubling).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from get3d_cluster.core.shards import Block, blocks_of, fold, shards_of

Span = tuple[int, int]
"""The shards ``first .. stop - 1`` under a node of the tree."""
_MOST_BITS = 3
"""Up to 8 peers exchange directly: fewer turns for the same bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One exchange among some workers, as one of them sees it."""

    peers: tuple[int, ...]
    """Their ranks, in the order of their shards."""
    place: int
    """Which of them is this worker."""
    blocks: tuple[tuple[Block, ...], ...]
    """Of which shards each of them brings sums."""
    is_inside: bool
    """Whether all of them sit on one node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """Where the tree rounds to bf16: a property of its top levels, whoever computes them."""

    sums: frozenset[Span]
    """Nodes whose two operands and whose result are rounded."""
    operands: frozenset[Span]
    """What these add, which can travel as bf16."""
    root: bool
    """Whether the sum over all shards is rounded."""


def rounding(num_shards: int, levels: int) -> Rounding:
    """Return where the tree over ``num_shards`` rounds if its ``levels`` top levels do."""
    children: dict[Span, tuple[Span, Span]] = {}

    def join(left: Span, right: Span) -> Span:
        children[left[0], right[1]] = (left, right)
        return left[0], right[1]

    sums, row = set(), [fold([((i, 0), (i, i + 1)) for i in range(num_shards)], join)]
    for _ in range(levels):
        inner = [span for span in row if span in children]
        sums |= set(inner)
        row = [child for span in inner for child in children[span]]
    operands = frozenset(child for span in sums for child in children[span])
    return Rounding(sums=frozenset(sums), operands=operands, root=(0, num_shards) in sums)


def span_of(block: Block) -> Span:
    """Return the shards of an aligned block."""
    first, level = block
    return first, first + 2**level


def stages(rank: int, world_size: int, num_shards: int, local_size: int = 1, levels: int = 0) -> list[Stage]:
    """Return the chain of stages of worker ``rank``.

    ``local_size`` workers with consecutive ranks sit on each node; ``levels`` of the tree are rounded, from its top.
    Workers whose shards are not one block each, of one size, do it in one stage of all.
    """
    blocks = [tuple(blocks_of(shards_of(other, world_size, num_shards))) for other in range(world_size)]
    if not _is_aligned(blocks):
        everyone = tuple(range(world_size))
        inside = local_size >= world_size
        return [Stage(peers=everyone, place=rank, blocks=tuple(blocks), is_inside=inside)]
    chain, stride = [], 1
    shards_each = 2 ** blocks[0][0][1]
    for radix in radices(world_size, local_size, levels):
        place = rank // stride % radix
        first = rank - place * stride
        peers = tuple(first + i * stride for i in range(radix))
        level = (stride * shards_each).bit_length() - 1
        brought = tuple(((peer // stride * stride * shards_each, level),) for peer in peers)
        stride *= radix
        inside = stride <= local_size
        chain.append(Stage(peers=peers, place=place, blocks=brought, is_inside=inside))
    return chain


def radices(world_size: int, local_size: int = 1, levels: int = 0) -> list[int]:
    """Cut aligned workers into stages: within a node, then between nodes, then a last one if they are no power of two.

    >>> radices(32, 8), radices(4, 2), radices(12, 4), radices(8, 8, levels=1)
    ([8, 4], [2, 2], [4, 3], [4, 2])
    """
    bits = (world_size & -world_size).bit_length() - 1
    odd = world_size >> bits
    cuts = {0, bits}
    cuts.add(min(bits, (local_size & -local_size).bit_length() - 1))
    if levels and odd == 1:
        cuts.add(max(0, bits - levels))
    edges = sorted(cuts)
    parts = [_even_parts(stop - start) for start, stop in pairwise(edges)]
    found = [2**part for row in parts for part in row]
    return found + [odd] * (odd > 1)


def pieces(start: int, stop: int, count: int) -> list[int]:
    """Return the ``count + 1`` edges of as many pieces whose sizes differ by one at most."""
    return [start + (stop - start) * i // count for i in range(count + 1)]


def _even_parts(bits: int) -> Iterable[int]:
    count = -(-bits // _MOST_BITS)
    return [bits * (i + 1) // count - bits * i // count for i in range(count)]


def _is_aligned(blocks: Sequence[Sequence[Block]]) -> bool:
    return all(len(own) == 1 for own in blocks) and len({own[0][1] for own in blocks}) == 1

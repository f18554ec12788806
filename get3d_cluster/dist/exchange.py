"""The sum over all workers of one bucket of a vector, element by element along the tree.

Every addition is made here; the wire only moves bytes. Rounding to bf16 belongs to nodes of the tree and happens
whether or not their operands crossed a wire, so that bits do not depend on the number of workers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from get3d_cluster.core.shards import Block, fold, merge
from get3d_cluster.dist.lanes import Step
from get3d_cluster.dist.route import Rounding, Span, Stage, pieces, rounding, span_of, stages
from get3d_cluster.dist.wire import Message, Pending, Wire

NARROW = torch.bfloat16
_MOST_STAGES = 64


@dataclass(slots=True)
class Node:
    """A node of the tree with the sum of its shards."""

    span: Span
    tensor: Tensor
    stays: bool
    """Whether the sum has to end in this memory; it is the left operand's otherwise."""


class Adder:
    """Adds along the tree, in place."""

    def __init__(self, where: Rounding) -> None:
        self._where = where

    def merged(self, parts: Iterable[tuple[Block, Node]]) -> list[tuple[Block, Node]]:
        """Add neighbours as far as the tree allows."""
        return merge(parts, self.add)

    def total(self, parts: Iterable[tuple[Block, Node]]) -> Node:
        """Return the sum of all; the parts are taken as they come."""
        return fold(merge(parts, self.add), self.add)

    def add(self, left: Node, right: Node) -> Node:
        """Add two neighbours."""
        span = (left.span[0], right.span[1])
        into, other = (right, left) if right.stays else (left, right)
        if span not in self._where.sums:
            into.tensor.add_(other.tensor)
            return Node(span, into.tensor, into.stays)
        total = _rounded(into.tensor).add_(_rounded(other.tensor))
        return Node(span, _rounded(total), into.stays)


class Route:
    """How a worker's sums reach the others: stages, wire, and memory for what arrives."""

    def __init__(
        self,
        wire: Wire | None,
        rank: int,
        world_size: int,
        num_shards: int,
        *,
        local_size: int = 1,
        rounded_levels: int = 0,
        number: int = 0,
    ) -> None:
        """``number`` tells routes of one wire apart, whose stages differ."""
        self.wire = wire
        self._number = number
        self.num_shards = num_shards
        self.where = rounding(num_shards, rounded_levels)
        self.adder = Adder(self.where)
        self.stages = stages(rank, world_size, num_shards, local_size, rounded_levels)
        self._memory: dict[tuple[tuple[int, int], int, torch.dtype], Tensor] = {}
        self._pinned: dict[tuple[int, torch.dtype], Tensor] = {}

    def memory(
        self, where: tuple[int, int], place: int, like: Tensor, dtype: torch.dtype, size: int
    ) -> Tensor:  # [size]
        """Return memory that a slot of a lane uses again and again."""
        key = (where, place, dtype)
        if key not in self._memory or self._memory[key].numel() < size:
            self._memory[key] = torch.empty(size, dtype=dtype, device=like.device)
        return self._memory[key][:size]

    def pinned(
        self, place: int, size: int, dtype: torch.dtype, make: Callable[[int, torch.dtype], Tensor]
    ) -> Tensor:  # [size]
        """Return memory of the host for a part of a bucket, again and again: to pin memory takes longer than to copy."""
        key = (place, dtype)
        if key not in self._pinned or self._pinned[key].numel() < size:
            self._pinned[key] = make(size, dtype)
        return self._pinned[key][:size]

    def tag(self, stage: int, *, gathers: bool) -> int:
        """Return what sets messages of a stage apart: lanes begin later stages at times of their own."""
        return 2 * (_MOST_STAGES * self._number + stage) + gathers

    def lanes(self) -> list[list[tuple[bool, int]]]:
        """Return what each lane does: (whether it gathers, number of the stage)."""
        count = len(self.stages)
        inside = sum(stage.is_inside for stage in self.stages)
        scatter = [(False, i) for i in range(count)]
        gather = [(True, i) for i in reversed(range(count))]
        if inside in (0, count):
            return [scatter, gather] if count else [[]]
        return [scatter[:inside], scatter[inside:] + gather[: count - inside], gather[count - inside :]]


class Journey:
    """One bucket on its way: sums of this worker's shards at first, the mean over all shards at the end."""

    def __init__(self, route: Route, parts: Sequence[tuple[Block, Tensor]]) -> None:
        """``parts`` are [n] each, in the order of their shards; the mean ends in the memory of the first."""
        self._route = route
        self.parts = list(parts)
        self.out = parts[0][1]
        self._edges: list[list[int]] = []

    def steps(self) -> list[Step]:
        """Return what each lane has to do."""
        rows = self._route.lanes()
        last = len(rows) - 1
        return [self._step(lane, row, is_last=lane == last) for lane, row in enumerate(rows)]

    def merge(self) -> None:
        """Add up this worker's own shards as far as the tree allows."""
        nodes = [(block, Node(span_of(block), tensor, False)) for block, tensor in self.parts]
        self.parts = [(block, node.tensor) for block, node in self._route.adder.merged(nodes)]

    def fold(self) -> Tensor:
        """Add up this worker's own shards altogether, whatever the tree says, into the memory of the first."""
        nodes = [(block, Node(span_of(block), part, i == 0)) for i, (block, part) in enumerate(self.parts)]
        return self._route.adder.total(nodes).tensor

    def move(self, mirror: Tensor, make_pinned: Callable[[int, torch.dtype], Tensor]) -> None:
        """Go on with copies of the parts in pinned memory of the host, the first one in ``mirror``."""
        others = range(1, len(self.parts))
        kept = (self._route.pinned(i, mirror.numel(), mirror.dtype, make_pinned) for i in others)
        copies = [mirror, *kept]
        for copy, (_, tensor) in zip(copies, self.parts, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self.parts = [(block, copy) for copy, (block, _) in zip(copies, self.parts, strict=True)]
        self.out = mirror

    def _step(self, lane: int, row: list[tuple[bool, int]], *, is_last: bool) -> Step:
        def begin(slot: int) -> Callable[[], None]:
            with torch.no_grad():
                if lane == 0:
                    self.merge()
                first = self._begin(row[0], (lane, slot)) if row else None

            def finish() -> None:
                with torch.no_grad():
                    if first is not None:
                        first()
                    for turn in row[1:]:
                        self._begin(turn, (lane, slot))()
                    if is_last and not self._owners_divide:
                        self.out.div_(self._route.num_shards)

            return finish

        return begin

    def _begin(self, turn: tuple[bool, int], place: tuple[int, int]) -> Callable[[], None]:
        gathers, number = turn
        return self._gather(number, place) if gathers else self._scatter(number, place)

    @property
    def _owners_divide(self) -> bool:
        """Whether each piece is divided once, by its owner; a quotient would not fit what travels as bf16."""
        return bool(self._route.stages) and not self._route.where.root

    def _scatter(self, number: int, where: tuple[int, int]) -> Callable[[], None]:
        """Send to each peer its piece of what this worker has; what is returned adds up the own piece."""
        route, stage = self._route, self._route.stages[number]
        region = self._edges[-1] if self._edges else [0, self.out.numel()]
        place = route.stages[number - 1].place if number else 0
        edges = pieces(region[place], region[place + 1], len(stage.peers))
        self._edges.append(edges)
        start, stop = edges[stage.place : stage.place + 2]
        arriving = list(self._arriving(stage, where, stop - start))
        leaving = list(self._leaving(stage, edges))
        sent, received = _start(
            route.wire,
            leaving,
            [(peer, memory) for peer, _, memory in arriving],
            route.tag(number, gathers=False),
        )
        own = zip(stage.blocks[stage.place], self.parts, strict=True)
        mine = [
            (block, Node(span_of(block), part[start:stop], i == 0))
            for i, (block, (_, part)) in enumerate(own)
        ]
        self.parts = [((0, 0), self.out)]

        def add_up() -> None:
            total = route.adder.total(_in_order(stage, mine, arriving, received))
            if number == len(route.stages) - 1 and self._owners_divide:
                total.tensor.div_(route.num_shards)
            for pending, _ in zip(sent, leaving, strict=False):  # what leaves is kept until it left
                pending.wait()

        return add_up

    def _arriving(
        self, stage: Stage, where: tuple[int, int], size: int
    ) -> Iterator[tuple[int, Block, Tensor]]:
        count = 0
        for peer, blocks in zip(stage.peers, stage.blocks, strict=True):
            for block in blocks:
                if peer != stage.peers[stage.place]:
                    dtype = self._dtype(span_of(block))
                    yield peer, block, self._route.memory(where, count, self.out, dtype, size)
                    count += 1

    def _leaving(self, stage: Stage, edges: list[int]) -> Iterator[Message]:
        for i, peer in enumerate(stage.peers):
            if i != stage.place:
                for block, (_, part) in zip(stage.blocks[stage.place], self.parts, strict=True):
                    yield peer, part[edges[i] : edges[i + 1]].to(self._dtype(span_of(block)))

    def _gather(self, number: int, where: tuple[int, int]) -> Callable[[], None]:
        """Send the own piece to all peers; what is returned takes theirs."""
        route, stage = self._route, self._route.stages[number]
        edges = self._edges.pop()
        dtype = NARROW if route.where.root else self.out.dtype
        mine = self.out[edges[stage.place] : edges[stage.place + 1]].to(dtype)
        receives, places = [], []
        for i, peer in enumerate(stage.peers):
            if i != stage.place:
                place = self.out[edges[i] : edges[i + 1]]
                is_same = dtype == place.dtype
                memory = place if is_same else route.memory(where, i, place, dtype, place.numel())
                receives.append((peer, memory))
                places.append(place)
        others = [peer for i, peer in enumerate(stage.peers) if i != stage.place]
        leaving = [(peer, mine) for peer in others]
        sent, received = _start(route.wire, leaving, receives, route.tag(number, gathers=True))

        def take() -> None:
            for pending, (_, memory), place in zip(received, receives, places, strict=True):
                pending.wait()
                if memory is not place:
                    place.copy_(memory)
            for pending, _ in zip(sent, leaving, strict=False):
                pending.wait()

        return take

    def _dtype(self, span: Span) -> torch.dtype:
        return NARROW if span in self._route.where.operands else self.out.dtype


def _in_order(
    stage: Stage,
    mine: list[tuple[Block, Node]],
    arriving: Sequence[tuple[int, Block, Tensor]],
    received: Sequence[Pending],
) -> Iterator[tuple[Block, Node]]:
    """Yield what all peers bring in the order of their shards, each as soon as it is there."""
    waiting = iter(zip(arriving, received, strict=True))
    for i, blocks in enumerate(stage.blocks):
        if i == stage.place:
            yield from mine
            continue
        for _ in blocks:
            (_, block, tensor), pending = next(waiting)
            pending.wait()
            yield block, Node(span_of(block), tensor, False)


def _start(
    wire: Wire | None, sends: Sequence[Message], receives: Sequence[Message], tag: int
) -> tuple[list[Pending], list[Pending]]:
    """Begin what is not empty: both ends know which pieces are."""
    if wire is None:
        assert not sends
        assert not receives
        return [], []
    sent, received = wire.start(
        [item for item in sends if item[1].numel()], [item for item in receives if item[1].numel()], tag
    )
    waiting = iter(received)
    return sent, [next(waiting) if tensor.numel() else _HERE for _, tensor in receives]


class _Here:
    def wait(self) -> object:
        return None


_HERE = _Here()


def _rounded(tensor: Tensor) -> Tensor:
    """Round to what fits bf16, in place; what came as bf16 becomes fp32."""
    if tensor.dtype == NARROW:
        return tensor.float()
    return tensor.copy_(tensor.to(NARROW))

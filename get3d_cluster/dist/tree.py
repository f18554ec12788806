"""Sums over the micro-shards of a global batch whose bits do not depend on the number of workers.

Each worker adds its own shards along the tree of ``core.shards``; what they add up to goes on along the same tree from
worker to worker, bucket by bucket, while the backward pass of a worker's last shard still runs. More: docs/hook.md.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from get3d_cluster.core.shards import Block, blocks_of, fold, merge, shards_of
from get3d_cluster.dist.agreement import check_agreement
from get3d_cluster.dist.buckets import Layout, Vectors, layout
from get3d_cluster.dist.exchange import Journey, Node
from get3d_cluster.dist.group import Group
from get3d_cluster.dist.lanes import Load
from get3d_cluster.dist.network import Network
from get3d_cluster.dist.route import Span

Whole = tuple[Span, Tensor]
"""The sum of some shards, [size of the layout]."""


class TreeSum:
    """Adds one vector per micro-shard into one vector, equal on every worker for any number of workers.

    Plain and synchronous: one all-gather of the partial sums, the same additions on every worker. The reference.
    """

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
    """Which parameters a phase gives gradients to, in a fixed order, and how many extra numbers.

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

    def name_of(self, index: int) -> str:
        """Return the name of a parameter."""
        return self._named[index][0]

    def describe(self) -> list[str]:
        """Return what all workers must agree on, one line a parameter."""
        return [
            self.name,
            str(self.num_extras),
            *(f"{key} {tuple(p.shape)} {p.dtype}" for key, p in self._named),
        ]


class GradientReducer:
    """Averages the gradients of a phase over the micro-shards.

    Use, on every worker: for each shard of ``start()``: forward, backward, ``add(extras)``; then ``finish()``,
    after which the gradients are in place for the optimizer. They are views of memory that the next ``start`` uses.

    In the last shard of a worker, a bucket leaves as soon as backward has filled it and those before it have left.
    ``backwards`` passes add to the gradients of a shard; each may leave some parameters out.
    """

    def __init__(
        self,
        plan: PhasePlan,
        group: Group,
        num_shards: int,
        *,
        network: Network | None = None,
        backwards: int = 1,
    ) -> None:
        """``network`` is shared by the reducers of a worker; without one, this reducer makes its own."""
        self._plan = plan
        self._parameters = plan.parameters
        self._device = self._parameters[0].device if self._parameters else torch.device("cpu")
        self._group = group
        self._network = network or Network(group, device=self._device)
        self._owns_network = network is None
        self._num_shards = num_shards
        self._backwards = backwards
        self._mode = self._network.config.mode
        self.layout: Layout = self._layout()
        self._digest = check_agreement(plan.name, group, self._description())
        self.shards: range = shards_of(group.rank, group.world_size, num_shards)
        """The micro-shards that this worker computes."""
        self._routes = [self._network.route(num_shards, levels) for levels in self._levels()]
        self._vectors = Vectors(self.layout.size, self.layout.dtype, self._device)
        self._mirror = self._network.mirror(self.layout.size, self.layout.dtype)
        self._flat = TreeSum(group, num_shards) if self._mode == "flat" else None
        self._stack: list[tuple[Block, Whole]] = []
        self._loads: list[Load] = []
        self._current: Tensor | None = None
        self._mean: Tensor | None = None
        self._next = self.shards.start
        self._state = _Filling(self.layout)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(index))
            for index, parameter in enumerate(self._parameters)
        ]

    def start(self) -> range:
        """Forget the gradients of the step before, and return the micro-shards to compute."""
        for parameter in self._parameters:
            parameter.grad = None
        self.begin()
        return self.shards

    def begin(self) -> None:
        """Begin a step with gradients as they are: nothing but the next backward passes adds to them."""
        assert not self._loads, "finish() comes before the next step"
        self._vectors.reclaim()
        self._stack, self._mean, self._next = [], None, self.shards.start
        self._open()

    def add(self, *extras: Tensor) -> None:
        """Take the gradients of the shard just computed, and its extra numbers."""
        assert self._current is not None, "start() comes before add(), which comes once a shard"
        for index, parameter in enumerate(self._parameters):
            if not self._state.is_taken[index]:
                self._take(index, parameter)
        self._take_extras(extras)
        vector, self._current = self._current, None
        if self._flat is not None:
            self._flat.push(vector)
        elif not self._is_last:
            self._push(vector)
        self._next += 1
        if self._next < self.shards.stop:
            self._open()

    def finish(self) -> Tensor:
        """Put the mean gradients in place and return the mean of the extras."""
        assert self._next == self.shards.stop, "a shard of this worker is missing"
        mean = self._arrived()
        places = zip(self._parameters, self.layout.starts, self.layout.stops, strict=True)
        for parameter, start, stop in places:
            parameter.grad = mean[start:stop].view(parameter.shape).to(parameter.dtype)
        return mean[slice(*self.layout.extras)].clone()

    def close(self) -> None:
        """Let go of the parameters, and of the threads if they are this reducer's own."""
        for handle in self._handles:
            handle.remove()
        if self._owns_network:
            self._network.close()

    def describe(self) -> dict[str, Any]:
        """Return what is worth a line in the log of a run."""
        return {
            "phase": self._plan.name,
            "parameters": len(self._parameters),
            "numbers": self.layout.extras[0],
            "extras": self._plan.num_extras,
            "buckets": len(self.layout.edges) - 1,
            "plan": self._digest,
        }

    # A shard

    @property
    def _is_last(self) -> bool:
        return self._next == self.shards.stop - 1

    def _open(self) -> None:
        self._current = self._vectors.take()
        self._state = _Filling(self.layout)
        if self._is_last and self._flat is None:
            first = self._stack[0][1][1] if self._stack else self._current
            self._mean = first

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            if self._current is None:
                return
            state = self._state
            state.fired[index] += 1
            if state.fired[index] > self._backwards:
                raise RuntimeError(
                    f"phase {self._plan.name}: {self._plan.name_of(index)} got gradients from more backward "
                    f"passes of one shard than backwards={self._backwards}"
                )
            if state.fired[index] == self._backwards:
                self._take(index, parameter)

        return take

    @torch.no_grad()
    def _take(self, index: int, parameter: Tensor) -> None:
        """Move a gradient into the vector; send the buckets that are full, in their order."""
        assert self._current is not None
        place = self._current[self.layout.starts[index] : self.layout.stops[index]]
        if parameter.grad is None:
            place.zero_()
        else:
            place.view(parameter.shape).copy_(parameter.grad)
        parameter.grad = None
        self._state.take(index)
        self._launch_full()

    def _take_extras(self, extras: Sequence[Tensor]) -> None:
        assert self._current is not None
        found = [extra.detach().reshape(-1) for extra in extras]
        count = sum(extra.numel() for extra in found)
        assert count == self._plan.num_extras, f"phase {self._plan.name}: {count} extras"
        if found:
            torch.cat(found, out=self._current[slice(*self.layout.extras)])
        self._state.take_extras()
        self._launch_full()

    @torch.no_grad()
    def _push(self, vector: Tensor) -> None:
        """Add the vector of a shard that is not the last, as far as the tree allows."""
        before = [*self._stack, ((self._next, 0), ((self._next, self._next + 1), vector))]
        self._stack = merge(before, self._join)

    def _join(self, left: Whole, right: Whole) -> Whole:
        for bucket, route in enumerate(self._routes):
            cut = self.layout.slice_of(bucket)
            route.adder.add(Node(left[0], left[1][cut], False), Node(right[0], right[1][cut], False))
        self._vectors.give_back(right[1])
        return (left[0][0], right[0][1]), left[1]

    # Buckets on their way

    def _launch_full(self) -> None:
        if not self._is_last or self._flat is not None:
            return
        while (bucket := self._state.next_full()) is not None:
            self._launch(bucket)

    def _launch(self, bucket: int) -> None:
        assert self._current is not None
        cut, route = self.layout.slice_of(bucket), self._routes[bucket]
        parts = [(block, vector[cut]) for block, (_, vector) in self._stack]
        parts.append(((self._next, 0), self._current[cut]))
        if self._group.world_size == 1:
            for step in Journey(route, parts).steps():
                step(0)()
        elif self._mode == "fast":
            self._loads.append(self._network.launch_library_sum(route, parts))
        else:
            mirror = None if self._mirror is None else self._mirror[cut]
            self._loads.append(self._network.launch(route, parts, mirror))

    def _arrived(self) -> Tensor:
        """Return the mean vector once it is whole."""
        if self._flat is not None:
            self._mean = self._flat.total().div_(self._num_shards)
        elif self._group.world_size > 1:
            self._group.wait(lambda: self._network.lanes.wait(self._loads))
        self._loads = []
        assert self._mean is not None
        return self._mean

    # Construction

    def _layout(self) -> Layout:
        config = self._network.config
        alone = config.rounded_levels > 0
        return layout(self._parameters, self._plan.num_extras, config.bucket_mb * 1e6, extras_alone=alone)

    def _levels(self) -> list[int]:
        """Return how many levels of the tree are rounded, for each bucket: never those of the extras."""
        levels = self._network.config.rounded_levels
        first_extra = self.layout.extras[0]
        return [
            levels if edge < first_extra or not self._plan.num_extras else 0
            for edge in self.layout.edges[:-1]
        ]

    def _description(self) -> list[str]:
        config = self._network.config
        return [
            *self._plan.describe(),
            f"{config.mode} {config.rounded_levels} of {self._num_shards}, backwards {self._backwards}",
            self.layout.describe(),
        ]


class _Filling:
    """Which gradients of a shard are in the vector, and so which buckets are full."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        count = len(layout.starts)
        self.fired = [0] * count
        """Backward passes that gave each parameter a gradient."""
        self.is_taken = [False] * count
        self._missing = list(layout.pieces)
        self._next = 0

    def take(self, index: int) -> None:
        """Note that a parameter's gradient is in the vector."""
        assert not self.is_taken[index]
        self.is_taken[index] = True
        for bucket in self._layout.buckets[index]:
            self._missing[bucket] -= 1

    def take_extras(self) -> None:
        """Note that the extras are in the vector, with which the shard is whole."""
        for bucket in self._layout.extras_buckets:
            self._missing[bucket] -= 1

    def next_full(self) -> int | None:
        """Return the next bucket in order if it is full, once."""
        if self._next < len(self._missing) and not self._missing[self._next]:
            self._next += 1
            return self._next - 1
        return None


def _add_into(left: Tensor, right: Tensor) -> Tensor:
    return left.add_(right)

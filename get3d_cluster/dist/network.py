"""The way from this worker to the others: where they sit, what carries the bytes, and the threads that do it.

One network serves all reducers of a worker, which launch on it in the same order on all workers.

With GPUs there are two ways: ``device`` lets NCCL move pieces between GPUs and adds there, on a stream beside the
computation; ``host`` copies a bucket once into pinned memory, adds there, and copies the mean back, which suits nodes
whose GPUs have no fast links to each other.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from get3d_cluster.core.shards import Block
from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.dist.exchange import Journey, Route
from get3d_cluster.dist.group import Group
from get3d_cluster.dist.lanes import Lanes, Load, Step
from get3d_cluster.dist.placement import Placement, gather_placement
from get3d_cluster.dist.wire import LibrarySum, Via, Wire, has_device_wire, open_wire

_TRIALS = 5
_GIVEN_UP = (
    "reduction.mode=fast gives up the bits: the library adds in an order that depends on the number of workers and on "
    "the network, so that this cannot be repeated or continued elsewhere with the same result; exact keeps them"
)


class Network:
    """See the module. ``device`` is where the gradients lie, ``node`` the name of this machine (found if left out)."""

    def __init__(
        self,
        group: Group,
        config: ReductionConfig | None = None,
        device: torch.device | str = "cpu",
        node: str = "",
        opener: Callable[[Via], Wire] = open_wire,
    ) -> None:
        self.group = group
        self.config = config or ReductionConfig()
        self.placement: Placement = gather_placement(group, node)
        if self.config.mode == "fast" and group.world_size > 1 and group.rank == 0:
            warnings.warn(_GIVEN_UP, stacklevel=2)
        self.lanes = Lanes()
        self.measured_s: dict[str, float] = {}
        """Time of a bucket on each way, the slowest worker's, where both were measured."""
        self._opener = opener
        self._device = torch.device(device)
        has_stream = self._device.type == "cuda" and group.world_size > 1
        self._stream = torch.cuda.Stream(self._device) if has_stream else None
        self._library: LibrarySum | None = None
        self._numbers: dict[tuple[int, int], int] = {}
        self._wires: dict[Via, Wire] = {}
        self.via: Via = self._choose() if group.world_size > 1 else "host"

    def describe(self) -> dict[str, Any]:
        """Return what is worth a line in the log of a run."""
        return {
            "mode": self.config.mode,
            "via": self.via,
            "world_size": self.group.world_size,
            "nodes": len(set(self.placement.nodes)),
            "is_contiguous": self.placement.is_contiguous,
            "measured_s": {way: round(seconds, 6) for way, seconds in self.measured_s.items()},
        }

    def route(self, num_shards: int, rounded_levels: int = 0) -> Route:
        """Return a route for sums over ``num_shards`` whose tree rounds in its top levels."""
        return self._route(num_shards, rounded_levels, self.via)

    def launch(self, route: Route, parts: Sequence[tuple[Block, Tensor]], mirror: Tensor | None) -> Load:
        """Send a bucket on its way; the mean over all shards ends in the memory of the first part.

        ``mirror`` is pinned memory of the host for the first part, if the bucket goes through it.
        """
        journey = Journey(route, parts)
        load = self._through_host(journey, mirror) if mirror is not None else self._load(journey.steps())
        self.lanes.launch(load)
        return load

    def launch_library_sum(self, route: Route, parts: Sequence[tuple[Block, Tensor]]) -> Load:
        """Send a bucket through the library's all-reduce, which adds in an order of its own."""
        if self._library is None:
            self._library = LibrarySum()
        library = self._library

        def add(_: int) -> Callable[[], None]:
            with torch.no_grad():
                out = Journey(route, parts).fold()
                library.add(out)
                out.div_(route.num_shards)
            return _nothing

        load = self._load([add])
        self.lanes.launch(load)
        return load

    def mirror(self, size: int, dtype: torch.dtype) -> Tensor | None:  # [size]
        """Return pinned memory of the host for a vector, if buckets go through it."""
        if self._stream is None or self.via == "device":
            return None
        return self._pinned(size, dtype)

    def _pinned(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=True)

    def close(self) -> None:
        """Let the threads end."""
        self.lanes.close()

    def _load(self, steps: Sequence[Step]) -> Load:
        """On a GPU: one lane, on the stream beside the computation, behind what was computed so far."""
        if self._stream is None:
            return Load(steps=steps)
        stream, ready, done = self._stream, torch.cuda.Event(), torch.cuda.Event()
        ready.record()

        def run(slot: int) -> Callable[[], None]:
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                for step in steps:
                    step(slot)()
                done.record(stream)
            return _nothing

        return Load(steps=[run], after=[lambda: torch.cuda.current_stream().wait_event(done)])

    def _through_host(self, journey: Journey, mirror: Tensor) -> Load:
        """Merge on the GPU, copy down, exchange and add on the host, copy up. Copies run beside the computation."""
        assert self._stream is not None
        stream, ready, done = self._stream, torch.cuda.Event(), torch.cuda.Event()
        ready.record()
        target = journey.out
        first, *between, last = journey.steps()

        def down(slot: int) -> Callable[[], None]:
            with torch.cuda.stream(stream), torch.no_grad():
                stream.wait_event(ready)
                journey.merge()
                journey.move(mirror, self._pinned)
            stream.synchronize()
            return first(slot)

        def up(slot: int) -> Callable[[], None]:
            finish = last(slot)

            def copy_up() -> None:
                finish()
                with torch.cuda.stream(stream), torch.no_grad():
                    target.copy_(mirror, non_blocking=True)
                    done.record(stream)

            return copy_up

        after = [lambda: torch.cuda.current_stream().wait_event(done)]
        return Load(steps=[down, *between, up], after=after)

    def _choose(self) -> Via:
        """Take the faster way, the same on all workers."""
        if self._device.type != "cuda" or not has_device_wire():
            return "host"
        if self.config.via != "auto":
            return self.config.via
        ways: tuple[Via, ...] = ("device", "host")
        mine = torch.tensor([self._time(way) for way in ways], dtype=torch.float64)
        slowest = torch.stack(self.group.all_gather(mine)).amax(dim=0).tolist()
        self.measured_s = dict(zip(ways, slowest, strict=True))
        return "device" if slowest[0] <= slowest[1] else "host"

    def _time(self, way: Via) -> float:
        """Return the shortest time of a bucket on ``way``, in seconds."""
        count = max(1, int(self.config.bucket_mb * 1e6 / 4))
        vector = torch.zeros(count, device=self._device)
        mirror = self._pinned(count, torch.float32) if way == "host" else None
        route, rank = self._route(self.group.world_size, 0, way), self.group.rank
        seconds = []
        for _ in range(_TRIALS):
            torch.cuda.synchronize(self._device)
            begun_s = time.monotonic()
            self.lanes.wait([self.launch(route, [((rank, 0), vector)], mirror)])
            torch.cuda.synchronize(self._device)
            seconds.append(time.monotonic() - begun_s)
        return min(seconds[1:])

    def _route(self, num_shards: int, rounded_levels: int, via: Via) -> Route:
        if self.group.world_size > 1 and via not in self._wires:
            self._wires[via] = self._opener(via)
        key = (num_shards, rounded_levels)
        return Route(
            self._wires.get(via),
            self.group.rank,
            self.group.world_size,
            num_shards,
            local_size=self.placement.local_size,
            rounded_levels=rounded_levels,
            number=self._numbers.setdefault(key, len(self._numbers)),
        )


def _nothing() -> None:
    pass

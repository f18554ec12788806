"""One vector for all gradients of a phase, cut into buckets in the order in which a backward pass fills them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where each parameter lies in the vector: the last registered first, then the extras. Fixed for a run."""

    starts: tuple[int, ...]
    """Of each parameter."""
    stops: tuple[int, ...]
    extras: tuple[int, int]
    """Where the extras start and stop; they come last."""
    extras_buckets: range
    edges: tuple[int, ...]
    """Of the buckets; a large parameter lies in several of them."""
    buckets: tuple[range, ...]
    """Those that each parameter lies in."""
    pieces: tuple[int, ...]
    """What each bucket waits for: parameters, and the extras."""
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Numbers of the whole vector."""
        return self.extras[1]

    def slice_of(self, bucket: int) -> slice:
        """Return where a bucket lies."""
        return slice(self.edges[bucket], self.edges[bucket + 1])

    def describe(self) -> str:
        """Return what all workers must agree on."""
        return f"{self.dtype} {' '.join(map(str, self.edges))} extras {self.extras[0]}"


def layout(
    parameters: Sequence[nn.Parameter], num_extras: int, bucket_bytes: float, *, extras_alone: bool
) -> Layout:
    """Lay out parameters and extras. With ``extras_alone`` these have a bucket of their own."""
    starts, stops, place = [0] * len(parameters), [0] * len(parameters), 0
    for i in reversed(range(len(parameters))):
        starts[i], place = place, place + parameters[i].numel()
        stops[i] = place
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
    total = place + num_extras
    cut = place if extras_alone else total
    count = max(1, round(cut * dtype.itemsize / bucket_bytes))
    edges = [cut * i // count for i in range(count + 1)]
    if extras_alone and num_extras:
        edges.append(total)
    buckets = tuple(_buckets(edges, *span) for span in zip(starts, stops, strict=True))
    filled = [*buckets, _buckets(edges, place, total)]
    pieces = [sum(bucket in touched for touched in filled) for bucket in range(len(edges) - 1)]
    return Layout(
        starts=tuple(starts),
        stops=tuple(stops),
        extras=(place, total),
        extras_buckets=filled[-1],
        edges=tuple(edges),
        buckets=buckets,
        pieces=tuple(pieces),
        dtype=dtype,
    )


def _buckets(edges: Sequence[int], start: int, stop: int) -> range:
    inside = [i for i in range(len(edges) - 1) if edges[i] < stop and start < edges[i + 1]]
    return range(inside[0], inside[-1] + 1) if inside and start < stop else range(0)


class Vectors:
    """Vectors of one size that are used again: memory that was never touched is five times as slow."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._size, self._dtype, self._device = size, dtype, device
        self._all: list[Tensor] = []
        self._free: list[Tensor] = []

    def take(self) -> Tensor:  # [size], any contents
        """Return a vector to fill."""
        if not self._free:
            self._all.append(torch.empty(self._size, dtype=self._dtype, device=self._device))
            return self._all[-1]
        return self._free.pop()

    def give_back(self, vector: Tensor) -> None:
        """Let ``vector`` be taken again."""
        self._free.append(vector)

    def reclaim(self) -> None:
        """Let all be taken again."""
        self._free = list(self._all)

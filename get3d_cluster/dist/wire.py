"""Messages from one worker to another. Nothing is added on the way."""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from get3d_cluster.dist.group import LONGEST_EXCHANGE

Via = Literal["device", "host"]
Message = tuple[int, Tensor]
"""The other worker's rank, and memory to send or to fill; contiguous."""


class Pending(Protocol):
    """A message on its way."""

    def wait(self) -> object:
        """Return once the memory may be used again; on a GPU, once what is queued behind may use it."""
        ...


class Wire(Protocol):
    """Messages between two workers arrive in the order in which they were begun, among those of one tag."""

    def start(
        self, sends: Sequence[Message], receives: Sequence[Message], tag: int
    ) -> tuple[list[Pending], list[Pending]]:
        """Begin to send and to receive; return one pending for each send, and one for each receive."""
        ...


def has_device_wire() -> bool:
    """Say whether the workers' GPUs can exchange messages."""
    return torch.distributed.get_backend() == "nccl"


def open_wire(via: Via) -> Wire:
    """Open a wire between all processes of ``torch.distributed``, all of which call it."""
    new_group = torch.distributed.new_group
    if via == "device":
        return DeviceWire(new_group(timeout=LONGEST_EXCHANGE))
    if has_device_wire():
        return HostWire(new_group(backend="gloo", timeout=LONGEST_EXCHANGE))
    return HostWire()


class HostWire:
    """Between the memories of hosts, through gloo."""

    def __init__(self, group: "torch.distributed.ProcessGroup | None" = None) -> None:
        """``group`` has all processes of ``torch.distributed``, whose own it is if left out."""
        found = group or torch.distributed.group.WORLD
        assert found is not None, "torch.distributed is not initialised"
        self._group = found

    def start(
        self, sends: Sequence[Message], receives: Sequence[Message], tag: int
    ) -> tuple[list[Pending], list[Pending]]:
        group = self._group  # its own methods: the functions around them cost half of a small bucket's time
        waiting: list[Pending] = [group.recv([tensor], rank, tag) for rank, tensor in receives]
        sent: list[Pending] = [group.send([tensor], rank, tag) for rank, tensor in sends]
        return sent, waiting


class DeviceWire:
    """Between the memories of GPUs, through NCCL, which needs all messages of a turn in one call."""

    def __init__(self, group: "torch.distributed.ProcessGroup | None" = None) -> None:
        self._group = group

    def start(
        self,
        sends: Sequence[Message],
        receives: Sequence[Message],
        tag: int,  # noqa: ARG002  NCCL knows the order only
    ) -> tuple[list[Pending], list[Pending]]:
        dist = torch.distributed
        calls = [dist.P2POp(dist.irecv, tensor, rank, self._group) for rank, tensor in receives]
        calls += [dist.P2POp(dist.isend, tensor, rank, self._group) for rank, tensor in sends]
        if not calls:
            return [], []
        works = dist.batch_isend_irecv(calls)  # one work for all of them
        return [_All(works)] * len(sends), [_All(works)] * len(receives)


class _All:
    def __init__(self, works: Sequence[Pending]) -> None:
        self._works = works

    def wait(self) -> object:
        for work in self._works:
            work.wait()
        return None


class LibrarySum:
    """The library's own all-reduce: fast everywhere, in an order that depends on the number of workers."""

    def __init__(self) -> None:
        self._group = torch.distributed.new_group(timeout=LONGEST_EXCHANGE)

    def add(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all workers."""
        torch.distributed.all_reduce(tensor, group=self._group)  # noqa: TID251  the mode that gives up the bits

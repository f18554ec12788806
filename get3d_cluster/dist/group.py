"""The workers of an attempt: who they are, and the few exchanges that keep them in step.

No library reduction is offered: sums go through ``dist.tree``, whose order does not depend on the workers.
"""

import json
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from get3d_cluster.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_POLL_S = 0.02
LONGEST_EXCHANGE = timedelta(days=7)
"""The others wait in an exchange for as long as rank 0 saves; who waits for nothing is the watchdog's business."""


class Group(Protocol):
    """All workers call every method in the same order."""

    rank: int
    world_size: int

    def all_gather(self, tensor: "Tensor") -> "list[Tensor]":
        """Return the tensor of each rank, in rank order; shapes and types must agree."""
        ...

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether any rank raised it: the same answer on every rank."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's JSON-able ``value`` on every rank."""
        ...

    def wait(self, arrival: Callable[[], T]) -> T:
        """Return what ``arrival`` does, which waits for other workers outside of this group's calls."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


class SoloGroup:
    """One worker. Needs no torch; jobs whose workers do not meet use it with their own rank."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size

    def all_gather(self, tensor: "Tensor") -> "list[Tensor]":
        return [tensor]

    def any(self, flags: Sequence[bool]) -> list[bool]:
        return list(flags)

    def broadcast(self, value: Any) -> Any:
        return value

    def wait(self, arrival: Callable[[], T]) -> T:
        return arrival()

    def close(self) -> None:
        pass


class TorchGroup:
    """Workers that meet through ``torch.distributed``; what they exchange passes through memory of ``device``."""

    def __init__(self, rank: int, world_size: int, device: str = "cpu") -> None:
        self.rank = rank
        self.world_size = world_size
        self._device = device

    def all_gather(self, tensor: "Tensor") -> "list[Tensor]":
        import torch

        mine = tensor.to(self._device)  # gloo gathers in the memory of the host only
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, mine)
        return [part.to(tensor.device) for part in parts]

    def any(self, flags: Sequence[bool]) -> list[bool]:
        import torch

        mine = torch.tensor(list(flags), dtype=torch.uint8, device=self._device)
        gathered: list[list[int]] = [part.tolist() for part in self.all_gather(mine)]
        return [any(column) for column in zip(*gathered, strict=True)]

    def broadcast(self, value: Any) -> Any:
        import torch

        text = json.dumps(value).encode() if self.rank == 0 else b""
        size = torch.tensor([len(text)], dtype=torch.int64, device=self._device)
        torch.distributed.broadcast(size, src=0)
        data = torch.zeros(int(size.item()), dtype=torch.uint8, device=self._device)
        if self.rank == 0:
            data.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        torch.distributed.broadcast(data, src=0)
        return json.loads(bytes(data.cpu().numpy()))

    def wait(self, arrival: Callable[[], T]) -> T:
        return arrival()

    def close(self) -> None:
        import torch

        torch.distributed.destroy_process_group()


def meet(
    folder: Path,
    rank: int,
    world_size: int,
    *,
    host: str,
    port: int = 0,
    device: str = "cpu",
    timeout_s: float = 300.0,
) -> Group:
    """Bring the workers of an attempt together and return their group.

    Rank 0 listens on ``port`` (0: one that the system finds free) and writes where into ``folder``, the attempt's
    own, so that no stale address is ever read and no port number has to be agreed on beforehand.

    Raises: UsageError if ``port`` is in use, or if rank 0 does not appear within ``timeout_s``.
    """
    if world_size == 1:
        return SoloGroup()
    import torch

    wait = timedelta(seconds=timeout_s)
    place = folder / "rendezvous.json"
    if rank == 0:
        try:
            store = _listen(port, world_size, wait)
        except UsageError as error:
            _announce(place, {"error": error.what, "way_out": error.way_out})
            raise
        _announce(place, {"host": host, "port": store.port})
    else:
        where = _wait_for(place, timeout_s)
        if "error" in where:
            raise UsageError(where["error"], where["way_out"])
        address = "127.0.0.1" if where["host"] == host else where["host"]
        store = torch.distributed.TCPStore(address, where["port"], world_size, is_master=False, timeout=wait)
    who = {"store": store, "rank": rank, "world_size": world_size, "timeout": LONGEST_EXCHANGE}
    if device.startswith("cuda") and _has_own_gpu(store, rank, world_size, device):
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", device_id=torch.device(device), **who)
        return TorchGroup(rank, world_size, device)
    torch.distributed.init_process_group("gloo", **who)
    return TorchGroup(rank, world_size)


def _has_own_gpu(store: Any, rank: int, world_size: int, device: str) -> bool:
    """Say, alike on every worker, whether each has a GPU to itself: NCCL refuses two workers on one."""
    import torch

    store.set(f"gpu-of-{rank}", str(torch.cuda.get_device_properties(device).uuid))
    return len({store.get(f"gpu-of-{other}") for other in range(world_size)}) == world_size


def _announce(place: Path, data: dict[str, Any]) -> None:
    aside = place.with_suffix(".tmp")
    aside.write_text(json.dumps(data))
    aside.replace(place)


def _listen(port: int, world_size: int, wait: timedelta) -> Any:
    import torch

    try:
        with socket.socket() as probe:  # torch would say the same in many lines of C++
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
        return torch.distributed.TCPStore(
            "0.0.0.0",  # noqa: S104  workers on other nodes have to reach it
            port,
            world_size,
            is_master=True,
            timeout=wait,
            wait_for_workers=False,
        )
    except (OSError, torch.distributed.DistNetworkError, RuntimeError) as error:
        raise UsageError(
            f"resources.port={port} cannot be used on this machine: {str(error).splitlines()[0][:120]}",
            "choose another port, or port=0 to take a free one",
        ) from error


def _wait_for(place: Path, timeout_s: float) -> dict[str, Any]:
    end = time.monotonic() + timeout_s
    while not place.exists():
        if time.monotonic() > end:
            raise UsageError(
                f"rank 0 did not write {place} within {timeout_s:g} s",
                "look at rank 0: launch.py logs RUN --rank 0",
            )
        time.sleep(_POLL_S)
    data: dict[str, Any] = json.loads(place.read_text())
    return data

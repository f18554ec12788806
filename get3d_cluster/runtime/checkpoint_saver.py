"""Saves while training goes on: the state is copied while it stands still, and another process writes the copy.

A save is in flight from ``Saver.begin`` to the verdict. Meanwhile every step brings the workers together once anyway;
``flags`` and ``advance`` ride on that. Each rank copies and writes its share of the state. Once all shares are durable,
their digests are gathered, and rank 0 publishes them, after it made sure that the run is still its own.
"""

import dataclasses
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import Group
from get3d_cluster.runtime.checkpoint import RUN, Checkpoints
from get3d_cluster.runtime.checkpoint_flight import TEXT_BYTES, Flight, Order, Verdict
from get3d_cluster.runtime.checkpoint_link import Link
from get3d_cluster.runtime.checkpoint_memory import SharedMemory, has_cuda
from get3d_cluster.runtime.checkpoint_tensors import lay_out
from get3d_cluster.runtime.checkpoint_tree import pack_all
from get3d_cluster.storage.staging import location_of

if TYPE_CHECKING:
    from torch import Tensor

WRITER = "get3d_cluster.runtime.checkpoint_writer"
PATIENCE_S = 20.0
"""How long a worker that leaves, for whatever reason, waits for the save in flight."""
MEGABYTE = 1_000_000


class Saver:
    """Saves of one worker, one at a time. All ranks call the same methods at the same steps."""

    def __init__(
        self, checkpoints: Checkpoints, group: Group, held: Callable[[], Sequence[int]] = tuple
    ) -> None:
        """``held`` says which steps' checkpoints are just being read: a save deletes none of them."""
        self._held = held
        self._checkpoints = checkpoints
        self._group = group
        self._config = checkpoints.config
        self._memory: SharedMemory | None = None
        self._link: Link | None = None
        self._preparing: threading.Thread | None = None
        self._is_usable = hasattr(os, "memfd_create") and location_of(checkpoints.tiers[RUN]) is not None
        self.flight: Flight | None = None

    @property
    def writer_pid(self) -> int | None:
        """Process id of the writer, if it was started."""
        return self._link.pid if self._link else None

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Start the writer and touch the memory for a state like this one, in the background. Raises: UsageError."""
        _, tensors = pack_all(state)
        if not self._is_for_the_writer(tensors, "local" if "local" in self._checkpoints.tiers else RUN):
            return
        self._preparing = threading.Thread(target=self._prepare, args=[tensors], daemon=True)
        self._preparing.start()

    def _prepare(self, tensors: "dict[str, dict[str, Tensor]]") -> None:
        memory, link = self._ends()
        try:
            link.start()
            if layout := lay_out(tensors, self._group.world_size):
                memory.grow(layout.memory_bytes, pin=has_cuda(tensors))
        except OSError:
            pass  # the save meets it again, and knows what to do

    def _ends(self) -> tuple[SharedMemory, Link]:
        if self._memory is None or self._link is None:
            self._memory = SharedMemory()
            self._link = Link(WRITER, self._memory.handle)
        return self._memory, self._link

    def begin(
        self,
        step: int,
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        why: str = "",
        later: Sequence[str] = (),
        tier: str = RUN,
        agreed_step: int | None = None,
    ) -> bool:
        """Send a save on its way; return False if the state is small, or has to be saved in this process.

        Returns when all but the parts ``later`` were copied; ``wait_for`` has to be called before those change.
        Raises: UsageError for what no checkpoint can hold.
        """
        tree, tensors = pack_all(state)
        if not self._is_for_the_writer(tensors, tier):
            return False
        order = Order(
            step=step,
            meta=meta,
            tree=tree,
            tensors=tensors,
            why=why,
            tier=tier,
            later=later,
            place=self._place(tier),
            token=self._token(),
            agreed_step=agreed_step,
            held=self._held,
        )
        self._depart(order)
        return True

    def begin_alone(
        self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any], *, why: str = "", tier: str = RUN
    ) -> bool:
        """As ``begin``, but rank 0 writes all of its own: shares of states that differ would be a mixture."""
        tree, tensors = pack_all(state)
        if not self._group.broadcast(self._is_for_the_writer(tensors, tier)):
            return False
        order = Order(
            step=step,
            meta=meta,
            tree=tree,
            tensors=tensors if self._group.rank == 0 else {},
            why=why,
            tier=tier,
            later=(),
            place=self._place(tier),
            token=self._token(),
            agreed_step=None,
            held=self._held,
            is_shared=False,
        )
        self._depart(order)
        return True

    def _depart(self, order: Order) -> None:
        assert self.flight is None
        if self._preparing:
            self._preparing.join()
        now = [part for part in order.tensors if part not in order.later]
        memory, link = self._ends()
        self.flight = Flight(order, self._group, memory, link, self._checkpoints.check_owner)
        self.flight.start()
        self.flight.wait_for(now)

    def _is_for_the_writer(self, tensors: "dict[str, dict[str, Tensor]]", tier: str) -> bool:
        is_large = _num_bytes(tensors) >= self._config.background_mb * MEGABYTE
        return self._is_usable and (is_large or tier != RUN)

    def _place(self, tier: str) -> dict[str, Any]:
        keep: CheckpointConfig = self._config
        rollback_every = self._checkpoints.rollback_every_steps
        if tier == "local":
            keep, rollback_every = dataclasses.replace(keep, keep_every_steps=0), 0
        at = location_of(self._checkpoints.tiers[tier])
        return {"at": at, "keep": dataclasses.asdict(keep), "rollback_every": rollback_every}

    def _token(self) -> str:
        """Return a name of this save that all ranks know and no other attempt has."""
        if self._group.world_size == 1:
            return secrets.token_hex(4)
        return str(self._group.broadcast(secrets.token_hex(4)))

    def wait_for(self, parts: Iterable[str]) -> None:
        """Return once these top-level names of the state may change: at once, if no save is being copied."""
        if self.flight:
            self.flight.wait_for(parts)

    def flags(self) -> list[bool]:
        """Return what this rank has to tell at a step: that its share is not durable yet; that the verdict is there."""
        flight = self.flight
        if flight is None:
            return [False, False]
        return [not flight.written.is_set(), self._group.rank == 0 and flight.over.is_set()]

    def advance(self, flags: Sequence[bool]) -> Verdict | None:
        """Take a save further by the flags of all ranks together; return the verdict once, alike on all."""
        is_any_writing, is_settled = flags
        if self.flight is None:
            return None
        if self._group.world_size > 1 and not self.flight.is_gathered:
            return None if is_any_writing else self._gathered(self.flight)
        return self._landed(self.flight) if is_settled else None

    def finish(self) -> Verdict:
        """Wait for the save in flight, on all ranks; return the verdict."""
        flight = self.flight
        assert flight is not None
        flight.written.wait()
        if self._group.world_size > 1 and not flight.is_gathered and (verdict := self._gathered(flight)):
            return verdict
        flight.over.wait()
        return self._landed(flight)

    def _gathered(self, flight: Flight) -> Verdict | None:
        """Bring the digests of all shares together; return the verdict if a rank failed."""
        from torch import frombuffer, uint8

        mine = bytearray(flight.told())
        told = [bytes(t.numpy()) for t in self._group.all_gather(frombuffer(mine, dtype=uint8))]
        words = [json.loads(text[:TEXT_BYTES].rstrip(b"\0")) for text in told]
        failed = [word for word in words if "error" in word]
        flight.gather([text[TEXT_BYTES:] for text in told], is_failed=bool(failed))
        if not failed:
            return None
        flight.join()
        self.flight = None
        first: Verdict = failed[0]
        return first

    def _landed(self, flight: Flight) -> Verdict:
        flight.join()
        self.flight = None
        verdict: Verdict = self._group.broadcast(flight.verdict() if self._group.rank == 0 else None)
        return verdict

    def drop(self) -> None:
        """Forget the save in flight: what was not published does not exist."""
        if self.flight and self._link:
            self.flight.drop()
            self.flight = None
            self._link.kill()

    def close(self) -> None:
        """End the writer, and give the memory back. A save that needs no other rank any more is waited for a while."""
        if self.flight and (self._group.world_size == 1 or self.flight.is_gathered):
            self.flight.over.wait(PATIENCE_S)
        self.drop()
        if self._preparing:
            self._preparing.join()
        if self._link:
            self._link.kill()
        if self._memory:
            self._memory.close()
        self._memory = self._link = None


def _num_bytes(tensors: "Mapping[str, Mapping[str, Tensor]]") -> int:
    return sum(tensor.nbytes for named in tensors.values() for tensor in named.values())

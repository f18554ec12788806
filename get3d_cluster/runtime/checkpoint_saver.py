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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import Group
from get3d_cluster.errors import FencedError, Get3dError
from get3d_cluster.runtime.checkpoint import RUN, Checkpoints, body_of
from get3d_cluster.runtime.checkpoint_link import Link, SharedMemory, WriterDiedError
from get3d_cluster.runtime.checkpoint_tensors import Layout, lay_out
from get3d_cluster.runtime.checkpoint_tree import pack_all
from get3d_cluster.storage.staging import location_of

if TYPE_CHECKING:
    from torch import Tensor

TRIES = 3
"""Writers that may die over one save before the worker writes itself."""
PATIENCE_S = 20.0
"""How long a worker that leaves, for whatever reason, waits for the save in flight."""
MEGABYTE = 1_000_000
_TEXT_BYTES = 6000
_YIELD_S = 0.0005
"""The thread of a save waits so long first: whoever started it goes on at once, instead of waiting for the GIL."""
_DIGEST_BYTES = 16

Verdict = dict[str, Any]
"""``step``, ``digest``, ``num_bytes``, ``seconds`` (of these ``elsewhere_s`` for copies), ``problems``; or ``error``,
``way_out`` and ``kind``: ``fenced``, ``storage``, or ``writer`` if only the writer failed."""


@dataclasses.dataclass(kw_only=True)
class _Order:
    """What is to be saved, and where."""

    step: int
    meta: Mapping[str, Any]
    tree: dict[str, Any]
    tensors: "dict[str, dict[str, Tensor]]"
    why: str
    tiers: Sequence[str]
    later: Sequence[str]
    """Parts that are announced before they change, in the order in which they do."""
    places: list[dict[str, Any]]
    token: str
    agreed_step: int | None
    """See ``core.policy.to_delete``."""


class Saver:
    """Saves of one worker, one at a time. All ranks call the same methods at the same steps."""

    def __init__(self, checkpoints: Checkpoints, group: Group) -> None:
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
        if not self._is_for_the_writer(tensors, self._checkpoints.tiers):
            return
        self._preparing = threading.Thread(target=self._prepare, args=[tensors], daemon=True)
        self._preparing.start()

    def _prepare(self, tensors: "dict[str, dict[str, Tensor]]") -> None:
        memory, link = self._ends()
        try:
            link.start()
            if layout := lay_out(tensors, self._group.world_size):
                memory.grow(layout.memory_bytes, pin=_has_cuda(tensors))
        except OSError:
            pass  # the save meets it again, and knows what to do

    def _ends(self) -> tuple[SharedMemory, Link]:
        if self._memory is None or self._link is None:
            self._memory = SharedMemory()
            self._link = Link(self._memory)
        return self._memory, self._link

    def begin(
        self,
        step: int,
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        why: str = "",
        later: Sequence[str] = (),
        tiers: Sequence[str] = (RUN,),
        agreed_step: int | None = None,
    ) -> bool:
        """Send a save on its way; return False if the state is small, or has to be saved in this process.

        Returns when all but the parts ``later`` were copied; ``wait_for`` has to be called before those change.
        Raises: UsageError for what no checkpoint can hold.
        """
        assert self.flight is None
        tree, tensors = pack_all(state)
        if not self._is_for_the_writer(tensors, tiers):
            return False
        if self._preparing:
            self._preparing.join()
        order = _Order(
            step=step,
            meta=meta,
            tree=tree,
            tensors=tensors,
            why=why,
            tiers=tiers,
            later=later,
            places=[self._place(tier) for tier in tiers],
            token=self._token(),
            agreed_step=agreed_step,
        )
        memory, link = self._ends()
        self.flight = Flight(order, self._group, memory, link, self._checkpoints.check_owner)
        self.flight.start()
        self.flight.wait_for(part for part in tensors if part not in later)
        return True

    def _is_for_the_writer(self, tensors: "dict[str, dict[str, Tensor]]", tiers: Iterable[str]) -> bool:
        is_large = _num_bytes(tensors) >= self._config.background_mb * MEGABYTE
        return self._is_usable and (is_large or any(tier != RUN for tier in tiers))

    def _place(self, tier: str) -> dict[str, Any]:
        keep: CheckpointConfig = self._config
        if tier == "local":
            keep = dataclasses.replace(keep, keep_every_steps=0)
        return {"at": location_of(self._checkpoints.tiers[tier]), "keep": dataclasses.asdict(keep)}

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

    def _gathered(self, flight: "Flight") -> Verdict | None:
        """Bring the digests of all shares together; return the verdict if a rank failed."""
        from torch import frombuffer, uint8

        mine = bytearray(flight.told())
        told = [bytes(t.numpy()) for t in self._group.all_gather(frombuffer(mine, dtype=uint8))]
        words = [json.loads(text[:_TEXT_BYTES].rstrip(b"\0")) for text in told]
        failed = [word for word in words if "error" in word]
        lost = {number: why for word in words for number, why in word.get("lost", {}).items()}
        flight.gather([text[_TEXT_BYTES:] for text in told], lost, is_failed=bool(failed))
        if not failed:
            return None
        flight.join()
        self.flight = None
        first: Verdict = failed[0]
        return first

    def _landed(self, flight: "Flight") -> Verdict:
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


class Flight:
    """One save on its way. A thread copies, talks with the writer, and starts another one if it died."""

    def __init__(
        self,
        order: _Order,
        group: Group,
        memory: SharedMemory,
        link: Link,
        check_owner: Callable[[], None],
    ) -> None:
        self.step = order.step
        self.meta = order.meta
        self.why = order.why
        self.tiers = order.tiers
        self.written = threading.Event()
        """This rank's share is durable, or it failed."""
        self.over = threading.Event()
        """Nothing more will happen here."""
        self.is_gathered = False
        self.copy_s = 0.0
        self._order = order
        self._group = group
        self._memory = memory
        self._link = link
        self._check_owner = check_owner
        self._copied = {part: threading.Event() for part in order.tensors}
        self._begun_s = self._ended_s = time.monotonic()
        self._layout: Layout | None = None
        self._digests: dict[str, str] = {}
        self._lost: dict[str, str] = {}
        self._go = threading.Event()
        self._is_given_up = False
        self._failure: Verdict | None = None
        self._saved: dict[str, Any] = {}
        self._moment = _moment(order.tensors)
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint")

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def wait_for(self, parts: Iterable[str]) -> None:
        """Return once these parts were copied."""
        for part in parts:
            if part in self._copied:
                self._copied[part].wait()

    def verdict(self) -> Verdict:
        """Return how it ended."""
        if self._failure or not self._saved:
            return self._failure or _failed("writer", "the writer of checkpoints gave no answer")
        return {
            "step": self.step,
            "digest": self._saved["saved"],
            "num_bytes": self._saved["num_bytes"],
            "seconds": self._ended_s - self._begun_s,
            "problems": self._saved["problems"],
            "elsewhere_s": self._saved.get("elsewhere_s", 0.0),
        }

    def told(self) -> bytes:
        """Return what the other ranks have to know, equally long on all: a failure, and the digests of the files."""
        most = _TEXT_BYTES // 24  # three texts, each character six bytes long at worst
        if self._failure:
            words: dict[str, Any] = {key: value[:most] for key, value in self._failure.items()}
        else:
            words = {"lost": {number: why[:most] for number, why in self._lost.items()}}
        text = json.dumps(words).encode()
        assert len(text) <= _TEXT_BYTES
        digests = [
            bytes.fromhex(self._digests.get(file.name, "00" * _DIGEST_BYTES)) for file in self._files()
        ]
        return text.ljust(_TEXT_BYTES, b"\0") + b"".join(digests)

    def gather(self, told: Sequence[bytes], lost: dict[str, str], *, is_failed: bool) -> None:
        """Take the digests of all ranks, and let rank 0 publish; or give up if a rank failed.

        ``lost`` are places, beyond the first, in which a rank could not write.
        """
        self._lost = lost
        for index, file in enumerate(self._files()):
            part = told[file.rank][index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES]
            self._digests[file.name] = part.hex()
        self.is_gathered = True
        self._is_given_up = is_failed
        self._go.set()

    def drop(self) -> None:
        """Give up at once."""
        self._is_given_up = True
        self._go.set()
        self._link.interrupt()
        self.join()

    # The thread

    def _run(self) -> None:
        time.sleep(_YIELD_S)
        try:
            self._copy()
            self._release()
            self._converse()
        except Exception as error:  # noqa: BLE001  told, and then saved another way
            self._failure = _failed(
                "writer", f"the copy of the state failed: {type(error).__name__}: {error}"
            )
        finally:
            self._ended_s = time.monotonic()
            self._release()
            self.written.set()
            self.over.set()

    def _release(self) -> None:
        for event in self._copied.values():
            event.set()
        self._order.tensors = {}

    def _copy(self) -> None:
        tensors = self._order.tensors
        layout = lay_out(tensors, self._group.world_size)
        if layout is None:
            raise ValueError("safetensors does not hold one of its types")
        self._layout = layout
        self._memory.grow(layout.memory_bytes, pin=_has_cuda(tensors))
        later = [part for part in self._order.later if part in tensors]
        with self._moment:
            for part in [*(part for part in tensors if part not in later), *later]:
                self._copy_part(part)
        self.copy_s = time.monotonic() - self._begun_s

    def _copy_part(self, part: str) -> None:
        for file in self._mine():
            if file.part == part:
                self._memory.write(file.place, file.header)
                for name, stored in file.tensors:
                    self._memory.copy(file.place + stored.offset, self._order.tensors[part][name])
        self._moment.wait()
        self._copied[part].set()

    def _files(self) -> Sequence[Any]:
        return self._layout.files if self._layout else ()

    def _mine(self) -> list[Any]:
        return [file for file in self._files() if file.rank == self._group.rank]

    def _converse(self) -> None:
        for attempt in range(TRIES):
            if self._is_given_up:  # while it was copied
                return
            try:
                self._link.start()
                self._save(is_again=attempt > 0)
            except (WriterDiedError, OSError):
                if self._was_dropped():
                    return
                self._link.kill()
            else:
                return
        self._failure = _failed("writer", f"{TRIES} writers of checkpoints died one after the other")

    def _was_dropped(self) -> bool:
        """Say so as it is now: the training's thread may have changed its mind meanwhile."""
        return self._is_given_up

    def _save(self, *, is_again: bool) -> None:
        order = self._as_json(is_again=is_again)
        self._link.send(order | {"do": "write"})
        answer = self._link.receive()
        if self._is_failure(answer):
            return
        self._digests |= answer["written"]
        self._lost |= answer["lost"]  # a repeated save keeps what other ranks told
        self.written.set()
        if self._group.rank:
            return
        if self._group.world_size > 1:
            self._go.wait()
        if self._is_given_up:
            self._link.send(order | {"do": "drop"})
            return
        self._link.send(order | {"do": "publish", "digests": self._digests, "lost": self._lost})
        answer = self._link.receive()
        if "ready" in answer:
            if not self._is_ours():
                return
            answer = self._link.receive()
        if not self._is_failure(answer):
            self._saved = answer

    def _is_ours(self) -> bool:
        """Answer the writer, which asks whether this attempt may still publish."""
        try:
            self._check_owner()
        except Get3dError as error:
            kind = "fenced" if isinstance(error, FencedError) else "storage"
            self._failure = _failed(kind, error.what, error.way_out)
        self._link.send({"go": self._failure is None})
        return self._failure is None

    def _is_failure(self, answer: Mapping[str, Any]) -> bool:
        if "failed" in answer:
            self._failure = _failed(answer["failed"], answer["what"], answer["way_out"])
        return self._failure is not None

    def _as_json(self, *, is_again: bool) -> dict[str, Any]:
        order = self._order
        files = [
            {
                "name": file.name,
                "part": file.part,
                "rank": file.rank,
                "place": file.place,
                "bytes": file.num_bytes,
                "tensors": [(name, *dataclasses.astuple(stored)[1:]) for name, stored in file.tensors],
            }
            for file in self._files()
        ]
        return {
            "step": order.step,
            "rank": self._group.rank,
            "alone": self._group.world_size == 1,
            "again": is_again,
            "agreed_step": order.agreed_step,
            "places": order.places,
            "body": body_of(order.step, "", {}, order.meta, order.token),
            "tree": json.dumps(order.tree),
            "files": files,
        }


class _Moment:
    """The host's memory changes when the host says so."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> None:
        pass


class _CudaMoment:
    """Copies from a GPU see what its queue holds now, in a queue of their own."""

    def __init__(self) -> None:
        import torch

        self._now = torch.cuda.Event()
        self._now.record()
        self._stream = torch.cuda.Stream()
        self._inside: Any = None

    def __enter__(self) -> None:
        import torch

        self._stream.wait_event(self._now)
        self._inside = torch.cuda.stream(self._stream)
        self._inside.__enter__()

    def __exit__(self, *error: object) -> None:
        self._inside.__exit__(*error)

    def wait(self) -> None:
        self._stream.synchronize()


def _moment(tensors: "Mapping[str, Mapping[str, Tensor]]") -> Any:
    return _CudaMoment() if _has_cuda(tensors) else _Moment()


def _has_cuda(tensors: "Mapping[str, Mapping[str, Tensor]]") -> bool:
    return any(tensor.is_cuda for named in tensors.values() for tensor in named.values())


def _num_bytes(tensors: "Mapping[str, Mapping[str, Tensor]]") -> int:
    return sum(tensor.nbytes for named in tensors.values() for tensor in named.values())


def _failed(kind: str, what: str, way_out: str = "") -> Verdict:
    return {"kind": kind, "error": what, "way_out": way_out}

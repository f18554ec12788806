"""One save on its way: a thread copies the state, talks with the writer, and starts another one if it died."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from get3d_cluster.dist.group import Group
from get3d_cluster.errors import FencedError, Get3dError
from get3d_cluster.runtime.checkpoint import body_of
from get3d_cluster.runtime.checkpoint_link import Link, WriterDiedError
from get3d_cluster.runtime.checkpoint_memory import SharedMemory, has_cuda, moment_of
from get3d_cluster.runtime.checkpoint_tensors import Layout, lay_out

if TYPE_CHECKING:
    from torch import Tensor

TRIES = 3
"""Writers that may die over one save before the worker writes itself."""
TEXT_BYTES = 6000
"""Of what ranks tell each other, the part that is text."""
_YIELD_S = 0.0005
"""The thread of a save waits so long first: whoever started it goes on at once, instead of waiting for the GIL."""
_DIGEST_BYTES = 16

Verdict = dict[str, Any]
"""``step``, ``digest``, ``num_bytes`` and ``seconds``; or ``error``, ``way_out`` and ``kind``: ``fenced``, ``storage``,
or ``writer`` if only the writer failed."""


@dataclasses.dataclass(kw_only=True)
class Order:
    """What is to be saved, and where."""

    step: int
    meta: Mapping[str, Any]
    tree: dict[str, Any]
    tensors: "dict[str, dict[str, Tensor]]"
    why: str
    tier: str
    later: Sequence[str]
    """Parts that are announced before they change, in the order in which they do."""
    place: Mapping[str, Any]
    token: str
    agreed_step: int | None
    """See ``core.policy.to_delete``."""
    held: Callable[[], Sequence[int]] = tuple
    """Says which steps' checkpoints are just being read."""
    is_shared: bool = True
    """Whether each rank writes its share; rank 0 writes all of its own otherwise, and others have no ``tensors``."""


class Flight:
    """One save on its way. A thread copies, talks with the writer, and starts another one if it died."""

    def __init__(
        self,
        order: Order,
        group: Group,
        memory: SharedMemory,
        link: Link,
        check_owner: Callable[[], None],
    ) -> None:
        self.step = order.step
        self.meta = order.meta
        self.why = order.why
        self.tier = order.tier
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
        self._go = threading.Event()
        self._is_given_up = False
        self._failure: Verdict | None = None
        self._saved: dict[str, Any] = {}
        self._moment = moment_of(order.tensors)
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
        }

    def told(self) -> bytes:
        """Return what the other ranks have to know, equally long on all: a failure, and the digests of the files."""
        most = TEXT_BYTES // 24  # three texts, each character six bytes long at worst
        words = {key: value[:most] for key, value in (self._failure or {}).items()}
        text = json.dumps(words).encode()
        assert len(text) <= TEXT_BYTES
        digests = [
            bytes.fromhex(self._digests.get(file.name, "00" * _DIGEST_BYTES)) for file in self._told_files()
        ]
        return text.ljust(TEXT_BYTES, b"\0") + b"".join(digests)

    def gather(self, told: Sequence[bytes], *, is_failed: bool) -> None:
        """Take the digests of all ranks, and let rank 0 publish; or give up if a rank failed."""
        for index, file in enumerate(self._told_files()):
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
        layout = lay_out(tensors, self._group.world_size if self._order.is_shared else 1)
        if layout is None:
            raise ValueError("safetensors does not hold one of its types")
        self._layout = layout
        self._memory.grow(layout.memory_bytes, pin=has_cuda(tensors))
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

    def _told_files(self) -> Sequence[Any]:
        return self._files() if self._order.is_shared else ()

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
        self.written.set()
        if self._group.rank:
            return
        if self._group.world_size > 1:
            self._go.wait()
        if self._is_given_up:
            self._link.send(order | {"do": "drop"})
            return
        self._link.send(order | {"do": "publish", "digests": self._digests})
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
            "alone": self._group.world_size == 1 or not order.is_shared,
            "again": is_again,
            "agreed_step": order.agreed_step,
            "held": list(order.held()),
            "place": order.place,
            "body": body_of(order.step, "", {}, order.meta, order.token),
            "tree": json.dumps(order.tree),
            "files": files,
        }


def _failed(kind: str, what: str, way_out: str = "") -> Verdict:
    return {"kind": kind, "error": what, "way_out": way_out}

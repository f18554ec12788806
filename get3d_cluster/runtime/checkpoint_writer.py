"""The process that writes checkpoints while training goes on: hashes, writes, publishes. No torch, few imports.

Started by ``checkpoint_link``: ``python -m get3d_cluster.runtime.checkpoint_writer MEMORY``, MEMORY being the
descriptor of the memory that it shares with its worker. One JSON object a line comes in on standard input:

- ``write``: make files durable, out of the shared memory; answers ``written`` with their digests.
- ``publish``: digest the whole state, ask ``ready``, and only after ``go`` publish; answers ``saved``.
- ``drop``: forget what was written.

Whatever fails is answered by ``failed``. Without its worker it ends: nobody else may say that the run is still its own.
"""

import contextlib
import hashlib
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import xxhash

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import FencedError, Get3dError, StorageError
from get3d_cluster.runtime.checkpoint_files import (
    REST,
    AbsentError,
    DamagedError,
    entry,
    entry_of,
    manifest_of,
    name_of,
    prune,
    signed,
    stands,
)
from get3d_cluster.runtime.checkpoint_tree import Stored, digest_plan, unpack_all
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.staging import Staging, stage

CHUNK = 1 << 24
Answer = Callable[[dict[str, Any]], None]


class Memory:
    """The shared memory, as far as it has grown."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._map: mmap.mmap | None = None

    def read(self, place: int, num_bytes: int) -> memoryview:
        """Return what lies there now."""
        if self._map is None or len(self._map) < place + num_bytes:
            self._map = mmap.mmap(self._handle, 0, prot=mmap.PROT_READ)
        return memoryview(self._map)[place : place + num_bytes]


class Writer:
    """Does what it is told, one save at a time."""

    def __init__(self, memory: Memory, answer: Answer, ask: Callable[[], dict[str, Any]]) -> None:
        self._memory = memory
        self._answer = answer
        self._ask = ask
        self._hasher = ThreadPoolExecutor(1)
        self._staged: Staging | None = None
        self._digest: Future[str] | None = None
        self._last: Mapping[str, Any] | None = None

    def obey(self, order: Mapping[str, Any]) -> None:
        """Carry one order out, and answer."""
        self._last = order
        try:
            {"write": self._write, "publish": self._publish, "drop": self._drop}[order["do"]](order)
        except Get3dError as error:
            kind = "fenced" if isinstance(error, FencedError) else "storage"
            self._fail(order, kind, error.what, error.way_out)
        except Exception as error:  # noqa: BLE001  of fsspec's backends, too: the worker has to hear of it
            self._fail(order, "storage", f"cannot save: {type(error).__name__}: {error}", "")

    def leave(self) -> None:
        """Remove what was written and will never be published; what other ranks wrote is rank 0's business."""
        if self._last and self._last["rank"] == 0 and self._staged:
            with contextlib.suppress(Exception):
                self._drop(self._last)

    def _fail(self, order: Mapping[str, Any], kind: str, what: str, way_out: str) -> None:
        with contextlib.suppress(Exception):
            self._drop(order)
        self._answer({"failed": kind, "what": what, "way_out": way_out})

    def _write(self, order: Mapping[str, Any]) -> None:
        mine = [file for file in order["files"] if file["rank"] == order["rank"]]
        self._staged, self._digest = None, None  # of the save before, which rank 0 has published meanwhile
        if order["alone"]:
            self._digest = self._hasher.submit(self._digest_of, order)
        digests = {file["name"]: xxhash.xxh3_128_hexdigest(self._data(file)) for file in mine}
        for file in mine:
            self._staging(order).write(file["name"], self._data(file))
        self._answer({"written": digests})

    def _data(self, file: Mapping[str, Any]) -> memoryview:
        return self._memory.read(file["place"], file["bytes"])

    def _publish(self, order: Mapping[str, Any]) -> None:
        if already := self._published(order):
            self._answer(already)
            return
        digest = self._digest.result() if self._digest else self._digest_of(order)
        rest = order["tree"].encode()
        if not self._ask().get("go"):
            self._drop(order)
            return  # whoever refused knows why
        self._publish_all(order, digest, rest)
        num_bytes = sum(file["bytes"] for file in order["files"]) + len(rest)
        self._answer({"saved": digest, "num_bytes": num_bytes})
        self._staged, self._digest = None, None

    def _publish_all(self, order: Mapping[str, Any], digest: str, rest: bytes) -> None:
        storage, staging = open_storage(order["place"]["at"]), self._staging(order)
        config = CheckpointConfig(**order["place"]["keep"])
        if stands(storage, order["step"], digest):
            staging.abandon()
        else:
            stored = {staging.write(REST, rest): entry_of(rest, None)}
            for file in order["files"]:
                digest_of_file = order["digests"][file["name"]]
                stored[staging.stored(file["name"])] = entry(file["bytes"], digest_of_file, file["part"])
            staging.publish(signed({**order["body"], "t": time.time(), "digest": digest, "files": stored}))
        rollback_every = order["place"]["rollback_every"]
        prune(storage, order["step"], config, order["agreed_step"], order["held"], rollback_every)

    def _published(self, order: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the answer if an earlier writer published this very save, and died before it could say so."""
        if not order["again"]:
            return None
        try:
            manifest = manifest_of(open_storage(order["place"]["at"]), name_of(order["step"]))
        except (DamagedError, AbsentError):
            return None
        if manifest.get("token") != order["body"]["token"]:
            return None
        self._drop(order)
        num_bytes = sum(told["bytes"] for told in manifest["files"].values())
        return {"saved": manifest["digest"], "num_bytes": num_bytes}

    def _drop(self, order: Mapping[str, Any]) -> None:
        self._staging(order).abandon()
        self._staged, self._digest = None, None

    def _staging(self, order: Mapping[str, Any]) -> Staging:
        if self._staged is None:
            self._staged = stage(order["place"]["at"], name_of(order["step"]), order["body"]["token"])
        return self._staged

    def _digest_of(self, order: Mapping[str, Any]) -> str:
        """Return the SHA-256 of the whole state; what other ranks wrote is read back, and verified."""
        files = {file["name"]: file for file in order["files"]}
        tensors: dict[str, dict[str, Stored]] = {}
        for file in files.values():
            named = {key: Stored(file["name"], *at) for key, *at in file["tensors"]}
            tensors.setdefault(file["part"], {}).update(named)
        read: dict[str, memoryview] = {}
        digest = hashlib.sha256()
        for text, stored in digest_plan(unpack_all(json.loads(order["tree"]), tensors)):
            digest.update(text.encode())
            if stored is not None:
                if stored.file not in read:
                    read[stored.file] = self._file(files[stored.file], order)
                digest.update(read[stored.file][stored.offset : stored.offset + stored.num_bytes])
        return digest.hexdigest()

    def _file(self, file: Mapping[str, Any], order: Mapping[str, Any]) -> memoryview:
        if file["rank"] == order["rank"]:
            return self._data(file)
        place, staging = order["place"], self._staging(order)
        try:
            data = staging.read(staging.stored(file["name"]))
        except OSError as error:
            raise StorageError(
                f"rank {order['rank']} cannot read what rank {file['rank']} wrote in {place['at']}: {error}",
                "all workers have to see the same folder",
            ) from error
        if xxhash.xxh3_128_hexdigest(data) != order["digests"][file["name"]]:
            raise StorageError(
                f"{file['name']}, just written by rank {file['rank']} in {place['at']}, reads back differently",
                "check that disk; the older checkpoints stand",
            )
        return data


def main(handle: int) -> None:
    """Obey until standard input ends, or the worker is gone."""
    worker = os.getppid()
    orders = _lines(worker)

    def answer(message: dict[str, Any]) -> None:
        try:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            os._exit(0)

    def ask() -> dict[str, Any]:
        answer({"ready": True})
        return next(orders, {})

    writer = Writer(Memory(handle), answer, ask)
    for order in orders:
        writer.obey(order)
    writer.leave()


def _lines(worker: int) -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        if os.getppid() != worker:
            return
        yield json.loads(line)


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""The process that copies published checkpoints to a URL while training goes on. No torch, few imports.

Started by ``checkpoint_copies``. One JSON object a line comes in on standard input: a checkpoint, where it lies, and
where a copy of it shall be. Each file is verified while it is read. It asks ``ready`` once all are there, and only
after ``go`` makes the copy visible; answers ``copied``, ``refused`` or ``failed``. Without its worker it ends at once:
nobody else may say that the run is still its own, and what has no manifest is no checkpoint.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import StorageError
from get3d_cluster.runtime.checkpoint_files import manifest_of, name_of, prune, signed, stands
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.staging import Staging, stage

CHUNK = 1 << 24
UPLOADS = 4
"""Files on their way at a time."""
WATCH_S = 1.0
"""Between two looks whether the worker is still there: in the middle of an upload nothing is read from it."""

Ask = Callable[[], Mapping[str, Any]]


def answered(order: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
    """Carry an order out; return how it ended, whatever happens."""
    try:
        return _copied(order, ask)
    except Exception as error:  # noqa: BLE001  of fsspec's backends, too: the worker has to hear of it
        return {"failed": str(getattr(error, "what", f"{type(error).__name__}: {error}"))}


def _copied(order: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
    step, name = order["step"], name_of(order["step"])
    manifest = manifest_of(open_storage(order["from"]), name)
    far = open_storage(order["to"])
    if not stands(far, step, manifest["digest"]):
        staging = stage(order["to"], name, order["token"])
        try:
            files = _uploaded(Path(order["from"]) / name, manifest["files"], staging)
            if not ask().get("go"):
                staging.abandon()
                return {"refused": True}
            staging.publish(signed({**manifest, "files": files, "token": order["token"]}))
        except BaseException:
            staging.abandon()
            raise
    prune(far, step, CheckpointConfig(**order["keep"]), order["agreed_step"])
    return {"copied": sum(told["bytes"] for told in manifest["files"].values())}


def _uploaded(folder: Path, files: Mapping[str, Any], staging: Staging) -> dict[str, Any]:
    """Return what the manifest says of each file, by the name that it has there."""
    with ThreadPoolExecutor(UPLOADS) as uploads:
        names = uploads.map(lambda file: staging.write(file, _verified(folder / file, files[file])), files)
        return dict(zip(names, files.values(), strict=True))


def _verified(path: Path, told: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the content of a file. Raises: StorageError at its end if it is not what the manifest says."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                yield chunk
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if digest.hexdigest() != told["xxh3_128"]:
        raise StorageError(f"{path} is not what was written: it is damaged, and was not copied")


def main() -> None:
    """Obey until standard input ends, or the worker is gone."""
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    orders = (json.loads(line) for line in sys.stdin)

    def answer(message: Mapping[str, Any]) -> None:
        try:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            os._exit(0)

    def ask() -> Mapping[str, Any]:
        answer({"ready": True})
        return next(orders, {})

    for order in orders:
        answer(answered(order, ask))


def _end_with(worker: int) -> None:
    while os.getppid() == worker:
        time.sleep(WATCH_S)
    os._exit(1)


if __name__ == "__main__":
    main()

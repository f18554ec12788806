"""The files of checkpoints: manifests, verification, publication, and which may go. No torch.

A checkpoint is a group ``step-000000123`` of files in a storage: safetensors files with the tensors, ``state.json`` for
everything else and the nesting, and ``manifest.json`` with size and xxh3-128 of each file, the top-level name whose
tensors it holds, the SHA-256 of the whole state, and its own digest.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.core.policy import to_delete
from get3d_cluster.errors import CheckpointError, StorageError
from get3d_cluster.storage.base import Storage

FORMAT = 2
READS = (1, 2)
"""1: one file for each top-level name, known by the name of the file. 2: the manifest says which file holds what."""
MANIFEST = "manifest.json"
REST = "state.json"
TENSORS = ".safetensors"
_NAME = re.compile(r"step-[0-9]{9,}")
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EUCLEAN, errno.EBADMSG)
"""Errors of reading that tell of the file itself; others tell of rights, of the network or of this process."""


class DamagedError(Exception):
    """A checkpoint whose files are not what its manifest says."""


class AbsentError(DamagedError):
    """A file of it that is not there at all."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A published checkpoint."""

    step: int
    digest: str
    """SHA-256 of the whole state."""
    num_bytes: int
    seconds: float


def name_of(step: int) -> str:
    """Return the name of the group that holds the checkpoint of ``step``."""
    return f"step-{step:09d}"


def step_of(name: str) -> int:
    """Return the step of a checkpoint by its name."""
    return int(name.removeprefix("step-"))


def names_in(storage: Storage) -> list[str]:
    """Return the names of checkpoints, oldest first, whatever else lies there: lost+found, a folder of the user's."""
    return sorted((name for name in storage.list() if _NAME.fullmatch(name)), key=step_of)


def entry_of(data: bytes | memoryview, part: str | None) -> dict[str, Any]:
    """Return what a manifest says of a file; ``part`` is the top-level name whose tensors it holds."""
    return entry(len(data), xxhash.xxh3_128_hexdigest(data), part)


def entry(num_bytes: int, digest: str, part: str | None) -> dict[str, Any]:
    """Return what a manifest says of a file with this xxh3-128."""
    return {"bytes": num_bytes, "xxh3_128": digest} | ({} if part is None else {"part": part})


def signed(body: Mapping[str, Any]) -> bytes:
    """Return a manifest with its own digest."""
    return json.dumps({"body": body, "sha256": _sha256(body)}, indent=1, sort_keys=True).encode()


def _sha256(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, indent=1, sort_keys=True).encode()).hexdigest()


def manifest_of(storage: Storage, name: str) -> dict[str, Any]:
    """Return the body of a manifest that matches its own digest. Raises: DamagedError, CheckpointError."""
    text = bytes(_read(storage, name, MANIFEST))
    try:
        data = json.loads(text)
        body: dict[str, Any] = data["body"]
        good = _sha256(body) == data["sha256"]
        is_exact = text in (signed(body), json.dumps(data).encode())  # 1e5 and 1E5 are one bit apart
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{name}/{MANIFEST} cannot be read ({error})") from error
    if not good:
        raise DamagedError(f"{name}/{MANIFEST} does not match its own digest")
    if body["format"] not in READS:
        raise CheckpointError(
            f"{name} has format {body['format']}, this version reads {', '.join(map(str, READS))}",
            "use the version that wrote it: RUN/code",
        )
    if not is_exact:
        raise DamagedError(f"{name}/{MANIFEST} is not what was written, although its values are")
    return body


def meta_in(folder: Path) -> dict[str, Any]:
    """Return what the manifest in ``folder`` tells of a checkpoint; nothing if it cannot be read or is damaged."""
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
        meta: dict[str, Any] = data["body"]["meta"]
        is_whole = _sha256(data["body"]) == data["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return meta if is_whole else {}


def not_bitwise_from(meta: Mapping[str, Any]) -> int | None:
    """Return the step from which on a checkpoint's bits may be others than the uninterrupted run's; None: the same.

    >>> not_bitwise_from({"not_bitwise": [{"step": 12, "changed": {"threads": [1, 2]}}]})
    12
    """
    return min((int(row["step"]) for row in meta.get("not_bitwise", ())), default=None)


def files_by_part(manifest: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the files of a checkpoint, and the top-level name whose tensors each holds: None for ``state.json``."""
    if manifest["format"] == 1:
        return {file: None if file == REST else file.removesuffix(TENSORS) for file in manifest["files"]}
    return {file: told.get("part") for file, told in manifest["files"].items()}


def verified_files(
    storage: Storage, name: str, manifest: Mapping[str, Any]
) -> Iterator[tuple[str, memoryview]]:
    """Yield each file once its digest was found right. One is read while the one before is verified.

    Raises: DamagedError, CheckpointError.
    """
    files: Mapping[str, Any] = manifest["files"]
    with ThreadPoolExecutor(1) as verifier:
        waiting: list[tuple[str, memoryview, Any]] = []
        for file in files:
            data = _read(storage, name, file)
            waiting.append((file, data, verifier.submit(xxhash.xxh3_128_hexdigest, data)))
            if len(waiting) > 1:
                yield _verified(name, files, *waiting.pop(0))
        for item in waiting:
            yield _verified(name, files, *item)


def _verified(
    name: str, files: Mapping[str, Any], file: str, data: memoryview, digest: Any
) -> tuple[str, memoryview]:
    told = files[file]
    if len(data) != told["bytes"] or digest.result() != told["xxh3_128"]:
        raise DamagedError(f"{name}/{file} is damaged: size or digest differ from the manifest")
    return file, data


def stands(storage: Storage, step: int, digest: str) -> bool:
    """Say whether this state is published already; another or a damaged one of that step is set aside.

    Asked by the exact name: a list of the folder may be older than what lies in it. Raises: StorageError.
    """
    try:
        if manifest_of(storage, name_of(step))["digest"] == digest:
            return True
        storage.set_aside(name_of(step))
    except AbsentError:
        pass
    except DamagedError:
        storage.set_aside(name_of(step))
    except CheckpointError as error:
        raise StorageError(error.what, error.way_out) from error
    return False


def prune(
    storage: Storage,
    newest: int,
    config: CheckpointConfig,
    agreed_step: int | None = None,
    held: Sequence[int] = (),
    rollback_every: int = 0,
) -> None:
    """Delete what may go, once ``newest`` was read back; not the steps ``held``, which somebody reads just now.

    Raises: StorageError if ``newest`` is not what was written.
    """
    try:
        steps = [step_of(name) for name in names_in(storage)]
    except OSError:
        return  # nothing is lost by keeping them until the next save
    may_go = to_delete(steps, config, agreed_step, rollback_every)
    going = [step for step in may_go if step not in (newest, *held)]
    if going and _reads_back(storage, newest):
        for step in going:
            storage.delete(name_of(step))


def _reads_back(storage: Storage, step: int) -> bool:
    name = name_of(step)
    try:
        for _ in verified_files(storage, name, manifest_of(storage, name)):
            pass
    except CheckpointError:
        return False
    except DamagedError as error:
        raise StorageError(
            f"{error}, just after it was written; set aside as {storage.set_aside(name)}",
            "check that disk; the older checkpoints stand, and the run comes back from them",
        ) from error
    return True


def _read(storage: Storage, name: str, file: str) -> memoryview:
    """Return one file. Raises: DamagedError if it is lost; CheckpointError if it may be there and cannot be read."""
    try:
        return storage.read(name, file)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise AbsentError(f"{name}/{file} is missing") from error
        if error.errno in _LOST:
            raise DamagedError(f"{name}/{file} cannot be read ({error.strerror})") from error
        raise CheckpointError(
            f"cannot read {error.filename or f'{name}/{file}'}: {error.strerror or error}",
            "mend its permissions or its disk, then resume: nothing was started over",
        ) from error

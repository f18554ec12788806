"""Checkpoints: a nested state <-> verified files, written whole or not at all, read back newest first.

A checkpoint is a group ``step-000000123`` of files in a storage: one safetensors file for each part of the state that
holds tensors, ``state.json`` for everything else and the nesting, and ``manifest.json`` with size and xxh3-128 of each
file, the SHA-256 of the whole state, and its own digest. No pickle anywhere.
"""

import errno
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import xxhash

from get3d_cluster.core.job import FORMAT, CheckpointConfig
from get3d_cluster.core.policy import to_delete
from get3d_cluster.errors import CheckpointError, StorageError, UsageError
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.base import Storage

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

MANIFEST = "manifest.json"
REST = "state.json"
_NAME = re.compile(r"step-[0-9]{9,}")
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EUCLEAN, errno.EBADMSG)
"""Errors of reading that tell of the file itself; others tell of rights, of the network or of this process."""


class DamagedError(Exception):
    """A checkpoint whose files are not what its manifest says."""


class _AbsentError(DamagedError):
    """A file of it that is not there at all."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A published checkpoint."""

    step: int
    digest: str
    """SHA-256 of the whole state."""
    num_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint read back and verified."""

    step: int
    state: dict[str, Any]
    meta: dict[str, Any]
    digest: str
    damaged: tuple[str, ...] = ()
    """What was wrong with newer ones, which were set aside."""


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """One line of ``launch.py checkpoints``."""

    step: int
    epoch: int
    images: int
    num_bytes: int
    t: float
    """Wall-clock time of writing, for display only."""
    digest: str
    state: str
    """``ok``, ``damaged`` or ``unverified``."""
    problem: str = ""


class Checkpoints:
    """The checkpoints of one run. Rank 0 saves; every rank loads."""

    def __init__(self, storage: Storage, config: CheckpointConfig, check_owner: Callable[[], None]) -> None:
        self._storage = storage
        self._config = config
        self._check_owner = check_owner

    def save(self, step: int, state: Mapping[str, Any], meta: Mapping[str, Any]) -> Saved:
        """Publish ``state`` as the checkpoint of ``step``, read it back, then let old ones go.

        Raises: FencedError if another attempt owns the run; StorageError, after which older checkpoints stand.
        """
        start = time.monotonic()
        files = encode(state)
        digest = state_digest(state)
        sizes = {
            name: {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
            for name, data in files.items()
        }
        body = {
            "format": FORMAT,
            "step": step,
            "t": time.time(),
            "digest": digest,
            "files": sizes,
            "meta": dict(meta),
        }
        self._check_owner()
        if not self._stands(step, digest):
            self._storage.write(_name(step), {**files, MANIFEST: _signed(body)})
        self._prune(step)
        num_bytes = sum(len(data) for data in files.values())
        return Saved(step=step, digest=digest, num_bytes=num_bytes, seconds=time.monotonic() - start)

    def load(self) -> Loaded | None:
        """Return the newest checkpoint that verifies, and set damaged newer ones aside. None if there is none at all.

        Raises: CheckpointError if there are checkpoints but every one is damaged, and each time again; or if the
        folder cannot be read.
        """
        problems: dict[str, str] = {}
        for name in reversed(self._names()):
            try:
                loaded = self.read(name)
            except DamagedError as error:
                problems[name] = str(error)
                continue
            told = [f"{why}; set aside as {self._storage.set_aside(bad)}" for bad, why in problems.items()]
            return replace(loaded, damaged=tuple(told))
        if problems:
            raise CheckpointError(
                f"no usable checkpoint: {'; '.join(problems.values())}",
                "restore one from a copy, or start over under another --name",
            )
        return None

    def _names(self) -> list[str]:
        """Return the names of the checkpoints after tidying up. Raises: CheckpointError."""
        try:
            self._storage.clean()
            return _checkpoint_names(self._storage)
        except OSError as error:
            raise CheckpointError(
                f"cannot read {error.filename or 'the folder of the checkpoints'}: {error.strerror}",
                "mend its permissions or mount its disk, then resume: nothing was started over",
            ) from error

    def read(self, name: str) -> Loaded:
        """Return one verified checkpoint. Raises: DamagedError."""
        manifest, files = _verified(self._storage, name)
        try:
            state = decode(files)
        except Exception as error:  # of safetensors or json: whatever it is, these bytes are no state
            raise DamagedError(f"{name} cannot be decoded: {error}") from error
        return Loaded(step=manifest["step"], state=state, meta=manifest["meta"], digest=manifest["digest"])

    def read_step(self, step: int) -> Loaded:
        """Return the verified checkpoint of ``step``. Raises: DamagedError."""
        return self.read(_name(step))

    def _stands(self, step: int, digest: str) -> bool:
        """Say whether this state is published already; another or a damaged one of that step is set aside.

        Asked by the exact name: a list of the folder may be older than what lies in it.
        """
        try:
            if _manifest(self._storage, _name(step))["digest"] == digest:
                return True
            self._storage.set_aside(_name(step))
        except _AbsentError:
            pass
        except DamagedError:
            self._storage.set_aside(_name(step))
        except CheckpointError as error:
            raise StorageError(error.what, error.way_out) from error
        return False

    def _prune(self, newest: int) -> None:
        """Delete what may go, once ``newest`` was read back. Raises: StorageError if it is not what was written."""
        try:
            steps = [_step(name) for name in _checkpoint_names(self._storage)]
        except OSError:
            return  # nothing is lost by keeping them until the next save
        going = [step for step in to_delete(steps, self._config) if step != newest]
        if going and self._reads_back(newest):
            for step in going:
                self._storage.delete(_name(step))

    def _reads_back(self, step: int) -> bool:
        try:
            for _ in _verified_files(self._storage, _name(step), _manifest(self._storage, _name(step))):
                pass
        except CheckpointError:
            return False
        except DamagedError as error:
            raise StorageError(
                f"{error}, just after it was written; set aside as {self._storage.set_aside(_name(step))}",
                "check that disk; the older checkpoints stand, and the run comes back from them",
            ) from error
        return True


def list_checkpoints(run: RunFolder, *, verify: bool = False) -> list[CheckpointInfo]:
    """Return the published checkpoints of a run, oldest first; with ``verify`` every byte is checked. No torch."""
    storage = open_storage(run.checkpoints_dir)
    return [_info(storage, name, verify=verify) for name in _checkpoint_names(storage)]


def encode(state: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files that hold ``state``: the tensors of each top-level name, and all of it as JSON.

    ``state.json`` shows the whole nesting. What JSON has not stands there as a table of one tagged entry:
    ``{"$tensor": NAME}`` (in the safetensors file of its top-level name), ``{"$tuple": [...]}``, ``{"$dict": [[KEY,
    VALUE], ...]}`` for keys that are numbers or begin with ``$``, ``{"$counter": [[KEY, COUNT], ...]}``.

    Raises: UsageError naming the first value or key that could not come back as it is.
    """
    from safetensors.torch import save

    files, tree = {}, {}
    for part, value in state.items():
        if type(part) is not str or "/" in part:
            raise UsageError(f"state key {part!r} must be a text without a slash", "rename it")
        tensors: dict[str, Tensor] = {}
        tree[part] = _pack(value, (part,), tensors)
        if tensors:
            files[f"{part}.safetensors"] = save(_each_its_own(tensors))
    return {**files, REST: json.dumps(tree).encode()}


def decode(files: Mapping[str, memoryview]) -> dict[str, Any]:
    """Return the state that ``encode`` wrote: types, order of keys and bits."""
    from safetensors.torch import load

    state = {}
    for part, packed in json.loads(bytes(files[REST])).items():
        file = f"{part}.safetensors"
        tensors = load(bytes(files[file])) if file in files else {}
        state[part] = _unpack(packed, tensors)
        if tensors:
            raise ValueError(f"{file} holds tensors that {REST} does not name: {', '.join(tensors)}")
    return state


def refuse_unsaved(state: Mapping[str, Any]) -> None:
    """Make sure that ``encode`` can hold ``state``, without copying anything. Raises: UsageError."""
    for part, value in state.items():
        _pack(value, (part,), {})


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a whole state: names, types, shapes and bytes of every leaf, in sorted order.

    The order of keys, and whether a sequence is a list or a tuple, is not seen.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(state), key=lambda item: item[0]):
        inside: dict[str, Tensor] = {}
        packed = _pack(leaf, ("", *path), inside)  # so that names are whole paths
        if not _is_tensor(leaf):
            digest.update(f"{'/'.join(path)} {json.dumps(_canonical(packed), sort_keys=True)}\n".encode())
        for name, tensor in inside.items():
            whole: Any = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
            digest.update(memoryview(whole.reshape(-1).view(_bytes_type()).numpy()))
    return digest.hexdigest()


def flatten(state: Mapping[Any, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Return the leaves of nested mappings with their paths; a list or a tuple is one leaf. Raises: UsageError."""
    leaves: list[tuple[tuple[str, ...], Any]] = []
    for key, value in state.items():
        here = (*path, _key_text(key, path))
        if isinstance(value, Mapping) and value:
            leaves += flatten(value, here)
        else:
            leaves.append((here, value))
    return leaves


def _pack(value: Any, path: tuple[str, ...], tensors: "dict[str, Tensor]") -> Any:
    """Return ``value`` as tagged JSON, and put its tensors into ``tensors``. Raises: UsageError."""
    if _is_tensor(value):
        name = "/".join(path[1:]) or path[0]
        _refuse_tensor(value, path)
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        return _pack_mapping(value, path, tensors)
    if type(value) in (list, tuple):
        items = [_pack(item, (*path, f"$[{index}]"), tensors) for index, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise UsageError(
        f"state {'/'.join(path)} is a {kind}, which a checkpoint does not hold",
        "make it a tensor, a number, a text, or a dict, list or tuple of these",
    )


def _pack_mapping(value: Mapping[Any, Any], path: tuple[str, ...], tensors: "dict[str, Tensor]") -> Any:
    pairs = [[key, _pack(item, (*path, _key_text(key, path)), tensors)] for key, item in value.items()]
    if isinstance(value, Counter):
        return {"$counter": pairs}
    if all(type(key) is str and not key.startswith("$") for key in value):
        return dict(pairs)
    return {"$dict": pairs}


def _unpack(packed: Any, tensors: "dict[str, Tensor]") -> Any:
    """Return what ``_pack`` was given, and take its tensors out of ``tensors``."""
    if isinstance(packed, list):
        return [_unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    match next(iter(packed.items()), ("", None)):
        case "$tensor", name:
            return tensors.pop(name)
        case "$tuple", items:
            return tuple(_unpack(item, tensors) for item in items)
        case "$dict" | "$counter" as tag, pairs:
            both = {key: _unpack(item, tensors) for key, item in pairs}
            return Counter(both) if tag == "$counter" else both
        case _:
            return {key: _unpack(item, tensors) for key, item in packed.items()}


def _canonical(packed: Any) -> Any:
    """Return packed JSON without what the digest does not see."""
    if isinstance(packed, list):
        return [_canonical(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    match next(iter(packed.items()), ("", None)):
        case "$tuple", items:
            return _canonical(items)
        case "$dict" | "$counter", pairs:
            return {"$dict": sorted(_canonical(pairs), key=lambda pair: json.dumps(pair[0]))} if pairs else {}
        case _:
            return {key: _canonical(item) for key, item in packed.items()}


def _key_text(key: object, path: tuple[str, ...]) -> str:
    """Return a key as a part of a path, two different keys never alike. Raises: UsageError."""
    if type(key) not in (str, int):
        raise UsageError(
            f"state key {key!r} below {'/'.join(path) or 'the top'} must be a text or a whole number",
            "use another key",
        )
    if type(key) is str and not key.startswith("$") and "/" not in key and key != "__metadata__":
        return key  # that name is taken in a safetensors file
    return f"${json.dumps(key)}"


def _refuse_tensor(tensor: "Tensor", path: tuple[str, ...]) -> None:
    kind, layout = str(tensor.dtype), str(tensor.layout)
    if layout != "torch.strided" or tensor.is_quantized or kind in ("torch.complex128", "torch.complex32"):
        raise UsageError(
            f"state {'/'.join(path)} is a tensor of {kind}, {layout}, which safetensors does not hold",
            "save it as a dense tensor of another type",
        )


def _each_its_own(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return the tensors on the host, no two in one memory (tied weights, views): safetensors refuses those."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        place = host.untyped_storage().data_ptr()
        own[name] = host.clone() if place in seen else host
        seen.add(place)
    return own


def _is_tensor(leaf: object) -> bool:
    return hasattr(leaf, "detach")


def _bytes_type() -> Any:
    import torch

    return torch.uint8


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _checkpoint_names(storage: Storage) -> list[str]:
    """Return the names of checkpoints, oldest first, whatever else lies there: lost+found, a folder of the user's."""
    return sorted((name for name in storage.list() if _NAME.fullmatch(name)), key=_step)


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _signed(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, indent=1, sort_keys=True)
    return json.dumps(
        {"body": body, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1, sort_keys=True
    ).encode()


def _read(storage: Storage, name: str, file: str) -> memoryview:
    """Return one file. Raises: DamagedError if it is lost; CheckpointError if it may be there and cannot be read."""
    try:
        return storage.read(name, file)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise _AbsentError(f"{name}/{file} is missing") from error
        if error.errno in _LOST:
            raise DamagedError(f"{name}/{file} cannot be read ({error.strerror})") from error
        raise CheckpointError(
            f"cannot read {error.filename or f'{name}/{file}'}: {error.strerror or error}",
            "mend its permissions or its disk, then resume: nothing was started over",
        ) from error


def _manifest(storage: Storage, name: str) -> dict[str, Any]:
    text = bytes(_read(storage, name, MANIFEST))
    try:
        data = json.loads(text)
        body: dict[str, Any] = data["body"]
        signed = json.dumps(body, indent=1, sort_keys=True)
        good = hashlib.sha256(signed.encode()).hexdigest() == data["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{name}/{MANIFEST} cannot be read ({error})") from error
    if not good:
        raise DamagedError(f"{name}/{MANIFEST} does not match its own digest")
    if body["format"] != FORMAT:
        raise CheckpointError(
            f"{name} has format {body['format']}, this version reads {FORMAT}",
            "use the version that wrote it: RUN/code",
        )
    return body


def _verified(storage: Storage, name: str) -> tuple[dict[str, Any], dict[str, memoryview]]:
    manifest = _manifest(storage, name)
    return manifest, dict(_verified_files(storage, name, manifest))


def _verified_files(
    storage: Storage, name: str, manifest: dict[str, Any]
) -> Iterator[tuple[str, memoryview]]:
    for file, entry in manifest["files"].items():
        data = _read(storage, name, file)
        if len(data) != entry["bytes"] or xxhash.xxh3_128_hexdigest(data) != entry["xxh3_128"]:
            raise DamagedError(f"{name}/{file} is damaged: size or digest differ from the manifest")
        yield file, data


def _info(storage: Storage, name: str, *, verify: bool) -> CheckpointInfo:
    try:
        manifest = _verified(storage, name)[0] if verify else _manifest(storage, name)
    except DamagedError as error:
        return CheckpointInfo(
            step=_step(name),
            epoch=0,
            images=0,
            num_bytes=0,
            t=0.0,
            digest="",
            state="damaged",
            problem=str(error),
        )
    meta = manifest["meta"]
    return CheckpointInfo(
        step=manifest["step"],
        epoch=meta.get("epoch", 0),
        images=meta.get("images", 0),
        num_bytes=sum(entry["bytes"] for entry in manifest["files"].values()),
        t=manifest["t"],
        digest=manifest["digest"],
        state="ok" if verify else "unverified",
    )


def optimizer_state(optimizer: "Optimizer") -> dict[str, Any]:
    """Return an optimizer's whole state as a checkpoint takes it: text keys, tensors and JSON values."""
    state = optimizer.state_dict()
    tensors = {str(index): dict(values) for index, values in state["state"].items()}
    return {"state": tensors, "param_groups": state["param_groups"]}


def load_optimizer(optimizer: "Optimizer", state: Mapping[str, Any]) -> None:
    """Give an optimizer what ``optimizer_state`` returned."""
    tensors = {int(index): dict(values) for index, values in state["state"].items()}
    optimizer.load_state_dict({"state": tensors, "param_groups": state["param_groups"]})

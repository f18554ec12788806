"""Checkpoints: a nested state <-> verified files, written whole or not at all, read back newest first.

``checkpoint_files`` says what the files are. No pickle anywhere. ``Checkpoints.save`` writes in this process;
``checkpoint_saver`` lets another one write while training goes on.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.errors import CheckpointError
from get3d_cluster.runtime.checkpoint_files import (
    FORMAT,
    MANIFEST,
    REST,
    TENSORS,
    DamagedError,
    Saved,
    entry_of,
    files_by_part,
    manifest_of,
    name_of,
    names_in,
    not_bitwise_from,
    prune,
    signed,
    stands,
    step_of,
    verified_files,
)
from get3d_cluster.runtime.checkpoint_tensors import read_tensors
from get3d_cluster.runtime.checkpoint_tree import digest_plan, flatten, pack_all, unpack_all
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.base import Storage
from get3d_cluster.storage.staging import location_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = [
    "Checkpoints",
    "DamagedError",
    "Loaded",
    "Saved",
    "decode",
    "encode",
    "flatten",
    "list_checkpoints",
    "load_optimizer",
    "more_tiers",
    "optimizer_state",
    "refuse_unsaved",
    "state_digest",
]


RUN = "run"
NEAR = ("url", "run", "local")
"""Tiers, from far to near."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checkpoint read back and verified."""

    step: int
    state: dict[str, Any]
    meta: dict[str, Any]
    digest: str
    damaged: tuple[str, ...] = ()
    """What was wrong with newer ones, which were set aside, and with tiers that could not be read."""
    tier: str = "run"
    """Which of ``Checkpoints.tiers`` it lies in."""


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
    """``ok``, ``damaged``, ``unverified``, or ``unread`` of another tier than ``run`` that cannot be read now."""
    problem: str = ""
    tier: str = "run"
    not_bitwise_from: int | None = None
    """Step from which on its bits may be others than the uninterrupted run's; None: they are the same."""


class Checkpoints:
    """The checkpoints of one run. Rank 0 saves; every rank loads.

    ``storage``, the tier ``run``, is where they have to be. ``more`` are other tiers: ``local`` is faster and holds
    newer ones, ``url`` holds copies of those in ``run`` elsewhere.
    """

    def __init__(
        self,
        storage: Storage,
        config: CheckpointConfig,
        check_owner: Callable[[], None],
        more: Mapping[str, Storage] | None = None,
    ) -> None:
        self.tiers = {RUN: storage, **(more or {})}
        self.config = config
        self.check_owner = check_owner
        self.rollback_every_steps = 0
        """The newest two checkpoints at multiples of it are kept, for work that may have to go back to them."""

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        meta: Mapping[str, Any],
        agreed_step: int | None = None,
        held: Sequence[int] = (),
    ) -> Saved:
        """Publish ``state`` as the checkpoint of ``step`` in the tier ``run``, read it back, then let old ones go.

        Raises: FencedError if another attempt owns the run; StorageError, after which older checkpoints stand.
        """
        start = time.monotonic()
        files = encode(state)
        digest = state_digest(state)
        entries = {
            file: entry_of(data, None if file == REST else file.removesuffix(TENSORS))
            for file, data in files.items()
        }
        body = body_of(step, digest, entries, meta)
        self.check_owner()
        storage = self.tiers[RUN]
        if not stands(storage, step, digest):
            storage.write(name_of(step), {**files, MANIFEST: signed(body)})
        prune(storage, step, self.config, agreed_step, held, self.rollback_every_steps)
        num_bytes = sum(len(data) for data in files.values())
        return Saved(step=step, digest=digest, num_bytes=num_bytes, seconds=time.monotonic() - start)

    def load(self) -> Loaded | None:
        """Return the newest checkpoint that verifies, and set damaged newer ones aside. None if there is none at all.

        Newest is the one of the latest attempt, then of the latest step; of equal ones the nearest.

        Raises: CheckpointError if there are checkpoints but every one is damaged, and each time again; or if the
        folder cannot be read.
        """
        unread: list[str] = []
        return self._first_whole(self._newest_first(unread), unread)

    def load_up_to(self, step: int) -> Loaded | None:
        """Return the newest checkpoint of ``step`` or before in the tier ``run``, as ``load`` does; None: no such one.

        Another tier may hold one of steps that were given up since, if it was out of reach then.
        """
        names = [name for name in reversed(self._names(RUN)) if step_of(name) <= step]
        return self._first_whole([(RUN, name) for name in names], [])

    def set_aside_after(self, step: int) -> list[str]:
        """Set all checkpoints later than ``step`` aside, newest first; return where they are, and what failed.

        Raises: CheckpointError, StorageError if it fails in the tier ``run``.
        """
        told: list[str] = []
        for tier, storage in self.tiers.items():
            try:
                later = [name for name in reversed(self._names(tier)) if step_of(name) > step]
                told += [storage.set_aside(name, "rolled-back") for name in later]
            except Exception as error:
                if tier == RUN:
                    raise
                told.append(getattr(error, "what", f"{type(error).__name__}: {error}"))
        return told

    def _first_whole(self, newest_first: Sequence[tuple[str, str]], unread: list[str]) -> Loaded | None:
        problems: dict[tuple[str, str], str] = {}
        for tier, name in newest_first:
            try:
                loaded = self.read(name, tier)
            except DamagedError as error:
                problems[tier, name] = str(error)
                continue
            except CheckpointError as error:
                if tier == RUN:
                    raise
                unread.append(error.what)
                continue
            aside = [
                f"{why}; set aside as {self.tiers[at].set_aside(bad)}" for (at, bad), why in problems.items()
            ]
            return replace(loaded, damaged=(*aside, *unread))
        if problems or unread:
            raise CheckpointError(
                f"no usable checkpoint: {'; '.join([*problems.values(), *unread])}",
                "restore one from a copy, or start over under another --name",
            )
        return None

    def _newest_first(self, unread: list[str]) -> list[tuple[str, str]]:
        """Return tier and name of each checkpoint; another tier than ``run`` that cannot be read is told, not fatal."""
        names = [(RUN, name) for name in self._names(RUN)]
        for tier in (tier for tier in self.tiers if tier != RUN):
            try:
                names += [(tier, name) for name in self._names(tier)]
            except CheckpointError as error:
                unread.append(error.what)
        return sorted(names, key=lambda item: (*self._age(*item), NEAR.index(item[0])), reverse=True)

    def _age(self, tier: str, name: str) -> tuple[float, int]:
        """Return attempt and step of a checkpoint; one that cannot be told is looked at early, to be set aside.

        With one tier the step alone orders: each attempt goes on from the newest there is.
        """
        if len(self.tiers) == 1:
            return 0, step_of(name)
        try:
            return manifest_of(self.tiers[tier], name)["meta"].get("attempt", 0), step_of(name)
        except (DamagedError, CheckpointError):
            return math.inf, step_of(name)

    def _names(self, tier: str) -> list[str]:
        """Return the names of the checkpoints after tidying up. Raises: CheckpointError."""
        try:
            self.tiers[tier].clean()
            return names_in(self.tiers[tier])
        except Exception as error:
            if tier == RUN and not isinstance(error, OSError):
                raise  # that one is a folder: anything else is a bug
            what = getattr(error, "filename", None) or location_of(self.tiers[tier])
            raise CheckpointError(
                f"cannot read {what or 'the folder of the checkpoints'}: "
                f"{getattr(error, 'strerror', None) or error}",
                "mend its permissions or mount its disk, then resume: nothing was started over",
            ) from error

    def read(self, name: str, tier: str = RUN) -> Loaded:
        """Return one verified checkpoint. Raises: DamagedError, CheckpointError."""
        storage = self.tiers[tier]
        manifest = manifest_of(storage, name)
        files = dict(verified_files(storage, name, manifest))
        try:
            state = _decoded(files, files_by_part(manifest))
        except Exception as error:  # of safetensors or json: whatever it is, these bytes are no state
            raise DamagedError(f"{name} cannot be decoded: {error}") from error
        return Loaded(
            step=manifest["step"], state=state, meta=manifest["meta"], digest=manifest["digest"], tier=tier
        )

    def read_step(self, step: int, tier: str = RUN) -> Loaded:
        """Return the verified checkpoint of ``step``. Raises: DamagedError."""
        return self.read(name_of(step), tier)


def more_tiers(config: CheckpointConfig, spec: JobSpec, num_nodes: int) -> dict[str, Storage]:
    """Return the other tiers that ``config`` asks for, in places of their own for the run that ``spec`` describes.

    Raises: UsageError if the URL cannot be used.
    """
    return tiers_for(config, spec.name, f"{spec.name} {spec.created}", is_one_node=num_nodes == 1)


def tiers_for(config: CheckpointConfig, name: str, unique: str, *, is_one_node: bool) -> dict[str, Storage]:
    """Return ``more_tiers`` for whatever is called ``name``; ``unique`` is what no other one of that name has."""
    run = f"{name}-{hashlib.sha256(unique.encode()).hexdigest()[:8]}"
    tiers: dict[str, Storage] = {}
    if config.local and is_one_node:
        tiers["local"] = open_storage(Path(config.local) / run)
    if config.url:
        tiers["url"] = open_storage(f"{config.url.rstrip('/')}/{run}")
    return tiers


def body_of(
    step: int, digest: str, files: Mapping[str, Any], meta: Mapping[str, Any], token: str = ""
) -> dict[str, Any]:
    """Return the body of a manifest; ``token`` names the save, if another process publishes it."""
    body = {"format": FORMAT, "step": step, "t": time.time(), "digest": digest, "files": files}
    return body | {"meta": dict(meta)} | ({"token": token} if token else {})


def list_checkpoints(
    run: RunFolder, *, verify: bool = False, more: Mapping[str, Storage] | None = None
) -> list[CheckpointInfo]:
    """Return the published checkpoints of a run, and those in ``more`` tiers, oldest first. No torch.

    With ``verify`` every byte is checked. Raises: CheckpointError if the run's own cannot be read.
    """
    storage = open_storage(run.checkpoints_dir)
    found = [_info(storage, name, verify=verify) for name in names_in(storage)]
    for tier, other in (more or {}).items():
        found += _infos_elsewhere(tier, other, verify=verify)
    return sorted(found, key=lambda info: (info.step, NEAR.index(info.tier)))


def _infos_elsewhere(tier: str, storage: Storage, *, verify: bool) -> list[CheckpointInfo]:
    """Return those in another tier than the run's own, which may be out of reach from here."""
    found: list[CheckpointInfo] = []
    try:
        for name in names_in(storage):
            found.append(replace(_info(storage, name, verify=verify), tier=tier))  # noqa: PERF401  what was read stays
    except Exception as error:  # noqa: BLE001  each backend has kinds of its own
        what = getattr(error, "what", f"{type(error).__name__}: {error}")
        problem = f"cannot read {location_of(storage)}: {what}"
        found.append(_unknown(0, "unread", problem, tier))
    return found


def _unknown(step: int, state: str, problem: str, tier: str = RUN) -> CheckpointInfo:
    return CheckpointInfo(
        step=step, epoch=0, images=0, num_bytes=0, t=0.0, digest="", state=state, problem=problem, tier=tier
    )


def encode(state: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files that hold ``state``: the tensors of each top-level name, and all of it as JSON.

    Raises: UsageError naming the first value or key that could not come back as it is.
    """
    from safetensors.torch import save

    tree, tensors = pack_all(state)
    files = {f"{part}{TENSORS}": save(_each_its_own(named)) for part, named in tensors.items()}
    return {**files, REST: json.dumps(tree).encode()}


def decode(files: Mapping[str, memoryview]) -> dict[str, Any]:
    """Return the state that ``encode`` wrote: types, order of keys and bits."""
    return _decoded(files, {file: None if file == REST else file.removesuffix(TENSORS) for file in files})


def _decoded(files: Mapping[str, memoryview], parts: Mapping[str, str | None]) -> dict[str, Any]:
    rest = next(file for file, part in parts.items() if part is None)
    tensors: dict[str, dict[str, Any]] = {}
    for file, part in parts.items():
        if part is not None:
            tensors.setdefault(part, {}).update(read_tensors(files[file]))
    return unpack_all(json.loads(bytes(files[rest])), tensors)


def refuse_unsaved(state: Mapping[str, Any]) -> None:
    """Make sure that ``encode`` can hold ``state``, without copying anything. Raises: UsageError."""
    pack_all(state)


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a whole state: names, types, shapes and bytes of every leaf, in sorted order.

    The order of keys, and whether a sequence is a list or a tuple, is not seen.
    """
    digest = hashlib.sha256()
    for text, tensor in digest_plan(state):
        digest.update(text.encode())
        if tensor is not None:
            whole: Any = tensor.detach().cpu().contiguous()
            digest.update(memoryview(whole.reshape(-1).view(_bytes_type()).numpy()))
    return digest.hexdigest()


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


def _bytes_type() -> Any:
    import torch

    return torch.uint8


def _info(storage: Storage, name: str, *, verify: bool) -> CheckpointInfo:
    try:
        manifest = manifest_of(storage, name)
        for _ in verified_files(storage, name, manifest) if verify else ():
            pass
    except DamagedError as error:
        return _unknown(step_of(name), "damaged", str(error))
    meta = manifest["meta"]
    return CheckpointInfo(
        step=manifest["step"],
        epoch=meta.get("epoch", 0),
        images=meta.get("images", 0),
        num_bytes=sum(told["bytes"] for told in manifest["files"].values()),
        t=manifest["t"],
        digest=manifest["digest"],
        state="ok" if verify else "unverified",
        not_bitwise_from=not_bitwise_from(meta),
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

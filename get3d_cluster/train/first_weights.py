"""Which weights a run begins with if not with random ones: those of one checkpoint elsewhere, on all workers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import CheckpointError, Get3dError, UsageError
from get3d_cluster.runtime.checkpoint import Checkpoints, DamagedError, list_checkpoints
from get3d_cluster.runtime.run_folder import RunFolder, read_json, write_json
from get3d_cluster.runtime.session import Session
from get3d_cluster.storage import open_storage

CHOICE = "init.json"
"""In the folder of the run: what was chosen when it began, and stands if it comes back before its first save."""


@dataclass(frozen=True, kw_only=True)
class FirstWeights:
    """A checkpoint elsewhere."""

    run: str
    step: int
    digest: str


def first_weights(init_from: str, session: Session) -> Mapping[str, Any]:
    """Return the state that a run begins with; all workers call it. Raises: UsageError, CheckpointError."""
    told = session.group.broadcast(_told(init_from, session) if session.rank == 0 else None)
    if "refused" in told:
        raise UsageError(*told["refused"])
    choice = FirstWeights(**told)
    if session.rank == 0:
        session.events.write("init", **asdict(choice))
    return _read(choice)


def read_only(run: RunFolder) -> Checkpoints:
    """Return the checkpoints of a run that others may be writing: nothing is cleaned up or set aside."""
    return Checkpoints(open_storage(run.checkpoints_dir), CheckpointConfig(), check_owner=lambda: None)


def newest(run: RunFolder, step: int | None = None) -> FirstWeights:
    """Return the checkpoint of ``step``, or the newest that is not damaged. Raises: UsageError if there is none."""
    found = [each for each in list_checkpoints(run) if each.state != "damaged"]
    wanted = [each for each in found if step in (None, each.step)]
    if not wanted:
        raise UsageError(
            f"{run.path} has no checkpoint {'yet' if step is None else f'of step {step}'}",
            f"it has {[each.step for each in found]}" if found else "let it train until its first checkpoint",
        )
    return FirstWeights(run=str(run.path), step=wanted[-1].step, digest=wanted[-1].digest)


def _told(init_from: str, session: Session) -> dict[str, Any]:
    """Return the choice of this run, made now if it was not before, or why there is none: all have to hear it."""
    place = session.run.path / CHOICE
    try:
        told = read_json(place) if place.exists() else {}
        if told.pop("init_from", None) != init_from:
            told = asdict(newest(RunFolder.open(Path(init_from))))
            write_json(place, told | {"init_from": init_from})
    except Get3dError as error:
        return {"refused": (f"init_from={init_from}: {error.what}", error.way_out)}
    return told


def _read(choice: FirstWeights) -> Mapping[str, Any]:
    run = RunFolder(Path(choice.run))
    way_out = "bring that checkpoint back, or start another run from what is there now"
    try:
        loaded = read_only(run).read_step(choice.step)
    except DamagedError as error:
        what = f"init_from={choice.run}: step {choice.step} cannot be read: {str(error)[:200]}"
        raise CheckpointError(what, way_out) from error
    if loaded.digest != choice.digest:
        what = f"init_from={choice.run}: step {choice.step} is another than when this run began"
        raise CheckpointError(what, way_out)
    return loaded.state

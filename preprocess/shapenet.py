"""Which models a ShapeNetCore folder holds, and why each left-out one was left out. Only looks, never writes.

Layouts: v1 ``<root>/<synset>/<id>/model.obj``, v2 ``<root>/<synset>/<id>/models/model_normalized.obj``. Synsets and ids
are text: many begin with zeros.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from get3d_cluster.errors import UsageError

OBJ_PATHS = ("model.obj", "models/model_normalized.obj")
_HEAD_BYTES = 65_536


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class ModelFile:
    """A model that can be rendered."""

    synset: str
    model: str
    obj: Path


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class LeftOut:
    """A folder that looks like a model and cannot be used."""

    synset: str
    model: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a folder holds; both sorted by synset, then id."""

    models: tuple[ModelFile, ...]
    left_out: tuple[LeftOut, ...]


def find_models(root: Path, synsets: Sequence[str] = ()) -> Found:
    """Look through ``root``, in the given categories or in all of them.

    Raises: UsageError if the folder or a category does not exist, or nothing in them can be used.
    """
    if not root.is_dir():
        raise UsageError(f"there is no folder {root}", "give the folder that holds <synset>/<id>/model.obj")
    present = _folder_names(root)
    for synset in synsets:
        if synset not in present:
            raise UsageError(f"synset {synset!r} is no folder of {root}", _hint(synset, present))
    looked_at = [
        _looked_at(root / synset / model, synset, model)
        for synset in sorted(set(synsets) or present)
        for model in _folder_names(root / synset)
    ]
    models = tuple(each for each in looked_at if isinstance(each, ModelFile))
    left_out = tuple(each for each in looked_at if isinstance(each, LeftOut))
    if not models:
        why = (
            f"; the first left out: {left_out[0].synset}/{left_out[0].model}: {left_out[0].why}"
            if left_out
            else ""
        )
        raise UsageError(f"no model can be used in {root}{why}", "expected is <synset>/<id>/model.obj")
    return Found(models=models, left_out=left_out)


def _looked_at(folder: Path, synset: str, model: str) -> ModelFile | LeftOut:
    obj = next((folder / path for path in OBJ_PATHS if (folder / path).is_file()), None)
    if obj is None:
        return LeftOut(synset=synset, model=model, why=f"has no {OBJ_PATHS[0]}")
    why = _why_not(obj)
    return (
        LeftOut(synset=synset, model=model, why=why)
        if why
        else ModelFile(synset=synset, model=model, obj=obj)
    )


def _why_not(obj: Path) -> str:
    """Say why an OBJ file cannot be used; empty if nothing speaks against it. Reads its beginning only."""
    try:
        with obj.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return f"{obj.name} cannot be read: {error.strerror or error}"
    if not head.strip():
        return f"{obj.name} is empty"
    if not any(line.startswith((b"v ", b"v\t")) for line in head.splitlines()):
        return f"{obj.name} does not begin with vertices"
    missing = [name for name in _libraries(head.splitlines()) if not (obj.parent / name).is_file()]
    return f"{missing[0]}, named by {obj.name}, is missing" if missing else ""


def _libraries(lines: Iterable[bytes]) -> list[str]:
    return [
        line.split(maxsplit=1)[1].decode(errors="replace").strip()
        for line in lines
        if line.startswith(b"mtllib") and len(line.split(maxsplit=1)) > 1
    ]


def _folder_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _hint(synset: str, present: Sequence[str]) -> str:
    """Recognise an id that lost its zeros because YAML read it as a number, in base 8 or 10."""
    octal = f"0{int(synset):o}" if synset.isdecimal() else ""
    meant = [name for name in present if name in (synset.zfill(8), octal.zfill(8))]
    if meant:
        return f'write synsets=["{meant[0]}"] with quotes: without them it is read as a number'
    return f"choose from: {', '.join(present[:8]) or 'nothing: the folder is empty'}"

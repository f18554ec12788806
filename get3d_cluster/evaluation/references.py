"""The models that generated shapes are compared with: meshes of a folder, in a fixed order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.draws import chosen
from get3d_cluster.evaluation.mesh_statistics import welded

KINDS = (".glb", ".gltf", ".obj", ".ply", ".off", ".stl")
"""Of files that differ in the ending alone the first kind counts: they hold one model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """One model file."""

    name: str
    """Path below the folder."""
    path: Path
    size: int


def find_references(
    folder: Path,
    most: int = 0,  # 0: all
    seed: int = 0,
) -> list[Reference]:
    """Return the models below ``folder`` in the order of their names; of more than ``most`` a choice by seed.

    Raises: UsageError if there is none.
    """
    kept: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix.lower() not in KINDS or not path.is_file():
            continue
        other = kept.get(path.with_suffix(""))
        if other is None or _rank(path) < _rank(other):
            kept[path.with_suffix("")] = path
    if not kept:
        raise UsageError(
            f"references={folder} {'holds no models' if folder.is_dir() else 'is no folder'}",
            f"give the folder of the models that the images were rendered from ({', '.join(KINDS)}), or leave it out",
        )
    paths = sorted(kept.values())
    numbers = chosen(len(paths), most or len(paths), "references", seed)
    return [
        Reference(name=paths[i].relative_to(folder).as_posix(), path=paths[i], size=paths[i].stat().st_size)
        for i in numbers.tolist()
    ]


def digest_of(references: Sequence[Reference]) -> str:
    """Return a name of these models, from their paths below the folder and their sizes."""
    lines = [f"{each.name} {each.size}" for each in references]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_surface(
    path: Path,
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:  # [V, 3], [F, 3]
    """Return all surfaces of a model as one mesh, placed as its scene says, equal vertices joined.

    Raises: UsageError if it cannot be read or has no face.
    """
    try:
        loaded = trimesh.load_scene(path, process=False, skip_materials=True).to_mesh()
        vertices, faces = np.asarray(loaded.vertices, np.float64), np.asarray(loaded.faces, np.int32)
    except Exception as error:  # a reader of foreign files raises anything
        raise UsageError(
            f"{path} cannot be read: {error}", "mend the model, or take it out of the folder"
        ) from error
    if not len(faces) or not np.isfinite(vertices).all():
        raise UsageError(f"{path} has no surface", "mend the model, or take it out of the folder")
    return welded(vertices, faces)


def _rank(path: Path) -> int:
    return KINDS.index(path.suffix.lower())

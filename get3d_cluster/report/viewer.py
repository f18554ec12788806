"""A page in which meshes can be turned with the mouse, without a network: trimesh's, which carries three.js in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trimesh
from PIL import Image
from trimesh.viewer.notebook import scene_to_html

from get3d_cluster.storage.local import write_atomic

VIEWER = "viewer.html"
MOST_SHAPES = 12
COLUMNS = 4
TEXTURE_PX = 512
"""Side to which textures are reduced: a page of a dozen shapes is to open at once."""
_AWAY = 1.25
"""Distance of the eye, in widths of the whole."""
_SPACE = 1.1
"""Between the middles of neighbours; shapes lie in a box of side 1."""


def write_viewer(run_path: Path, meshes: Sequence[Path]) -> Path | None:
    """Write ``viewer.html`` with the first GLB files among ``meshes``, relative to the run; return its name.

    The same name in several folders counts once. None if there is nothing that can be shown.
    Raises: StorageError if it cannot be written.
    """
    files = [run_path / path for path in meshes if path.suffix == ".glb"][:MOST_SHAPES]
    target = run_path / VIEWER
    if not files:
        return None
    if not _is_newer(target, files):
        shown = [(file.stem, shape) for file in files if (shape := _read(file)) is not None]
        if not shown:
            return None
        write_atomic(target, _page(shown).encode())
    return Path(VIEWER)


def _is_newer(target: Path, files: Sequence[Path]) -> bool:
    try:
        return target.stat().st_mtime > max(file.stat().st_mtime for file in files)
    except OSError:
        return False


def _read(file: Path) -> trimesh.Trimesh | None:
    """Return a mesh with a small texture; None for what is torn or has no faces."""
    try:
        mesh = trimesh.load_mesh(file)
    except Exception:  # noqa: BLE001  a parser meets anything in a file that a kill cut short
        return None
    if not len(mesh.faces):
        return None
    material: Any = getattr(mesh.visual, "material", None)
    image = getattr(material, "baseColorTexture", None)
    if isinstance(image, Image.Image):
        size = (min(TEXTURE_PX, image.width), min(TEXTURE_PX, image.height))
        material.baseColorTexture = image.convert("RGB").resize(size, Image.Resampling.BOX)
    return mesh


def _page(shapes: Sequence[tuple[str, trimesh.Trimesh]]) -> str:
    """Return a page with the shapes side by side, in rows, seen a little from above."""
    columns = min(COLUMNS, len(shapes))
    scene = trimesh.Scene()
    for number, (name, mesh) in enumerate(shapes):
        row, column = divmod(number, COLUMNS)
        place = [(column - (columns - 1) / 2) * _SPACE, 0.0, row * _SPACE]
        scene.add_geometry(mesh, node_name=name, transform=trimesh.transformations.translation_matrix(place))
    scene.set_camera(angles=(-0.45, 0.25, 0.0), distance=_AWAY * max(scene.extents), fov=(50.0, 30.0))
    html: str = scene_to_html(scene)
    return html.replace("<title>trimesh: threejs viewer</title>", "<title>shapes</title>")

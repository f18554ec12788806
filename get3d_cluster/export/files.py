"""Textured meshes as files other programs open: GLB (glTF 2.0 binary) and OBJ + MTL + PNG.

The same mesh gives the same bytes. Each file is written aside and renamed: a kill leaves no half file.
"""

import io
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image

from get3d_cluster.errors import UsageError
from get3d_cluster.export.mesh import Pixels, TexturedMesh
from get3d_cluster.storage.local import write_atomic

ROUGHNESS = 0.8
"""The colours hold the light of the training images: a matt surface adds the least of its own."""


def write_glb(path: Path, mesh: TexturedMesh) -> None:
    """Write ``mesh`` as one binary glTF file with its texture inside.

    Raises: StorageError if ``path`` cannot be written.
    """
    write_atomic(path, glb_bytes(mesh))


def write_obj(folder: Path, name: str, mesh: TexturedMesh) -> Path:
    """Write ``name``.png, ``name``.mtl and ``name``.obj into ``folder`` and return the last.

    They name each other relatively, so the folder can be moved. The OBJ comes last: once it is there, all is.

    Raises: UsageError if ``name`` cannot stand in an OBJ file; StorageError if ``folder`` cannot be written.
    """
    if not name or not name.isascii() or not all(c.isalnum() or c in "-_." for c in name):
        raise UsageError(f"mesh name {name!r} is not portable", "use letters, digits, '-', '_' and '.' only")
    write_atomic(folder / f"{name}.png", png_bytes(mesh.texture))
    write_atomic(folder / f"{name}.mtl", mtl_text(name).encode())
    write_atomic(folder / f"{name}.obj", obj_text(name, mesh).encode())
    return folder / f"{name}.obj"


def glb_bytes(mesh: TexturedMesh) -> bytes:
    """Return ``mesh`` as binary glTF."""
    material = trimesh.visual.material.PBRMaterial(
        name="surface",
        baseColorTexture=Image.open(io.BytesIO(png_bytes(mesh.texture))),
        metallicFactor=0.0,
        roughnessFactor=ROUGHNESS,
        doubleSided=False,
    )
    surface = trimesh.Trimesh(
        vertices=mesh.vertices,
        faces=mesh.faces,
        vertex_normals=mesh.normals,
        visual=trimesh.visual.TextureVisuals(uv=mesh.uv, material=material),
        process=False,
    )
    scene = trimesh.Scene()
    scene.add_geometry(surface, node_name="shape", geom_name="shape")
    return bytes(scene.export(file_type="glb", include_normals=True))


def obj_text(name: str, mesh: TexturedMesh) -> str:
    """Return ``mesh`` as a Wavefront OBJ that refers to ``name``.mtl."""
    corners = mesh.faces + 1
    lines = [f"mtllib {name}.mtl", f"o {name}"]
    lines += _rows("v %.7g %.7g %.7g", mesh.vertices)
    lines += _rows("vt %.7g %.7g", mesh.uv)
    lines += _rows("vn %.5g %.5g %.5g", mesh.normals)
    lines += [f"usemtl {name}", "s 1"]
    lines += _rows("f %d/%d/%d %d/%d/%d %d/%d/%d", np.repeat(corners, 3, axis=1))
    return "\n".join(lines) + "\n"


def mtl_text(name: str) -> str:
    """Return a matt material whose colour is ``name``.png."""
    return f"newmtl {name}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nd 1\nillum 1\nmap_Kd {name}.png\n"


def png_bytes(pixels: Pixels) -> bytes:
    """Return ``pixels`` [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _rows(pattern: str, values: NDArray[np.generic]) -> list[str]:
    return [pattern % tuple(row) for row in values.tolist()]

"""Meshes as files other programs open: GLB (glTF 2.0 binary), OBJ + MTL + PNG, PLY.

The same mesh gives the same bytes. Each file is written aside and renamed: a kill leaves no half file.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from get3d_cluster.errors import UsageError
from get3d_cluster.export.gltf import glb
from get3d_cluster.export.mesh import Faces, Floats, Pixels, TexturedMesh
from get3d_cluster.storage.local import write_atomic

_PLY_FLOATS = ("x", "y", "z", "nx", "ny", "nz")
_PLY_BYTES = ("red", "green", "blue")


def write_glb(path: Path, mesh: TexturedMesh) -> None:
    """Write ``mesh`` as one binary glTF file with its texture inside; the object is called as the file.

    Raises: StorageError if ``path`` cannot be written.
    """
    write_atomic(path, glb_bytes(mesh, path.stem))


def write_ply(
    path: Path,
    vertices: Floats,  # [V, 3] world
    normals: Floats,  # [V, 3] unit
    colours: Pixels,  # [V, 3] as displayed (sRGB)
    faces: Faces,  # [F, 3] before cutting into charts: the surface in one piece
) -> None:
    """Write a binary PLY whose vertices carry colours: no texture, no seams, nothing beside it.

    Raises: StorageError if ``path`` cannot be written.
    """
    write_atomic(path, ply_bytes(vertices, normals, colours, faces))


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


def glb_bytes(mesh: TexturedMesh, name: str = "shape") -> bytes:
    """Return ``mesh`` as binary glTF."""
    return glb(mesh, png_bytes(mesh.texture), name)


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


def ply_bytes(vertices: Floats, normals: Floats, colours: Pixels, faces: Faces) -> bytes:
    """Return a coloured surface as binary PLY."""
    corners = np.zeros(
        len(vertices), [(name, "<f4") for name in _PLY_FLOATS] + [(name, "u1") for name in _PLY_BYTES]
    )
    for name, column in zip(_PLY_FLOATS, np.concatenate([vertices, normals], axis=1).T, strict=True):
        corners[name] = column
    for name, column in zip(_PLY_BYTES, colours.T, strict=True):
        corners[name] = column
    triangles = np.zeros(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, faces
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment get3d_cluster; Y is up",
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in _PLY_FLOATS),
        *(f"property uchar {name}" for name in _PLY_BYTES),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return "\n".join([*header, ""]).encode() + corners.tobytes() + triangles.tobytes()


def _rows(pattern: str, values: NDArray[np.generic]) -> list[str]:
    return [pattern % tuple(row) for row in values.tolist()]

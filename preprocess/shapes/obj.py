"""Parts as the text of a Wavefront OBJ file."""

from collections.abc import Sequence

import numpy as np

from preprocess.shapes.mesh import Part
from preprocess.shapes.texture import Array

MTL = """newmtl surface
Ka 0 0 0
Kd 1 1 1
Ks 0.04 0.04 0.04
Ns 20
d 1
illum 2
map_Kd ./images/texture.png
"""

_CREASE_DEG = 40.0


def normalised(parts: Sequence[Part]) -> list[Part]:
    """Centre the bounding box of all parts and make its diagonal 1."""
    everything = np.concatenate([part.vertices for part in parts])
    low, high = everything.min(0), everything.max(0)
    centre, diagonal = (low + high) / 2, float(np.linalg.norm(high - low))
    return [Part(vertices=(p.vertices - centre) / diagonal, faces=p.faces, uvs=p.uvs) for p in parts]


def obj_bytes(header: str, parts: Sequence[Part]) -> bytes:
    """Write each part as an object of its own; equal texture coordinates and normals are written once."""
    lines, base = [header, "mtllib model.mtl", "usemtl surface"], 1
    coordinates, normals = _Rows("vt"), _Rows("vn")
    for index, part in enumerate(parts):
        vt = [coordinates.number(f"{u:.5f} {v:.5f}") for u, v in part.uvs.reshape(-1, 2)]
        vn = [normals.number("{:.3f} {:.3f} {:.3f}".format(*n)) for n in _corner_normals(part).reshape(-1, 3)]
        lines.append(f"o part{index}")
        lines += [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in part.vertices]
        lines += coordinates.taken() + normals.taken()
        corners = zip((part.faces + base).reshape(-1), vt, vn, strict=True)
        triples = [f"{a}/{b}/{c}" for a, b, c in corners]
        lines += [f"f {' '.join(triples[k : k + 3])}" for k in range(0, len(triples), 3)]
        base += len(part.vertices)
    return ("\n".join(lines) + "\n").encode()


class _Rows:
    """Rows of one kind in an OBJ file, each written once and numbered from 1."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._numbers: dict[str, int] = {}
        self._num_taken = 0

    def number(self, row: str) -> int:
        return self._numbers.setdefault(row, len(self._numbers) + 1)

    def taken(self) -> list[str]:
        """Return the lines that are new since the last call."""
        rows = list(self._numbers)[self._num_taken :]
        self._num_taken = len(self._numbers)
        return [f"{self._kind} {row}" for row in rows]


def _corner_normals(part: Part) -> Array:
    """Average, at each corner [F, 3, 3], the faces around the vertex that bend less than the crease angle."""
    a, b, c = (part.vertices[part.faces[:, k]] for k in range(3))
    weighted = np.cross(b - a, c - a)
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)
    faces_at: list[list[int]] = [[] for _ in part.vertices]
    for index, face in enumerate(part.faces):
        for vertex in face:
            faces_at[vertex].append(index)
    limit = np.cos(np.radians(_CREASE_DEG))
    normals = np.empty((len(part.faces), 3, 3))
    for index, face in enumerate(part.faces):
        for k, vertex in enumerate(face):
            near = np.array(faces_at[vertex])
            total = weighted[near[unit[near] @ unit[index] > limit]].sum(0)
            normals[index, k] = total / max(float(np.linalg.norm(total)), 1e-12)
    return normals.round(3) + 0.0  # no negative zero

"""A textured mesh as plain values, and what can be said about a surface before it is cut into charts.

Letters: V vertices, F faces, S texture size in pixels. Faces run counter-clockwise from outside; Y is up.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Faces = NDArray[np.int32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class TexturedMesh:
    """A surface cut into charts, with one texture. A vertex on a seam occurs once per chart."""

    vertices: Floats
    """[V, 3] world; Y up"""
    faces: Faces
    """[F, 3]"""
    uv: Floats
    """[V, 2] in [0, 1]; u to the right, v upwards: (0, 0) is the lower left corner of the texture"""
    texture: Pixels
    """[S, S, 3] RGB as displayed (sRGB); row 0 is the top"""
    normals: Floats
    """[V, 3] unit, outward"""

    def __post_init__(self) -> None:
        num_vertices = len(self.vertices)
        assert self.vertices.shape == self.normals.shape == (num_vertices, 3)
        assert self.uv.shape == (num_vertices, 2)
        assert self.faces.ndim == 2
        assert self.faces.shape[1] == 3
        assert self.texture.ndim == 3
        assert self.texture.shape[2] == 3
        assert self.texture.dtype == np.uint8


def is_closed(
    faces: Faces,  # [F, 3] before cutting into charts
) -> bool:
    """Return whether each edge belongs to two faces that run along it in opposite directions.

    No face at all is not closed: there is nothing inside.
    """
    forward, backward = _directed_edges(faces)
    if not forward.size or not is_consistently_wound(faces):
        return False
    return bool(np.array_equal(np.sort(forward), np.sort(backward)))


def is_consistently_wound(
    faces: Faces,  # [F, 3]
) -> bool:
    """Return whether no two faces run along an edge in the same direction and no face uses a vertex twice."""
    forward, backward = _directed_edges(faces)
    return bool(len(np.unique(forward)) == len(forward) and (forward != backward).all())


def signed_volume(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3] closed
) -> float:
    """Return the enclosed volume; negative if the faces look inward."""
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    return float((a * np.cross(b, c)).sum() / 6.0)


def facts_of(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3] before cutting into charts
) -> dict[str, Any]:
    """Return what can be said of a surface in numbers, for JSON."""
    closed = is_closed(faces)
    num_pieces = _num_pieces(len(vertices), faces)
    extent = np.ptp(vertices[np.unique(faces)], axis=0) if len(faces) else np.zeros(3)
    return {
        "num_vertices": len(vertices),
        "num_faces": len(faces),
        "num_pieces": num_pieces,
        "closed": closed,
        # Euler: V - E + F = 2 (pieces - holes); each face has half of three edges
        "num_handles": (2 * num_pieces - len(np.unique(faces)) + len(faces) // 2) // 2 if closed else None,
        "volume": signed_volume(vertices, faces) if closed else None,
        "area": float(np.linalg.norm(face_vectors(vertices, faces), axis=1).sum() / 2.0),
        "extent": [float(each) for each in extent],
    }


def without_slivers(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
) -> Faces:  # [G, 3], G <= F
    """Return the faces that have an area; those of none carry no texture and no direction.

    Marching tetrahedra makes them where the field is exactly 0 on a grid point.
    """
    areas = np.linalg.norm(face_vectors(vertices, faces), axis=1)
    return np.ascontiguousarray(faces[areas > 0.0], np.int32)


def vertex_normals(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3] before cutting into charts, or the seams would show in the shading
) -> Floats:  # [V, 3]
    """Return unit normals, each the mean of the faces around it weighted by area; +Y where there are none."""
    sums = np.zeros((len(vertices), 3))
    np.add.at(sums, faces.ravel(), np.repeat(face_vectors(vertices, faces), 3, axis=0))
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    normals = np.divide(sums, lengths, out=np.tile([0.0, 1.0, 0.0], (len(sums), 1)), where=lengths > 0.0)
    return np.asarray(normals, np.float32)


def face_vectors(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
) -> NDArray[np.float64]:  # [F, 3]
    """Return the normals of faces, each as long as twice the area."""
    a, b, c = vertices[faces].astype(np.float64).transpose(1, 0, 2)
    return np.asarray(np.cross(b - a, c - a))


def _num_pieces(num_vertices: int, faces: Faces) -> int:
    """Return how many parts the surface falls into; vertices of no face are none."""
    ends = faces.astype(np.int64), np.roll(faces, -1, axis=1).astype(np.int64)
    start, end = (each.ravel() for each in ends)
    graph = scipy.sparse.coo_array((np.ones(len(start), bool), (start, end)), shape=(num_vertices,) * 2)
    _, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    return len(np.unique(labels[faces]))


def _directed_edges(faces: Faces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    start = faces.astype(np.int64).ravel()
    end = np.roll(faces.astype(np.int64), -1, axis=1).ravel()
    base = int(faces.max(initial=0)) + 1
    return start * base + end, end * base + start

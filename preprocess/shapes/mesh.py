"""Closed parts of a model.

A part is a *loft*: a row of rings with a cap at each end, so that every part has an inside and an outside.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess.shapes.texture import Array, Chart

CapUvs = Callable[[Array], Array]
"""Maps the points of a cap [N + 1, 3], the centre last, to texture coordinates [N + 1, 2]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A closed triangle mesh, wound outwards."""

    vertices: Array  # [V, 3]
    faces: npt.NDArray[np.int64]  # [F, 3]
    uvs: Array  # [F, 3, 2] per corner, v upwards


def loft(
    rings: Array,  # [S, N, 3]
    side_uvs: Array,  # [S, N, 2]
    first_uvs: CapUvs,
    last_uvs: CapUvs,
) -> Part:
    """Close ``rings`` into a solid."""
    num_rings, n, _ = rings.shape
    ends = [np.concatenate([ring, ring.mean(0, keepdims=True)]) for ring in (rings[0], rings[-1])]
    vertices = np.concatenate([rings.reshape(-1, 3), ends[0][-1:], ends[1][-1:]])
    sides = _side_faces(num_rings, n)
    j, centre = np.arange(n), np.full(n, n)
    first, last = np.stack([np.roll(j, -1), j, centre], -1), np.stack([j, np.roll(j, -1), centre], -1)
    first_faces = np.where(first == n, num_rings * n, first)
    last_faces = np.where(last == n, num_rings * n + 1, last + (num_rings - 1) * n)
    uvs = np.concatenate([side_uvs.reshape(-1, 2)[sides], first_uvs(ends[0])[first], last_uvs(ends[1])[last]])
    return _outwards(vertices, np.concatenate([sides, first_faces, last_faces]), uvs)


def tube(path: Array, radii: Array, chart: Chart, sides: int = 10) -> Part:
    """Make a round bar along ``path`` [S, 3] with one radius a point."""
    axis = path[-1] - path[0]
    axis = axis / np.linalg.norm(axis)
    right = np.cross(axis, [0.0, 0.0, 1.0] if abs(axis[2]) < 0.9 else [0.0, 1.0, 0.0])
    right = right / np.linalg.norm(right)
    angles = around(sides)
    directions = np.cos(angles)[:, None] * right + np.sin(angles)[:, None] * np.cross(axis, right)
    return _wrapped(path[:, None] + radii[:, None, None] * directions, chart)


def box(
    centre: Sequence[float], size: Sequence[float], chart: Chart, bevel: float = 0.02, bend: float = 0.0
) -> Part:
    """Make a box with rounded edges; ``bend`` moves the middle of its X extent along +Z."""
    half = np.asarray(size) / 2
    bevel = min(bevel, 0.45 * 2 * float(half.min()))
    levels = [(-half[1], bevel), (bevel - half[1], 0), (half[1] - bevel, 0), (half[1], bevel)]
    rings = np.stack([_plan(half[0] - inset, half[2] - inset, bevel, y) for y, inset in levels])
    rings[..., 2] += bend * (1 - (rings[..., 0] / half[0]) ** 2)
    return _wrapped(rings + np.asarray(centre), chart)


def moved(part: Part, *, z: Array) -> Part:
    """Shift every vertex along Z."""
    vertices = part.vertices.copy()
    vertices[:, 2] += z
    return Part(vertices=vertices, faces=part.faces, uvs=part.uvs)


def around(sides: int) -> Array:
    """Return the angles of a regular polygon's corners, in radians."""
    return np.arange(sides) * 2 * np.pi / sides


def flat(chart: Chart) -> CapUvs:
    """Give a whole cap the colour in the middle of ``chart``."""
    return lambda points: chart.uv(np.full(len(points), 0.5), np.full(len(points), 0.5))


def _wrapped(rings: Array, chart: Chart) -> Part:
    """Lay the texture along a tube and back again, so that there is no seam."""
    num_rings, n, _ = rings.shape
    there_and_back = np.abs(np.arange(n) - n // 2) / (n // 2)
    side_uvs = chart.uv(*np.meshgrid(there_and_back, np.linspace(0, 1, num_rings)))
    return loft(rings, side_uvs, flat(chart), flat(chart))


def _side_faces(num_rings: int, n: int) -> npt.NDArray[np.int64]:
    grid = np.arange(num_rings * n).reshape(num_rings, n)
    after = np.roll(grid, -1, 1)
    a, b, c, d = grid[:-1], after[:-1], after[1:], grid[1:]
    return np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], 2).reshape(-1, 3)


def _outwards(vertices: Array, faces: npt.NDArray[np.int64], uvs: Array) -> Part:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    if np.einsum("fi,fi->", a, np.cross(b, c)) < 0:
        faces, uvs = faces[:, ::-1], uvs[:, ::-1]
    return Part(vertices=vertices, faces=faces, uvs=uvs)


def _plan(x: float, z: float, bevel: float, y: float) -> Array:
    """Return a rectangle with cut corners, with extra points along X so that it can be bent."""
    front = [(k * (x - bevel), z) for k in (1, 0.5, 0, -0.5, -1)]
    points = [(x, z - bevel), *front, (-x, z - bevel)]
    points += [(-px, -pz) for px, pz in points]
    return np.array([(px, y, pz) for px, pz in points])

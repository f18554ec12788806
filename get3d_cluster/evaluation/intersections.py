"""Faces of one mesh that run through each other. Letters: V vertices, F faces.

Coordinates are rounded to 2^-20 of the longest side of the box around the mesh, about what float32 holds; from there
all is exact: signs of determinants in 64-bit integers, so no tolerance decides, and every machine finds the same.
Boxes are compared by a sweep along the longest side before triangles are.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Faces = NDArray[np.int32]

STEPS = 1 << 20
"""Differences are at most this, so a determinant stays below 3 * 2^61 in size."""


def self_intersections(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
) -> int:
    """Return the number of pairs of faces that have a point in common beyond the vertices and edges they share.

    Touching counts, and so does lying on each other. Faces that rounding leaves without an area are passed over, and
    vertices that it puts at one place count as shared.
    """
    if not len(faces):
        return 0
    places = _rounded(vertices, faces)
    unique, ids = np.unique(places, axis=0, return_inverse=True)
    corners = ids.reshape(-1)[faces].astype(np.int64)
    along, across = (unique[corners[:, i]] - unique[corners[:, 0]] for i in (1, 2))
    normals = np.cross(along, across)
    corners = corners[normals.any(axis=1)]
    if not len(corners):
        return 0
    triangles = unique[corners]  # [F, 3, 3]
    low, high = triangles.min(axis=1), triangles.max(axis=1)
    order = np.argsort(low[:, 0], kind="stable")
    return int(_count(unique, corners[order], low[order], high[order]))


def _rounded(vertices: Floats, faces: Faces) -> Ints:  # [V, 3], the longest side first
    used = vertices[np.unique(faces)]
    low = used.min(axis=0)
    extent = used.max(axis=0) - low
    scale = STEPS / (float(extent.max()) or 1.0)
    axes = np.argsort(-extent, kind="stable")
    inside = ((vertices - low) * scale).clip(0, STEPS)  # vertices without a face may lie anywhere
    return np.ascontiguousarray(np.rint(inside)[:, axes].astype(np.int64))


@njit(cache=True, nogil=True)
def _count(points: Ints, faces: Ints, low: Ints, high: Ints) -> int:  # pragma: no cover - compiled
    found = 0
    for i in range(len(faces)):
        for j in range(i + 1, len(faces)):
            if low[j, 0] > high[i, 0]:
                break
            if (
                low[j, 1] <= high[i, 1]
                and low[i, 1] <= high[j, 1]
                and low[j, 2] <= high[i, 2]
                and low[i, 2] <= high[j, 2]
            ):
                found += _meet(points, faces[i], faces[j])
    return found


@njit(cache=True, nogil=True)
def _meet(points: Ints, a: Ints, b: Ints) -> bool:  # pragma: no cover - compiled
    """Say whether two triangles meet beyond what they share.

    Where they share a vertex only, what else they have in common reaches the edge opposite of it in one of them.
    """
    shared, own_a, own_b = 0, -1, -1
    for i in range(3):
        if a[i] == b[0] or a[i] == b[1] or a[i] == b[2]:
            shared += 1
            own_a = i if shared == 1 else own_a
        if b[i] == a[0] or b[i] == a[1] or b[i] == a[2]:
            own_b = i
    if shared == 3:
        return True
    if shared == 2:
        return _folded(points, a, b)
    if shared == 1:
        return _crosses(points, a[(own_a + 1) % 3], a[(own_a + 2) % 3], b) or _crosses(
            points, b[(own_b + 1) % 3], b[(own_b + 2) % 3], a
        )
    for i in range(3):  # noqa: SIM110  # compiled: no generators
        if _crosses(points, a[i], a[(i + 1) % 3], b) or _crosses(points, b[i], b[(i + 1) % 3], a):
            return True
    return False


@njit(cache=True, nogil=True)
def _folded(points: Ints, a: Ints, b: Ints) -> bool:  # pragma: no cover - compiled
    """Say whether two triangles with a common edge lie on each other: in one plane, on one side of the edge."""
    alone = -1
    for i in range(3):
        if a[i] != b[0] and a[i] != b[1] and a[i] != b[2]:
            alone = i
    other = -1
    for i in range(3):
        if b[i] != a[0] and b[i] != a[1] and b[i] != a[2]:
            other = i
    p, q, r = points[a[(alone + 1) % 3]], points[a[(alone + 2) % 3]], points[a[alone]]
    s = points[b[other]]
    if _volume(p, q, r, s) != 0:
        return False
    axis = _flattest(p, q, r)
    return _sign(_area(p, q, r, axis)) == _sign(_area(p, q, s, axis))


@njit(cache=True, nogil=True)
def _crosses(points: Ints, start: int, end: int, face: Ints) -> bool:  # pragma: no cover - compiled
    """Say whether a closed segment and a closed triangle have a point in common."""
    p, q = points[start], points[end]
    a, b, c = points[face[0]], points[face[1]], points[face[2]]
    above, below = _sign(_volume(a, b, c, p)), _sign(_volume(a, b, c, q))
    if above * below > 0:
        return False
    if above == 0 and below == 0:
        return _crosses_flat(p, q, a, b, c)
    x, y, z = _sign(_volume(p, q, a, b)), _sign(_volume(p, q, b, c)), _sign(_volume(p, q, c, a))
    return not (min(x, y, z) < 0 < max(x, y, z))


@njit(cache=True, nogil=True)
def _crosses_flat(p: Ints, q: Ints, a: Ints, b: Ints, c: Ints) -> bool:  # pragma: no cover - compiled
    """Say the same of a segment in the plane of the triangle."""
    axis = _flattest(a, b, c)
    if _in_triangle(p, a, b, c, axis) or _in_triangle(q, a, b, c, axis):
        return True
    return _cross_flat(p, q, a, b, axis) or _cross_flat(p, q, b, c, axis) or _cross_flat(p, q, c, a, axis)


@njit(cache=True, nogil=True)
def _in_triangle(p: Ints, a: Ints, b: Ints, c: Ints, axis: int) -> bool:  # pragma: no cover - compiled
    x, y, z = _sign(_area(a, b, p, axis)), _sign(_area(b, c, p, axis)), _sign(_area(c, a, p, axis))
    return not (min(x, y, z) < 0 < max(x, y, z))


@njit(cache=True, nogil=True)
def _cross_flat(p: Ints, q: Ints, a: Ints, b: Ints, axis: int) -> bool:  # pragma: no cover - compiled
    """Say whether segments in one plane meet, unless they lie on one line: then an end lies in the triangle."""
    one = _sign(_area(p, q, a, axis)) * _sign(_area(p, q, b, axis))
    two = _sign(_area(a, b, p, axis)) * _sign(_area(a, b, q, axis))
    on_a_line = _area(p, q, a, axis) == 0 and _area(p, q, b, axis) == 0
    if on_a_line:
        return _between(p, q, a) or _between(p, q, b)
    return one <= 0 and two <= 0


@njit(cache=True, nogil=True)
def _between(p: Ints, q: Ints, a: Ints) -> bool:  # pragma: no cover - compiled
    for i in range(3):  # noqa: SIM110  # compiled: no generators
        if a[i] < min(p[i], q[i]) or a[i] > max(p[i], q[i]):
            return False
    return True


@njit(cache=True, nogil=True)
def _flattest(a: Ints, b: Ints, c: Ints) -> int:  # pragma: no cover - compiled
    """Return the axis along which the triangle shows most of its area."""
    best, most = 0, -1
    for axis in range(3):
        size = abs(_area(a, b, c, axis))
        if size > most:
            best, most = axis, size
    return best


@njit(cache=True, nogil=True)
def _area(a: Ints, b: Ints, c: Ints, axis: int) -> int:  # pragma: no cover - compiled
    i, j = (axis + 1) % 3, (axis + 2) % 3
    return int((b[i] - a[i]) * (c[j] - a[j]) - (b[j] - a[j]) * (c[i] - a[i]))


@njit(cache=True, nogil=True)
def _volume(a: Ints, b: Ints, c: Ints, d: Ints) -> int:  # pragma: no cover - compiled
    """Return six times the volume of a tetrahedron."""
    x, y, z = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    e0, e1, e2 = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    f0, f1, f2 = d[0] - a[0], d[1] - a[1], d[2] - a[2]
    return int(x * (e1 * f2 - e2 * f1) - y * (e0 * f2 - e2 * f0) + z * (e0 * f1 - e1 * f0))


@njit(cache=True, nogil=True)
def _sign(value: int) -> int:  # pragma: no cover - compiled
    return (value > 0) - (value < 0)

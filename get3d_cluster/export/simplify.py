"""Fewer faces for nearly the same surface; what is closed stays closed, what is a manifold stays one.

Edges are collapsed, the cheapest by quadric error first (Garland and Heckbert 1997, "Surface simplification using
quadric error metrics"). A collapse is refused if it would change the topology (the link condition: Dey et al. 1999,
"Topology preserving edge contraction"), turn a face over, or touch an open border. Letters: V vertices, F faces.
"""

import heapq
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from get3d_cluster.export.mesh import Faces, Floats, face_vectors

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

FEWEST_FACES = 4
"""A tetrahedron: no closed surface has fewer."""
LEAST_COSINE = 0.2
"""A face may turn by so much in one collapse (78 degrees)."""
LEAST_QUALITY = 0.02
"""Twice the area over the squared longest edge: needles below this are not made, unless they were there before."""
LEAST_DETERMINANT = 1e-12
"""Of a form, relative to its size: below, its planes meet in no single point."""
SHAPE_WEIGHT = 1e-5
"""What the distance to a vertex weighs against that to its planes: vertices do not drift along flat parts."""


class _Surface(NamedTuple):
    """What compiled code changes. A corner is a number: 3 face + place in it."""

    places: Doubles  # [V, 3]
    quadrics: Doubles  # [V, 10] upper triangles of symmetric 4x4 forms
    corners: Ints  # [F, 3] vertices
    is_alive: NDArray[np.bool_]  # [F]
    first: Ints  # [V] first corner of a vertex; -1: none
    following: Ints  # [3 F] the next corner of the same vertex; -1: it was the last
    version: Ints  # [V] how often a vertex moved; -1: it is gone
    mark: Ints  # [V] when it was last looked at


def simplified(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3] each edge on one or two faces
    max_faces: int,
) -> tuple[Floats, Faces]:  # [W, 3], [G, 3]
    """Return a surface of at most ``max_faces`` faces, or of as few as its topology and its borders allow.

    A surface that is small enough comes back as it is. The same input gives the same bits.
    """
    if len(faces) <= max_faces:
        return vertices, faces
    places, corners = vertices.astype(np.float64), faces.astype(np.int64)
    surface = _Surface(
        places=places,
        quadrics=_quadrics(vertices, faces),
        corners=corners,
        is_alive=np.ones(len(faces), np.bool_),
        first=np.full(len(vertices), -1, np.int64),
        following=np.full(corners.size, -1, np.int64),
        version=np.zeros(len(vertices), np.int64),
        mark=np.zeros(len(vertices), np.int64),
    )
    _collapse(surface, max(max_faces, FEWEST_FACES))
    kept = corners[surface.is_alive]
    used = np.unique(kept)
    numbers = np.zeros(len(places), np.int32)
    numbers[used] = np.arange(len(used), dtype=np.int32)
    return places[used].astype(np.float32), np.ascontiguousarray(numbers[kept])


def _quadrics(vertices: Floats, faces: Faces) -> Doubles:  # [V, 10]
    """Return for each vertex the sum over its faces of area times squared distance, as a symmetric 4x4 form."""
    doubled = face_vectors(vertices, faces)
    areas = np.linalg.norm(doubled, axis=1, keepdims=True)
    normals = np.divide(doubled, areas, out=np.zeros_like(doubled), where=areas > 0.0)
    offsets = -(normals * vertices[faces[:, 0]]).sum(axis=1, keepdims=True)
    own = _products(np.concatenate([normals, offsets], axis=1)) * areas / 2.0
    sums = np.zeros((len(vertices), 10))
    shares = np.zeros((len(vertices), 1))
    np.add.at(sums, faces.ravel(), np.repeat(own, 3, axis=0))
    np.add.at(shares, faces.ravel(), np.repeat(areas / 2.0, 3, axis=0))
    return sums + SHAPE_WEIGHT * shares * _distances(vertices.astype(np.float64))


def _products(planes: Doubles) -> Doubles:  # [F, 4] -> [F, 10]
    rows, columns = np.triu_indices(4)
    return np.asarray(planes[:, rows] * planes[:, columns])


def _distances(points: Doubles) -> Doubles:  # [V, 3] -> [V, 10]
    """Return the forms of the squared distances to points."""
    one, zero = np.ones(len(points)), np.zeros(len(points))
    x, y, z = points.T
    square = (points * points).sum(axis=1)
    return np.stack([one, zero, zero, -x, one, zero, -y, one, -z, square], axis=1)


@njit(cache=True, nogil=True)
def _collapse(s: _Surface, target: int) -> None:
    """Collapse edges until ``target`` faces are left, or nothing can be collapsed any more."""
    for c in range(s.corners.size - 1, -1, -1):
        v = s.corners[c // 3, c % 3]
        s.following[c], s.first[v] = s.first[v], c
    place, stamp, left = np.zeros(3), 0, len(s.corners)
    heap = _all_edges(s, place)
    while left > target and len(heap) > 0:
        _, a, b, version_a, version_b = heapq.heappop(heap)
        if s.version[a] != version_a or s.version[b] != version_b:
            continue
        stamp += 3  # two are used by the check of the topology, one below
        if not _keeps_topology(s, a, b, stamp):
            continue
        _best_place(s, a, b, place)
        if not (_keeps_faces(s, a, b, place) and _keeps_faces(s, b, a, place)):
            continue
        left -= _merge(s, a, b)
        s.places[a] = place
        s.quadrics[a] += s.quadrics[b]
        s.version[a] += 1
        s.version[b] = -1
        _offer(heap, s, a, stamp + 2, place)


@njit(cache=True, nogil=True)
def _all_edges(s, place):  # type: ignore[no-untyped-def]  # a heap of numba's own type
    heap = [(0.0, np.int64(0), np.int64(0), np.int64(0), np.int64(0))]
    heap.clear()
    for f in range(len(s.corners)):
        for k in range(3):
            a, b = s.corners[f, k], s.corners[f, (k + 1) % 3]
            if a < b:  # the face across the edge has b < a; on an open border nothing is collapsed anyway
                heap.append((_best_place(s, a, b, place), a, b, np.int64(0), np.int64(0)))
    heapq.heapify(heap)
    return heap


@njit(cache=True, nogil=True)
def _offer(heap, s, a, stamp, place):  # type: ignore[no-untyped-def]  # a heap of numba's own type
    """Put the edges of ``a`` into the heap with what they cost now."""
    c = s.first[a]
    while c >= 0:
        f = c // 3
        if s.is_alive[f]:
            for k in range(3):
                v = s.corners[f, k]
                if v != a and s.mark[v] != stamp:
                    s.mark[v] = stamp
                    low, high = min(a, v), max(a, v)
                    cost = _best_place(s, low, high, place)
                    heapq.heappush(heap, (cost, low, high, s.version[low], s.version[high]))
        c = s.following[c]


@njit(cache=True, nogil=True)
def _best_place(s: _Surface, a: int, b: int, place: Doubles) -> float:
    """Put the point of least error into ``place`` and return its error; the middle if there is no single one."""
    q = s.quadrics[a] + s.quadrics[b]
    c0 = q[4] * q[7] - q[5] * q[5]
    c1 = q[2] * q[5] - q[1] * q[7]
    c2 = q[1] * q[5] - q[2] * q[4]
    det = q[0] * c0 + q[1] * c1 + q[2] * c2
    scale = q[0] + q[4] + q[7]
    if det > LEAST_DETERMINANT * scale * scale * scale:
        c4 = q[0] * q[7] - q[2] * q[2]
        c5 = q[1] * q[2] - q[0] * q[5]
        c8 = q[0] * q[4] - q[1] * q[1]
        place[0] = -(c0 * q[3] + c1 * q[6] + c2 * q[8]) / det
        place[1] = -(c1 * q[3] + c4 * q[6] + c5 * q[8]) / det
        place[2] = -(c2 * q[3] + c5 * q[6] + c8 * q[8]) / det
    else:
        place[:] = 0.5 * (s.places[a] + s.places[b])
    return _error(q, place[0], place[1], place[2])


@njit(cache=True, nogil=True)
def _error(q: Doubles, x: float, y: float, z: float) -> float:
    square = q[0] * x * x + q[4] * y * y + q[7] * z * z + q[9]
    mixed = q[1] * x * y + q[2] * x * z + q[5] * y * z
    error: float = square + 2.0 * (mixed + q[3] * x + q[6] * y + q[8] * z)
    return max(error, 0.0)


@njit(cache=True, nogil=True)
def _keeps_topology(s: _Surface, a: int, b: int, stamp: int) -> bool:
    """Say whether the ends share two faces, and no neighbours but the two beyond these, each with faces to spare.

    A vertex of three faces beyond the edge would be left with two that lie on each other.
    """
    if _mark_around(s, a, b, stamp) != 2:
        return False
    num_common = 0
    c = s.first[b]
    while c >= 0:
        f = c // 3
        if s.is_alive[f]:
            for k in range(3):
                v = s.corners[f, k]
                if v not in (a, b) and s.mark[v] == stamp:
                    s.mark[v] = stamp + 1
                    num_common += 1
                    if _num_faces_of(s, v) <= 3:
                        return False
        c = s.following[c]
    return num_common == 2 and _is_inner(s, a) and _is_inner(s, b)


@njit(cache=True, nogil=True)
def _mark_around(s: _Surface, a: int, b: int, stamp: int) -> int:
    """Mark the neighbours of ``a``; return how many of its faces have ``b``, too."""
    num_shared = 0
    c = s.first[a]
    while c >= 0:
        f = c // 3
        if s.is_alive[f]:
            for k in range(3):
                s.mark[s.corners[f, k]] = stamp
                num_shared += s.corners[f, k] == b
        c = s.following[c]
    return num_shared


@njit(cache=True, nogil=True)
def _num_faces_of(s: _Surface, v: int) -> int:
    count = 0
    c = s.first[v]
    while c >= 0:
        count += s.is_alive[c // 3]
        c = s.following[c]
    return count


@njit(cache=True, nogil=True)
def _is_inner(s: _Surface, v: int) -> bool:
    """Say whether each edge that leaves the vertex in a face comes back in another: it lies on no open border."""
    leaving, coming = np.int64(0), np.int64(0)
    c = s.first[v]
    while c >= 0:
        f, k = c // 3, c % 3
        if s.is_alive[f]:
            after, before = s.corners[f, (k + 1) % 3], s.corners[f, (k + 2) % 3]
            leaving += (
                after + after * after
            )  # sums instead of sets: at a border they differ by one vertex or two
            coming += before + before * before
        c = s.following[c]
    return bool(leaving == coming)


@njit(cache=True, nogil=True)
def _keeps_faces(s: _Surface, moved: int, other: int, place: Doubles) -> bool:
    """Say whether the faces around ``moved``, but those at the edge, neither turn over nor become needles."""
    c = s.first[moved]
    while c >= 0:
        f, k = c // 3, c % 3
        p, q = s.corners[f, (k + 1) % 3], s.corners[f, (k + 2) % 3]
        if s.is_alive[f] and other not in (p, q):
            before, was = _face(s.places[moved], s.places[p], s.places[q])
            after, quality = _face(place, s.places[p], s.places[q])
            lengths = np.sqrt((before * before).sum() * (after * after).sum())
            if lengths > 0.0 and (before * after).sum() < LEAST_COSINE * lengths:
                return False
            if quality < min(LEAST_QUALITY, was):
                return False
        c = s.following[c]
    return True


@njit(cache=True, nogil=True)
def _face(a: Doubles, b: Doubles, c: Doubles) -> tuple[Doubles, float]:
    """Return twice the area as a vector, and its length over the squared longest edge."""
    u, v, w = b - a, c - a, c - b
    doubled = np.array([u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]])
    longest = max((u * u).sum(), (v * v).sum(), (w * w).sum())
    return doubled, np.sqrt((doubled * doubled).sum()) / longest if longest > 0.0 else 0.0


@njit(cache=True, nogil=True)
def _merge(s: _Surface, a: int, b: int) -> int:
    """Hand the faces of ``b`` to ``a``; return how many went with the edge."""
    num_gone = 0
    last = c = s.first[b]
    while c >= 0:
        f, k = c // 3, c % 3
        if s.is_alive[f]:
            if a in (s.corners[f, (k + 1) % 3], s.corners[f, (k + 2) % 3]):
                s.is_alive[f] = False
                num_gone += 1
            else:
                s.corners[f, k] = a
        last, c = c, s.following[c]
    s.following[last] = s.first[a]  # corners of dead faces stay in the list and are passed over
    s.first[a], s.first[b] = s.first[b], -1
    return num_gone

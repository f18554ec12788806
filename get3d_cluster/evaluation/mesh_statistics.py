"""What a surface is like as a mesh: closed, in how many parts, of what genus, how well triangulated.

Letters: V vertices, F faces, E edges. Vertices at one place should be one: see ``welded``.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from get3d_cluster.evaluation.intersections import self_intersections

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Faces = NDArray[np.int32]

FLAT = 1e-6
"""A face whose height is at most this share of its longest edge is degenerate."""
SHARP_DEG = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshStatistics:
    """Facts of one mesh. Angles, aspects and shares are of the faces that are not degenerate; 0 without any."""

    num_vertices: int
    num_faces: int
    watertight: bool
    """Each edge belongs to two faces, which run along it in opposite directions."""
    components: int
    """Parts that hang together by edges."""
    genus: int | None
    """Sum over the parts; None unless watertight."""
    self_intersections: int
    """Pairs of faces that meet where they are not joined."""
    degenerate_faces: int
    min_angle_deg: float
    """Mean over faces of the smallest angle: 60 at best."""
    sharp_faces: float
    """Share of the faces with an angle below 10 degrees."""
    aspect: float
    """Median of longest edge / (2 sqrt 3 inner radius): 1 at best."""
    area: float
    volume: float | None
    """Enclosed, negative if the faces look inward; None unless watertight."""


def statistics_of(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
) -> MeshStatistics:
    """Return the facts of a mesh, whose vertices are joined as the faces say."""
    points = np.asarray(vertices, np.float64)
    num_parts, num_fans, closed = _topology(faces)
    closed = closed and len(faces) > 0
    angles, aspects, flat = _quality(points, faces)
    good = ~flat
    a, b, c = points[faces].transpose(1, 0, 2)
    return MeshStatistics(
        num_vertices=len(np.unique(faces)),
        num_faces=len(faces),
        watertight=closed,
        components=num_parts,
        genus=_genus(num_parts, num_fans, len(faces)) if closed else None,
        self_intersections=self_intersections(points, faces),
        degenerate_faces=int(flat.sum()),
        min_angle_deg=float(angles[good].mean()) if good.any() else 0.0,
        sharp_faces=float((angles[good] < SHARP_DEG).mean()) if good.any() else 0.0,
        aspect=float(np.median(aspects[good])) if good.any() else 0.0,
        area=float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2),
        volume=float((a * np.cross(b, c)).sum() / 6) if closed else None,
    )


def welded(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
) -> tuple[Floats, Faces]:
    """Make vertices at exactly one place one, as files that are cut into charts need it."""
    places, first = np.unique(np.asarray(vertices, np.float64) + 0.0, axis=0, return_inverse=True)
    return places, first.reshape(-1)[faces].astype(np.int32)


def summary_of(rows: list[MeshStatistics]) -> dict[str, float]:
    """Return the mean of each fact over shapes; genus and volume over those that are watertight.

    ``without_self_intersections`` is the share of the shapes that have none.
    """
    found: dict[str, float] = {}
    for name in MeshStatistics.__dataclass_fields__:
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        if values:
            found[name] = float(np.mean(np.asarray(values, np.float64)))
    found["without_self_intersections"] = float(np.mean([not row.self_intersections for row in rows]))
    return found


def as_row(statistics: MeshStatistics) -> dict[str, Any]:
    """Return the facts as JSON values."""
    return asdict(statistics)


def _genus(num_parts: int, num_fans: int, num_faces: int) -> int:
    """Return the sum of the genera of closed surfaces from Euler's formula; E = 3/2 F.

    Vertices are counted once for each fan of faces around them, so two parts that touch in a point are two surfaces.
    """
    euler = num_fans - 3 * num_faces // 2 + num_faces
    return (2 * num_parts - euler) // 2


def _topology(faces: Faces) -> tuple[int, int, bool]:
    """Return the number of parts, of fans of faces around vertices, and whether the surface is closed."""
    start, end = faces.astype(np.int64).ravel(), np.roll(faces.astype(np.int64), -1, axis=1).ravel()
    base = int(faces.max(initial=0)) + 1
    forward, backward = start * base + end, end * base + start
    one_way = len(np.unique(forward)) == len(forward) and bool((forward != backward).all())
    closed = one_way and bool(np.array_equal(np.sort(forward), np.sort(backward)))
    first, second = _pairs_at_edges(np.minimum(forward, backward))
    count = len(faces)
    parts = _connected(first // 3, second // 3, count)
    # The corners at one end of a shared edge belong to one fan, and those at the other end to another.
    after = [half // 3 * 3 + (half + 1) % 3 for half in (first, second)]
    same_way = start[first] == start[second]
    ends = np.where(same_way, second, after[1]), np.where(same_way, after[1], second)
    fans = _connected(np.concatenate([first, after[0]]), np.concatenate(ends), 3 * count)
    return parts, fans, closed


def _pairs_at_edges(edges: Ints) -> tuple[Ints, Ints]:
    """Return half-edges [3 F] that share an edge, each with the next one there."""
    order = np.argsort(edges, kind="stable")
    same = np.flatnonzero(np.diff(edges[order]) == 0)
    return order[same], order[same + 1]


def _connected(a: Ints, b: Ints, count: int) -> int:
    if not count:
        return 0
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    return int(connected_components(graph, directed=False, return_labels=False))


def _quality(points: Floats, faces: Faces) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the smallest angle in degrees, the aspect, and whether it is degenerate, of each face."""
    corners = points[faces]
    lengths = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2)  # [F, 3]
    doubled = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    longest, shortest = lengths.max(axis=1, initial=0), lengths.min(axis=1, initial=np.inf)
    flat = doubled <= FLAT * longest**2
    safe = np.where(flat, 1.0, doubled)
    # The smallest angle lies opposite of the shortest edge, between the two others.
    others = lengths.prod(axis=1) / np.where(flat, 1.0, shortest)
    angles = np.degrees(np.arcsin((safe / np.where(flat, 1.0, others)).clip(0, 1)))
    aspects = longest * lengths.sum(axis=1) / (2 * np.sqrt(3) * safe)  # inner radius = doubled / perimeter
    return angles, aspects, flat

"""Facts of meshes whose answers are known."""

from itertools import permutations, product

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from get3d_cluster.evaluation.intersections import STEPS, _volume, self_intersections
from get3d_cluster.evaluation.mesh_statistics import statistics_of, summary_of, welded


def mesh(shape: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(shape.vertices, np.float64), np.asarray(shape.faces, np.int32)


def together(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *(len(verts) for verts, _ in parts)])
    faces = [faces + start for (_, faces), start in zip(parts, starts, strict=False)]
    return np.concatenate([verts for verts, _ in parts]), np.concatenate(faces).astype(np.int32)


def moved(part: tuple[np.ndarray, np.ndarray], *by: float) -> tuple[np.ndarray, np.ndarray]:
    return part[0] + np.array(by), part[1]


CUBE = mesh(trimesh.creation.box([2, 2, 2]))
TORUS = mesh(trimesh.creation.torus(1.0, 0.3, major_sections=24, minor_sections=12))
SPHERE = mesh(trimesh.creation.icosphere(2))


def test_a_cube() -> None:
    found = statistics_of(*CUBE)
    assert (found.num_vertices, found.num_faces, found.watertight) == (8, 12, True)
    assert (found.components, found.genus, found.self_intersections, found.degenerate_faces) == (1, 0, 0, 0)
    assert (found.volume, found.area) == (pytest.approx(8), pytest.approx(24))
    assert found.min_angle_deg == pytest.approx(45)
    assert found.sharp_faces == 0
    # Right triangle with legs 1: inner radius 1 - 1 / sqrt 2, longest edge sqrt 2.
    assert found.aspect == pytest.approx(np.sqrt(2) / (2 * np.sqrt(3) * (1 - 1 / np.sqrt(2))))


def test_an_equilateral_triangle_is_best() -> None:
    verts = np.array([[0, 0, 0], [1, 0, 0], [0.5, np.sqrt(3) / 2, 0]])
    found = statistics_of(verts, np.int32([[0, 1, 2]]))
    assert (found.aspect, found.min_angle_deg) == (pytest.approx(1), pytest.approx(60))
    assert (found.watertight, found.genus, found.volume, found.components) == (False, None, None, 1)


@pytest.mark.parametrize(
    ("parts", "components", "genus"),
    [
        ([TORUS], 1, 1),
        ([SPHERE, moved(SPHERE, 3, 0, 0)], 2, 0),
        ([TORUS, moved(TORUS, 5, 0, 0), moved(CUBE, 10, 0, 0)], 3, 2),
    ],
)
def test_parts_and_their_holes(parts: list, components: int, genus: int) -> None:
    found = statistics_of(*together(*parts))
    assert (found.watertight, found.components, found.genus) == (True, components, genus)
    assert found.self_intersections == 0


def test_an_inward_surface_has_a_negative_volume_and_a_hole_none() -> None:
    verts, faces = CUBE
    assert statistics_of(verts, faces[:, ::-1]).volume == pytest.approx(-8)
    opened = statistics_of(verts, faces[1:])
    assert (opened.watertight, opened.genus, opened.volume) == (False, None, None)
    flipped = faces.copy()
    flipped[0] = flipped[0, ::-1]
    assert not statistics_of(verts, flipped).watertight


def test_two_cubes_that_touch_in_a_vertex_are_two_closed_surfaces() -> None:
    verts, faces = welded(*together(CUBE, moved(CUBE, 2, 2, 2)))
    assert len(verts) == 15
    found = statistics_of(verts, faces)
    assert (found.watertight, found.components, found.genus, found.self_intersections) == (True, 2, 0, 0)


def test_a_mesh_that_is_cut_into_charts_is_welded() -> None:
    verts, faces = CUBE
    apart = verts[faces].reshape(-1, 3), np.arange(36, dtype=np.int32).reshape(-1, 3)
    assert statistics_of(*apart).components == 12
    found = statistics_of(*welded(*apart))
    assert (found.num_vertices, found.components, found.watertight) == (8, 1, True)


def test_degenerate_faces_are_counted_and_spoil_no_mean() -> None:
    verts = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0, 0], [2, 0, 0]], np.float64)
    found = statistics_of(verts, np.int32([[0, 1, 2], [0, 3, 1], [1, 1, 2], [0, 4, 1]]))
    assert found.degenerate_faces == 3
    assert found.min_angle_deg == pytest.approx(45)
    nothing = statistics_of(verts, np.zeros((0, 3), np.int32))
    assert (nothing.num_faces, nothing.watertight, nothing.components, nothing.volume) == (0, False, 0, None)


def test_sharp_faces() -> None:
    verts = np.array([[0, 0, 0], [1, 0, 0], [1, 0.1, 0], [0, 1, 0]], np.float64)
    found = statistics_of(verts, np.int32([[0, 1, 2], [0, 1, 3]]))
    assert found.sharp_faces == 0.5
    assert found.min_angle_deg == pytest.approx((45 + np.degrees(np.arctan(0.1))) / 2)


def pair(a: list, b: list) -> int:
    return self_intersections(np.array(a + b, np.float64), np.int32([[0, 1, 2], [3, 4, 5]]))


FLOOR = [[0, 0, 0], [4, 0, 0], [0, 4, 0]]


@pytest.mark.parametrize(
    ("other", "meets"),
    [
        ([[1, 1, -1], [1, 1, 1], [2, 1, 1]], True),  # through the middle
        ([[1, 1, 0.01], [1, 1, 1], [2, 1, 1]], False),  # just above
        ([[1, 1, 0], [1, 1, 1], [2, 1, 1]], True),  # a vertex on it
        ([[0, 2, 0], [-1, 2, 1], [-1, 2, 2]], True),  # a vertex on its edge
        ([[3, 3, -1], [3, 3, 1], [4, 3, 1]], False),  # beside it, boxes overlap
        ([[1, 1, 0], [1.5, 1, 0], [1, 1.5, 0]], True),  # inside, in its plane
        ([[-1, -1, 0], [9, -1, 0], [-1, 9, 0]], True),  # around it, in its plane
        ([[2.5, 2.5, 0], [4, 3, 0], [3, 4, 0]], False),  # beside it, in its plane
        ([[1, 0, 0], [3, 0, 0], [2, -1, 0]], True),  # along a part of its edge, in its plane
        ([[5, 0, 0], [6, 0, 0], [5, -1, 0]], False),  # on the line of its edge
        ([[-1, 1, 0], [5, 1, 0], [5, 1, 3]], True),  # an edge straight across, in its plane
    ],
)
def test_two_triangles(other: list, meets: bool) -> None:
    assert pair(FLOOR, other) == meets
    assert pair(other, FLOOR) == meets
    turned = [point[1:] + point[:1] for point in FLOOR + other]
    assert pair(turned[:3], turned[3:]) == meets


def test_what_joined_triangles_share_is_no_intersection_but_more_is() -> None:
    verts = np.array(
        [[0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 0], [1, 0.5, 0], [0, 0, 2], [2, 2, 2], [1, 1, -1]]
    )
    assert self_intersections(verts, np.int32([[0, 1, 2], [1, 3, 2]])) == 0  # a flat quad
    assert self_intersections(verts, np.int32([[0, 1, 2], [0, 1, 4]])) == 1  # folded onto it
    assert self_intersections(verts, np.int32([[0, 1, 2], [0, 1, 5]])) == 0  # bent at an edge
    assert self_intersections(verts, np.int32([[0, 1, 2], [0, 5, 6]])) == 0  # joined at a vertex, above
    assert self_intersections(verts, np.int32([[0, 1, 2], [0, 6, 7]])) == 1  # joined there, and through it
    assert self_intersections(verts, np.int32([[0, 1, 2], [2, 1, 0]])) == 1  # back to back


def test_crossing_quads_and_meshes() -> None:
    quad = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float64)
    faces = np.int32([[0, 1, 2], [0, 2, 3]])
    upright = quad[:, [2, 0, 1]] + [0.1, 0, 0.05]
    assert self_intersections(*together((quad, faces), (upright, faces))) in (2, 3)
    assert self_intersections(*together(CUBE, moved(CUBE, 5, 0, 0))) == 0
    inner = (0.5 * CUBE[0], CUBE[1])
    assert self_intersections(*together(CUBE, inner)) == 0  # one inside the other, apart
    assert self_intersections(*together(CUBE, moved(CUBE, 0.7, 0.9, 1.1))) > 10


def crossing_share(a: np.ndarray, b: np.ndarray) -> float:
    """Return how deep an edge of either goes through the other: the oracle, by solving for the point."""
    best = -np.inf
    for triangle, other in ((a, b), (b, a)):
        for i in range(3):
            p, q = other[i], other[(i + 1) % 3]
            system = np.stack([triangle[1] - triangle[0], triangle[2] - triangle[0], p - q], axis=1)
            u, v, t = np.linalg.solve(system, p - triangle[0])
            best = max(best, min(u, v, 1 - u - v, t, 1 - t))
    return best


@given(st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_random_triangles_meet_where_linear_algebra_says_so(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 3, 3))
    share = crossing_share(a, b)
    if abs(share) > 1e-4:
        assert self_intersections(np.concatenate([a, b]), np.int32([[0, 1, 2], [3, 4, 5]])) == (share > 0)


def test_the_sweep_misses_no_pair() -> None:
    rng = np.random.default_rng(1)
    triangles = 0.5 * rng.random((40, 1, 3)) + 0.6 * rng.random((40, 3, 3))
    verts, faces = triangles.reshape(-1, 3), np.arange(120, dtype=np.int32).reshape(-1, 3)
    expected = sum(crossing_share(triangles[i], triangles[j]) > 0 for i in range(40) for j in range(i))
    assert expected > 20
    assert self_intersections(verts, faces) == expected


def test_the_largest_determinants_do_not_overflow() -> None:
    corners = np.array(list(product((0, STEPS), repeat=3)), np.int64)
    for a, b, c, d in permutations(range(8), 4):
        exact = np.array(corners[[b, c, d]] - corners[a]).astype(object)
        expected = int(exact[0] @ np.cross(exact[1], exact[2]))
        assert _volume(*(corners[each] for each in (a, b, c, d))) == expected


@pytest.mark.parametrize("scale", [1.0, 1e20, 1e-20])
def test_the_scale_of_a_mesh_does_not_matter(scale: float) -> None:
    verts, faces = together(CUBE, moved(CUBE, 0.7, 0.9, 1.1))
    assert self_intersections(verts * scale, faces) == self_intersections(verts, faces)


def test_the_summary_is_the_mean_and_leaves_out_what_open_meshes_lack() -> None:
    closed, opened = statistics_of(*TORUS), statistics_of(CUBE[0], CUBE[1][1:])
    found = summary_of([closed, opened])
    assert found["watertight"] == 0.5
    assert found["genus"] == 1
    assert found["num_faces"] == (closed.num_faces + 11) / 2
    assert found["without_self_intersections"] == 1

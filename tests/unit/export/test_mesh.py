import numpy as np
import pytest
import trimesh

from get3d_cluster.export.mesh import (
    is_closed,
    is_consistently_wound,
    signed_volume,
    vertex_normals,
    without_slivers,
)

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]], np.int32)
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)


def torus() -> tuple[np.ndarray, np.ndarray]:
    mesh = trimesh.creation.torus(0.4, 0.1, major_sections=12, minor_sections=8)
    return np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)


def test_a_tetrahedron_and_a_torus_are_closed() -> None:
    assert is_closed(TETRAHEDRON)
    assert is_closed(torus()[1])


@pytest.mark.parametrize("missing", range(4))
def test_a_hole_is_found_wherever_it_is(missing: int) -> None:
    open_surface = np.delete(TETRAHEDRON, missing, axis=0)
    assert not is_closed(open_surface)
    assert is_consistently_wound(open_surface)


@pytest.mark.parametrize("turned", range(4))
def test_a_single_turned_face_is_found(turned: int) -> None:
    faces = TETRAHEDRON.copy()
    faces[turned] = faces[turned, ::-1]
    assert not is_consistently_wound(faces)
    assert not is_closed(faces)


def test_a_surface_turned_inside_out_is_closed_with_negative_volume() -> None:
    assert is_closed(TETRAHEDRON[:, ::-1])
    assert signed_volume(CORNERS, TETRAHEDRON) == pytest.approx(1 / 6)
    assert signed_volume(CORNERS, TETRAHEDRON[:, ::-1]) == pytest.approx(-1 / 6)


def test_three_faces_at_one_edge_are_not_closed() -> None:
    assert not is_closed(np.vstack([TETRAHEDRON, [[0, 1, 4]], [[1, 0, 4]]]))


def test_a_face_that_uses_a_vertex_twice_is_not_closed() -> None:
    assert not is_closed(np.array([[0, 0, 1], [1, 0, 0]]))


def test_no_faces_are_not_closed() -> None:
    assert not is_closed(np.zeros((0, 3), np.int32))


def test_the_volume_does_not_depend_on_where_the_mesh_stands() -> None:
    assert signed_volume(CORNERS + np.float32(7), TETRAHEDRON) == pytest.approx(1 / 6, rel=1e-5)


def test_faces_without_area_are_left_out() -> None:
    faces = np.array([[0, 1, 2], [0, 0, 1], [0, 1, 4]], np.int32)
    vertices = np.vstack([CORNERS, [[2, 0, 0]]]).astype(np.float32)  # vertex 4 in line with 0 and 1
    np.testing.assert_array_equal(without_slivers(vertices, faces), [[0, 1, 2]])


def test_normals_of_a_sphere_point_away_from_its_centre() -> None:
    sphere = trimesh.creation.icosphere(3)
    vertices = np.asarray(sphere.vertices, np.float32)
    normals = vertex_normals(vertices, np.asarray(sphere.faces, np.int32))
    assert (normals * vertices).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)


def test_normals_are_weighted_by_area() -> None:
    # a large face looks up, a tiny one sideways; their shared vertex looks up
    vertices = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0.01, 0]], np.float32)
    normal = vertex_normals(vertices, np.array([[0, 1, 2], [0, 3, 1]], np.int32))[0]
    assert abs(normal[1]) > 0.99


def test_a_vertex_of_no_face_has_a_usable_normal() -> None:
    assert vertex_normals(CORNERS, TETRAHEDRON[:0]).tolist() == [[0, 1, 0]] * 4

"""Surfaces with fewer faces: still closed, still of the same topology, still where they were."""

import numpy as np
import pytest
import torch
import trimesh

from get3d_cluster.export.atlas import textured_mesh
from get3d_cluster.export.mesh import facts_of, is_closed, signed_volume
from get3d_cluster.export.simplify import simplified
from get3d_cluster.get3d import tets

Mesh = tuple[np.ndarray, np.ndarray]


def bumpy(seed: int, cells: int = 10) -> Mesh:
    """Return what marching tetrahedra make of a ball with waves: slivers, handles, several pieces."""
    grid = tets.bcc_grid(cells)
    draws = torch.Generator().manual_seed(seed)
    waves, heights = torch.randn(12, 3, generator=draws) * 9, torch.randn(12, generator=draws)
    sdf = 0.3 - grid.vertices.norm(dim=1) + 0.05 * (torch.sin(grid.vertices @ waves.T) * heights).sum(dim=1)
    sdf = tets.close_boundary(sdf[None], grid)
    vertices, faces = tets.marching_tets(grid.vertices[None], sdf, grid).mesh(0)
    return vertices.numpy().astype(np.float32), faces.numpy().astype(np.int32)


def of(mesh: trimesh.Trimesh) -> Mesh:
    return np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int32)


@pytest.mark.parametrize("seed", range(8))
def test_what_was_closed_stays_closed_and_keeps_its_pieces_and_handles(seed: int) -> None:
    vertices, faces = bumpy(seed)
    before = facts_of(vertices, faces)
    fewer_vertices, fewer = simplified(vertices, faces, len(faces) // 4)
    after = facts_of(fewer_vertices, fewer)
    assert len(fewer) <= len(faces) // 4
    assert before["closed"]
    assert after["closed"]
    assert (after["num_pieces"], after["num_handles"]) == (before["num_pieces"], before["num_handles"])
    assert after["volume"] == pytest.approx(before["volume"], rel=0.01)
    assert np.array_equal(np.unique(fewer), np.arange(len(fewer_vertices))), "no vertex is left over"


def test_a_sphere_keeps_its_radius_and_no_face_turns_over() -> None:
    vertices, faces = of(trimesh.creation.icosphere(4, radius=0.4))
    places, fewer = simplified(vertices, faces, 500)
    assert len(fewer) == 500
    assert np.abs(np.linalg.norm(places, axis=1) - 0.4).max() < 0.01
    corners = places[fewer].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normals * corners.mean(axis=1)).sum(axis=1) > 0).all()


def test_a_cube_of_many_faces_becomes_one_of_twelve() -> None:
    vertices, faces = of(trimesh.creation.box((1, 1, 1)).subdivide().subdivide().subdivide())
    places, fewer = simplified(vertices, faces, 12)
    assert len(fewer) == 12
    assert signed_volume(places, fewer) == pytest.approx(1.0, abs=1e-3)
    assert {tuple(abs(each) for each in corner) for corner in np.round(places, 3).tolist()} == {
        (0.5, 0.5, 0.5)
    }


@pytest.mark.parametrize("target", [0, 1, 4, 5])
def test_no_surface_is_folded_flat_however_few_faces_are_asked_for(target: int) -> None:
    vertices, faces = of(trimesh.creation.icosphere(1, radius=0.4))
    places, fewer = simplified(vertices, faces, target)
    assert is_closed(fewer)
    assert 4 <= len(fewer) <= 8
    assert signed_volume(places, fewer) > 0


def test_a_torus_stays_a_torus_down_to_its_last_faces() -> None:
    vertices, faces = of(trimesh.creation.torus(0.4, 0.15))
    places, fewer = simplified(vertices, faces, 4)
    assert facts_of(places, fewer)["num_handles"] == 1
    assert 14 <= len(fewer) < 100, "seven vertices and fourteen faces are the fewest that a torus can have"


def test_an_open_border_is_left_as_it_is() -> None:
    rows, columns = np.mgrid[:12, :12]
    vertices = (
        np.stack([columns, rows, 0.02 * np.sin(columns * rows)], axis=2).reshape(-1, 3).astype(np.float32)
    )
    corner = (rows[:-1, :-1] * 12 + columns[:-1, :-1]).ravel()
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + 13], 1), np.stack([corner, corner + 13, corner + 12], 1)]
    ).astype(np.int32)
    places, fewer = simplified(vertices, faces, 100)
    rim = vertices[((rows % 11 == 0) | (columns % 11 == 0)).ravel()]
    assert len(fewer) <= 100
    assert {tuple(each) for each in rim.tolist()} <= {tuple(each) for each in places.tolist()}


def test_a_small_surface_comes_back_untouched_and_a_large_one_as_the_same_bits() -> None:
    vertices, faces = bumpy(1)
    assert simplified(vertices, faces, len(faces))[1] is faces
    first, second = (simplified(vertices.copy(), faces.copy(), 300) for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1].tobytes() == second[1].tobytes()


def test_faces_without_an_area_do_no_harm() -> None:
    vertices, faces = of(trimesh.creation.icosphere(2, radius=0.4))
    vertices[faces[0, 1]] = vertices[faces[0, 0]]
    places, fewer = simplified(vertices, faces, 100)
    assert np.isfinite(places).all()
    assert is_closed(fewer)


def test_the_texture_of_fewer_faces_shows_the_same_colours_in_the_same_places() -> None:
    vertices, faces = simplified(*of(trimesh.creation.icosphere(4, radius=0.4)), 400)
    mesh = textured_mesh(vertices, faces, lambda points: points / 0.8 + 0.5, 256)
    uv, centres = mesh.uv[mesh.faces].mean(axis=1), mesh.vertices[mesh.faces].mean(axis=1)
    found = mesh.texture[((1 - uv[:, 1]) * 256).astype(int), (uv[:, 0] * 256).astype(int)]
    assert np.abs(found - (centres / 0.8 + 0.5) * 255).max() < 8

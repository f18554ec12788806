"""The light-field descriptor: its geometry, its coefficients, and what it does not see."""

import numpy as np
import pytest
import trimesh

from get3d_cluster.evaluation import dodecahedron
from get3d_cluster.evaluation.light_field import (
    UNIT,
    light_field,
    light_field_distance,
    light_field_distances,
    silhouettes,
)
from get3d_cluster.evaluation.silhouettes import (
    descriptors,
    fourier_coefficients,
    outline,
    zernike_moments,
)


def mesh(shape: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(shape.vertices, np.float64), np.asarray(shape.faces, np.int32)


def centre_of(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def disc(size: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(rows, columns) < radius


def bean(size: int = 200) -> np.ndarray:
    rows, columns = (np.mgrid[:size, :size] - size / 2) / (size / 2)
    return (columns**2 / 0.4 + (rows - 0.5 * columns**2 + 0.1 * columns) ** 2 / 0.1) < 1


def test_the_ten_axes_are_those_of_a_dodecahedron() -> None:
    axes = dodecahedron.view_axes()
    assert np.allclose(np.linalg.norm(axes, axis=1), 1)
    cosines = np.unique(np.round(np.abs(axes @ axes.T), 6))
    assert np.allclose(cosines, [1 / 3, np.sqrt(5) / 3, 1], atol=1e-6)


def test_the_sixty_rotations_are_a_group_and_permute_the_axes_differently() -> None:
    turns = dodecahedron.rotations()
    assert turns.shape == (60, 3, 3)
    assert np.allclose(np.linalg.det(turns), 1)
    assert np.allclose(turns[0], np.eye(3))
    products = np.einsum("aij,bjk->abik", turns, turns).reshape(-1, 9)
    known = {tuple(row) for row in np.round(turns.reshape(-1, 9), 6) + 0.0}
    assert {tuple(row) for row in np.round(products, 6) + 0.0} == known
    places = dodecahedron.permutations()
    assert len({tuple(row) for row in places.tolist()}) == 60
    assert all(sorted(row) == list(range(10)) for row in places.tolist())


def test_the_orientations_are_rotations_far_from_each_other() -> None:
    found = dodecahedron.orientations()
    assert np.allclose(np.einsum("nij,nkj->nik", found, found), np.eye(3))
    angles = [
        np.degrees(np.arccos(((np.trace(a.T @ b @ turn) - 1) / 2).clip(-1, 1)))
        for i, a in enumerate(found)
        for b in found[:i]
        for turn in dodecahedron.rotations()
    ]
    assert min(angles) > 20


def test_the_moments_of_a_disc_are_those_of_the_circle() -> None:
    mask = disc(201, 95)
    found = zernike_moments(mask, centre_of(mask))
    assert found.shape == (35,)
    assert found.max() < 0.03  # orthogonal to the constant, but for the rim of the pixels


def test_a_moment_worked_out_by_hand() -> None:
    # A long thin bar: R_22 = r^2 cos 2t = x^2 on it, whose mean over [-1, 1] is 1/3; R_20 = 2 r^2 - 1: 1/3.
    mask = np.zeros((41, 2001), np.bool_)
    mask[20, 1:2000] = True
    found = zernike_moments(mask, centre_of(mask))
    orders = [(n, m) for n in range(1, 11) for m in range(n % 2, n + 1, 2)]
    assert found[orders.index((2, 2))] == pytest.approx(1 / 3, abs=1e-3)
    assert found[orders.index((2, 0))] == pytest.approx(1 / 3, abs=1e-3)
    assert found[orders.index((4, 4))] == pytest.approx(1 / 5, abs=1e-3)
    assert found[orders.index((1, 1))] == pytest.approx(0, abs=1e-9)


def test_the_moments_are_those_of_the_definition() -> None:
    mask = bean(60)
    centre = centre_of(mask)
    rows, columns = np.nonzero(mask)
    radius = np.hypot(abs(rows - centre[0]) + 0.5, abs(columns - centre[1]) + 0.5).max()
    point = ((columns - centre[1]) + 1j * (rows - centre[0])) / radius
    r, angle = np.abs(point), np.angle(point)
    radial = 10 * r**5 - 12 * r**3 + 3 * r  # R_51
    expected = abs((radial * np.exp(-1j * angle)).mean())
    orders = [(n, m) for n in range(1, 11) for m in range(n % 2, n + 1, 2)]
    assert zernike_moments(mask, centre)[orders.index((5, 1))] == pytest.approx(expected, rel=1e-9)


def test_place_size_quarter_turns_and_mirrors_change_little() -> None:
    mask = bean()
    moved = np.roll(mask, (7, -9), axis=(0, 1))
    variants = descriptors(np.stack([mask, moved, np.rot90(mask), mask[:, ::-1]]))
    assert np.allclose(variants[1], variants[0], atol=1e-6)
    assert np.allclose(variants[2:, :35], variants[0, :35], atol=1e-6)
    assert np.allclose(variants[2:, 35:], variants[0, 35:], atol=0.01)
    half = descriptors(mask[None, ::2, ::2])
    assert np.abs(half - variants[0]).sum() < 0.15
    square = np.pad(np.ones((90, 90), np.bool_), 30)
    assert np.abs(descriptors(square[None]) - variants[0]).sum() > 1


def test_the_outline_of_a_square_goes_once_around_it() -> None:
    mask = np.pad(np.ones((5, 8), np.bool_), 2)
    line = outline(mask)
    assert len(line) == 2 * (5 + 8) - 4
    assert len({tuple(place) for place in line.tolist()}) == len(line)
    steps = np.abs(np.roll(line, -1, axis=0) - line)
    assert (steps.sum(axis=1) == 1).all()


def test_the_outline_follows_lines_of_one_pixel_there_and_back_and_misses_holes() -> None:
    line = np.zeros((3, 7), np.bool_)
    line[1, 1:6] = True
    assert len(outline(line)) == 8
    assert len(outline(np.ones((1, 1), np.bool_))) == 1
    ring = np.pad(np.ones((7, 7), np.bool_), 1)
    ring[3:6, 3:6] = False
    assert len(outline(ring)) == 24
    eight = np.zeros((5, 5), np.bool_)  # two squares that touch at a corner: both are walked around
    eight[:2, :2] = eight[2:4, 2:4] = True
    assert {tuple(place) for place in outline(eight).tolist()} == {
        tuple(p) for p in np.argwhere(eight).tolist()
    }


def test_the_outline_of_an_ellipse_varies_twice_around() -> None:
    rows, columns = np.mgrid[:301, :301] - 150
    mask = (rows / 60) ** 2 + (columns / 120) ** 2 < 1
    found = fourier_coefficients(mask, centre_of(mask))
    assert found.argmax() == 1
    assert found[[0, 2, 4]].max() < 0.01
    assert fourier_coefficients(disc(301, 120), np.array([150.0, 150.0])).max() < 0.01


def test_an_empty_silhouette_has_no_numbers_and_a_pixel_no_outline() -> None:
    assert not descriptors(np.zeros((1, 9, 9), np.bool_)).any()
    dot = np.zeros((9, 9), np.bool_)
    dot[4, 4] = True
    assert np.isfinite(descriptors(dot[None])).all()


def test_a_box_seen_along_an_axis_is_a_rectangle() -> None:
    verts, faces = mesh(trimesh.creation.box([1.0, 0.5, 0.25]))
    mask = silhouettes(verts, faces, np.array([[0.0, 0.0, 1.0]]), 100)[0]
    rows, columns = np.nonzero(mask)
    assert mask.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert sorted([np.ptp(rows) + 1, np.ptp(columns) + 1]) == pytest.approx([24.5, 49], abs=1)


SIZE = 96


def test_equal_shapes_are_at_zero_and_others_are_not() -> None:
    torus, box = mesh(trimesh.creation.torus(0.4, 0.12)), mesh(trimesh.creation.box([1, 0.5, 0.3]))
    fields = [light_field(*each, SIZE) for each in (torus, box)]
    assert light_field_distance(fields[0], fields[0]) == 0
    apart = light_field_distance(fields[0], fields[1])
    assert apart > 3
    assert light_field_distance(fields[1], fields[0]) == apart
    assert light_field_distances(fields[0], np.stack(fields)).tolist() == [0.0, apart]


def test_a_turned_shape_is_nearer_than_any_other_shape() -> None:
    verts, faces = mesh(trimesh.creation.box([1, 0.5, 0.3]))
    turn = trimesh.transformations.random_rotation_matrix(np.array([0.2, 0.7, 0.4]))[:3, :3]
    whole = dodecahedron.orientations()[3] @ dodecahedron.rotations()[17]
    plain, turned, exact = (
        light_field(3 * verts @ each.T + 1, faces, SIZE) for each in (np.eye(3), turn, whole)
    )
    other = light_field(*mesh(trimesh.creation.cylinder(0.25, 1.0)), SIZE)
    assert light_field_distance(plain, exact) < 1.0  # one of the alignments is it, up to pixels
    assert light_field_distance(plain, turned) < 0.7 * light_field_distance(plain, other)


def test_the_least_is_taken_over_all_alignments_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 10, 10, 45)) * UNIT).astype(np.int32)
    costs = np.abs(a[:, None, :, None] - b[None, :, None]).sum(axis=-1)  # [i, j, v, w]
    views = np.arange(10)
    expected = min(costs[:, :, views, each].sum(axis=-1).min() for each in dodecahedron.permutations())
    assert light_field_distance(a, b) == pytest.approx(expected / UNIT)


def test_a_shape_without_faces_is_all_zeros() -> None:
    assert not light_field(np.zeros((3, 3)), np.zeros((0, 3), np.int32)).any()

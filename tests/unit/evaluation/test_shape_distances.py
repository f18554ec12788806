"""Points on surfaces, Chamfer distance, coverage: against definitions and numbers worked out by hand."""

import numpy as np
import pytest
import trimesh

from get3d_cluster.evaluation.coverage import (
    coverage,
    minimum_matching_distance,
    nearest_neighbour_accuracy,
)
from get3d_cluster.evaluation.points import chamfer_distance, chamfer_distances, normalised, sampled


def test_points_lie_on_the_surface_in_proportion_to_area() -> None:
    shape = trimesh.creation.box([4, 1, 1])
    verts, faces = np.asarray(shape.vertices), np.asarray(shape.faces, np.int32)
    points = sampled(verts, faces, 6000, "box", 0)
    assert points.shape == (6000, 3)
    assert np.abs(np.abs(points / [2, 0.5, 0.5]).max(axis=1) - 1).max() < 1e-6
    ends = np.isclose(np.abs(points[:, 0]), 2).mean()
    assert ends == pytest.approx(2 / 18, abs=0.015)
    assert np.abs(points.mean(axis=0)).max() < 0.06


def test_within_a_triangle_points_are_uniform() -> None:
    verts = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float64)
    points = sampled(verts, np.int32([[0, 1, 2]]), 8000, "t")
    inner = (points[:, 0] > 0.25) & (points[:, 1] > 0.25) & (points[:, 0] + points[:, 1] < 0.75)
    assert inner.mean() == pytest.approx(1 / 16, abs=0.01)
    assert np.allclose(points.mean(axis=0), [1 / 3, 1 / 3, 0], atol=0.01)


def test_the_name_decides_the_points_and_no_surface_has_none() -> None:
    verts, faces = np.eye(3), np.int32([[0, 1, 2]])
    assert (sampled(verts, faces, 50, "a", 1) == sampled(verts, faces, 50, "a", 1)).all()
    assert (sampled(verts, faces, 50, "a", 1) != sampled(verts, faces, 50, "a", 2)).any()
    assert sampled(verts, np.int32([[0, 0, 1]]), 50, "a").shape == (0, 3)
    assert sampled(verts, np.zeros((0, 3), np.int32), 50, "a").shape == (0, 3)


def test_shapes_are_scaled_to_their_longest_side_and_loose_vertices_do_not_count() -> None:
    verts = np.array([[1, 2, 3], [5, 3, 3], [1, 2, 4], [100, 0, 0]], np.float64)
    found = normalised(verts, np.int32([[0, 1, 2]]))
    assert np.allclose(found[:3].min(axis=0), [-0.5, -0.125, -0.125])
    assert np.allclose(found[:3].max(axis=0), [0.5, 0.125, 0.125])
    assert np.isfinite(normalised(np.ones((3, 3)), np.int32([[0, 1, 2]]))).all()


def test_the_chamfer_distance_of_three_points_worked_out_by_hand() -> None:
    a = np.float32([[0, 0, 0], [1, 0, 0]])
    b = np.float32([[0, 0, 2]])
    assert chamfer_distance(a, b) == pytest.approx((4 + 5) / 2 + 4)
    assert chamfer_distance(b, a) == pytest.approx((4 + 5) / 2 + 4)
    assert chamfer_distance(a, a) == 0
    assert np.isinf(chamfer_distance(a, np.zeros((0, 3), np.float32)))


def test_distances_to_many_are_those_of_pairs() -> None:
    clouds = np.random.default_rng(0).random((4, 50, 3)).astype(np.float32)
    found = chamfer_distances(clouds[0], clouds)
    assert found.tolist() == [chamfer_distance(clouds[0], each) for each in clouds]
    squares = ((clouds[0][:, None].astype(np.float64) - clouds[1][None]) ** 2).sum(axis=2)
    assert found[1] == pytest.approx(squares.min(axis=0).mean() + squares.min(axis=1).mean())


DISTANCES = np.array([[1.0, 5, 2, 9], [4, 1, 3, 8], [6, 7, 9, 9]])


def test_coverage_and_matching_worked_out_by_hand() -> None:
    assert coverage(DISTANCES) == pytest.approx(2 / 3)  # the third is nobody's nearest
    assert minimum_matching_distance(DISTANCES) == pytest.approx((1 + 1 + 6) / 3)


def test_a_shape_without_a_surface_covers_nothing() -> None:
    empty = np.concatenate([np.full((3, 1), np.inf), DISTANCES[:, 1:2]], axis=1)
    assert coverage(empty) == pytest.approx(1 / 3)


def line(values: list) -> np.ndarray:
    return np.array(values, np.float64)[:, None]


def test_nearest_neighbours_tell_two_sets_apart_or_not() -> None:
    def accuracy(a: list, b: list) -> float:
        x, y = line(a), line(b)
        return nearest_neighbour_accuracy(abs(x - y.T), abs(x - x.T), abs(y - y.T))

    assert accuracy([0, 1, 2], [10, 11, 12]) == 1
    assert accuracy([0, 1, 2], [0, 1, 2]) == 0  # memorised: each one's twin is in the other set
    assert accuracy([0, 1, 10], [1.4, 10.1]) == pytest.approx(1 / 5)  # only 0 has its nearest in its own set

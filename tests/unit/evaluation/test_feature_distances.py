"""Moments, FID, KID, precision and recall against SciPy and numbers worked out by hand."""

import numpy as np
import pytest
import scipy.linalg

from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.draws import chosen, uniforms
from get3d_cluster.evaluation.kernel import squared_mmd
from get3d_cluster.evaluation.manifold import inside, squared_distances, squared_radii
from get3d_cluster.evaluation.moments import gaussian_of, moments_of
from get3d_cluster.evaluation.progress import frechet_distance


def features(count: int, width: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    return (mixed + shift).astype(np.float32)


def by_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    shift = x.mean(axis=0) - y.mean(axis=0)
    return float(shift @ shift + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real))


def test_the_distance_of_streamed_features_is_that_of_scipys_matrix_root() -> None:
    a, b = features(300, 12), features(280, 12, seed=1, shift=0.5)
    streamed = frechet_distance(gaussian_of(np.array_split(a, 7)), gaussian_of(np.array_split(b, 3)))
    assert streamed == pytest.approx(by_sqrtm(a, b), rel=1e-9)


def test_two_gaussians_worked_out_by_hand() -> None:
    # Means 0 and (3, 4): 25. Variances 2 and 8 along each axis: (sqrt 8 - sqrt 2)^2 * 2 = 4.
    square = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32) * np.sqrt(1.5)
    a, b = gaussian_of([square]), gaussian_of([2 * square + np.float32([3, 4])])
    assert np.allclose(a.covariance, 2 * np.eye(2))
    assert frechet_distance(a, b) == pytest.approx(25 + 4, rel=1e-6)


def test_moments_do_not_cancel_far_from_the_origin() -> None:
    a = features(200, 4).astype(np.float64) + 1e7
    whole = np.cov(a, rowvar=False)
    assert np.allclose(gaussian_of(np.array_split(a, 9)).covariance, whole, rtol=1e-9)


def test_fewer_samples_than_features_still_give_a_distance_that_is_zero_for_equal_sets() -> None:
    a, b = features(5, 64), features(6, 64, seed=1)
    assert frechet_distance(gaussian_of([a]), gaussian_of([a])) == pytest.approx(0.0, abs=1e-6)
    distance = frechet_distance(gaussian_of([a]), gaussian_of([b]))
    assert distance == pytest.approx(by_sqrtm(a, b), rel=1e-3)  # sqrtm is the inexact one here


def test_one_sample_has_no_gaussian() -> None:
    with pytest.raises(UsageError, match="1 image"):
        moments_of(features(1, 3)).gaussian()


def test_the_kernel_distance_of_points_on_a_line_worked_out_by_hand() -> None:
    # D = 1, k(x, y) = (x y + 1)^3. a = {0, 1}: k(0, 1) = 1. b = {1, 2}: k(1, 2) = 27. Between: 1, 1, 8, 27.
    a, b = np.float32([[0], [1]]), np.float32([[1], [2]])
    assert squared_mmd(a, b) == pytest.approx(1 + 27 - 2 * 37 / 4)


def test_the_kernel_distance_has_no_bias_towards_small_sets() -> None:
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 10, 3)).astype(np.float32) for _ in range(400)]
    estimates = np.array([squared_mmd(a, b) for a, b in pairs])
    assert abs(estimates.mean()) < 3 * estimates.std() / 20  # the biased one would be off by some 20 errors
    assert (estimates < 0).any()


def test_precision_and_recall_of_points_on_a_line() -> None:
    # Reals 0..4 with k = 1: balls of radius 1 cover [-1, 5]. Fakes 0.5, 4.9 and 9, 11: balls 4.4, 4.1, 2, 2.
    reals, fakes = np.float32([[0], [1], [2], [3], [4]]), np.float32([[0.5], [4.9], [9], [11]])
    real_radii = squared_radii(reals, 0, [reals], 1)
    fake_radii = squared_radii(fakes, 0, [fakes], 1)
    assert np.allclose(np.sqrt(real_radii), 1)
    assert np.allclose(np.sqrt(fake_radii), [4.4, 4.1, 2, 2], rtol=1e-6)
    assert inside(fakes, [reals], real_radii).tolist() == [True, True, False, False]
    assert inside(reals, [fakes], fake_radii).tolist() == [True] * 5


def test_radii_do_not_depend_on_how_a_set_is_cut() -> None:
    a = features(60, 8)
    whole = squared_radii(a, 0, [a])
    cut = [squared_radii(a[i : i + 25], i, np.array_split(a, 4)) for i in range(0, 60, 25)]
    assert np.allclose(np.concatenate(cut), whole, rtol=1e-9)
    direct = np.sort(((a[:, None].astype(np.float64) - a[None]) ** 2).sum(axis=2), axis=1)[:, 3]
    assert np.allclose(whole, direct, rtol=1e-9)


def test_too_small_a_set_has_infinite_radii() -> None:
    assert np.isinf(squared_radii(features(3, 4), 0, [features(3, 4)])).all()


def test_equal_rows_have_distance_zero_even_far_from_the_origin() -> None:
    a = features(40, 16) + np.float32(1000.0)
    assert (np.diag(squared_distances(a, a)) == 0).all()
    assert inside(a, [a], squared_radii(a, 0, [a])).all()


def test_a_larger_choice_contains_the_smaller_one_and_a_name_decides_it() -> None:
    few, many = chosen(1000, 10, "a", 1), chosen(1000, 50, "a", 1)
    assert set(few) < set(many)
    assert len(set(many)) == 50
    assert few.tolist() != chosen(1000, 10, "a", 2).tolist()
    assert chosen(3, 10, "a").tolist() == [0, 1, 2]
    assert uniforms(3, "x").tolist() == uniforms(9, "x")[:3].tolist()
    assert 0.45 < uniforms(2000, "x").mean() < 0.55


def test_the_stream_of_draws_is_frozen() -> None:
    assert uniforms(2, "frozen", 7).tolist() == [0.6409319158635503, 0.257676476005297]

import numpy as np
import pytest
import scipy.linalg
import torch

from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.progress import (
    Gaussian,
    best_match_iou,
    fitted_gaussian,
    frechet_distance,
    measure_progress,
    pooled_features,
)


def gaussian(mean: list[float], covariance: list[list[float]]) -> Gaussian:
    return Gaussian(np.array(mean), np.array(covariance), 0)


def images(count: int, seed: int, size: int = 16) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    alpha = (torch.rand(count, 1, size, size, generator=source) > 0.4).float()
    rgb = torch.rand(count, 3, size, size, generator=source) * alpha * 2 - 1
    return torch.cat([rgb, alpha], dim=1)


def test_frechet_distance_of_hand_computed_gaussians() -> None:
    unit = gaussian([0, 0], [[1, 0], [0, 1]])
    # shift 3, 4 gives 25; sigma 1 -> 3 gives (3 - 1)^2 on one axis
    assert frechet_distance(unit, gaussian([3, 4], [[1, 0], [0, 1]])) == pytest.approx(25)
    assert frechet_distance(unit, gaussian([0, 0], [[9, 0], [0, 1]])) == pytest.approx(4)
    assert frechet_distance(unit, gaussian([3, 4], [[9, 0], [0, 4]])) == pytest.approx(25 + 4 + 1)


def test_frechet_distance_agrees_with_a_general_matrix_square_root() -> None:
    source = np.random.default_rng(1)
    a, b = (
        fitted_gaussian(torch.from_numpy(source.normal(size=(60, 7)) @ source.normal(size=(7, 7))))
        for _ in "ab"
    )
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_frechet_distance_survives_fewer_samples_than_features() -> None:
    few = fitted_gaussian(pooled_features(images(5, seed=1)))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    value = frechet_distance(few, fitted_gaussian(pooled_features(images(6, seed=2))))
    assert np.isfinite(value)
    assert value > 0.1


def test_fitted_gaussian_is_the_unbiased_one() -> None:
    fitted = fitted_gaussian(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    np.testing.assert_allclose(fitted.mean, [1, 2])
    np.testing.assert_allclose(fitted.covariance, [[2, 4], [4, 8]])


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(UsageError, match="1 image"):
        fitted_gaussian(torch.zeros(1, 3))


def test_pooling_averages_each_cell_and_keeps_channels_apart() -> None:
    rgba = torch.full((1, 4, 16, 16), -1.0)
    rgba[0, 3] = 0
    rgba[0, 0, :2, :2] = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    rgba[0, 3, 14:, 14:] = 1
    features = pooled_features(rgba)
    assert features.shape == (1, 256)
    assert features[0, 0] == 0
    assert features[0, 255] == 1
    assert features[0, 1:192].unique().tolist() == [-1]
    assert features[0, 192:255].unique().tolist() == [0]


def test_the_scale_counts_a_whole_colour_channel_four_times_as_much_as_alpha() -> None:
    dark, red, opaque = (
        torch.cat([torch.full((2, 3, 8, 8), -1.0), torch.zeros(2, 1, 8, 8)], dim=1) for _ in range(3)
    )
    red[:, 0] = 1
    opaque[:, 3] = 1
    fits = [fitted_gaussian(pooled_features(x)) for x in (dark, red, opaque)]
    assert frechet_distance(fits[0], fits[1]) == pytest.approx(64 * 4)
    assert frechet_distance(fits[0], fits[2]) == pytest.approx(64)


def test_images_without_alpha_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3, 8, 8\]"):
        pooled_features(torch.zeros(2, 3, 8, 8))


def test_best_match_iou_takes_the_best_reference_for_each_mask() -> None:
    left, top, full = torch.zeros(3, 4, 4)
    left[:, :2] = 1
    top[:2] = 1
    full[:] = 1
    assert best_match_iou(torch.stack([left]), torch.stack([top, full])) == pytest.approx(0.5)
    assert best_match_iou(torch.stack([left]), torch.stack([top])) == pytest.approx(4 / 12)
    assert best_match_iou(torch.stack([left, top]), torch.stack([top, full])) == pytest.approx(0.75)


def test_masks_are_cut_at_one_half() -> None:
    soft = torch.tensor([[[0.5, 0.49], [1.0, 0.0]]])
    assert best_match_iou(soft, torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])) == 1


def test_a_vanished_shape_scores_zero() -> None:
    assert best_match_iou(torch.zeros(1, 4, 4), torch.zeros(2, 4, 4)) == 0


def test_iou_does_not_depend_on_how_the_reference_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, reference = images(7, seed=3)[:, 3], images(11, seed=4)[:, 3]
    whole = best_match_iou(masks, reference)
    monkeypatch.setattr("get3d_cluster.evaluation.progress._REFERENCE_CHUNK", 3)
    assert best_match_iou(masks, reference) == whole


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in size"):
        best_match_iou(torch.zeros(1, 4, 4), torch.zeros(1, 8, 8))


def test_real_images_in_place_of_generated_ones_score_the_floor() -> None:
    held_out = images(9, seed=5)
    report = measure_progress(held_out[:6], images(30, seed=6), held_out)
    assert report.distance == report.distance_floor > 0
    assert report.iou == report.iou_floor > 0
    assert (report.num_generated, report.num_reference) == (6, 30)


def test_a_blank_generator_is_far_above_the_floor() -> None:
    blank = torch.cat([torch.full((6, 3, 16, 16), -1.0), torch.zeros(6, 1, 16, 16)], dim=1)
    report = measure_progress(blank, images(30, seed=6), images(6, seed=5))
    assert report.distance > 2 * report.distance_floor
    assert report.iou == 0


def test_a_floor_from_fewer_images_is_refused() -> None:
    with pytest.raises(UsageError, match="4 held-out"):
        measure_progress(images(5, seed=1), images(9, seed=2), images(4, seed=3))

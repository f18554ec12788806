"""Two cheap distances between generated and real images, for curves of a training on a small machine.

Neither needs a pretrained network or a download. They rank states of one run on one dataset; they are not
FID and not comparable between datasets or image sizes. Each number comes with its floor: what real images of
other shapes score against the same reference, in the same number.

Letters: N images, M reference images, H W pixels, D features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from get3d_cluster.errors import UsageError

GRID = 8
"""Cells per side that images are pooled to; four channels make ``D = 4 * GRID**2 = 256`` features."""

_REFERENCE_CHUNK = 4096


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean and covariance of a set of features, float64."""

    mean: np.ndarray
    """[D]"""
    covariance: np.ndarray
    """[D, D], unbiased"""
    num_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressReport:
    """Generated images against real ones, with what real images score in their place."""

    distance: float
    """Pooled-pixel Frechet distance of the generated images; lower is better."""
    distance_floor: float
    """The same for as many real images of other shapes: no generator is expected to be below for long."""
    iou: float
    """Best-match silhouette IoU of the generated images, 0 to 1; higher is better."""
    iou_floor: float
    """The same for real images of other shapes: the value of a generator as varied as the data."""
    num_generated: int
    num_reference: int


def pooled_features(
    rgba: Tensor,  # [N, 4, H, W] RGB in [-1, 1] over black, alpha in [0, 1]
) -> Tensor:  # [N, 256] float64
    """Average ``rgba`` over a ``GRID`` x ``GRID`` grid of cells and flatten it.

    The scale is part of the number: RGB spans 2 (black is -1, as the generator paints it, and premultiplied
    by coverage) and alpha spans 1, so a colour channel counts four times as much as alpha when squared.

    Raises: ValueError if ``rgba`` has another shape.
    """
    if rgba.ndim != 4 or rgba.shape[1] != 4:
        raise ValueError(f"images must be [N, 4, H, W], not {list(rgba.shape)}")
    return torch.nn.functional.adaptive_avg_pool2d(rgba.detach().double(), GRID).flatten(1)


def fitted_gaussian(
    features: Tensor,  # [N, D]
) -> Gaussian:
    """Return mean and covariance of ``features``.

    Raises: UsageError if there are fewer than two, which have no covariance.
    """
    if len(features) < 2:
        raise UsageError(
            f"{len(features)} image(s) have no covariance", "measure at least 2 images, better 100"
        )
    values = features.detach().double().cpu().numpy()
    return Gaussian(values.mean(axis=0), np.atleast_2d(np.cov(values, rowvar=False)), len(values))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians.

    ``trace sqrt(A B)`` is taken from the eigenvalues of the symmetric ``sqrt(A) B sqrt(A)``: covariances of
    few samples are singular, where a general matrix square root is neither real nor stable.

    Source: Dowson and Landau 1982; Heusel et al. 2017 (FID), equation 6.
    """
    root = _symmetric_root(a.covariance)
    product = np.linalg.eigvalsh(root @ b.covariance @ root)
    shift = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(max(0.0, shift @ shift + traces - 2.0 * np.sqrt(product.clip(min=0.0)).sum()))


def best_match_iou(
    masks: Tensor,  # [N, H, W] coverage in [0, 1]
    reference: Tensor,  # [M, H, W] coverage in [0, 1]
) -> float:
    """Return the mean over ``masks`` of the best intersection over union with any mask of ``reference``.

    Masks are cut at 0.5. An empty mask scores 0, even against an empty one: a vanished shape is no match.

    Raises: ValueError if the sizes differ; UsageError if either set is empty.
    """
    if masks.shape[1:] != reference.shape[1:]:
        raise ValueError(f"masks {list(masks.shape)} and reference {list(reference.shape)} differ in size")
    if not len(masks) or not len(reference):
        raise UsageError(
            f"{len(masks)} masks against {len(reference)}", "give at least one image on either side"
        )
    inside = _binary_rows(masks)
    best = torch.zeros(len(inside), device=inside.device)
    for chunk in reference.split(_REFERENCE_CHUNK):
        best = torch.maximum(best, _iou_matrix(inside, _binary_rows(chunk)).amax(dim=1))
    return float(best.double().mean())


def measure_progress(
    generated: Tensor,  # [N, 4, H, W] RGB in [-1, 1] over black, alpha in [0, 1]
    reference: Tensor,  # [M, 4, H, W] real images, the same scale
    held_out: Tensor,  # [N or more, 4, H, W] real images of shapes that are not in `reference`
) -> ProgressReport:
    """Measure ``generated`` against ``reference``, and as many ``held_out`` real images for the floor.

    Raises: UsageError if there are fewer ``held_out`` than ``generated`` images: the distance depends on the
    number of samples, so a floor from fewer of them would not be one.
    """
    if len(held_out) < len(generated):
        raise UsageError(
            f"{len(held_out)} held-out real images cannot give the floor of {len(generated)} generated ones",
            f"generate at most {len(held_out)} images, or hold out more shapes",
        )
    floor_images = held_out[: len(generated)]
    real = fitted_gaussian(pooled_features(reference))
    return ProgressReport(
        distance=frechet_distance(fitted_gaussian(pooled_features(generated)), real),
        distance_floor=frechet_distance(fitted_gaussian(pooled_features(floor_images)), real),
        iou=best_match_iou(generated[:, 3], reference[:, 3]),
        iou_floor=best_match_iou(floor_images[:, 3], reference[:, 3]),
        num_generated=len(generated),
        num_reference=len(reference),
    )


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T)


def _binary_rows(masks: Tensor) -> Tensor:
    return (masks.detach() >= 0.5).flatten(1).float()


def _iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    shared = a @ b.T  # exact: counts below 2**24
    union = a.sum(dim=1)[:, None] + b.sum(dim=1)[None, :] - shared
    return shared / union.clamp(min=1.0)

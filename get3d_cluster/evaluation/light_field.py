"""The light-field descriptor of a shape: how its silhouettes look from all around. Ours, after a paper.

Ten dodecahedra of cameras, each turned differently, see a shape as ten silhouettes each. Two shapes are as far apart
as their silhouettes under the rotation that brings them closest, of 60 for each pair of dodecahedra.

Source: Chen, Tian, Shen and Ouhyoung 2003, "On visual similarity based 3D model retrieval". The numbers are not those
of the program that its authors published (other coefficients, 8-bit tables): compare them with ours only.
Letters: V vertices, F faces, H = W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from get3d_cluster.evaluation import dodecahedron
from get3d_cluster.evaluation.silhouettes import NUM_FOURIER, NUM_ZERNIKE, descriptors
from get3d_cluster.get3d.raster import visibility

Floats = NDArray[np.float64]
Faces = NDArray[np.int32]
LightField = NDArray[np.int32]

IMAGE_PX = 256
"""The paper's."""
MARGIN = 0.98
WIDTH = NUM_ZERNIKE + NUM_FOURIER
UNIT = 1 << 16
"""Coefficients, which are at most 1, are kept in so many parts: sums of whole numbers have no order."""


def light_field(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
    size_px: int = IMAGE_PX,
) -> LightField:  # [10, 10, 45] orientation, view, coefficient
    """Return the descriptor of a shape; zeros if it has no face."""
    shape = (dodecahedron.NUM_ORIENTATIONS, dodecahedron.NUM_VIEWS, WIDTH)
    if not len(faces):
        return np.zeros(shape, np.int32)
    centred = _in_unit_sphere(vertices, faces)
    fields = [
        descriptors(silhouettes(centred, faces, dodecahedron.view_axes() @ orientation.T, size_px))
        for orientation in dodecahedron.orientations()
    ]
    return np.rint(np.stack(fields) * UNIT).astype(np.int32)


def silhouettes(
    vertices: Floats,  # [V, 3] within the unit sphere
    faces: Faces,  # [F, 3]
    axes: Floats,  # [N, 3] unit, towards the viewer
    size_px: int,
) -> NDArray[np.bool_]:  # [N, H, W]
    """Draw a shape in parallel projection along each axis."""
    projected = np.einsum("nij,vj->nvi", _screens(axes), vertices) * MARGIN
    flat = np.concatenate(
        [projected, np.zeros_like(projected[..., :1]), np.ones_like(projected[..., :1])], axis=2
    )
    ids = visibility(torch.from_numpy(flat.astype(np.float32)), torch.from_numpy(faces), (size_px, size_px))
    return np.asarray(ids.numpy() > 0)


def light_field_distance(
    a: LightField,  # [10, 10, 45]
    b: LightField,  # [10, 10, 45]
) -> float:
    """Return the least sum of absolute differences over all 10 x 10 x 60 alignments of two light fields."""
    return _least(a, b, dodecahedron.permutations()) / UNIT


def light_field_distances(
    field: LightField,  # [10, 10, 45]
    others: Sequence[LightField],  # N times [10, 10, 45]
) -> Floats:  # [N]
    """Return the distance of one descriptor to each of many."""
    turned = dodecahedron.permutations()
    return np.array([_least(field, other, turned) for other in others], np.float64) / UNIT


def _in_unit_sphere(vertices: Floats, faces: Faces) -> Floats:
    """Centre the box around the faces, and scale the farthest of their vertices to distance 1."""
    used = np.unique(faces)
    own = np.asarray(vertices, np.float64)
    centred = own - (own[used].min(axis=0) + own[used].max(axis=0)) / 2
    farthest = float(np.linalg.norm(centred[used], axis=1).max())
    return np.asarray(centred / (farthest or 1.0))


def _screens(axes: Floats) -> Floats:  # [N, 2, 3] right, up
    """Return any screen across each axis: descriptors do not see how an image is turned."""
    aside = np.eye(3)[np.abs(axes).argmin(axis=1)]
    right = np.cross(aside, axes)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(axes, right)], axis=1)


def _least(a: LightField, b: LightField, turned: NDArray[np.int64]) -> float:
    costs = cdist(a.reshape(-1, WIDTH), b.reshape(-1, WIDTH), "cityblock")
    views = dodecahedron.NUM_VIEWS
    pairs = costs.reshape(-1, views, len(costs) // views, views)  # [i, v, j, w]
    totals = sum(pairs[:, view, :, turned[:, view]] for view in range(views))  # [r, i, j]
    return float(np.min(totals))

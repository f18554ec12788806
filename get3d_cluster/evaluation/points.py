"""Points on surfaces, and how far two clouds of them are apart. Letters: V vertices, F faces, P points."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from get3d_cluster.evaluation.draws import uniforms

Floats = NDArray[np.float64]
Faces = NDArray[np.int32]
Points = NDArray[np.float32]


def normalised(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
) -> Floats:  # [V, 3]
    """Move the box around the faces to the origin and scale its longest side to 1; vertices without a face follow.

    A box without extent is only moved. Source: upstream's evaluation scales shapes to unit longest side.
    """
    used = np.asarray(vertices, np.float64)[np.unique(faces)]
    if not len(used):
        return np.zeros_like(vertices, np.float64)
    low, high = used.min(axis=0), used.max(axis=0)
    longest = float((high - low).max())
    return np.asarray((vertices - (low + high) / 2) / (longest or 1.0))


def sampled(
    vertices: Floats,  # [V, 3]
    faces: Faces,  # [F, 3]
    count: int,
    *name: object,
) -> Points:  # [count, 3]
    """Sample points uniformly by area, as a function of the surface and a name; [0, 3] if there is no area.

    Source: Osada et al. 2002, equation 1, for a point of a triangle.
    """
    a, b, c = np.asarray(vertices, np.float64)[faces].transpose(1, 0, 2)
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    ends = np.cumsum(areas)
    if not len(ends) or ends[-1] <= 0:
        return np.zeros((0, 3), np.float32)
    which, along, across = uniforms(3 * count, *name).reshape(count, 3).T
    chosen = np.searchsorted(ends, which * ends[-1], side="right").clip(max=len(faces) - 1)
    root = np.sqrt(along)[:, None]
    across = across[:, None]
    mixed = (1 - root) * a[chosen] + root * (1 - across) * b[chosen] + root * across * c[chosen]
    return np.asarray(mixed, np.float32)


def chamfer_distance(
    a: Points,  # [P, 3]
    b: Points,  # [Q, 3]
) -> float:
    """Return the mean squared distance to the nearest point of the other cloud, summed over both directions.

    Infinite if either is empty. Source: Fan et al. 2017, equation 1, averaged as in Yang et al. 2019 (PointFlow).
    """
    if not len(a) or not len(b):
        return float("inf")
    there, _ = KDTree(b).query(a)
    back, _ = KDTree(a).query(b)
    return float((there**2).mean() + (back**2).mean())


def chamfer_distances(
    cloud: Points,  # [P, 3]
    others: Sequence[Points],  # N times [Q, 3]
) -> Floats:  # [N]
    """Return the distance of one cloud to each of many, as ``chamfer_distance`` does; its tree is built once."""
    if not len(cloud):
        return np.full(len(others), np.inf)
    tree = KDTree(cloud)
    return np.array([_to_tree(tree, cloud, other) for other in others], np.float64)


def _to_tree(tree: KDTree, cloud: Points, other: Points) -> float:
    if not len(other):
        return float("inf")
    there, _ = KDTree(other).query(cloud)
    back, _ = tree.query(other)
    return float((there**2).mean() + (back**2).mean())

"""The ten views of a light field, and the sixty ways to turn it into itself."""

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from get3d_cluster.evaluation.draws import uniforms

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_VIEWS = 10
NUM_ORIENTATIONS = 10
CANDIDATES = 500
"""Random orientations from which the evenly spread ones are taken."""


@cache
def view_axes() -> Floats:  # [10, 3] unit
    """Return one vertex of a regular dodecahedron for each pair of opposite ones: their silhouettes are mirrored.

    Source: Chen et al. 2003, section 3.1.
    """
    golden = (1 + np.sqrt(5)) / 2
    cube = [np.array(signs, np.float64) for signs in product((-1, 1), repeat=3)]
    rest = [np.roll([0, y / golden, z * golden], turn) for turn in range(3) for y in (-1, 1) for z in (-1, 1)]
    vertices = np.stack([*cube, *rest]) / np.sqrt(3)
    upper = vertices @ np.array([1.0, 0.1, 0.01]) > 0  # of each two opposite ones exactly one
    return np.asarray(vertices[upper])


@cache
def rotations() -> Floats:  # [60, 3, 3]
    """Return the rotations that map the dodecahedron onto itself, the identity first."""
    axes = view_axes()
    vertices = np.concatenate([axes, -axes])
    edge = np.sort(np.unique(np.round(vertices @ vertices.T, 9)))[-2]  # cosine between neighbours
    starts = [
        np.stack([a, b, np.cross(a, b)]) for a in vertices for b in vertices if abs(a @ b - edge) < 1e-6
    ]  # each of the 20 vertices with each of its 3 neighbours
    inverse = np.linalg.inv(starts[0])
    return np.stack([(inverse @ start).T for start in starts])


@cache
def permutations() -> Ints:  # [60, 10]
    """Return where each rotation takes each axis: view ``i`` of one field meets view ``permutations[r, i]``."""
    axes = view_axes()
    turned = np.einsum("rij,vj->rvi", rotations(), axes)
    return np.asarray(np.abs(turned @ axes.T).argmax(axis=2), np.int64)


@cache
def orientations() -> Floats:  # [10, 3, 3]
    """Return ten orientations of the dodecahedron, far from each other, the upright one first.

    Each is the random candidate farthest from those before it, up to what maps the solid onto itself. Chen et al. use
    ten that are spread evenly, and do not list them: these are our own.
    """
    candidates = _random_rotations(CANDIDATES)
    found = [np.eye(3)]
    nearest = _angles(candidates, found[0])
    while len(found) < NUM_ORIENTATIONS:
        found.append(candidates[int(nearest.argmax())])
        nearest = np.minimum(nearest, _angles(candidates, found[-1]))
    return np.stack(found)


def _angles(candidates: Floats, other: Floats) -> Floats:  # [N, 3, 3], [3, 3] -> [N]
    """Return the least angle between orientations over all rotations of the solid."""
    traces = np.einsum("nji,jk,rki->nr", candidates, other, rotations())
    return np.asarray(np.arccos(((traces.max(axis=1) - 1) / 2).clip(-1, 1)))


def _random_rotations(count: int) -> Floats:  # [N, 3, 3]
    """Return uniform rotations. Source: Shoemake 1992."""
    size, first, second = uniforms(3 * count, "light field").reshape(count, 3).T
    a, b = np.sqrt(1 - size), np.sqrt(size)
    x, y = a * np.sin(2 * np.pi * first), a * np.cos(2 * np.pi * first)
    z, w = b * np.sin(2 * np.pi * second), b * np.cos(2 * np.pi * second)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.asarray(np.array(rows).transpose(2, 0, 1))

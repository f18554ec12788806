"""Improved precision and recall: which images lie within the other set, each set being balls around its members.

Sets are compared chunk by chunk: memory is one chunk against another. Letters: N rows of a chunk, M samples of the
other set, D features.

Source: Kynkaanniemi et al. 2019, equations 1 and 2.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Features = NDArray[np.float32]

NEIGHBOURS = 3
"""The paper's k."""


def squared_radii(
    rows: Features,  # [N, D] a part of the set
    first: int,  # place of the first row in the set
    chunks: Iterable[Features],  # the set, in order
    neighbours: int = NEIGHBOURS,
) -> Floats:  # [N]
    """Return the squared distance of each row to its k-th nearest other sample of its set.

    Infinite where the set has no more than ``neighbours`` samples.
    """
    least = np.full((len(rows), neighbours), np.inf)
    start = 0
    for chunk in chunks:
        distances = squared_distances(rows, chunk)
        own = np.arange(len(rows)) + first - start
        inside = (own >= 0) & (own < len(chunk))
        distances[np.flatnonzero(inside), own[inside]] = np.inf  # itself
        least = np.sort(np.concatenate([least, distances], axis=1), axis=1)[:, :neighbours]
        start += len(chunk)
    return least[:, -1]


def inside(
    rows: Features,  # [N, D]
    chunks: Iterable[Features],  # the other set, in order
    radii: Floats,  # [M] squared radii of its samples
) -> Bools:  # [N]
    """Say which rows lie in the ball of any sample of the other set."""
    found = np.zeros(len(rows), np.bool_)
    start = 0
    for chunk in chunks:
        found |= (squared_distances(rows, chunk) <= radii[start : start + len(chunk)]).any(axis=1)
        start += len(chunk)
    return found


def squared_distances(
    a: Features,  # [N, D]
    b: Features,  # [M, D]
) -> Floats:  # [N, M]
    """Return squared distances, computed around a common centre so that little cancels; exact 0 for equal rows."""
    centre = np.asarray(b[:1], np.float64)
    x, y = a - centre, b - centre
    lengths_x, lengths_y = np.einsum("nd,nd->n", x, x), np.einsum("md,md->m", y, y)
    products = lengths_x[:, None] + lengths_y[None] - 2.0 * (x @ y.T)
    noise = 1e-13 * (lengths_x[:, None] + lengths_y[None])  # what rounding leaves of equal rows
    return np.asarray(np.where(products <= noise, 0.0, products))

"""How well generated shapes cover the reference shapes, from distances alone. Letters: R references, G generated."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def coverage(
    distances: Floats,  # [R, G]
) -> float:
    """Return the share of references that are the nearest one of some generated shape, in [0, 1].

    Among equally near references the first counts. Shapes at infinity (without a surface) are nobody's neighbour.
    Source: Achlioptas et al. 2018, section 2.
    """
    finite = np.isfinite(distances).any(axis=0)
    return len(np.unique(distances[:, finite].argmin(axis=0))) / len(distances)


def minimum_matching_distance(
    distances: Floats,  # [R, G]
) -> float:
    """Return the mean over references of the distance to the nearest generated shape.

    Source: Achlioptas et al. 2018, section 2.
    """
    return float(distances.min(axis=1).mean())


def nearest_neighbour_accuracy(
    between: Floats,  # [R, G]
    references: Floats,  # [R, R]
    generated: Floats,  # [G, G]
) -> float:
    """Return how often the nearest other shape of both sets is from the same set: 0.5 if nobody can tell them apart.

    Of two at the same distance that of the other set counts. Source: Yang et al. 2019 (PointFlow), equation 8.
    """
    own_references = _without_self(references).min(axis=1) < between.min(axis=1)
    own_generated = _without_self(generated).min(axis=1) < between.min(axis=0)
    return float(np.concatenate([own_references, own_generated]).mean())


def _without_self(distances: Floats) -> Floats:
    alone = distances.copy()
    np.fill_diagonal(alone, np.inf)
    return alone

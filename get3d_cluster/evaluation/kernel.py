"""Kernel distance of two sets of features (KID, if they are Inception's). Letters: N samples, D features."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Features = NDArray[np.float32]


def squared_mmd(
    a: Features,  # [N, D], N at least 2
    b: Features,  # [N, D]
) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy; it may be below 0.

    Kernel: (x . y / D + 1)^3. Source: Binkowski et al. 2018 (KID), section 4; Gretton et al. 2012, lemma 6.
    """
    assert min(len(a), len(b)) >= 2
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (
        _mean_off_diagonal(_kernel(x, x))
        + _mean_off_diagonal(_kernel(y, y))
        - 2.0 * float(_kernel(x, y).mean())
    )


def _kernel(x: Floats, y: Floats) -> Floats:
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** 3)


def _mean_off_diagonal(matrix: Floats) -> float:
    count = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1)))

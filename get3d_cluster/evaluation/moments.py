"""Mean and covariance of features that never lie in memory together. Letters: N samples, D features."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.progress import Gaussian

Floats = NDArray[np.float64]
Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """What a Gaussian needs of some samples: D + D * D numbers, however many they are."""

    count: int
    mean: Floats
    """[D]"""
    scatter: Floats
    """[D, D] sum of the outer products of the deviations from the mean"""

    def merged(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of samples, without the cancellation of sums of squares.

        Source: Chan, Golub and LeVeque 1979, equation 2.1, for matrices.
        """
        count = self.count + other.count
        shift = other.mean - self.mean
        share = other.count / count
        return Moments(
            count=count,
            mean=self.mean + share * shift,
            scatter=self.scatter + other.scatter + self.count * share * np.outer(shift, shift),
        )

    def gaussian(self) -> Gaussian:
        """Return the fitted Gaussian. Raises: UsageError if one sample has no covariance."""
        if self.count < 2:
            raise UsageError(f"{self.count} image(s) have no covariance", "measure at least 2, better 10,000")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def moments_of(
    features: Features,  # [N, D]
) -> Moments:
    """Return the moments of one chunk, in float64."""
    values = np.asarray(features, np.float64)
    mean = values.mean(axis=0)
    deviations = values - mean
    return Moments(count=len(values), mean=mean, scatter=deviations.T @ deviations)


def gaussian_of(
    chunks: Iterable[Features],  # [N, D] each
) -> Gaussian:
    """Fit a Gaussian to chunks of features, one in memory at a time. Raises: UsageError for fewer than 2 samples."""
    return reduce(Moments.merged, map(moments_of, chunks)).gaussian()

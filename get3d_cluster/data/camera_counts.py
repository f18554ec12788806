"""How the cameras of a dataset spread, beside those that generated images are taken with. Numpy only.

Shares, not densities: each histogram adds up to 1, so that the two can be laid over each other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Angles = NDArray[np.float64]

_AZIMUTH_BINS = (36, 24, 12, 8)
_ELEVATION_WIDTHS_DEG = (1, 2, 5, 10, 15, 30)
_IMAGES_PER_BIN = 20
"""Fewer would show chance; the coarsest bins are taken for the smallest datasets all the same."""


def camera_counts(
    rotations_deg: Sequence[float],  # [N]
    elevations_deg: Sequence[float],  # [N]
    drawn_elevations_deg: tuple[float, float],
) -> dict[str, Any]:
    """Return both angles' histograms, as a file keeps them: edges in degrees, shares of the data and of what is drawn.

    Generated images are taken from all around, and from heights between ``drawn_elevations_deg``, all alike often.
    """
    around, above = np.asarray(rotations_deg, np.float64) % 360.0, np.asarray(elevations_deg, np.float64)
    drawn = {"azimuth_deg": (0.0, 360.0), "elevation_deg": drawn_elevations_deg}
    edges = {
        "azimuth_deg": azimuth_edges(len(around)),
        "elevation_deg": elevation_edges(above, drawn_elevations_deg),
    }
    data = {"azimuth_deg": around, "elevation_deg": above}
    return {"num_images": len(around)} | {
        name: {
            "edges": edges[name].tolist(),
            "data": shares(data[name], edges[name]).tolist(),
            "data_range": [float(data[name].min()), float(data[name].max())],
            "drawn": uniform_shares(drawn[name], edges[name]).tolist(),
            "drawn_range": list(map(float, drawn[name])),
        }
        for name in edges
    }


def azimuth_edges(num_images: int) -> Angles:
    """Return the edges of bins all around, fewer for few images."""
    fits = (count for count in _AZIMUTH_BINS if count * _IMAGES_PER_BIN <= num_images)
    return np.linspace(0.0, 360.0, next(fits, _AZIMUTH_BINS[-1]) + 1)


def elevation_edges(angles_deg: Angles, drawn_deg: tuple[float, float]) -> Angles:
    """Return edges at round degrees that hold all angles and the whole range that is drawn from."""
    low, high = min(angles_deg.min(), drawn_deg[0]), max(angles_deg.max(), drawn_deg[1])
    most = min(36, max(6, len(angles_deg) // _IMAGES_PER_BIN))
    fits = (width for width in _ELEVATION_WIDTHS_DEG if (high - low) / width <= most)
    width = next(fits, _ELEVATION_WIDTHS_DEG[-1])
    first = np.floor(low / width)
    return width * np.arange(first, max(np.ceil(high / width), first + 1) + 1)


def shares(values: Angles, edges: Angles) -> Angles:  # [bins]
    """Return the share of the values in each bin; a value on an edge belongs to the bin above, the last to the last."""
    counts = np.histogram(values, edges)[0]
    return np.asarray(counts / max(1, counts.sum()))


def uniform_shares(between: tuple[float, float], edges: Angles) -> Angles:  # [bins]
    """Return the share of each bin if all values of a range are alike often; a range may be one value."""
    low, high = between
    if low == high:
        return shares(np.array([low]), edges)
    overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    return np.asarray(overlap.clip(min=0.0) / (high - low))

"""Histograms of cameras against counts by hand."""

import json

import numpy as np
import pytest

from get3d_cluster.data.camera_counts import (
    azimuth_edges,
    camera_counts,
    elevation_edges,
    shares,
    uniform_shares,
)


def test_shares_are_counts_by_hand() -> None:
    found = shares(
        np.array([0.0, 9.9, 10.0, 10.1, 25.0, 30.0, 30.0, 29.0]), np.array([0.0, 10.0, 20.0, 30.0])
    )
    assert found.tolist() == [2 / 8, 2 / 8, 4 / 8]


def test_what_is_drawn_evenly_covers_bins_by_their_overlap() -> None:
    edges = np.array([-10.0, 0.0, 10.0, 20.0, 30.0, 40.0])
    assert uniform_shares((0.0, 30.0), edges) == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])
    assert uniform_shares((5.0, 25.0), edges) == pytest.approx([0, 1 / 4, 1 / 2, 1 / 4, 0])
    assert uniform_shares((20.0, 20.0), edges).tolist() == [0, 0, 0, 1, 0]


def test_directions_beyond_one_turn_are_the_same_direction() -> None:
    found = camera_counts([-90.0, 270.0, 630.0, 360.0], [10.0] * 4, (0.0, 30.0))["azimuth_deg"]
    assert found["edges"] == [0, 45, 90, 135, 180, 225, 270, 315, 360]
    assert found["data"] == [0.25, 0, 0, 0, 0, 0, 0.75, 0]


def test_cameras_outside_of_what_is_drawn_are_counted_and_every_histogram_is_whole() -> None:
    generator = np.random.default_rng(0)
    around, above = generator.uniform(0, 360, 900), generator.uniform(-20, 12, 900)
    found = camera_counts(around.tolist(), above.tolist(), (0.0, 30.0))
    elevation = found["elevation_deg"]
    assert (elevation["edges"][0], elevation["edges"][-1]) == (-20, 30)
    assert elevation["data_range"] == [above.min(), above.max()]
    outside = sum(s for s, left in zip(elevation["data"], elevation["edges"], strict=False) if left < 0)
    assert outside == pytest.approx((above < 0).mean())
    sums = [
        sum(found[angle][kind]) for angle in ("azimuth_deg", "elevation_deg") for kind in ("data", "drawn")
    ]
    assert sums == pytest.approx([1.0] * 4)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("num_images", "num_bins"), [(1, 8), (160, 8), (239, 8), (240, 12), (480, 24), (720, 36), (10**6, 36)]
)
def test_few_images_get_few_bins(num_images: int, num_bins: int) -> None:
    assert len(azimuth_edges(num_images)) - 1 == num_bins
    assert len(elevation_edges(np.linspace(0.0, 30.0, num_images), (0.0, 30.0))) - 1 <= max(
        6, num_images // 20
    )


@pytest.mark.parametrize("at_deg", [-90.0, 0.0, 12.5, 90.0])
def test_a_single_height_has_a_bin(at_deg: float) -> None:
    found = camera_counts([0.0], [at_deg], (at_deg, at_deg))["elevation_deg"]
    assert len(found["edges"]) == 2
    assert found["edges"][0] <= at_deg <= found["edges"][1]
    assert found["data"] == found["drawn"] == [1.0]

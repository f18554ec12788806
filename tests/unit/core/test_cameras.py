from math import cos, pi, radians, sin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from get3d_cluster.core.cameras import (
    FOV_RAD,
    blender_position,
    cam_to_world,
    camera_position,
    condition_of,
    quaternion,
    views_for,
)

FROZEN = (15.991265773773193, 13.900099396705627)
ROTATIONS = st.floats(0, 360)
ELEVATIONS = st.floats(-90, 90)


@given(ROTATIONS, ELEVATIONS)
def test_the_trainer_sees_the_model_from_where_blender_stood(rotation: float, elevation: float) -> None:
    x, y, z = blender_position(rotation, elevation)
    in_obj_space = (x, z, -y)  # inverse of the importer's (x, y, z) -> (x, -z, y)
    assert camera_position(rotation, elevation) == pytest.approx(in_obj_space, abs=1e-12)
    azimuth, polar = condition_of(rotation, elevation)
    told = (-1.2 * sin(polar) * sin(azimuth), 1.2 * cos(polar), -1.2 * sin(polar) * cos(azimuth))
    assert told == pytest.approx(in_obj_space, abs=1e-12)


@given(ROTATIONS, ELEVATIONS)
def test_positions_follow_the_published_formula(rotation: float, elevation: float) -> None:
    r, e = radians(rotation), radians(elevation)
    expected = (-1.2 * sin(r) * cos(e), 1.2 * sin(e), -1.2 * cos(r) * cos(e))
    assert camera_position(rotation, elevation) == pytest.approx(expected, abs=1e-12)


@given(ROTATIONS, ELEVATIONS)
def test_the_pose_is_a_rotation_that_looks_at_the_origin_with_up_upwards(
    rotation: float, elevation: float
) -> None:
    pose = np.array(cam_to_world(rotation, elevation))
    axes, position = pose[:3, :3], pose[:3, 3]
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    np.testing.assert_allclose(position - 1.2 * axes[:, 2], 0, atol=1e-12)
    assert axes[2, 0] == 0  # the horizon is level
    assert axes[2, 1] >= -1e-12


@given(ROTATIONS, ELEVATIONS)
def test_the_quaternion_is_the_pose(rotation: float, elevation: float) -> None:
    w, x, y, z = quaternion(rotation, elevation)
    matrix = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    np.testing.assert_allclose(matrix, np.array(cam_to_world(rotation, elevation))[:3, :3], atol=1e-12)


def test_views_depend_on_every_name_and_are_a_prefix_of_more_views() -> None:
    views = views_for(0, "02958343", "a", 24)
    assert views_for(0, "02958343", "a", 3) == views[:3]
    others = [
        views_for(1, "02958343", "a", 24),
        views_for(0, "03001627", "a", 24),
        views_for(0, "02958343", "b", 24),
    ]
    assert all(not set(other) & set(views) for other in others)


def test_views_of_a_known_model_never_change() -> None:
    first = views_for(0, "02958343", "a", 1)[0]
    assert (first.rotation_deg, first.elevation_deg) == pytest.approx(FROZEN)


def test_views_fill_their_ranges() -> None:
    views = views_for(3, "02958343", "m", 2000, (10.0, 20.0))
    rotations = np.array([view.rotation_deg for view in views])
    elevations = np.array([view.elevation_deg for view in views])
    counts, _ = np.histogram(rotations, bins=8, range=(0, 360))
    assert counts.min() > 200
    assert 10 <= elevations.min() < 10.1
    assert 19.9 < elevations.max() < 20
    assert elevations.mean() == pytest.approx(15, abs=0.3)


@pytest.mark.parametrize("bad", [(30.0, 0.0), (-91.0, 0.0), (0.0, 91.0)])
def test_an_impossible_elevation_range_is_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="elevation_range_deg"):
        views_for(0, "s", "m", 1, bad)


def test_the_field_of_view_is_that_of_the_data() -> None:
    assert FOV_RAD * 180 / pi == pytest.approx(49.134, abs=1e-3)

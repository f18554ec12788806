import math

import pytest
import torch
from torch.testing import assert_close

from get3d_cluster.get3d.camera import (
    FOV_DEG,
    RADIUS,
    camera_position,
    clip_matrices,
    projection,
    world_to_camera,
)

QUARTER = math.pi / 2


def angles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def clip(matrix: torch.Tensor, *point: float) -> torch.Tensor:
    return matrix @ torch.tensor([*point, 1.0], dtype=matrix.dtype)


def test_positions_follow_azimuth_and_polar_angle() -> None:
    seen = camera_position(angles(0, QUARTER, math.pi, 0), angles(QUARTER, QUARTER, QUARTER, 0))
    assert_close(seen, angles(0, 0, -1.2, -1.2, 0, 0, 0, 0, 1.2, 0, 1.2, 0).view(4, 3), atol=1e-15, rtol=0)


def test_the_opening_angle_is_that_of_a_35_mm_lens_before_a_32_mm_sensor() -> None:
    assert pytest.approx(49.13, abs=0.01) == FOV_DEG
    assert projection()[0, 0].item() == pytest.approx(35 / 16)


def test_the_camera_moves_to_the_origin_and_the_object_lies_down_minus_z() -> None:
    azimuth, polar = angles(0.3, 2.0, 5.5), angles(1.1, 1.5, 0.7)
    motion, place = world_to_camera(azimuth, polar, 1.7), camera_position(azimuth, polar, 1.7)
    assert_close(
        (motion[:, :3, :3] @ place[..., None])[..., 0] + motion[:, :3, 3],
        torch.zeros(3, 3).double(),
        atol=1e-14,
        rtol=0,
    )
    assert_close(motion[:, :3, 3], angles(0, 0, -1.7).expand(3, 3))
    rotation = motion[:, :3, :3]
    assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(3, 3, 3), atol=1e-14, rtol=0)
    assert_close(torch.linalg.det(rotation), torch.ones(3).double())


def test_up_is_the_top_row_and_right_is_right() -> None:
    # From -Z, looking towards +Z with +Y up, the viewer's right hand points to -X.
    matrix = clip_matrices(angles(0), angles(QUARTER))[0]
    focal, distance = 35 / 16, RADIUS
    assert_close(clip(matrix, 0, 0.1, 0)[:2], angles(0, -0.1 * focal), atol=1e-15, rtol=0)
    assert_close(clip(matrix, -0.1, 0, 0)[:2], angles(0.1 * focal, 0), atol=1e-15, rtol=0)
    assert clip(matrix, 0, 0, 0)[3].item() == pytest.approx(distance)


def test_depth_grows_away_from_the_viewer_between_the_planes() -> None:
    lens = projection(near=0.1, far=1000.0)
    near, far = clip(lens, 0, 0, -0.1), clip(lens, 0, 0, -1000.0)
    assert (near[2] / near[3]).item() == pytest.approx(-1.0)
    assert (far[2] / far[3]).item() == pytest.approx(1.0)


def test_a_camera_straight_above_has_a_sound_frame() -> None:
    assert torch.linalg.det(world_to_camera(angles(0.4), angles(0))[0, :3, :3]).item() == pytest.approx(1.0)


def test_a_matrix_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    azimuth, polar = torch.rand(9), torch.rand(9)
    together = clip_matrices(azimuth, polar)
    alone = torch.cat([clip_matrices(a[None], p[None]) for a, p in zip(azimuth, polar, strict=True)])
    assert together.dtype == torch.float32
    assert torch.equal(together, alone)


@pytest.mark.parametrize("fov_deg", [0.0, 180.0, -3.0])
def test_an_impossible_opening_angle_is_named(fov_deg: float) -> None:
    with pytest.raises(ValueError, match=f"fov_deg={fov_deg}"):
        projection(fov_deg)

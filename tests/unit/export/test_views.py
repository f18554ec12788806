"""Pictures of the mesh in the files."""

import math

import numpy as np
import pytest
import torch
import trimesh

from get3d_cluster.export.atlas import textured_mesh
from get3d_cluster.export.mesh import TexturedMesh
from get3d_cluster.export.views import Lens, looked_up, textured_views, views
from get3d_cluster.get3d.camera import FOV_DEG, RADIUS

CAMERAS = torch.tensor([[0.0, math.pi / 2], [1.0, 1.2], [0.0, 1e-4]])


def by_place(points: torch.Tensor) -> torch.Tensor:
    return points / 0.8 + 0.5


@pytest.fixture(scope="module")
def ball() -> TexturedMesh:
    sphere = trimesh.creation.icosphere(4, radius=0.4)
    vertices, faces = np.asarray(sphere.vertices, np.float32), np.asarray(sphere.faces, np.int32)
    return textured_mesh(vertices, faces, by_place, size=512)


def test_a_texture_is_read_between_its_texels_and_clamped_at_its_rim() -> None:
    texture = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]])
    uv = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25], [0.0, 1.0], [1.0, 0.0]])
    assert looked_up(texture, uv)[:, 0].tolist() == [0.0, 1.5, 3.0, 0.0, 3.0]


def test_the_texture_shows_what_the_field_says_seams_included(ball: TexturedMesh) -> None:
    lens = Lens(size_px=96, supersampling=1)
    read = textured_views(ball, CAMERAS, lens)
    asked = views(ball.vertices, ball.faces, ball.vertices, by_place, CAMERAS, lens)
    assert (read.colours[..., 3] == asked.colours[..., 3]).all()
    assert np.abs(read.colours - asked.colours).max() < 0.02


def test_a_ball_covers_what_geometry_says_it_covers(ball: TexturedMesh) -> None:
    seen = textured_views(ball, CAMERAS, Lens(size_px=128, supersampling=2))
    half_px = 64 * math.tan(math.asin(0.4 / RADIUS)) / math.tan(math.radians(FOV_DEG / 2))
    for coverage in seen.colours[..., 3]:
        assert coverage.sum() == pytest.approx(math.pi * half_px**2, rel=0.01)
    assert (seen.geometry[..., 3] == seen.colours[..., 3]).all()


def test_the_view_from_behind_is_from_behind_and_from_above_from_above(ball: TexturedMesh) -> None:
    front, _, above = textured_views(ball, CAMERAS, Lens(size_px=65, supersampling=1)).colours
    assert front[32, 32, 2] < 0.05  # azimuth 0 looks from -Z: blue is the colour of z
    assert above[32, 32, 1] > 0.95
    assert front[10, 32, 1] > 0.6 > 0.4 > front[54, 32, 1], "up is up"


def test_each_view_is_the_same_alone_and_among_others(ball: TexturedMesh) -> None:
    lens = Lens(size_px=48)
    together = textured_views(ball, CAMERAS, lens)
    for number, camera in enumerate(CAMERAS):
        alone = textured_views(ball, camera[None], lens)
        assert (alone.colours[0] == together.colours[number]).all()
        assert (alone.geometry[0] == together.geometry[number]).all()

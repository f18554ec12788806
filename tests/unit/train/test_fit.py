"""Whether a configuration fits its images: cameras, background, the box; gammas; the presets."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster import config as configuration
from get3d_cluster.errors import UsageError
from get3d_cluster.get3d import raster
from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.config import GeneratorConfig, GridConfig, RenderConfig
from get3d_cluster.get3d.raster.meshes import pack
from get3d_cluster.train.fit import (
    check_azimuths,
    check_background,
    check_box,
    check_cameras,
    check_fit,
    check_room,
    rays_in_box,
)
from jobs.train import Config
from tests import train_setup as setup

PRESETS = {
    "car": (40, 1.0, (0, 30), 24, 0.9),
    "chair": (400, 0.8, (0, 30), 24, 0.7),
    "motorbike": (80, 1.0, (0, 30), 100, 0.9),
    "table": (400, 0.8, (0, 30), 24, 0.7),
    "animal": (40, 1.0, (0, 45), 100, 0.7),
    "house": (40, 1.0, (0, 30), 100, 0.9),
    "human": (40, 1.0, (0, 20), 100, 0.9),
}
CAMERAS = torch.tensor([[0.3, 1.2], [2.0, 1.5], [4.4, 0.4]])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_on_what_its_render_preset_makes(name: str) -> None:
    from jobs.render import Config as RenderConfig

    gamma, scale, elevation, views, side = PRESETS[name]
    train = configuration.load(Config, setup.CONFIGS / f"{name}.yaml", [])
    render = configuration.load(RenderConfig, setup.CONFIGS / f"render_{name}.yaml", [])
    assert (train.loss.gamma_rgb, train.loss.gamma_mask) == (gamma, gamma)
    assert train.gamma_factor == 1
    assert train.generator.grid.scale == scale > render.image.longest_side == side
    assert train.data.elevation_range_deg == render.image.elevation_range_deg == elevation
    assert render.image.num_views == views
    assert render.image.resolution == train.generator.render.image_size_px


def test_gammas_follow_pixels_and_batch_only_if_asked_to() -> None:
    settings = ["generator.render.image_size_px=256", "discriminator.image_size_px=256", "batch.num_shards=4"]
    settings.append("workers_per_node=4")
    config = configuration.load(Config, setup.CONFIGS / "car.yaml", settings)
    assert config.gamma_factor == 1 / 16 * 2
    assert replace(config, loss=replace(config.loss, gamma_scale="none")).gamma_factor == 1


def test_a_training_takes_the_scaled_gammas_and_says_so(tmp_path: Path) -> None:
    data = setup.dataset(tmp_path / "data")
    given = setup.tiny_config(data)
    factor = (8 / 1024) ** 2 * 32 / given.batch.size
    same = [
        f"loss.gamma_rgb={given.loss.gamma_rgb / factor}",
        f"loss.gamma_mask={given.loss.gamma_mask / factor}",
    ]
    scaled = setup.tiny_config(data, "loss.gamma_scale=pixels_per_batch", *same)
    numbers = []
    for name, config in (("given", given), ("scaled", scaled)):
        work = setup.trainer(config, tmp_path / name)
        work.step()
        numbers.append([p.double().sum().item() for p in work.discriminator.parameters()])
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    assert "gamma-scaled" in (tmp_path / "scaled" / "events.jsonl").read_text()
    assert not (tmp_path / "given" / "events.jsonl").exists()


def test_cameras_outside_of_the_drawn_range_are_refused_with_theirs() -> None:
    with pytest.raises(UsageError) as error:
        check_cameras(torch.tensor([0.5, 44.2]), (0, 30))
    assert error.value.way_out == "set data.elevation_range_deg=[0, 45]"
    check_cameras(torch.tensor([0.5, 31.5]), (0, 30))


def test_a_range_far_wider_than_the_cameras_is_refused() -> None:
    near = torch.linspace(10, 14, 200)
    with pytest.raises(UsageError, match="far wider"):
        check_cameras(near, (0, 30))
    check_cameras(near[:50], (0, 30))
    check_cameras(torch.linspace(0, 16, 200), (0, 30))


def test_a_dataset_of_fronts_alone_is_refused_unless_it_is_allowed(tmp_path: Path) -> None:
    fronts = torch.cat([torch.linspace(-70, 70, 60), torch.linspace(290, 430, 60)])
    with pytest.raises(UsageError, match=r"between azimuths 70.0 and 290.0 degrees, a gap of 220") as error:
        check_azimuths(fronts)
    assert "data.allow_azimuth_gap=true" in error.value.way_out
    check_azimuths(fronts[:99])
    work = setup.trainer(setup.tiny_config(setup.dataset(tmp_path / "data")), tmp_path / "run")
    dataset = Fronts(work._dataset)
    with pytest.raises(UsageError, match="a gap of 220"):
        check_fit(work.config, dataset)
    allowed = replace(work.config, data=replace(work.config.data, allow_azimuth_gap=True))
    check_fit(allowed, dataset)


class Fronts:
    """Many images, all from the front."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.cameras = dataset.cameras.repeat(10, 1)
        self.cameras[:, 0] = torch.deg2rad(torch.linspace(-70, 70, len(self.cameras)))

    def __len__(self) -> int:
        return len(self.cameras)

    def batch(self, indices: Any) -> Any:
        return self._dataset.batch([index % len(self._dataset) for index in indices])


def test_the_gap_at_north_is_one_and_a_gap_of_sixty_degrees_is_none() -> None:
    for first in (0, 7.3, 10, 15, 30):
        six = torch.deg2rad(torch.arange(0, 360, 60).repeat(20) + first).float()
        check_azimuths(torch.rad2deg(six))
    check_azimuths(torch.linspace(-10, 310, 200) + 720)
    with pytest.raises(UsageError, match=r"between azimuths 359.0 and 62.0 degrees, a gap of 63"):
        check_azimuths(torch.linspace(62, 359, 200))


def test_thin_parts_count_as_much_as_thick_ones(tmp_path: Path) -> None:
    """Arms of 7 px at 1024 px vanish from an average, and with them four fifths of the object."""
    image = torch.zeros(1024, 1024)
    image[480:544, 480:544] = 1
    image[508:515, 100:924] = image[100:924, 508:515] = 1
    config = setup.tiny_config(setup.dataset(tmp_path / "data"), "data.allow_azimuth_gap=true")
    work = setup.trainer(config, tmp_path / "run")
    check_fit(work.config, Thin(work._dataset, image))


class Thin:
    """Many images of the same thin thing."""

    def __init__(self, dataset: Any, mask: Any) -> None:
        self._mask = mask
        self.cameras = dataset.cameras.repeat(10, 1)

    def __len__(self) -> int:
        return len(self.cameras)

    def batch(self, indices: Any) -> Any:
        images = self._mask.expand(len(indices), 4, *self._mask.shape)
        return images, self.cameras[list(indices)]


def test_a_box_twice_as_large_as_what_is_seen_is_refused_with_one_that_fits() -> None:
    masks = rays_in_box(CAMERAS, 64, GeneratorConfig(), 0.4).float()
    fits, large = (replace(GeneratorConfig(), grid=GridConfig(scale=side)) for side in (0.8, 1.6))
    check_room(masks, fits)
    with pytest.raises(UsageError, match=r"generator.grid.scale=1.6 is more than twice") as error:
        check_room(masks, large)
    scale = float(error.value.way_out.rpartition("=")[2])
    assert 0.4 <= scale <= 0.8
    said = replace(GeneratorConfig(), grid=GridConfig(scale=scale))
    check_box(masks, CAMERAS, said)
    check_room(masks, said)
    far = replace(GeneratorConfig(), grid=GridConfig(scale=1.6), render=RenderConfig(radius=3.0))
    check_room(masks, far)  # what fills so much of an image is larger from farther away


def test_room_is_looked_at_in_large_datasets(tmp_path: Path) -> None:
    settings = ("generator.grid.scale=4.0", "data.allow_azimuth_gap=true")
    work = setup.trainer(setup.tiny_config(setup.dataset(tmp_path / "data"), *settings), tmp_path / "run")
    check_fit(work.config, work._dataset)
    with pytest.raises(UsageError, match="more than twice"):
        check_fit(work.config, Fronts(work._dataset))


def test_images_without_background_and_without_object_are_refused() -> None:
    with pytest.raises(UsageError, match="none of 3 images has a background"):
        check_background(torch.ones(3, 8, 8))
    with pytest.raises(UsageError, match="all of 3 images are empty"):
        check_background(torch.zeros(3, 8, 8))
    check_background(torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))


def test_rays_meet_the_box_where_the_renderer_draws_it() -> None:
    config, side, size = GeneratorConfig(), 0.5, 64
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1, 1) for z in (-1, 1)]) * side / 2
    hull = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([f for a, b, c, d in hull for f in ((a, b, c), (a, c, d))])
    meshes = pack([(corners, faces)] * len(CAMERAS))
    drawn = raster.render_meshes(
        meshes, clip_matrices(CAMERAS[:, 0], CAMERAS[:, 1]), (size, size), mode="walk"
    )
    covered = drawn.soft[..., 0] > 0.5
    seen = rays_in_box(CAMERAS, size, config, side)
    assert 0.1 < seen.double().mean() < 0.9
    assert (covered ^ seen).double().mean() < 0.01


def test_a_box_that_is_too_small_is_refused_with_one_that_fits() -> None:
    small, wide = (replace(GeneratorConfig(), grid=GridConfig(scale=side)) for side in (0.5, 0.7))
    masks = rays_in_box(CAMERAS, 64, wide, 0.7).float()
    check_box(masks, CAMERAS, wide)
    with pytest.raises(UsageError, match=r"generator.grid.scale=0.5") as error:
        check_box(masks, CAMERAS, small)
    assert "generator.grid.scale=0.75" in error.value.way_out


def test_a_training_that_does_not_fit_stops_before_its_first_step(tmp_path: Path) -> None:
    data = setup.dataset(tmp_path / "data")
    work = setup.trainer(setup.tiny_config(data, "data.elevation_range_deg=[40, 60]"), tmp_path / "run")
    with pytest.raises(UsageError, match="leaves out cameras"):
        work.step()
    assert work.position().step == 0
    fits = setup.trainer(setup.tiny_config(data), tmp_path / "fits")
    check_fit(fits.config, fits._dataset)
    assert math.isfinite(fits.config.gamma_factor)

"""Defaults of a training are those of the published one: each number here is from a description of it, not from us."""

import math
from operator import attrgetter

import pytest

from get3d_cluster.core import cameras
from get3d_cluster.get3d import camera
from get3d_cluster.train.config import DataConfig, TrainerConfig

PUBLISHED = {
    "num_images": 20_000_000,
    "data.mask": "binary",
    "data.elevation_range_deg": (0.0, 30.0),
    "batch.size": 32,
    "batch.shard_size": 4,
    "generator.kind": "unified",
    "generator.latent_channels": 512,
    "generator.mapping.num_layers": 8,
    "generator.mapping.lr_multiplier": 0.01,
    "generator.trunk.resolution_px": 256,
    "generator.trunk.plane_channels": 32,
    "generator.trunk.channel_base": 32768,
    "generator.trunk.channel_max": 512,
    "generator.trunk.noise": True,
    "generator.trunk.resampling": "fir",
    "generator.trunk.clamp": 0.0,
    "generator.fields.hidden_channels": 32,
    "generator.fields.num_hidden": 1,
    "generator.fields.texture_channels": 16,
    "generator.grid.kind": "dmtet",
    "generator.grid.scale": 1.0,
    "generator.render.image_size_px": 1024,
    "generator.render.radius": 1.2,
    "generator.render.fov_deg": math.degrees(2 * math.atan(16 / 35)),
    "generator.render.antialias_rgb": False,
    "discriminator.image_size_px": 1024,
    "discriminator.mask_size_px": 0,
    "discriminator.architecture": "skip",
    "discriminator.channel_base": 32768,
    "discriminator.channel_max": 512,
    "discriminator.resampling": "fir",
    "discriminator.clamp": 0.0,
    "discriminator.minibatch_group": 4,
    "discriminator.camera_conditioning": True,
    "discriminator.camera_channels": 512,
    "discriminator.camera_mapping.num_layers": 8,
    "discriminator.camera_mapping.lr_multiplier": 0.01,
    "loss.gamma_rgb": 40.0,
    "loss.gamma_mask": 40.0,
    "loss.gamma_scale": "none",
    "loss.r1_interval": 16,
    "loss.sdf_entropy": 0.01,
    "loss.empty_shape": 1.0,
    "loss.mesh_deviation": 0.5,
    "loss.mesh_weights": 0.1,
    "loss.mixing_probability": 0.9,
    "loss.reuse_fakes": False,
    "augment.p": 0.0,
    "augment.target": 0.0,
    "optim.lr_generator": 0.002,
    "optim.lr_discriminator": 0.002,
    "optim.betas": (0.0, 0.99),
    "optim.eps": 1e-8,
    "optim.lazy_correction": True,
    "optim.generator_interval": 4,
    "optim.generator_zero_step": True,
    "optim.decay_images": None,
    "average.half_life_images": 10_000.0,
    "average.ramp_up": 0.05,
    "precision.amp": "none",
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_default_is_that_of_the_published_training(key: str) -> None:
    assert attrgetter(key)(TrainerConfig(data=DataConfig(path="cars"))) == PUBLISHED[key]


def test_trainings_pictures_and_rendered_data_have_one_camera() -> None:
    render = TrainerConfig(data=DataConfig(path="cars")).generator.render
    assert render.radius == camera.RADIUS == cameras.RADIUS
    assert render.fov_deg == pytest.approx(camera.FOV_DEG, rel=1e-15)
    assert math.radians(render.fov_deg) == pytest.approx(cameras.FOV_RAD, rel=1e-15)

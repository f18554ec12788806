"""Styles: mapping networks, camera features, mixing, truncation."""

import math

import pytest
import torch

from get3d_cluster.get3d.config import MappingConfig
from get3d_cluster.get3d.mapping import ConditionMapping, Latents, Mapping, camera_features, mix, truncate


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_style_depends_on_the_direction_of_its_latent_alone() -> None:
    mapping, z = Mapping(32, MappingConfig()), torch.randn(4, 32)
    assert len(mapping.layers) == 8
    assert torch.allclose(mapping(z), mapping(5 * z), atol=1e-4)
    assert float(mapping(torch.randn(256, 32)).detach().square().mean()) == pytest.approx(1.0, rel=0.5)


def test_camera_features_are_waves_of_one_two_and_four_times_the_angles_and_the_angles() -> None:
    features = camera_features(torch.tensor([[0.3, 1.2]]))[0]
    expected = [0.3, 1.2]
    for k in (1, 2, 4):
        expected += [math.sin(0.3 * k), math.sin(1.2 * k), math.cos(0.3 * k), math.cos(1.2 * k)]
    assert sorted(features.tolist()) == pytest.approx(sorted(expected), abs=1e-6)
    assert features[-2:].tolist() == pytest.approx([0.3, 1.2])


def test_an_embedded_camera_is_normalised_before_it_is_mapped() -> None:
    mapping = ConditionMapping(16, MappingConfig(num_layers=2, lr_multiplier=0.1), camera=True, num_classes=0)
    cameras = torch.rand(3, 2)
    before = mapping(cameras)
    with torch.no_grad():
        mapping.embed.weight *= 3  # its bias starts at 0
    assert torch.allclose(mapping(cameras), before, atol=1e-4)


def test_mixing_crosses_over_at_each_cut() -> None:
    a = Latents(geo=torch.zeros(2, 5, 3), tex=torch.zeros(2, 4, 3))
    b = Latents(geo=torch.ones(2, 5, 3), tex=torch.ones(2, 4, 3))
    mixed = mix(a, b, 2, 3)
    assert mixed.geo[0, :, 0].tolist() == [0, 0, 1, 1, 1]
    assert mixed.tex[1, :, 0].tolist() == [0, 0, 0, 1]
    assert torch.equal(mix(a, b, None, 1).geo, a.geo)


def test_truncation_moves_every_slot_towards_the_mean() -> None:
    w, mean = torch.randn(2, 4, 3), torch.randn(3)
    assert torch.equal(truncate(w, mean, 0.0), mean.expand(2, 4, 3))
    assert torch.allclose(truncate(w, mean, 1.0), w)
    assert torch.allclose(truncate(w, mean, 0.7) - mean, 0.7 * (w - mean), atol=1e-6)

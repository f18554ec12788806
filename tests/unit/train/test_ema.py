import pytest
import torch
from torch import nn

from get3d_cluster.train import ema
from get3d_cluster.train.config import AverageConfig


def test_a_weight_counts_half_after_a_half_life() -> None:
    config = AverageConfig(half_life_images=800.0, ramp_up=0.05)
    kept = 1.0
    for step in range(100):
        kept *= ema.decay(config, 10_000_000 + 8 * step, 8)
    assert kept == pytest.approx(0.5)


def test_the_ramp_up_begins_with_a_copy_and_ends_at_the_full_length() -> None:
    config = AverageConfig(half_life_images=1000.0, ramp_up=0.05)
    assert ema.decay(config, 0, 8) == 0.0
    decays = [ema.decay(config, images, 8) for images in range(0, 24_000, 800)]
    assert decays == sorted(decays)
    assert decays[-1] == ema.decay(AverageConfig(half_life_images=1000.0, ramp_up=0.0), 0, 8)


def test_the_prototype_s_decay_per_step_is_a_half_life() -> None:
    assert ema.decay(AverageConfig(half_life_images=2770.0, ramp_up=0.0), 0, 8) == pytest.approx(
        0.998, abs=1e-5
    )


def test_parameters_move_and_buffers_are_copied() -> None:
    average, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(7.0)
    ema.update(average, model, 0.75)
    assert torch.equal(average.weight, torch.full((3,), 1.5))
    assert torch.equal(average.running_mean, model.running_mean)

"""The running average of the generator's weights. Source: Karras et al. 2018; the ramp-up is StyleGAN2's."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from get3d_cluster.train.config import AverageConfig


def decay(config: AverageConfig, images_seen: int, batch_size: int) -> float:
    """Return how much of the average one step keeps: 0 at the start, then up to a half per half-life.

    >>> round(decay(AverageConfig(half_life_images=100, ramp_up=0.0), 0, 50), 4)
    0.7071
    """
    half_life = config.half_life_images
    if config.ramp_up:
        half_life = min(half_life, config.ramp_up * images_seen)
    return float(0.5 ** (batch_size / half_life)) if half_life > 0 else 0.0


def without_ramp_up(config: AverageConfig) -> AverageConfig:
    """The ramp-up forgets random weights soon; weights that were trained before are worth keeping."""
    return replace(config, ramp_up=0.0)


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, beta: float) -> None:
    """Move the parameters of ``average`` towards those of ``model``; copy the buffers."""
    mine: list[Tensor] = list(average.parameters())
    theirs: list[Tensor] = list(model.parameters())
    torch._foreach_lerp_(mine, theirs, 1.0 - beta)
    saved = model.state_dict()
    for name, buffer in average.named_buffers():
        if name in saved:  # the others are functions of the config
            buffer.copy_(saved[name])

"""Both networks and both optimizers, as they are before the first step, and the rates of a step."""

import torch
from torch import nn

from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.train.adam import Adam
from get3d_cluster.train.config import OptimConfig, TrainerConfig


def networks(config: TrainerConfig, device: str) -> tuple[Generator, Discriminator]:
    """Return new networks whose weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator, discriminator = Generator(config.generator), Discriminator(config.discriminator)
    return generator.to(device), discriminator.to(device)


def optimizers(config: TrainerConfig, generator: nn.Module, discriminator: nn.Module) -> tuple[Adam, Adam]:
    """Return the optimizers of both networks; the discriminator's further steps are R1's."""
    optim = config.optim
    return (
        adam(generator, optim.lr_generator, optim, optim.generator_interval),
        adam(discriminator, optim.lr_discriminator, optim, config.loss.r1_interval),
    )


def adam(model: nn.Module, lr: float, config: OptimConfig, interval: int) -> Adam:
    """Return the optimizer of a network that takes one more step every ``interval`` (0: never).

    One implementation is pinned: Adam's are not bit-equal to each other. This one goes over each parameter once
    instead of ten times. Source: Karras et al. 2020, appendix B.
    """
    factor = _lazy_factor(config, interval)
    beta1, beta2 = config.betas
    return Adam(
        model.parameters(), lr=lr * factor, betas=(beta1**factor, beta2**factor), eps=config.eps, fused=True
    )


def set_rates(config: TrainerConfig, adam_g: Adam, adam_d: Adam, images: int) -> None:
    """Take the rates after ``images`` from the configuration: they fall, and may be lowered between attempts."""
    optim = config.optim
    factor = optim.rate_factor(images)
    rates = (
        (adam_g, optim.lr_generator, optim.generator_interval),
        (adam_d, optim.lr_discriminator, config.loss.r1_interval),
    )
    for optimizer, lr, interval in rates:
        for group in optimizer.param_groups:
            group["lr"] = lr * factor * _lazy_factor(optim, interval)


def _lazy_factor(config: OptimConfig, interval: int) -> float:
    return interval / (interval + 1) if config.lazy_correction and interval else 1.0

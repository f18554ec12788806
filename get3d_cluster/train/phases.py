"""What one micro-shard computes in each phase of a step: losses from draws, ready for a backward pass.

A draw is a function of (seed, step, sample of the global batch), never of the worker; style mixing is decided once for
a micro-shard. Letters: N samples of a shard, H W pixels, S style channels.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from get3d_cluster.core.philox import Phase
from get3d_cluster.get3d.discriminator import Discriminator, Logits
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.losses import HeadLosses, fake_loss, generator_loss, r1_penalty, real_loss
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.train import random
from get3d_cluster.train.augment import Augmentation, unchanged
from get3d_cluster.train.classes import draw_classes
from get3d_cluster.train.config import LossConfig, TrainerConfig

Judge = Callable[..., Logits]
"""``Discriminator.forward``, perhaps in another precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A micro-shard of one step."""

    seed: int
    step: int
    index: int
    size: int

    def samples(self, device: torch.device) -> Tensor:
        """Return the places of its samples in the global batch, [N] int64."""
        return torch.arange(self.index * self.size, (self.index + 1) * self.size, device=device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """Which random numbers a phase draws its latents and cameras from."""

    geo: Phase
    tex: Phase
    mix_geo: Phase
    mix_tex: Phase
    cut: Phase
    camera: Phase
    label: Phase
    noise: Phase


GENERATOR_STREAMS = Streams(
    geo=Phase.LATENT_GEO,
    tex=Phase.LATENT_TEX,
    mix_geo=Phase.MIX_LATENT_GEO,
    mix_tex=Phase.MIX_LATENT_TEX,
    cut=Phase.MIX_CUTOFF,
    camera=Phase.CAMERA,
    label=Phase.CLASS,
    noise=Phase.NOISE,
)
DISCRIMINATOR_STREAMS = Streams(
    geo=Phase.D_LATENT_GEO,
    tex=Phase.D_LATENT_TEX,
    mix_geo=Phase.D_MIX_LATENT_GEO,
    mix_tex=Phase.D_MIX_LATENT_TEX,
    cut=Phase.D_MIX_CUTOFF,
    camera=Phase.D_CAMERA,
    label=Phase.D_CLASS,
    noise=Phase.D_NOISE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fakes:
    """Generated images of a shard."""

    image: Tensor  # [N, 4, H, W]
    cameras: Tensor  # [N, 2] azimuth, polar, radians
    classes: Tensor | None  # [N] int64
    w_mean: Tensor  # [2 S] mean style of the shard, geometry then texture
    sdf_entropy: Tensor
    penalty: Tensor  # mean over the shard
    deviation: Tensor  # of FlexiCubes, else 0
    weights_square: Tensor  # of FlexiCubes, else 0

    def detached(self) -> "Fakes":
        """Return the same images without what their gradients would need."""
        return replace(
            self,
            image=self.image.detach(),
            sdf_entropy=self.sdf_entropy.detach(),
            penalty=self.penalty.detach(),
            deviation=self.deviation.detach(),
            weights_square=self.weights_square.detach(),
        )


GENERATOR_NUMBERS = (
    "loss_g_rgb", "loss_g_mask", "sdf_entropy", "empty_penalty", "logit_fake_rgb", "logit_fake_mask",
    "mesh_deviation", "mesh_weights",
)  # fmt: skip
DISCRIMINATOR_NUMBERS = (
    "loss_d_rgb", "loss_d_mask", "logit_real_rgb", "logit_real_mask", "sign_real_rgb", "sign_real_mask",
)  # fmt: skip
R1_NUMBERS = ("r1_rgb", "r1_mask")


class Reals(NamedTuple):
    """Real images of a shard."""

    images: Tensor  # [N, 4, H, W]
    cameras: Tensor  # [N, 2] azimuth, polar, radians
    classes: Tensor | None = None  # [N] int64


def generate(
    generator: Generator,
    config: TrainerConfig,
    shard: Shard,
    streams: Streams,
    labels: Tensor | None = None,  # [dataset] int64: class of each real image, if the generator has classes
) -> Fakes:
    """Draw latents, classes and cameras of a shard and render them."""
    samples = shard.samples(generator.w_avg_geo.device)
    classes = draw_classes(shard.seed, shard.step, streams.label, samples, labels)
    first = generator.map(*_latents(generator, shard, samples, streams.geo, streams.tex), classes)
    mixed = _mixed(generator, config.loss.mixing_probability, shard, samples, streams, first, classes)
    if generator.config.num_noise:
        count = generator.config.num_noise
        mixed = replace(mixed, noise=random.normals(shard.seed, shard.step, streams.noise, samples, count))
    cameras = draw_cameras(shard.seed, shard.step, streams.camera, samples, config.data.elevation_range_deg)
    rendered = generator.render(mixed, cameras)
    return Fakes(
        image=rendered.image,
        cameras=cameras,
        classes=classes,
        w_mean=generator.w_mean(first),
        sdf_entropy=rendered.shapes.sdf_entropy,
        penalty=rendered.shapes.penalty.mean(),
        deviation=rendered.shapes.deviation,
        weights_square=rendered.shapes.weights_square,
    )


def generator_shard(
    judge: Judge, config: LossConfig, fakes: Fakes, augmented: Augmentation = unchanged
) -> tuple[Tensor, Tensor]:
    """Return the generator's loss for a shard and ``GENERATOR_NUMBERS``."""
    logits = judge(augmented(fakes.image), fakes.cameras, fakes.classes)
    loss = generator_loss(logits)
    total = loss.total + config.sdf_entropy * fakes.sdf_entropy + config.empty_shape * fakes.penalty
    total = total + config.mesh_deviation * fakes.deviation + config.mesh_weights * fakes.weights_square
    numbers = (
        *loss, fakes.sdf_entropy, fakes.penalty, logits.rgb.mean(), logits.mask.mean(),
        fakes.deviation, fakes.weights_square,
    )  # fmt: skip
    return total, torch.stack(numbers).detach()


class Judged(NamedTuple):
    """What one half of the discriminator's loss comes to, for a shard."""

    loss: HeadLosses
    logits: Logits


def judge_reals(judge: Judge, reals: Reals, augmented: Augmentation = unchanged) -> Judged:
    """Return the half of the loss that real images give. Needs nothing of the generator."""
    logits = judge(augmented(reals.images), reals.cameras, reals.classes)
    return Judged(real_loss(logits), logits)


def judge_fakes(judge: Judge, fakes: Fakes, augmented: Augmentation = unchanged) -> Judged:
    """Return the half of the loss that generated images give.

    A pass of its own: images are compared within a batch, and real ones must not be compared with generated ones.
    """
    logits = judge(augmented(fakes.image.detach()), fakes.cameras, fakes.classes)
    return Judged(fake_loss(logits), logits)


def judge_both(
    judge: Judge,
    fakes: Fakes,
    reals: Reals,
    augmented_fakes: Augmentation = unchanged,
    augmented_reals: Augmentation = unchanged,
) -> tuple[Judged, Judged]:
    """Return what ``judge_fakes`` and ``judge_reals`` return, from one pass. Each are compared with their own."""
    images = torch.cat([augmented_fakes(fakes.image.detach()), augmented_reals(reals.images)])
    cameras = torch.cat([fakes.cameras, reals.cameras])
    classes = None
    if fakes.classes is not None and reals.classes is not None:
        classes = torch.cat([fakes.classes, reals.classes])
    logits = judge(images, cameras, classes, sets=2)
    fake, real = (Logits(*half) for half in zip(*(head.chunk(2) for head in logits), strict=True))
    return Judged(fake_loss(fake), fake), Judged(real_loss(real), real)


def discriminator_numbers(fakes: Judged, reals: Judged) -> Tensor:
    """Return ``DISCRIMINATOR_NUMBERS`` of a shard."""
    losses = [fake + real for fake, real in zip(fakes.loss, reals.loss, strict=True)]
    means = [logits.mean() for logits in reals.logits]
    signs = [logits.sign().mean() for logits in reals.logits]
    return torch.stack((*losses, *means, *signs)).detach()


def r1_shard(
    discriminator: Discriminator, config: LossConfig, reals: Reals, augmented: Augmentation = unchanged
) -> tuple[Tensor, Tensor]:
    """Return the R1 penalty of a shard times its interval, and ``R1_NUMBERS`` without it.

    The gradient is that with respect to the images before they are augmented. In the precision of the weights: it is
    small numbers beside large ones, and the derivative of a derivative.
    """
    images = reals.images.detach().requires_grad_()
    logits = discriminator(augmented(images), reals.cameras, reals.classes)
    penalty = r1_penalty(logits, images, config.gamma_rgb, config.gamma_mask)
    return penalty.total * config.r1_interval, torch.stack(penalty).detach()


def draw_cameras(
    seed: int,
    step: int,
    phase: Phase,
    samples: Tensor,  # [N] int64
    elevation_range_deg: tuple[float, float],
) -> Tensor:  # [N, 2] azimuth, polar, radians
    """Draw cameras: uniform in both angles, as upstream does."""
    low, high = (math.radians(90 - degrees) for degrees in reversed(elevation_range_deg))
    uniform = random.uniforms(seed, step, phase, samples, 2)
    return torch.stack([uniform[:, 0] * (2 * math.pi), low + (high - low) * uniform[:, 1]], dim=1)


def named(names: tuple[str, ...], numbers: Tensor) -> Mapping[str, float]:
    """Give each number its name."""
    return dict(zip(names, numbers.tolist(), strict=True))


def losses_of(phase: str, numbers: Tensor) -> Mapping[str, float]:
    """Return the losses among the numbers of a phase, of both heads; R1 has none."""
    names = {"generator": GENERATOR_NUMBERS, "discriminator": DISCRIMINATOR_NUMBERS, "r1": R1_NUMBERS}[phase]
    return {name: value for name, value in named(names, numbers).items() if name.startswith("loss_")}


def _latents(
    generator: Generator, shard: Shard, samples: Tensor, geo: Phase, tex: Phase
) -> tuple[Tensor, Tensor]:  # [N, Z] each
    width = generator.config.latent_channels
    return (
        random.normals(shard.seed, shard.step, geo, samples, width),
        random.normals(shard.seed, shard.step, tex, samples, width),
    )


def _mixed(
    generator: Generator,
    probability: float,
    shard: Shard,
    samples: Tensor,
    streams: Streams,
    first: Latents,
    classes: Tensor | None = None,
) -> Latents:
    """Mix in styles of other latents of the same class, behind a cut of the shard's own; the same for all its samples.

    Source: upstream, one cut for a micro-batch, a fresh second latent for every sample.
    """
    slots = (generator.config.num_ws_geo, generator.config.num_ws_tex)
    place = torch.tensor([shard.index])
    draws = random.uniforms(shard.seed, shard.step, streams.cut, place, 4)[0].tolist()
    cut_geo, cut_tex = (
        1 + int(where * (count - 1)) if whether < probability else None
        for count, whether, where in zip(slots, draws[:2], draws[2:], strict=True)
    )
    if cut_geo is None and cut_tex is None:
        return first
    second = generator.map(*_latents(generator, shard, samples, streams.mix_geo, streams.mix_tex), classes)
    return generator.mix(first, second, cut_geo, cut_tex)

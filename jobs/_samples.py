"""What a generator makes to be measured: a function of seed and number, whatever is made beside it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.core.philox import Phase, key_of
from get3d_cluster.errors import UsageError
from get3d_cluster.evaluation.features import as_bytes
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.train import random
from get3d_cluster.train.phases import draw_cameras
from get3d_cluster.train.previews import latents_of
from jobs import train

if TYPE_CHECKING:
    from jobs.evaluate import Config


@torch.no_grad()
def random_pixels(
    generator: Generator, trained: train.Config, numbers: Sequence[int], config: "Config"
) -> Tensor:  # [N, 3, H, W] uint8
    """Render shapes from random cameras of the training, as the discriminator sees them.

    Raises: UsageError if an image is not finite.
    """
    device, images = generator.w_avg_geo.device, []
    key = key_of("evaluate", str(config.seed))
    for part in torch.tensor(numbers, device=device).split(config.batch):
        cameras = draw_cameras(key, 0, Phase.CAMERA, part, trained.data.elevation_range_deg)
        latents = mixed_latents(generator, trained, part, config)
        image = generator.render(latents, cameras).image[:, :3]
        if not bool(image.isfinite().all()):
            raise UsageError(
                f"images {part.tolist()} of the generator are not finite",
                "the training diverged: measure an earlier step",
            )
        images.append(as_bytes(image).cpu())
    return torch.cat(images)


@torch.no_grad()
def random_mesh(
    generator: Generator, trained: train.Config, number: int, config: "Config"
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:  # [V, 3], [F, 3]
    """Return one closed surface."""
    samples = torch.tensor([number], device=generator.w_avg_geo.device)
    latents = mixed_latents(generator, trained, samples, config)
    vertices, faces = generator.shapes(latents, closed=True).meshes.mesh(0)
    return vertices.cpu().numpy().astype(np.float64), faces.cpu().numpy().astype(np.int32)


def mixed_latents(generator: Generator, trained: train.Config, samples: Tensor, config: "Config") -> Latents:
    """Return styles, mixed as often as in training; each sample has cuts of its own, so batches do not matter."""
    first = latents_of(generator, "evaluate", config.seed, samples, config.psi)
    second = latents_of(generator, "evaluate mixing", config.seed, samples, config.psi)
    key = key_of("evaluate mixing", str(config.seed))
    draws = random.uniforms(key, 0, Phase.MIX_CUTOFF, samples, 4).tolist()
    parts = []
    for i, (geo, tex, where_geo, where_tex) in enumerate(draws):
        one, two = (Latents(geo=each.geo[i : i + 1], tex=each.tex[i : i + 1]) for each in (first, second))
        cut_geo = _cut(geo, where_geo, first.geo.shape[1], trained.loss.mixing_probability)
        cut_tex = _cut(tex, where_tex, first.tex.shape[1], trained.loss.mixing_probability)
        parts.append(generator.mix(one, two, cut_geo, cut_tex))
    return Latents(geo=torch.cat([each.geo for each in parts]), tex=torch.cat([each.tex for each in parts]))


def _cut(whether: float, where: float, num_slots: int, probability: float) -> int | None:
    return 1 + int(where * (num_slots - 1)) if whether < probability else None

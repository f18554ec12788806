"""What a generator makes to be measured: a function of seed and number, whatever is made beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

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
from get3d_cluster.train.classes import draw_classes
from get3d_cluster.train.phases import draw_cameras
from get3d_cluster.train.previews import latents_of


@dataclass(frozen=True, kw_only=True)
class Law:
    """What samples are drawn by."""

    seed: int
    psi: float
    batch: int
    """Images rendered at a time."""
    mixing_probability: float
    """The training's."""
    elevation_range_deg: tuple[float, float]
    labels: Tensor | None
    """Classes of the real images [dataset] int64, drawn as often as they occur there; None without classes"""


@torch.no_grad()
def random_pixels(generator: Generator, law: Law, numbers: Sequence[int]) -> Tensor:  # [N, 3, H, W] uint8
    """Render shapes from random cameras of the training, as the discriminator sees them.

    Raises: UsageError if an image is not finite.
    """
    device, images = generator.w_avg_geo.device, []
    key = key_of("evaluate", str(law.seed))
    for part in torch.tensor(numbers, device=device).split(law.batch):
        cameras = draw_cameras(key, 0, Phase.CAMERA, part, law.elevation_range_deg)
        latents = mixed_latents(generator, law, part)
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
    generator: Generator, law: Law, number: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:  # [V, 3], [F, 3]
    """Return one closed surface."""
    samples = torch.tensor([number], device=generator.w_avg_geo.device)
    shapes = generator.shapes(mixed_latents(generator, law, samples), closed=True)
    vertices, faces = shapes.meshes.mesh(0)
    return vertices.cpu().numpy().astype(np.float64), faces.cpu().numpy().astype(np.int32)


def mixed_latents(generator: Generator, law: Law, samples: Tensor) -> Latents:
    """Return styles, mixed as often as in training; each sample has cuts of its own, so batches do not matter."""
    key = key_of("evaluate", str(law.seed))
    classes = draw_classes(key, 0, Phase.CLASS, samples, law.labels)
    first, second = (
        latents_of(generator, purpose, law.seed, samples, law.psi, classes)
        for purpose in ("evaluate", "evaluate mixing")
    )
    draws = random.uniforms(key, 0, Phase.MIX_CUTOFF, samples, 4).tolist()
    parts = []
    for i, (geo, tex, where_geo, where_tex) in enumerate(draws):
        one, two = (Latents(geo=each.geo[i : i + 1], tex=each.tex[i : i + 1]) for each in (first, second))
        cut_geo = _cut(geo, where_geo, first.geo.shape[1], law.mixing_probability)
        cut_tex = _cut(tex, where_tex, first.tex.shape[1], law.mixing_probability)
        parts.append(generator.mix(one, two, cut_geo, cut_tex))
    return Latents(geo=torch.cat([each.geo for each in parts]), tex=torch.cat([each.tex for each in parts]))


def _cut(whether: float, where: float, num_slots: int, probability: float) -> int | None:
    return 1 + int(where * (num_slots - 1)) if whether < probability else None

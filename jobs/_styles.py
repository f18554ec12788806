"""The styles of a run's shapes by number: drawn from its seed or given in files; mixed, truncated, between two."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from get3d_cluster.core.philox import Phase, key_of
from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.config import GeneratorConfig
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.train import random
from get3d_cluster.train.classes import in_turn
from get3d_cluster.train.previews import latents_of
from jobs._latents import Given

if TYPE_CHECKING:
    from jobs.generate import Config

CHUNK = 1000
PURPOSE = "generate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Between:
    """A style on the way from one shape to another."""

    first: int
    second: int
    share: float = 0.0
    """0: the first, 1: the second"""


class Styles:
    """Numbers to styles. A function of checkpoint, settings and files: the same on any worker."""

    def __init__(self, generator: Generator, config: "Config", given: Sequence[Given]) -> None:
        self._generator = generator
        self._config = config
        self._given = given
        self._device = generator.w_avg_geo.device
        self._category = category_of(generator.config, config.category)
        self._centres: dict[int | None, Tensor] = {}

    @torch.no_grad()
    def at(self, geo: Between, tex: Between) -> Latents:
        """Return the styles of one shape, its geometry and its texture each from a place of its own."""
        first, second = self._of(geo.first), self._of(geo.second)
        other, another = self._of(tex.first), self._of(tex.second)
        return Latents(
            geo=_between(first.geo, second.geo, geo.share), tex=_between(other.tex, another.tex, tex.share)
        )

    def _of(self, number: int) -> Latents:  # N = 1
        given = self._given[number] if self._given else Given()
        if given.w is not None:
            w = torch.from_numpy(given.w).to(self._device)[None]
            return Latents(
                geo=w[:, : self._generator.config.num_ws_geo], tex=w[:, self._generator.config.num_ws_geo :]
            )
        samples, classes = torch.tensor([number], device=self._device), self._class_of(number)
        if given.z is not None:
            z_geo, z_tex = (torch.from_numpy(each).to(self._device)[None] for each in given.z)
            latents = self._generator.map(z_geo, z_tex, classes)
        else:
            latents = latents_of(self._generator, PURPOSE, self._config.seed, samples, classes=classes)
        return self._truncated(self._mixed(latents, samples, classes), classes)

    def _truncated(self, latents: Latents, classes: Tensor | None) -> Latents:
        if self._config.psi == 1.0:
            return latents
        if self._config.w_avg_samples:
            self._generator.update_w_avg(self._centre(classes), beta=0.0)
        return self._generator.truncate(latents, self._config.psi)

    def _mixed(self, first: Latents, samples: Tensor, classes: Tensor | None) -> Latents:
        """Mix in the style of another latent of the same class, behind a cut of the shape's own: as in training."""
        if not self._config.mixing:
            return first
        config, key = self._generator.config, key_of(PURPOSE, str(self._config.seed))
        draws = random.uniforms(key, 0, Phase.MIX_CUTOFF, samples, 4)[0].tolist()
        cut_geo, cut_tex = (
            1 + int(where * (count - 1)) if whether < self._config.mixing else None
            for count, whether, where in zip(
                (config.num_ws_geo, config.num_ws_tex), draws[:2], draws[2:], strict=True
            )
        )
        z_geo, z_tex = (
            random.normals(key, 0, phase, samples, config.latent_channels)
            for phase in (Phase.MIX_LATENT_GEO, Phase.MIX_LATENT_TEX)
        )
        return self._generator.mix(first, self._generator.map(z_geo, z_tex, classes), cut_geo, cut_tex)

    def _class_of(self, number: int) -> Tensor | None:  # [1]
        if self._category is not None:
            return torch.tensor([self._category], device=self._device)
        return in_turn(torch.tensor([number], device=self._device), len(self._generator.config.classes))

    def _centre(self, classes: Tensor | None) -> Tensor:  # [1] -> [2 W]
        """Return the mean style that psi pulls towards: of the shape's own class, not of all."""
        key = None if classes is None else int(classes)
        if key not in self._centres:
            count = self._config.w_avg_samples
            self._centres[key] = fresh_mean(self._generator, self._config.seed, count, classes)
        return self._centres[key]


def category_of(config: GeneratorConfig, name: str) -> int | None:
    """Return the number of a class; None for all in turn. Raises: UsageError if there is no such class."""
    if not name:
        return None
    if name not in config.classes:
        raise UsageError(
            f"category={name} is none of the training's generator.classes={list(config.classes)}",
            f"give one of {list(config.classes)}"
            if config.classes
            else "leave out category: it has no classes",
        )
    return config.classes.index(name)


def fresh_mean(
    generator: Generator,
    seed: int,
    count: int,
    classes: Tensor | None = None,  # [1]
) -> Tensor:  # [2 W]
    """Return the mean style of ``count`` fresh latents of a class. Source: upstream, before anything is shown."""
    numbers = torch.arange(count, device=generator.w_avg_geo.device)

    def mean(chunk: Tensor) -> Tensor:
        same = None if classes is None else classes.expand(len(chunk))
        return generator.w_mean(latents_of(generator, "w_avg", seed, chunk, classes=same))

    means = [mean(chunk).double() * len(chunk) for chunk in numbers.split(CHUNK)]
    return (torch.stack(means).sum(dim=0) / count).to(generator.w_avg_geo.dtype)


def _between(a: Tensor, b: Tensor, share: float) -> Tensor:
    return a if share == 0.0 else b if share == 1.0 else a.lerp(b, share)

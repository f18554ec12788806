"""From latents, or embedded cameras, to style vectors; mixing and truncating styles."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from get3d_cluster.get3d.config import MappingConfig
from get3d_cluster.get3d.ops import FullyConnected, normalise_second_moment

_FREQUENCIES = (1.0, 2.0, 4.0)
NUM_CAMERA_FEATURES = 2 * 2 * len(_FREQUENCIES) + 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """Styles of N samples: one vector for each slot, that is, for each layer it modulates."""

    geo: Tensor  # [N, num_ws_geo, W]
    tex: Tensor  # [N, num_ws_tex, W]
    noise: Tensor | None = (
        None  # [N, config.num_noise] of separate trunks in training; none: the fixed images
    )


class Mapping(nn.Module):
    """Fully connected layers of one width, after scaling the input to unit root mean square.

    A class is embedded, scaled likewise, and put beside the latent. Source: Karras et al. 2020 (StyleGAN2-ADA).
    """

    def __init__(self, channels: int, config: MappingConfig, num_classes: int = 0) -> None:
        super().__init__()
        widths = [channels * 2 if num_classes else channels, *[channels] * config.num_layers]
        self.embed = FullyConnected(num_classes, channels) if num_classes else None
        self.layers = nn.Sequential(
            *(
                FullyConnected(num_in, num_out, activate=True, lr_multiplier=config.lr_multiplier)
                for num_in, num_out in pairwise(widths)
            )
        )

    def forward(
        self,
        z: Tensor,  # [N, Z]
        classes: Tensor | None = None,  # [N] int64, if there are classes
    ) -> Tensor:  # [N, Z]
        x = normalise_second_moment(z)
        if self.embed is not None:
            embedded: Tensor = self.embed(one_hot(classes, self.embed.num_in, x))
            x = torch.cat([x, normalise_second_moment(embedded)], dim=1)
        w: Tensor = self.layers(x)
        return w


class ConditionMapping(nn.Module):
    """The vector that image features are compared with, for each camera, class, or pair of both."""

    def __init__(self, channels: int, config: MappingConfig, *, camera: bool, num_classes: int) -> None:
        super().__init__()
        self.camera, self.num_classes = camera, num_classes
        self.embed = FullyConnected(NUM_CAMERA_FEATURES * camera + num_classes, channels)
        self.mapping = Mapping(channels, config)

    def forward(
        self,
        cameras: Tensor,  # [N, 2] azimuth, polar, radians
        classes: Tensor | None = None,  # [N] int64, if there are classes
    ) -> Tensor:  # [N, C]
        features = [camera_features(cameras)] if self.camera else []
        features += [one_hot(classes, self.num_classes, cameras)] if self.num_classes else []
        w: Tensor = self.mapping(self.embed(torch.cat(features, dim=1)))
        return w


def one_hot(classes: Tensor | None, num_classes: int, like: Tensor) -> Tensor:  # [N] int64 -> [N, K]
    """Return 1 at each sample's class, in the type of ``like``.

    Raises: ValueError if a class is needed and not given.
    """
    if classes is None:
        raise ValueError(f"this network tells {num_classes} classes apart: say which one each sample has")
    return F.one_hot(classes, num_classes).to(like)


def camera_features(cameras: Tensor) -> Tensor:  # [N, 2] azimuth, polar, radians -> [N, 14]
    """Return sine and cosine of 1, 2 and 4 times the angles, then the angles themselves."""
    waves = [wave(cameras * k) for k in _FREQUENCIES for wave in (torch.sin, torch.cos)]
    return torch.cat([*waves, cameras], dim=1)


def mix(a: Latents, b: Latents, cut_geo: int | None, cut_tex: int | None) -> Latents:
    """Take the slots below each cut from ``a`` and the others from ``b``; no cut: all from ``a``."""
    return replace(a, geo=_cross_over(a.geo, b.geo, cut_geo), tex=_cross_over(a.tex, b.tex, cut_tex))


def truncate(w: Tensor, w_avg: Tensor, psi: float) -> Tensor:  # [N, L, W], [W]
    """Move styles towards their mean: all the way for psi 0, not at all for psi 1."""
    return w_avg + (w - w_avg) * psi


def _cross_over(a: Tensor, b: Tensor, cut: int | None) -> Tensor:
    return a if cut is None else torch.cat([a[:, :cut], b[:, cut:]], dim=1)

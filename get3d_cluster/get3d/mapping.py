"""From latents, or embedded cameras, to style vectors; mixing and truncating styles."""

from dataclasses import dataclass

import torch
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


class Mapping(nn.Module):
    """Fully connected layers of one width, after scaling the input to unit root mean square."""

    def __init__(self, channels: int, config: MappingConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                FullyConnected(channels, channels, activate=True, lr_multiplier=config.lr_multiplier)
                for _ in range(config.num_layers)
            )
        )

    def forward(self, z: Tensor) -> Tensor:  # [N, Z] -> [N, Z]
        w: Tensor = self.layers(normalise_second_moment(z))
        return w


class CameraMapping(nn.Module):
    """The vector that image features are compared with, for each camera."""

    def __init__(self, channels: int, config: MappingConfig) -> None:
        super().__init__()
        self.embed = FullyConnected(NUM_CAMERA_FEATURES, channels)
        self.mapping = Mapping(channels, config)

    def forward(self, cameras: Tensor) -> Tensor:  # [N, 2] azimuth, polar, radians -> [N, C]
        w: Tensor = self.mapping(self.embed(camera_features(cameras)))
        return w


def camera_features(cameras: Tensor) -> Tensor:  # [N, 2] azimuth, polar, radians -> [N, 14]
    """Return sine and cosine of 1, 2 and 4 times the angles, then the angles themselves."""
    waves = [wave(cameras * k) for k in _FREQUENCIES for wave in (torch.sin, torch.cos)]
    return torch.cat([*waves, cameras], dim=1)


def mix(a: Latents, b: Latents, cut_geo: int | None, cut_tex: int | None) -> Latents:
    """Take the slots below each cut from ``a`` and the others from ``b``; no cut: all from ``a``."""
    return Latents(geo=_cross_over(a.geo, b.geo, cut_geo), tex=_cross_over(a.tex, b.tex, cut_tex))


def truncate(w: Tensor, w_avg: Tensor, psi: float) -> Tensor:  # [N, L, W], [W]
    """Move styles towards their mean: all the way for psi 0, not at all for psi 1."""
    return w_avg + (w - w_avg) * psi


def _cross_over(a: Tensor, b: Tensor, cut: int | None) -> Tensor:
    return a if cut is None else torch.cat([a[:, :cut], b[:, cut:]], dim=1)

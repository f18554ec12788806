"""The trunk: from styles to three geometry planes and three texture planes. Source: StyleGAN2, output skips."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from get3d_cluster.get3d.config import TrunkConfig
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.get3d.ops import ModulatedConv, ModulatedLinear, lowered, upsample


@dataclass(frozen=True, kw_only=True, slots=True)
class Planes:
    """Features of N samples on planes of R x R pixels; the planes span (x, y), (y, z) and (x, z), in that order.

    The first coordinate of a plane runs along its columns, the second along its rows.
    """

    geo: Tensor  # [N, R, R, 3, C] sample, row, column, plane, channel
    tex: Tensor  # [N, R, R, 3, C]

    def mirrored(self) -> "Planes":
        """Return planes whose features at -x are those at x: the mean of both, which has no crease at 0."""
        return Planes(geo=_mirrored(self.geo), tex=_mirrored(self.tex))


def _mirrored(planes: Tensor) -> Tensor:  # [N, R, R, 3, C]
    xy, yz, xz = planes.unbind(3)
    both = torch.stack([xy, xz], dim=3)  # x runs along their columns
    xy, xz = torch.lerp(both, both.flip(2), 0.5).unbind(3)
    return torch.stack([xy, yz, xz], dim=3)


class Block(nn.Module):
    """The convolutions of one resolution and their two outputs.

    Every convolution obeys the geometry style alone; the texture style modulates the texture output only.
    """

    def __init__(self, config: TrunkConfig, resolution_px: int, style_channels: int) -> None:
        super().__init__()
        self.fir = config.resampling == "fir"
        width = config.channels_at(resolution_px)
        inputs = [width] if resolution_px == 4 else [config.channels_at(resolution_px // 2), width]
        self.convs = nn.ModuleList(
            ModulatedConv(
                num_in,
                width,
                style_channels,
                resolution_px,
                up=len(inputs) == 2 and i == 0,
                fir=self.fir,
                noise=config.noise,
                clamp=config.clamp,
            )
            for i, num_in in enumerate(inputs)
        )
        outputs = 3 * config.plane_channels
        self.to_geo = ModulatedLinear(width, outputs, style_channels, demodulate=False)
        self.to_tex = ModulatedLinear(width, outputs, style_channels, demodulate=False)

    def forward(
        self,
        x: Tensor,  # [N, I, H, W]
        planes: Tensor | None,  # [N, 6 C, H, W] the sum of the outputs so far
        ws_geo: Tensor,  # [N, num_ws_geo, S]
        w_tex: Tensor,  # [N, S]
    ) -> tuple[Tensor, Tensor]:  # [N, O, R, R], [N, 6 C, R, R]
        """Compute in the type of ``x``; outputs are added up in that of the styles."""
        for i, conv in enumerate(self.convs):
            x = conv(x, ws_geo[:, i])
        output = self._outputs(x, ws_geo[:, -1], w_tex).to(w_tex.dtype)
        return x, output if planes is None else upsample(planes, fir=self.fir) + output

    def _outputs(self, x: Tensor, w_geo: Tensor, w_tex: Tensor) -> Tensor:
        matrices = torch.cat([self.to_geo.matrices(w_geo), self.to_tex.matrices(w_tex)], dim=2)
        bias = torch.cat([self.to_geo.bias, self.to_tex.bias])
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [N, R R, O]; a view while x is channels_last
        y = torch.baddbmm(bias.to(x.dtype), pixels, matrices.to(x.dtype))
        return y.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


class Trunk(nn.Module):
    """Blocks at 4, 8, ... px, from a learned constant."""

    def __init__(self, config: TrunkConfig, style_channels: int) -> None:
        super().__init__()
        resolutions = [2**k for k in range(2, config.resolution_px.bit_length())]
        self.plane_channels = config.plane_channels
        self.constant = nn.Parameter(torch.randn(config.channels_at(4), 4, 4))
        self.blocks = nn.ModuleList(Block(config, r, style_channels) for r in resolutions)
        firsts = [max(0, 3 * i - 1) for i in range(len(resolutions) + 1)]  # 2 slots at 4 px, then 3 each
        self.slots_geo = [slice(a, b) for a, b in pairwise(firsts)]

    def forward(self, latents: Latents, dtype: torch.dtype | None = None) -> Planes:
        """Compute the planes, their convolutions in ``dtype``; styles beyond the trunk's own slots are ignored."""
        constant = lowered(self.constant, dtype)
        x = constant.expand(len(latents.geo), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        planes: Tensor | None = None
        for i, (block, slots) in enumerate(zip(self.blocks, self.slots_geo, strict=True)):
            x, planes = block(x, planes, latents.geo[:, slots], latents.tex[:, i])
        assert planes is not None  # there is a block at 4 px
        split = planes.permute(0, 2, 3, 1).unflatten(3, (2, 3, self.plane_channels))
        return Planes(geo=split[:, :, :, 0], tex=split[:, :, :, 1])

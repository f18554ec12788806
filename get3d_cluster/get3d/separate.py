"""The two trunks of the paper's main text: volumes for the geometry, planes for the texture, which share nothing.

Source: Gao et al. 2022 (GET3D), section 3.1 and supplement; sizes are those of the published training.
Shapes: N samples, C channels (I in, O out), D = H = W cells of a volume, S style channels, V grid vertices.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from get3d_cluster.get3d.config import TrunkConfig, VolumeConfig
from get3d_cluster.get3d.fields import Field
from get3d_cluster.get3d.ops import (
    LRELU_GAIN,
    Affine,
    ModulatedConv,
    ModulatedLinear,
    demodulation,
    leaky_relu,
    lowered,
    upsample,
)

NUM_POSITION_FEATURES = 6
"""Sine and cosine of pi times each coordinate."""


class VolumeConv(nn.Module):
    """A 3 x 3 x 3 convolution, modulated and demodulated, without noise; bias, leaky ReLU, gain."""

    def __init__(self, num_in: int, num_out: int, style_channels: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.affine = Affine(style_channels, num_in)
        self.weight = nn.Parameter(torch.randn(num_out, num_in, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(num_out))

    def forward(
        self,
        x: Tensor,  # [N, I, D, H, W]
        w: Tensor,  # [N, S]
    ) -> Tensor:  # [N, O, D, H, W]
        style = self.affine(w)
        gain = LRELU_GAIN * self.gain
        scale = demodulation(self.weight.square().sum(dim=(2, 3, 4)), style) * gain
        y = F.conv3d(x * style[:, :, None, None, None], self.weight, padding=1)
        bias = (self.bias * gain)[:, None, None, None]
        return leaky_relu(torch.addcmul(bias, y, scale[:, :, None, None, None]))


class VolumeBlock(nn.Module):
    """Doubles the size: two convolutions beside a 1 x 1 x 1 one, averaged so that the variance stays."""

    def __init__(self, num_in: int, num_out: int, style_channels: int) -> None:
        super().__init__()
        half = math.sqrt(0.5)
        self.around = nn.Parameter(torch.randn(num_out, num_in, 1, 1, 1))
        self.around_gain = half / math.sqrt(num_in)
        self.first = VolumeConv(num_in, num_out, style_channels)
        self.second = VolumeConv(num_out, num_out, style_channels, gain=half)

    def forward(self, x: Tensor, ws: Tensor) -> Tensor:  # [N, I, D, D, D], [N, 2, S] -> [N, O, 2 D, 2 D, 2 D]
        x = doubled(x)
        y: Tensor = self.second(self.first(x, ws[:, 0]), ws[:, 1])
        return y + F.conv3d(x, self.around * self.around_gain)


class VolumeTrunk(nn.Module):
    """From styles to a volume of features: 4, 8, ... cells a side, from a learned constant."""

    def __init__(self, config: VolumeConfig, style_channels: int) -> None:
        super().__init__()
        widths = [config.channels_at(side) for side in config.sides]
        self.constant = nn.Parameter(torch.randn(widths[0], 4, 4, 4))
        self.first = VolumeConv(widths[0], widths[0], style_channels)
        self.blocks = nn.ModuleList(VolumeBlock(a, b, style_channels) for a, b in pairwise(widths))

    def forward(self, ws: Tensor) -> Tensor:  # [N, num_convs, S] -> [N, C, R, R, R]
        x: Tensor = self.first(self.constant.expand(len(ws), -1, -1, -1, -1), ws[:, 0])
        for i, block in enumerate(self.blocks):
            x = block(x, ws[:, 2 * i + 1 : 2 * i + 3])
        return x


class VolumeField(nn.Module):
    """A function on the grid's vertices: a volume of its own, looked up, and a network with the position beside it."""

    def __init__(
        self, config: VolumeConfig, num_hidden: int, num_out: int, style_channels: int, *, demodulate: bool
    ) -> None:
        super().__init__()
        self.num_convs = config.num_convs
        self.trunk = VolumeTrunk(config, style_channels)
        num_in = config.channels_at(config.resolution) + NUM_POSITION_FEATURES
        widths = [num_in, *[config.hidden_channels] * num_hidden, num_out]
        self.field = Field(widths, style_channels, demodulate_output=demodulate)

    def forward(
        self,
        ws: Tensor,  # [N, slots, S]
        lattices: list[Tensor],  # [A, R] interpolation to the grid's coordinates along an axis
        positions: Tensor,  # [V, 6] from `position_features`
    ) -> Tensor:  # [N, V, O]
        volume = self.trunk(ws[:, : self.num_convs])
        looked_up = torch.cat([volume_features(volume, lattice) for lattice in lattices], dim=1)
        features = torch.cat([looked_up, positions.expand(len(ws), -1, -1)], dim=2)
        return self.field.evaluate(features, self.field.matrices(ws[:, self.num_convs :]))


class TextureTrunk(nn.Module):
    """From styles to texture planes alone. Source: StyleGAN2, output skips."""

    def __init__(self, config: TrunkConfig, style_channels: int) -> None:
        super().__init__()
        self.resolutions = [2**k for k in range(2, config.resolution_px.bit_length())]
        self.fir = config.resampling == "fir"
        widths = [config.channels_at(r) for r in self.resolutions]
        self.constant = nn.Parameter(torch.randn(widths[0], 4, 4))
        inputs = [[widths[0]], *([a, b] for a, b in pairwise(widths))]
        self.convs = nn.ModuleList(
            nn.ModuleList(
                ModulatedConv(
                    num_in, width, style_channels, r,
                    up=len(before) == 2 and i == 0, fir=self.fir, noise=config.noise, clamp=config.clamp,
                )
                for i, num_in in enumerate(before)
            )
            for r, width, before in zip(self.resolutions, widths, inputs, strict=True)
        )  # fmt: skip
        self.outputs = nn.ModuleList(
            ModulatedLinear(width, 3 * config.plane_channels, style_channels, demodulate=False)
            for width in widths
        )

    def forward(
        self,
        ws: Tensor,  # [N, slots, S] each convolution and each output in turn; the rest is ignored
        noise: Tensor | None = None,  # [N, num_noise] in place of the fixed images
        dtype: torch.dtype
        | None = None,  # of convolutions and outputs, which are added up in that of the styles
    ) -> Tensor:  # [N, R, R, 3, C]
        x = (
            lowered(self.constant, dtype)
            .expand(len(ws), -1, -1, -1)
            .contiguous(memory_format=torch.channels_last)
        )
        planes: Tensor | None = None
        slot = first = 0
        for convs, output, side in zip(self.convs, self.outputs, self.resolutions, strict=True):
            for conv in convs:  # type: ignore[attr-defined] # a ModuleList in a ModuleList
                own = None if noise is None else noise[:, first : first + side**2].view(-1, 1, side, side)
                x = conv(x, ws[:, slot], own)
                slot, first = slot + 1, first + side**2
            y = _output(output, x, ws[:, slot]).to(ws.dtype)  # type: ignore[arg-type]
            planes = y if planes is None else upsample(planes, fir=self.fir) + y
            slot += 1
        assert planes is not None  # there is a block at 4 px
        return planes.permute(0, 2, 3, 1).reshape(len(ws), *planes.shape[2:], 3, -1)


def doubled(x: Tensor) -> Tensor:  # [N, C, D, H, W]
    """Double the size trilinearly, border repeated.

    Axis by axis from shifted copies, whose gradient is deterministic on every device; that of ``interpolate`` is not.
    """
    for axis in (2, 3, 4):
        count = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, count - 1)], dim=axis)
        after = torch.cat([x.narrow(axis, 1, count - 1), x.narrow(axis, count - 1, 1)], dim=axis)
        pair = torch.stack([x.lerp(before, 0.25), x.lerp(after, 0.25)], dim=axis + 1)
        x = pair.flatten(axis, axis + 1)
    return x


def corner_aligned(coordinates: Tensor, resolution: int) -> Tensor:  # [A] in [-1, 1] -> [A, R]
    """Return the weights of linear interpolation between cells whose outermost centres lie at -1 and 1."""
    centres = torch.arange(resolution, dtype=coordinates.dtype)
    place = (coordinates + 1) * ((resolution - 1) / 2)
    return (1 - (place[:, None] - centres).abs()).clamp(min=0)


def volume_features(volume: Tensor, lattice: Tensor) -> Tensor:  # [N, C, R, R, R], [A, R] -> [N, A^3, C]
    """Look a volume up at all points of a cubic lattice, x slowest; its axes are x, y, z."""
    for axis in (2, 3, 4):
        volume = (volume.movedim(axis, -1) @ lattice.t()).movedim(-1, axis)
    return volume.flatten(2).transpose(1, 2)


def position_features(positions: Tensor) -> Tensor:  # [V, 3] in [-1, 1] -> [V, 6]
    """Return sine, then cosine, of pi times the coordinates."""
    return torch.cat([torch.sin(math.pi * positions), torch.cos(math.pi * positions)], dim=1)


def _output(layer: ModulatedLinear, x: Tensor, w: Tensor) -> Tensor:  # [N, I, H, W] -> [N, O, H, W]
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    y = torch.baddbmm(layer.bias.to(x.dtype), pixels, layer.matrices(w).to(x.dtype))
    return y.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)

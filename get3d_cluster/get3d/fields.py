"""Plane features at points, and the small modulated networks that turn them into distance or texture.

Points are in [-1, 1] on each axis of the grid's box; beyond the outermost pixel centres the planes fade to 0.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from get3d_cluster.get3d.ops import LRELU_GAIN, FullyConnected, ModulatedLinear, leaky_relu

PLANE_AXES = ((0, 1), (1, 2), (0, 2))
"""Axes of the three planes: the first runs along the columns, the second along the rows."""

_PAINT_DEVIATION = 0.5
"""How much the paint varies between shapes at the start; black is 0 and white is 2."""


def interpolation_matrix(
    coordinates: Tensor,  # [A] in [-1, 1]
    resolution_px: int,
) -> Tensor:  # [A, R]
    """Return the weights of linear interpolation between pixel centres, zeros outside."""
    centres = torch.arange(resolution_px, dtype=coordinates.dtype, device=coordinates.device)
    place = (coordinates + 1) * (resolution_px / 2) - 0.5
    return (1 - (place[:, None] - centres).abs()).clamp(min=0)


def lattice_matrix(cells: int, resolution_px: int) -> Tensor:  # [2 cells + 1, R]
    """Return the interpolation to the corners, then the centres, of ``cells`` cells along one axis."""
    return interpolation_matrix(lattice_coordinates(cells), resolution_px).float()


def lattice_coordinates(cells: int) -> Tensor:  # [2 cells + 1] float64
    """Return where the corners, then the centres, of ``cells`` cells lie along one axis."""
    corners = torch.arange(cells + 1, dtype=torch.float64) * 2 - cells
    return torch.cat([corners, corners[:-1] + 1]) / cells


def lattice_features(
    planes: Tensor,  # [N, R, R, 3, C]
    matrix: Tensor,  # [2 cells + 1, R], or [cells + 1, R]
    cells: int,
) -> Tensor:  # [N, V, C] in the order of `bcc_grid`, or `cube_grid`
    """Sample the planes at all vertices of a body-centred cubic grid, or of a cubic one.

    Vertices share their coordinates, so each plane is sampled at (cells + 1)^2 + cells^2 places only, by two small
    matrix products whose gradient is deterministic on every device, and the sums over planes are broadcast.
    """
    num, res, _, _, channels = planes.shape
    rows = matrix @ planes.reshape(num, res, res * 3 * channels)
    both = matrix @ rows.unflatten(2, (res, 3 * channels))
    samples = both.unflatten(3, (3, channels))
    corners = _sum_of_planes(samples[:, : cells + 1, : cells + 1])
    if len(matrix) == cells + 1:
        return corners
    centres = _sum_of_planes(samples[:, cells + 1 :, cells + 1 :])
    return torch.cat([corners, centres], dim=1)


def _sum_of_planes(samples: Tensor) -> Tensor:  # [N, A, A, 3, C] second axis, first axis -> [N, A^3, C]
    xy, yz, xz = samples.transpose(1, 2).unbind(3)
    return ((xy[:, :, :, None] + xz[:, :, None, :]) + yz[:, None]).flatten(1, 3)


def point_features(
    planes: Tensor,  # [R, R, 3, C] of one sample
    points: Tensor,  # [P, 3] in [-1, 1], no gradient
) -> Tensor:  # [P, C]
    """Return the sum of the three planes at points."""
    if planes.is_cuda and torch.are_deterministic_algorithms_enabled():
        return _bags(planes, points)  # grid_sample has no deterministic gradient on CUDA
    places = torch.stack([points[:, axes] for axes in PLANE_AXES])
    sampled = F.grid_sample(planes.permute(2, 3, 0, 1), places[:, :, None], align_corners=False)
    return sampled.sum(dim=0).squeeze(2).t()


def _bags(planes: Tensor, points: Tensor) -> Tensor:
    """Return what ``point_features`` returns, as weighted sums of 12 pixels."""
    res = planes.shape[0]
    index, weight = [], []
    for plane, (first, second) in enumerate(PLANE_AXES):
        columns, column_weights = _neighbours(points[:, first], res)
        rows, row_weights = _neighbours(points[:, second], res)
        pixel = (rows[:, :, None] * res + columns[:, None, :]).flatten(1)
        index.append(pixel * 3 + plane)
        weight.append((row_weights[:, :, None] * column_weights[:, None, :]).flatten(1))
    pixels = planes.reshape(-1, planes.shape[3])
    return F.embedding_bag(torch.cat(index, 1), pixels, per_sample_weights=torch.cat(weight, 1), mode="sum")


def _neighbours(coordinate: Tensor, resolution_px: int) -> tuple[Tensor, Tensor]:  # [P] -> [P, 2], [P, 2]
    """Return the two nearest pixels and their weights; a pixel outside the plane has weight 0."""
    place = (coordinate + 1) * (resolution_px / 2) - 0.5
    low = place.floor()
    pixel = torch.stack([low, low + 1], dim=1)
    weight = 1 - (place[:, None] - pixel).abs()
    inside = (pixel >= 0) & (pixel < resolution_px)
    return pixel.clamp(0, resolution_px - 1).long(), weight * inside


class Field(nn.Module):
    """A modulated network evaluated at many points of each sample: hidden layers, then a linear one."""

    def __init__(
        self,
        widths: Sequence[int],  # inputs, hidden layers, outputs
        style_channels: int,
        *,
        demodulate_output: bool = True,
    ) -> None:
        super().__init__()
        last = len(widths) - 2
        self.layers = nn.ModuleList(
            ModulatedLinear(
                widths[i], widths[i + 1], style_channels, demodulate=i < last or demodulate_output
            )
            for i in range(last + 1)
        )

    def matrices(self, ws: Tensor) -> list[Tensor]:  # [N, layers, S] -> [N, I, O] for each layer
        """Modulate every layer, once for all points."""
        return [layer.matrices(ws[:, i]) for i, layer in enumerate(self._linear())]

    def evaluate(
        self,
        x: Tensor,  # [N, P, I]
        matrices: Sequence[Tensor],  # [N, I, O] for each layer
    ) -> Tensor:  # [N, P, O]
        """Apply the network, in the type of ``x``."""
        *hidden, last = zip(matrices, self._linear(), strict=True)
        for matrix, layer in hidden:
            bias = (layer.bias * LRELU_GAIN).to(x.dtype)
            x = leaky_relu(torch.baddbmm(bias, x, (matrix * LRELU_GAIN).to(x.dtype)))
        return torch.baddbmm(last[1].bias.to(x.dtype), x, last[0].to(x.dtype))

    def _linear(self) -> list[ModulatedLinear]:
        return cast("list[ModulatedLinear]", list(self.layers))


class Palette(nn.Module):
    """Colours of each sample, and their mixing by texture features.

    Each colour is a share of the sample's one paint plus a colour that all samples have in common: paint, glass, tyres,
    lamps. They begin as shades of the paint, from black up. Not from the paper.
    """

    def __init__(self, num_colours: int, style_channels: int, background: float) -> None:
        super().__init__()
        self.paint = FullyConnected(style_channels, 3, bias_init=1.0)
        self.share = nn.Parameter(torch.linspace(0, 2, num_colours))
        self.common = nn.Parameter(torch.zeros(num_colours, 3))
        self.bias = nn.Parameter(torch.full((3,), background))
        with torch.no_grad():
            self.paint.weight.mul_(_PAINT_DEVIATION)

    def matrices(self, w: Tensor) -> Tensor:  # [N, S] -> [N, K, 3]
        """Return how the colours of each sample differ from the background."""
        paint: Tensor = self.paint(w)
        return self.share[:, None] * paint[:, None] + self.common

    def tints(self, texture: Tensor, matrix: Tensor) -> Tensor:  # [P, K], [K, 3] -> [P, 3]
        """Mix the colours of one sample."""
        mixed: Tensor = texture.softmax(dim=1) @ matrix
        return mixed

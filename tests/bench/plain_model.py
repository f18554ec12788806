"""The same mathematics as ``get3d_cluster.get3d`` in ordinary operations, as one would write it down first.

- Modulation before and after an ordinary convolution, in planar memory; gain, noise, bias and slope one after another.
- FIR resampling by zeros between pixels, padding, a depthwise convolution, and every second pixel.
- Plane features by ``grid_sample`` at every vertex of the grid and every covered pixel, padded to the longest sample.
- Marching tetrahedra shape by shape, whose shared vertices ``unique`` finds in every call.
- Shapes rendered one after another.

``plain_operations`` puts these in place of the package's. Weights and names stay, so both compute the same images.
"""

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from get3d_cluster.get3d import discriminator, fields, generator, ops, raster, synthesis, tets
from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.get3d.raster import Meshes
from get3d_cluster.get3d.raster.meshes import pack
from get3d_cluster.get3d.synthesis import Planes

GAIN = math.sqrt(2.0)


def slope(x: Tensor, factor: float = 1.0) -> Tensor:
    return F.leaky_relu(x, 0.2) * (GAIN * factor)


def fully_connected(self: ops.FullyConnected, x: Tensor) -> Tensor:
    y = F.linear(x, self.weight * self.weight_gain, self.bias * self.lr_multiplier)
    return slope(y) if self.activate else y


def fir(x: Tensor, pad: tuple[int, int, int, int], gain: float = 1.0) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = (taps[:, None] * taps * gain).repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(F.pad(x, pad), kernel, groups=x.shape[1])


def downsample(x: Tensor, *, fir: bool) -> Tensor:
    assert fir
    return _fir(x, (1, 1, 1, 1))[:, :, ::2, ::2]


_fir = fir


def upsample(x: Tensor, *, fir: bool) -> Tensor:
    assert fir
    num, channels, height, width = x.shape
    wide = x.new_zeros(num, channels, height, 2, width, 2)
    wide[:, :, :, 0, :, 0] = x
    return _fir(wide.view(num, channels, 2 * height, 2 * width), (2, 1, 2, 1), gain=4.0)


def conv(self: ops.Conv, x: Tensor) -> Tensor:
    weight = self.weight * self.weight_gain
    blurred = fir(x, (2, 2, 2, 2)) if self.down else F.pad(x, (self.kernel // 2,) * 4)
    y = F.conv2d(blurred, weight, stride=2 if self.down else 1)
    if self.bias is not None:
        y = y + self.bias[None, :, None, None]
    return slope(y, self.gain) if self.activate else y * self.gain


def modulated_conv(self: ops.ModulatedConv, x: Tensor, w: Tensor, noise: None = None) -> Tensor:
    style = self.affine(w)
    weight = self.weight[None] * style[:, None, :, None, None]
    scale = (weight.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()
    x = x * style[:, :, None, None]
    if self.up:
        x = fir(F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2), (1, 1, 1, 1), gain=4.0)
    else:
        x = F.conv2d(x, self.weight, padding=1)
    x = x * scale[:, :, None, None]
    if self.noise_strength is not None:
        x = x + self.noise * self.noise_strength
    return slope(x + self.bias[None, :, None, None])


def outputs(self: synthesis.Block, x: Tensor, w_geo: Tensor, w_tex: Tensor) -> Tensor:
    made = []
    for layer, w in ((self.to_geo, w_geo), (self.to_tex, w_tex)):
        style = layer.affine(w) / math.sqrt(layer.weight.shape[1])
        y = F.conv2d(x * style[:, :, None, None], layer.weight[:, :, None, None])
        made.append(y + layer.bias[None, :, None, None])
    return torch.cat(made, dim=1)


def trunk(self: synthesis.Trunk, latents: Latents, dtype: None = None) -> Planes:
    x: Tensor = self.constant[None].repeat(len(latents.geo), 1, 1, 1)
    planes = None
    for i, (block, slots) in enumerate(zip(self.blocks, self.slots_geo, strict=True)):
        x, planes = block(x, planes, latents.geo[:, slots], latents.tex[:, i])
    assert planes is not None
    split = planes.permute(0, 2, 3, 1).unflatten(3, (2, 3, self.plane_channels))
    return Planes(geo=split[:, :, :, 0], tex=split[:, :, :, 1])


def features(planes: Tensor, points: Tensor) -> Tensor:  # [N, R, R, 3, C], [N, P, 3] -> [N, P, C]
    total = None
    for plane, axes in enumerate(fields.PLANE_AXES):
        image = planes[:, :, :, plane].permute(0, 3, 1, 2)
        sampled = F.grid_sample(image, points[:, None, :, list(axes)], align_corners=False)[:, :, 0]
        total = sampled if total is None else total + sampled
    assert total is not None
    return total.transpose(1, 2)


def decode(field: fields.Field, x: Tensor, ws: Tensor) -> Tensor:  # [N, P, I], [N, layers, S] -> [N, P, O]
    last = len(field.layers) - 1
    for i, layer in enumerate(field.layers):
        style = layer.affine(ws[:, i])
        if layer.demodulate:
            weight = layer.weight[None] * style[:, None]
            weight = weight * (weight.square().sum(dim=2, keepdim=True) + 1e-8).rsqrt()
        else:
            weight = layer.weight[None] * (style / math.sqrt(layer.weight.shape[1]))[:, None]
        x = torch.bmm(x, weight.transpose(1, 2)) + layer.bias
        x = slope(x) if i < last else x
    return x


def geometry(self: Generator, planes: Planes, latents: Latents) -> tuple[Tensor, Tensor, None]:
    config, grid = self.config.fields, self.config.grid
    points = (self.grid_vertices * (2 / grid.scale))[None].expand(len(planes.geo), -1, -1)
    ws = latents.geo[:, -(config.num_hidden + 1) :]
    x = features(planes.geo, points)
    sdf = decode(self.sdf_field, x, ws)[:, :, 0] * config.sdf_gain
    if config.sphere_gain:
        sdf = sdf + config.sphere_gain * (config.sphere_radius - self.grid_vertices.norm(dim=1))
    x = features(planes.geo, points)
    raw = decode(self.deformation_field, x, ws)
    return sdf, torch.tanh(raw) * (grid.max_deformation / grid.num_cells), None


def tints(self: Generator, planes: Planes, latents: Latents, sample_index: Tensor, points: Tensor) -> Tensor:
    """Pad all samples to the longest, decode them together, and take the padding away."""
    num, ws = len(planes.tex), latents.tex[:, -(self.config.fields.num_hidden + 1) :]
    places = (points.detach() * (2 / self.config.grid.scale)).clamp(-1, 1)
    own = [places[sample_index == i] for i in range(num)]
    most = max(map(len, own))
    padded = torch.stack([F.pad(each, (0, 0, 0, most - len(each))) for each in own])
    texture = decode(self.texture_field, features(planes.tex, padded), ws)
    layer = self.colour
    style = layer.affine(ws[:, -1]) / math.sqrt(layer.weight.shape[1])
    rgb = torch.bmm(texture, (layer.weight[None] * style[:, None]).transpose(1, 2))
    return torch.cat([rgb[i, : len(each)] for i, each in enumerate(own)])


def marching(positions: Tensor, sdf: Tensor, grid: tets.TetGrid) -> Meshes:
    """Extract shape by shape; shared vertices are those pairs of ends that ``unique`` finds equal."""
    return pack([_march(p, s, grid) for p, s in zip(positions, sdf, strict=True)])


def _march(positions: Tensor, sdf: Tensor, grid: tets.TetGrid) -> tuple[Tensor, Tensor]:
    inside = sdf.detach() > 0
    corners = inside[grid.tets]
    count = corners.sum(dim=1)
    crossed = (count > 0) & (count < 4)
    ends = grid.tets[crossed][:, torch.tensor(tets.TET_EDGES)].reshape(-1, 2).sort(dim=1).values
    edges, place = torch.unique(ends, dim=0, return_inverse=True)
    cut = inside[edges].sum(dim=1) == 1
    number = torch.full((len(edges),), -1, dtype=torch.int64)
    number[cut] = torch.arange(int(cut.sum()))
    a, b = edges[cut].unbind(1)
    weight = (sdf[a] / (sdf[a] - sdf[b]))[:, None]
    verts = positions[a] * (1 - weight) + positions[b] * weight
    case = (corners[crossed].long() * torch.tensor([1, 2, 4, 8])).sum(dim=1)
    local = tets._CASES[case]
    there = number[place].view(-1, 6).gather(1, local.clamp(min=0).view(-1, 6)).view(-1, 2, 3)
    return verts, there[local[:, :, 0] >= 0]


def image(
    self: Generator,
    shapes: generator.Shapes,
    latents: Latents,
    cameras: Tensor,
    image_size_px: int | None = None,
) -> Tensor:
    """Render shape after shape, then colour all of them."""
    config, size = self.config.render, image_size_px or self.config.render.image_size_px
    matrices = clip_matrices(cameras[:, 0], cameras[:, 1], radius=config.radius, fov_deg=config.fov_deg)
    surfaces = [
        raster.render_meshes(
            [shapes.meshes.mesh(i)], matrices[i : i + 1], (size, size), mode=config.antialias
        )
        for i in range(len(shapes.meshes))
    ]
    owner = torch.cat([torch.full((len(s.position),), i) for i, s in enumerate(surfaces)])
    colours = self._tints(shapes.planes, latents, owner, torch.cat([s.position for s in surfaces]))
    images = []
    for i, surface in enumerate(surfaces):
        rgb = self._limit(raster.to_image(surface.frag, colours[owner == i]) + self.background)
        if config.antialias_rgb:
            rgb = raster.blend(rgb, surface.blends.detach())
        images.append(torch.cat([rgb, surface.soft], dim=3))
    return torch.cat(images).permute(0, 3, 1, 2)


def head(  # as ours
    self: discriminator.Head,
    image: Tensor,
    cameras: Tensor,
    classes: Tensor | None = None,
    dtype: None = None,
    sets: int = 1,
) -> Tensor:
    x = self._skip_features(image.contiguous(), dtype)
    logit: Tensor = self.last(x, cameras, classes, sets)
    return logit


REPLACED = (
    (ops.FullyConnected, "forward", fully_connected),
    (ops.Conv, "forward", conv),
    (ops.ModulatedConv, "forward", modulated_conv),
    (synthesis.Block, "_outputs", outputs),
    (synthesis.Trunk, "forward", trunk),
    (synthesis, "upsample", upsample),
    (discriminator, "downsample", downsample),
    (discriminator.Head, "forward", head),
    (Generator, "_geometry", geometry),
    (Generator, "_tints", tints),
    (Generator, "image", image),
    (tets, "marching_tets", marching),
)


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Compute with these instead of the package's operations."""
    with contextlib.ExitStack() as stack:
        for owner, name, plain in REPLACED:
            stack.enter_context(mock.patch.object(owner, name, plain))
        yield

"""The published weight files, stated a second time: names and shapes, and what networks of such weights compute.

Written from the description of the networks and from error messages that users posted, knowing nothing of
``get3d_cluster.get3d.published``: the table of names is tested against it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
Make = Callable[[tuple[int, ...]], Tensor]
TRUNK = "synthesis.generator.tri_plane_synthesis"
FIELDS = {"sdf": 1, "def": 3}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes in a file follow from; the defaults are those of all published ones."""

    style: int = 512
    depth: int = 8
    planes_px: int = 256
    plane_channels: int = 32
    hidden: int = 32
    texture: int = 16
    image_px: int = 1024
    base: int = 32768
    most: int = 512
    camera: int = 512

    def width(self, side: int) -> int:
        return min(self.base // side, self.most)


TINY = Sizes(
    style=6,
    depth=3,
    planes_px=16,
    plane_channels=2,
    hidden=5,
    texture=4,
    image_px=16,
    base=96,
    most=10,
    camera=7,
)


def published(sizes: Sizes, make: Make) -> dict[str, Tensors]:
    """Return a file's content."""
    tables = (("G", generator(sizes)), ("G_ema", generator(sizes)), ("D", discriminator(sizes)))
    return {key: {name: make(shape) for name, shape in names} for key, names in tables}


def random_file(sizes: Sizes, seed: int = 0) -> dict[str, Tensors]:
    """Return such a file with random weights and the filters that it holds."""
    draws = torch.Generator().manual_seed(seed)
    taken = published(sizes, lambda shape: torch.randn(shape, generator=draws))
    for tensors in taken.values():
        tensors |= {name: FIR.clone() for name in tensors if name.endswith("resample_filter")}
        tensors |= {name: 100 * tensors[name] for name in tensors if "mapping" in name and ".fc" in name}
    return taken


def generator(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    w = sizes.style
    for mapping in ("mapping", "mapping_geo"):
        yield f"{mapping}.w_avg", (w,)
        for i in range(sizes.depth):
            yield f"{mapping}.fc{i}.weight", (w, w)
            yield f"{mapping}.fc{i}.bias", (w,)
    yield f"{TRUNK}.b4.const", (sizes.width(4), 4, 4)
    side = 4
    while side <= sizes.planes_px:
        width, block = sizes.width(side), f"{TRUNK}.b{side}"
        yield f"{block}.resample_filter", (4, 4)
        for conv in ("conv1",) if side == 4 else ("conv0", "conv1"):
            inputs = sizes.width(side // 2) if conv == "conv0" else width
            yield f"{block}.{conv}.weight", (width, inputs, 3, 3)
            yield f"{block}.{conv}.noise_strength", ()
            yield f"{block}.{conv}.bias", (width,)
            yield f"{block}.{conv}.resample_filter", (4, 4)
            yield f"{block}.{conv}.noise_const", (side, side)
            yield from affine(f"{block}.{conv}", inputs, w)
        for output in ("totex", "togeo"):
            yield f"{block}.{output}.weight", (3 * sizes.plane_channels, width, 1, 1)
            yield f"{block}.{output}.bias", (3 * sizes.plane_channels,)
            yield from affine(f"{block}.{output}", width, w)
        side *= 2
    for field, outputs in {**FIELDS, "tex": sizes.texture}.items():
        widths = [sizes.plane_channels, sizes.hidden, outputs]
        for i in range(2):
            layer = f"synthesis.generator.mlp_synthesis_{field}.layers.{i}"
            yield f"{layer}.weight", (widths[i + 1], widths[i])
            yield f"{layer}.bias", (widths[i + 1],)
            yield from affine(layer, widths[i], w)
    yield "synthesis.to_rgb.weight", (3, sizes.texture, 1, 1)
    yield "synthesis.to_rgb.bias", (3,)
    yield from affine("synthesis.to_rgb", sizes.texture, w)


def affine(layer: str, outputs: int, style: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{layer}.affine.weight", (outputs, style)
    yield f"{layer}.affine.bias", (outputs,)


def discriminator(sizes: Sizes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for head, channels in (("rgb", 3), ("mask", 1)):
        side = sizes.image_px
        while side >= 4:
            width, block = sizes.width(side), f"{head}.b{side}"
            yield f"{block}.fromrgb.weight", (width, channels, 1, 1)
            yield f"{block}.fromrgb.bias", (width,)
            yield f"{block}.fromrgb.resample_filter", (4, 4)
            if side > 4:
                yield f"{block}.resample_filter", (4, 4)
                for conv, outputs in (("conv0", width), ("conv1", sizes.width(side // 2))):
                    yield f"{block}.{conv}.weight", (outputs, width, 3, 3)
                    yield f"{block}.{conv}.bias", (outputs,)
                    yield f"{block}.{conv}.resample_filter", (4, 4)
            side //= 2
        width = sizes.width(4)
        yield f"{head}.b4.conv.weight", (width, width + 1, 3, 3)
        yield f"{head}.b4.conv.bias", (width,)
        yield f"{head}.b4.conv.resample_filter", (4, 4)
        yield f"{head}.b4.fc.weight", (width, width * 16)
        yield f"{head}.b4.fc.bias", (width,)
        yield f"{head}.b4.out.weight", (sizes.camera, width)
        yield f"{head}.b4.out.bias", (sizes.camera,)
        yield f"{head}.mapping.embed.weight", (sizes.camera, 14)
        yield f"{head}.mapping.embed.bias", (sizes.camera,)
        for i in range(sizes.depth):
            yield f"{head}.mapping.fc{i}.weight", (sizes.camera, sizes.camera)
            yield f"{head}.mapping.fc{i}.bias", (sizes.camera,)


# What networks of such weights compute, by the description, each kernel modulated for each sample.

FIR = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64


def lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def fully(p: Tensors, layer: str, x: Tensor, rate: float = 1.0) -> Tensor:
    weight = p[f"{layer}.weight"] * rate / math.sqrt(x.shape[1])
    return x @ weight.t() + p[f"{layer}.bias"] * rate


def mapped(p: Tensors, name: str, z: Tensor, depth: int) -> Tensor:
    x = unit(z)
    for i in range(depth):
        x = lrelu(fully(p, f"{name}.fc{i}", x, rate=0.01))
    return x


def modulated(p: Tensors, layer: str, w: Tensor, *, demodulate: bool) -> Tensor:  # [N, O, I, ...]
    weight = p[f"{layer}.weight"]
    style = fully(p, f"{layer}.affine", w)
    style = style if demodulate else style / math.sqrt(style.shape[1])
    own = weight[None] * style[(slice(None), None, slice(None), *[None] * (weight.dim() - 2))]
    if not demodulate:
        return own
    return own * torch.rsqrt(own.square().flatten(2).sum(2) + 1e-8).view(
        *own.shape[:2], *[1] * (weight.dim() - 1)
    )


def filtered(x: Tensor, gain: float, **how: Any) -> Tensor:
    return F.conv2d(x, (FIR * gain).expand(x.shape[1], 1, 4, 4), groups=x.shape[1], **how)


def doubled(x: Tensor) -> Tensor:
    wide = torch.zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[:, :, ::2, ::2] = x
    return filtered(F.pad(wide, (2, 1, 2, 1)), 4)


def planes(p: Tensors, sizes: Sizes, w_geo: Tensor, w_tex: Tensor) -> tuple[Tensor, Tensor]:  # [N, 3 C, R, R]
    x, outputs, side = p[f"{TRUNK}.b4.const"].expand(len(w_geo), -1, -1, -1), {}, 4
    while side <= sizes.planes_px:
        block = f"{TRUNK}.b{side}"
        for conv in ("conv1",) if side == 4 else ("conv0", "conv1"):
            kernels = modulated(p, f"{block}.{conv}", w_geo, demodulate=True)
            pairs = zip(x[:, None], kernels, strict=True)
            if conv == "conv0":
                grown = [F.conv_transpose2d(one, k.transpose(0, 1), stride=2) for one, k in pairs]
                x = filtered(torch.cat(grown), 4, padding=1)
            else:
                x = torch.cat([F.conv2d(one, k, padding=1) for one, k in pairs])
            x = x + p[f"{block}.{conv}.noise_const"] * p[f"{block}.{conv}.noise_strength"]
            x = lrelu(x + p[f"{block}.{conv}.bias"][:, None, None])
        for output, w in (("togeo", w_geo), ("totex", w_tex)):
            kernels = modulated(p, f"{block}.{output}", w, demodulate=False)
            own = torch.cat([F.conv2d(one, k) for one, k in zip(x[:, None], kernels, strict=True)])
            own = own + p[f"{block}.{output}.bias"][:, None, None]
            outputs[output] = own if output not in outputs else doubled(outputs[output]) + own
        side *= 2
    return outputs["togeo"], outputs["totex"]


def looked_up(image: Tensor, points: Tensor) -> Tensor:  # [3 C, R, R], [P, 3] in [-1, 1] -> [P, C]
    total = torch.zeros(())
    for plane, axes in zip(image.chunk(3), ((0, 1), (1, 2), (0, 2)), strict=True):
        grid = points[:, axes][None, None]
        total = total + F.grid_sample(plane[None], grid, align_corners=False)[0, :, 0].t()
    return total


def field(p: Tensors, name: str, x: Tensor, w: Tensor) -> Tensor:  # [P, C], [1, W] -> [P, O]
    layer = f"synthesis.generator.mlp_synthesis_{name}.layers."
    x = lrelu(x @ modulated(p, f"{layer}0", w, demodulate=True)[0].t() + p[f"{layer}0.bias"])
    return x @ modulated(p, f"{layer}1", w, demodulate=True)[0].t() + p[f"{layer}1.bias"]


def colours(p: Tensors, features: Tensor, w: Tensor) -> Tensor:  # [P, K], [1, W] -> [P, 3]
    kernel = modulated(p, "synthesis.to_rgb", w, demodulate=False)[0, :, :, 0, 0]
    return features @ kernel.t() + p["synthesis.to_rgb.bias"]


def convolved(p: Tensors, layer: str, x: Tensor, **how: Any) -> Tensor:
    weight = p[f"{layer}.weight"]
    return lrelu(
        F.conv2d(x, weight / math.sqrt(weight[0].numel()), **how) + p[f"{layer}.bias"][:, None, None]
    )


def logit(p: Tensors, sizes: Sizes, head: str, image: Tensor, cameras: Tensor) -> Tensor:
    """Judge a batch of one group."""
    x: Tensor | None = None
    side = sizes.image_px
    while side >= 4:
        seen = convolved(p, f"{head}.b{side}.fromrgb", image)
        x = seen if x is None else x + seen
        if side > 4:
            x = convolved(p, f"{head}.b{side}.conv0", x, padding=1)
            x = convolved(p, f"{head}.b{side}.conv1", filtered(x, 1, padding=2), stride=2)
            image = filtered(image, 1, stride=2, padding=1)
        side //= 2
    assert x is not None
    spread = (x.var(0, correction=0) + 1e-8).sqrt().mean()
    x = torch.cat([x, spread.expand(len(x), 1, 4, 4)], dim=1)
    x = convolved(p, f"{head}.b4.conv", x, padding=1)
    x = fully(p, f"{head}.b4.out", lrelu(fully(p, f"{head}.b4.fc", x.flatten(1))))
    waves = [wave(cameras * k) for k in (1, 2, 4) for wave in (torch.sin, torch.cos)]
    wanted = fully(p, f"{head}.mapping.embed", torch.cat([*waves, cameras], dim=1))
    wanted = mapped(p, f"{head}.mapping", wanted, sizes.depth)
    return (x * wanted).sum(1) / math.sqrt(sizes.camera)

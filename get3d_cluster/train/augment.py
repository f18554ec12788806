"""Adaptive augmentation: keeps a discriminator from learning a small set of images by heart.

It sees every image, real or generated, moved and tinted at random, each way with probability p, which follows from
how sure it is of the real ones. Source: Karras et al. 2020 (StyleGAN2-ADA), sections 2 and 3, appendix B.

The discriminator also gets the camera, so an image must stay one that this camera could nearly have taken: small
shifts, turns, zooms and stretches remain. Mirroring and quarter turns of the paper are left out: a mirrored image shows
another azimuth, a turned one a camera that no shape is seen from. Every way leaves an image alone with probability
1 - p, and none maps two distributions of images to one: what a generator learns is not the augmented images.
Letters: N images, C channels, H and W pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from get3d_cluster.core.philox import Phase
from get3d_cluster.train import random
from get3d_cluster.train.config import AugmentConfig

Augmentation = Callable[[Tensor], Tensor]
"""From images [N, C, H, W] to images of the same size; colours first, then the mask."""

SHIFT = 0.05
"""Standard deviations: of shifts, in widths of the image; the paper's 0.125 would cut objects off."""
TURN_RAD = math.radians(5.0)
ZOOM = 0.2
"""Powers of two."""
STRETCH = 0.1
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0
"""The paper's; the last two are powers of two."""
_NUM_WAYS = 9
_FIRST_NORMAL = 12
"""Normals are taken from the words behind those that decide."""
_GREY = torch.full((3, 3), 1 / 3, dtype=torch.float64)
"""Projection on the axis of greys."""


class Transforms(NamedTuple):
    """What happens to each image."""

    is_moved: Tensor  # [N] bool
    places: Tensor  # [N, 2, 3] from a place in the result to one in the image; both axes in [-1, 1], x first
    is_tinted: Tensor  # [N] bool
    tints: Tensor  # [N, 3, 4] from colour to colour


@dataclass(kw_only=True)
class Strength:
    """How much is augmented, and what it will be adapted by."""

    p: float
    sign_sum: float = 0.0
    """Mean signs of logits of real images, over the steps since p was adapted last."""
    num_steps: int = 0

    def adapt(self, config: AugmentConfig, sign: float, batch_size: int) -> None:
        """Count a step, whose real images got logits of the mean sign ``sign``; every few steps move p.

        Source: StyleGAN2-ADA, section 3.1, the heuristic r_t.
        """
        self.sign_sum += sign
        self.num_steps += 1
        if self.num_steps < config.interval:
            return
        excess = self.sign_sum / self.num_steps - config.target
        move = batch_size * self.num_steps / config.adjust_images
        self.p = min(max(self.p + math.copysign(move, excess) * (excess != 0), 0.0), config.max_p)
        self.sign_sum, self.num_steps = 0.0, 0


def unchanged(images: Tensor) -> Tensor:
    """Augment nothing."""
    return images


def augmentation(
    config: AugmentConfig,
    p: float,
    seed: int,
    step: int,
    phase: Phase,
    samples: Tensor,  # [N] int64 places in the global batch
) -> Augmentation:
    """Return what happens to the images of ``samples``: a function of their places alone, so of no worker."""
    if p == 0:
        return unchanged
    transforms = draw(config, p, seed, step, phase, samples)
    return lambda images: transformed(images, transforms)


def draw(config: AugmentConfig, p: float, seed: int, step: int, phase: Phase, samples: Tensor) -> Transforms:
    """Draw transformations, each with probability ``p``; one that is not drawn is the identity."""
    uniform = random.uniforms(seed, step, phase, samples, _FIRST_NORMAL).double()
    drawn = uniform[:, :_NUM_WAYS] < p
    normal = random.normals(seed, step, phase, samples, _FIRST_NORMAL + 8)[:, _FIRST_NORMAL:].double()
    moved = drawn[:, :4] & config.geometry
    tinted = drawn[:, 4:] & config.colour
    return Transforms(
        is_moved=moved.any(dim=1),
        places=_places(moved, normal[:, :5]).float(),
        is_tinted=tinted.any(dim=1),
        tints=_tints(tinted, normal[:, 5:], uniform[:, _NUM_WAYS:]).float(),
    )


def transformed(images: Tensor, transforms: Transforms) -> Tensor:  # [N, 4, H, W]
    """Move and tint images; one that nothing was drawn for keeps its bits. Can be differentiated twice."""
    moved = warped(images, transforms.places)
    images = torch.where(transforms.is_moved[:, None, None, None], moved, images)
    colours = tinted(images[:, :3], transforms.tints)
    colours = torch.where(transforms.is_tinted[:, None, None, None], colours, images[:, :3])
    return torch.cat([colours, images[:, 3:]], dim=1)


def warped(images: Tensor, places: Tensor) -> Tensor:  # [N, C, H, W], [N, 2, 3]
    """Look every pixel up bilinearly at its place; beyond the border is what is at the border.

    By ``gather``, since ``grid_sample`` has no second derivative.
    """
    height, width = images.shape[2:]
    across = (torch.arange(width, device=images.device) * 2 + 1) / width - 1
    down = (torch.arange(height, device=images.device) * 2 + 1) / height - 1
    x = _pixels(places[:, 0], across, down, width)
    y = _pixels(places[:, 1], across, down, height)
    left, top = x.floor().clamp(max=width - 2), y.floor().clamp(max=height - 2)
    share_x, share_y = (x - left).to(images.dtype)[:, None], (y - top).to(images.dtype)[:, None]
    first = (top * width + left).long()
    upper = torch.lerp(_taken(images, first), _taken(images, first + 1), share_x)
    lower = torch.lerp(_taken(images, first + width), _taken(images, first + width + 1), share_x)
    return torch.lerp(upper, lower, share_y)


def tinted(colours: Tensor, tints: Tensor) -> Tensor:  # [N, 3, H, W], [N, 3, 4]
    """Apply an affine map to all colours of an image."""
    tints = tints.to(colours.dtype)
    mapped = torch.baddbmm(tints[:, :, 3:], tints[:, :, :3], colours.flatten(2))
    return mapped.view_as(colours)


def _pixels(rows: Tensor, across: Tensor, down: Tensor, count: int) -> Tensor:  # [N, 3] -> [N, H, W]
    """Return where each pixel comes from along one axis, in pixels."""
    place = rows[:, 0, None, None] * across + rows[:, 1, None, None] * down[:, None] + rows[:, 2, None, None]
    return ((place + 1) * (count / 2) - 0.5).clamp(0, count - 1)


def _taken(images: Tensor, pixel: Tensor) -> Tensor:  # [N, C, H, W], [N, H, W] -> [N, C, H, W]
    index = pixel.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, index).view(*images.shape[:2], *pixel.shape[1:])


def _places(drawn: Tensor, normal: Tensor) -> Tensor:  # [N, 4] bool, [N, 5] -> [N, 2, 3]
    zoom, turn, stretch, shift = (normal[:, :4] * drawn).unbind(1)
    shift_y = normal[:, 4] * drawn[:, 3]
    cosine, sine = torch.cos(turn * TURN_RAD), torch.sin(turn * TURN_RAD)
    wide = torch.exp2(zoom * ZOOM + stretch * STRETCH)
    high = torch.exp2(zoom * ZOOM - stretch * STRETCH)
    first = torch.stack([cosine * wide, -sine * high, 2 * SHIFT * shift], dim=1)
    second = torch.stack([sine * wide, cosine * high, 2 * SHIFT * shift_y], dim=1)
    return torch.stack([first, second], dim=1)


def _tints(
    drawn: Tensor, normal: Tensor, uniform: Tensor
) -> Tensor:  # [N, 5], [N, 3], [N, >= 2] -> [N, 3, 4]
    brightness, contrast, saturation = (normal * drawn[:, :3]).unbind(1)
    grey = _GREY.to(normal.device)
    one = torch.eye(3, dtype=torch.float64, device=normal.device)
    flip = drawn[:, 3] & (uniform[:, 0] < 0.5)
    matrix = one * torch.exp2(contrast * CONTRAST)[:, None, None]
    matrix = (one - 2 * grey * flip[:, None, None]) @ matrix
    matrix = _hue(drawn[:, 4] * (uniform[:, 1] * 2 - 1) * math.pi) @ matrix
    matrix = (grey + (one - grey) * torch.exp2(saturation * SATURATION)[:, None, None]) @ matrix
    offset = matrix @ (brightness * BRIGHTNESS)[:, None, None].expand(-1, 3, 1)
    return torch.cat([matrix, offset], dim=2)


def _hue(angle_rad: Tensor) -> Tensor:  # [N] -> [N, 3, 3]
    """Return rotations about the axis of greys. Source: Rodrigues' formula."""
    grey = _GREY.to(angle_rad.device)
    one = torch.eye(3, dtype=torch.float64, device=angle_rad.device)
    cross = (one.roll(1, 0) - one.roll(-1, 0)) / math.sqrt(3)
    cosine, sine = torch.cos(angle_rad)[:, None, None], torch.sin(angle_rad)[:, None, None]
    return grey + (one - grey) * cosine + cross * sine

"""Covered pixels and what is computed on them: ordinary torch, differentiable as often as wanted.

Axes: P covered pixels of a batch, image by image, row by row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SHARE = 0.5
"""A centre's |sum of weights| over their sum of absolutes: 1 inside the triangle, 0.5 half a triangle outside."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragments:
    """The covered pixels of a batch of images."""

    shape: tuple[int, int, int]  # B, H, W
    tri_id: Tensor  # [B, H, W] int32, what `visibility` returned
    idx: Tensor  # [P] int64 into the flattened [B, H, W]
    batch: Tensor  # [P] int64
    px: Tensor  # [P] int64 column
    py: Tensor  # [P] int64 row, 0 at the top
    tri: Tensor  # [P] int64 triangle
    vert: Tensor  # [P, 3] int64 into the flattened vertices


def fragments(
    tri_id: Tensor,  # [B, H, W] int32
    pos_clip: Tensor,  # [B, V, 4] or [N, 4]
    tri: Tensor,  # [F, 3] int32
) -> Fragments:
    """List the pixels that see a triangle."""
    batch, height, width = tri_id.shape
    flat = tri_id.reshape(-1)
    idx = flat.nonzero()[:, 0]
    image = torch.div(idx, height * width, rounding_mode="floor")
    rest = idx - image * (height * width)
    face = flat[idx].long() - 1
    per_image = pos_clip.shape[1] if pos_clip.dim() == 3 else 0
    return Fragments(
        shape=(batch, height, width),
        tri_id=tri_id,
        idx=idx,
        batch=image,
        px=rest % width,
        py=torch.div(rest, width, rounding_mode="floor"),
        tri=face,
        vert=tri.index_select(0, face).long() + (image * per_image)[:, None],
    )


def barycentrics(
    frag: Fragments,
    pos_clip: Tensor,  # [B, V, 4] or [N, 4]
) -> tuple[Tensor, Tensor]:  # [P, 3], [P]
    """Return perspective-correct barycentrics of pixel centres (with gradient) and depth z/w (detached).

    Weights sum to 1. Snapping may put a centre outside its triangle, usually by a hair: weights then leave
    [0, 1] by as much, so that points stay on the ray of their pixel. Far outside (a sliver) they are forced
    into it, without gradient.

    Source: Olano and Greer 1997, triangle scan conversion in homogeneous coordinates.
    """
    _, height, width = frag.shape
    corners = gather(pos_clip.reshape(-1, 4), frag.vert)
    centre_x = ((frag.px.to(corners) + 0.5) * (2.0 / width) - 1.0)[:, None]
    centre_y = ((frag.py.to(corners) + 0.5) * (2.0 / height) - 1.0)[:, None]
    x, y, z, w = corners.unbind(dim=2)
    x, y = torch.addcmul(x, centre_x, w, value=-1.0), torch.addcmul(y, centre_y, w, value=-1.0)
    bary = _normalised(torch.linalg.cross(x, y, dim=1))
    with torch.no_grad():
        depth = _total(bary * z) / _total(bary * w)
    return bary, depth


def _normalised(weight: Tensor) -> Tensor:
    total, magnitude = _total(weight), weight.detach().abs()
    size = _total(magnitude)
    sound = (total.detach().abs() >= MIN_SHARE * size) & (size > 0)
    nowhere = (size == 0).to(weight)  # shrunk to a point: no corner is better than another
    above = torch.where(sound[:, None], weight, magnitude + nowhere[:, None])
    return above / torch.where(sound, total, size + 3.0 * nowhere)[:, None]


def _total(terms: Tensor) -> Tensor:
    """Return the sum of [P, 3] over its corners; several times faster than `sum` on so short an axis."""
    return terms[:, 0] + terms[:, 1] + terms[:, 2]


def interpolate(
    frag: Fragments,
    bary: Tensor,  # [P, 3]
    attr: Tensor,  # [B, V, C], [1, V, C] shared by all images, or packed [N, C]
) -> Tensor:  # [P, C]
    """Return an attribute of the vertices at the covered pixels."""
    vert = frag.vert
    if attr.dim() == 3 and attr.shape[0] == 1:
        vert = vert - (frag.batch * attr.shape[1])[:, None]
    corners = gather(attr.reshape(-1, attr.shape[-1]), vert)
    return bary[:, 0:1] * corners[:, 0] + bary[:, 1:2] * corners[:, 1] + bary[:, 2:3] * corners[:, 2]


def to_image(
    frag: Fragments,
    values: Tensor,  # [P, C]
    fill: float = 0.0,
) -> Tensor:  # [B, H, W, C]
    """Put values of covered pixels into images."""
    batch, height, width = frag.shape
    blank = values.new_full((batch * height * width, values.shape[1]), fill)
    return blank.index_copy_(0, frag.idx, values).view(batch, height, width, values.shape[1])


def gather(
    rows: Tensor,  # [M, C]
    index: Tensor,  # [..., K]
) -> Tensor:  # [..., K, C]
    """Return rows by index; the backward pass adds in index order, so it is reproducible on the CPU."""
    return rows.index_select(0, index.reshape(-1)).view(*index.shape, rows.shape[1])

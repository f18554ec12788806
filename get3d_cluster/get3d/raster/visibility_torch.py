"""Visibility in plain torch, on any device: triangles -> rows -> exact spans of pixels -> least key."""

from dataclasses import dataclass

import torch
from torch import Tensor

from get3d_cluster.get3d.raster.inputs import Scene
from get3d_cluster.get3d.raster.visibility import DEPTH_STEPS, HALF, ID_BITS, NOTHING, SUBPIXELS, Snapped

CHUNK = 1 << 21
"""About how many rows or pixels are worked on at once; bounds the memory, changes no result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Edges:
    """Triangles that may cover a centre, counter-clockwise; edge e lies opposite corner e."""

    image: Tensor  # [K] int64
    face: Tensor  # [K] int64
    x: Tensor  # [K, 3] start of each edge
    y: Tensor  # [K, 3]
    ex: Tensor  # [K, 3] its extent
    ey: Tensor  # [K, 3]
    least: Tensor  # [K, 3] smallest edge function that is inside: 0 for left and top edges, else 1
    z: Tensor  # [K, 3] float64, of the corners
    area: Tensor  # [K] twice the area
    box: Tensor  # [K, 4] left, right, top, bottom pixel


def nearest_keys(what: Scene, snapped: Snapped) -> Tensor:
    """Return [B, H, W] int64: the least (depth, triangle) key of each pixel."""
    height, width = what.size
    key = torch.full((len(what.first) * height * width,), NOTHING, dtype=torch.int64, device=what.pos.device)
    edges = _edges(what, snapped)
    rows = edges.box[:, 3] - edges.box[:, 2] + 1
    for triangles in _chunks(rows):
        which, step = _expand(rows[triangles])
        which = which + triangles.start
        row = edges.box[which, 2] + step
        left, right = _spans(edges, which, row)
        length = (right - left + 1).clamp(min=0)
        for spans in _chunks(length):
            span, across = _expand(length[spans])
            span = span + spans.start
            _paint(key, edges, which[span], row[span], left[span] + across, what.size)
    return key.view(len(what.first), height, width)


def _edges(what: Scene, snapped: Snapped) -> _Edges:
    device = what.pos.device
    image, position = _expand(what.count.to(device))
    face = what.first.to(device)[image] + position
    vert = what.tri[face].long() + what.offset.to(device)[image, None]
    x, y = snapped.x[vert], snapped.y[vert]
    box = torch.stack([*_pixels(x, what.size[1]), *_pixels(y, what.size[0])], dim=1)
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
    drawn = snapped.ok[vert].all(dim=1) & (area != 0) & (box[:, 0] <= box[:, 1]) & (box[:, 2] <= box[:, 3])
    keep = drawn.nonzero()[:, 0]
    flip = (area[keep] < 0)[:, None]
    x, y, z = (torch.where(flip, v[:, [0, 2, 1]], v) for v in (x[keep], y[keep], snapped.z[vert[keep]]))
    ex, ey = (v.roll(-2, dims=1) - v.roll(-1, dims=1) for v in (x, y))
    return _Edges(
        image=image[keep],
        face=face[keep],
        x=x.roll(-1, dims=1),
        y=y.roll(-1, dims=1),
        ex=ex,
        ey=ey,
        least=1 - ((ey < 0) | ((ey == 0) & (ex < 0))).long(),
        z=z,
        area=area[keep].abs(),
        box=box[keep],
    )


def _pixels(coordinate: Tensor, extent: int) -> tuple[Tensor, Tensor]:
    """Return the first and last pixel whose centre lies within the span of the corners [K, 3]."""
    low = -torch.div(HALF - coordinate.amin(dim=1), SUBPIXELS, rounding_mode="floor")
    high = torch.div(coordinate.amax(dim=1) - HALF, SUBPIXELS, rounding_mode="floor")
    return low.clamp(min=0), high.clamp(max=extent - 1)


def _spans(edges: _Edges, which: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last covered column of rows; solves each edge's inequality in integers."""
    gy = (row * SUBPIXELS + HALF)[:, None]
    ex, ey, x, y = edges.ex[which], edges.ey[which], edges.x[which], edges.y[which]
    slope = -ey * SUBPIXELS  # the edge function is slope * column + constant
    need = edges.least[which] - (ex * (gy - y) - ey * (HALF - x))
    divisor = torch.where(slope == 0, 1, slope)
    bound = -torch.div(-need, divisor, rounding_mode="floor")  # ceil
    top = torch.div(need, divisor, rounding_mode="floor")
    left, right = edges.box[which, 0], edges.box[which, 1]
    left = torch.maximum(left, torch.where(slope > 0, bound, left[:, None]).amax(dim=1))
    right = torch.minimum(right, torch.where(slope < 0, top, right[:, None]).amin(dim=1))
    nowhere = ((slope == 0) & (need > 0)).any(dim=1)
    return left, torch.where(nowhere, left - 1, right)


def _paint(
    key: Tensor, edges: _Edges, which: Tensor, row: Tensor, column: Tensor, size: tuple[int, int]
) -> None:
    gx, gy = (column * SUBPIXELS + HALF)[:, None], (row * SUBPIXELS + HALF)[:, None]
    weight = edges.ex[which] * (gy - edges.y[which]) - edges.ey[which] * (gx - edges.x[which])
    part = weight.double() * edges.z[which]
    z = (part[:, 0] + part[:, 1] + part[:, 2]) / edges.area[which].double()
    depth = ((z + 1.0) * DEPTH_STEPS).floor().clamp(0.0, 2.0 * DEPTH_STEPS).long().clamp(max=(1 << 31) - 1)
    mine = torch.where((z >= -1.0) & (z <= 1.0), (depth << ID_BITS) | edges.face[which], NOTHING)
    place = (edges.image[which] * size[0] + row) * size[1] + column
    key.scatter_reduce_(0, place, mine, "amin")


def _expand(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return owner and position within it of each of sum(counts) things."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    begin = torch.cumsum(counts, 0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - begin[owner]


def _chunks(counts: Tensor) -> list[slice]:
    """Cut a list into runs of about CHUNK things."""
    if not len(counts):
        return []
    number = torch.div(torch.cumsum(counts, 0) - counts, CHUNK, rounding_mode="floor")
    sizes = torch.unique_consecutive(number, return_counts=True)[1].tolist()
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]

"""Visibility in plain torch, on any device: triangles -> rows -> exact spans of pixels -> least key."""

from dataclasses import dataclass

import torch
from torch import Tensor

from get3d_cluster.get3d.raster.inputs import Scene
from get3d_cluster.get3d.raster.visibility import (
    DEPTH_STEPS,
    HALF,
    ID_BITS,
    NOTHING,
    SUBPIXEL_BITS,
    SUBPIXELS,
    Snapped,
    snap,
)

CHUNK = 1 << 21
"""About how many rows or pixels are worked on at once; bounds the memory, changes no result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Edges:
    """Triangles whose box holds a centre, counter-clockwise; edge e lies opposite corner e.

    Some may have no area. Nothing is inside those: their edge functions sum to 0 everywhere, and not all three
    edges can be left or top ones.
    """

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


def nearest_ids(what: Scene) -> Tensor:
    """Return [B, H, W] int32: 1 + the nearest triangle of each pixel, or 0."""
    key = _nearest_keys(what, snap(what.pos, what.size))
    return torch.where(key == NOTHING, 0, (key & ((1 << ID_BITS) - 1)) + 1).to(torch.int32)


def _nearest_keys(what: Scene, snapped: Snapped) -> Tensor:
    """Return [B, H, W] int64: the least (depth, triangle) key of each pixel."""
    height, width = what.size
    key = torch.full((len(what.first) * height * width,), NOTHING, dtype=torch.int64, device=what.pos.device)
    edges = _edges(what, snapped)
    rows = edges.box[:, 3] - edges.box[:, 2] + 1
    for triangles, num_rows in _chunks(rows):
        which, step = _expand(rows[triangles], num_rows)
        which = which + triangles.start
        row = edges.box[which, 2] + step
        left, right = _spans(edges, which, row)
        length = (right - left + 1).clamp(min=0)
        for spans, num_pixels in _chunks(length):
            span, across = _expand(length[spans], num_pixels)
            span = span + spans.start
            _paint(key, edges, which[span], row[span], left[span] + across, what.size)
    return key.view(len(what.first), height, width)


def _edges(what: Scene, snapped: Snapped) -> _Edges:
    device = what.pos.device
    image, position = _expand(what.count.to(device), int(what.count.sum()))
    face = what.first.to(device)[image] + position
    corners, offset = what.tri[face], what.offset.to(device)[image]
    verts = [corners[:, i].long() + offset for i in range(3)]
    left, right = _pixels([snapped.x[vert] for vert in verts], what.size[1])
    top, bottom = _pixels([snapped.y[vert] for vert in verts], what.size[0])
    usable = snapped.ok[verts[0]] & snapped.ok[verts[1]] & snapped.ok[verts[2]]
    keep = (usable & (left <= right) & (top <= bottom)).nonzero()[:, 0]
    verts = [vert[keep] for vert in verts]
    x, y, z = (torch.stack([v[vert] for vert in verts], dim=1) for v in (snapped.x, snapped.y, snapped.z))
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (y[:, 1] - y[:, 0]) * (x[:, 2] - x[:, 0])
    flip = (area < 0)[:, None]
    x, y, z = (torch.where(flip, v[:, [0, 2, 1]], v) for v in (x, y, z))
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
        area=area.abs(),
        box=torch.stack([left, right, top, bottom], dim=1)[keep],
    )


def _pixels(corners: list[Tensor], extent: int) -> tuple[Tensor, Tensor]:
    """Return the first and last pixel whose centre lies within the span of three corners [K]."""
    a, b, c = corners
    low, high = torch.minimum(torch.minimum(a, b), c), torch.maximum(torch.maximum(a, b), c)
    return (-((HALF - low) >> SUBPIXEL_BITS)).clamp(min=0), ((high - HALF) >> SUBPIXEL_BITS).clamp(
        max=extent - 1
    )


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
    bounds, tops = torch.where(slope > 0, bound, left[:, None]), torch.where(slope < 0, top, right[:, None])
    missed = (slope == 0) & (need > 0)
    for edge in range(3):  # one by one: reductions over so short an axis take longer
        left, right = torch.maximum(left, bounds[:, edge]), torch.minimum(right, tops[:, edge])
    nowhere = missed[:, 0] | missed[:, 1] | missed[:, 2]
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


def _expand(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return owner and position within it of each of sum(counts) things; a total that is known spares CUDA a wait."""
    every = torch.arange(len(counts), device=counts.device)
    owner = torch.repeat_interleave(every, counts, output_size=total)
    begin = torch.cumsum(counts, 0) - counts
    return owner, torch.arange(total, device=counts.device) - begin[owner]


def _chunks(counts: Tensor) -> list[tuple[slice, int]]:
    """Cut a list into runs of about CHUNK things; returns each run and how many things it has. Waits for CUDA once."""
    if not len(counts):
        return []
    upto = torch.cumsum(counts, 0)
    number = torch.div(upto - counts, CHUNK, rounding_mode="floor")
    last = torch.cat([number[1:] != number[:-1], number.new_ones(1, dtype=torch.bool)]).nonzero()[:, 0]
    ends, totals = (values.tolist() for values in torch.stack([last + 1, upto[last]]).cpu())
    begins, before = [0, *ends[:-1]], [0, *totals[:-1]]
    return [
        (slice(begin, end), total - earlier)
        for begin, end, total, earlier in zip(begins, ends, totals, before, strict=True)
    ]

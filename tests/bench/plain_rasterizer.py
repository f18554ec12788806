"""A rasterizer of ordinary torch operations on whole images, for comparison: written as one would first write it.

Each triangle is tried on all pixels of its box; every pixel is interpolated, empty or not; antialiasing looks at all
neighbours that see different triangles, by the standard rule, with edges paired by `unique` in every call.
"""

import torch
from torch import Tensor

CHUNK = 1 << 21


def render(
    pos: Tensor,  # [B, V, 4] clip
    tri: Tensor,  # [F, 3]
    attr: Tensor,  # [V, C]
    size: int,
) -> tuple[Tensor, Tensor]:  # [B, H, W, C], [B, H, W]
    ids = visibility(pos.detach(), tri, size)
    hit, face = ids > 0, (ids - 1).clamp(min=0)
    vert = tri.long()[face]
    corners = pos[torch.arange(len(pos))[:, None, None, None], vert]
    centre = (torch.arange(size, dtype=pos.dtype) + 0.5) * (2 / size) - 1
    x, y, z, w = corners.unbind(-1)
    x, y = x - centre[:, None] * w, y - centre[:, None, None] * w
    weight = x.roll(-1, -1) * y.roll(-2, -1) - x.roll(-2, -1) * y.roll(-1, -1)
    bary = weight / torch.where(hit[..., None], weight, 1.0).sum(-1, keepdim=True)
    image = (bary[..., None] * attr[vert]).sum(-2) * hit[..., None]
    with torch.no_grad():
        depth = torch.where(hit, (bary * z).sum(-1) / (bary * w).sum(-1), torch.inf)
    return image, antialias(hit.to(pos), ids, depth, pos, tri.long())


def visibility(pos: Tensor, tri: Tensor, size: int) -> Tensor:  # [B, H, W] int64, 0 = empty
    xy, z = (pos[..., :2] / pos[..., 3:] * 0.5 + 0.5) * size, pos[..., 2] / pos[..., 3]
    x, y, z = (v[:, tri.long()].reshape(-1, 3) for v in (*xy.unbind(-1), z))
    left, right = (x.amin(1) - 0.5).ceil().clamp(min=0), (x.amax(1) - 0.5).floor().clamp(max=size - 1)
    top, bottom = (y.amin(1) - 0.5).ceil().clamp(min=0), (y.amax(1) - 0.5).floor().clamp(max=size - 1)
    wide, high = (right - left + 1).clamp(min=0).long(), (bottom - top + 1).clamp(min=0).long()
    count = wide * high
    key = torch.full((len(pos) * size * size,), torch.iinfo(torch.int64).max)
    part = torch.div(count.cumsum(0), CHUNK, rounding_mode="floor")
    for triangles in torch.arange(len(count)).split(part.unique_consecutive(return_counts=True)[1].tolist()):
        t = triangles.repeat_interleave(count[triangles])
        step = torch.arange(len(t)) - (count[triangles].cumsum(0) - count[triangles]).repeat_interleave(
            count[triangles]
        )
        column = left[t].long() + step % wide[t]
        row = top[t].long() + step // wide[t]
        dx, dy = x[t] - (column + 0.5)[:, None], y[t] - (row + 0.5)[:, None]
        weight = dx.roll(-1, 1) * dy.roll(-2, 1) - dx.roll(-2, 1) * dy.roll(-1, 1)
        inside = (weight >= 0).all(1) | (weight <= 0).all(1)
        depth = (weight * z[t]).sum(1) / weight.sum(1)
        inside &= depth.abs() <= 1
        t, depth, row, column = t[inside], depth[inside], row[inside], column[inside]
        place = (torch.div(t, len(tri), rounding_mode="floor") * size + row) * size + column
        mine = ((depth.double() + 1) * 2.0**30).long() << 31 | t % len(tri)
        key.scatter_reduce_(0, place, mine, "amin")
    ids = torch.where(key == torch.iinfo(torch.int64).max, 0, (key & ((1 << 31) - 1)) + 1)
    return ids.view(len(pos), size, size)


def antialias(mask: Tensor, ids: Tensor, depth: Tensor, pos: Tensor, tri: Tensor) -> Tensor:
    """Blend the mask [B, H, W] across silhouettes."""
    size = ids.shape[-1]
    xy = (pos[..., :2] / pos[..., 3:] * 0.5 + 0.5) * size
    other = _other_corner(tri, pos.shape[1])
    result = mask.reshape(-1)
    for vertical in (False, True):
        a, b = (ids[:, :-1], ids[:, 1:]) if vertical else (ids[..., :-1], ids[..., 1:])
        image, row, column = (a != b).nonzero(as_tuple=True)
        first = (image * size + row) * size + column
        second = first + (size if vertical else 1)
        forward = depth.reshape(-1)[first] <= depth.reshape(-1)[second]
        near, far = torch.where(forward, first, second), torch.where(forward, second, first)
        sign = torch.where(forward, 1.0, -1.0)[:, None]
        face = ids.reshape(-1)[near] - 1
        centre = torch.stack([near % size, near // size % size], 1) + 0.5
        at = xy[image[:, None], tri[face]] - centre[:, None]
        along, beside = (at[..., 1], at[..., 0]) if vertical else (at[..., 0], at[..., 1])
        along_next, beside_next = along.roll(-1, 1), beside.roll(-1, 1)
        run = beside_next - beside
        cross = (along * beside_next - along_next * beside) / torch.where(run == 0, 1.0, run) * sign
        crosses = (beside >= 0) != (beside_next >= 0)
        distance, edge = torch.where(crosses, cross, -torch.inf).max(1)
        across = other[face, edge]
        there = xy[image, across.clamp(min=0)] - centre
        start, way = at[torch.arange(len(at)), edge], at[torch.arange(len(at)), (edge + 1) % 3]
        mine = at[torch.arange(len(at)), (edge + 2) % 3]
        silhouette = (across < 0) | (_side(start, way, there) * _side(start, way, mine) > 0)
        extent = (way - start).abs()
        steep = extent[:, 0] > extent[:, 1] if vertical else extent[:, 0] <= extent[:, 1]
        used = silhouette & steep & (distance > -1 / 16) & (distance < 1 + 1 / 16)
        d = distance[used].clamp(0, 1)
        near, far = near[used], far[used]
        before = d < 0.5
        target, source = torch.where(before, near, far), torch.where(before, far, near)
        change = mask.reshape(-1)[source] - mask.reshape(-1)[target]
        result = result.index_add(0, target, (d - 0.5).abs() * change)
    return result.view(ids.shape)


def _side(start: Tensor, end: Tensor, point: Tensor) -> Tensor:
    way, offset = (end - start).detach(), (point - start).detach()
    return way[:, 0] * offset[:, 1] - way[:, 1] * offset[:, 0]


def _other_corner(tri: Tensor, num_vertices: int) -> Tensor:
    """Return [F, 3]: the vertex across each edge, -1 where there is not exactly one."""
    start, end, mine = tri, tri.roll(-1, 1), tri.roll(-2, 1)
    key = torch.minimum(start, end) * num_vertices + torch.maximum(start, end)
    _, edge, count = torch.unique(key, return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), dtype=torch.int64).index_add(0, edge.reshape(-1), mine.reshape(-1))
    return torch.where(count[edge] == 2, total[edge] - mine, -1)

"""Visibility by nvdiffrast: optional, CUDA only, licensed for research and evaluation only.

Only triangle ids are taken from it; everything with a gradient stays ours, which is reproducible where its own
backward passes are not. It snaps to 1/16 pixel, the other backends to 1/256: ids differ from theirs along edges.

Source: the public documentation of nvdiffrast 0.4, not its code.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from get3d_cluster.get3d.raster.inputs import Scene
from get3d_cluster.get3d.raster.visibility import snap

MAX_TRIANGLES = 1 << 24
"""In one call; its ids are float32."""


def nearest_ids(what: Scene) -> Tensor:
    """Return [B, H, W] int32: 1 + the nearest triangle of each pixel, or 0.

    Raises: ValueError for more triangles than it takes.
    """
    ids = torch.zeros(len(what.first), *what.size, dtype=torch.int32, device=what.pos.device)
    total = int(what.count.sum())
    if total > MAX_TRIANGLES:
        raise ValueError(
            f'{total} triangles in one call; backend="nvdiffrast" takes {MAX_TRIANGLES}: use "torch"'
        )
    drawn = what.count.nonzero()[:, 0]  # on the CPU, as `count` is; an image of no triangle is not for it
    if not len(drawn):
        return ids
    count = what.count[drawn]
    begin = torch.cumsum(count, 0) - count
    pos, tri = _own_triangles(what, total)
    ranges = torch.stack([begin, count], dim=1).to(torch.int32)
    library = _library()
    rast, _ = library.rasterize(
        _context(str(pos.device)), pos, tri, resolution=what.size, ranges=ranges, grad_db=False
    )
    seen = rast[..., 3].to(torch.int32)
    shift = (what.first[drawn] - begin).to(pos.device, torch.int32)
    return ids.index_copy_(0, drawn.to(pos.device), torch.where(seen > 0, seen + shift[:, None, None], 0))


def _own_triangles(what: Scene, total: int) -> tuple[Tensor, Tensor]:
    """Return positions [M, 4] and triangles [K, 3], each image's own one after the other.

    What we do not draw (it would be clipped instead) is shrunk to a point.
    """
    device = what.pos.device
    count = what.count.to(device)
    image = torch.repeat_interleave(torch.arange(len(count), device=device), count, output_size=total)
    step = torch.arange(total, device=device) - (torch.cumsum(count, 0) - count)[image]
    vert = what.tri[what.first.to(device)[image] + step].long() + what.offset.to(device)[image, None]
    ok = snap(what.pos, what.size).ok
    vert = torch.where(ok[vert].all(dim=1, keepdim=True), vert, 0)
    pos = torch.where(ok[:, None], what.pos, 0.0)
    pos[:, 3] = torch.where(ok, pos[:, 3], 1.0)
    return pos.float().contiguous(), vert.to(torch.int32).contiguous()


def _library() -> Any:
    import nvdiffrast.torch as library  # optional

    return library


@cache
def _context(device: str) -> Any:
    return _library().RasterizeCudaContext(device=device)

"""Antialiasing of outlines: pixels beside a silhouette are blended, and the blend carries the outline's gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from get3d_cluster.get3d.raster.fragments import Fragments, gather
from get3d_cluster.get3d.raster.silhouette import (
    Mode,
    Pairing,
    Pairs,
    pixel_pairs,
    project,
    silhouette_edges,
)
from get3d_cluster.get3d.raster.topology import Topology


@dataclass(frozen=True, kw_only=True, slots=True)
class Blends:
    """K blends: pixel `target` moves towards pixel `source` by `weight`."""

    target: Tensor  # [K] int64 flat pixel
    source: Tensor  # [K] int64 flat pixel
    weight: Tensor  # [K] in [0, 0.5], differentiable in the vertices

    def detach(self) -> "Blends":
        """Return the same blends without gradient to the vertices."""
        return Blends(target=self.target, source=self.source, weight=self.weight.detach())


def antialias(  # noqa: PLR0913  # what it depends on, and three choices
    image: Tensor,  # [B, H, W, C]
    frag: Fragments,
    depth: Tensor,  # [P] as `barycentrics` returns it
    pos_clip: Tensor,  # [B, V, 4] or [N, 4]
    tri: Tensor,  # [F, 3] int32
    topo: Topology,
    *,
    mode: Mode = "walk",
    pairs: Pairing = "coverage",
    backend: str = "auto",
) -> Tensor:  # [B, H, W, C]
    """Blend pixels across silhouettes; differentiable in the image and in the positions.

    See `silhouette_edges` for `mode` and `pixel_pairs` for `pairs`. To treat several images alike, find the
    `blends` once and call `blend` on each.
    """
    return blend(image, blends(frag, depth, pos_clip, tri, topo, mode=mode, pairs=pairs, backend=backend))


def blends(  # noqa: PLR0913  # as `antialias`
    frag: Fragments,
    depth: Tensor,  # [P]
    pos_clip: Tensor,  # [B, V, 4] or [N, 4]
    tri: Tensor,  # [F, 3] int32
    topo: Topology,
    *,
    mode: Mode = "walk",
    pairs: Pairing = "coverage",
    backend: str = "auto",
) -> Blends:
    """Find what silhouettes blend, and by how much.

    A crossing at d (0 at the nearer surface's pixel centre, 1 at the other) gives the near pixel 0.5 - d of
    the other colour if d < 0.5, else the far pixel d - 0.5 of the near one.

    Raises: ValueError for an unknown mode or pairing, or a topology of another mesh.
    """
    if mode not in ("walk", "standard") or pairs not in ("coverage", "all"):
        raise ValueError(f'mode="{mode}" must be "walk" or "standard", pairs="{pairs}" "coverage" or "all"')
    if topo.twin.shape != tri.shape:
        raise ValueError(f"topology of {len(topo.twin)} triangles does not belong to tri with {len(tri)}")
    size = frag.shape[1:]
    flat = pos_clip.reshape(-1, 4)
    found = pixel_pairs(frag, depth, pos_clip.shape[1] if pos_clip.dim() == 3 else 0, pairs)
    edge = silhouette_edges(found, flat, tri, topo, size, mode=mode, backend=backend)
    used = (edge[:, 0] >= 0).nonzero()[:, 0]
    crossed = found.at(used)
    distance = _crossing(crossed, gather(flat, edge[used]), size).to(pos_clip.dtype)
    before = distance.detach() < 0.5
    return Blends(
        target=torch.where(before, crossed.near, crossed.far),
        source=torch.where(before, crossed.far, crossed.near),
        weight=torch.where(before, 0.5 - distance, distance - 0.5),
    )


def blend(
    image: Tensor,  # [B, H, W, C]
    found: Blends,
) -> Tensor:  # [B, H, W, C]
    """Apply blends. All read the image as it was; those that meet in one pixel add up."""
    flat = image.reshape(-1, image.shape[3])
    change = flat.index_select(0, found.source) - flat.index_select(0, found.target)
    return flat.index_add(0, found.target, found.weight.to(image.dtype)[:, None] * change).view(image.shape)


def _crossing(
    pairs: Pairs,  # K
    ends: Tensor,  # [K, 2, 4] clip positions of the edge
    size: tuple[int, int],
) -> Tensor:  # [K] float64 in [0, 1]
    """Return where edges cross the lines between pixel centres; no gradient where that had to be clamped."""
    xy = project(ends.reshape(-1, 4), size).xy.view(-1, 2, 2) - pairs.centre[:, None]
    column, row = xy.unbind(dim=2)
    vertical = pairs.vertical[:, None]
    along = torch.where(vertical, row, column) * pairs.sign[:, None]
    beside = torch.where(vertical, column, row)
    at = (along[:, 0] * beside[:, 1] - along[:, 1] * beside[:, 0]) / (beside[:, 1] - beside[:, 0])
    return at.clamp(0.0, 1.0)

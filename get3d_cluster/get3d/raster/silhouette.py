"""Where silhouettes pass between neighbouring pixels: pure decisions, no gradient.

Only *which two vertices* span the silhouette edge is found here; `antialias` computes the crossing from them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from get3d_cluster.get3d.raster.backends import choose_backend
from get3d_cluster.get3d.raster.fragments import Fragments
from get3d_cluster.get3d.raster.topology import Topology
from get3d_cluster.get3d.raster.visibility import MIN_W

Mode = Literal["walk", "standard"]
Pairing = Literal["coverage", "all"]

MAX_STEPS = 64
"""Triangles a walk may cross within one pixel; with 24 dense spheres lose half their gradient, 256 gain nothing."""

SLACK_PX = 1.0 / 16.0
"""How far beyond the two pixel centres a crossing still counts."""

FOLD_PX = 1e-4
"""How far a line has to turn back for a fold; above the rounding of float32 positions, so that the triangles
of no area which marching tetrahedra leave behind neither make a silhouette nor hide one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Q pairs of neighbouring pixels whose surfaces differ; rows of pixels first, then columns, each row-major."""

    near: Tensor  # [Q] int64 flat pixel of the surface closer to the camera
    far: Tensor  # [Q] int64 flat pixel of the other
    vertical: Tensor  # [Q] bool
    sign: Tensor  # [Q] float64: +1 where `far` has the larger coordinate, else -1
    centre: Tensor  # [Q, 2] float64 column, row of the near pixel's centre
    face: Tensor  # [Q] int64 triangle at `near`
    offset: Tensor  # [Q] int64 added to its vertex indices

    def at(self, chosen: Tensor) -> "Pairs":
        """Return some of the pairs."""
        return Pairs(
            near=self.near[chosen],
            far=self.far[chosen],
            vertical=self.vertical[chosen],
            sign=self.sign[chosen],
            centre=self.centre[chosen],
            face=self.face[chosen],
            offset=self.offset[chosen],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """Projected vertices, not snapped."""

    xy: Tensor  # [M, 2] float64 pixels
    ok: Tensor  # [M] bool: finite and before the camera


def project(pos: Tensor, size: tuple[int, int]) -> Screen:
    """Project clip positions [M, 4] to float64 pixels, differentiably."""
    exact = pos.double()
    ok = exact.detach().isfinite().all(dim=1) & (exact.detach()[:, 3] > MIN_W)
    exact = torch.where(ok[:, None], exact, 1.0)
    column, row = (exact[:, :2] / exact[:, 3:] * 0.5 + 0.5).unbind(dim=1)
    return Screen(xy=torch.stack([column * size[1], row * size[0]], dim=1), ok=ok)


def pixel_pairs(
    frag: Fragments,
    depth: Tensor,  # [P]
    num_vertices: int,  # per image, when instanced; 0 when packed
    pairing: Pairing,
) -> Pairs:
    """List neighbours that differ in coverage, or ("all") in triangle.

    With "coverage" only outlines against the background are found. That is all a mask needs, and fewer pairs.
    """
    batch, height, width = frag.shape
    label = frag.tri_id if pairing == "all" else frag.tri_id > 0
    beside = (label[:, :, 1:] != label[:, :, :-1]).nonzero()
    below = (label[:, 1:, :] != label[:, :-1, :]).nonzero()
    place = torch.cat([beside, below])
    vertical = torch.arange(len(place), device=place.device) >= len(beside)
    first = (place[:, 0] * height + place[:, 1]) * width + place[:, 2]
    second = first + torch.where(vertical, width, 1)

    distance = depth.new_full((batch * height * width,), torch.inf)
    distance.index_copy_(0, frag.idx, depth.detach())
    forward = distance[first] <= distance[second]
    near = torch.where(forward, first, second)
    image = place[:, 0]
    pixel = near - image * (height * width)
    return Pairs(
        near=near,
        far=torch.where(forward, second, first),
        vertical=vertical,
        sign=torch.where(forward, 1.0, -1.0).double(),
        centre=torch.stack([pixel % width, pixel // width], dim=1).double() + 0.5,
        face=frag.tri_id.reshape(-1)[near].long() - 1,
        offset=image * num_vertices,
    )


def silhouette_edges(
    pairs: Pairs,
    pos: Tensor,  # [M, 4] clip
    tri: Tensor,  # [F, 3] int32
    topo: Topology,
    size: tuple[int, int],
    *,
    mode: Mode = "walk",
    backend: str = "auto",
) -> Tensor:  # [Q, 2] int64 flat vertices; -1 where no silhouette passes
    """Find the silhouette edge between the two pixels of each pair.

    From the near pixel's triangle the line to the other pixel's centre leaves through one edge. That edge is
    a silhouette if it is a border or if the surface folds back there: across it, the line would run
    backwards. "standard" looks at that one edge only. "walk" goes on across edges that are not silhouettes
    until it meets one or has passed the other centre: near smooth outlines the last triangles are slivers
    that no pixel centre hits, and the standard rule loses most of the gradient there.

    A silhouette counts if it is steeper than 45 degrees against the line (so rows and columns never both
    handle it) and crosses between the two centres.
    """
    steps = MAX_STEPS if mode == "walk" else 1
    if choose_backend(backend, tri.device) == "numba":
        from get3d_cluster.get3d.raster.silhouette_numba import walk  # compiles: only if used

        return walk(pairs, pos.detach(), tri, topo, size, steps)
    return _walk(pairs, project(pos.detach(), size), tri, topo, steps)


def _walk(pairs: Pairs, screen: Screen, tri: Tensor, topo: Topology, max_steps: int) -> Tensor:
    found = torch.full((len(pairs.near), 2), -1, dtype=torch.int64, device=tri.device)
    going = torch.arange(len(pairs.near), device=tri.device)
    face = pairs.face
    edge, at = _exit(pairs, screen, tri, face, torch.full_like(face, -1))
    highest = at
    for _ in range(max_steps):
        if not len(going):
            break
        here = pairs.at(going)
        twin = topo.twin[face, edge].long()
        next_face, entered = twin.clamp(min=0) // 3, twin.clamp(min=0) % 3
        across = tri[next_face, (entered + 2) % 3].long() + here.offset
        next_edge, next_at = _exit(here, screen, tri, next_face, entered)
        reached = (at < 1.0 + SLACK_PX) & (at > -torch.inf) & ((twin < 0) | screen.ok[across])
        on = reached & (twin >= 0) & (next_at >= highest - FOLD_PX)
        ends = torch.stack([tri[face, edge], tri[face, (edge + 1) % 3]], dim=1).long() + here.offset[:, None]
        counts = reached & ~on & (at > -SLACK_PX) & _steep(screen.xy, ends, here.vertical)
        found[going] = torch.where(counts[:, None], ends, -1)
        kept = on.nonzero()[:, 0]  # on CUDA the one wait of a step
        going, face, edge, at = going[kept], next_face[kept], next_edge[kept], next_at[kept]
        highest = torch.maximum(highest[kept], at)
    return found


def _exit(here: Pairs, screen: Screen, tri: Tensor, face: Tensor, entered: Tensor) -> tuple[Tensor, Tensor]:
    """Return through which edge, other than the one entered by, lines leave triangles, and where (-inf: nowhere)."""
    relative = screen.xy[tri[face].long() + here.offset[:, None]] - here.centre[:, None]
    column, row = relative.unbind(dim=2)
    vertical = here.vertical[:, None]
    along = torch.where(vertical, row, column) * here.sign[:, None]
    beside = torch.where(vertical, column, row)
    along_next, beside_next = along.roll(-1, dims=1), beside.roll(-1, dims=1)
    crosses = (beside >= 0) != (beside_next >= 0)
    crosses &= torch.arange(3, device=tri.device) != entered[:, None]
    run = torch.where(crosses, beside_next - beside, 1.0)
    at = torch.where(crosses, (along * beside_next - along_next * beside) / run, -torch.inf)
    best = at.amax(dim=1)
    first = (at == best[:, None]).to(torch.uint8).argmax(dim=1)  # `max` alone promises no order among equals
    return first, best


def _steep(xy: Tensor, ends: Tensor, vertical: Tensor) -> Tensor:
    column_by, row_by = (xy[ends[:, 1]] - xy[ends[:, 0]]).abs().unbind(dim=1)
    return torch.where(vertical, row_by < column_by, column_by <= row_by)

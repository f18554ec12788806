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
    extent = torch.tensor([size[1], size[0]], dtype=torch.float64, device=pos.device)
    return Screen(xy=(exact[:, :2] / exact[:, 3:] * 0.5 + 0.5) * extent, ok=ok)


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

    distance = depth.new_full((batch * height * width,), torch.inf).index_copy(0, frag.idx, depth.detach())
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
    screen: Screen,
    tri: Tensor,  # [F, 3] int32
    topo: Topology,
    *,
    mode: Mode = "walk",
    backend: str = "auto",
) -> Tensor:  # [Q, 2] int64 flat vertices; -1 where no silhouette passes
    """Find the silhouette edge between the two pixels of each pair.

    From the near pixel's triangle the line to the other pixel's centre leaves through one edge. An edge is a
    silhouette if it is a border or if the surface folds back there. "standard" looks at that one edge only.
    "walk" goes on across edges that are not silhouettes until it meets one or has passed the other centre:
    near smooth outlines the last triangles are slivers that no pixel centre hits, and the standard rule loses
    most of the gradient there.

    A silhouette counts if it is steeper than 45 degrees against the line (so rows and columns never both
    handle it) and crosses between the two centres.
    """
    steps = MAX_STEPS if mode == "walk" else 1
    if choose_backend(backend, tri.device) == "numba":
        from get3d_cluster.get3d.raster.silhouette_numba import walk  # compiles: only if used
    else:
        walk = _walk
    return walk(pairs, screen, tri, topo, steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exit:
    """How the line of each pair leaves its present triangle."""

    edge: Tensor  # [Q] int64 corner where the edge begins
    found: Tensor  # [Q] bool
    at: Tensor  # [Q] float64 pixels from the near centre
    ends: Tensor  # [Q, 2] int64 flat vertices
    steep: Tensor  # [Q] bool


def _walk(pairs: Pairs, screen: Screen, tri: Tensor, topo: Topology, max_steps: int) -> Tensor:
    found = torch.full((len(pairs.near), 2), -1, dtype=torch.int64, device=tri.device)
    going = torch.arange(len(pairs.near), device=tri.device)
    face, entered = pairs.face, torch.full_like(pairs.face, -1)
    for _ in range(max_steps):
        if not len(going):
            break
        here = pairs.at(going)
        leave = _exit(here, screen, tri, face, entered)
        twin = topo.twin[face, leave.edge].long()
        opposite = tri[face, (leave.edge + 2) % 3].long() + here.offset
        across = tri[twin.clamp(min=0) // 3, (twin.clamp(min=0) % 3 + 2) % 3].long() + here.offset
        border = twin < 0
        fold = _same_side(screen.xy, leave.ends, opposite, across)
        in_reach = leave.found & (leave.at < 1.0 + SLACK_PX) & (border | screen.ok[across])
        ends_here = in_reach & (border | fold)
        counts = ends_here & leave.steep & (leave.at > -SLACK_PX)
        found[going[counts]] = leave.ends[counts]
        on = (in_reach & ~ends_here).nonzero()[:, 0]
        going, face, entered = going[on], twin[on] // 3, twin[on] % 3
    return found


def _exit(here: Pairs, screen: Screen, tri: Tensor, face: Tensor, entered: Tensor) -> _Exit:
    vert = tri[face].long() + here.offset[:, None]
    relative = screen.xy[vert] - here.centre[:, None]
    column, row = relative.unbind(dim=2)
    vertical = here.vertical[:, None]
    along = torch.where(vertical, row, column) * here.sign[:, None]
    beside = torch.where(vertical, column, row)
    along_next, beside_next = along.roll(-1, dims=1), beside.roll(-1, dims=1)
    crosses = (beside >= 0) != (beside_next >= 0)
    crosses &= torch.arange(3, device=tri.device) != entered[:, None]
    run = torch.where(crosses, beside_next - beside, 1.0)
    at = torch.where(crosses, (along * beside_next - along_next * beside) / run, -torch.inf)
    best, edge = _first_max(at)
    pick = torch.stack([edge, (edge + 1) % 3], dim=1)
    along_by, beside_by = (
        (v.gather(1, pick[:, 1:]) - v.gather(1, pick[:, :1]))[:, 0].abs() for v in (along, beside)
    )
    return _Exit(
        edge=edge,
        found=crosses.any(dim=1),
        at=best,
        ends=vert.gather(1, pick),
        steep=torch.where(here.vertical, along_by < beside_by, along_by <= beside_by),
    )


def _first_max(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of [Q, 3] and where it first occurs; `max` promises no order among equals."""
    best = values.amax(dim=1)
    return best, (values == best[:, None]).to(torch.uint8).argmax(dim=1)


def _same_side(xy: Tensor, ends: Tensor, one: Tensor, other: Tensor) -> Tensor:
    start = xy[ends[:, 0]]
    way, to_one, to_other = xy[ends[:, 1]] - start, xy[one] - start, xy[other] - start
    side = way[:, 0] * to_one[:, 1] - way[:, 1] * to_one[:, 0]
    other_side = way[:, 0] * to_other[:, 1] - way[:, 1] * to_other[:, 0]
    return side * other_side > 0

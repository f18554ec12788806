"""Which triangle lies across each edge.

Half-edge h = 3 f + e runs from corner e of triangle f to corner (e + 1) % 3; corner (e + 2) % 3 lies
opposite.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from get3d_cluster.get3d.raster.backends import choose_backend

BORDER = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """The half-edge on the other side of each half-edge, or BORDER."""

    twin: Tensor  # [F, 3] int32


def topology(
    tri: Tensor,  # [F, 3] int32
    num_vertices: int,
    *,
    backend: str = "auto",
) -> Topology:
    """Pair the half-edges of a mesh. Winding does not matter.

    An edge with one triangle, or with three and more, has no other side: it counts as a border. Vertices are
    told apart by index alone: a mesh that stores a point twice has a border there.
    """
    if choose_backend(backend, tri.device) == "numba":
        from get3d_cluster.get3d.raster.topology_numba import twins  # compiles: only if used
    else:
        twins = _twins
    return Topology(twin=twins(tri, num_vertices))


def _twins(tri: Tensor, num_vertices: int) -> Tensor:
    start, end = tri.long().reshape(-1), tri.roll(-1, dims=1).long().reshape(-1)
    key = torch.minimum(start, end) * num_vertices + torch.maximum(start, end)
    key, half_edge = torch.sort(key, stable=True)
    same = torch.zeros(
        len(key) + 2, dtype=torch.bool, device=tri.device
    )  # [i + 1]: entry i repeats entry i - 1
    same[2:-1] = key[1:] == key[:-1]
    second = (same[1:-1] & ~same[:-2] & ~same[2:]).nonzero()[:, 0]
    one, other = half_edge[second - 1], half_edge[second]
    twin = torch.full((len(key),), BORDER, dtype=torch.int32, device=tri.device)
    twin[one], twin[other] = other.int(), one.int()
    return twin.view(-1, 3)

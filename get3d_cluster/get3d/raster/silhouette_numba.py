"""The search for silhouette edges on the CPU: one compiled walk a pair."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.get3d.raster.silhouette import FOLD_PX, SLACK_PX, Pairs, Screen
from get3d_cluster.get3d.raster.topology import Topology

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def walk(pairs: Pairs, screen: Screen, tri: Tensor, topo: Topology, max_steps: int) -> Tensor:
    """Return [Q, 2] int64: the silhouette edge of each pair, or -1."""
    found = torch.full((len(pairs.near), 2), -1, dtype=torch.int64)
    line = (pairs.vertical.numpy(), pairs.sign.numpy(), pairs.centre.numpy())
    start = (pairs.face.numpy(), pairs.offset.numpy())
    mesh = (tri.contiguous().numpy(), topo.twin.numpy(), screen.xy.detach().numpy(), screen.ok.numpy())
    _walk(found.numpy(), line, start, mesh, max_steps)
    return found


@njit(cache=True, nogil=True)
def _walk(
    found: Ints,  # [Q, 2]
    line: tuple[NDArray[np.bool_], Floats, Floats],  # vertical [Q], sign [Q], centre [Q, 2]
    start: tuple[Ints, Ints],  # face [Q], vertex offset [Q]
    mesh: tuple[
        NDArray[np.int32], NDArray[np.int32], Floats, NDArray[np.bool_]
    ],  # tri, twin, xy [M, 2], ok [M]
    max_steps: int,
) -> None:
    vertical, sign, centre = line
    tri, twins, xy, ok = mesh
    for q in range(found.shape[0]):
        main = 1 if vertical[q] else 0
        f, offset = start[0][q], start[1][q]
        edge, at = _exit(tri[f], offset, xy, centre[q], main, sign[q], -1)
        highest = at
        for _ in range(max_steps):
            if edge < 0 or at >= 1.0 + SLACK_PX:
                break
            twin = twins[f, edge]
            if twin >= 0:
                g, entered = np.int64(twin // 3), twin % 3
                if not ok[tri[g, (entered + 2) % 3] + offset]:
                    break
                next_edge, next_at = _exit(tri[g], offset, xy, centre[q], main, sign[q], entered)
                if next_at >= highest - FOLD_PX:
                    f, edge, at, highest = g, next_edge, next_at, max(highest, next_at)
                    continue
            a, b = tri[f, edge] + offset, tri[f, (edge + 1) % 3] + offset
            along_by, beside_by = abs(xy[b, main] - xy[a, main]), abs(xy[b, 1 - main] - xy[a, 1 - main])
            steep = along_by < beside_by if vertical[q] else along_by <= beside_by
            if steep and at > -SLACK_PX:
                found[q, 0], found[q, 1] = a, b
            break


@njit(cache=True, nogil=True)
def _exit(
    corners: NDArray[np.int32], offset: int, xy: Floats, centre: Floats, main: int, sign: float, entered: int
) -> tuple[int, float]:
    edge, at = -1, -np.inf
    for e in range(3):
        a, b = corners[e] + offset, corners[(e + 1) % 3] + offset
        beside, beside_next = xy[a, 1 - main] - centre[1 - main], xy[b, 1 - main] - centre[1 - main]
        if e == entered or (beside >= 0) == (beside_next >= 0):
            continue
        along, along_next = (xy[a, main] - centre[main]) * sign, (xy[b, main] - centre[main]) * sign
        here = (along * beside_next - along_next * beside) / (beside_next - beside)
        if edge < 0 or here > at:
            edge, at = e, here
    return edge, at

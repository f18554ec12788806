"""The search for silhouette edges on the CPU: one compiled walk a pair."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.get3d.raster.silhouette import SLACK_PX, Pairs, Screen
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
def _walk(  # noqa: C901  # one loop nest: a call per triangle would cost more than the triangle
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
        main, side = (1, 0) if vertical[q] else (0, 1)
        f, offset, entered = start[0][q], start[1][q], -1
        for _ in range(max_steps):
            edge, at = -1, -np.inf
            along_by, beside_by = 0.0, 0.0
            for e in range(3):
                a, b = tri[f, e] + offset, tri[f, (e + 1) % 3] + offset
                beside, beside_next = xy[a, side] - centre[q, side], xy[b, side] - centre[q, side]
                if e == entered or (beside >= 0) == (beside_next >= 0):
                    continue
                along = (xy[a, main] - centre[q, main]) * sign[q]
                along_next = (xy[b, main] - centre[q, main]) * sign[q]
                here = (along * beside_next - along_next * beside) / (beside_next - beside)
                if edge < 0 or here > at:
                    edge, at = e, here
                    along_by, beside_by = abs(along_next - along), abs(beside_next - beside)
            if edge < 0 or at >= 1.0 + SLACK_PX:
                break
            a, b = tri[f, edge] + offset, tri[f, (edge + 1) % 3] + offset
            twin = twins[f, edge]
            if twin >= 0:
                across = tri[twin // 3, (twin % 3 + 2) % 3] + offset
                if not ok[across]:
                    break
                if not _same_side(xy, a, b, tri[f, (edge + 2) % 3] + offset, across):
                    f, entered = np.int64(twin // 3), twin % 3
                    continue
            steep = along_by < beside_by if vertical[q] else along_by <= beside_by
            if steep and at > -SLACK_PX:
                found[q, 0], found[q, 1] = a, b
            break


@njit(cache=True, nogil=True)
def _same_side(xy: Floats, a: int, b: int, one: int, other: int) -> bool:
    way_x, way_y = xy[b, 0] - xy[a, 0], xy[b, 1] - xy[a, 1]
    side = way_x * (xy[one, 1] - xy[a, 1]) - way_y * (xy[one, 0] - xy[a, 0])
    other_side = way_x * (xy[other, 1] - xy[a, 1]) - way_y * (xy[other, 0] - xy[a, 0])
    return bool(side * other_side > 0)

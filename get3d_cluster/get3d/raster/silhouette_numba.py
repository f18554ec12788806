"""The search for silhouette edges on the CPU: one compiled walk a pair."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.get3d.raster.silhouette import FOLD_PX, SLACK_PX, Pairs
from get3d_cluster.get3d.raster.topology import Topology
from get3d_cluster.get3d.raster.visibility import MIN_W

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def walk(
    pairs: Pairs, pos: Tensor, tri: Tensor, topo: Topology, size: tuple[int, int], max_steps: int
) -> Tensor:
    """Return [Q, 2] int64: the silhouette edge of each pair, or -1."""
    found = torch.full((len(pairs.near), 2), -1, dtype=torch.int64)
    line = (pairs.vertical.numpy(), pairs.sign.numpy(), pairs.centre.numpy())
    start = (pairs.face.numpy(), pairs.offset.numpy())
    mesh = (tri.contiguous().numpy(), topo.twin.numpy(), pos.contiguous().numpy())
    _walk(found.numpy(), line, start, mesh, (float(size[1]), float(size[0])), max_steps)
    return found


@njit(cache=True, nogil=True)
def _walk(
    found: Ints,  # [Q, 2]
    line: tuple[NDArray[np.bool_], Floats, Floats],  # vertical [Q], sign [Q], centre [Q, 2]
    start: tuple[Ints, Ints],  # face [Q], vertex offset [Q]
    mesh: tuple[NDArray[np.int32], NDArray[np.int32], Floats],  # tri, twin, pos [M, 4]
    extent: tuple[float, float],  # width, height
    max_steps: int,
) -> None:
    vertical, sign, centre = line
    tri, twins, pos = mesh
    for q in range(found.shape[0]):
        main = 1 if vertical[q] else 0
        f, offset = start[0][q], start[1][q]
        edge, at = _exit(tri[f], offset, (pos, extent), centre[q], main, sign[q], -1)
        highest = at
        for _ in range(max_steps):
            if edge < 0 or at >= 1.0 + SLACK_PX:
                break
            twin = twins[f, edge]
            if twin >= 0:
                g, entered = np.int64(twin // 3), twin % 3
                if not _usable(pos[tri[g, (entered + 2) % 3] + offset]):
                    break
                next_edge, next_at = _exit(tri[g], offset, (pos, extent), centre[q], main, sign[q], entered)
                if next_at >= highest - FOLD_PX:
                    f, edge, at, highest = g, next_edge, next_at, max(highest, next_at)
                    continue
            a, b = tri[f, edge] + offset, tri[f, (edge + 1) % 3] + offset
            here, there = _pixel(pos[a], extent), _pixel(pos[b], extent)
            along_by, beside_by = abs(there[main] - here[main]), abs(there[1 - main] - here[1 - main])
            steep = along_by < beside_by if vertical[q] else along_by <= beside_by
            if steep and at > -SLACK_PX:
                found[q, 0], found[q, 1] = a, b
            break


@njit(cache=True, nogil=True)
def _exit(
    corners: NDArray[np.int32],
    offset: int,
    view: tuple[Floats, tuple[float, float]],  # pos, extent
    centre: Floats,
    main: int,
    sign: float,
    entered: int,
) -> tuple[int, float]:
    pos, extent = view
    edge, at = -1, -np.inf
    for e in range(3):
        if e == entered:
            continue
        a, b = _pixel(pos[corners[e] + offset], extent), _pixel(pos[corners[(e + 1) % 3] + offset], extent)
        beside, beside_next = a[1 - main] - centre[1 - main], b[1 - main] - centre[1 - main]
        if (beside >= 0) == (beside_next >= 0):
            continue
        along, along_next = (a[main] - centre[main]) * sign, (b[main] - centre[main]) * sign
        here = (along * beside_next - along_next * beside) / (beside_next - beside)
        if edge < 0 or here > at:
            edge, at = e, here
    return edge, at


@njit(cache=True, nogil=True)
def _pixel(clip: Floats, extent: tuple[float, float]) -> tuple[float, float]:
    """Do what `silhouette.project` does to one vertex, with the same float64 operations."""
    if not _usable(clip):
        return extent
    x, y, w = np.float64(clip[0]), np.float64(clip[1]), np.float64(clip[3])
    return (x / w * 0.5 + 0.5) * extent[0], (y / w * 0.5 + 0.5) * extent[1]


@njit(cache=True, nogil=True)
def _usable(clip: Floats) -> bool:
    finite = np.isfinite(clip[0]) and np.isfinite(clip[1]) and np.isfinite(clip[2]) and np.isfinite(clip[3])
    return bool(finite and clip[3] > MIN_W)

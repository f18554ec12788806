"""Visibility on the CPU: one compiled loop over triangles and the pixels of their boxes."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.get3d.raster.inputs import Scene
from get3d_cluster.get3d.raster.visibility import (
    DEPTH_STEPS,
    GUARD,
    HALF,
    ID_BITS,
    MIN_W,
    NOTHING,
    SUBPIXELS,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def nearest_ids(what: Scene) -> Tensor:
    """Return [B, H, W] int32: 1 + the nearest triangle of each pixel, or 0."""
    ids = torch.empty((len(what.first), *what.size), dtype=torch.int32)
    runs = torch.stack([what.first, what.count, what.offset], dim=1).numpy()
    _draw(ids.numpy(), what.pos.contiguous().numpy(), what.tri.contiguous().numpy(), runs)
    return ids


@njit(cache=True, nogil=True)
def _draw(
    ids: NDArray[np.int32],  # [B, H, W]
    pos: Floats,  # [M, 4], or float32
    tri: NDArray[np.int32],  # [F, 3]
    runs: Ints,  # [B, 3] first triangle, count, vertex offset
) -> None:
    _, height, width = ids.shape
    vertices = _snapped(pos, height, width)
    key = np.empty((height, width), np.int64)  # of one image: it stays in the cache
    for b in range(ids.shape[0]):
        key[:] = NOTHING
        first, count, offset = runs[b, 0], runs[b, 1], runs[b, 2]
        _paint(key, vertices, tri[: first + count], first, offset)
        for row in range(height):
            for column in range(width):
                best = key[row, column]
                ids[b, row, column] = 0 if best == NOTHING else (best & ((1 << ID_BITS) - 1)) + 1


@njit(cache=True, nogil=True)
def _snapped(pos: Floats, height: int, width: int) -> tuple[Ints, Ints, Floats, NDArray[np.bool_]]:
    """Do what `visibility.snap` does, with the same float64 operations."""
    xs, ys = np.zeros(len(pos), np.int64), np.zeros(len(pos), np.int64)
    zs, ok = np.zeros(len(pos), np.float64), np.zeros(len(pos), np.bool_)
    for v in range(len(pos)):
        x, y = np.float64(pos[v, 0]), np.float64(pos[v, 1])
        z, w = np.float64(pos[v, 2]), np.float64(pos[v, 3])
        if not (np.isfinite(x) and np.isfinite(y) and np.isfinite(z) and np.isfinite(w) and w > MIN_W):
            continue
        column = ((x / w) * 0.5 + 0.5) * (width * SUBPIXELS)
        row = ((y / w) * 0.5 + 0.5) * (height * SUBPIXELS)
        if abs(column) < GUARD and abs(row) < GUARD:
            xs[v], ys[v], zs[v], ok[v] = np.int64(np.rint(column)), np.int64(np.rint(row)), z / w, True
    return xs, ys, zs, ok


@njit(cache=True, nogil=True)
def _paint(  # one loop nest: a call per pixel would cost more than the pixel
    key: Ints,  # [H, W]
    vertices: tuple[Ints, Ints, Floats, NDArray[np.bool_]],  # x, y, z, ok [M]
    tri: NDArray[np.int32],  # [F, 3]
    first: int,  # triangle, of those up to the last
    offset: int,  # added to the vertex indices
) -> None:
    height, width = key.shape
    xs, ys, zs, ok = vertices
    for f in range(first, tri.shape[0]):
        i, j, k = tri[f, 0] + offset, tri[f, 1] + offset, tri[f, 2] + offset
        if not (ok[i] and ok[j] and ok[k]):
            continue
        left = max(0, -((HALF - min(xs[i], xs[j], xs[k])) // SUBPIXELS))
        right = min(width - 1, (max(xs[i], xs[j], xs[k]) - HALF) // SUBPIXELS)
        top = max(0, -((HALF - min(ys[i], ys[j], ys[k])) // SUBPIXELS))
        bottom = min(height - 1, (max(ys[i], ys[j], ys[k]) - HALF) // SUBPIXELS)
        if left > right or top > bottom:
            continue
        area = (xs[j] - xs[i]) * (ys[k] - ys[i]) - (ys[j] - ys[i]) * (xs[k] - xs[i])
        if area == 0:
            continue
        if area < 0:
            area, j, k = -area, k, j
        ex0, ey0 = xs[k] - xs[j], ys[k] - ys[j]
        ex1, ey1 = xs[i] - xs[k], ys[i] - ys[k]
        ex2, ey2 = xs[j] - xs[i], ys[j] - ys[i]
        least0 = 0 if ey0 < 0 or (ey0 == 0 and ex0 < 0) else 1
        least1 = 0 if ey1 < 0 or (ey1 == 0 and ex1 < 0) else 1
        least2 = 0 if ey2 < 0 or (ey2 == 0 and ex2 < 0) else 1
        for row in range(top, bottom + 1):
            gy = row * SUBPIXELS + HALF
            for column in range(left, right + 1):
                gx = column * SUBPIXELS + HALF
                e0 = ex0 * (gy - ys[j]) - ey0 * (gx - xs[j])
                e1 = ex1 * (gy - ys[k]) - ey1 * (gx - xs[k])
                e2 = ex2 * (gy - ys[i]) - ey2 * (gx - xs[i])
                if e0 < least0 or e1 < least1 or e2 < least2:
                    continue
                z = (float(e0) * zs[i] + float(e1) * zs[j] + float(e2) * zs[k]) / float(area)
                if not -1.0 <= z <= 1.0:
                    continue
                depth = min(int(np.floor((z + 1.0) * DEPTH_STEPS)), (1 << 31) - 1)
                mine = (depth << ID_BITS) | f
                key[row, column] = min(key[row, column], mine)

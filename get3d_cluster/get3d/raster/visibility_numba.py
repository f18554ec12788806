"""Visibility on the CPU: one compiled loop over triangles and the pixels of their boxes."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.get3d.raster.inputs import Scene
from get3d_cluster.get3d.raster.visibility import DEPTH_STEPS, HALF, ID_BITS, NOTHING, SUBPIXELS, Snapped

Ints = NDArray[np.int64]


def nearest_keys(what: Scene, snapped: Snapped) -> Tensor:
    """Return [B, H, W] int64: the least (depth, triangle) key of each pixel."""
    key = torch.full((len(what.first), *what.size), NOTHING, dtype=torch.int64)
    vertices = (snapped.x.numpy(), snapped.y.numpy(), snapped.z.numpy(), snapped.ok.numpy())
    runs = torch.stack([what.first, what.count, what.offset], dim=1).numpy()
    _paint(key.numpy(), *vertices, what.tri.contiguous().numpy(), runs)
    return key


@njit(cache=True, nogil=True)
def _paint(  # noqa: C901  # one loop nest: a call per pixel would cost more than the pixel
    key: Ints,  # [B, H, W]
    xs: Ints,  # [M]
    ys: Ints,
    zs: NDArray[np.float64],
    ok: NDArray[np.bool_],
    tri: NDArray[np.int32],  # [F, 3]
    runs: Ints,  # [B, 3] first triangle, count, vertex offset
) -> None:
    height, width = key.shape[1], key.shape[2]
    for b in range(key.shape[0]):
        first, count, offset = runs[b, 0], runs[b, 1], runs[b, 2]
        for f in range(first, first + count):
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
                    key[b, row, column] = min(key[b, row, column], mine)

"""Half-edge pairs on the CPU: a counting sort by the lower vertex, then a look through each short bucket."""

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from get3d_cluster.get3d.raster.topology import BORDER


def twins(tri: Tensor, num_vertices: int) -> Tensor:
    """Return [F, 3] int32: the half-edge across each half-edge, or BORDER."""
    twin = torch.full(tri.shape, BORDER, dtype=torch.int32)
    _pair(tri.contiguous().numpy(), num_vertices, twin.numpy())
    return twin


@njit(cache=True, nogil=True)
def _pair(tri: NDArray[np.int32], num_vertices: int, twin: NDArray[np.int32]) -> None:
    begin = np.zeros(num_vertices + 2, np.int64)  # shifted by one: the fill below moves each start to its end
    for f in range(tri.shape[0]):
        for e in range(3):
            begin[min(tri[f, e], tri[f, (e + 1) % 3]) + 2] += 1
    for v in range(num_vertices):
        begin[v + 2] += begin[v + 1]
    half_edge = np.empty(3 * tri.shape[0], np.int32)
    high = np.empty(3 * tri.shape[0], np.int32)
    for f in range(tri.shape[0]):
        for e in range(3):
            a, b = tri[f, e], tri[f, (e + 1) % 3]
            slot = begin[min(a, b) + 1]
            half_edge[slot], high[slot] = 3 * f + e, max(a, b)
            begin[min(a, b) + 1] += 1
    for v in range(num_vertices):
        for i in range(begin[v], begin[v + 1]):
            same, other = 0, 0
            for j in range(begin[v], begin[v + 1]):
                if j != i and high[j] == high[i]:
                    same, other = same + 1, j
            h = half_edge[i]
            twin[h // 3, h % 3] = half_edge[other] if same == 1 else BORDER

"""Which triangle each pixel sees: discrete, exact, without a derivative.

Exact and order-free. Projected vertices are snapped to 1/256 pixel; coverage is decided in integers; depth is
quantised into the high bits of a key whose low bits are the triangle's number, and the least key wins. So no
result depends on the order of the work, the number of threads or the backend. Row 0 is clip y = -1. No
back-face culling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from get3d_cluster.get3d.raster.backends import choose_backend
from get3d_cluster.get3d.raster.inputs import Scene, scene

SUBPIXEL_BITS = 8
SUBPIXELS = 1 << SUBPIXEL_BITS
HALF = SUBPIXELS // 2

MIN_W = 1e-6
"""Triangles with a vertex at or behind this w are not drawn: there is no near clipping."""

GUARD = 1 << 28
"""Largest snapped coordinate; edge functions then stay below 2^61."""

DEPTH_STEPS = float(1 << 30)
"""Steps per unit of z/w: 31 bits over [-1, 1]."""

ID_BITS = 31
NOTHING = (1 << 62) - 1 + (1 << 62)
"""Key of a pixel nobody covers: the largest int64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapped:
    """Projected vertices as the backends read them: made by the same float64 operations for all."""

    x: Tensor  # [M] int64, 1/256 pixel
    y: Tensor  # [M] int64
    z: Tensor  # [M] float64, z/w
    ok: Tensor  # [M] bool: finite, before the camera, inside the guard band


def visibility(
    pos_clip: Tensor,  # [B, V, 4], or [N, 4] with ranges
    tri: Tensor,  # [F, 3] int32
    size: tuple[int, int],  # height, width
    *,
    ranges: Tensor | None = None,  # [B, 2] first triangle, number of triangles
    backend: str = "auto",
) -> Tensor:  # [B, H, W] int32
    """Return 1 + the index into `tri` of the nearest triangle at each pixel centre, 0 where there is none.

    Triangles that touch w <= 0 or a number that is not finite are not drawn; parts outside -1 <= z/w <= 1 are
    cut away. Equal depth goes to the lower index. A centre on an edge belongs to exactly one of the triangles
    that share it.

    Raises: TypeError, ValueError, IndexError for unusable arguments; RuntimeError for a backend that is
        missing.
    """
    what = scene(pos_clip.detach(), tri, size, ranges)
    return visible_ids(what, backend)


def visible_ids(what: Scene, backend: str) -> Tensor:
    """Return [B, H, W] int32 as `visibility` does, for arguments already checked."""
    chosen = choose_backend(backend, what.pos.device)
    if chosen == "numba":  # imported here: numba takes most of a second
        from get3d_cluster.get3d.raster.visibility_numba import nearest_ids
    elif chosen == "nvdiffrast":
        from get3d_cluster.get3d.raster.visibility_nvdiffrast import nearest_ids
    else:
        from get3d_cluster.get3d.raster.visibility_torch import nearest_ids
    return nearest_ids(what)


def snap(pos: Tensor, size: tuple[int, int]) -> Snapped:
    """Project clip positions [M, 4] to the subpixel grid."""
    x, y, z, w = pos.detach().double().unbind(dim=1)
    ok = pos.isfinite().all(dim=1) & (w > MIN_W)
    divisor = torch.where(ok, w, 1.0)
    column = ((x / divisor) * 0.5 + 0.5) * (size[1] * SUBPIXELS)
    row = ((y / divisor) * 0.5 + 0.5) * (size[0] * SUBPIXELS)
    ok = ok & (column.abs() < GUARD) & (row.abs() < GUARD)
    column, row = torch.where(ok, column, 0.0), torch.where(ok, row, 0.0)
    return Snapped(x=column.round().long(), y=row.round().long(), z=torch.where(ok, z / divisor, 0.0), ok=ok)

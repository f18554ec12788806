"""What every rasterizer call takes, checked once and brought to one layout.

Instanced: `pos_clip` [B, V, 4], all images share `tri`. Packed: `pos_clip` [N, 4] and `ranges` [B, 2], each
image has its own run of `tri`, whose indices count over all N. Inside the package only the flat form exists:
positions [M, 4].
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Flat form of both layouts: image b draws `count[b]` triangles from `first[b]`, vertices shifted."""

    pos: Tensor  # [M, 4] clip space
    tri: Tensor  # [F, 3] int32
    size: tuple[int, int]  # height, width in pixels
    first: Tensor  # [B] int64, CPU
    count: Tensor  # [B] int64, CPU
    offset: Tensor  # [B] int64, CPU


def scene(pos_clip: Tensor, tri: Tensor, size: tuple[int, int], ranges: Tensor | None) -> Scene:
    """Check the arguments of a rasterizer call and flatten them.

    Raises: TypeError for dtypes and devices, ValueError for shapes and sizes, IndexError for indices (CPU
        only: on CUDA looking would stall the stream).
    """
    _check_types(pos_clip, tri)
    _check_shapes(pos_clip, tri, size)
    if ranges is None:
        if pos_clip.dim() != 3:
            raise ValueError(f"pos_clip {list(pos_clip.shape)} must be [B, V, 4], or come with ranges")
        batch, per_image = pos_clip.shape[:2]
        first, count = torch.zeros(batch, dtype=torch.int64), torch.full((batch,), len(tri))
        offset = torch.arange(batch) * per_image
    else:
        per_image = pos_clip.shape[0]
        first, count = _checked_ranges(pos_clip, tri, ranges)
        offset = torch.zeros_like(first)
    _check_indices(tri, per_image)
    flat = pos_clip.reshape(-1, 4)
    return Scene(pos=flat, tri=tri, size=size, first=first, count=count, offset=offset)


def _check_types(pos_clip: Tensor, tri: Tensor) -> None:
    if pos_clip.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"pos_clip is {pos_clip.dtype}; it must be float32 or float64 (leave autocast first)")
    if tri.dtype != torch.int32:
        raise TypeError(f"tri is {tri.dtype}; it must be int32")
    if pos_clip.device != tri.device:
        raise TypeError(f"pos_clip is on {pos_clip.device}, tri on {tri.device}; they must be on one device")


def _check_shapes(pos_clip: Tensor, tri: Tensor, size: tuple[int, int]) -> None:
    if pos_clip.dim() not in (2, 3) or pos_clip.shape[-1] != 4:
        raise ValueError(f"pos_clip {list(pos_clip.shape)} must be [B, V, 4] or, with ranges, [N, 4]")
    if tri.dim() != 2 or tri.shape[1] != 3:
        raise ValueError(f"tri {list(tri.shape)} must be [F, 3]")
    if min(size) < 1:
        raise ValueError(f"size={size} must be (height, width), both at least 1")


def _checked_ranges(pos_clip: Tensor, tri: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    if pos_clip.dim() != 2:
        raise ValueError(f"pos_clip {list(pos_clip.shape)} must be [N, 4] when ranges are given")
    if ranges.dim() != 2 or ranges.shape[1] != 2:
        raise ValueError(f"ranges {list(ranges.shape)} must be [B, 2]: first triangle, number of triangles")
    if ranges.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"ranges is {ranges.dtype}; it must be int32 or int64")
    first, count = ranges.to("cpu", torch.int64).unbind(dim=1)
    if len(first) and (bool((ranges < 0).any()) or int((first + count).max()) > len(tri)):
        raise IndexError(f"ranges {ranges.tolist()} reach beyond the {len(tri)} triangles of tri")
    return first.contiguous(), count.contiguous()


def _check_indices(tri: Tensor, num_vertices: int) -> None:
    if tri.device.type != "cpu" or not len(tri):
        return
    low, high = (int(value) for value in torch.aminmax(tri))
    if low < 0 or high >= num_vertices:
        raise IndexError(f"tri holds vertex {low if low < 0 else high}; there are {num_vertices} vertices")

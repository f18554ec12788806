"""The part of nvdiffrast.torch that this project calls, as its documentation describes it.

It refuses what the documentation rules out, and computes with our own operations on a grid of 1/16 pixel. So it shows
that calls are well-formed and that what they return is understood; not what nvdiffrast computes.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from get3d_cluster.get3d import raster
from get3d_cluster.get3d.raster import backends, visibility_nvdiffrast
from tests.gpu.setting import _module

SUBPIXELS = 16
calls: list[str] = []
"""Names of the functions called since `installed` began."""


class RasterizeCudaContext:
    def __init__(self, device: Any = None) -> None:
        assert torch.device("cuda" if device is None else device).type == "cuda"
        self.device = device


def rasterize(
    glctx: RasterizeCudaContext,
    pos: Tensor,
    tri: Tensor,
    resolution: Sequence[int],
    ranges: Tensor | None = None,
    grad_db: bool = True,
) -> tuple[Tensor, Tensor]:
    calls.append("rasterize")
    assert isinstance(glctx, RasterizeCudaContext)
    assert isinstance(resolution, (tuple, list))
    height, width = resolution
    assert isinstance(height, int)
    assert isinstance(width, int)
    assert min(height, width) > 0
    _on_gpu("pos", pos, torch.float32)
    _on_gpu("tri", tri, torch.int32, (None, 3))
    assert pos.numel(), "pos is empty"
    if ranges is None:
        assert pos.dim() == 3, "instanced: [minibatch, vertices, 4]"
        assert pos.shape[2] == 4, "instanced: [minibatch, vertices, 4]"
    else:
        assert pos.dim() == 2, "ranges: [vertices, 4]"
        assert pos.shape[1] == 4, "ranges: [vertices, 4]"
        assert ranges.device.type == "cpu", "ranges stay on the CPU"
        assert ranges.dtype == torch.int32
        assert ranges.dim() == 2
        assert ranges.shape[1] == 2
        assert ranges.is_contiguous()
        assert bool((ranges >= 0).all())
        assert int(ranges.sum(dim=1).max()) <= len(tri)
        assert bool((ranges[:, 1] > 0).all()), "whether a range may be empty is not documented"
    per_image = pos.shape[-2]
    assert int(tri.min()) >= 0
    assert int(tri.max()) < per_image
    snapped = _on_coarse_grid(pos.detach(), height, width)
    ids = raster.visibility(snapped, tri, (height, width), ranges=ranges, backend="torch")
    frag = raster.fragments(ids, pos, tri)
    bary, depth = raster.barycentrics(frag, pos)
    values = torch.cat([bary[:, :2].clamp(0, 1), depth[:, None], (frag.tri + 1)[:, None].to(pos)], dim=1)
    rast = raster.to_image(frag, values)
    return rast, rast.new_zeros((*rast.shape[:3], 4 if grad_db else 0))


def interpolate(
    attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor | None = None, diff_attrs: Any = None
) -> tuple[Tensor, Tensor]:
    calls.append("interpolate")
    _on_gpu("attr", attr, torch.float32)
    _on_gpu("rast", rast, torch.float32, (None, None, None, 4))
    _on_gpu("tri", tri, torch.int32, (None, 3))
    assert rast_db is None
    assert diff_attrs is None
    ids = rast[..., 3].to(torch.int32)
    frag = raster.fragments(ids, attr if len(attr) == len(rast) else attr.expand(len(rast), -1, -1), tri)
    u, v = rast[..., 0].reshape(-1)[frag.idx], rast[..., 1].reshape(-1)[frag.idx]
    bary = torch.stack([u, v, 1 - u - v], dim=1)
    image = raster.to_image(frag, raster.interpolate(frag, bary, attr))
    return image, image.new_zeros((*image.shape[:3], 0))


def antialias(
    color: Tensor,
    rast: Tensor,
    pos: Tensor,
    tri: Tensor,
    topology_hash: Any = None,
    pos_gradient_boost: float = 1.0,
) -> Tensor:
    calls.append("antialias")
    _on_gpu("color", color, torch.float32)
    _on_gpu("rast", rast, torch.float32, (*color.shape[:3], 4))
    _on_gpu("pos", pos, torch.float32)
    _on_gpu("tri", tri, torch.int32, (None, 3))
    assert color.dim() == 4
    assert topology_hash is None
    assert pos_gradient_boost == 1.0
    frag = raster.fragments(rast[..., 3].to(torch.int32), pos, tri)
    depth = rast[..., 2].detach().reshape(-1)[frag.idx]
    topo = raster.topology(tri, pos.shape[-2], backend="torch")
    return raster.antialias(color, frag, depth, pos, tri, topo, mode="standard", pairs="all", backend="torch")


def _on_gpu(
    name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...] | None = None
) -> None:
    assert tensor.is_cuda, f"{name} must be on the GPU"
    assert tensor.dtype == dtype, f"{name} must be {dtype}, not {tensor.dtype}"
    assert tensor.is_contiguous(), f"{name} must be contiguous"
    if shape is not None:
        assert tensor.dim() == len(shape), f"{name} {list(tensor.shape)}"
        agree = [want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)]
        assert all(agree), f"{name} {list(tensor.shape)} must be {shape}"
    assert tensor.numel(), f"{name} must not be empty"


def _on_coarse_grid(pos: Tensor, height: int, width: int) -> Tensor:
    """Return clip positions whose projection lies on the grid."""
    x, y, z, w = pos.double().unbind(dim=-1)
    x, y = (
        (((v / w) * 0.5 + 0.5) * (extent * SUBPIXELS)).round() / (extent * SUBPIXELS) * 2 - 1
        for v, extent in ((x, width), (y, height))
    )
    return torch.stack([x * w, y * w, z, w], dim=-1)


@contextlib.contextmanager
def installed() -> Iterator[list[str]]:
    """Make `import nvdiffrast.torch` find this module; yields the names of the functions called."""
    library = _module("nvdiffrast.torch", **globals_of_library())
    package = _module("nvdiffrast", torch=library)
    package.__path__ = []  # type: ignore[attr-defined]
    assert "nvdiffrast" not in sys.modules, "there is a real one"
    _forget()
    calls.clear()
    sys.modules |= {"nvdiffrast": package, "nvdiffrast.torch": library}
    try:
        yield calls
    finally:
        del sys.modules["nvdiffrast"], sys.modules["nvdiffrast.torch"]
        _forget()


def _forget() -> None:
    backends._installed.cache_clear()
    visibility_nvdiffrast._context.cache_clear()


def globals_of_library() -> dict[str, Any]:
    public = ("RasterizeCudaContext", "rasterize", "interpolate", "antialias")
    return {name: globals()[name] for name in public}

"""Visibility by nvdiffrast, as far as its documentation goes: a stand-in takes its place on a pretended device."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from get3d_cluster.get3d import raster
from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.raster import visibility_nvdiffrast
from get3d_cluster.get3d.raster.surface import to_clip
from tests import fake_nvdiffrast
from tests.pretend_cuda import pretend_cuda
from tests.solids import mesh_of


@pytest.fixture
def device() -> Iterator[str]:
    with pretend_cuda() as name, fake_nvdiffrast.installed():
        yield name


def views(num: int, cells: int = 8) -> tuple[Tensor, Tensor]:
    verts, tri = mesh_of("car", cells)
    return to_clip(verts[None], clip_matrices(torch.arange(num) * 1.3, torch.full((num,), 1.2))[:, None]), tri


def on_grid(pos: Tensor, size: tuple[int, int]) -> Tensor:
    """Return positions where both grids agree, so that ids have to be equal."""
    return fake_nvdiffrast._on_coarse_grid(pos, *size).to(pos.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instanced_views_see_what_the_torch_backend_sees(device: str, dtype: torch.dtype) -> None:
    pos, tri = views(3)
    pos = on_grid(pos, (32, 48)).to(dtype)
    expected = raster.visibility(pos, tri, (32, 48), backend="torch")
    ids = raster.visibility(pos.to(device), tri.to(device), (32, 48), backend="nvdiffrast")
    assert fake_nvdiffrast.calls == ["rasterize"]
    assert ids.is_cuda
    assert ids.dtype == torch.int32
    assert torch.equal(ids.cpu(), expected)


def test_packed_meshes_keep_their_ids_and_empty_ones_see_nothing(device: str) -> None:
    pos, tri = views(1)
    pos, size = on_grid(pos, (24, 24))[0], (24, 24)
    count = len(tri)
    ranges = torch.tensor([[0, count], [count, 0], [5, count - 9], [0, 0], [count - 40, 40]])
    expected = raster.visibility(pos, tri, size, ranges=ranges, backend="torch")
    where = {"ranges": ranges, "backend": "nvdiffrast"}
    ids = raster.visibility(pos.to(device), tri.to(device), size, **where)
    assert torch.equal(ids.cpu(), expected)
    assert not expected[1].any()
    assert expected[4].any()
    nothing = torch.zeros(0, 3, dtype=torch.int32, device=device)
    assert not raster.visibility(pos[None].to(device), nothing, size, backend="nvdiffrast").any()
    assert fake_nvdiffrast.calls == ["rasterize"]


def test_what_other_backends_do_not_draw_is_not_drawn(device: str) -> None:
    pos, tri = views(2)
    pos, size = on_grid(pos, (24, 24)), (24, 24)
    pos[0, ::17, 3] *= -1
    pos[1, 3::19, 0] = math.nan
    pos[1, 0] = math.inf
    expected = raster.visibility(pos, tri, size, backend="torch")
    ids = raster.visibility(pos.to(device), tri.to(device), size, backend="nvdiffrast")
    assert torch.equal(ids.cpu(), expected)
    assert expected.any()


def test_a_whole_render_with_gradient_works_on_its_ids(device: str) -> None:
    verts, tri = mesh_of("car", 8)
    matrices = clip_matrices(torch.arange(2) * 1.3, torch.full((2,), 1.2))
    leaf = verts.to(device).requires_grad_()
    surface = raster.render_surface(leaf, tri.to(device), matrices.to(device), (32, 32), backend="nvdiffrast")
    plain = raster.render_surface(verts, tri, matrices, (32, 32), backend="torch")
    assert (surface.hard.cpu() != plain.hard).float().mean() < 0.01
    (gradient,) = torch.autograd.grad(surface.soft.sum() + surface.position.sum(), leaf)
    assert gradient.any()
    assert fake_nvdiffrast.calls == ["rasterize"]


def test_its_limits_are_told(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pos, tri = views(2)
    with pytest.raises(ValueError, match="works on CUDA, not on cpu"):
        raster.visibility(pos, tri, (8, 8), backend="nvdiffrast")
    monkeypatch.setattr(visibility_nvdiffrast, "MAX_TRIANGLES", 2 * len(tri) - 1)
    with pytest.raises(ValueError, match=f"{2 * len(tri)} triangles in one call"):
        raster.visibility(pos.to(device), tri.to(device), (8, 8), backend="nvdiffrast")


def test_the_stand_in_refuses_what_the_documentation_rules_out(device: str) -> None:
    pos, tri = (part.to(device) for part in views(1))
    context = fake_nvdiffrast.RasterizeCudaContext(device)
    wrong = [
        {"pos": pos.half()},
        {"pos": pos.cpu()},
        {"pos": pos.transpose(1, 2).contiguous().transpose(1, 2)},
        {"tri": tri.long()},
        {"tri": tri[:0]},
        {"resolution": (8.0, 8)},
        {"ranges": torch.tensor([[0, 4]], dtype=torch.int32)},
        {"pos": pos[0], "ranges": torch.tensor([[0, 4]])},
    ]
    for change in wrong:
        with pytest.raises(AssertionError):
            fake_nvdiffrast.rasterize(context, **({"pos": pos, "tri": tri, "resolution": (8, 8)} | change))

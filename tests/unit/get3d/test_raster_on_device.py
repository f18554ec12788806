"""How often rendering waits for CUDA: counted on a pretended device."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from get3d_cluster.get3d import raster
from get3d_cluster.get3d.camera import clip_matrices
from get3d_cluster.get3d.raster.surface import to_clip
from tests.pretend_cuda import OnDevice, pretend_cuda
from tests.solids import mesh_of

SIZE_DEPENDS_ON_DATA = ("nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim")


class Waits(TorchDispatchMode):
    """Notes every operation for which the CPU has to wait until the device has a result."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        there = any(isinstance(leaf, OnDevice) for leaf in tree_leaves((args, kwargs)))
        if there and self.waits(name, args, kwargs):
            self.names.append(name)
        return func(*args, **kwargs)

    @staticmethod
    def waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        if name == "repeat_interleave":
            return kwargs.get("output_size") is None
        if name == "_to_copy":
            target = kwargs.get("device")
            return target is not None and torch.device(target).type == "cpu"
        if name == "copy_":
            return not isinstance(args[0], OnDevice)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            return any(key is not None and key.dtype == torch.bool for key in args[1])
        return name == "_local_scalar_dense" or name in SIZE_DEPENDS_ON_DATA


def test_the_counter_sees_what_makes_cuda_wait() -> None:
    with pretend_cuda() as device:
        there = torch.arange(4, device=device)
        waiting = {
            "nonzero": lambda: there.nonzero(),
            "item": lambda: there.sum().item(),
            "mask": lambda: there[there > 1],
            "copy": lambda: there.cpu(),
            "repeat": lambda: torch.repeat_interleave(there, there),
        }
        for what, act in waiting.items():
            with Waits() as waits:
                act()
            assert len(waits.names) == 1, what
        with Waits() as waits:
            _ = (there + 1)[there], torch.repeat_interleave(there, there, output_size=6)
        assert waits.names == []


def test_visibility_waits_five_times_however_many_triangles_and_views_there_are() -> None:
    verts, tri = mesh_of("car", 8)
    for views, size in ((1, 16), (3, 40)):
        matrices = clip_matrices(torch.arange(views) * 1.3, torch.full((views,), 1.2))
        pos = to_clip(verts[None], matrices[:, None])
        with pretend_cuda() as device:
            there, its_tri = pos.to(device), tri.to(device)
            with Waits() as waits:
                raster.visibility(there, its_tri, (size, size))
        assert len(waits.names) == 5, waits.names


@pytest.mark.parametrize("mode", ["walk", "standard"])
def test_a_render_waits_for_its_lists_and_once_for_each_step_of_the_walk(mode: Any) -> None:
    verts, tri = mesh_of("car", 8)
    matrices = clip_matrices(torch.arange(2) * 1.3, torch.full((2,), 1.2))
    with pretend_cuda() as device:
        meshes = raster.pack([(verts.to(device).requires_grad_(), tri.to(device))] * 2)
        matrices = matrices.to(device)
        with Waits() as waits:
            surface = raster.render_meshes(meshes, matrices, (24, 24), mode=mode)
        rendered = len(waits.names)
        with Waits() as waits:
            (surface.soft.sum() + surface.position.sum()).backward()
    assert waits.names == [], "the backward pass waits"
    assert 11 <= rendered <= (11 if mode == "standard" else 30)

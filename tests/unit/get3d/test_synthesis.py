"""The trunk: which style reaches what."""

import pytest
import torch
from torch import Tensor

from get3d_cluster.get3d.config import TrunkConfig
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.get3d.ops import upsample
from get3d_cluster.get3d.synthesis import Planes, Trunk

CONFIGS = {
    "upstream": TrunkConfig(resolution_px=16, plane_channels=4, channels=(8, 8, 6)),
    "small": TrunkConfig(
        resolution_px=16, plane_channels=4, channels=(8, 8, 6), noise=False, resampling="bilinear"
    ),
}
NUM_GEO, NUM_TEX = 8, 3


@pytest.fixture(params=list(CONFIGS))
def trunk(request: pytest.FixtureRequest) -> Trunk:
    torch.manual_seed(0)
    return Trunk(CONFIGS[request.param], 5).double()


def latents() -> Latents:
    generator = torch.Generator().manual_seed(3)
    geo, tex = (torch.randn(2, n, 5, generator=generator, dtype=torch.float64) for n in (NUM_GEO, NUM_TEX))
    return Latents(geo=geo, tex=tex)


def moved(w: Tensor, slot: int) -> Tensor:
    w = w.clone()
    w[:, slot] += 1
    return w


def same(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=0, atol=1e-12))


def test_planes_have_rows_columns_three_planes_and_channels(trunk: Trunk) -> None:
    planes = trunk(latents())
    assert planes.geo.shape == planes.tex.shape == (2, 16, 16, 3, 4)


def test_the_texture_style_reaches_texture_planes_only(trunk: Trunk) -> None:
    old, base = trunk(latents()), latents()
    for slot in range(NUM_TEX):
        new: Planes = trunk(Latents(geo=base.geo, tex=moved(base.tex, slot)))
        assert same(new.geo, old.geo)
        assert not same(new.tex, old.tex)


def test_the_geometry_style_reaches_both_through_convolutions_and_one_through_outputs(trunk: Trunk) -> None:
    old, base = trunk(latents()), latents()
    for slot in range(NUM_GEO):
        new: Planes = trunk(Latents(geo=moved(base.geo, slot), tex=base.tex))
        assert not same(new.geo, old.geo)
        assert same(new.tex, old.tex) == (slot in (1, 4, 7))  # the last slot of each block is its output's


def test_slots_beyond_its_own_are_ignored(trunk: Trunk) -> None:
    base = latents()
    more = Latents(
        geo=torch.cat([base.geo, base.geo[:, :2]], 1), tex=torch.cat([base.tex, base.tex[:, :2]], 1)
    )
    assert torch.equal(trunk(more).geo, trunk(base).geo)
    assert torch.equal(trunk(more).tex, trunk(base).tex)


def test_outputs_of_all_resolutions_are_added_up(trunk: Trunk) -> None:
    """With silent outputs everywhere else, the planes are one block's bias, doubled in size since."""
    with torch.no_grad():
        for block in trunk.blocks:
            block.to_geo.weight.zero_()
            block.to_tex.weight.zero_()
        trunk.blocks[0].to_geo.bias.copy_(torch.arange(12.0))
    planes = trunk(latents())
    small = torch.arange(12.0).double()[None, :, None, None].expand(2, 12, 4, 4)
    expected = upsample(upsample(small, fir=trunk.blocks[0].fir), fir=trunk.blocks[0].fir)
    assert torch.allclose(planes.geo, expected.permute(0, 2, 3, 1).unflatten(3, (3, 4)))
    assert not planes.tex.any()


def test_samples_do_not_see_each_other(trunk: Trunk) -> None:
    base = latents()
    alone = trunk(Latents(geo=base.geo[1:], tex=base.tex[1:]))
    assert torch.allclose(alone.tex[0], trunk(base).tex[1])

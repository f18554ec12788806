"""Volumes for the geometry and planes for the texture: sizes, look-ups, and what each of them obeys."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.config import (
    FieldsConfig,
    GeneratorConfig,
    GridConfig,
    MappingConfig,
    RenderConfig,
    TrunkConfig,
    VolumeConfig,
)
from get3d_cluster.get3d.fields import lattice_coordinates
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.get3d.separate import (
    VolumeBlock,
    VolumeConv,
    corner_aligned,
    doubled,
    position_features,
    volume_features,
)

SMALL = GeneratorConfig(
    kind="separate",
    latent_channels=8,
    mapping=MappingConfig(num_layers=2, lr_multiplier=0.1),
    trunk=TrunkConfig(resolution_px=16, plane_channels=4, channels=(8, 8, 8)),
    volume=VolumeConfig(resolution=8, channel_base=64, hidden_channels=8),
    fields=FieldsConfig(hidden_channels=8, texture_channels=4, sphere_gain=4.0),
    grid=GridConfig(cells=6),
    render=RenderConfig(image_size_px=16),
)
CAMERAS = torch.tensor([[0.0, 1.3], [2.0, 1.2]])


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(SMALL)


def latents_of(generator: Generator, seed: int = 1) -> Latents:
    z = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(seed))
    return generator.map(z[0], z[1])


def test_the_trunks_have_the_published_numbers_of_parameters_and_slots() -> None:
    config = GeneratorConfig(kind="separate", grid=GridConfig(cells=2))
    with torch.device("meta"):
        generator = Generator(config)
    assert count(generator.sdf_volume) == 8_360_711  # 8.36 M
    assert count(generator.deformation_volume) == 8_164_105  # 8.16 M
    assert count(generator.texture_trunk) + count(generator.texture_field) == 32_731_165  # 32.73 M
    assert count(generator.colour) == 8_259
    assert (config.num_ws_sdf, config.num_ws_geo, config.num_ws_tex) == (11, 11 + 10, 22)
    assert config.num_noise == 16 + 2 * sum(side**2 for side in (8, 16, 32, 64, 128, 256))


def test_doubling_is_trilinear_with_the_border_repeated() -> None:
    x = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    expected = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    assert torch.allclose(doubled(x), expected)
    assert torch.autograd.gradcheck(doubled, x[:1, :1].requires_grad_())


def test_a_volume_is_looked_up_trilinearly_between_its_outermost_centres() -> None:
    volume, cells = torch.randn(2, 3, 5, 5, 5, dtype=torch.float64), 4
    axis = lattice_coordinates(cells)[: cells + 1]
    points = torch.cartesian_prod(axis, axis, axis)
    places = (
        points.flip(1).view(1, -1, 1, 1, 3).expand(2, -1, -1, -1, -1)
    )  # grid_sample counts the last axis first
    expected = F.grid_sample(volume, places, padding_mode="border", align_corners=True)
    found = volume_features(volume, corner_aligned(axis, 5))
    assert torch.allclose(found, expected.flatten(2).transpose(1, 2))


def test_vertices_of_the_grid_are_looked_up_at_their_own_places(generator: Generator) -> None:
    """A volume that holds the coordinates gives them back."""
    side = torch.linspace(-1, 1, 8)
    volume = torch.stack(torch.meshgrid(side, side, side, indexing="ij"))[None]
    cells = generator.config.grid.num_cells
    parts = generator.lattice[: cells + 1], generator.lattice[cells + 1 :]
    found = torch.cat([volume_features(volume, part) for part in parts], dim=1)[0]
    assert torch.allclose(found, generator.grid_vertices * 2, atol=1e-6)


def test_positions_become_sines_then_cosines_of_half_turns() -> None:
    features = position_features(torch.tensor([[0.5, 0.0, -1.0]]))[0]
    assert features.tolist() == pytest.approx([1, 0, 0, 0, 1, -1], abs=1e-6)


def test_a_modulated_convolution_is_that_of_modulated_weights() -> None:
    torch.manual_seed(0)
    conv, x, w = (
        VolumeConv(3, 5, 4, gain=0.7).double(),
        torch.randn(2, 3, 4, 4, 4).double(),
        torch.randn(2, 4).double(),
    )
    with torch.no_grad():
        conv.bias.normal_()
        style = w @ conv.affine.weight.t() / 2 + 1
        for i in range(2):
            weight = conv.weight * style[i, None, :, None, None, None]
            weight = weight / (weight.square().sum(dim=(1, 2, 3, 4), keepdim=True) + 1e-8).sqrt()
            y = F.conv3d(x[i : i + 1], weight, conv.bias, padding=1)
            expected = F.leaky_relu(y, 0.2) * 2**0.5 * 0.7
            assert torch.allclose(conv(x, w)[i : i + 1], expected)
    assert torch.autograd.gradcheck(
        conv, (x[:, :, :2, :2, :2].requires_grad_(), w.requires_grad_()), fast_mode=True
    )


def test_a_block_is_the_sum_of_two_halves_of_the_variance() -> None:
    torch.manual_seed(0)
    block, x, ws = VolumeBlock(16, 8, 4), torch.randn(2, 16, 4, 4, 4), torch.randn(2, 2, 4)
    big = doubled(x)
    around = F.conv3d(big, block.around / 4)
    second = block.second
    gain, second.gain = second.gain, 1.0
    straight = second(block.first(big, ws[:, 0]), ws[:, 1])
    second.gain = gain
    assert torch.allclose(block(x, ws), 0.5**0.5 * (around + straight), atol=1e-5)


def test_geometry_obeys_its_own_latent_and_texture_both(generator: Generator) -> None:
    base, other = latents_of(generator), latents_of(generator, 2)
    old = generator.shapes(base)
    texture = generator.shapes(replace(base, tex=other.tex))
    assert torch.equal(texture.sdf, old.sdf)
    assert torch.equal(texture.deformation, old.deformation)
    assert not torch.allclose(texture.planes.tex, old.planes.tex)
    geometry = generator.shapes(replace(base, geo=other.geo))
    assert not torch.allclose(geometry.sdf, old.sdf)
    assert not torch.allclose(geometry.planes.tex, old.planes.tex)


def test_the_first_slots_are_the_distance_s_and_the_last_the_deformation_s(generator: Generator) -> None:
    base = latents_of(generator)
    old, cut = generator.shapes(base), generator.config.num_ws_sdf
    for slot in range(generator.config.num_ws_geo):
        geo = base.geo.clone()
        geo[:, slot] += 1
        new = generator.shapes(replace(base, geo=geo))
        assert torch.equal(new.sdf, old.sdf) == (slot >= cut)
        assert torch.equal(new.deformation, old.deformation) == (slot < cut)


def test_noise_of_a_sample_takes_the_place_of_the_fixed_images(generator: Generator) -> None:
    base = latents_of(generator)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.5)
    convs = [conv for block in generator.texture_trunk.convs for conv in block]
    fixed = torch.cat([conv.noise.flatten() for conv in convs]).expand(2, -1)
    assert fixed.shape[1] == generator.config.num_noise
    same = generator.planes(replace(base, noise=fixed))
    assert torch.allclose(same.tex, generator.planes(base).tex, atol=1e-5)
    fresh = replace(base, noise=torch.randn(2, generator.config.num_noise))
    assert not torch.allclose(generator.planes(fresh).tex, same.tex, atol=1e-2)
    assert generator.truncate(fresh, 0.5).noise is fresh.noise
    assert generator.mix(fresh, base, 1, 1).noise is fresh.noise


def test_a_whole_pass_teaches_all_and_colours_teach_no_shape(generator: Generator) -> None:
    rendered = generator.render(latents_of(generator), CAMERAS)
    geometry = [*generator.sdf_volume.parameters(), *generator.deformation_volume.parameters()]
    found = torch.autograd.grad(
        rendered.image[:, :3].square().sum(), geometry, retain_graph=True, allow_unused=True
    )
    assert all(gradient is None or not gradient.any() for gradient in found)
    (rendered.image * torch.randn(2, 4, 16, 16)).sum().backward()
    without = [n for n, p in generator.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_meshes_of_separate_trunks_are_closed(generator: Generator) -> None:
    with torch.no_grad():
        for verts, faces in generator.meshes(latents_of(generator)):
            edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).long()
            there, back = (a * len(verts) + b for a, b in (edges.t(), edges.flip(1).t()))
            assert torch.equal(there.sort().values, back.sort().values)


@pytest.mark.parametrize("change", [{"mirror_x": True}, {"grid": GridConfig(kind="flexicubes", cells=6)}])
def test_what_reads_geometry_planes_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="kind=separate"):
        replace(SMALL, **change)

"""Sampling of planes, and the networks of points."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from get3d_cluster.get3d import fields
from get3d_cluster.get3d.fields import (
    Field,
    Palette,
    interpolation_matrix,
    lattice_features,
    lattice_matrix,
    point_features,
)
from get3d_cluster.get3d.tets import bcc_grid


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def ramp(plane: int, *, along_columns: bool, res: int = 8) -> Tensor:
    """Return planes of which one holds the coordinate of its pixel centres along one direction."""
    planes = torch.zeros(res, res, 3, 1)
    centre = (torch.arange(res) + 0.5) / res * 2 - 1
    planes[:, :, plane, 0] = centre[None, :] if along_columns else centre[:, None]
    return planes


@pytest.mark.parametrize(
    ("plane", "along_columns", "axis"),
    [(0, True, 0), (0, False, 1), (1, True, 1), (1, False, 2), (2, True, 0), (2, False, 2)],
)
@pytest.mark.parametrize("sample", [point_features, fields._bags])
def test_planes_are_xy_yz_xz_with_the_first_axis_along_the_columns(
    plane: int, along_columns: bool, axis: int, sample: object
) -> None:
    points = torch.rand(50, 3) * 1.6 - 0.8  # inside the outermost pixel centres
    features = sample(ramp(plane, along_columns=along_columns), points)  # type: ignore[operator]
    assert torch.allclose(features[:, 0], points[:, axis], atol=1e-6)


def test_planes_are_summed_and_fade_to_zero_at_the_border() -> None:
    planes = torch.ones(4, 4, 3, 2)
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert point_features(planes, points)[:, 0].tolist() == pytest.approx([3.0, 0.75, 2.0])


def test_both_ways_of_sampling_agree_in_values_and_gradients() -> None:
    planes = torch.randn(8, 8, 3, 5, dtype=torch.float64, requires_grad=True)
    points = torch.rand(200, 3, dtype=torch.float64) * 2.2 - 1.1
    weight = torch.randn(200, 5, dtype=torch.float64)
    one, other = point_features(planes, points), fields._bags(planes, points)
    assert torch.allclose(one, other)
    grads = [torch.autograd.grad((y * weight).sum(), planes)[0] for y in (one, other)]
    assert torch.allclose(*grads)


@pytest.mark.parametrize("cells", [2, 6])
def test_the_lattice_is_sampled_like_the_vertices_of_the_grid(cells: int) -> None:
    planes = torch.randn(2, 8, 8, 3, 5, requires_grad=True)
    quick = lattice_features(planes, lattice_matrix(cells, 8), cells)
    vertices = bcc_grid(cells).vertices * 2
    slow = torch.stack([point_features(sample, vertices) for sample in planes])
    assert torch.allclose(quick, slow, atol=1e-5)
    weight = torch.randn_like(slow)
    grads = [torch.autograd.grad((y * weight).sum(), planes)[0] for y in (quick, slow)]
    assert torch.allclose(*grads, atol=1e-4)


def test_interpolation_weights_sum_to_one_between_pixel_centres() -> None:
    matrix = interpolation_matrix(torch.linspace(-0.875, 0.875, 30), 8)
    assert torch.allclose(matrix.sum(dim=1), torch.ones(30))
    assert interpolation_matrix(torch.tensor([-1.0]), 8)[0, 0] == 0.5


def test_no_points_are_no_trouble() -> None:
    planes = torch.randn(8, 8, 3, 5, requires_grad=True)
    features = point_features(planes, torch.zeros(0, 3))
    assert features.shape == (0, 5)
    features.sum().backward()
    assert not planes.grad.any()


def test_a_field_is_a_network_of_modulated_demodulated_layers() -> None:
    field = Field([6, 7, 2], 4).double()
    with torch.no_grad():
        for layer in field.layers:
            layer.bias.normal_()
    x, ws = torch.randn(3, 9, 6, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    y = field.evaluate(x, field.matrices(ws))
    for n in range(3):
        h = x[n]
        for i, layer in enumerate(field.layers):
            weight = layer.weight * layer.affine(ws[n : n + 1, i])
            weight = weight * torch.rsqrt(weight.square().sum(dim=1, keepdim=True) + 1e-8)
            h = F.linear(h, weight, layer.bias)
            h = 2**0.5 * F.leaky_relu(h, 0.2) if i == 0 else h
        assert torch.allclose(y[n], h)


def test_the_output_can_be_left_undemodulated() -> None:
    field = Field([6, 7, 2], 4, demodulate_output=False)
    assert [layer.demodulate for layer in field.layers] == [True, False]


def test_a_palette_begins_as_shades_of_one_paint_from_black() -> None:
    black, *shades = Palette(4, 64, -1.0).matrices(torch.randn(500, 64)).unbind(1)
    assert not black.any()
    for k, shade in enumerate(shades, 1):
        assert torch.allclose(shade, shades[0] * k)
    assert 0.4 < shades[-1].std() / 2 < 0.6


def test_a_palette_varies_by_the_paint_alone() -> None:
    palette = Palette(4, 5, -1.0)
    with torch.no_grad():
        palette.share[1] = 0.0
        palette.common.copy_(torch.randn(4, 3))
    one, other = palette.matrices(torch.randn(2, 5))
    assert torch.equal(one[1], palette.common[1])
    difference = other - one
    assert difference[2].norm() > 0.1
    assert torch.linalg.matrix_rank(difference, atol=1e-5) == 1


def test_a_palette_mixes_its_colours_and_adds_none() -> None:
    palette = Palette(4, 5, -1.0)
    (colours,) = palette.matrices(torch.randn(1, 5))
    assert torch.allclose(palette.tints(100 * torch.eye(4), colours), colours, atol=1e-6)
    mixed = palette.tints(3 * torch.randn(100, 4), colours)
    assert (mixed <= colours.amax(dim=0) + 1e-6).all()
    assert (mixed >= colours.amin(dim=0) - 1e-6).all()
    assert mixed.std(dim=0).min() > 0.1
    assert torch.equal(palette.bias, torch.full((3,), -1.0))

"""Facts of docs/model.md that no other file tests: how weights begin, and derivatives of every operation of our own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from get3d_cluster.get3d import fields, ops, tets
from get3d_cluster.get3d.config import (
    DiscriminatorConfig,
    GeneratorConfig,
    GridConfig,
    MappingConfig,
    TrunkConfig,
)
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import W_AVG_BETA, Generator
from get3d_cluster.get3d.mapping import ConditionMapping, Mapping, camera_features
from get3d_cluster.train.config import OptimConfig
from get3d_cluster.train.networks import adam

SIZES = GeneratorConfig(trunk=TrunkConfig(resolution_px=8, plane_channels=8), grid=GridConfig(cells=2))


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(SIZES)


def test_weights_begin_standard_normal_noise_strengths_and_biases_at_0_and_styles_at_1(
    generator: Generator,
) -> None:
    torch.manual_seed(1)
    discriminator = Discriminator(DiscriminatorConfig(image_size_px=8, channel_max=64, camera_channels=64))
    for module in (generator, discriminator):
        for name, value in module.named_parameters():
            if name.endswith("noise_strength"):
                assert value == 0
            elif name.endswith("affine.bias"):
                assert (value == 1).all(), name
            elif name.endswith("bias"):
                assert not value.any(), name
            elif value.numel() > 1000:
                expected = 100 if ".mapping" in f".{name}" and "embed" not in name else 1
                assert value.std().item() == pytest.approx(expected, rel=0.1), name
                assert abs(value.mean().item()) < 0.1 * expected, name
    noise = torch.cat([v.flatten() for n, v in generator.named_buffers() if n.endswith("noise")])
    assert noise.std().item() == pytest.approx(1, abs=0.15)
    assert not generator.w_avg_geo.any()


def test_first_styles_modulate_by_one_and_first_distances_are_of_order_one(generator: Generator) -> None:
    latents = generator.map(torch.randn(4, 512), torch.randn(4, 512))
    style = generator.sdf_field.layers[0].affine(torch.zeros(1, 512))
    assert (style == 1).all()
    sdf = generator.shapes(latents).sdf.detach()
    assert 0.1 < sdf.std().item() < 10


def test_the_running_mean_keeps_998_thousandths() -> None:
    assert W_AVG_BETA == 0.998


def test_rates_of_both_adams_carry_the_lazy_correction() -> None:
    layer = torch.nn.Linear(1, 1)
    for interval, lr, beta in ((4, 0.0016, 0.99**0.8), (16, 0.0018824, 0.99 ** (16 / 17))):
        group = adam(layer, 0.002, OptimConfig(), interval).param_groups[0]
        assert group["lr"] == pytest.approx(lr, rel=1e-4)
        assert group["betas"] == pytest.approx((0.0, beta))
        assert group["eps"] == 1e-8


def test_camera_features_keep_their_order() -> None:
    """Features come as sine and cosine of both angles at 1, 2, 4, in this order: an exchange of columns is seen."""
    a, p = 0.3, 1.2
    waves = [w(torch.tensor(k * x)) for k in (1, 2, 4) for w in (torch.sin, torch.cos) for x in (a, p)]
    assert torch.allclose(
        camera_features(torch.tensor([[a, p]]))[0], torch.stack([*waves, *torch.tensor([a, p])])
    )


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def conv(**options: object) -> Callable[..., Tensor]:
    torch.manual_seed(0)
    layer: Callable[..., Tensor] = ops.Conv(2, 3, 3, **options).double().requires_grad_(False)  # type: ignore[arg-type]
    return layer


def modulated(**options: object) -> Callable[..., Tensor]:
    torch.manual_seed(0)
    layer: Callable[..., Tensor] = (
        ops.ModulatedConv(2, 3, 4, 8 if options.get("up") else 4, **options).double().requires_grad_(False)  # type: ignore[arg-type]
    )
    return layer


def matrices(demodulate: bool) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    layer = ops.ModulatedLinear(3, 2, 4, demodulate=demodulate).double().requires_grad_(False)
    return layer.matrices


TWICE: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "second moment": (ops.normalise_second_moment, [rand(3, 4)]),
    "fully connected": (ops.FullyConnected(4, 3, activate=True).double().requires_grad_(False), [rand(3, 4)]),
    "convolution": (conv(), [rand(2, 2, 4, 4)]),
    "halving convolution, fir": (conv(down=True, fir=True), [rand(2, 2, 4, 4)]),
    "halving convolution, mean": (conv(down=True), [rand(2, 2, 4, 4)]),
    "doubling, fir": (lambda x: ops.upsample(x, fir=True), [rand(1, 2, 4, 4)]),
    "doubling, bilinear": (lambda x: ops.upsample(x, fir=False), [rand(1, 2, 4, 4)]),
    "halving, fir": (lambda x: ops.downsample(x, fir=True), [rand(1, 2, 4, 4)]),
    "halving, mean": (lambda x: ops.downsample(x, fir=False), [rand(1, 2, 4, 4)]),
    "demodulation": (lambda s: ops.demodulation(rand(3, 2).square(), s), [rand(2, 2, seed=1)]),
    "modulated convolution": (modulated(), [rand(2, 2, 4, 4), rand(2, 4, seed=1)]),
    "doubling modulated convolution": (modulated(up=True), [rand(2, 2, 4, 4), rand(2, 4, seed=1)]),
    "modulated matrices, demodulated": (matrices(demodulate=True), [rand(2, 4)]),
    "modulated matrices, scaled": (matrices(demodulate=False), [rand(2, 4)]),
    "deviation of a group": (lambda x: ops.minibatch_deviation(x, 2), [rand(4, 2, 2, 2)]),
    "camera": (
        ConditionMapping(4, MappingConfig(num_layers=1), camera=True, num_classes=0).double().requires_grad_(False),
        [rand(2, 2)],
    ),
    "mapping": (Mapping(4, MappingConfig(num_layers=2)).double().requires_grad_(False), [rand(2, 4)]),
}  # fmt: skip


def _away_from_zero(x: Tensor) -> Tensor:
    return x + 0.5 * x.sign()


_CELLS = 2
_GRID = tets.bcc_grid(_CELLS)
ONCE: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "planes at the grid": (
        lambda x: fields.lattice_features(x, fields.lattice_matrix(_CELLS, 4).double(), _CELLS),
        [rand(1, 4, 4, 3, 2)],
    ),
    "planes at points": (lambda x: fields.point_features(x, rand(5, 3).clamp(-1, 1)), [rand(4, 4, 3, 2)]),
    "planes at points, as sums": (lambda x: fields._bags(x, rand(5, 3).clamp(-1, 1)), [rand(4, 4, 3, 2)]),
    "entropy of signs": (lambda s: tets.sdf_entropy(s, _GRID.edges), [rand(2, len(_GRID.vertices))]),
    "vertices": (
        lambda p, s: tets.marching_tets(p, s, _GRID).verts,
        [_GRID.vertices.double()[None], _away_from_zero(rand(1, len(_GRID.vertices)))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*TWICE, *ONCE])
def test_derivatives_of_our_operations_are_right(name: str) -> None:
    operation, inputs = (TWICE | ONCE)[name]
    given = [tensor.clone().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(operation, given)


@pytest.mark.parametrize("name", list(TWICE))
def test_second_derivatives_of_our_operations_are_right(name: str) -> None:
    """R1 differentiates the discriminator's twice; the generator's are kept fit for it."""
    operation, inputs = TWICE[name]
    given = [tensor.clone().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradgradcheck(operation, given)

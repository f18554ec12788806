"""Layers: initial statistics, gains, resampling, modulation, statistics of a batch."""

import pytest
import torch
import torch.nn.functional as F

from get3d_cluster.get3d.ops import (
    Conv,
    FullyConnected,
    ModulatedConv,
    ModulatedLinear,
    blur,
    downsample,
    minibatch_deviation,
    normalise_second_moment,
    upsample,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def second_moment(x: torch.Tensor) -> float:
    return float(x.detach().square().mean())


def test_a_fully_connected_layer_keeps_the_variance_whatever_its_learning_rate() -> None:
    x = torch.randn(512, 256)
    slow = FullyConnected(256, 256, lr_multiplier=0.01)
    assert float(slow.weight.detach().std()) == pytest.approx(100.0, rel=0.02)
    assert second_moment(slow(x)) == pytest.approx(1.0, rel=0.05)
    active = FullyConnected(256, 256, activate=True)
    assert second_moment(active(x)) == pytest.approx(1.04, rel=0.05)  # (1 + 0.2^2) / 2 times 2


def test_the_learning_rate_multiplier_scales_what_a_gradient_step_does() -> None:
    def change(multiplier: float) -> torch.Tensor:
        torch.manual_seed(1)
        layer, x = FullyConnected(16, 4, lr_multiplier=multiplier), torch.ones(1, 16)
        before = layer(x)
        before.sum().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= parameter.grad.sign()  # what Adam does in its first step
        return layer(x) - before

    assert torch.allclose(change(0.01), 0.01 * change(1.0), rtol=1e-3)


def test_a_bias_starts_at_its_runtime_value() -> None:
    layer = FullyConnected(4, 3, bias_init=1.0, lr_multiplier=0.1)
    assert torch.allclose(layer(torch.zeros(2, 4)), torch.ones(2, 3))


@pytest.mark.parametrize("fir", [True, False])
def test_a_convolution_starts_with_unit_gain(fir: bool) -> None:
    x = torch.randn(8, 64, 16, 16)
    assert float(Conv(64, 64, 3).weight.detach().std()) == pytest.approx(1.0, rel=0.02)
    linear = Conv(64, 64, 1, activate=False, bias=False)
    assert second_moment(linear(x)) == pytest.approx(1.0, rel=0.1)
    assert second_moment(Conv(64, 64, 3)(x)[:, :, 1:-1, 1:-1]) == pytest.approx(1.04, rel=0.1)
    smooth = torch.randn(8, 64, 1, 1).expand(-1, -1, 16, 16)  # halving the size leaves what does not vary
    halved = Conv(64, 64, 3, down=True, fir=fir)(smooth)
    assert halved.shape == (8, 64, 8, 8)
    assert second_moment(halved[:, :, 2:-2, 2:-2]) == pytest.approx(1.04, rel=0.1)


def test_halving_by_one_convolution_equals_a_convolution_and_a_mean() -> None:
    conv = Conv(5, 7, 3, activate=False, down=True).double()
    with torch.no_grad():
        conv.bias.normal_()
    x = torch.randn(2, 5, 8, 12, dtype=torch.float64)
    expected = F.avg_pool2d(F.conv2d(x, conv.weight * conv.weight_gain, conv.bias, padding=1), 2)
    assert torch.allclose(conv(x), expected)


@pytest.mark.parametrize("fir", [True, False])
def test_resampling_has_no_shift_and_keeps_a_constant(fir: bool) -> None:
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    for change in (upsample, downsample):
        assert torch.allclose(change(x.flip(2, 3), fir=fir), change(x, fir=fir).flip(2, 3))
        assert torch.allclose(change(torch.ones_like(x), fir=fir)[:, :, 2:-2, 2:-2], torch.ones(()).double())


def test_doubling_equals_bilinear_interpolation_and_fir_differs_at_the_border_only() -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear")
    assert torch.allclose(upsample(x, fir=False), expected)
    fir = upsample(x, fir=True)
    assert torch.allclose(fir[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])
    assert torch.allclose(fir[:, :, 0, 0], 9 / 16 * x[:, :, 0, 0])  # zeros outside take the other 7 / 16


def test_the_filter_is_one_three_three_one() -> None:
    spike = torch.zeros(1, 1, 4, 4)
    spike[0, 0, 1, 1] = 1
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    assert torch.allclose(blur(spike, padding=2)[0, 0, :4, :4], torch.outer(taps, taps))
    assert torch.allclose(downsample(spike, fir=True)[0, 0], torch.outer(taps[[2, 0]], taps[[2, 0]]))


@pytest.mark.parametrize("fir", [True, False])
@pytest.mark.parametrize("kind", ["down", "up"])
def test_convolutions_that_resample_have_no_shift(kind: str, fir: bool) -> None:
    """Mirroring image and kernel mirrors the result."""
    x, w = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    if kind == "down":
        conv = Conv(4, 4, 3, down=True, fir=fir).double()
        there = conv(x)
    else:
        conv = ModulatedConv(4, 4, 3, 16, up=True, fir=fir, noise=False).double()
        there = conv(x, w)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.flip(2, 3))
    mirrored = conv(x.flip(2, 3)) if kind == "down" else conv(x.flip(2, 3), w)
    assert torch.allclose(mirrored, there.flip(2, 3))


def modulated(conv: ModulatedConv, w: torch.Tensor) -> torch.Tensor:
    """Return StyleGAN2's weights: equations 1 and 3, one kernel for each sample."""
    weight = conv.weight[None] * conv.affine(w)[:, None, :, None, None]
    return weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)


def test_scaling_activations_equals_modulating_weights() -> None:
    conv = ModulatedConv(6, 5, 3, 8, noise=True).double()
    with torch.no_grad():
        conv.bias.normal_()
        conv.noise_strength.fill_(0.3)
    x, w = torch.randn(3, 6, 8, 8, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    linear = torch.cat([F.conv2d(x[i : i + 1], k, padding=1) for i, k in enumerate(modulated(conv, w))])
    raw = linear + 0.3 * conv.noise + conv.bias[:, None, None]
    assert torch.allclose(conv(x, w), 2**0.5 * F.leaky_relu(raw, 0.2))


def test_an_upsampling_convolution_equals_the_same_filter_on_a_larger_image() -> None:
    """Inside the image, convolving between zeros and filtering is filtering first and convolving then."""
    conv = ModulatedConv(3, 4, 2, 16, up=True, fir=True, noise=False).double()
    x, w = torch.randn(1, 3, 8, 8, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    kernel = modulated(conv, w)[0].flip(2, 3)  # a transposed convolution applies its kernel mirrored
    expected = 2**0.5 * F.leaky_relu(F.conv2d(upsample(x, fir=True), kernel, padding=1), 0.2)
    assert torch.allclose(conv(x, w)[:, :, 3:-3, 3:-3], expected[:, :, 3:-3, 3:-3])


def test_demodulation_makes_the_strength_of_a_style_irrelevant() -> None:
    conv = ModulatedConv(8, 8, 4, 8, noise=False)
    x, w = torch.randn(2, 8, 8, 8), torch.randn(2, 4)
    before = conv(x, w)
    with torch.no_grad():
        conv.affine.weight *= 10
        conv.affine.bias *= 10
    assert torch.allclose(conv(x, w), before, atol=1e-5)
    assert second_moment(
        ModulatedConv(64, 64, 4, 16, noise=False)(torch.randn(4, 64, 16, 16), torch.randn(4, 4))[
            :, :, 1:-1, 1:-1
        ]
    ) == pytest.approx(1.04, rel=0.15)


def test_noise_is_one_fixed_image_that_starts_silent() -> None:
    conv = ModulatedConv(4, 4, 2, 8, noise=True)
    x, w = torch.zeros(2, 4, 8, 8), torch.randn(2, 2)
    assert not conv(x, w).any()
    with torch.no_grad():
        conv.noise_strength.fill_(1.0)
    noisy = conv(x, w)
    assert torch.equal(noisy, conv(x, w))
    assert torch.equal(noisy[0, 0], noisy[1, 3])
    assert noisy[0, 0].std() > 0.5


def test_clamping_limits_outputs() -> None:
    conv = ModulatedConv(4, 4, 2, 8, noise=False, clamp=0.5)
    assert conv(100 * torch.randn(1, 4, 8, 8), torch.randn(1, 2)).abs().max() == 0.5
    halved = Conv(4, 4, 3, clamp=0.5, gain=0.5)(1000 * torch.randn(1, 4, 8, 8))
    assert halved.abs().max() == 0.25


def test_an_output_layer_is_scaled_by_its_inputs_or_demodulated() -> None:
    w = torch.zeros(2, 4)  # so that the style is 1
    plain = ModulatedLinear(64, 3, 4, demodulate=False)
    assert torch.allclose(plain.matrices(w)[0], plain.weight.t() / 8)
    unit = ModulatedLinear(64, 3, 4, demodulate=True)
    assert torch.allclose(unit.matrices(w).norm(dim=1), torch.ones(2, 3))


def test_the_second_moment_becomes_one() -> None:
    x = torch.randn(3, 16) * 7
    assert torch.allclose(normalise_second_moment(x).square().mean(dim=1), torch.ones(3), atol=1e-4)
    assert normalise_second_moment(torch.zeros(1, 16)).isfinite().all()


def test_the_deviation_is_that_of_strided_groups() -> None:
    x = torch.randn(8, 3, 2, 2)
    y = minibatch_deviation(x, 4)
    expected = x[0::2].var(dim=0, correction=0).add(1e-8).sqrt().mean()
    assert torch.equal(y[:, :3], x)
    assert torch.allclose(y[0::2, 3], expected.expand(4, 2, 2))
    assert not torch.allclose(y[1::2, 3], expected.expand(4, 2, 2))
    assert torch.allclose(minibatch_deviation(x[:1], 4)[:, 3], torch.full((2, 2), 1e-4))


def test_a_batch_that_is_no_multiple_of_the_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"6 images .* groups of 4"):
        minibatch_deviation(torch.zeros(6, 1, 2, 2), 4)

"""Layers of both networks: scaled weights, resampling, modulation. Every operation can be differentiated twice.

Convolutions and plane-wide products compute in the type of the feature maps that they get; weights, styles and what is
derived from them are float32 up to there, and so are all gradients of weights.

Shapes: N samples, C channels (I in, O out), H and W pixels, S style vector.
A leaky ReLU of slope 0.2 is followed by a gain of sqrt(2); since max(x, 0.2 x) commutes with positive factors,
the gain is put on weights and biases, which are smaller than feature maps.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LRELU_GAIN = math.sqrt(2.0)
_SLOPE = 0.2
_EPS = 1e-8


def normalise_second_moment(x: Tensor) -> Tensor:  # [N, C]
    """Scale each row to a root mean square of 1. Source: Karras et al. 2020."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + _EPS)


def leaky_relu(
    x: Tensor,  # already scaled by LRELU_GAIN
    clamp: float = 0.0,  # limit of the result; 0: none
) -> Tensor:
    """Apply the slope in place, and the limit."""
    x = F.leaky_relu(x, _SLOPE, inplace=True)
    return x.clamp(-clamp, clamp) if clamp else x


def lowered(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return ``x`` in a lower precision; none: as it is, in float32 or the float64 of a test."""
    return x if dtype is None else x.to(dtype)


class FullyConnected(nn.Module):
    """A linear layer whose stored weights are N(0, 1) / lr_multiplier. Source: Karras et al. 2018 (equalised rate)."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        activate: bool = False,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_in = num_in
        self.activate = activate
        self.lr_multiplier = lr_multiplier
        self.weight_gain = lr_multiplier / math.sqrt(num_in)
        self.weight = nn.Parameter(torch.randn(num_out, num_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((num_out,), bias_init / lr_multiplier))

    def forward(self, x: Tensor) -> Tensor:  # [N, I] -> [N, O]
        gain = LRELU_GAIN if self.activate else 1.0
        bias = self.bias * (self.lr_multiplier * gain)
        y = torch.addmm(bias, x, self.weight.t(), alpha=self.weight_gain * gain)
        return leaky_relu(y) if self.activate else y


class Affine(FullyConnected):
    """From a style vector to one factor for each channel, 1 at the start."""

    def __init__(self, style_channels: int, num_channels: int) -> None:
        super().__init__(style_channels, num_channels, bias_init=1.0)


class Conv(nn.Module):
    """A convolution that keeps or halves the size, with scaled weights. Weights start as N(0, 1).

    ``down`` halves the size of a 3 x 3 convolution: with ``fir``, a blur and stride 2; without, the convolution and the
    mean of 2 x 2 pixels, done as one convolution of stride 2.
    """

    shifts: Tensor

    def __init__(  # noqa: PLR0913 - the layer has as many properties
        self,
        num_in: int,
        num_out: int,
        kernel: int,
        *,
        activate: bool = True,
        bias: bool = True,
        down: bool = False,
        fir: bool = False,
        clamp: float = 0.0,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.kernel, self.activate, self.down, self.fir = kernel, activate, down, fir
        self.clamp, self.gain = clamp, gain
        self.weight = nn.Parameter(torch.randn(num_out, num_in, kernel, kernel))
        self.weight_gain = 1.0 / math.sqrt(num_in * kernel**2)
        self.bias = nn.Parameter(torch.zeros(num_out)) if bias else None
        if down and not fir:
            self.register_buffer("shifts", mean_of_shifts(kernel), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [N, I, H, W] -> [N, O, H or H / 2, W or W / 2]
        gain = self.gain * (LRELU_GAIN if self.activate else 1.0)
        bias = None if self.bias is None else (self.bias * gain).to(x.dtype)
        y = self._convolve(x, self.weight_gain * gain, bias)
        return leaky_relu(y, self.clamp * self.gain) if self.activate else y

    def _convolve(self, x: Tensor, gain: float, bias: Tensor | None) -> Tensor:
        if self.down and not self.fir:
            wide = self.weight.flatten(2) @ (self.shifts * gain)
            weight = wide.unflatten(2, (self.kernel + 1, self.kernel + 1))
            return F.conv2d(x, weight.to(x.dtype), bias, stride=2, padding=self.kernel // 2)
        weight = (self.weight * gain).to(x.dtype)
        if self.down:
            return F.conv2d(blur(x, padding=2), weight, bias, stride=2)
        return F.conv2d(x, weight, bias, padding=self.kernel // 2)


def mean_of_shifts(kernel: int) -> Tensor:  # [K K, (K + 1) (K + 1)]
    """Return the matrix from a kernel to the one whose stride 2 does what the kernel and a mean of 2 x 2 pixels do.

    Under half the work: that kernel has (K + 1)^2 weights, but only every fourth pixel is computed.
    """
    shifts = torch.zeros(kernel, kernel, kernel + 1, kernel + 1)
    for row in range(kernel):
        for column in range(kernel):
            shifts[row, column, row : row + 2, column : column + 2] = 0.25
    return shifts.view(kernel**2, -1)


def fir_kernel(like: Tensor, gain: float = 1.0) -> Tensor:  # [N, C, H, W] -> [C, 1, 4, 4]
    """Return the outer product of [1, 3, 3, 1] / 8 with itself, times ``gain``, once for each channel of ``like``."""
    taps = like.new_tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return (torch.outer(taps, taps) * gain).expand(like.shape[1], 1, 4, 4)


def blur(x: Tensor, padding: int, gain: float = 1.0) -> Tensor:  # [N, C, H, W]
    """Filter with [1, 3, 3, 1], zeros outside."""
    return F.conv2d(x, fir_kernel(x, gain), padding=padding, groups=x.shape[1])


def downsample(x: Tensor, *, fir: bool) -> Tensor:  # [N, C, H, W] -> [N, C, H / 2, W / 2]
    """Halve the size: filter [1, 3, 3, 1] with zeros outside, or the mean of 2 x 2 pixels."""
    if not fir:
        return F.avg_pool2d(x, 2)
    return F.conv2d(x, fir_kernel(x), stride=2, padding=1, groups=x.shape[1])


def upsample(x: Tensor, *, fir: bool) -> Tensor:  # [N, C, H, W] -> [N, C, 2 H, 2 W]
    """Double the size with the filter [1, 3, 3, 1], zeros outside, or bilinearly: the same filter, border repeated.

    A transposed convolution by channel: on a CPU five times as fast as ``interpolate``.
    """
    x = x if fir else F.pad(x, (1, 1, 1, 1), mode="replicate")
    kernel = fir_kernel(x, gain=4.0)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1 if fir else 3, groups=x.shape[1])


def demodulation(
    squares: Tensor,  # [O, I] sum of squares of the weight over the kernel
    style: Tensor,  # [N, I]
) -> Tensor:  # [N, O]
    """Return the factors that give outputs of unit variance for independent inputs. Source: StyleGAN2, equation 3."""
    return torch.rsqrt(style.square() @ squares.t() + _EPS)


class ModulatedConv(nn.Module):
    """A 3 x 3 convolution, modulated and demodulated, that keeps or doubles the size; noise, bias, leaky ReLU.

    Activations are scaled before and after one ordinary convolution (StyleGAN2, section 2.2), so that samples share it.
    """

    noise: Tensor  # [R, R] fixed

    def __init__(  # noqa: PLR0913 - the layer has as many properties
        self,
        num_in: int,
        num_out: int,
        style_channels: int,
        resolution_px: int,
        *,
        up: bool = False,
        fir: bool = True,
        noise: bool = True,
        clamp: float = 0.0,
    ) -> None:
        super().__init__()
        self.up, self.fir, self.clamp = up, fir, clamp
        self.affine = Affine(style_channels, num_in)
        self.weight = nn.Parameter(torch.randn(num_out, num_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(num_out))
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None
        if noise:
            self.register_buffer("noise", torch.randn(resolution_px, resolution_px))

    def forward(
        self,
        x: Tensor,  # [N, I, H, W]
        w: Tensor,  # [N, S]
        noise: Tensor | None = None,  # [N, 1, R, R] in place of the fixed image
    ) -> Tensor:  # [N, O, R, R]
        style = self.affine(w)
        scale = demodulation(self.weight.square().sum(dim=(2, 3)), style) * LRELU_GAIN
        y = self._convolve(x * style.to(x.dtype)[:, :, None, None], self.weight.to(x.dtype))
        bias = (self.bias * LRELU_GAIN)[:, None, None]
        if self.noise_strength is not None:
            image = self.noise if noise is None else noise
            bias = bias + image * (self.noise_strength * LRELU_GAIN)
        scaled = torch.addcmul(bias.to(x.dtype), y, scale.to(x.dtype)[:, :, None, None])
        return leaky_relu(scaled, self.clamp)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.up:
            return F.conv2d(x, weight, padding=1)
        if not self.fir:
            return F.conv2d(upsample(x, fir=False), weight, padding=1)
        return blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), padding=1, gain=4.0)


class ModulatedLinear(nn.Module):
    """A linear layer whose inputs are scaled by a style, as one matrix for each sample.

    Demodulated, or else scaled by 1 / sqrt(inputs). Weights start as N(0, 1).
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        style_channels: int,
        *,
        demodulate: bool,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.affine = Affine(style_channels, num_in)
        self.weight = nn.Parameter(torch.randn(num_out, num_in))
        self.bias = nn.Parameter(torch.full((num_out,), bias_init))

    def matrices(self, w: Tensor) -> Tensor:  # [N, S] -> [N, I, O], to be multiplied from the right
        """Return the modulated weights of each sample; the bias is not in them."""
        style: Tensor = self.affine(w)
        if self.demodulate:
            scale = demodulation(self.weight.square(), style)
            return self.weight.t() * style[:, :, None] * scale[:, None, :]
        return self.weight.t() * (style / math.sqrt(self.weight.shape[1]))[:, :, None]


def minibatch_deviation(
    x: Tensor,  # [N, C, H, W]
    group: int,
    sets: int = 1,  # of equally many images, one behind the other; a group lies within one
) -> Tensor:  # [N, C + 1, H, W]
    """Append one channel: how much the images of a group differ, averaged over channels and pixels.

    Images i, i + N / group, ... of a set of N form a group. Source: Karras et al. 2018, section 3.

    Raises: ValueError if a set is not one group or a multiple of it.
    """
    num, channels, height, width = x.shape
    each = num // sets
    size = min(group, each)
    if num % sets or each % size:
        raise ValueError(f"{num} images cannot be cut into {sets} times groups of {size}")
    groups = x.reshape(sets, size, each // size, channels, height, width)
    deviation = (groups.var(dim=1, correction=0) + _EPS).sqrt().mean(dim=(2, 3, 4))
    of_each = deviation.repeat(1, size).reshape(num, 1, 1, 1)
    return torch.cat([x, of_each.expand(-1, 1, height, width)], dim=1)

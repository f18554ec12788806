"""The random numbers of ``core.philox`` for whole batches: equal bits under any batching and on any device.

Words come from integer operations. Normals use only +, *, / and square root in float64, which IEEE 754 rounds the
same way everywhere; a library's log and cos differ between vectorised and scalar code, and between devices.
Letters: N samples, C numbers per sample.
"""

import math

import torch
from torch import Tensor

from get3d_cluster.core.philox import (
    KEY_STEPS,
    MULTIPLIERS,
    NUM_ROUNDS,
    UNIFORM_BITS,
    WORD_MASK,
    split_seed,
)

_SIN_TERMS = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(9)]
_COS_TERMS = [(-1.0) ** k / math.factorial(2 * k) for k in range(10)]
_LOG_TERMS = [2.0 / (2 * k + 1) for k in range(12)]


def words(seed: int, step: int, phase: int, samples: Tensor, width: int) -> Tensor:
    """Draw ``width`` 32-bit words for each of ``samples`` [N] int64; returns [N, C] int64.

    Equals ``core.philox.words`` for each sample.
    """
    assert samples.dtype == torch.int64
    assert 0 <= step <= WORD_MASK
    blocks = torch.arange(-(-width // 4), device=samples.device)
    counter = [
        blocks.expand(len(samples), -1),
        samples[:, None].expand(-1, len(blocks)),
        torch.full_like(blocks, step).expand(len(samples), -1),
        torch.full_like(blocks, int(phase)).expand(len(samples), -1),
    ]
    return torch.stack(_rounds(counter, split_seed(seed)), dim=-1).flatten(1)[:, :width]


def uniforms(seed: int, step: int, phase: int, samples: Tensor, width: int) -> Tensor:
    """Draw [N, C] float32, uniform in [0, 1)."""
    drawn = words(seed, step, phase, samples, width) >> (32 - UNIFORM_BITS)
    return drawn.to(torch.float32) * 2.0**-UNIFORM_BITS


def integers(seed: int, step: int, phase: int, samples: Tensor, width: int, high: int) -> Tensor:
    """Draw [N, C] int64, uniform in [0, high); ``high`` is at most 2**31, the bias at most high / 2**32."""
    assert 0 < high <= 2**31
    return (words(seed, step, phase, samples, width) * high) >> 32


def normals(seed: int, step: int, phase: int, samples: Tensor, width: int) -> Tensor:
    """Draw [N, C] float32, standard normal.

    Source: Box and Muller 1958; one pair of words gives one pair of numbers.
    """
    pairs = words(seed, step, phase, samples, 2 * (-(-width // 2))).unflatten(1, (-1, 2))
    radius = (-2.0 * _log_fraction(pairs[..., 0] + 1)).sqrt()
    cosine, sine = _on_circle(pairs[..., 1])
    both = torch.stack([radius * cosine, radius * sine], dim=-1)
    return both.flatten(1)[:, :width].to(torch.float32)


def _rounds(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        # The product wraps around in int64; its upper word is still right once the sign is masked off.
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = ((right >> 32) & WORD_MASK) ^ c1 ^ k0, right & WORD_MASK
        c2, c3 = ((left >> 32) & WORD_MASK) ^ c3 ^ k1, left & WORD_MASK
        k0, k1 = (k0 + KEY_STEPS[0]) & WORD_MASK, (k1 + KEY_STEPS[1]) & WORD_MASK
    return [c0, c1, c2, c3]


def _log_fraction(numerator: Tensor) -> Tensor:
    """Return ln(numerator / 2**32) in float64 for integers in [1, 2**32], by the series of 2 artanh."""
    mantissa, exponent = torch.frexp(numerator.to(torch.float64))  # exact; mantissa in [0.5, 1)
    low = mantissa < math.sqrt(0.5)
    mantissa, exponent = torch.where(low, 2 * mantissa, mantissa), exponent - low.to(exponent.dtype) - 32
    ratio = (mantissa - 1) / (mantissa + 1)
    return exponent.to(torch.float64) * math.log(2) + ratio * _polynomial(_LOG_TERMS, ratio * ratio)


def _on_circle(word: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the angle ``word`` / 2**32 turns in float64: a quarter turn exactly, then Taylor."""
    quarter = ((word + (1 << 29)) >> 30) & 3
    angle = (word - (((word + (1 << 29)) >> 30) << 30)).to(torch.float64) * (math.pi / 2 / 2**30)
    square = angle * angle
    cosine, sine = _polynomial(_COS_TERMS, square), angle * _polynomial(_SIN_TERMS, square)
    swapped, negative = (quarter & 1).bool(), (quarter >= 2)
    x, y = torch.where(swapped, -sine, cosine), torch.where(swapped, cosine, sine)
    return torch.where(negative, -x, x), torch.where(negative, -y, y)


def _polynomial(terms: list[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, terms[-1])
    for term in reversed(terms[:-1]):
        total = total * x + term
    return total

import math

import pytest
import torch

from get3d_cluster.core import philox
from get3d_cluster.train.random import integers, normals, uniforms, words

SAMPLES = torch.tensor([0, 1, 7, 2**31, 2**32 - 1])
SEED = 0xFEDCBA9876543210


@pytest.mark.parametrize(("step", "phase", "width"), [(0, 0, 4), (2**32 - 1, 40, 7), (123_456, 6, 1)])
def test_words_equal_the_scalar_reference(step: int, phase: int, width: int) -> None:
    expected = [philox.words(SEED, step, phase, int(sample), width) for sample in SAMPLES]
    assert words(SEED, step, phase, SAMPLES, width).tolist() == expected


def test_uniforms_equal_the_scalar_reference_and_stay_below_one() -> None:
    drawn = uniforms(SEED, 3, 2, SAMPLES, 9)
    expected = [[philox.uniform(w) for w in philox.words(SEED, 3, 2, int(sample), 9)] for sample in SAMPLES]
    assert drawn.dtype == torch.float32
    assert drawn.tolist() == expected
    many = uniforms(1, 0, 0, torch.arange(1000), 1000)
    assert many.min() >= 0
    assert many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=2e-3)


def test_normals_are_box_muller_of_the_scalar_words() -> None:
    drawn = normals(SEED, 5, 1, SAMPLES, 8)
    for row, sample in zip(drawn, SAMPLES, strict=True):
        pairs = torch.tensor(philox.words(SEED, 5, 1, int(sample), 8)).reshape(-1, 2).tolist()
        expected = []
        for a, b in pairs:
            radius, angle = math.sqrt(-2 * math.log((a + 1) / 2**32)), 2 * math.pi * b / 2**32
            expected += [radius * math.cos(angle), radius * math.sin(angle)]
        torch.testing.assert_close(
            row.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-8
        )


@pytest.mark.parametrize("width", [1, 5, 512])
def test_normals_keep_their_bits_under_any_batching(width: int) -> None:
    samples = torch.arange(1000, 1037)
    whole = normals(9, 7, 1, samples, width)
    for size in (1, 2, 5, 16):
        parts = [normals(9, 7, 1, part, width) for part in samples.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(normals(9, 7, 1, samples.flip(0), width).flip(0), whole)


def test_normals_are_standard_normal() -> None:
    drawn = normals(0, 0, 1, torch.arange(500), 1000).double()
    assert drawn.mean() == pytest.approx(0, abs=6e-3)
    assert drawn.var() == pytest.approx(1, abs=1e-2)
    assert (drawn**4).mean() == pytest.approx(3, abs=0.08)
    assert (drawn.abs() < 1.959964).double().mean() == pytest.approx(0.95, abs=2e-3)
    assert torch.corrcoef(drawn[:, :2].T)[0, 1].abs() < 0.15


def test_extreme_words_give_finite_normals(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([[0, 0], [0, 2**32 - 1], [2**32 - 1, 2**31], [2**32 - 1, 2**29], [1, 2**30]])
    monkeypatch.setattr("get3d_cluster.train.random.words", lambda *_: extremes)
    drawn = normals(0, 0, 0, torch.arange(5), 2)
    assert drawn.isfinite().all()
    assert drawn[0, 0] == pytest.approx(math.sqrt(2 * 32 * math.log(2)))
    assert drawn[2].abs().max() == 0


def test_integers_are_in_range_and_even() -> None:
    drawn = integers(4, 0, 5, torch.arange(1000), 70, 7)
    counts = torch.bincount(drawn.flatten(), minlength=7)
    assert len(counts) == 7
    assert (counts - 10_000).abs().max() < 450


def test_other_seeds_steps_and_phases_give_other_numbers() -> None:
    samples = torch.arange(4)
    draws = [
        uniforms(*where, samples, 4) for where in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0)]
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])

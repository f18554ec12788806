"""Augmentation: what it does to images, that nobody else's draws matter, and how its strength adapts."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from get3d_cluster.core.philox import Phase
from get3d_cluster.errors import UsageError
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.train import augment, phases
from get3d_cluster.train.augment import Strength, Transforms, augmentation, draw, transformed, warped
from get3d_cluster.train.config import AugmentConfig
from tests import train_setup as setup

ON = AugmentConfig(p=0.5)
SAMPLES = torch.arange(6)
IDENTITY = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])


def images(num: int = 6, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(num, 4, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))


def drawn(config: AugmentConfig = ON, p: float = 0.5, samples: Tensor = SAMPLES) -> Transforms:
    return draw(config, p, 0, 3, Phase.AUGMENT, samples)


def test_with_probability_0_images_keep_their_bits() -> None:
    x = images()
    assert augmentation(ON, 0.0, 0, 3, Phase.AUGMENT, SAMPLES)(x) is x
    none = drawn(p=0.0)
    assert torch.equal(transformed(x, none), x)
    assert not none.is_moved.any()
    assert not none.is_tinted.any()
    assert torch.allclose(none.places, IDENTITY.expand(6, -1, -1))
    assert torch.allclose(none.tints, torch.eye(3, 4).expand(6, -1, -1), atol=1e-6)


def test_an_image_that_nothing_was_drawn_for_keeps_its_bits_among_others() -> None:
    x, many = images(64), drawn(p=0.1, samples=torch.arange(64))
    left = ~(many.is_moved | many.is_tinted)
    assert 10 < left.sum() < 54
    result = transformed(x, many)
    assert torch.equal(result[left], x[left])
    assert all(not torch.equal(a, b) for a, b in zip(result[~left], x[~left], strict=True))


def test_what_happens_to_an_image_depends_on_its_place_in_the_global_batch_alone() -> None:
    whole, part = drawn(), drawn(samples=SAMPLES[2:4])
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[2:4], b, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(whole.tints, draw(ON, 0.5, 0, 4, Phase.AUGMENT, SAMPLES).tints)
    assert not torch.allclose(whole.tints, draw(ON, 0.5, 0, 3, Phase.AUGMENT_REAL, SAMPLES).tints)


def test_every_way_comes_as_often_as_asked_and_apart_from_the_others() -> None:
    many = drawn(p=0.3, samples=torch.arange(20_000))
    assert many.is_moved.float().mean().item() == pytest.approx(1 - 0.7**4, abs=0.02)
    assert many.is_tinted.float().mean().item() == pytest.approx(1 - 0.7**3 * 0.85 * 0.7, abs=0.12)
    both = (many.is_moved & many.is_tinted).float().mean().item()
    assert both == pytest.approx(
        (many.is_moved.float().mean() * many.is_tinted.float().mean()).item(), abs=0.01
    )


def test_either_kind_can_be_left_out() -> None:
    x = images()
    still, grey = (replace(ON, **{kind: False}) for kind in ("geometry", "colour"))
    assert not drawn(still, 1.0).is_moved.any()
    assert not drawn(grey, 1.0).is_tinted.any()
    assert torch.equal(transformed(x, drawn(still, 1.0))[:, 3], x[:, 3]), "tints leave the mask alone"


def test_the_identity_and_a_shift_by_whole_pixels_look_up_those_pixels() -> None:
    x = images(1)
    assert torch.allclose(warped(x, IDENTITY), x, atol=1e-5)
    shifted = IDENTITY.clone()
    shifted[0, :, 2] = torch.tensor([2 / 8, -4 / 8])  # of a width of 2: one pixel right, two up
    expected = x[..., [1, 2, 3, 4, 5, 6, 7, 7]][..., [0, 0, 0, 1, 2, 3, 4, 5], :]
    assert torch.allclose(warped(x, shifted), expected, atol=1e-5)


def test_a_quarter_turn_turns_the_image_and_the_mask_alike() -> None:
    x = images(1)
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    assert torch.allclose(warped(x, quarter), torch.rot90(x, 1, (3, 2)), atol=1e-5) or torch.allclose(
        warped(x, quarter), torch.rot90(x, -1, (3, 2)), atol=1e-5
    )


def test_moves_stay_small_enough_for_the_camera_that_is_told() -> None:
    places = drawn(p=1.0, samples=torch.arange(5000)).places.double()
    determinant = torch.linalg.det(places[:, :, :2])
    assert (determinant > 0).all(), "no image is mirrored"
    turn = torch.rad2deg(torch.atan2(places[:, 1, 0], places[:, 0, 0]))
    assert turn.abs().max() < 25
    assert turn.std().item() == pytest.approx(5.0, abs=0.2)
    assert determinant.log2().std().item() == pytest.approx(2 * augment.ZOOM, abs=0.02)
    assert places[:, :, 2].std(dim=0).tolist() == pytest.approx([2 * augment.SHIFT] * 2, abs=0.005)


def test_hue_keeps_greys_and_three_thirds_of_a_turn_are_a_turn() -> None:
    third = augment._hue(torch.tensor([2 * math.pi / 3], dtype=torch.float64))[0]
    assert torch.allclose(third @ torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(third @ third @ third, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.linalg.det(third).item() == pytest.approx(1)
    assert sorted(third.flatten().round(decimals=9).abs().tolist()) == [0] * 6 + [1] * 3


def test_all_of_it_can_be_differentiated_twice() -> None:
    x = images(2, 4, torch.float64).requires_grad_()
    transforms = drawn(p=1.0, samples=torch.arange(2))
    assert torch.autograd.gradcheck(lambda y: transformed(y, transforms), x)
    assert torch.autograd.gradgradcheck(lambda y: transformed(y, transforms).square(), x)


def test_r1_is_the_gradient_of_what_the_discriminator_says_of_augmented_images() -> None:
    torch.manual_seed(0)
    config = setup.tiny_config(Path("data"))
    discriminator, reals = Discriminator(config.discriminator), phases.Reals(images(2), torch.rand(2, 2))
    augmented = augmentation(ON, 1.0, 0, 3, Phase.AUGMENT_R1, torch.arange(2))
    _, numbers = phases.r1_shard(discriminator, config.loss, reals, augmented)
    x = reals.images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(augmented(x), reals.cameras).mask.sum(), x)
    expected = gradient.square().sum() / 2 * config.loss.gamma_mask / 2
    assert numbers[1].item() == pytest.approx(expected.item(), rel=1e-4)
    assert numbers[1] != phases.r1_shard(discriminator, config.loss, reals)[1][1]


def test_gradients_reach_generated_images_through_it() -> None:
    x = images().requires_grad_()
    transformed(x, drawn(p=1.0)).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(dim=1) > 0).all()


# Strength

ADAPTING = AugmentConfig(target=0.6, interval=2, adjust_images=80)


def test_p_moves_towards_the_target_every_few_steps_and_stays_within_its_limits() -> None:
    strength = Strength(p=0.0)
    seen = []
    for sign in (1.0, 0.9, 0.3, 0.4, -1.0, 0.0, *[1.0] * 12):
        strength.adapt(ADAPTING, sign, batch_size=8)
        seen.append(strength.p)
    assert seen[:6] == pytest.approx([0, 0.2, 0.2, 0.0, 0.0, 0.0])
    assert seen[-1] == seen[-2] == 0.8
    strength.adapt(ADAPTING, 0.7, batch_size=8)
    assert (strength.sign_sum, strength.num_steps) == (0.7, 1)
    strength.adapt(ADAPTING, 0.5, batch_size=8)  # a mean of 0.6: exactly the target
    assert strength == Strength(p=0.8)


OVERFITTING = (
    "augment.target=0.6", "augment.interval=2", "augment.adjust_images=160", "batch.num_shards=2",
    "loss.gamma_rgb=0", "loss.gamma_mask=0", "optim.lr_generator=1e-6", "optim.lr_discriminator=0.01",
)  # fmt: skip


def test_p_rises_when_the_discriminator_overfits(tmp_path: Path) -> None:
    """Twenty images, no R1, and a generator that stands still: soon it is sure of every real one."""
    config = setup.tiny_config(setup.dataset(tmp_path / "data"), *OVERFITTING)
    work = setup.trainer(config, tmp_path / "run")
    for _ in range(60):
        work.step()
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["augment_p"] == work.state()["augmentation"]["p"] > 0.2 > rows[0]["augment_p"]


def test_a_phase_that_was_skipped_adapts_nothing(tmp_path: Path) -> None:
    config = setup.tiny_config(setup.dataset(tmp_path / "data"), "augment.target=0.6")
    work = setup.trainer(config, tmp_path / "run")
    with torch.no_grad():
        work.discriminator.rgb.last.output.weight.fill_(math.nan)
    work.step()
    assert work.state()["augmentation"] == {"p": 0.0, "sign_sum": 0.0, "num_steps": 0}


def test_a_training_that_does_not_adapt_keeps_no_state_of_it(tmp_path: Path) -> None:
    data = setup.dataset(tmp_path / "data")
    for number, overrides in enumerate(((), ("augment.p=0.3",))):
        work = setup.trainer(setup.tiny_config(data, *overrides), tmp_path / str(number))
        assert "augmentation" not in work.state()


@pytest.mark.parametrize(
    "override", ["p=1.5", "p=0.9", "target=1", "interval=0", "adjust_images=0", "max_p=-1"]
)
def test_an_impossible_setting_is_refused_by_name(override: str) -> None:
    with pytest.raises(UsageError, match=override.partition("=")[0]):
        setup.tiny_config(Path("data"), f"augment.{override}")

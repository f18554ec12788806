"""Losses in closed form."""

import math

import pytest
import torch

from get3d_cluster.get3d.config import DiscriminatorConfig, MappingConfig
from get3d_cluster.get3d.discriminator import Discriminator, Logits
from get3d_cluster.get3d.losses import discriminator_loss, generator_loss, r1_penalty


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_losses_are_means_of_softplus_by_head() -> None:
    fake = Logits(rgb=torch.tensor([0.5, -1.0]), mask=torch.tensor([2.0, 0.0]))
    real = Logits(rgb=torch.tensor([1.5, 0.0]), mask=torch.tensor([-1.0, 3.0]))
    generator = generator_loss(fake)
    assert float(generator.rgb) == pytest.approx((softplus(-0.5) + softplus(1.0)) / 2)
    assert float(generator.mask) == pytest.approx((softplus(-2.0) + softplus(0.0)) / 2)
    both = discriminator_loss(fake, real)
    assert float(both.rgb) == pytest.approx(
        (softplus(0.5) + softplus(-1.0)) / 2 + (softplus(-1.5) + softplus(0.0)) / 2
    )
    assert float(both.mask) == pytest.approx(
        (softplus(2.0) + softplus(0.0)) / 2 + (softplus(1.0) + softplus(-3.0)) / 2
    )
    assert float(both.total) == pytest.approx(float(both.rgb) + float(both.mask))


def test_the_penalty_of_quadratic_logits_has_a_closed_form() -> None:
    """For the logit |a x|^2 / 2 the gradient is a^2 x, so the penalty is gamma / 2 mean |a^2 x|^2."""
    torch.manual_seed(0)
    image = torch.randn(3, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    logits = Logits(
        rgb=(scale * image[:, :3]).square().sum(dim=(1, 2, 3)) / 2, mask=2.0 * image[:, 3].sum(dim=(1, 2))
    )
    penalty = r1_penalty(logits, image, gamma_rgb=0.8, gamma_mask=5.0)
    energy = image.detach()[:, :3].square().sum(dim=(1, 2, 3)).mean()
    assert torch.allclose(penalty.rgb, 0.4 * 1.5**4 * energy)
    assert torch.allclose(penalty.mask, torch.tensor(2.5 * 4 * 25, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(penalty.total, scale)
    assert torch.allclose(gradient, 0.4 * 4 * 1.5**3 * energy)


def test_one_pass_gives_the_penalty_of_each_head() -> None:
    torch.manual_seed(0)
    config = DiscriminatorConfig(
        image_size_px=16,
        mask_size_px=8,
        channels=(6, 6, 4),
        camera_channels=8,
        camera_mapping=MappingConfig(num_layers=1),
    )
    discriminator, cameras = Discriminator(config), torch.rand(4, 2)
    image = torch.randn(4, 4, 16, 16, requires_grad=True)
    together = r1_penalty(discriminator(image, cameras), image, 3.0, 7.0)
    for head, gamma in (("rgb", 3.0), ("mask", 7.0)):
        logit = getattr(discriminator(image, cameras), head)
        (gradient,) = torch.autograd.grad(logit.sum(), image)
        expected = gamma / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()
        assert torch.allclose(getattr(together, head), expected, rtol=1e-4)

"""What both networks minimise. Source: Gao et al. 2022 (GET3D), section 3.3; Mescheder et al. 2018 (R1)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from get3d_cluster.get3d.discriminator import Logits


class HeadLosses(NamedTuple):
    """One number for each head of the discriminator."""

    rgb: Tensor
    mask: Tensor

    @property
    def total(self) -> Tensor:
        """The sum of both."""
        return self.rgb + self.mask


def generator_loss(fake: Logits) -> HeadLosses:
    """Return how little generated images pass for real: mean softplus(-logit).

    The trainer adds its multiples of ``Shapes.sdf_entropy`` (0.01) and of the mean ``Shapes.penalty`` (1).
    """
    return HeadLosses(F.softplus(-fake.rgb).mean(), F.softplus(-fake.mask).mean())


def discriminator_loss(fake: Logits, real: Logits) -> HeadLosses:
    """Return how badly real and generated images are told apart: mean softplus(fake) + mean softplus(-real)."""
    return HeadLosses(*(a + b for a, b in zip(fake_loss(fake), real_loss(real), strict=True)))


def fake_loss(fake: Logits) -> HeadLosses:
    """Return the half of the discriminator's loss that generated images give."""
    return HeadLosses(F.softplus(fake.rgb).mean(), F.softplus(fake.mask).mean())


def real_loss(real: Logits) -> HeadLosses:
    """Return the half of the discriminator's loss that real images give."""
    return HeadLosses(F.softplus(-real.rgb).mean(), F.softplus(-real.mask).mean())


def r1_penalty(
    logits: Logits,  # of the images
    real_images: Tensor,  # [N, 4, H, W] requires gradient
    gamma_rgb: float,
    gamma_mask: float,
) -> HeadLosses:
    """Return gamma / 2 times the mean squared norm of each logit's gradient with respect to the image.

    The head of the colours sees channels 0..2 only and that of the mask channel 3 only: one pass gives both gradients.
    Multiply by the interval if it is not computed in every step.
    """
    total = logits.rgb.sum() + logits.mask.sum()
    (gradient,) = torch.autograd.grad(total, real_images, create_graph=True)
    squares = gradient.square().sum(dim=(2, 3)).mean(dim=0)
    return HeadLosses(squares[:3].sum() * (gamma_rgb / 2), squares[3] * (gamma_mask / 2))

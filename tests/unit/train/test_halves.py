"""The discriminator's loss in two backward passes, real images first, against one through both."""

from dataclasses import replace

import pytest
import torch

from get3d_cluster.get3d.config import DiscriminatorConfig
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.losses import discriminator_loss
from get3d_cluster.train.phases import Fakes, Reals, discriminator_numbers, judge_fakes, judge_reals

CONFIG = DiscriminatorConfig(
    image_size_px=32, channels=(8, 16, 16, 16), camera_channels=16, minibatch_group=2
)


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_halves_apart_give_the_bits_of_both_together(architecture: str) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, architecture=architecture)
    discriminator = Discriminator(config)
    images, cameras = torch.randn(4, 4, 32, 32), torch.rand(4, 2)
    nothing = torch.zeros(())
    fakes = Fakes(
        image=torch.randn(4, 4, 32, 32),
        cameras=torch.rand(4, 2),
        classes=None,
        w_mean=torch.zeros(2),
        sdf_entropy=nothing,
        penalty=nothing,
        deviation=nothing,
        weights_square=nothing,
    )

    fake, real = discriminator(fakes.image, fakes.cameras), discriminator(images, cameras)
    loss = discriminator_loss(fake, real)
    loss.total.backward()
    together = [p.grad for p in discriminator.parameters()]
    numbers = torch.stack((*loss, *(x.mean() for x in real), *(x.sign().mean() for x in real)))

    discriminator.zero_grad()
    reals = judge_reals(discriminator, Reals(images, cameras))
    reals.loss.total.backward()
    judged = judge_fakes(discriminator, fakes)
    judged.loss.total.backward()
    apart = [p.grad for p in discriminator.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert torch.equal(discriminator_numbers(judged, reals), numbers)

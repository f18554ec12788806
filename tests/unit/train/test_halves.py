"""The discriminator's loss in two passes, real images first, against one backward pass, and one pass, through both."""

from dataclasses import replace

import pytest
import torch

from get3d_cluster.get3d.config import DiscriminatorConfig
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.losses import discriminator_loss
from get3d_cluster.train.phases import (
    Fakes,
    Reals,
    discriminator_numbers,
    judge_both,
    judge_fakes,
    judge_reals,
)

CONFIG = DiscriminatorConfig(
    image_size_px=32, channels=(8, 16, 16, 16), camera_channels=16, minibatch_group=2
)


def some_fakes() -> Fakes:
    nothing = torch.zeros(())
    return Fakes(
        image=torch.randn(4, 4, 32, 32),
        cameras=torch.rand(4, 2),
        classes=None,
        w_mean=torch.zeros(2),
        sdf_entropy=nothing,
        penalty=nothing,
        deviation=nothing,
        weights_square=nothing,
    )


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_halves_apart_give_the_bits_of_both_together(architecture: str) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, architecture=architecture)
    discriminator = Discriminator(config)
    images, cameras = torch.randn(4, 4, 32, 32), torch.rand(4, 2)
    fakes = some_fakes()
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


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
@pytest.mark.parametrize("group", [2, 4, 8])
def test_both_in_one_pass_give_the_losses_and_gradients_of_two(architecture: str, group: int) -> None:
    """Also where a group is the whole micro-shard, or would be larger: none has real and generated images."""
    torch.manual_seed(0)
    config = replace(CONFIG, architecture=architecture, minibatch_group=group)
    discriminator = Discriminator(config).double()
    fakes = some_fakes()
    fakes = replace(fakes, image=fakes.image.double(), cameras=fakes.cameras.double())
    reals = Reals(torch.randn(4, 4, 32, 32).double(), torch.rand(4, 2).double())

    apart = judge_fakes(discriminator, fakes), judge_reals(discriminator, reals)
    (apart[0].loss.total + apart[1].loss.total).backward()
    expected = [p.grad for p in discriminator.parameters()]
    discriminator.zero_grad()
    together = judge_both(discriminator, fakes, reals)
    (together[0].loss.total + together[1].loss.total).backward()

    torch.testing.assert_close(discriminator_numbers(*together), discriminator_numbers(*apart))
    torch.testing.assert_close([p.grad for p in discriminator.parameters()], expected)

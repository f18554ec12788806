"""Two heads: what each sees, what a camera changes, and gradients of gradients."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from get3d_cluster.get3d.config import DiscriminatorConfig, MappingConfig
from get3d_cluster.get3d.discriminator import Discriminator, Head, ResidualBlock, SkipBlock
from get3d_cluster.get3d.ops import Conv, downsample

SMALL = DiscriminatorConfig(
    image_size_px=16,
    channels=(6, 6, 4),
    camera_channels=8,
    camera_mapping=MappingConfig(num_layers=2, lr_multiplier=0.1),
)
KINDS = [
    replace(SMALL, architecture=architecture, resampling=resampling)
    for architecture in ("skip", "resnet")
    for resampling in ("fir", "average")
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def batch(num: int = 4, size: int = 16, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(num, 4, size, size, dtype=dtype), torch.rand(num, 2, dtype=dtype)


@pytest.mark.parametrize("config", KINDS)
def test_each_head_sees_its_own_channels_and_trains_its_own_weights(config: DiscriminatorConfig) -> None:
    discriminator, (image, cameras) = Discriminator(config), batch()
    image.requires_grad_()
    logits = discriminator(image, cameras)
    assert logits.rgb.shape == logits.mask.shape == (4,)
    heads = {"rgb": discriminator.rgb, "mask": discriminator.mask}
    for name, other in (("rgb", "mask"), ("mask", "rgb")):
        discriminator.zero_grad()
        (gradient,) = torch.autograd.grad(getattr(logits, name).sum(), image, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 2, 3)) > 0
        assert seen.tolist() == ([True] * 3 + [False] if name == "rgb" else [False] * 3 + [True])
        getattr(logits, name).square().sum().backward(retain_graph=True)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in heads[name].parameters())
        assert all(p.grad is None for p in heads[other].parameters())


@pytest.mark.parametrize("config", KINDS)
def test_gradients_of_gradients_are_right(config: DiscriminatorConfig) -> None:
    config = replace(config, image_size_px=8, channels=(3, 2), camera_channels=4, minibatch_group=2)
    discriminator = Discriminator(config).double().requires_grad_(False)
    image, cameras = batch(2, 8, torch.float64)
    image.requires_grad_()
    for head in ("rgb", "mask"):
        assert torch.autograd.gradcheck(
            lambda x, head=head: getattr(discriminator(x, cameras), head), image, fast_mode=True
        )
        assert torch.autograd.gradgradcheck(
            lambda x, head=head: getattr(discriminator(x, cameras), head), image, fast_mode=True
        )


def test_the_penalty_reaches_all_but_the_biases_after_the_statistics_of_the_batch() -> None:
    """From there on logits are piecewise linear in the features, so a bias does not change their gradient."""
    discriminator, (image, cameras) = Discriminator(KINDS[3]), batch()
    image.requires_grad_()
    logits = discriminator(image, cameras)
    (gradient,) = torch.autograd.grad(logits.rgb.sum() + logits.mask.sum(), image, create_graph=True)
    gradient.square().sum().backward()
    without = {n for n, p in discriminator.named_parameters() if p.grad is None or not p.grad.any()}
    after = ("conv", "hidden", "output")
    assert without == {f"{head}.last.{layer}.bias" for head in ("rgb", "mask") for layer in after}


def test_a_camera_changes_the_logit_and_only_with_conditioning() -> None:
    image, cameras = batch()
    assert not torch.allclose(*(Discriminator(SMALL)(image, c).rgb for c in (cameras, cameras + 1)))
    blind = Discriminator(replace(SMALL, camera_conditioning=False))
    assert torch.equal(blind(image, cameras).rgb, blind(image, cameras + 1).rgb)


def test_a_wanted_vector_is_compared_by_its_scaled_dot_product() -> None:
    head = Head(SMALL, 3, 16)
    image, cameras = batch()
    features = head.last
    seen: list[Tensor] = []
    features.output.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logit = head(image[:, :3], cameras)
    assert torch.allclose(logit, (seen[0] * features.camera(cameras)).sum(dim=1) / 8**0.5)


def test_the_mask_can_be_judged_small() -> None:
    discriminator = Discriminator(replace(SMALL, mask_size_px=8))
    image, cameras = batch()
    assert len(discriminator.mask.blocks) == 1
    assert len(discriminator.rgb.blocks) == 2
    checker = torch.ones(16, 16)
    checker[::2, ::2] = checker[1::2, 1::2] = -1  # vanishes in the mean of 2 x 2 pixels
    changed = image.clone()
    changed[:, 3] += checker
    assert torch.allclose(discriminator(changed, cameras).mask, discriminator(image, cameras).mask, atol=1e-4)


@pytest.mark.parametrize("config", KINDS)
def test_a_batch_of_two_groups_gives_the_logits_of_each(config: DiscriminatorConfig) -> None:
    """Images i, i + N / group, ... are compared: interleave two batches and each keeps its logits."""
    discriminator = Discriminator(config)
    image, cameras = batch(8)
    both = discriminator(image, cameras)
    for part in (0, 1):
        alone = discriminator(image[part::2], cameras[part::2])
        assert torch.allclose(both.rgb[part::2], alone.rgb, atol=1e-4)


@pytest.mark.parametrize("resampling", ["fir", "average"])
def test_a_residual_block_is_the_sum_of_two_halves_of_the_variance(resampling: str) -> None:
    block = ResidualBlock(replace(SMALL, resampling=resampling), 16)
    plain = SkipBlock(replace(SMALL, resampling=resampling), 16)
    plain.load_state_dict(block.state_dict(), strict=False)
    x = torch.randn(2, 4, 16, 16)
    around = F.conv2d(downsample(x, fir=resampling == "fir"), block.around.weight / 2)  # 1 / sqrt(4 inputs)
    assert torch.allclose(block(x), 0.5**0.5 * (plain(x) + around), atol=1e-5)


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_features_keep_their_variance_down_to_the_last_layer(architecture: str) -> None:
    config = replace(SMALL, architecture=architecture, channels=(64, 64, 64), resampling="fir")
    head = Head(config, 3, 16)
    first, last = Conv(3, 64, 1)(torch.randn(8, 3, 16, 16)), []
    head.last.register_forward_pre_hook(lambda _module, inputs: last.append(inputs[0]))
    head(torch.randn(8, 3, 16, 16), torch.rand(8, 2))
    assert 0.1 < float(last[0].detach().square().mean() / first.detach().square().mean()) < 3


def test_the_widths_of_the_image_entries_follow_the_architecture() -> None:
    assert [c.weight.shape[0] for c in Head(SMALL, 3, 16).entries] == [4, 6, 6]
    assert len(Head(replace(SMALL, architecture="resnet"), 3, 16).entries) == 1

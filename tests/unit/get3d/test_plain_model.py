"""The networks against the same mathematics in ordinary operations (tests/bench/plain_model.py)."""

import pytest
import torch
from torch import Tensor

from get3d_cluster.get3d.config import (
    DiscriminatorConfig,
    FieldsConfig,
    GeneratorConfig,
    GridConfig,
    MappingConfig,
    RenderConfig,
    TrunkConfig,
)
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.losses import generator_loss, r1_penalty
from tests.bench.plain_model import plain_operations

CONFIG = GeneratorConfig(
    latent_channels=16,
    mapping=MappingConfig(num_layers=2),
    trunk=TrunkConfig(resolution_px=16, plane_channels=8, channels=(16, 16, 8)),
    fields=FieldsConfig(hidden_channels=8, texture_channels=6, sphere_gain=4.0, sdf_gain=0.3),
    grid=GridConfig(cells=8),
    render=RenderConfig(image_size_px=32),
)
JUDGE = DiscriminatorConfig(image_size_px=32, channels=(16, 16, 8, 8), camera_channels=16, minibatch_group=2)
CAMERAS = torch.tensor([[0.3, 1.2], [2.5, 1.4]])


def networks() -> tuple[Generator, Discriminator]:
    torch.manual_seed(3)
    generator, discriminator = Generator(CONFIG), Discriminator(JUDGE)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                parameter.add_(torch.randn_like(parameter) * 0.2)  # zeros would hide what multiplies them
    return generator, discriminator


def computed() -> dict[str, Tensor]:
    """Return images, logits and all gradients of a generator's loss and of R1."""
    generator, discriminator = networks()
    torch.manual_seed(5)
    latents = generator.map(torch.randn(2, 16), torch.randn(2, 16))
    image = generator.render(latents, CAMERAS).image
    logits = discriminator(image, CAMERAS)
    generator_loss(logits).total.backward()
    found = {"image": image.detach(), "logits": torch.stack(logits).detach()}
    found |= {f"g.{name}": p.grad for name, p in generator.named_parameters() if p.grad is not None}
    discriminator.zero_grad()
    real = torch.rand(2, 4, 32, 32, requires_grad=True)
    r1_penalty(discriminator(real, CAMERAS), real, 1.0, 1.0).total.backward()
    return found | {f"d.{name}": p.grad for name, p in discriminator.named_parameters() if p.grad is not None}


def test_fast_and_plain_operations_compute_the_same() -> None:
    ours = computed()
    with plain_operations():
        plain = computed()
    assert ours.keys() == plain.keys()
    assert ours["image"][:, 3].mean() > 0.05
    largest = max(value.norm() for value in plain.values())
    for name, value in ours.items():
        scale = (
            plain[name].norm().clamp(min=1e-5 * largest)
        )  # what is nearly 0 is a difference of large numbers
        assert (value - plain[name]).norm() / scale < 2e-3, name


@pytest.mark.parametrize("name", ["image", "logits", "g.trunk.constant", "d.rgb.blocks.0.down.weight"])
def test_the_comparison_would_notice_another_gain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = computed()
    monkeypatch.setattr("tests.bench.plain_model.GAIN", 1.42)
    with plain_operations():
        plain = computed()
    assert (ours[name] - plain[name]).norm() / plain[name].norm() > 2e-3

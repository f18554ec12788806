"""What a micro-shard draws and computes depends on its place in the global batch alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from get3d_cluster.core.philox import Phase
from get3d_cluster.get3d.discriminator import Discriminator
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.get3d.mapping import Latents
from get3d_cluster.train import phases
from get3d_cluster.train.phases import DISCRIMINATOR_STREAMS, GENERATOR_STREAMS, Shard, draw_cameras, generate
from tests import train_setup as setup

Kind = Literal["dmtet", "flexicubes"]
CONFIG = setup.tiny_config(Path("data"))


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(CONFIG.generator)


@pytest.fixture(scope="module")
def discriminator() -> Discriminator:
    torch.manual_seed(1)
    return Discriminator(CONFIG.discriminator)


def shard(index: int, size: int = 2, step: int = 5) -> Shard:
    return Shard(seed=0, step=step, index=index, size=size)


def test_a_shard_draws_its_part_of_the_global_batch(generator: Generator) -> None:
    unmixed = replace(CONFIG, loss=replace(CONFIG.loss, mixing_probability=0.0))
    with torch.no_grad():
        whole = generate(generator, unmixed, shard(0, size=8), GENERATOR_STREAMS)
        parts = [generate(generator, unmixed, shard(i), GENERATOR_STREAMS) for i in range(4)]
    assert torch.equal(torch.cat([part.cameras for part in parts]), whole.cameras)
    torch.testing.assert_close(torch.cat([part.image for part in parts]), whole.image, atol=1e-3, rtol=1e-3)


def test_steps_phases_and_shards_draw_different_images(generator: Generator) -> None:
    with torch.no_grad():
        images = [
            generate(generator, CONFIG, each, streams).image
            for each in (shard(0), shard(1), shard(0, step=6))
            for streams in (GENERATOR_STREAMS, DISCRIMINATOR_STREAMS)
        ]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_cameras_lie_in_the_range_and_fill_it_evenly() -> None:
    """Even in angle: were they even on the sphere, 765 of 2000 would stand below 22.5 degrees, their mean 32.7."""
    cameras = draw_cameras(0, 0, Phase.CAMERA, torch.arange(2000), (0.0, 90.0))
    azimuth, elevation = cameras[:, 0], 90 - torch.rad2deg(cameras[:, 1])
    assert elevation.mean() == pytest.approx(45, abs=1.5)
    assert azimuth.mean() == pytest.approx(math.pi, abs=0.2)
    for angle, whole in ((azimuth, 2 * math.pi), (elevation, 90.0)):
        quarters = torch.histc(angle, 4, 0, whole)
        assert quarters.sum() == 2000, "some lie outside"
        assert (quarters - 500).abs().max() < 80, quarters
    low = 90 - torch.rad2deg(draw_cameras(0, 0, Phase.CAMERA, torch.arange(500), (-10.0, 30.0))[:, 1])
    assert (float(low.min()), float(low.max())) == pytest.approx((-10, 30), abs=0.5)


def cuts(generator: Generator, probability: float, count: int) -> list[tuple[int | None, int | None]]:
    """Return where styles were cut in ``count`` shards."""
    found: list[tuple[int | None, int | None]] = []

    class Recording:
        config = generator.config

        def map(self, z_geo: torch.Tensor, z_tex: torch.Tensor, _classes: torch.Tensor | None) -> Latents:
            return Latents(geo=z_geo[:, None], tex=z_tex[:, None])

        def mix(self, a: Latents, b: Latents, cut_geo: int | None, cut_tex: int | None) -> Latents:
            assert not torch.equal(a.geo, b.geo)
            found.append((cut_geo, cut_tex))
            return a

    for index in range(count):
        place = shard(index)
        samples = place.samples(torch.device("cpu"))
        first = Latents(geo=torch.zeros(2, 1, 8), tex=torch.zeros(2, 1, 8))
        phases._mixed(Recording(), probability, place, samples, GENERATOR_STREAMS, first)  # type: ignore[arg-type]
    return found


def test_styles_are_mixed_as_often_as_asked_at_every_possible_cut(generator: Generator) -> None:
    assert cuts(generator, 0.0, 20) == []
    found = cuts(generator, 0.9, 300)
    geo, tex = ([cut for cut in column if cut is not None] for column in zip(*found, strict=True))
    assert len(geo) / 300 == pytest.approx(0.9, abs=0.06)
    assert len(tex) / 300 == pytest.approx(0.9, abs=0.06)
    assert set(geo) == set(range(1, generator.config.num_ws_geo))
    assert set(tex) == set(range(1, generator.config.num_ws_tex))
    assert any((a is None) != (b is None) for a, b in found)  # decided apart


@pytest.mark.parametrize("kind", ["dmtet", "flexicubes"])
def test_the_generator_s_loss_is_its_parts(kind: Kind, discriminator: Discriminator) -> None:
    torch.manual_seed(0)
    generator = Generator(replace(CONFIG.generator, grid=replace(CONFIG.generator.grid, kind=kind)))
    fakes = generate(generator, CONFIG, shard(0), GENERATOR_STREAMS)
    weights = {"sdf_entropy": 0.3, "empty_shape": 2.0, "mesh_deviation": 70.0, "mesh_weights": 40.0}
    config = replace(CONFIG.loss, **weights)
    fakes = replace(fakes, penalty=fakes.penalty + 0.5)  # as if one had been empty
    total, numbers = phases.generator_shard(discriminator, config, fakes)
    named = phases.named(phases.GENERATOR_NUMBERS, numbers)
    regular = {name: weights[name] * named[name] for name in ("mesh_deviation", "mesh_weights")}
    assert all((term > 0.01) == (kind == "flexicubes") for term in regular.values()), regular
    expected = (
        named["loss_g_rgb"] + named["loss_g_mask"] + 0.3 * named["sdf_entropy"] + 2.0 * named["empty_penalty"]
    )
    assert total.item() == pytest.approx(expected + sum(regular.values()), rel=1e-5)
    assert named["empty_penalty"] >= 0.5
    assert named["mesh_deviation"] == fakes.deviation.item()
    assert named["mesh_weights"] == fakes.weights_square.item()


def test_r1_is_weighted_by_its_interval_and_shown_without(discriminator: Discriminator) -> None:
    images, cameras = torch.randn(2, 4, 8, 8), torch.zeros(2, 2)
    for interval in (1, 16):
        config = replace(CONFIG.loss, r1_interval=interval)
        total, numbers = phases.r1_shard(discriminator, config, phases.Reals(images, cameras))
        assert total.item() == pytest.approx(interval * numbers.sum().item(), rel=1e-5)
        assert numbers.min() > 0


def test_the_discriminator_s_phase_gives_the_generator_no_gradient(
    generator: Generator, discriminator: Discriminator
) -> None:
    fakes = generate(generator, CONFIG, shard(0), GENERATOR_STREAMS)
    phases.judge_fakes(discriminator, fakes).loss.total.backward()
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert any(parameter.grad is not None for parameter in discriminator.parameters())
    discriminator.zero_grad()

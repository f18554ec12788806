import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from get3d_cluster.core.job import Position
from get3d_cluster.get3d.generator import Generator
from get3d_cluster.train.previews import Watch, latents_of, portraits, random_images, ring
from jobs._watches import split_by_model
from tests import train_setup as setup


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def looks(cost_s: float, *, every_s: float, budget: float, duration_s: float) -> tuple[list[float], float]:
    """Return when a look of ``cost_s`` was taken, and how long the training had for itself."""
    clock, taken, busy_s = Clock(), [], 0.0

    def look(*_: Any) -> dict[str, float]:
        taken.append(clock.now_s)
        clock.now_s += cost_s
        return {}

    watch = Watch(look, every_s, budget, clock)
    while clock.now_s < 1000.0 + duration_s:
        clock.now_s += 0.1
        busy_s += 0.1
        watch.look(None, Position(step=1 + len(taken), num_steps=9), last=False)  # type: ignore[arg-type]
    return taken, busy_s


def test_cheap_looks_come_on_time() -> None:
    taken, _ = looks(0.05, every_s=30.0, budget=0.03, duration_s=300.0)
    gaps = [b - a for a, b in itertools.pairwise(taken)]
    assert len(taken) >= 9
    assert all(30.0 <= gap < 30.5 for gap in gaps)


def test_dear_looks_keep_within_the_budget() -> None:
    taken, busy_s = looks(2.0, every_s=1.0, budget=0.05, duration_s=1000.0)
    assert len(taken) > 5
    assert 2.0 * (len(taken) - 2) / busy_s <= 0.05  # neither the first, which compiles, nor one under way


def test_the_start_and_the_end_are_always_shown() -> None:
    shown: list[int] = []

    def look(_: Any, position: Position) -> dict[str, float]:
        shown.append(position.step)
        return {"x": 1.0}

    watch = Watch(look, 1e9, 0.03)
    for step in range(5):
        watch.look(None, Position(step=step, num_steps=4), last=step == 4)  # type: ignore[arg-type]
    assert shown == [0, 4]


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(setup.tiny_config(Path("data")).generator)


def test_portraits_are_premultiplied_whatever_the_background(generator: Generator) -> None:
    with torch.no_grad():
        generator.colour.bias.copy_(torch.tensor([0.5, -0.5, 0.0]))
    seen = portraits(
        generator, latents_of(generator, "preview", 0, torch.arange(3)), ring(2), image_size_px=16
    )
    assert seen.colours.shape == (2, 3, 16, 16, 4)
    empty = seen.colours[..., 3] == 0
    assert empty.any()
    assert np.abs(seen.colours[empty]).max() < 1e-6
    assert seen.colours.min() >= 0
    assert seen.colours.max() <= 1


def test_geometry_and_colours_show_the_same_outline(generator: Generator) -> None:
    seen = portraits(
        generator,
        latents_of(generator, "preview", 0, torch.arange(2)),
        ring(2),
        image_size_px=16,
        supersampling=1,
    )
    for shape, ids in enumerate(seen.triangle_ids):
        covered = seen.colours[:, shape, :, :, 3]
        assert ((ids > 0) != (covered > 0.5)).mean() < 0.05


def test_a_seed_stands_for_the_same_shapes_however_they_are_batched(generator: Generator) -> None:
    whole = latents_of(generator, "generate", 3, torch.arange(6))
    part = latents_of(generator, "generate", 3, torch.arange(4, 6))
    torch.testing.assert_close(part.geo, whole.geo[4:])
    assert not torch.equal(latents_of(generator, "preview", 3, torch.arange(6)).geo, whole.geo)


def test_measured_images_are_the_same_each_time_and_differ_from_each_other(generator: Generator) -> None:
    first, again = (random_images(generator, 0, 5, (0.0, 30.0)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (5, 4, 8, 8)
    assert not torch.equal(first[0], first[1])


def test_the_halves_of_the_models_share_none_and_cover_all() -> None:
    keys = [f"02958343/{model}/{view:03d}" for model in "abcdefg" for view in range(5)]
    reference, held_out = split_by_model(keys, seed=1)
    assert sorted(reference + held_out) == list(range(len(keys)))
    models = [{keys[i].split("/")[1] for i in half} for half in (reference, held_out)]
    assert not models[0] & models[1]
    few, _ = split_by_model(keys, seed=1, most=4)
    assert len({keys[i].split("/")[1] for i in few}) == 4  # spread over models

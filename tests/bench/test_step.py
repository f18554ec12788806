"""Steps of a training on a CPU, beside the same mathematics in ordinary operations.

    .venv/bin/python -m pytest -m bench -s tests/bench/test_step.py

Configuration B: planes 64, image 128, channels min(4096 / r, 128), 4 images a step, grid 64; everything else as for the
paper. One process, as many threads as there are cores. A round is 16 steps of each, one of them with R1; rounds
alternate. Both start from the same weights and draw the same numbers. The rasterizer is the same for both.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.get3d.config import GridConfig, RenderConfig, TrunkConfig
from get3d_cluster.train.config import BatchConfig, TrainerConfig
from tests.bench.plain_model import plain_operations
from tests.gpu.setting import Setting, car, trainer
from tests.gpu.speed import _parts

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

RESULT = Path(__file__).parent / "results" / "step.json"
STEPS, ROUNDS = 16, 2
LEAST_RATIO = 1.5
"""Images a second here over those in ordinary operations, in each round."""


def config_b() -> TrainerConfig:
    whole = car()
    widths: dict[str, Any] = {"channel_base": 4096, "channel_max": 128}
    generator = replace(
        whole.generator,
        trunk=TrunkConfig(resolution_px=64, **widths),
        grid=GridConfig(tet_res=64),
        render=RenderConfig(image_size_px=128),
    )
    discriminator = replace(whole.discriminator, image_size_px=128, **widths)
    batch = BatchConfig(num_shards=1, shard_size=4)
    return replace(whole, generator=generator, discriminator=discriminator, batch=batch)


def seconds_of(act: Callable[[], object], times: int = 1) -> float:
    begun_s = time.perf_counter()
    for _ in range(times):
        act()
    return (time.perf_counter() - begun_s) / times


def test_steps_of_configuration_b_beside_plain_operations(tmp_path: Path) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    works, ways = {}, {"ours": nullcontext, "plain": plain_operations}
    for name in ways:
        works[name] = trainer(Setting(device="cpu", folder=tmp_path / name), config_b())
    for name, way in ways.items():
        with way():
            works[name].step()  # compiles, and touches memory
    losses = [torch.stack([p.norm() for p in work.generator.parameters()]) for work in works.values()]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            with way():
                seconds[name].append(seconds_of(works[name].step, STEPS))
    best = {name: min(found) for name, found in seconds.items()}
    ratios = [plain / ours for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)]
    parts = {}
    for name, way in ways.items():
        with way():
            parts[name] = {
                part: 1e3 * min(seconds_of(act) for _ in range(3))
                for part, act in _parts(works[name]).items()
            }
    found = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "images_per_s": {name: round(4 / value, 2) for name, value in best.items()},
        "ratio": round(best["plain"] / best["ours"], 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "parts_ms": {
            name: {part: round(ms, 1) for part, ms in found.items()} for name, found in parts.items()
        },
    }
    print(json.dumps(found, indent=1))
    print(f"median ratio {statistics.median(ratios):.2f}")
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    assert min(ratios) >= LEAST_RATIO, ratios

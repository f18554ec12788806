"""How a step's cost grows: with the batch, with the image, with the grid. Each by itself, beside one base.

The same code for a GPU and, by `tests/bench/test_cost.py`, for a CPU. Nothing here can fail for being slow.
"""

import gc
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from get3d_cluster.train.config import BatchConfig, TrainerConfig
from tests.gpu.setting import Check, Facts, Setting, full_size, peak_gib, reset_peak, trainer
from tests.gpu.speed import _parts, _rate, _time

Axes = dict[str, tuple[int, ...]]
AXES: Axes = {"batch": (1, 2, 4, 8), "image": (256, 512, 1024), "grid": (64, 90, 128)}
"""The base has one value of each."""
TOY_AXES: Axes = {"batch": (2, 4), "image": (8, 16), "grid": (4, 6)}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration, and what of the base was changed."""

    axis: str
    value: int
    config: TrainerConfig

    @property
    def name(self) -> str:
        return f"{self.axis} {self.value}" if self.value else self.axis


def value_of(config: TrainerConfig, axis: str) -> int:
    """Return where a configuration lies on an axis: images of a micro-shard, pixels, `tet_res` or cells."""
    grid = config.generator.grid
    return {
        "batch": config.batch.shard_size,
        "image": config.generator.render.image_size_px,
        "grid": grid.tet_res or grid.cells,
    }[axis]


def changed(config: TrainerConfig, axis: str, value: int) -> TrainerConfig:
    """Return the configuration with another value on one axis; a step stays one micro-shard."""
    generator = config.generator
    if axis == "batch":
        return replace(config, batch=BatchConfig(num_shards=1, shard_size=value))
    if axis == "image":
        render = replace(generator.render, image_size_px=value)
        channels = config.discriminator.channels
        channels = (channels + channels[-1:] * 8)[: value.bit_length() - 2] if channels else ()
        judge = replace(config.discriminator, image_size_px=value, channels=channels)
        return replace(config, generator=replace(generator, render=render), discriminator=judge)
    key = "tet_res" if generator.grid.tet_res else "cells"
    grid = replace(generator.grid, **{key: value})
    return replace(config, generator=replace(generator, grid=grid))


def points(base: TrainerConfig, axes: Axes) -> Iterator[Point]:
    """Return the base, then each other value of each axis."""
    yield Point(axis="base", value=0, config=base)
    for axis, values in axes.items():
        for value in values:
            if value != value_of(base, axis):
                yield Point(axis=axis, value=value, config=changed(base, axis, value))


def cost(setting: Setting, config: TrainerConfig) -> dict[str, float]:
    """Return milliseconds of the parts of a step, and of a whole one with its share of R1; memory in GiB.

    What does not work at that size, for want of memory, is left out. On a CPU the memory is the most that this process
    ever had, with its libraries.
    """
    gc.collect()
    reset_peak(setting.device)
    work = trainer(setting, config)
    rate = _rate(setting, work)
    found = {name.removesuffix(", ms"): value for name, value in rate.items() if name.endswith(", ms")}
    if "images/s" in rate:
        found["step"] = round(config.batch.size / rate["images/s"] * 1e3, 3)
    process_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found["memory, GiB"] = peak_gib(setting.device) or round(process_gib, 3)
    found |= {part: _time(setting, call) for part, call in _parts_that_fit(work).items()}
    return {name: value for name, value in found.items() if not isinstance(value, str)}


def send(sender: Connection, setting: Setting, config: TrainerConfig) -> None:
    """Send the cost, computed with one thread: for a process of its own."""
    torch.set_num_threads(1)
    sender.send(cost(setting, config))


def _parts_that_fit(work: Any) -> dict[str, Callable[[], object]]:
    try:
        return _parts(work)
    except torch.OutOfMemoryError:
        return {}


def ratios(costs: dict[str, float], base: dict[str, float]) -> dict[str, float]:
    """Return what each part costs in relation to the base."""
    return {name: round(value / base[name], 2) for name, value in costs.items() if base.get(name)}


def _check_of(axis: str) -> Check:
    def check(setting: Setting) -> Facts:
        config = full_size(setting)
        values = (TOY_AXES if setting.toy else AXES)[axis]
        base = cost(setting, config)
        facts: Facts = {f"base: {name}": value for name, value in base.items()}
        for point in points(config, {axis: values}):
            if point.axis == axis:
                facts |= _told(point.name, cost(setting, point.config), base)
        return facts

    check.__name__ = f"check_cost_by_{axis}"
    check.__doc__ = (
        f"Parts of a step in ms and memory by {axis}, at the paper's size; in brackets: times the base."
    )
    return check


def _told(name: str, costs: dict[str, float], base: dict[str, float]) -> dict[str, Any]:
    times = ratios(costs, base)
    return {f"{name}: {part}": f"{value} ({times.get(part, '-')})" for part, value in costs.items()}


CHECKS: tuple[Check, ...] = tuple(_check_of(axis) for axis in AXES)

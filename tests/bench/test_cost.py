"""How a step's cost grows with the batch, the image and the grid, on a CPU; on a GPU: make gpu PART=cost.

    .venv/bin/python -m pytest -m bench -s tests/bench/test_cost.py

The base is configuration B of test_step.py with one thread: image 128, grid 64, 4 images a step, one micro-shard. Each
row changes one of the three. Each is measured in a process of its own, whose peak memory it tells. GET3D_BENCH_TOY=1
tries all of it at the size of the smallest configuration.
"""

import json
import multiprocessing
import os
import platform
from pathlib import Path

import pytest
import torch

from get3d_cluster.train.config import TrainerConfig
from tests.bench.test_step import config_b
from tests.gpu import cost
from tests.gpu.setting import Setting, full_size

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]

RESULT = Path(__file__).parent / "results" / "cost.json"
AXES: cost.Axes = {"batch": (1, 2, 4, 8), "image": (64, 128, 256), "grid": (32, 64, 90)}
IS_TOY = os.environ.get("GET3D_BENCH_TOY") == "1"
SHOWN = ("step", "G", "D", "R1", "memory, GiB")


def in_a_process_of_its_own(folder: Path, config: TrainerConfig) -> dict[str, float]:
    folder.mkdir()
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    setting = Setting(device="cpu", folder=folder, toy=IS_TOY)
    process = spawning.Process(target=cost.send, args=(sender, setting, config), daemon=True)
    process.start()
    sender.close()
    found: dict[str, float] = receiver.recv()
    process.join()
    return found


def test_the_cost_of_a_step_by_batch_image_and_grid(tmp_path: Path) -> None:
    base = full_size(Setting(device="cpu", folder=tmp_path, toy=True)) if IS_TOY else config_b()
    axes = cost.TOY_AXES if IS_TOY else AXES
    rows = {
        point.name: in_a_process_of_its_own(tmp_path / point.name, point.config)
        for point in cost.points(base, axes)
    }
    name = next(iter(rows))
    times = {row: cost.ratios(found, rows[name]) for row, found in rows.items()}
    print(table(rows, times))
    assert set(rows[name]) >= {*SHOWN}
    found = {
        "machine": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores, torch {torch.__version__}",
        "base": {axis: cost.value_of(base, axis) for axis in axes},
        "milliseconds": rows,
        "times the base": times,
    }
    if not IS_TOY:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


def table(rows: dict[str, dict[str, float]], times: dict[str, dict[str, float]]) -> str:
    """Return two tables: whole phases, and parts; milliseconds, and in brackets times the base."""
    parts = [part for part in next(iter(rows.values())) if part not in SHOWN]
    return "\n\n".join("\n".join(_lines(rows, times, columns)) for columns in (list(SHOWN), parts))


def _lines(
    rows: dict[str, dict[str, float]], times: dict[str, dict[str, float]], columns: list[str]
) -> list[str]:
    head = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    cells = {row: [_cell(found, times[row], part) for part in columns] for row, found in rows.items()}
    return [*head, *(f"| {row} | {' | '.join(found)} |" for row, found in cells.items())]


def _cell(found: dict[str, float], times: dict[str, float], part: str) -> str:
    return f"{found[part]:.1f} ({times.get(part, 0):.2f})" if part in found else "-"

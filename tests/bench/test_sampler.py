"""How long the order of the data takes: the first batch of an attempt, at step 0 and at step 1,000,000, and the next.

    .venv/bin/python -m pytest -m bench -s tests/bench/test_sampler.py

Times are processor time, the least of several rounds: other processes disturb the clock, and nothing here waits.
Beside it what a sampler costs that carries a generator along and has to run it up to where it stopped.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from get3d_cluster.data.order import permutation, sample_at

pytestmark = pytest.mark.bench

SIZES = (7_500, 50_000, 1_000_000)
BATCH = 32
LATE_STEP = 1_000_000
ROUNDS = 7
NEXT = 200
"""Batches after the first one."""
RESULT = Path(__file__).parent / "results" / "sampler.json"


def least_ms(act: Callable[[], Any], rounds: int = ROUNDS) -> float:
    spent = []
    for _ in range(rounds):
        begun_s = time.process_time()
        act()
        spent.append(time.process_time() - begun_s)
    return 1000 * min(spent)


def first_batch_ms(size: int, step: int) -> float:
    def start() -> None:
        permutation.cache_clear()  # as in a process that has just begun
        sample_at(0, size, step * BATCH, BATCH)

    return least_ms(start)


def next_batch_us(size: int, step: int) -> float:
    """Return the time of a batch within an epoch, whose order is there already."""
    start = step * BATCH // size * size
    sample_at(0, size, start, BATCH)
    count = min(NEXT, size // BATCH)

    def go_on() -> None:
        for number in range(count):
            sample_at(0, size, start + number * BATCH, BATCH)

    return 1000 * least_ms(go_on) / count


def forwarded_ms(size: int, epochs: int) -> float:
    """Return what it takes to shuffle anew for each epoch so far, as a sampler with a generator in its state does."""
    generator = np.random.Generator(np.random.PCG64(0))
    return least_ms(lambda: generator.permutation(size), 3) * epochs


def row(size: int) -> dict[str, float | int]:
    return {
        "samples": size,
        "first_batch_at_step_0_ms": round(first_batch_ms(size, 0), 3),
        "first_batch_at_step_1e6_ms": round(first_batch_ms(size, LATE_STEP), 3),
        "next_batch_us": round(next_batch_us(size, LATE_STEP), 2),
        "fast_forward_to_step_1e6_ms": round(forwarded_ms(size, LATE_STEP * BATCH // size), 1),
        "memory_bytes": permutation(0, size, 0).nbytes,
    }


def test_a_late_step_begins_as_fast_as_the_first_one() -> None:
    rows = [row(size) for size in SIZES]
    permutation.cache_clear()
    print()
    for name in rows[0]:
        print(f"{name:30}", *(f"{found[name]:>12}" for found in rows))
    RESULT.parent.mkdir(exist_ok=True)
    about = {"numpy": np.__version__, "machine": platform.machine(), "batch": BATCH}
    RESULT.write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    for found in rows:
        assert found["first_batch_at_step_1e6_ms"] <= 1.5 * found["first_batch_at_step_0_ms"] + 0.5
        assert found["next_batch_us"] < 200
    assert rows[-1]["first_batch_at_step_0_ms"] < 1000

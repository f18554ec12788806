"""A loop for benchmarks of checkpoints: 2,000 tiny operations, 150 ms in which an accelerator would compute, and an
optimizer pass over all weights."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NUM_TENSORS = 100
STEP_S = 0.150
NOT_JUDGED = "NOT JUDGED: this machine does other work, too; the times above are no measure"


class Loop:
    """Weights, and two moments of each, of so many ``megabytes`` together."""

    def __init__(self, megabytes: int) -> None:
        size = megabytes * 250_000 // (3 * NUM_TENSORS)
        self.parts = {
            name: {f"{index}": torch.full((size,), 1.0) for index in range(NUM_TENSORS)}
            for name in ("net", "m", "v")
        }
        self.steps = 0
        self.small = torch.zeros(8)

    def state(self) -> dict[str, Any]:
        return {**self.parts, "counters": {"step": self.steps}}

    def step(self, before_change: Callable[[], None] = lambda: None) -> float:
        """Do one step; return the seconds that it waited for a copy."""
        for _ in range(2000):
            self.small.add_(1)
        time.sleep(STEP_S)
        begun_s = time.perf_counter()
        before_change()
        waited_s = time.perf_counter() - begun_s
        for net, m, v in zip(*(part.values() for part in self.parts.values()), strict=True):
            m.mul_(0.9)
            v.mul_(0.99)
            net.sub_(m, alpha=1e-3)
        self.steps += 1
        return waited_s


def save_plainly(state: dict[str, Any], path: Path) -> None:
    """Write a state as a loop would that knows no better: at once, by ``torch.save``, durable when this returns."""
    aside = path.with_suffix(".tmp")
    with aside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def is_quiet() -> bool:
    """Say whether this machine has a core for the writer: others may be measuring here, too."""
    return os.getloadavg()[0] < len(os.sched_getaffinity(0))

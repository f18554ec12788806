"""A state with everything that a checkpoint may hold, and a save of it from begin to end."""

from pathlib import Path
from typing import Any

import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.runtime.checkpoint_saver import Saver

ALWAYS = CheckpointConfig(background_mb=0.0, keep_last=2)


def a_state(value: float = 1.0) -> dict[str, Any]:
    weight = torch.full((300, 7), value)
    return {
        "net": {
            "w": weight,
            "tied": weight,
            "n": torch.tensor(7),
            "half": torch.ones(3, dtype=torch.bfloat16),
        },
        "adam": {
            "state": {0: {"step": torch.tensor(value), "m": torch.ones(5, 2).T}},
            "groups": [{"betas": (0, 1)}],
        },
        "odd": [torch.zeros(0, 3), torch.tensor([True, False, True]), (torch.arange(3, dtype=torch.uint8),)],
        "alone": torch.arange(4.0),
        "counters": {"step": value, "best": float("inf"), 3: None},
    }


def save(saver: Saver, step: int, state: dict[str, Any]) -> dict[str, Any]:
    assert saver.begin(step, state, {"epoch": step})
    return saver.finish()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())

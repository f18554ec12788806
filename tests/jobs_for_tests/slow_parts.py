"""The plain job with pauses in chosen parts, each announced by a file, so that a test can hit the very moment."""

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from get3d_cluster.core.job import CheckpointConfig, Position, Resources, RetryConfig
from get3d_cluster.runtime.session import Session, Work

KIND = "steps"


@dataclass(frozen=True, kw_only=True)
class Config:
    num_steps: int = 12
    num_shards: int = 4
    step_s: float = 0.0
    lr: float = 0.01
    slow: tuple[str, ...] = ()
    """Parts that pause: make, load, save, last (step)."""
    part_s: float = 0.6
    fail: str = ""
    """A rank and a step, such as 1@5: that worker raises there."""
    weights: int = 0
    """Numbers that make the state larger."""
    resources: Resources = field(default_factory=Resources)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)


def make(config: Config, session: Session) -> Work:
    import torch

    plain = importlib.import_module("tests.plain.job").make(config, session)

    def pause(part: str) -> None:
        if part in config.slow:
            (session.run.path / f"in-{part}").touch()
            time.sleep(config.part_s)

    class Slow:
        def position(self) -> Position:
            return plain.position()

        def is_done(self) -> bool:
            return plain.is_done()

        def step(self) -> None:
            if plain.done == config.num_steps - 1:
                pause("last")
            if config.fail == f"{session.rank}@{plain.done}":
                raise ValueError("the weather\nwas bad")
            plain.step()

        def state(self) -> Mapping[str, Any]:
            pause("save")
            return {**plain.state(), "ballast": {"zeros": torch.zeros(config.weights)}}

        def load(self, state: Mapping[str, Any]) -> None:
            pause("load")
            plain.load(state)

    pause("make")
    return Slow()

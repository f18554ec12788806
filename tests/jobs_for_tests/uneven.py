"""The plain job whose workers are not equally fast, or that leaves a thread behind which never ends."""

import importlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from get3d_cluster.core.job import CheckpointConfig, Resources, RetryConfig
from get3d_cluster.runtime.session import Session, Work

KIND = "steps"


@dataclass(frozen=True, kw_only=True)
class Config:
    num_steps: int = 12
    num_shards: int = 4
    step_s: float = 0.0
    lr: float = 0.01
    slow_rank: int = -1
    """Rank that sleeps before each step, while the others wait for it inside a collective."""
    slow_s: float = 0.4
    thread: bool = False
    """Start a thread that a process waits for at its end, and that has none."""
    resources: Resources = field(default_factory=Resources)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)


def make(config: Config, session: Session) -> Work:
    work: Any = importlib.import_module("tests.plain.job").make(config, session)
    if config.thread:
        threading.Thread(target=threading.Event().wait, daemon=False).start()
    step = work.step

    def slow_step() -> None:
        if session.rank == config.slow_rank:
            time.sleep(config.slow_s)
        step()

    work.step = slow_step
    return work

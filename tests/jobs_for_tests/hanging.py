"""The plain job in which one worker hangs at a step of the first attempt: asleep, or deaf to everything."""

import ctypes
import importlib
import time
from dataclasses import dataclass, field

from get3d_cluster.core.job import CheckpointConfig, Resources, RetryConfig
from get3d_cluster.runtime.session import Session, Work

KIND = "steps"


@dataclass(frozen=True, kw_only=True)
class Config:
    num_steps: int = 12
    num_shards: int = 4
    step_s: float = 0.0
    lr: float = 0.01
    hang: str = ""
    """A rank and a step, such as 1@5; the step 0 hangs in make."""
    deaf: bool = False
    """Hang in C code that keeps the interpreter to itself."""
    resources: Resources = field(default_factory=Resources)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)


def make(config: Config, session: Session) -> Work:
    def hang_if_due(step: int) -> None:
        if session.attempt == 1 and config.hang == f"{session.rank}@{step}":
            sleep_forever_here(deaf=config.deaf)

    hang_if_due(0)
    plain = importlib.import_module("tests.plain.job").make(config, session)
    step_once = plain.step

    def step() -> None:
        hang_if_due(plain.done + 1)
        step_once()

    plain.step = step
    return plain


def sleep_forever_here(*, deaf: bool) -> None:
    if deaf:
        ctypes.PyDLL(None).sleep(600)
    time.sleep(600)

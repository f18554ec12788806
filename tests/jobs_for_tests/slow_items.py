"""A job of small files that takes its time, so that tests can interrupt it."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from get3d_cluster.core.job import Position, Resources, RetryConfig
from get3d_cluster.runtime.session import ItemWork, Session

KIND = "items"


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path
    items: int = 20
    item_s: float = 0.1
    resources: Resources = field(default_factory=Resources)
    retry: RetryConfig = field(default_factory=RetryConfig)


@dataclass
class Files:
    config: Config

    def position(self) -> Position:
        return Position(step=len(list(self.config.out.glob("*"))), num_steps=self.config.items)

    def is_done(self) -> bool:
        return self.position().step >= self.config.items

    def step(self) -> None:
        time.sleep(self.config.item_s)
        number = self.position().step
        print(f"item {number}", flush=True)
        (self.config.out / f"{number:03d}").touch(exist_ok=False)

    def close(self) -> None:
        pass


def make(config: Config, session: Session) -> ItemWork:
    config.out.mkdir(exist_ok=True)
    return Files(config)

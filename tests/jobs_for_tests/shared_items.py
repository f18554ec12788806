"""A job of small files that workers share out by claims; some items crash their worker. Its log counts each ending."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from get3d_cluster.core.job import Position, Resources, RetryConfig
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.claims import Claims, Owner
from get3d_cluster.runtime.env import ProcessId
from get3d_cluster.runtime.session import ItemWork, Session

KIND = "items"


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path
    items: int = 20
    item_s: float = 0.1
    start_s: float = 0.0
    """Pause before the first item."""
    crash_once: tuple[int, ...] = ()
    """Items that kill the worker that takes them first."""
    crash: tuple[int, ...] = ()
    """Items that kill every worker that takes them."""
    needs: str = ""
    """A file without which the job refuses to start."""
    resources: Resources = field(default_factory=Resources)
    retry: RetryConfig = field(default_factory=RetryConfig)


def content_of(item: int) -> str:
    """Return what the file of an item holds."""
    return f"{item} squared is {item * item}\n" * 100


class Files:
    """One worker's part."""

    def __init__(self, config: Config, session: Session) -> None:
        self._config = config
        self._who = {"rank": session.rank, "attempt": session.attempt}
        self._claims = Claims(
            config.out / "claims", Owner(process=ProcessId.mine(), attempt=session.attempt, name="")
        )
        first = session.rank * config.items // session.world_size
        self._order = [(first + index) % config.items for index in range(config.items)]

    def position(self) -> Position:
        return Position(step=sum(map(self._is_ended, self._order)), num_steps=self._config.items)

    def is_done(self) -> bool:
        return all(map(self._is_ended, self._order))

    def step(self) -> None:
        self._claims.beat()
        for item in self._order:
            if not self._is_ended(item) and self._claims.claim(str(item)):
                if not self._is_ended(item):
                    self._make(item)
                self._claims.release(str(item))
                return
        time.sleep(0.1)

    def close(self) -> None:
        self._claims.release_all()

    def _make(self, item: int) -> None:
        self._crash(item)
        time.sleep(self._config.item_s)
        aside = self._config.out / f".{item}-{os.getpid()}"
        aside.write_text(content_of(item))
        row = json.dumps({"item": item, "t": time.time(), **self._who}) + "\n"
        with (self._config.out / "log.jsonl").open("a") as log:
            log.write(row)
        aside.rename(self._path(item))

    def _crash(self, item: int) -> None:
        marker = self._config.out / f"crashed-{item}"
        if item in self._config.crash or (item in self._config.crash_once and not marker.exists()):
            marker.touch()
            os._exit(139)

    def _path(self, item: int) -> Path:
        return self._config.out / f"{item:04d}"

    def _is_ended(self, item: int) -> bool:
        return self._path(item).exists()


def make(config: Config, session: Session) -> ItemWork:
    if config.needs and not Path(config.needs).exists():
        raise UsageError(f"needs={config.needs} does not exist", "make it")
    config.out.mkdir(parents=True, exist_ok=True)
    time.sleep(config.start_s)
    return Files(config, session)

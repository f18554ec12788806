"""Work of steps that gets a notice in one of them, as from a scheduler."""

import signal
import time
from typing import Any

import torch

from get3d_cluster.core.job import Position
from get3d_cluster.runtime.session import Session


class NoticedWork:
    """Steps that count, in a tensor and beside it; a notice comes in step ``told_at``, 0: never."""

    def __init__(self, session: Session, num_steps: int, told_at: int, step_s: float = 0.0) -> None:
        self.session, self.num_steps, self.told_at, self.step_s, self.done = (
            session,
            num_steps,
            told_at,
            step_s,
            0,
        )
        self.net = torch.zeros(1000)

    def position(self) -> Position:
        return Position(step=self.done, num_steps=self.num_steps, images=self.done)

    def is_done(self) -> bool:
        return self.done >= self.num_steps

    def step(self) -> None:
        time.sleep(self.step_s)
        self.done += 1
        self.net += 1
        if self.done == self.told_at:
            self.session.notices.received.append((int(signal.SIGUSR1), time.monotonic()))

    def state(self) -> dict[str, Any]:
        return {"net": self.net, "counters": {"done": self.done}}

    def load(self, state: dict[str, Any]) -> None:
        self.net.copy_(state["net"])
        self.done = state["counters"]["done"]

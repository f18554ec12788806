"""A plain torch job of some 40 lines that uses the whole job layer: a small net learns a line, shard by shard."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from get3d_cluster.core.job import CheckpointConfig, Position, Resources, RetryConfig
from get3d_cluster.runtime.session import Session, Work

KIND = "steps"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the plain job."""

    num_steps: int = 40
    """Steps of the run."""
    num_shards: int = 4
    """Micro-shards of the global batch."""
    step_s: float = 0.0
    """Pause in each step, so that a test can hit one."""
    lr: float = 0.01
    """Learning rate."""
    resources: Resources = field(default_factory=Resources)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)


def make(config: Config, session: Session) -> Work:
    import torch

    from get3d_cluster.dist.tree import GradientReducer, PhasePlan
    from get3d_cluster.runtime.checkpoint import load_optimizer, optimizer_state

    class Plain:
        def __init__(self) -> None:
            torch.manual_seed(0)
            torch.set_num_threads(1)
            self.net = torch.nn.Sequential(
                torch.nn.Linear(3, 16), torch.nn.Softplus(), torch.nn.Linear(16, 1)
            )
            self.adam = torch.optim.Adam(self.net.parameters(), lr=config.lr)
            self.reducer = GradientReducer(
                PhasePlan("main", self.net.named_parameters()), session.group, config.num_shards
            )
            self.done = 0

        def position(self) -> Position:
            return Position(
                step=self.done, num_steps=config.num_steps, epoch=self.done // 10, images=8 * self.done
            )

        def is_done(self) -> bool:
            return self.done >= config.num_steps

        def step(self) -> None:
            for shard in self.reducer.start():
                generator = torch.Generator().manual_seed(1000 * self.done + shard)
                x = torch.randn(8, 3, generator=generator)
                (self.net(x) - x.sum(1, keepdim=True)).square().mean().backward()
                self.reducer.add()
            self.reducer.finish()
            self.adam.step()
            time.sleep(config.step_s)
            self.done += 1
            session.metrics.write(self.done, images=8 * self.done)

        def state(self) -> Mapping[str, Any]:
            return {
                "net": self.net.state_dict(),
                "adam": optimizer_state(self.adam),
                "counters": {"done": self.done},
            }

        def load(self, state: Mapping[str, Any]) -> None:
            self.net.load_state_dict(state["net"])
            load_optimizer(self.adam, state["adam"])
            self.done = state["counters"]["done"]

    return Plain()

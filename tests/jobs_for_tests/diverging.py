"""GET3D's training that diverges by what it draws: from a step on, real images are not finite for the first draws.

Each worker writes down the digest of its whole state after each step, beside how often it went back.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from get3d_cluster.runtime.session import Session, Work
from jobs import train

KIND = train.KIND
most_workers = train.most_workers


@dataclass(frozen=True, kw_only=True)
class Config(train.Config):
    bad_step: int = 7
    """First step (from 0) whose images are not finite."""
    bad_draws: int = 1
    """So many sequences of random numbers end there; the next one comes through."""


def make(config: Config, session: Session) -> Work:
    from get3d_cluster.core.philox import key_of
    from get3d_cluster.runtime.checkpoint import state_digest

    work: Any = train.make(config, session)
    bad = [
        key_of("roll-back", str(config.seed), str(n)) if n else config.seed for n in range(config.bad_draws)
    ]
    do_step, dataset = work.step, work._dataset  # what breaks is inside
    path = session.run.path / f"digests.rank{session.rank}.jsonl"

    class Images:
        def __len__(self) -> int:
            return len(dataset)

        def __getattr__(self, name: str) -> Any:
            return getattr(dataset, name)

        def batch(self, places: Any) -> Any:
            images, cameras = dataset.batch(places)
            is_bad = work._shard(0).seed in bad and work.counters.step >= config.bad_step
            return (images * math.nan if is_bad else images), cameras

    def step() -> None:
        do_step()
        row = {
            "attempt": session.attempt,
            "step": work.counters.step,
            "rollbacks": work.counters.rollbacks,
            "digest": state_digest(work.state()),
        }
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    work._dataset, work.step = Images(), step
    return work

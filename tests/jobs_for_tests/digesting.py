"""GET3D's training, each worker of which writes down the digest of its whole state after each step."""

import json
from typing import Any

from get3d_cluster.runtime.session import Session, Work
from jobs import train

KIND = train.KIND
Config = train.Config
most_workers = train.most_workers


def make(config: train.Config, session: Session) -> Work:
    from get3d_cluster.runtime.checkpoint import state_digest

    work: Any = train.make(config, session)
    do_step = work.step
    path = session.run.path / f"digests.rank{session.rank}.jsonl"

    def step() -> None:
        do_step()
        row = {
            "attempt": session.attempt,
            "world_size": session.world_size,
            "step": work.position().step,
            "digest": state_digest(work.state()),
        }
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    work.step = step
    return work

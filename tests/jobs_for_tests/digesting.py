"""GET3D's training, each worker of which writes down the digest of its whole state after each step.

Where a run has a file ``hold.json``, {"pause_s": seconds, "at": step}, its workers pause after each step, and stay in
that one until they are killed.
"""

import json
import time
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
    hold_path = session.run.path / "hold.json"
    hold = json.loads(hold_path.read_text()) if hold_path.exists() else {"pause_s": 0.0, "at": None}

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
        time.sleep(hold["pause_s"])
        while row["step"] == hold["at"]:
            time.sleep(0.05)

    work.step = step
    return work

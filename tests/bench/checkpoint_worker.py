"""A worker of a training with checkpoints, in rounds: python -m tests.bench.checkpoint_worker FOLDER RANK WORLD ORDER.

ORDER is JSON: ``megabytes``, ``period_s``, and ``ways``, one for each round: ``none`` does its steps, ``save`` begins
with a checkpoint, ``compare`` with a comparison of the replicas and a checkpoint, ``torch`` with a ``torch.save`` for
which all wait. A round has as many steps as come nearest to the period, and in each one word of all workers, as the
loop of a run has. Rank 0 prints what each took.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import Group, meet
from get3d_cluster.dist.replicas import check_replicas
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.storage import open_storage
from tests.bench.training_loop import Loop, save_plainly

PARTS = ("net", "m", "v")
CALIBRATION = 10


class Training:
    """The loop, its checkpoints, and what they take from it."""

    def __init__(self, folder: Path, group: Group, megabytes: int) -> None:
        self.loop, self.group, self.folder = Loop(megabytes), group, folder
        storage = open_storage(folder / "checkpoints")
        self.saver = Saver(Checkpoints(storage, CheckpointConfig(), lambda: None), group)
        self.saver.prepare(self.loop.state())

    def round(self, way: str, num_steps: int) -> dict[str, Any]:
        """Do so many steps; return seconds of all, and of each part of a checkpoint."""
        row: dict[str, Any] = {"way": way, "compare_s": 0.0, "call_s": 0.0, "saved_s": None}
        begun_s = time.perf_counter()
        if way == "compare":
            row["compare_s"] = timed(self.compare)
        if way == "torch":
            row["call_s"] = timed(lambda: save_plainly(self.loop.state(), self.folder / "torch.pt"))
        elif way != "none":
            row["call_s"] = timed(self.begin)
        row["wait_s"] = sum(self.step(row) for _ in range(num_steps))
        row["wall_s"] = time.perf_counter() - begun_s
        assert self.saver.flight is None, "a save takes longer than a round: give a longer period"
        return row

    def compare(self) -> None:
        named = {f"{part}.{name}": tensor for part in PARTS for name, tensor in self.loop.parts[part].items()}
        check_replicas(self.group, named, self.loop.steps)

    def begin(self) -> None:
        assert self.saver.begin(self.loop.steps, self.loop.state(), {}, later=PARTS)

    def step(self, row: dict[str, Any]) -> float:
        """Return the seconds for which it waited for copies."""
        waited_s = self.loop.step(lambda: self.saver.wait_for(PARTS))
        verdict = self.saver.advance(self.group.any(self.saver.flags()))
        if verdict:
            assert "error" not in verdict, verdict
            row["saved_s"] = verdict["seconds"]
        return waited_s

    def num_steps(self, period_s: float) -> int:
        """Return the number of steps next to the period, alike on all ranks."""
        seconds = timed(lambda: [self.step({}) for _ in range(CALIBRATION)])
        return int(self.group.broadcast(max(CALIBRATION, round(period_s * CALIBRATION / seconds))))


def timed(act: Callable[[], Any]) -> float:
    begun_s = time.perf_counter()
    act()
    return time.perf_counter() - begun_s


def main(folder: Path, rank: int, world: int, order: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    group = meet(folder, rank, world, host="here")
    training = Training(folder, group, order["megabytes"])
    training.num_steps(order["period_s"])
    num_steps = training.num_steps(order["period_s"])
    for way in ("save", "compare"):  # buffers are touched, processes started
        training.round(way, num_steps)
    rows = [training.round(way, num_steps) for way in order["ways"]]
    if rank == 0:
        print(json.dumps({"num_steps": num_steps, "rounds": rows}))
    training.saver.close()
    group.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))

"""The newest checkpoint of which all workers are known to have agreed stays until a newer one is known to be so."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import Cause, CheckpointConfig, Position
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.dist.replicas import check_replicas
from get3d_cluster.errors import HeldError
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from tests.sessions import session_of
from tests.workers_in_memory import on_all

CONFIG = CheckpointConfig(keep_last=2, every_s=0, every_steps=2, background_mb=0)


def a_state(step: int) -> dict[str, Any]:
    return {"net": torch.full((100,), float(step))}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(open_storage(tmp_path / "checkpoints"), CONFIG, lambda: None)


@pytest.fixture
def saver(checkpoints: Checkpoints) -> Iterator[Saver]:
    saver = Saver(checkpoints, SoloGroup())
    yield saver
    saver.close()


def steps(folder: Path) -> list[int]:
    return [info.step for info in list_checkpoints(RunFolder(folder), verify=True)]


@pytest.mark.parametrize("how", ["here", "by the writer"])
def test_what_was_saved_when_all_agreed_outlives_the_newer_ones(
    checkpoints: Checkpoints, saver: Saver, tmp_path: Path, how: str
) -> None:
    def save(step: int, agreed: int | None) -> None:
        if how == "here":
            checkpoints.save(step, a_state(step), {}, agreed)
        else:
            assert saver.begin(step, a_state(step), {}, agreed_step=agreed)
            assert saver.finish()["step"] == step

    for step in (2, 4, 6, 8, 10):
        save(step, 5)
    assert steps(tmp_path) == [4, 8, 10]
    save(12, 9)
    assert steps(tmp_path) == [8, 10, 12]
    save(14, 13)
    assert steps(tmp_path) == [12, 14]
    save(16, None)
    assert steps(tmp_path) == [14, 16]


class Drifting:
    """Work whose copies are compared every fifth step; that of rank 1 goes wrong in step 7."""

    def __init__(self, group: Any) -> None:
        self.group, self.done, self.agreed = group, 0, 0
        self.net = torch.zeros(100)

    def position(self) -> Position:
        return Position(step=self.done, num_steps=20)

    def is_done(self) -> bool:
        return self.done >= 20

    def step(self) -> None:
        self.done += 1
        self.net += 1
        if (self.done, self.group.rank) == (7, 1):
            self.net[3] = 0.5
        if self.done % 5 == 0:
            check_replicas(self.group, {"net": self.net}, self.done, self.agreed)
            self.agreed = self.done

    def agreed_step(self) -> int:
        return self.agreed

    def state(self) -> dict[str, Any]:
        return {"net": self.net, "done": self.done}

    def load(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def test_workers_that_drift_apart_stop_and_the_checkpoint_of_before_is_there(tmp_path: Path) -> None:
    run = session_of(tmp_path).run

    def work(group: Any) -> str:
        session = session_of(tmp_path, group)
        config = replace(CONFIG, background_mb=4.0)  # written between two steps
        checkpoints = Checkpoints(open_storage(run.checkpoints_dir), config, lambda: None)
        reason = StopReason(cause=Cause.PREEMPTED, grace_s=None)
        with pytest.raises(HeldError) as caught:
            run_steps(Drifting(group), session, checkpoints, config, lambda: reason)
        return caught.value.what

    words, _ = on_all(3, work)
    assert all("rank 1 has other bits" in what and "all were equal at step 5" in what for what in words)
    assert steps(tmp_path) == [4, 6, 8], "4 is the last one of which all are known to have agreed"
    loaded = Checkpoints(open_storage(run.checkpoints_dir), CONFIG, lambda: None).read_step(4)
    assert torch.equal(loaded.state["net"], torch.full((100,), 4.0))

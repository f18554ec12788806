"""More than one place for checkpoints: which one is taken, and what happens when one of them fails."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import Cause, CheckpointConfig, JobSpec, Position
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.errors import CheckpointError
from get3d_cluster.runtime.checkpoint import Checkpoints, more_tiers
from get3d_cluster.runtime.checkpoint_copies import Copied, Copies
from get3d_cluster.runtime.checkpoint_files import names_in
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.ending import End
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.session import Session
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from tests.sessions import session_of

SPEC = JobSpec(name="a", job="train", kind="steps", created="2026-01-01T00:00:00")


def a_state(step: int) -> dict[str, Any]:
    return {"net": {"w": torch.full((64,), float(step))}, "counters": {"step": step}}


def config_of(folder: Path, **values: Any) -> CheckpointConfig:
    tiers = {"local": str(folder / "fast"), "local_every_steps": 2, "url": f"file://{folder / 'far'}"}
    return CheckpointConfig(**{"background_mb": 0.0, "every_s": 0.0, "every_steps": 5, **tiers, **values})


def checkpoints_of(folder: Path, **values: Any) -> Checkpoints:
    config = config_of(folder, **values)
    return Checkpoints(
        open_storage(folder / "checkpoints"), config, lambda: None, more_tiers(config, SPEC, 1)
    )


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    saver = Saver(checkpoints_of(tmp_path), SoloGroup())
    yield saver
    saver.close()


def save(saver: Saver, step: int, tier: str, *, attempt: int = 1) -> dict[str, Any]:
    assert saver.begin(step, a_state(step), {"attempt": attempt}, tier=tier)
    return saver.finish()


def save_and_copy(saver: Saver, step: int) -> tuple[dict[str, Any], Copied]:
    verdict, copies = save(saver, step, "run"), Copies(saver._checkpoints, SoloGroup())
    copies.offer(step)
    copies.wait(60)
    copies.close()
    (copied,) = copies.news()
    return verdict, copied


def steps(checkpoints: Checkpoints, tier: str) -> list[int]:
    return [int(name[5:]) for name in names_in(checkpoints.tiers[tier])]


def test_each_tier_gets_what_it_is_told_and_keeps_its_own_number(saver: Saver, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(saver, step, "local")
    save_and_copy(saver, 4)
    checkpoints = checkpoints_of(tmp_path)
    assert {tier: steps(checkpoints, tier) for tier in checkpoints.tiers} == {
        "run": [4],
        "local": [2, 3],
        "url": [4],
    }


def test_the_newest_of_all_tiers_is_taken_and_of_equal_ones_the_nearest(saver: Saver, tmp_path: Path) -> None:
    save_and_copy(saver, 1)
    save(saver, 3, "local")
    loaded = checkpoints_of(tmp_path).load()
    assert (loaded.step, loaded.tier) == (3, "local")
    save_and_copy(saver, 5)
    assert (checkpoints_of(tmp_path).load().step, checkpoints_of(tmp_path).load().tier) == (5, "run")
    save(saver, 5, "local")
    assert checkpoints_of(tmp_path).load().tier == "local"


def test_a_later_attempt_wins_over_more_steps_of_an_earlier_one(saver: Saver, tmp_path: Path) -> None:
    save(saver, 9, "local", attempt=1)  # left on a node that the run then lost
    save(saver, 6, "run", attempt=2)
    assert checkpoints_of(tmp_path).load().step == 6


def test_a_damaged_newest_tier_is_set_aside_and_the_next_one_taken(saver: Saver, tmp_path: Path) -> None:
    save(saver, 1, "url")
    save(saver, 2, "run")
    save(saver, 3, "local")
    for tier, step in (("local", 3), ("run", 2)):
        root = saver._checkpoints.tiers[tier].root
        path = root / f"step-{step:09d}" / "net.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    loaded = checkpoints_of(tmp_path).load()
    assert (loaded.step, loaded.tier) == (1, "url")
    assert len(loaded.damaged) == 2
    assert all("set aside as" in told for told in loaded.damaged)


def test_half_an_upload_is_no_checkpoint_and_is_removed(saver: Saver, tmp_path: Path) -> None:
    save_and_copy(saver, 1)
    far = next((tmp_path / "far").iterdir())
    half = far / "step-000000002"
    half.mkdir()
    (half / "0badcafe-net.safetensors").write_bytes(b"half")
    checkpoints = checkpoints_of(tmp_path)
    assert steps(checkpoints, "url") == [1]
    assert checkpoints.load().step == 1
    assert not list(half.glob("*"))


def test_two_attempts_that_upload_one_step_do_not_mix(tmp_path: Path) -> None:
    from get3d_cluster.errors import StorageError
    from get3d_cluster.storage.staging import stage

    url = f"memory://{tmp_path.name}"
    old, new = stage(url, "step-000000001", "aaaa"), stage(url, "step-000000001", "bbbb")
    old.write("x", b"old")
    new.write("x", b"new")
    new.publish(b"{}")
    with pytest.raises(StorageError, match="exists already"):
        old.publish(b"{}")
    old.abandon()
    storage = open_storage(url)
    assert storage.list() == ["step-000000001"]
    assert bytes(storage.read("step-000000001", "bbbb-x")) == b"new"


def test_a_far_tier_out_of_reach_costs_only_its_copy(saver: Saver, tmp_path: Path) -> None:
    (tmp_path / "far").write_text("in the way")
    verdict, copied = save_and_copy(saver, 1)
    assert verdict["step"] == 1
    assert "far" in copied.problem
    assert steps(checkpoints_of(tmp_path), "run") == [1]


def test_nothing_is_started_over_while_a_tier_that_may_hold_the_run_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = checkpoints_of(tmp_path)
    far = checkpoints.tiers["url"]
    monkeypatch.setattr(far, "list", lambda: (_ for _ in ()).throw(TimeoutError("no route")))
    with pytest.raises(CheckpointError, match="no route"):
        checkpoints.load()


def test_the_near_tier_is_for_one_node_only(tmp_path: Path) -> None:
    assert set(more_tiers(config_of(tmp_path), SPEC, 2)) == {"url"}
    with pytest.raises(ValueError, match="local_every_steps"):
        CheckpointConfig(local="/dev/shm")
    with pytest.raises(ValueError, match="URL"):
        CheckpointConfig(url="/a/folder")


class Counting:
    """Work of twenty steps that may be killed in one of them."""

    def __init__(self, session: Session, told_at: int) -> None:
        self.session, self.told_at, self.done = session, told_at, 0
        self.net = torch.zeros(64)

    def position(self) -> Position:
        return Position(step=self.done, num_steps=20)

    def is_done(self) -> bool:
        return self.done >= 20

    def step(self) -> None:
        time.sleep(0.05)
        self.done += 1
        self.net += 1
        if self.done == self.told_at:
            near = self.session.run.path / "fast"
            while not list(near.glob("*/step-*")):  # the first one may still be on its way
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    def state(self) -> dict[str, Any]:
        return {"net": self.net, "counters": {"done": self.done}}

    def load(self, state: dict[str, Any]) -> None:
        self.net.copy_(state["net"])
        self.done = state["counters"]["done"]


def go(folder: Path, told_at: int) -> Any:
    session, checkpoints = session_of(folder), checkpoints_of(folder)
    reason = StopReason(cause=Cause.PREEMPTED, grace_s=None)
    return run_steps(Counting(session, told_at), session, checkpoints, checkpoints.config, lambda: reason)


def test_a_killed_run_comes_back_from_the_near_tier_and_all_tiers_end_alike(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_spec(SPEC)
    child = os.fork()
    if child == 0:
        try:
            go(tmp_path, 14)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    checkpoints = checkpoints_of(tmp_path)
    newest = max(max(steps(checkpoints, "local")), max(steps(checkpoints, "run"), default=0))
    ended = go(tmp_path, 0)
    assert (ended.end, ended.saved_step) == (End.FINISHED, 20)
    assert ended.start_step == newest > 0
    rows = read_rows(RunFolder(tmp_path).events_path)
    assert {row["step"] for row in rows if row["event"] == "save-local"}
    assert steps(checkpoints, "run")[-1] == steps(checkpoints, "url")[-1] == 20
    assert torch.equal(checkpoints.load().state["net"], torch.full((64,), 20.0))

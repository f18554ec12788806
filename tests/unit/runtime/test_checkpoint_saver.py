"""Saves by another process while training goes on: what they hold, what they wait for, what is refused."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.errors import FencedError, UsageError
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_link import Link
from get3d_cluster.runtime.checkpoint_memory import SharedMemory
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from tests.saved_states import ALWAYS, a_state, names, save


def test_what_another_process_writes_is_what_this_one_would_have_written(
    saver: Saver, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    state = a_state()
    verdict = save(saver, 3, state)
    loaded = checkpoints.load()
    assert loaded is not None
    assert verdict["digest"] == loaded.digest == state_digest(state) == state_digest(loaded.state)
    assert (loaded.step, loaded.meta["epoch"]) == (3, 3)
    here = Checkpoints(open_storage(tmp_path / "here"), ALWAYS, lambda: None)
    assert here.save(3, state, {}).digest == verdict["digest"]
    assert names(tmp_path / "here" / "step-000000003") == names(tmp_path / "checkpoints" / "step-000000003")
    assert [info.state for info in list_checkpoints(RunFolder(tmp_path), verify=True)] == ["ok"]


def test_the_writer_imports_no_torch(saver: Saver) -> None:
    save(saver, 1, a_state())
    maps = Path(f"/proc/{saver.writer_pid}/maps").read_text()
    assert "torch" not in maps
    assert "numpy" not in maps


def test_what_was_copied_may_change_while_it_is_written(
    saver: Saver, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = a_state()
    digest = state_digest(state)
    held = threading.Event()
    real = Link.send
    monkeypatch.setattr(Link, "send", lambda self, order: (held.wait(), real(self, order))[1])
    assert saver.begin(1, state, {})
    state["net"]["w"].add_(1)
    state["counters"]["step"] = 99
    state["adam"]["groups"][0]["betas"] = (9, 9)
    held.set()
    assert saver.finish()["digest"] == digest
    loaded = checkpoints.load()
    assert loaded is not None
    assert state_digest(loaded.state) == digest


def test_a_part_that_is_announced_is_copied_later_and_waited_for(
    saver: Saver, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = a_state()
    digest = state_digest(state)
    may_copy = threading.Event()
    real = SharedMemory.copy

    def slow(self: SharedMemory, place: int, tensor: torch.Tensor) -> None:
        if tensor.shape == (300, 7):
            may_copy.wait()
        real(self, place, tensor)

    monkeypatch.setattr(SharedMemory, "copy", slow)
    assert saver.begin(1, state, {}, later=["net"])  # returns although net cannot be copied yet
    saver.wait_for(["adam", "alone", "unknown"])
    state["alone"].add_(1)
    begun_s = time.monotonic()
    threading.Timer(0.2, may_copy.set).start()
    saver.wait_for(["net"])
    assert time.monotonic() - begun_s > 0.1
    state["net"]["w"].add_(1)
    assert saver.finish()["digest"] == digest
    saver.wait_for(["net"])  # nothing is in flight


def test_whoever_lost_the_run_while_it_was_written_publishes_nothing(tmp_path: Path) -> None:
    asked = []

    def lost() -> None:
        asked.append(names(tmp_path / "checkpoints"))
        raise FencedError("attempt 4 owns this run", "nothing to do")

    checkpoints = Checkpoints(open_storage(tmp_path / "checkpoints"), ALWAYS, lost)
    saver = Saver(checkpoints, SoloGroup())
    verdict = save(saver, 1, a_state())
    assert (verdict["kind"], verdict["error"]) == ("fenced", "attempt 4 owns this run")
    assert len(asked) == 1
    assert asked[0][0].startswith(".writing-step-000000001-"), "asked when all was written"
    saver.close()
    assert [name for name in names(tmp_path / "checkpoints") if name.startswith("step")] == []


def test_a_storage_that_refuses_is_told_with_its_path_and_leaves_the_older_ones(
    saver: Saver, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    save(saver, 1, a_state())
    (tmp_path / "checkpoints" / ".writing-step-000000002-aa").write_text("")  # in the way of the folder
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(Saver, "_token", lambda _: "aa")
        verdict = save(saver, 2, a_state(2.0))
    assert verdict["kind"] == "storage"
    assert str(tmp_path / "checkpoints") in verdict["error"]
    assert checkpoints.load().step == 1
    assert save(saver, 3, a_state(3.0))["step"] == 3


def test_one_that_reads_back_damaged_deletes_no_older_one(
    saver: Saver, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    for step in (1, 2):
        save(saver, step, a_state(step))
    real = Link.send
    monkey = pytest.MonkeyPatch()

    def send(link: Link, order: dict[str, Any]) -> None:
        if order.get("do") == "publish":
            for path in (tmp_path / "checkpoints").glob(".writing-*/net.safetensors"):
                path.write_bytes(path.read_bytes()[:-1] + b"!")
        real(link, order)

    with monkey.context() as patch:
        patch.setattr(Link, "send", send)
        verdict = save(saver, 3, a_state(3.0))
    assert verdict["kind"] == "storage"
    assert "just after it was written" in verdict["error"]
    assert checkpoints.load().step == 2
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 2


def test_a_small_state_is_left_to_the_worker(checkpoints: Checkpoints) -> None:
    small = Checkpoints(checkpoints.tiers["run"], CheckpointConfig(background_mb=1.0), lambda: None)
    saver = Saver(small, SoloGroup())
    assert not saver.begin(1, a_state(), {})
    assert saver.begin(1, {"big": torch.zeros(250_000)}, {})
    assert saver.finish()["step"] == 1
    saver.close()


def test_what_no_checkpoint_holds_is_refused_before_anything_is_copied(saver: Saver) -> None:
    with pytest.raises(UsageError, match="part/x"):
        saver.begin(1, {"part": {"x": {1}}}, {})
    with pytest.raises(UsageError, match="part/x"):
        saver.prepare({"part": {"x": {1}}})
    assert saver.flight is None

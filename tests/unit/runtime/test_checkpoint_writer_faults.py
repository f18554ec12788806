"""The writer killed, torn, without power or refused at every call that it makes to the storage."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_link import Link
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.checkpoint_writer import Memory, Writer
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from tests.fault_points import CHANGES, KILLED, Call, die, fault_points, in_a_child, lose_power, tear

ALWAYS = CheckpointConfig(background_mb=0.0, keep_last=2)
Orders = list[dict[str, Any]]


def a_state(step: int) -> dict[str, Any]:
    return {
        "net": {"w": torch.full((64,), float(step))},
        "adam": {"m": torch.ones(8)},
        "counters": {"step": step},
    }


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    saver = Saver(Checkpoints(open_storage(tmp_path / "checkpoints"), ALWAYS, lambda: None), SoloGroup())
    yield saver
    saver.close()


@pytest.fixture
def orders(saver: Saver, tmp_path: Path) -> Orders:
    """Two checkpoints on the disk, and what a writer is told to do for the third."""
    for step in (1, 2):
        saver.begin(step, a_state(step), {})
        saver.finish()
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "before")
    told: Orders = []
    real = Link.send
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Link, "send", lambda link, order: (told.append(order), real(link, order))[1])
        saver.begin(3, a_state(3), {})
        assert saver.finish()["step"] == 3
    return [order for order in told if "do" in order]


def write(saver: Saver, orders: Orders, folder: Path, meet: Callable[[Call], Any]) -> dict[str, Any]:
    """Carry the orders out below ``folder``, each call by way of ``meet``; return the last answer."""
    assert saver._memory is not None
    answers: list[dict[str, Any]] = []
    writer = Writer(Memory(saver._memory.handle), answers.append, lambda: {"go": True})
    place = {**orders[0]["place"], "at": str(folder)}
    with fault_points(folder, meet):
        for order in orders:
            writer.obey({**order, "place": place})
            if "failed" in answers[-1]:
                break
    return answers[-1]


def calls_of(saver: Saver, orders: Orders, tmp_path: Path) -> list[tuple[int, str]]:
    folder = fresh(tmp_path)
    met: list[tuple[int, str]] = []
    assert "saved" in write(
        saver, orders, folder, lambda call: (met.append((call.number, call.kind)), call.go())[1]
    )
    return met


def fresh(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "before", folder)
    return folder


def newest(folder: Path) -> int:
    """Return the step of the newest checkpoint, after making sure that all that are published are whole."""
    infos = list_checkpoints(RunFolder(folder.parent), verify=True)
    assert [info.problem for info in infos if info.state != "ok"] == []
    loaded = Checkpoints(open_storage(folder), ALWAYS, lambda: None).load()
    assert loaded is not None
    assert state_digest(loaded.state) == state_digest(a_state(loaded.step))
    return loaded.step


@pytest.mark.parametrize("act", [die, tear, lose_power])
def test_ended_at_any_call_it_leaves_the_older_ones_or_the_whole_new_one(
    saver: Saver, orders: Orders, tmp_path: Path, act: Callable[[Call], Any]
) -> None:
    seen = []
    for number, kind in calls_of(saver, orders, tmp_path):
        if kind not in CHANGES:
            continue
        folder = fresh(tmp_path)

        def meet(call: Call, number: int = number) -> Any:
            return act(call) if call.number == number else call.go()

        code = in_a_child(lambda m=meet, f=folder: bool(write(saver, orders, f, m)), tmp_path / "log")
        assert code == KILLED, (tmp_path / "log").read_text()
        seen.append(newest(folder))
        again = [{**order, "again": True} for order in orders]
        assert "saved" in write(saver, again, folder, lambda call: call.go())
        assert newest(folder) == 3
        assert not [path.name for path in folder.iterdir() if path.name.startswith((".writing", ".deleting"))]
    assert len(seen) > 20
    assert set(seen) == {2, 3}
    assert seen == sorted(seen)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_any_error_is_answered_and_costs_no_older_checkpoint(
    saver: Saver, orders: Orders, tmp_path: Path, number: int
) -> None:
    ends = set()
    for at, kind in calls_of(saver, orders, tmp_path):
        folder = fresh(tmp_path)

        def meet(call: Call, at: int = at) -> Any:
            if call.number == at:
                raise OSError(number, os.strerror(number), str(call.path))
            return call.go()

        answer = write(saver, orders, folder, meet)
        ends.add("saved" in answer)
        assert "saved" in answer or answer["failed"] == "storage", (kind, answer)
        assert newest(folder) in (2, 3)
        if "saved" in answer:
            assert newest(folder) == 3
    assert ends == {True, False}

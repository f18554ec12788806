"""A busy writer of checkpoints is killed again and again: no checkpoint that was acknowledged is ever lost."""

import itertools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.runtime.checkpoint import CheckpointInfo, Checkpoints, list_checkpoints, state_digest
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage

CONFIG = CheckpointConfig(background_mb=0.0, keep_last=2)
SIZE = 500_000


def a_state(step: int) -> dict[str, Any]:
    return {
        "net": {"w": torch.full((SIZE,), float(step)), "b": torch.full((SIZE,), -float(step))},
        "adam": {"m": torch.full((SIZE,), step + 0.5)},
        "counters": {"step": step},
    }


def checkpoints_of(folder: Path) -> Checkpoints:
    return Checkpoints(open_storage(folder / "checkpoints"), CONFIG, lambda: None)


def save_for_ever(folder: Path, told: Path) -> None:
    """Go on from the newest checkpoint; append each step to ``told`` once it was acknowledged."""
    checkpoints = checkpoints_of(folder)
    newest = checkpoints.load()
    saver = Saver(checkpoints, SoloGroup())
    with told.open("a", buffering=1) as file:
        for step in itertools.count(newest.step + 1 if newest else 1):
            assert saver.begin(step, a_state(step), {})
            file.write(f"pid {saver.writer_pid or 0}\n")
            verdict = saver.finish()
            assert verdict["digest"] == state_digest(a_state(step)), verdict
            file.write(f"saved {step}\n")


def started(folder: Path, told: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # a pool of threads does not survive a fork
            save_for_ever(folder, told)
        except BaseException:
            import traceback

            told.with_name("error").write_text(traceback.format_exc())
        os._exit(1)
    return child


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def said(told: Path, what: str) -> list[int]:
    """Return the numbers of the whole lines that begin with ``what``."""
    lines = told.read_text().split("\n")[:-1] if told.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(what)]


def wait_for_saves(told: Path, count: int) -> None:
    end_s = time.monotonic() + 60
    while len(said(told, "saved")) < count:
        assert time.monotonic() < end_s, "no save in a minute"
        time.sleep(0.005)


def writer_of(told: Path) -> int:
    """Return the writer's process id; it has none yet when the first save of a child is begun."""
    end_s = time.monotonic() + 60
    while not (pid := said(told, "pid")[-1]):
        assert time.monotonic() < end_s, "no second save in a minute"
        time.sleep(0.005)
    return pid


def kill_one(folder: Path, told: Path, *, writer_first: bool) -> int:
    """Start one, let it save, and kill it; return how many of its writers were killed before."""
    before, killed = len(said(told, "saved")), 0
    child = started(folder, told)
    try:
        wait_for_saves(told, before + 1)
        if writer_first and (
            pid := writer_of(told)
        ):  # in the middle of whatever: another one repeats the save
            time.sleep(random.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            killed = 1
            wait_for_saves(told, len(said(told, "saved")) + 2)
        time.sleep(random.uniform(0, 0.1))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return killed


def settled(run: RunFolder) -> list[CheckpointInfo]:
    """Return the checkpoints; the writer of a killed worker may be about to delete one while they are listed."""
    end_s = time.monotonic() + 10
    while any(info.state != "ok" for info in list_checkpoints(run, verify=True)) and time.monotonic() < end_s:
        time.sleep(0.05)
    return list_checkpoints(run, verify=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [10, pytest.param(60, marks=pytest.mark.long)])
def test_killed_at_random_instants_it_loses_nothing_that_was_acknowledged(tmp_path: Path, kills: int) -> None:
    told, torn, writers_killed = tmp_path / "told", 0, 0
    for number in range(kills):
        writers_killed += kill_one(tmp_path, told, writer_first=number % 3 == 0)
        error = told.with_name("error")
        assert not error.exists(), error.read_text()
        names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        torn += any(name.startswith((".writing-", ".deleting-")) for name in names)
        infos = settled(RunFolder(tmp_path))
        assert [info.problem for info in infos if info.state != "ok"] == []
        loaded = checkpoints_of(tmp_path).load()
        assert loaded is not None
        assert loaded.step >= said(told, "saved")[-1]
        assert loaded.damaged == ()
        assert loaded.digest == state_digest(loaded.state) == state_digest(a_state(loaded.step))
        assert len(infos) >= 2 or loaded.step == 1, "the older one stands"
    assert writers_killed > 0
    assert torn > 0, "no kill met a save: this tested nothing"

"""What a checkpoint configuration means for the three lines: tiers, periods by measurement, scalers, environments."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster import checkpoint
from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import StorageError
from get3d_cluster.runtime import fingerprint
from get3d_cluster.runtime.checkpoint import Checkpoints, tiers_for
from get3d_cluster.runtime.checkpoint_link import Link
from get3d_cluster.storage import open_storage


@pytest.fixture(autouse=True)
def no_loop_is_left() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    yield
    checkpoint.finish()
    torch.set_num_threads(before)


def config_of(folder: Path, **values: Any) -> CheckpointConfig:
    tiers = {"local": str(folder / "near"), "local_every_steps": 2, "url": f"file://{folder / 'far'}"}
    return CheckpointConfig(**{"every_s": 0.0, "every_steps": 6, "background_mb": 0.0, **tiers, **values})


def begin(folder: Path, config: CheckpointConfig) -> tuple[torch.nn.Module, int]:
    model = torch.nn.Linear(4, 4)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    _, start, _ = checkpoint.init(model, sgd, path=folder / "state", config=config)
    return model, start


def go(model: torch.nn.Module, start: int, end: int) -> None:
    for step in range(start, end):
        with torch.no_grad():
            model.weight.fill_(step + 1)
        checkpoint.try_save(0, step + 1)
        while checkpoint._loop._saver.flight and not checkpoint._loop._saver.flight.over.is_set():
            time.sleep(0.005)
        checkpoint._loop._copies.wait(60)


def steps_in(folder: Path, config: CheckpointConfig) -> dict[str, list[int]]:
    whole = (folder / "state").absolute()
    tiers = {
        "run": open_storage(whole / "checkpoints"),
        **tiers_for(config, whole.name, str(whole), is_one_node=True),
    }
    return {tier: [int(name[5:]) for name in storage.list()] for tier, storage in tiers.items()}


def killed_at(folder: Path, config: CheckpointConfig, end: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            go(*begin(folder, config), end)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_killed_loop_comes_back_from_the_near_tier_and_copies_lie_far_away(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    killed_at(tmp_path, config, 11)
    found = steps_in(tmp_path, config)
    assert found["run"] == found["url"] == [6]
    newest = max(found["local"])
    assert newest > 6
    model, start = begin(tmp_path, config)
    assert start == newest
    assert torch.equal(model.weight, torch.full((4, 4), float(newest)))
    go(model, start, 14)
    checkpoint.finish()
    assert steps_in(tmp_path, config)["run"][-1] == steps_in(tmp_path, config)["url"][-1] == 14


def code_of(act: Callable[[], None]) -> int:
    """Return the exit code of ``act`` in a child: 5 for a storage that failed, 1 for anything else but leaving."""
    child = os.fork()
    if child == 0:
        try:
            act()
        except SystemExit as left:
            os._exit(int(str(left.code)))
        except StorageError:
            os._exit(5)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("patience_s, copied", [(0.3, [6]), (60.0, [6, 8])])
def test_a_notice_saves_here_and_waits_only_so_long_for_the_copy_far_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float, copied: list[int]
) -> None:
    config = config_of(tmp_path)
    send = Link.send
    monkeypatch.setattr(checkpoint, "COPY_S", patience_s)

    def told() -> None:
        model, start = begin(tmp_path, config)
        go(model, start, 7)
        Link.send = lambda link, order: (time.sleep("to" in order), send(link, order))
        checkpoint._loop._notices.take()
        go(model, 7, 8)

    assert code_of(told) == 75
    found = steps_in(tmp_path, config)
    assert (found["run"], found["url"]) == ([6, 8], copied)


@pytest.mark.parametrize("is_mended, code", [(True, 75), (False, 5)])
def test_an_older_save_that_failed_is_told_and_a_stop_tries_its_own(
    tmp_path: Path, is_mended: bool, code: int
) -> None:
    """Both are heard in one call."""
    config = CheckpointConfig(every_s=0, every_steps=6, background_mb=0.0)
    folder, said = tmp_path / "state" / "checkpoints", tmp_path / "said"

    def stopped() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        model, start = begin(tmp_path, config)
        folder.write_text("in the way")
        go(model, start, 6)  # until its save is over
        if is_mended:
            folder.unlink()
        checkpoint._loop._notices.take()
        go(model, 6, 7)

    assert code_of(stopped) == code
    if is_mended:
        assert str(folder) in said.read_text().partition("suspended after step 7")[0]
        assert steps_in(tmp_path, config) == {"run": [7]}


def test_a_folder_that_is_lost_comes_back_from_its_copies(tmp_path: Path) -> None:
    import shutil

    config = config_of(tmp_path, local="", local_every_steps=0)
    go(*begin(tmp_path, config), 8)
    checkpoint.finish()
    shutil.rmtree(tmp_path / "state")
    model, start = begin(tmp_path, config)
    assert start == 8
    assert torch.equal(model.weight, torch.full((4, 4), 8.0))


def test_a_far_place_out_of_reach_is_told_and_costs_its_copy_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "far").write_text("in the way")
    config = config_of(tmp_path, local="", local_every_steps=0)
    go(*begin(tmp_path, config), 7)
    checkpoint.try_save(0, 8)
    checkpoint.finish()
    assert "no copy of the checkpoint of step 6" in capsys.readouterr().out
    assert steps_in(tmp_path, config)["run"] == [6, 8]


def test_kills_are_counted_and_ordinary_ends_are_not(tmp_path: Path) -> None:
    config = CheckpointConfig(every_s=0, every_steps=2, auto=True)

    def known() -> int:
        return int(checkpoint._loop._history["interruptions"])

    go(*begin(tmp_path, config), 3)
    assert known() == 0
    checkpoint.finish()
    killed_at(tmp_path, config, 6)
    killed_at(tmp_path, config, 9)
    model, start = begin(tmp_path, config)
    assert known() == 2
    assert checkpoint._loop._history["active_s"] > 0
    go(model, start, start + 3)
    period_s = checkpoint._loop._cadence.period_s(10 * 3600.0)
    assert 30.0 <= period_s < 1800.0, "found by what the save took"
    checkpoint.finish()
    begin(tmp_path, config)
    assert known() == 2


def test_another_environment_is_told_and_kept_in_the_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CheckpointConfig(every_s=0, every_steps=2)
    go(*begin(tmp_path, config), 3)
    checkpoint.finish()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    go(*begin(tmp_path, config), 6)
    assert "not bitwise from step 3 on: ONEDNN_MAX_CPU_ISA unset -> AVX2" in capsys.readouterr().out
    checkpoint.finish()
    begin(tmp_path, config)
    assert "bitwise" not in capsys.readouterr().out, "told once"
    loaded = Checkpoints(open_storage(tmp_path / "state" / "checkpoints"), config, lambda: None).load()
    assert loaded is not None
    assert [row["step"] for row in loaded.meta["not_bitwise"]] == [3]
    assert set(loaded.meta["on"]) >= set(fingerprint.numeric_fingerprint())


def test_torch_s_own_scaler_and_scheduler_come_back(tmp_path: Path) -> None:
    def parts() -> tuple[Any, ...]:
        model = torch.nn.Linear(3, 1)
        adam = torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
        rates = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(adam, 3)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        start = checkpoint.init(model, adam, rates, scaler, path=tmp_path)[1]
        return model, adam, rates, scaler, start

    def step(model: Any, adam: Any, rates: Any, scaler: Any) -> None:
        adam.zero_grad()
        scaler.scale(model(torch.ones(2, 3)).square().sum()).backward()
        scaler.step(adam)
        scaler.update()
        rates.step()

    *first, start = parts()
    assert start == 0
    for number in range(3):
        step(*first)
        checkpoint.try_save(0, number + 1)
    checkpoint.finish()
    *again, start = parts()
    assert start == 3
    for group in (first, again):
        step(*group)
        step(*group)
    assert torch.equal(again[0].weight, first[0].weight)
    assert again[2].state_dict() == first[2].state_dict()
    assert again[3].state_dict() == first[3].state_dict()
    assert again[3].get_scale() > 8.0


def test_a_damaged_newest_is_passed_over(tmp_path: Path) -> None:
    config = CheckpointConfig(every_s=0, every_steps=2)
    go(*begin(tmp_path, config), 5)
    checkpoint.finish()
    newest = sorted((tmp_path / "state" / "checkpoints").glob("step-*"))[-1]
    path = newest / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    _, start = begin(tmp_path, config)
    assert start == 4
    assert not newest.exists()

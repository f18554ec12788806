"""The trainer of GET3D saves while it trains: each copy is the state between two steps, however long it takes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import Cause, CheckpointConfig
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.checkpoint_flight import Flight
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from get3d_cluster.train.trainer import Get3dTrainer
from jobs.train import make
from tests import train_setup as setup
from tests.launching import wait_until
from tests.sessions import session_of

REASON = StopReason(cause=Cause.PREEMPTED, grace_s=None)
NUM_STEPS = 6


def digests(folder: Path, config: Any, checkpoint: CheckpointConfig) -> dict[int, str]:
    """Train, and return the digest of each step that was saved."""
    session = session_of(folder)
    checkpoints = Checkpoints(open_storage(session.run.checkpoints_dir), checkpoint, lambda: None)
    run_steps(make(config, session), session, checkpoints, checkpoint, lambda: REASON)
    rows = read_rows(RunFolder(folder).events_path)
    return {row["step"]: row["digest"] for row in rows if row["event"] == "save"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    data = setup.dataset(tmp_path_factory.mktemp("data") / "packed")
    return setup.tiny_config(
        data, f"num_images={8 * NUM_STEPS}", "loss.r1_interval=2", "optim.generator_interval=2"
    )


@pytest.fixture(scope="module")
def by_the_worker(config: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Digest of each step, saved while nothing else happens."""
    every_step = CheckpointConfig(every_steps=1, background_mb=1e6)
    found = digests(tmp_path_factory.mktemp("here") / "run", config, every_step)
    assert sorted(found) == list(range(1, NUM_STEPS + 1))
    return found


def slow_copies(patch: pytest.MonkeyPatch, seconds: float) -> list[str]:
    """Let copies go on far into the next step; return the names of parts in the order of their copies."""
    real, order = Flight._copy_part, []

    def slow(self: Flight, part: str) -> None:
        order.append(part)
        time.sleep(seconds)
        real(self, part)

    patch.setattr(Flight, "_copy_part", slow)
    return order


def saved_while_training(
    folder: Path, config: Any, tamper: Callable[[pytest.MonkeyPatch], None] = lambda _: None
) -> dict[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        order = slow_copies(patch, 0.05)
        tamper(patch)
        found = digests(folder, config, CheckpointConfig(every_steps=1, background_mb=0))
    assert order[:5] == [
        "generator", "adam_generator", "discriminator", "adam_discriminator", "generator_ema",
    ]  # fmt: skip
    return found


def test_what_is_copied_while_the_next_step_runs_is_the_step_before(
    config: Any, by_the_worker: dict[int, str], tmp_path: Path
) -> None:
    found = saved_while_training(tmp_path / "run", config)
    assert len(found) >= 2
    assert found == {step: by_the_worker[step] for step in found}
    assert found[NUM_STEPS] == by_the_worker[NUM_STEPS], "and training itself saw nothing of it"


def test_without_the_trainers_announcements_copies_are_torn(
    config: Any, by_the_worker: dict[int, str], tmp_path: Path
) -> None:
    def wait_for_nothing(patch: pytest.MonkeyPatch) -> None:
        copy, step, ended = Flight._copy_part, Get3dTrainer.step, []

        def counted(self: Get3dTrainer) -> None:
            step(self)
            ended.append(self)

        def late(self: Flight, part: str) -> None:
            now = len(ended)
            wait_until(lambda: len(ended) > now or part != "generator" or now == NUM_STEPS)
            copy(self, part)

        patch.setattr(Get3dTrainer, "step", counted)
        patch.setattr(Flight, "_copy_part", late)
        patch.setattr(Flight, "wait_for", lambda *_: None)

    found = saved_while_training(tmp_path / "run", config, wait_for_nothing)
    torn = [step for step in found if found[step] != by_the_worker[step]]
    assert torn, "this test would see a missing announcement"
    assert found[NUM_STEPS] == by_the_worker[NUM_STEPS]

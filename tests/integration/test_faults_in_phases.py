"""A notice inside each phase of a training step, and while images are shown: always obeyed after the whole step."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.core.job import Cause, CheckpointConfig
from get3d_cluster.runtime.checkpoint import Checkpoints, state_digest
from get3d_cluster.runtime.ending import End
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from jobs.train import make
from tests import train_setup as setup
from tests.sessions import session_of

PHASES = (
    "_watch",
    "_generator_phase",
    "_discriminator_phase",
    "_r1_phase",
    "_zero_step",
    "_average",
    "_count",
)
NO_HURRY = StopReason(cause=Cause.PREEMPTED, grace_s=None)


def checkpoints_of(run: RunFolder) -> Checkpoints:
    return Checkpoints(open_storage(run.checkpoints_dir), CheckpointConfig(), lambda: None)


def go(folder: Path, config: Any, phase: str = "") -> Any:
    """Run one attempt, with a real notice at the end of ``phase`` of the first step that has it."""
    session = session_of(folder)
    work = make(config, session)
    if phase:
        real = getattr(work, phase)

        def told(*args: Any) -> Any:
            result = real(*args)
            if not session.notices.requested:
                os.kill(os.getpid(), signal.SIGTERM)
                while not session.notices.requested:
                    time.sleep(0.001)
            return result

        setattr(work, phase, told)
    session.notices.install()
    try:
        return run_steps(work, session, checkpoints_of(session.run), CheckpointConfig(), lambda: NO_HURRY)
    finally:
        session.notices.uninstall()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    data = setup.dataset(tmp_path_factory.mktemp("data") / "packed")
    shown = (
        "watch.preview_every_s=0.001",
        "watch.preview_shapes=1",
        "watch.measure_every_s=0.001",
        "watch.measure_images=4",
    )
    return setup.tiny_config(data, "num_images=32", *shown)


@pytest.fixture(scope="module")
def uninterrupted(config: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    ended = go(tmp_path_factory.mktemp("straight") / "run", config)
    assert ended.end is End.FINISHED
    assert ended.step == 4
    return ended.digest


@pytest.mark.parametrize("phase", PHASES)
def test_a_notice_inside_a_phase_is_obeyed_after_the_whole_step(
    config: Any, uninterrupted: str, tmp_path: Path, phase: str
) -> None:
    first = go(tmp_path / "run", config, phase)
    assert (first.end, first.saved_step) == (End.SUSPENDED, first.step)
    assert first.step == 1
    loaded = checkpoints_of(RunFolder(tmp_path / "run")).load()
    assert loaded is not None
    assert state_digest(loaded.state) == first.digest
    assert go(tmp_path / "run", config).digest == uninterrupted

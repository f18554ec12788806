"""Checkpoints in a folder of their own, and what saves to them beside the training."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.storage import open_storage
from tests.saved_states import ALWAYS


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(open_storage(tmp_path / "checkpoints"), ALWAYS, lambda: None)


@pytest.fixture
def saver(checkpoints: Checkpoints) -> Iterator[Saver]:
    saver = Saver(checkpoints, SoloGroup())
    yield saver
    saver.close()

"""A training that comes back with networks of other sizes is refused by the names of tensors, and loses nothing."""

from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.core.job import Cause, CheckpointConfig
from get3d_cluster.errors import ExitCode, UsageError
from get3d_cluster.runtime.checkpoint import Checkpoints, list_checkpoints
from get3d_cluster.runtime.ending import End
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from tests import train_setup as setup
from tests.sessions import session_of


def go(folder: Path, data: Path, *overrides: str) -> Any:
    work = setup.trainer(setup.tiny_config(data, "batch.num_shards=1", "num_images=4", *overrides), folder)
    storage = open_storage(work._session.run.checkpoints_dir)
    config = CheckpointConfig(every_s=0)
    checkpoints = Checkpoints(storage, config, lambda: None)
    reason = StopReason(cause=Cause.PREEMPTED, grace_s=None)
    return run_steps(work, work._session, checkpoints, config, lambda: reason)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("generator.fields.hidden_channels=12", ("generator/", "[8", "[12")),
        ("discriminator.camera_channels=6", ("discriminator/", "[8", "[6")),
        ("generator.mapping.num_layers=3", ("generator/", "is absent, wanted is")),
        ("generator.mapping.num_layers=1", ("generator/", "wanted is absent")),
    ],
)
def test_the_tensors_and_both_shapes_are_named(tmp_path: Path, override: str, named: tuple[str, ...]) -> None:
    data = setup.dataset(tmp_path / "data")
    assert go(tmp_path / "run", data).end is End.FINISHED
    with pytest.raises(UsageError) as caught:
        go(tmp_path / "run", data, "num_images=8", override)
    assert caught.value.exit_code is ExitCode.USAGE
    assert all(text in caught.value.what for text in named), caught.value.what
    run = session_of(tmp_path / "run").run
    assert [(info.step, info.state) for info in list_checkpoints(run, verify=True)] == [(2, "ok")]
    assert go(tmp_path / "run", data, "num_images=8").step == 4

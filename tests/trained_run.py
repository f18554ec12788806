"""A training run with two checkpoints, small enough to be measured in tests, and models to compare it with."""

from pathlib import Path

import trimesh

from get3d_cluster import config as configuration
from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from tests import train_setup as setup


def trained(folder: Path) -> RunFolder:
    """Return a training run with the checkpoints of steps 1 and 2."""
    data = setup.dataset(folder / "data")
    config = setup.tiny_config(data, "generator.grid.close_boundary=true")
    run = RunFolder(folder / "training")
    work = setup.trainer(config, run.path)
    run.config_path.write_text(configuration.save_text(config))
    run.write_spec(JobSpec(name="training", job="train", kind="steps", created="2026-01-01T00:00:00"))
    checkpoints = Checkpoints(open_storage(run.checkpoints_dir), CheckpointConfig(), lambda: None)
    for step in (1, 2):
        work.step()
        checkpoints.save(step, work.state(), {"epoch": 0, "images": 8 * step})
    return run


def models(folder: Path) -> Path:
    """Write two boxes."""
    for name, sides in (("a", [1, 0.5, 0.5]), ("b", [0.4, 1, 0.4])):
        (folder / name).mkdir(parents=True)
        trimesh.creation.box(sides).export(folder / name / "model.obj")
    return folder

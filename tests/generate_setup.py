"""A training run so small that its shapes take milliseconds: for tests of the job that generates them."""

from pathlib import Path

from get3d_cluster import config as configuration
from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from tests import train_setup as setup


def trained(folder: Path, *overrides: str, synsets: tuple[str, ...] = ("02958343",)) -> RunFolder:
    """Return a training run with the checkpoints of steps 1 and 2."""
    data = setup.dataset(folder / "data", synsets=synsets)
    config = setup.tiny_config(data, "generator.grid.close_boundary=true", *overrides)
    work = setup.trainer(config, folder / "training")
    run = RunFolder(folder / "training")
    run.config_path.write_text(configuration.save_text(config))
    run.write_spec(JobSpec(name="training", job="train", kind="steps", created="2026-01-01T00:00:00"))
    checkpoints = Checkpoints(open_storage(run.checkpoints_dir), CheckpointConfig(), lambda: None)
    for step in (1, 2):
        work.step()
        checkpoints.save(step, work.state(), {"epoch": 0, "images": 8 * step})
    return run

"""A training run so small that its shapes take milliseconds: for tests of the job that generates them."""

import json
from pathlib import Path
from typing import Any

from get3d_cluster import config as configuration
from get3d_cluster.core.job import CheckpointConfig, JobSpec
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.ending import End
from get3d_cluster.runtime.items import run_items
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage import open_storage
from jobs import generate
from tests import train_setup as setup
from tests.sessions import session_of

SMALL = (
    "num_shapes=3",
    "texture_px=32",
    "view_px=16",
    "turntable_every=2",
    "turntable_frames=3",
    "mp4=off",
    "w_avg_samples=50",
)


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


def generated(run: RunFolder, folder: Path, *overrides: str) -> tuple[Path, Any]:
    """Return the folder of the meshes that the job generates from ``run``, and its index."""
    out = folder / "meshes"
    config = configuration.load(generate.Config, None, [*SMALL, f"run={run.path}", f"out={out}", *overrides])
    session = session_of(folder / "generate")
    ended = run_items(generate.make(config, session), session)
    assert ended.end is End.FINISHED
    return out, json.loads((out / "index.json").read_text())

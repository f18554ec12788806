"""Weights of the published networks: files in, as a run that ``generate`` and ``train init_from=`` read; and out."""

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from get3d_cluster.config import read_run_config
from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.errors import CheckpointError, UsageError
from get3d_cluster.get3d.config import ModelConfig
from get3d_cluster.runtime.checkpoint import Checkpoints, DamagedError
from get3d_cluster.runtime.run_folder import RunFolder, write_json
from get3d_cluster.storage import open_storage
from get3d_cluster.storage.local import write_atomic
from jobs import train

if TYPE_CHECKING:
    from get3d_cluster.train.foreign import Reading

PRESETS = {f"shapenet_{name}": name for name in ("car", "chair", "motorbike", "table")}
"""Configurations that fit the published files, by the names of those."""
SETTINGS = ("generator.trunk.clamp=256", "discriminator.clamp=256")
"""What the published commands set (--fp32=0) beyond the presets."""
LICENCE = "if these are NVIDIA's published weights, CC BY-NC-SA 4.0 goes with this run and what is made of it"
ABOUT = "imported.json"


def read(file: Path, config: train.Config, names: Path | None) -> "Reading":
    """Return the tensors of a file, matched with those that ``config`` describes. Raises: UsageError."""
    from get3d_cluster.train import foreign

    return foreign.read(file, _model(config), foreign.read_names(names))


def keep(reading: "Reading", run: RunFolder) -> None:
    """Write the weights as the only checkpoint of a new run, which is DONE. Raises: UsageError, StorageError."""
    reading.refuse_troubles()
    storage = open_storage(run.checkpoints_dir)
    saved = Checkpoints(storage, CheckpointConfig(), lambda: None).save(
        0, reading.state, {"epoch": 0, "images": 0}
    )
    now_s = time.time()
    unused = [f"{line.network}.{line.theirs}" for line in reading.lines if line.kind == "unused"]
    about = {"file": str(reading.path.absolute()), "digest": saved.digest, "t": now_s, "unused": unused}
    write_json(run.path / ABOUT, about | {"licence": LICENCE})
    write_json(run.done_path, {"step": 0, "digest": saved.digest, "attempt": 0, "t": now_s})


def export(run: RunFolder, file: Path, step: int | None, names: Path | None) -> Sequence[str]:
    """Write the networks of a checkpoint under the names of the published files; return what was written, in words.

    Raises: UsageError, CheckpointError, StorageError.
    """
    from get3d_cluster.train import foreign
    from get3d_cluster.train.first_weights import newest, read_only

    if run.spec().job != "train":
        raise UsageError(
            f"{run.name} is a {run.spec().job} run", "give a run of the job train, or imported weights"
        )
    source = newest(run, step)
    try:
        loaded = read_only(run).read_step(source.step)
    except DamagedError as error:
        raise CheckpointError(
            f"step {source.step} of {run.name} cannot be read: {error}", "take another --step"
        ) from error
    model = _model(read_run_config(train.Config, run.config_path))
    networks = foreign.as_published(loaded.state, model, foreign.read_names(names))
    write_atomic(file, _packed(networks, file.suffix))
    counts = (f"{key} {len(tensors)} tensors" for key, tensors in networks.items())
    return [f"step {source.step} of {run.name}: {', '.join(counts)}", f"wrote {file}"]


def _packed(networks: dict[str, dict[str, Any]], suffix: str) -> bytes:
    import torch
    from safetensors.torch import save

    if suffix == ".safetensors":
        return save(
            {f"{key}.{name}": tensor for key, table in networks.items() for name, tensor in table.items()}
        )
    out = io.BytesIO()
    torch.save(networks, out)
    return out.getvalue()


def _model(config: train.Config) -> ModelConfig:
    return ModelConfig(generator=config.generator, discriminator=config.discriminator)

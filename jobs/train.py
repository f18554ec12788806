"""Train GET3D on a packed dataset, on any number of workers, which may come and go at any time."""

from dataclasses import dataclass, field
from types import ModuleType

from get3d_cluster.core.job import CheckpointConfig, Resources, RetryConfig
from get3d_cluster.errors import UsageError
from get3d_cluster.runtime.session import Session, Work
from get3d_cluster.train.config import TrainerConfig

KIND = "steps"


@dataclass(frozen=True, kw_only=True)
class Config(TrainerConfig):
    """Train GET3D."""

    resources: Resources = field(default_factory=Resources)
    """What one attempt asks of the scheduler; any number of workers up to batch.num_shards gives the same bits."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When state is saved and what is kept."""
    retry: RetryConfig = field(default_factory=RetryConfig)
    """How often the run comes back by itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resources.num_workers > most_workers(self):
            raise UsageError(
                f"{self.resources.num_workers} workers cannot share batch.num_shards={self.batch.num_shards}",
                f"use up to {self.batch.num_shards} workers, or start a new run with more shards",
            )


def most_workers(config: Config) -> int:
    """Return the largest number of workers that a run can use."""
    return config.batch.num_shards


def make(config: Config, session: Session) -> Work:
    """Build the training of one worker. Raises: UsageError if the dataset cannot be used."""
    import torch

    from get3d_cluster.data.dataset import ImageDataset
    from get3d_cluster.train.trainer import Get3dTrainer
    from jobs._watches import mirrors, watches

    torch.set_num_threads(session.resources.cpus_per_worker)
    data, size = config.data, config.generator.render.image_size_px
    dataset = ImageDataset(data.path, size, data.mask, data.read, session.device)
    shown = watches(config, session, dataset, dataset.samples) if session.rank == 0 else []
    return Get3dTrainer(config, session, dataset, shown, mirrors(config, session))


def foreign() -> ModuleType:
    """Return what imports and exports weights under the names of other programs."""
    from jobs import _weights

    return _weights

"""Which data a run is trained on, and in which order: it goes on with the same alone."""

from collections.abc import Mapping
from typing import Any

from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.errors import UsageError
from get3d_cluster.train.config import TrainerConfig

ORDER_VERSION = 1
"""Of the order that ``data.order`` gives; a run cannot go on under another one."""


def data_identity(config: TrainerConfig, dataset: ImageDataset) -> dict[str, Any]:
    """Return what has to stay the same for the life of a run; part of its state."""
    return {
        "fingerprint": dataset.fingerprint,
        "size": len(dataset),
        "order_version": ORDER_VERSION,
        "seed": config.seed,
    }


def check_data(saved: Mapping[str, Any], config: TrainerConfig, dataset: ImageDataset) -> None:
    """Make sure that a run whose identity was ``saved`` goes on with its own data. Raises: UsageError."""
    current = data_identity(config, dataset)
    if saved["seed"] != current["seed"]:
        raise UsageError(
            f"seed={config.seed} is not that of this run, which began with {saved['seed']}",
            f"set seed={saved['seed']}, or start another run under another --name",
        )
    for key, value in current.items():
        if saved[key] != value:
            raise UsageError(
                f"data.path={config.data.path} is not what this run was trained on: {key} is "
                f"{value}, the checkpoint has {saved[key]}",
                "put the dataset back as it was, or start another run from here under another --name",
            )

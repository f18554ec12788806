"""What a person is told when a training cannot begin or go on, and what to do then."""

from collections.abc import Sequence

import torch

from get3d_cluster.errors import Get3dError, HeldError, UsageError
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.train.config import TrainerConfig
from get3d_cluster.train.counters import Counters


def weights_alone(run: RunFolder) -> UsageError:
    """Return that a run that was made by importing weights cannot be resumed."""
    return UsageError(
        f"{run.path} holds weights alone, without optimizers and data",
        f"start another run from them: --name NAME init_from={run.path}",
    )


def other_networks(init_from: str | None, differing: str) -> UsageError:
    """Return that the weights to begin with are those of other networks, which are ``differing``."""
    return UsageError(
        f"init_from={init_from} has other networks than this configuration: {differing}",
        "give the sections generator and discriminator of that run's config.yaml",
    )


def diverged(
    config: TrainerConfig, run: RunFolder, counters: Counters, troubles: Sequence[str], after: str = ""
) -> HeldError:
    """Return that too many steps were skipped; ``troubles``: of the last one, if known; ``after``: the history."""
    where = "; ".join(troubles) or "what the events `skipped` say"
    what = f"step {counters.step}: {counters.skipped_in_a_row} steps in a row were skipped{after}"
    return HeldError(f"{what}; not finite or too large in {where}", _go_on_with_lower_rates(config, run))


def _go_on_with_lower_rates(config: TrainerConfig, run: RunFolder) -> str:
    optim, job = config.optim, type(config).__module__.removeprefix("jobs.")
    return (
        f"go on from the last checkpoint with lower rates: python launch.py submit {job} "
        f"--runs {run.path.parent} --name {run.name} --config {run.config_path} "
        f"optim.lr_generator={optim.lr_generator / 2:g} "
        f"optim.lr_discriminator={optim.lr_discriminator / 2:g} --allow-config-change"
    )


def too_large(config: TrainerConfig, step: int, device: str, error: torch.OutOfMemoryError) -> Get3dError:
    """Return what to set. Not by itself: another size of micro-shards has other bits."""
    batch = config.batch
    what = (
        f"step {step}: batch.shard_size={batch.shard_size} images of "
        f"{config.discriminator.image_size_px} px need more memory than {device} has left: "
        f"{str(error).splitlines()[0]}"
    )
    smaller = (
        f"batch.shard_size={batch.shard_size // 2} batch.num_shards={batch.num_shards * 2} (as many images a step)"
        if batch.shard_size % 2 == 0
        else "a smaller batch.shard_size and more batch.num_shards"
    )
    bf16 = "" if config.precision.amp == "bf16" else "precision.amp=bf16, or "
    return Get3dError(
        what,
        f"unless something else runs on that GPU, start another run with {bf16}{smaller}; `launch.py run sizes` "
        "with the same keys measures what fits",
    )

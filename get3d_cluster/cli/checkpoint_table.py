"""The checkpoints of a run as people see them, wherever they lie."""

from collections.abc import Sequence

from rich.table import Table

from get3d_cluster.cli.output import duration, size, table
from get3d_cluster.config import read_section
from get3d_cluster.core.job import CheckpointConfig, Resources
from get3d_cluster.errors import DifferenceError, StorageError
from get3d_cluster.runtime import checkpoint
from get3d_cluster.runtime.checkpoint import CheckpointInfo
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.storage.base import Storage


def list_all(run: RunFolder, *, verify: bool) -> list[CheckpointInfo]:
    """Return the checkpoints of all tiers that the run's configuration names, oldest first."""
    return checkpoint.list_checkpoints(run, verify=verify, more=_more(run))


def checkpoint_table(found: Sequence[CheckpointInfo], now: float) -> Table:
    """Return one line for each; the column TIER only if there are several."""
    tiers = ["TIER"] if {info.tier for info in found} - {"run"} else []
    headers = ["STEP", *tiers, "EPOCH", "IMAGES", "SIZE", "SAVED", "DIGEST", "STATE", "REMARK"]
    return table(headers, [_cells(info, now, is_tier_shown=bool(tiers)) for info in found], wrap=["REMARK"])


def refuse_damage(found: Sequence[CheckpointInfo]) -> None:
    """Raises: DifferenceError naming those that are damaged; StorageError naming a tier that cannot be read."""
    if damaged := [info for info in found if info.state == "damaged"]:
        raise DifferenceError(
            f"damaged: the checkpoint of step {', '.join(map(_place, damaged))}",
            "nothing to do: the run comes back from the newest one that is whole",
        )
    if unread := [info.problem for info in found if info.state == "unread"]:
        raise StorageError(
            "; ".join(unread), "look from a machine that sees it; the run's own checkpoints are listed above"
        )


def _more(run: RunFolder) -> dict[str, Storage]:
    config = read_section(CheckpointConfig, run.config_path, "checkpoint")
    if not (config.local or config.url):
        return {}
    resources = read_section(Resources, run.config_path, "resources")
    return checkpoint.more_tiers(config, run.spec(), resources.nodes)


def _place(info: CheckpointInfo) -> str:
    return str(info.step) if info.tier == "run" else f"{info.step} in {info.tier}"


def _cells(info: CheckpointInfo, now: float, *, is_tier_shown: bool) -> list[str]:
    tier = [info.tier] if is_tier_shown else []
    if info.state == "unread":
        return ["-", *tier, "-", "-", "-", "-", "-", info.state, info.problem]
    cells = [str(info.epoch), str(info.images), size(info.num_bytes), f"{duration(now - info.t)} ago"]
    return [str(info.step), *tier, *cells, info.digest[:16], info.state, _remark(info)]


def _remark(info: CheckpointInfo) -> str:
    if info.problem or info.not_bitwise_from is None:
        return info.problem
    return f"not bitwise from step {info.not_bitwise_from} on"

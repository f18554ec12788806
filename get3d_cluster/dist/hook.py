"""Averages the gradients of any torch model over its workers while backward runs, with the same bits however many.

    hook = AllReduceHook(model.parameters())  # after torch.distributed.init_process_group
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        hook.finish()
        optimizer.step()

docs/hook.md has modes, costs and limits; docs/examples/hook_loop.py is a whole program.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from get3d_cluster.dist.config import ReductionConfig
from get3d_cluster.dist.group import Group, SoloGroup, TorchGroup
from get3d_cluster.dist.network import Network
from get3d_cluster.dist.replicas import unlike
from get3d_cluster.dist.tree import GradientReducer, PhasePlan
from get3d_cluster.errors import UsageError


class AllReduceHook:
    """Gradients of ``params``, averaged over the micro-shards of all workers.

    All workers make their hooks with equal parameters in the same order. With ``num_shards`` above the number of
    workers, each computes ``shards`` one after another, with ``add`` after each; left out, each worker is one shard.
    The number of shards decides the bits, not that of the workers.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        group: Group | None = None,
        num_shards: int | None = None,
        *,
        num_extras: int = 0,
        backwards: int = 1,
        config: ReductionConfig | None = None,
        network: Network | None = None,
    ) -> None:
        """``group``: all processes of ``torch.distributed`` if left out. ``network``: shared with other hooks.

        ``num_extras`` numbers, such as losses, are averaged along with each shard's gradients. ``backwards`` passes
        make up the gradients of a shard.

        Raises: ValueError if there are more workers than shards; UsageError if workers disagree on parameters or begin
        with other values of them, or if ``group`` is none of this package.
        """
        group = group or group_of_processes()
        _refuse_other_groups(group)
        found = list(params)
        device = found[0].device if found else torch.device("cpu")
        self.network = network or Network(group, config, device)
        plan = PhasePlan("hook", ((f"parameter {i}", p) for i, p in enumerate(found)), num_extras)
        count = group.world_size if num_shards is None else num_shards
        self._reducer = GradientReducer(plan, group, count, network=self.network, backwards=backwards)
        self._owns_network = network is None
        try:
            _refuse_unlike(group, found)
        except UsageError:
            self.close()
            raise
        self._added = 0
        self._reducer.begin()

    @property
    def shards(self) -> range:
        """The micro-shards that this worker computes in each step, in this order."""
        return self._reducer.shards

    def add(self, *extras: Tensor) -> None:
        """Take the gradients of the shard just computed, and its extra numbers. Leaves no gradient behind."""
        self._reducer.add(*extras)
        self._added += 1

    def finish(self, *extras: Tensor) -> Tensor:  # [num_extras]
        """Put the mean gradients in place and return the mean of the extras. Comes before ``optimizer.step``.

        The gradients of this worker's last shard are taken first, with ``extras``, if ``add`` did not do it. They are
        views of memory that the next backward pass uses again. A parameter without a gradient anywhere gets zeros.

        Raises: whatever broke the exchange, such as RuntimeError when another worker died.
        """
        if self._added == len(self.shards) - 1:
            self.add(*extras)
        mean = self._reducer.finish()
        self._added = 0
        self._reducer.begin()
        return mean

    def close(self) -> None:
        """Let go of the model, and of the threads if no other hook shares them."""
        self._reducer.close()
        if self._owns_network:
            self.network.close()


def _refuse_other_groups(group: object) -> None:
    if not isinstance(getattr(group, "world_size", None), int):
        kind = f"{type(group).__module__}.{type(group).__qualname__}"
        raise UsageError(
            f"AllReduceHook: group is a {kind}, which this package cannot add over",
            "leave group out to use all processes of torch.distributed; parts of them are not supported",
        )


def _refuse_unlike(group: Group, parameters: Sequence[nn.Parameter]) -> None:
    """Make sure that all workers begin with the same weights: averaging gradients would never bring them together."""
    named = {f"parameter {i} {list(p.shape)}": p for i, p in enumerate(parameters)}
    if difference := unlike(group, named):
        raise UsageError(
            f"AllReduceHook: workers begin with other weights than rank 0, first {difference}",
            "call torch.manual_seed with one number on all workers before the model is made, or load the same weights "
            "on all, before the hook is made",
        )


def group_of_processes() -> Group:
    """Return all processes of ``torch.distributed``; this one alone if that was not initialised."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return SoloGroup()
    device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
    return TorchGroup(dist.get_rank(), dist.get_world_size(), device)

"""Three lines that make any torch loop stop and come back exactly where it was.

    start_epoch, start_step, others = checkpoint.init(model, optimizer, path="runs/mine")
    for epoch in range(start_epoch, num_epochs):
        for step in range(start_step if epoch == start_epoch else 0, steps_per_epoch):
            ...  # one optimizer step
            checkpoint.try_save(epoch, step + 1, others)

``try_save`` saves when a period is over, or when the process was told to stop (SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C); in
that case it leaves with exit code 75, and the same command goes on from there. With ``torch.distributed`` all ranks
stop at the same step; call ``init`` after ``init_process_group``. Random generators of torch, NumPy and Python are
part of what is saved, one set for each rank.
"""

import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.core.policy import is_save_due
from get3d_cluster.dist.group import Group, SoloGroup, TorchGroup
from get3d_cluster.errors import ExitCode, UsageError
from get3d_cluster.runtime.checkpoint import Checkpoints, load_optimizer, optimizer_state
from get3d_cluster.runtime.lease import Lease, read_lease, refuse_second_copy
from get3d_cluster.runtime.notices import Notices
from get3d_cluster.storage import open_storage


class Stateful(Protocol):
    """A scheduler, a scaler: anything with a state of text keys and JSON values or tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def init(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *more: Stateful,
    path: str | Path,
    others: Mapping[str, Any] | None = None,
    config: CheckpointConfig | None = None,
) -> tuple[int, int, dict[str, Any]]:
    """Resume from the newest checkpoint below ``path``, or begin; return ``(start_epoch, start_step, others)``.

    ``start_step`` counts the steps of ``start_epoch`` that are done. ``others`` is what the last ``try_save`` was
    given (JSON values), or the ``others`` given here for a first start. ``more`` are schedulers, scalers and the like,
    in a fixed order.

    Raises: FencedError if another live process uses ``path``; CheckpointError if only damaged checkpoints are there.
    """
    global _loop
    _loop = _Loop(model, optimizer, more, Path(path), config or CheckpointConfig())
    return _loop.resume(dict(others or {}))


def try_save(epoch: int, step: int, others: Mapping[str, Any] | None = None) -> bool:
    """Save if it is time to, and leave if told to stop; return whether a checkpoint was written.

    Call it after each optimizer step, on all ranks, with the number of steps of ``epoch`` that are done.

    Raises: SystemExit with code 75 after saving on a notice; UsageError before ``init``; StorageError.
    """
    if _loop is None:
        raise UsageError(
            "checkpoint.try_save was called before checkpoint.init", "call init once, before the loop"
        )
    return _loop.try_save(epoch, step, dict(others or {}))


class _Loop:
    """The one loop of this process and what belongs to its state."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        more: tuple[Stateful, ...],
        path: Path,
        config: CheckpointConfig,
    ) -> None:
        self._model, self._optimizer, self._more = model, optimizer, more
        self._config = config
        self._group = _group()
        self._notices = Notices()
        self._notices.install()
        self._lease = _take_lease(path / "lease.json") if self._group.rank == 0 else None
        check = self._lease.check if self._lease else lambda: None
        self._checkpoints = Checkpoints(open_storage(path / "checkpoints"), config, check)
        self._done = self._saved_done = 0
        self._saved_s = time.monotonic()

    def resume(self, others: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
        newest = self._checkpoints.load() if self._group.rank == 0 else None
        step = self._group.broadcast(newest.step if newest else None)
        if step is None:
            return 0, 0, others
        state = (newest or self._checkpoints.read_step(step)).state
        self._model.load_state_dict(state["model"])
        load_optimizer(self._optimizer, state["optimizer"])
        for index, stateful in enumerate(self._more):
            stateful.load_state_dict(state[f"more{index}"])
        self._restore_generators(state["generators"])
        place = state["place"]
        self._done = self._saved_done = step
        return place["epoch"], place["step"], place["others"]

    def try_save(self, epoch: int, step: int, others: dict[str, Any]) -> bool:
        self._done += 1
        since_s = time.monotonic() - self._saved_s
        due = self._group.rank == 0 and is_save_due(self._done - self._saved_done, since_s, self._config)
        stop, save = self._group.any([self._notices.requested, due])
        if stop or save:
            self._save({"epoch": epoch, "step": step, "others": others})
        if stop:
            self._leave(epoch, step)
        return stop or save

    def _save(self, place: dict[str, Any]) -> None:
        generators = self._generators()
        if self._group.rank == 0:
            more = {f"more{index}": stateful.state_dict() for index, stateful in enumerate(self._more)}
            state = {
                "model": self._model.state_dict(),
                "optimizer": optimizer_state(self._optimizer),
                "generators": generators,
                "place": place,
                **more,
            }
            self._checkpoints.save(self._done, state, {"epoch": place["epoch"]})
        self._group.any([True])  # nobody goes on before it is published
        self._saved_done, self._saved_s = self._done, time.monotonic()

    def _leave(self, epoch: int, step: int) -> None:
        if self._lease:
            print(
                f"suspended after step {step} of epoch {epoch}: the same command goes on from there",
                flush=True,
            )
            self._lease.release()
        sys.exit(int(ExitCode.SUSPENDED))

    def _generators(self) -> dict[str, Any]:
        mine = {"torch": torch.random.get_rng_state(), "host": _host_generators()}
        if torch.cuda.is_available():
            mine["cuda"] = torch.cuda.get_rng_state()
        gathered = {name: self._group.all_gather(state) for name, state in mine.items()}
        ranks = range(self._group.world_size)
        return {str(rank): {name: states[rank] for name, states in gathered.items()} for rank in ranks}

    def _restore_generators(self, saved: dict[str, Any]) -> None:
        """Give this rank its generators back; a rank that did not exist then keeps the seeds it has."""
        mine = saved.get(str(self._group.rank), {})
        if "torch" in mine:
            torch.random.set_rng_state(mine["torch"])
            _set_host_generators(mine["host"])
        if "cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"])


_loop: _Loop | None = None


def _group() -> Group:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        return TorchGroup(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
    return SoloGroup()


def _host_generators() -> torch.Tensor:  # [1254] float64
    """Return the states of Python's and NumPy's global generators; doubles hold their 32-bit words exactly."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  users' code uses it
    python = [version, gauss is not None, gauss or 0.0, *words]
    return torch.tensor(
        [*python, position, has_gauss, cached, *np.asarray(keys).tolist()], dtype=torch.float64
    )


def _set_host_generators(state: torch.Tensor) -> None:
    version, has_gauss, gauss, *words = state[:628].tolist()
    random.setstate((int(version), tuple(int(word) for word in words), gauss if has_gauss else None))
    position, has_cached, cached, *keys = state[628:].tolist()
    words_numpy = np.array(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", words_numpy, int(position), int(has_cached), cached))  # noqa: NPY002


def _take_lease(path: Path) -> Lease:
    refuse_second_copy(path)
    held = read_lease(path)
    lease = Lease(path, held["fence"] + 1 if held else 1)
    lease.acquire()
    return lease

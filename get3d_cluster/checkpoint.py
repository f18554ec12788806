"""Three lines that make any torch loop stop and come back exactly where it was.

    start_epoch, start_step, others = checkpoint.init(model, optimizer, path="runs/mine")
    for epoch in range(start_epoch, num_epochs):
        for step in range(start_step if epoch == start_epoch else 0, steps_per_epoch):
            ...  # one optimizer step
            checkpoint.try_save(epoch, step + 1, others)
    checkpoint.finish()  # optional

``try_save`` saves when a period is over, or when the process was told to stop (SIGTERM, SIGUSR1, SIGUSR2, Ctrl-C); in
that case it leaves with exit code 75, and the same command goes on from there. A large state is copied at once and
written by another process. With ``torch.distributed`` all ranks stop at the same step; call ``init`` after
``init_process_group``. Random generators of torch, NumPy and Python are part of what is saved, one set for each rank.
"""

import atexit
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import Group, SoloGroup, TorchGroup
from get3d_cluster.dist.replicas import unlike
from get3d_cluster.errors import CheckpointError, ExitCode, FencedError, Get3dError, StorageError, UsageError
from get3d_cluster.runtime.cadence import Cadence
from get3d_cluster.runtime.checkpoint import Checkpoints, DamagedError, Loaded, tiers_for
from get3d_cluster.runtime.checkpoint_copies import FAR, LAST_S, Copies, wait_together
from get3d_cluster.runtime.checkpoint_copies import PATIENCE_S as COPY_S
from get3d_cluster.runtime.checkpoint_flight import Verdict
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.runtime.checkpoint_tree import pack_all
from get3d_cluster.runtime.env import host
from get3d_cluster.runtime.fingerprint import fingerprint_of_all, not_bitwise_rows, told
from get3d_cluster.runtime.lease import Lease, read_lease, refuse_second_copy
from get3d_cluster.runtime.notices import Notices
from get3d_cluster.storage import open_storage

__all__ = ["CheckpointConfig", "finish", "init", "try_save"]

PATIENCE_S = 5.0
"""A second Ctrl-C or SIGTERM so long after the first, which no ``try_save`` has answered, ends the process."""

_T = TypeVar("_T")


class Stateful(Protocol):
    """A scheduler, a scaler: anything whose state is dicts, lists and tuples of tensors, numbers, texts and None."""

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
    given, or the ``others`` given here for a first start; it holds what a ``Stateful`` may. ``more`` are schedulers,
    scalers and the like, in a fixed order.

    Raises: FencedError if another live process uses ``path``; CheckpointError if only damaged checkpoints are there;
    UsageError if there is a loop already that was not finished.
    """
    global _loop
    if _loop is not None:
        raise UsageError(
            "checkpoint.init was called a second time", "call checkpoint.finish after the first loop"
        )
    loop = _Loop(model, optimizer, more, Path(path), config or CheckpointConfig())
    with _way_out_shown():
        start = loop.begin(dict(others or {}))
    _loop = loop
    return start


def try_save(epoch: int, step: int, others: Mapping[str, Any] | None = None) -> bool:
    """Save if it is time to, and leave if told to stop; return whether a save was begun.

    A state of ``CheckpointConfig.background_mb`` or more is written by another process; the call takes as long as to
    copy it, and an error of that save is raised by a later call.

    Call it after each optimizer step, on all ranks, with the number of steps of ``epoch`` that are done.

    Raises: SystemExit with code 75 after saving on a notice; UsageError before ``init``, or if the state holds what a
    checkpoint cannot; StorageError; FencedError if another process took ``path`` over.
    """
    if _loop is None:
        raise UsageError(
            "checkpoint.try_save was called before checkpoint.init", "call init once, before the loop"
        )
    with _way_out_shown():
        return _loop.try_save(epoch, step, dict(others or {}))


def finish() -> None:
    """Save the last step, give ``path`` back, and let signals do what they did before ``init``.

    Call it after the loop, on all ranks. Without it all this ends with the process, except that the steps after the
    last periodic checkpoint are done again if the same command is given again. Does nothing before ``init``.

    Raises: StorageError; FencedError if another process took ``path`` over.
    """
    global _loop
    if _loop is None:
        return
    loop, _loop = _loop, None
    with _way_out_shown():
        loop.finish()


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
        self._path = path
        self._group = _group()
        self._notices = Notices()
        self._lease: Lease | None = None
        self._attempt = 0
        check = self._check if self._group.rank == 0 else lambda: None
        whole = path.absolute()
        tiers = tiers_for(config, whole.name, str(whole), is_one_node=self._is_one_node())
        self._checkpoints = Checkpoints(open_storage(path / "checkpoints"), config, check, tiers)
        self._copies = Copies(self._checkpoints, self._group)
        self._saver = Saver(self._checkpoints, self._group, self._copies.held)
        self._cadence = Cadence(config, 0)
        self._done = self._saved_done = self._begun_done = self._local_done = 0
        self._begun_s = self._start_s = time.monotonic()
        self._stall_s = 0.0
        self._history: dict[str, Any] = {"active_s": 0.0, "interruptions": 0}
        """What is known of the processes before this one: their seconds, and how many of them lost work."""
        self._on: dict[str, Any] = {}
        self._place: dict[str, Any] = {}
        self._is_state_known = self._is_difference_told = False

    def begin(self, others: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
        """Take the path and go to the newest checkpoint; take nothing if that fails."""
        self._notices.install(PATIENCE_S)
        atexit.register(self._exit)
        try:
            self._on_rank_0(self._take_lease)
            return self._resume(others)
        except BaseException:
            self._end()
            raise

    def _take_lease(self) -> None:
        path = self._path / "lease.json"
        with _named_after(self._path):
            refuse_second_copy(path)
            held = read_lease(path)
            self._history["interruptions"] = int(held is not None and not held.get("released"))
            self._attempt = held["fence"] + 1 if held else 1
            lease = Lease(path, self._attempt)
            lease.acquire()
        self._lease = lease

    def _check(self) -> None:
        with _named_after(self._path):
            assert self._lease is not None
            self._lease.check()

    def _resume(self, others: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
        newest = self._on_rank_0(self._checkpoints.load)
        place = self._group.broadcast([newest.step, newest.tier] if newest else None)
        self._know(newest.meta if newest else {}, place[0] if place else 0)
        if place is None:
            return 0, 0, others
        step = place[0]
        state = (newest or self._read(*place)).state
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        for index, stateful in enumerate(self._more):
            stateful.load_state_dict(state[f"more{index}"])
        self._restore_generators(state["generators"])
        self._place = state["place"]
        self._done = self._saved_done = self._begun_done = self._local_done = step
        return self._place["epoch"], self._place["step"], self._place["others"]

    def _know(self, meta: Mapping[str, Any], step: int) -> None:
        """Take over what a checkpoint tells of the processes before, and compare what decides bits."""
        self._history["active_s"] = meta.get("active_s", 0.0)
        self._history["interruptions"] += meta.get("interruptions", 0)
        self._cadence = Cadence(self._config, self._history["interruptions"])
        device = next((str(tensor.device) for tensor in self._model.parameters()), "cpu")
        self._on = fingerprint_of_all(self._group, device)
        rows = not_bitwise_rows(meta, self._on, step, self._attempt)
        if rows:
            self._history["not_bitwise"] = rows
        for row in rows[len(meta.get("not_bitwise", ())) :]:
            if self._group.rank == 0:
                print(f"not bitwise from step {step} on: {told(row['changed'])}", flush=True)

    def _is_one_node(self) -> bool:
        mine = host()
        return not self._group.any([self._group.broadcast(mine) != mine])[0]

    def _read(self, step: int, tier: str) -> Loaded:
        try:
            return self._checkpoints.read_step(step, tier)
        except DamagedError as error:
            raise CheckpointError(
                f"rank {self._group.rank} reads another checkpoint than rank 0: {error}",
                f"all ranks have to see the same {self._path}",
            ) from error

    def _on_rank_0(self, act: Callable[[], _T]) -> _T | None:
        """Return what ``act`` gives on rank 0, None elsewhere; an error of it is raised on all ranks."""
        value, failure = None, None
        if self._group.rank == 0:
            try:
                value = act()
            except Get3dError as error:
                failure = error
        told = self._group.broadcast(
            [type(failure).__name__, failure.what, failure.way_out] if failure else None
        )
        if told is not None:
            raise failure or _ERRORS.get(told[0], Get3dError)(told[1], told[2])
        return value

    def try_save(self, epoch: int, step: int, others: dict[str, Any]) -> bool:
        self._done += 1
        flags = [self._notices.requested, self._group.rank == 0 and self._is_due(), *self._saver.flags()]
        stop, save, *flags = self._group.any(flags)
        self._place = {"epoch": epoch, "step": step, "others": others}
        if not self._is_state_known:  # now, not when it is needed; the first step has filled the optimizer
            self._saver.prepare(self._state())
            self._is_state_known = True
        why = self._saver.flight.why if self._saver.flight else ""
        if verdict := self._saver.advance(flags):
            self._landed(verdict, why, is_last=not stop)
        self._tell_of_copies()
        if stop:
            self._notices.answer()
            self._save_now()
            self._let_copies_arrive(COPY_S, lambda: self._notices.is_urgent)
            self._leave(epoch, step)
        elif save:
            self._begin()
        elif self._is_local_due():
            self._begin_local()
        return stop or save

    def _is_due(self) -> bool:
        now = time.monotonic()
        is_due = self._cadence.is_due(self._done - self._begun_done, now - self._begun_s, self._active_s())
        return is_due and self._saver.flight is None

    def _is_local_due(self) -> bool:
        """Say, alike on all ranks, whether the near tier gets a checkpoint now."""
        is_due = "local" in self._checkpoints.tiers
        is_due = is_due and self._done - self._local_done >= self._config.local_every_steps
        return is_due and self._saver.flight is None

    def _active_s(self) -> float:
        return float(self._history["active_s"]) + time.monotonic() - self._start_s

    def finish(self) -> None:
        try:
            self._save_now()
            self._let_copies_arrive(LAST_S, lambda: self._notices.requested)
        finally:
            self._end()

    def _let_copies_arrive(self, seconds: float, is_called_away: Callable[[], bool]) -> None:
        """Let what is saved reach the URL, too, while there is time."""
        if FAR in self._checkpoints.tiers:
            wait_together(self._copies, self._group, time.monotonic() + seconds, is_called_away)

    def _tell_of_copies(self) -> None:
        for copied in self._copies.news():
            if copied.problem:
                print(f"no copy of the checkpoint of step {copied.step}: {copied.problem}", flush=True)
            elif copied.skipped_for is not None:
                newer = f"that of step {copied.skipped_for} was there before the copy of an older one was"
                print(f"no copy of the checkpoint of step {copied.step}: {newer}", flush=True)

    def _begin(self) -> None:
        """Send the state on its way; a small one is written here and now."""
        state = self._state() | {"generators": self._generators()}
        self._begun_done, self._begun_s = self._done, time.monotonic()
        self._local_done = self._done
        begin = self._saver.begin if self._is_alike(state) else self._saver.begin_alone
        is_begun = begin(self._done, state, self._meta())
        if not is_begun:
            self._write_here(state)
        self._stall_s = time.monotonic() - self._begun_s
        if not is_begun:
            self._cadence.note(self._stall_s, self._stall_s)

    def _begin_local(self) -> None:
        self._local_done = self._done
        state = self._state() | {"generators": self._generators()}
        begin = self._saver.begin if self._is_alike(state) else self._saver.begin_alone
        begin(self._done, state, self._meta(), why="local", tier="local")

    def _is_alike(self, state: Mapping[str, Any]) -> bool:
        """Say whether all ranks would save the same; the first time that they would not, in words, too."""
        parts = pack_all(state)[1]
        named = {f"{part}/{name}": tensor for part, own in parts.items() for name, tensor in own.items()}
        difference = unlike(self._group, named)
        if difference and not self._is_difference_told and self._group.rank == 0:
            print(
                f"ranks differ in {difference}: checkpoints hold the values of rank 0, which writes them alone; "
                "what other ranks have in its place is not saved",
                flush=True,
            )
        self._is_difference_told |= difference is not None
        return difference is None

    def _save_now(self) -> None:
        """Publish the state unless it is; nobody goes on before rank 0 has."""
        if self._saver.flight:
            why, verdict = self._saver.flight.why, self._saver.finish()
            self._landed(verdict, why, is_last=False)
        if self._done > self._saved_done:
            self._begin()
            if self._saver.flight:
                self._landed(self._saver.finish(), "")

    def _write_here(self, state: dict[str, Any]) -> None:
        held = self._copies.held()
        self._on_rank_0(lambda: self._checkpoints.save(self._done, state, self._meta(), held=held))
        self._saved_done = self._done
        self._copies.offer(self._done)

    def _landed(self, verdict: Verdict, why: str, *, is_last: bool = True) -> None:
        """Note how a save ended; one of the near tier may fail. Raises: StorageError, FencedError.

        Unless it ``is_last``, a save of the newest step follows: what the storage refused is told, not raised.
        """
        if why == "local" and verdict.get("kind") != "fenced":
            return
        if verdict.get("kind") == "storage" and not is_last:
            if self._group.rank == 0:
                print(f"a checkpoint failed: {verdict['error']}; the last step is saved now", flush=True)
        elif verdict.get("kind") == "writer":
            self._write_here(self._state() | {"generators": self._generators()})
        elif "error" in verdict:
            kind = FencedError if verdict["kind"] == "fenced" else StorageError
            raise kind(verdict["error"], verdict["way_out"])
        else:
            self._saved_done = verdict["step"]
            self._cadence.note(self._stall_s, verdict["seconds"])
            self._copies.offer(self._saved_done)

    def _meta(self) -> dict[str, Any]:
        now = {"attempt": self._attempt, "active_s": self._active_s(), "on": self._on}
        return {"epoch": self._place["epoch"], **self._history, **now}

    def _state(self) -> dict[str, Any]:
        more = {f"more{index}": stateful.state_dict() for index, stateful in enumerate(self._more)}
        model, optimizer = self._model.state_dict(), self._optimizer.state_dict()
        return {"model": model, "optimizer": optimizer, "place": self._place, **more}

    def _leave(self, epoch: int, step: int) -> None:
        self._close()
        if self._lease:
            print(
                f"suspended after step {step} of epoch {epoch}: the same command goes on from there",
                flush=True,
            )
            self._lease.release()
        if self._group.world_size > 1:  # all is saved; a thread of gloo may abort an ordinary exit
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(ExitCode.SUSPENDED))
        sys.exit(int(ExitCode.SUSPENDED))

    def _end(self) -> None:
        atexit.unregister(self._exit)
        try:
            self._close()
            if self._lease:
                self._lease.release()
        finally:
            self._notices.uninstall()

    def _exit(self) -> None:
        """Come to an end with the process, which nobody announced."""
        self._copies.wait(COPY_S)
        self._close()

    def _close(self) -> None:
        self._saver.close()
        self._copies.close()
        self._tell_of_copies()

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


_ERRORS: dict[str, type[Get3dError]] = {
    kind.__name__: kind for kind in (CheckpointError, FencedError, StorageError, UsageError)
}


@contextmanager
def _named_after(path: Path) -> Iterator[None]:
    """Speak of a path and its processes, not of runs and attempts: there is no run here."""
    try:
        yield
    except FencedError as error:
        held = read_lease(path / "lease.json") or {}
        pid, host = held.get("pid", "?"), held.get("host", "?")
        raise FencedError(
            f"{path} is in use by process {pid} on {host}",
            f"let it go on; or stop it (on {host}: kill {pid}) and start again; or give another path",
        ) from error


@contextmanager
def _way_out_shown() -> Iterator[None]:
    """Let a traceback end with the way out."""
    try:
        yield
    except Get3dError as error:
        if error.way_out:
            error.add_note(error.way_out)
        raise

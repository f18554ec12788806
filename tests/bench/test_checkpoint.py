"""What a checkpoint of 1 GB costs a training loop, and how long it takes to load, beside what torch offers.

    python -m pytest tests/bench/test_checkpoint.py -m bench -s

One checkpoint in 20 steps of ``training_loop``. What that adds to the wall time is less than two runs one after the
other differ by: ``test_checkpoint_wall`` measures it. GET3D_BENCH_MB and GET3D_BENCH_SAVES make it smaller;
tables go to ``results/checkpoint.json``, or to the folder GET3D_BENCH.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.core.job import CheckpointConfig
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.checkpoint_saver import Saver
from get3d_cluster.storage import open_storage
from tests.bench.tables import keep
from tests.bench.training_loop import NOT_JUDGED, Loop, is_quiet, save_plainly

pytestmark = [
    pytest.mark.bench,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # of DCP, about itself
]

MEGABYTES = int(os.environ.get("GET3D_BENCH_MB", "1000"))
NUM_SAVES = int(os.environ.get("GET3D_BENCH_SAVES", "3"))
STEPS_PER_SAVE = 20


class Way:
    """One way to save. ``save`` returns as soon as training may go on."""

    name = ""

    def __init__(self, folder: Path, loop: Loop) -> None:
        self.folder, self.loop = folder, loop

    def save(self) -> None: ...

    def before_change(self) -> None:
        """Wait until weights may change."""

    def is_over(self) -> bool:
        return True

    def close(self) -> None: ...


class Nothing(Way):
    name = "no checkpoint"


class TorchSave(Way):
    name = "torch.save, fsync, rename"

    def save(self) -> None:
        save_plainly(self.loop.state(), self.folder / "torch.pt")


class Dcp(Way):
    """Distributed checkpoint, with its own staging memory reused from save to save."""

    process = False

    def __init__(self, folder: Path, loop: Loop) -> None:
        super().__init__(folder, loop)
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=True,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )
        self.response: Any = None
        self.count = 0

    def save(self) -> None:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

        kind = AsyncCheckpointerType.PROCESS if self.process else AsyncCheckpointerType.THREAD
        shutil.rmtree(self.folder / f"dcp{self.count - 2}", ignore_errors=True)
        self.response = async_save(
            self.loop.state(),
            checkpoint_id=self.folder / f"dcp{self.count}",
            async_checkpointer_type=kind,
            async_stager=self.stager,
        )
        self.count += 1

    def is_over(self) -> bool:
        done: Future[Any] = getattr(self.response, "upload_completion", self.response)
        return done is None or done.done()

    def close(self) -> None:
        done: Future[Any] = getattr(self.response, "upload_completion", self.response)
        done.result()
        self.stager.close()


class DcpThread(Dcp):
    name = "DCP async, thread"


class DcpProcess(Dcp):
    name = "DCP async, process"
    process = True


class Ours(Way):
    """Copied at once, as for work that says nothing of what stands still."""

    name = "ours, copied in the call"
    later: tuple[str, ...] = ()

    def __init__(self, folder: Path, loop: Loop) -> None:
        super().__init__(folder, loop)
        config = CheckpointConfig(keep_last=2)
        self.checkpoints = Checkpoints(
            open_storage(folder / self.name.replace(" ", "-")), config, lambda: None
        )
        self.saver = Saver(self.checkpoints, SoloGroup())
        self.saver.prepare(loop.state())

    def save(self) -> None:
        if self.saver.flight:
            self.saver.finish()
        assert self.saver.begin(self.loop.steps, self.loop.state(), {}, later=self.later)

    def before_change(self) -> None:
        self.saver.wait_for(self.later)

    def is_over(self) -> bool:
        flight = self.saver.flight
        return flight is None or flight.over.is_set()

    def close(self) -> None:
        verdict = self.saver.finish()
        assert "error" not in verdict, verdict
        self.saver.close()


class OursFrozen(Ours):
    name = "ours, copied while it is frozen"
    later = ("net", "m", "v")


WAYS = [TorchSave, DcpThread, DcpProcess, Ours, OursFrozen]


@pytest.fixture(scope="module", autouse=True)
def one_thread_and_a_group_for_dcp() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    torch.set_num_threads(before)


@pytest.fixture
def out() -> Iterator[dict[str, Any]]:
    """Return tables that are kept, whatever the limits say."""
    rows: dict[str, Any] = {}
    yield rows
    keep("checkpoint.json", rows)


def measured(way: Way, loop: Loop) -> dict[str, Any]:
    """Return call and wait of each save, and the mean step."""
    for _ in range(STEPS_PER_SAVE):  # buffers are touched, processes started
        loop.step()
    way.save()
    while not way.is_over():
        loop.step(way.before_change)
    loop.step(way.before_change)
    calls, waits, lasts = [], [], []
    begun_s = time.perf_counter()
    for _ in range(NUM_SAVES):
        called_s = time.perf_counter()
        way.save()
        calls.append(time.perf_counter() - called_s)
        waited, is_told = 0.0, False
        for _ in range(STEPS_PER_SAVE):
            waited += loop.step(way.before_change)
            if way.is_over() and not is_told:
                lasts.append(time.perf_counter() - called_s)
                is_told = True
        waits.append(waited)
    num_steps = NUM_SAVES * STEPS_PER_SAVE
    return {
        "call_ms": statistics.median(calls) * 1e3,
        "wait_ms": statistics.median(waits) * 1e3,
        "worst_ms": max(call + wait for call, wait in zip(calls, waits, strict=True)) * 1e3,
        "done_s": statistics.median(lasts) if lasts else None,
        "step_ms": (time.perf_counter() - begun_s) / num_steps * 1e3,
    }


def test_a_save_takes_milliseconds_from_a_loop(tmp_path: Path, out: dict[str, Any]) -> None:
    rows: dict[str, dict[str, Any]] = {}
    loop = Loop(MEGABYTES)
    rows[Nothing.name] = measured(Nothing(tmp_path, loop), loop)
    for kind in WAYS:
        way = kind(tmp_path, loop)
        rows[way.name] = measured(way, loop)
        way.close()
    rows[Nothing.name + ", again"] = measured(Nothing(tmp_path, loop), loop)
    plain = statistics.mean(rows[name]["step_ms"] for name in (Nothing.name, Nothing.name + ", again"))
    print(
        f"\n{MEGABYTES} MB, one checkpoint in {STEPS_PER_SAVE} steps of {plain:.0f} ms, median of {NUM_SAVES}"
    )
    print(f"{'':34}{'call ms':>9}{'wait ms':>9}{'worst ms':>10}{'done s':>8}{'step ms':>9}{'added %':>9}")
    for name, row in rows.items():
        row["added_percent"] = (row["step_ms"] / plain - 1) * 100
        done = f"{row['done_s']:8.2f}" if row["done_s"] else f"{'-':>8}"
        print(
            f"{name:34}{row['call_ms']:9.2f}{row['wait_ms']:9.2f}{row['worst_ms']:10.2f}{done}"
            f"{row['step_ms']:9.1f}{row['added_percent']:9.2f}"
        )
    out["stall"] = {"megabytes": MEGABYTES, "saves": NUM_SAVES, "load": os.getloadavg(), "rows": rows}
    frozen = rows[OursFrozen.name]
    assert frozen["call_ms"] + frozen["wait_ms"] < 10


def test_a_load_verifies_and_is_no_slower_than_others_that_do_not(
    tmp_path: Path, out: dict[str, Any]
) -> None:
    from torch.distributed import checkpoint as dcp

    loop = Loop(MEGABYTES)
    ours = Ours(tmp_path, loop)
    ours.save()
    ours.close()
    torch.save(loop.state(), tmp_path / "torch.pt")
    dcp.save(loop.state(), checkpoint_id=tmp_path / "dcp")

    def into_place(state: dict[str, Any]) -> None:
        for part, named in loop.parts.items():
            for name, tensor in named.items():
                tensor.copy_(state[part][name])

    def load_dcp() -> None:
        state = loop.state()
        dcp.load(state, checkpoint_id=tmp_path / "dcp")

    ways = {
        "ours, verified": lambda: into_place(ours.checkpoints.load().state),
        "torch.load(weights_only)": lambda: into_place(torch.load(tmp_path / "torch.pt", weights_only=True)),
        "torch.load(mmap)": lambda: into_place(
            torch.load(tmp_path / "torch.pt", weights_only=True, mmap=True)
        ),
        "DCP": load_dcp,
    }
    rows: dict[str, dict[str, float]] = {}
    print(f"\nload of {MEGABYTES} MB into live tensors\n{'':28}{'warm s':>8}{'cold s':>8}")
    for name, load in ways.items():
        rows[name] = {"warm_s": min(timed(load) for _ in range(3)), "cold_s": cold(tmp_path, load)}
        print(f"{name:28}{rows[name]['warm_s']:8.2f}{rows[name]['cold_s']:8.2f}")
    out["load"] = {"megabytes": MEGABYTES, "load": os.getloadavg(), "rows": rows}
    if not is_quiet():
        print(NOT_JUDGED)
        pytest.skip(NOT_JUDGED)
    for name in ("torch.load(weights_only)", "DCP"):
        assert rows["ours, verified"]["warm_s"] < rows[name]["warm_s"]


def timed(act: Callable[[], None]) -> float:
    begun_s = time.perf_counter()
    act()
    return time.perf_counter() - begun_s


def cold(folder: Path, load: Callable[[], None]) -> float:
    """Return the seconds after the page cache forgot these files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return timed(load)

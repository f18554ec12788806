"""What a step of a training costs on this machine: seconds and memory, measured in a process of its own.

Of its own, since memory that a process has given back is not told apart from memory that it needs, and since the system
kills a process that asks for too much.
"""

import dataclasses
import multiprocessing
import resource
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from get3d_cluster.core.job import Resources
from get3d_cluster.data.dataset import ImageDataset
from get3d_cluster.dist.group import SoloGroup
from get3d_cluster.runtime.events import EventLog, MetricLog
from get3d_cluster.runtime.notices import Notices
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.session import Session
from get3d_cluster.train.config import TrainerConfig
from get3d_cluster.train.trainer import Get3dTrainer

_KINDS = 2
"""Steps with R1 and without, in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Medians over some steps of one worker, after two to warm up."""

    step_s: float
    """A step without R1."""
    r1_s: float
    """What R1 adds to a step."""
    memory_bytes: int
    """Most that was held at a time: on a GPU by torch, on a CPU by the whole process."""
    device_bytes: int
    """Memory of the GPU; 0 on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is measured, and where."""

    config: TrainerConfig
    device: str
    threads: int
    num_steps: int
    """Of each kind, with R1 and without."""


def measure(setting: Setting) -> Cost:
    """Train for some steps in this process. Raises: OutOfMemoryError; UsageError if the dataset cannot be used."""
    torch.set_num_threads(setting.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = _work(setting, Path(folder))
        seconds = [_seconds(work.step, setting.device) for _ in range(_KINDS * (1 + setting.num_steps))]
    with_r1, without = (statistics.median(seconds[_KINDS + kind :: _KINDS]) for kind in range(_KINDS))
    return Cost(
        step_s=without,
        r1_s=max(0.0, with_r1 - without),
        memory_bytes=_memory_bytes(setting.device),
        device_bytes=_device_bytes(setting.device),
    )


class Measuring:
    """``measure`` in a process of its own, which is asked now and then whether it is through."""

    def __init__(self, setting: Setting) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._receiver, sender = spawning.Pipe(duplex=False)
        self._process = spawning.Process(target=_child, args=(sender, setting), daemon=True)
        self._process.start()
        sender.close()

    def result(self, wait_s: float) -> Cost | str | None:
        """Return what it costs, or why that is not known; None: not yet, after ``wait_s``.

        Raises: InterruptedError if somebody ended the process, which says nothing of the cost.
        """
        if not self._receiver.poll(wait_s):
            return None
        try:
            found: Cost | str = self._receiver.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode or 0
            if code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1, -signal.SIGUSR2):
                raise InterruptedError(f"ended by signal {-code}") from None
            killed = code == -signal.SIGKILL
            return "killed: the machine has too little memory" if killed else f"ended with exit code {code}"
        self._process.join()
        return found

    def end(self) -> None:
        """End it, whether it is through or not."""
        self._process.kill()
        self._process.join()
        self._receiver.close()


def _child(sender: Connection, setting: Setting) -> None:
    try:
        sender.send(measure(setting))
    except torch.OutOfMemoryError:
        sender.send("out of memory")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        sender.send("out of memory")


def _work(setting: Setting, folder: Path) -> Get3dTrainer:
    config, run = _measurable(setting.config), RunFolder(folder)
    session = Session(
        run=run,
        attempt=1,
        group=SoloGroup(),
        resources=Resources(),
        notices=Notices(),
        events=EventLog(run.events_path, 1, 0),
        metrics=MetricLog(run.metrics_path, enabled=False),
        device=setting.device,
    )
    size = config.generator.render.image_size_px
    dataset = ImageDataset(config.data.path, size, config.data.mask, config.data.read, setting.device)
    return Get3dTrainer(config, session, dataset)


def _measurable(config: TrainerConfig) -> TrainerConfig:
    """Return the same mathematics with R1 in every other step; its weight is no matter of time."""
    loss = dataclasses.replace(config.loss, r1_interval=_KINDS)
    changes: dict[str, Any] = {"loss": loss, "num_images": 2**62}
    return dataclasses.replace(config, **changes)


def _seconds(act: Callable[[], object], device: str) -> float:
    begun_s = time.perf_counter()
    act()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begun_s


def _memory_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _device_bytes(device: str) -> int:
    return torch.cuda.mem_get_info()[1] if device.startswith("cuda") else 0

"""The sum of gradients over workers: bits and time through the memory of the host, and between GPUs."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from get3d_cluster.runtime.env import child_environment
from tests.gpu.setting import Facts, Setting, Skipped

LONGEST_S = 150


def check_sums_through_the_host(setting: Setting) -> Facts:
    """One, two and three workers on one device add through pinned memory: the bits of one worker of the CPU."""
    facts: Facts = {}
    for mode in ("exact", "exact_bf16", "flat"):
        expected = _told(setting, ["cpu"], "auto", mode)["digest"]
        for world in (1, 2) if setting.toy else (1, 2, 3):
            told = _told(setting, [setting.device] * world, "auto", mode)
            assert told["digest"] == expected, (
                f"{mode}, {world} workers: other bits than one worker of the CPU"
            )
            assert told["via"] == "host"
            facts[f"{mode}, {world} workers"] = "equal"
    return facts


def check_sums_between_gpus(setting: Setting) -> Facts:
    """Workers with a GPU each add over NCCL, and through their hosts: the bits of one worker of the CPU."""
    devices = _devices(setting)
    facts: Facts = {}
    for mode in ("exact", "exact_bf16"):
        expected = _told(setting, ["cpu"], "auto", mode)["digest"]
        for world in range(2, len(devices) + 1):
            for via in ("device", "host"):
                told = _told(setting, devices[:world], via, mode)
                assert told["digest"] == expected, (
                    f"{mode}, {via}, {world} workers: other bits than the CPU's"
                )
                assert told["via"] == via
                facts[f"{mode}, {via}, {world} workers"] = "equal"
    return facts


def check_price_of_sums(setting: Setting) -> Facts:
    """How long two workers on one device take for one sum of gradients."""
    told = _told(setting, [setting.device] * 2, "auto", "exact", timed=True)
    return {"numbers": told["numbers"], "sum alone, ms": told["sum_ms"], "by way of": told["via"]}


def check_price_of_sums_between_gpus(setting: Setting) -> Facts:
    """The same on all GPUs: both ways, the library's own sum, and what `auto` chooses."""
    devices = _devices(setting)
    ways = {
        "between GPUs": ("device", "exact"),
        "through hosts": ("host", "exact"),
        "library": ("device", "fast"),
    }
    facts: Facts = {
        f"{name}, ms": _told(setting, devices, via, mode, timed=True)["sum_ms"]
        for name, (via, mode) in ways.items()
    }
    chosen = _told(setting, devices, "auto", "exact")
    return facts | {"auto takes": chosen["via"], "its measurements, s": chosen["measured_s"]}


def _devices(setting: Setting) -> list[str]:
    """Return the GPUs, of which workers need one each."""
    count = torch.cuda.device_count() if setting.device.startswith("cuda") else 0
    if count < 2:
        raise Skipped(
            f"{count} GPU here, and NCCL wants one for each worker: SUMS OVER NCCL ARE NOT CHECKED, neither their bits "
            f"nor their time, nor what `auto` chooses"
        )
    return [f"cuda:{number}" for number in range(count)]


def _told(setting: Setting, devices: Sequence[str], via: str, mode: str, *, timed: bool = False) -> dict:
    """Run one worker on each of ``devices``; return what rank 0 told, whose digest all have."""
    meeting = setting.path("meeting")
    arguments = [via, mode, str(int(timed)), str(int(setting.toy)), ",".join(setting.without)]
    workers = [
        subprocess.Popen(
            [
                sys.executable, "-m", "tests.gpu.one_exchange",
                str(meeting), str(rank), str(len(devices)), device, *arguments,
            ],
            cwd=Path(__file__).parents[2],
            env=child_environment({"OMP_NUM_THREADS": "1"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, device in enumerate(devices)
    ]  # fmt: skip
    try:
        texts = [worker.communicate(timeout=LONGEST_S)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for rank, (worker, text) in enumerate(zip(workers, texts, strict=True)):
        assert worker.returncode == 0, f"rank {rank}: exit {worker.returncode}\n{text[-3000:]}"
    rows = [
        json.loads(line.partition(" ")[2])
        for text in texts
        for line in text.splitlines()
        if line.startswith("told ")
    ]
    assert len(rows) == len(devices), texts[0][-3000:]
    assert len({row["digest"] for row in rows}) == 1, "the workers differ from each other"
    return rows[0]


CHECKS = (
    check_sums_through_the_host,
    check_sums_between_gpus,
    check_price_of_sums,
    check_price_of_sums_between_gpus,
)

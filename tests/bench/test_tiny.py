"""Images a second of a training as a user starts it: `launch.py run train --config tiny_cpu`, with its two workers.

    .venv/bin/python -m pytest -m bench -s tests/bench/test_tiny.py

The aim is 60 on 2 cores that do nothing else. Sheets, measurements, TensorBoard and checkpoints are switched off, since
clocks begin them; all else is the configuration as it is. The images are flat discs of 64 px: what a step costs depends
on the generated shapes, and on the real ones not at all. GET3D_BENCH_SECONDS=5 only tries it, and writes no file.
"""

import json
import os
import platform
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from tests.launching import start_launch, wait_until
from tests.train_setup import dataset

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

AIM_IMAGES_PER_S = 60
SECONDS = float(os.environ.get("GET3D_BENCH_SECONDS", "60"))
WARM_UP_IMAGES = 400
RESULT = Path(__file__).parent / "results" / "tiny.json"
CHANGED = (
    "num_images=10000000",
    "watch.log_every_steps=5",
    "watch.preview_every_s=0",
    "watch.measure_every_s=0",
    "watch.tensorboard_every_s=0",
    "checkpoint.every_s=100000",
)


def last_row(run: RunFolder) -> dict[str, Any]:
    rows = read_rows(run.metrics_path)
    return rows[-1] if rows else {"images": 0}


def seen(run: RunFolder, process: subprocess.Popen[str], images: int) -> tuple[float, dict[str, Any]]:
    """Wait for a row with more than ``images``; return when it was seen, and the row."""

    def is_there() -> bool:
        assert process.poll() is None, (process.communicate(), run.log_path(1, 0).read_text()[-2000:])
        return bool(last_row(run)["images"] > images)

    wait_until(is_there, timeout_s=240, what="rows of metrics.jsonl")
    return time.monotonic(), last_row(run)


@pytest.mark.usefixtures("queue")
def test_images_per_second_of_tiny_cpu(tmp_path: Path) -> None:
    load = os.getloadavg()[0]
    data, run = dataset(tmp_path / "data", size=64), RunFolder(tmp_path / "runs" / "tiny")
    words = ("run", "train", "--config", "tiny_cpu", "--runs", run.path.parent, "--name", run.name)
    with start_launch(*words, f"data.path={data}", *CHANGED) as process:
        try:
            begun_s, first = seen(run, process, WARM_UP_IMAGES)
            time.sleep(SECONDS)
            ended_s, last = seen(run, process, last_row(run)["images"])
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 75, out + err  # suspended, as asked
    images = last["images"] - first["images"]
    in_steps = images / (last["seconds"] - first["seconds"])
    found = {
        "images/s": round(images / (ended_s - begun_s), 2),
        "images/s of the time in steps": round(in_steps, 2),
        "aim": AIM_IMAGES_PER_S,
        "images": images,
        "seconds": round(ended_s - begun_s, 1),
        "switched off or changed": CHANGED,
        "load before": round(load, 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    print("\n" + json.dumps(found, indent=1))
    assert last["skipped_steps"] == 0
    assert last["loss_g"] != first["loss_g"]
    if "GET3D_BENCH_SECONDS" not in os.environ:
        RESULT.write_text(json.dumps(found, indent=1) + "\n")

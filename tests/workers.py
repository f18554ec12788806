"""Runs and their workers for tests: real processes, started as a scheduler would, but without one."""

import json
import signal
import subprocess
import time
from pathlib import Path

from get3d_cluster.config import find_job, load, save_text
from get3d_cluster.core.job import JobSpec
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.simulate import start_workers

PLAIN = "tests.plain.job"


def make_run(path: Path, job: str = PLAIN, *overrides: str, config: Path | None = None) -> RunFolder:
    """Write the folder of a run as a submission does."""
    path.mkdir(parents=True)
    run = RunFolder(path)
    module = find_job(job)
    run.config_path.write_text(save_text(load(module.Config, config, overrides)))
    run.write_spec(JobSpec(name=path.name, job=job, kind=module.KIND, created="2026-01-01T00:00:00"))
    return run


def start(run: RunFolder, world_size: int = 1) -> list[subprocess.Popen]:
    """Start all workers of the next attempt, each with a log file in the attempt's folder."""
    return start_workers(run, world_size)


def wait(workers: list[subprocess.Popen], timeout_s: float = 90) -> list[int]:
    """Return the exit codes; kill what does not end in time and fail."""
    try:
        return [worker.wait(timeout_s) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def wait_for_step(run: RunFolder, step: int, timeout_s: float = 60) -> None:
    """Wait until the run has logged ``step``."""
    end = time.monotonic() + timeout_s
    while not any(row["step"] >= step for row in read_rows(run.metrics_path)):
        assert time.monotonic() < end, logs(run)
        time.sleep(0.02)


def stop(
    workers: list[subprocess.Popen], number: int = signal.SIGTERM, ranks: list[int] | None = None
) -> None:
    for rank in range(len(workers)) if ranks is None else ranks:
        workers[rank].send_signal(number)


def run_to_end(run: RunFolder, world_size: int = 1) -> str:
    """Run the next attempt to its end; return the final digest."""
    assert wait(start(run, world_size)) == [0] * world_size, logs(run)
    return final_digest(run)


def final_digest(run: RunFolder) -> str:
    digest = json.loads(run.done_path.read_text())["digest"]
    assert len(digest) == 64
    return digest


def logs(run: RunFolder) -> str:
    return "\n".join(
        f"== {path}\n{path.read_text()[-3000:]}" for path in sorted(run.attempts_dir.glob("*/*.log"))
    )

"""Workers of a rehearsal: real processes on this machine, without a scheduler."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from get3d_cluster.runtime.env import WorkerEnv, child_environment, worker_variables
from get3d_cluster.runtime.run_folder import RunFolder

POLL_S = 0.02
PEERS_S = 60.0
"""How long the others are waited for after one worker ended with an error; they wait for it in vain."""
KILLED_PEERS_S = 10.0
"""The same after one was ended by a signal, which a scheduler sees at once."""

Workers = Sequence[subprocess.Popen[bytes]]


def start_workers(run: RunFolder, world_size: int, *, cpus: int = 1) -> list[subprocess.Popen[bytes]]:
    """Start all workers of the next attempt here; each logs into the attempt's folder.

    ``cpus`` are the threads of each. Each leads a process group of its own, so that it can be killed with all that it
    started.
    """
    attempt = run.new_attempt()
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(world_size):
            env = WorkerEnv(rank=rank, local_rank=rank, world_size=world_size, attempt=attempt)
            variables = child_environment(worker_variables(env, cpus=cpus))
            command = [sys.executable, "-m", "get3d_cluster.worker", str(run.path)]
            with run.log_path(attempt, rank).open("wb") as log:
                root = Path(__file__).parents[2]
                workers.append(
                    subprocess.Popen(
                        command, cwd=root, env=variables, stdout=log, stderr=log, process_group=0
                    )
                )
    except BaseException:
        kill(workers)
        raise
    return workers


def wait(workers: Workers) -> list[int]:
    """Return the exit codes. Nothing is left running, however this is left.

    Workers that are still there a while after another one failed are killed: they wait for it in vain.
    """
    failed_s: float | None = None
    with none_left(workers):
        while any(worker.poll() is None for worker in workers):
            codes = [worker.returncode for worker in workers if worker.returncode]
            if codes and failed_s is None:
                failed_s = time.monotonic()
            patience_s = KILLED_PEERS_S if any(code < 0 for code in codes) else PEERS_S
            if failed_s is not None and time.monotonic() - failed_s > patience_s:
                break
            time.sleep(POLL_S)
    return [worker.wait() for worker in workers]


@contextlib.contextmanager
def none_left(workers: Workers) -> Iterator[None]:
    """Kill what is still running when the block is left, in whatever way."""
    try:
        yield
    finally:
        kill(workers)


def kill(workers: Workers) -> None:
    """End workers as a machine that loses its power does: with ``kill -9`` to each and to all that it started."""
    alive = [worker for worker in workers if worker.poll() is None]
    for worker in alive:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    for worker in alive:
        worker.wait()

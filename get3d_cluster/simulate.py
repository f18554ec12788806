"""Proves the promise on a job of one's own: real workers, real signals at random moments, digests compared.

One run goes from start to end undisturbed. A second one of the same config is stopped again and again, by a notice or
by ``kill -9``, and comes back each time, on the next number of workers of a list. Both must end with the same SHA-256
of the whole training state.
"""

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from get3d_cluster.config import find_job, save_text
from get3d_cluster.core.job import JobSpec
from get3d_cluster.errors import ExitCode, Get3dError, UsageError
from get3d_cluster.runtime.env import WorkerEnv, child_environment, worker_variables
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder, read_json

POLL_S = 0.02
PEERS_S = 60.0
NOTICES = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
COME_BACK = (ExitCode.SUSPENDED, ExitCode.SUSPENDED_PERIODIC)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done to the second run."""

    stops: int = 3
    worlds: tuple[int, ...] = (1,)
    """Numbers of workers, one an attempt, over and over."""
    kill_ratio: float = 0.0
    """Share of the stops that are ``kill -9`` of all workers instead of a notice to one of them."""
    seed: int = 0
    first: float = 0.0
    last: float = 1.0
    """Stops fall between these fractions of the run."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One stop and the way back."""

    world_size: int
    how: str
    reached_step: int
    """Step that was seen when the signal was sent."""
    left_step: int
    """Step at which the workers left; for a kill the last one they logged."""
    resumed_step: int
    saved: bool
    pids: tuple[int, ...]

    @property
    def steps_lost(self) -> int:
        """Steps that have to be done again."""
        return max(0, self.left_step - self.resumed_step)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came out."""

    digest: str
    other_digest: str
    stops: tuple[Stop, ...]
    seconds: float

    @property
    def is_exact(self) -> bool:
        return self.digest == self.other_digest


def simulate(job: str, config: Any, folder: Path, plan: Plan, tell: Callable[[str], None]) -> Verdict:
    """Run both runs below ``folder``, which is emptied first, and compare.

    Raises: UsageError for a plan that cannot be carried out; Get3dError if a run fails for another reason.
    """
    _check(job, config, plan)
    begun_s = time.monotonic()
    straight = _new_run(folder / "straight", job, config)
    tell(f"once through on {plan.worlds[0]} workers")
    wait(start_workers(straight, plan.worlds[0]))
    digest = _digest(straight)
    broken = _new_run(folder / "stopped", job, config)
    stops = _stop_again_and_again(broken, plan, tell)
    return Verdict(
        digest=digest, other_digest=_digest(broken), stops=stops, seconds=time.monotonic() - begun_s
    )


def start_workers(run: RunFolder, world_size: int) -> list[subprocess.Popen[bytes]]:
    """Start all workers of the next attempt here, without a scheduler; each logs into the attempt's folder."""
    attempt = run.new_attempt()
    workers = []
    for rank in range(world_size):
        env = WorkerEnv(rank=rank, local_rank=rank, world_size=world_size, attempt=attempt)
        variables = child_environment(worker_variables(env, cpus=1))
        command = [sys.executable, "-m", "get3d_cluster.worker", str(run.path)]
        with run.log_path(attempt, rank).open("wb") as log:
            root = Path(__file__).parents[1]
            workers.append(subprocess.Popen(command, cwd=root, env=variables, stdout=log, stderr=log))
    return workers


def wait(workers: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Return the exit codes. Nothing is left running, however this is left.

    Workers that are still there ``PEERS_S`` after another one failed are killed: they wait for it in vain.
    """
    failed_s: float | None = None
    try:
        while any(worker.poll() is None for worker in workers):
            if failed_s is None and any(worker.poll() for worker in workers):
                failed_s = time.monotonic()
            if failed_s is not None and time.monotonic() - failed_s > PEERS_S:
                break
            time.sleep(POLL_S)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
    return [worker.wait() for worker in workers]


def _check(job: str, config: Any, plan: Plan) -> None:
    if find_job(job).KIND != "steps":
        raise UsageError(
            f"job {job} shares out items and keeps no state to compare", "simulate a job such as train"
        )
    if not 0 <= plan.kill_ratio <= 1 or not 0 <= plan.first < plan.last <= 1:
        raise UsageError(f"kill_ratio={plan.kill_ratio} must lie between 0 and 1", "try --kill-ratio 0.5")
    most = getattr(find_job(job), "most_workers", lambda _: max(plan.worlds))(config)
    if max(plan.worlds) > most:
        raise UsageError(
            f"--worlds {max(plan.worlds)}: this run can use {most} workers at most", "name smaller worlds"
        )


def _new_run(path: Path, job: str, config: Any) -> RunFolder:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    run = RunFolder(path)
    run.config_path.write_text(save_text(config))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    run.write_spec(JobSpec(name=path.name, job=job, kind="steps", created=created))
    return run


def _stop_again_and_again(run: RunFolder, plan: Plan, tell: Callable[[str], None]) -> tuple[Stop, ...]:
    choose = random.Random(plan.seed)  # noqa: S311  a rehearsal, reproducible by its seed
    fractions = sorted(choose.uniform(plan.first, plan.last) for _ in range(plan.stops))
    stops: list[Stop] = []
    for number, fraction in enumerate([*fractions, None]):
        world_size = plan.worlds[number % len(plan.worlds)]
        workers = start_workers(run, world_size)
        pids = tuple(worker.pid for worker in workers)
        how, reached = "", 0
        if fraction is not None:
            reached = _wait_for(run, fraction, workers)
            how = _strike(workers, choose, kill=choose.random() < plan.kill_ratio)
        codes = wait(workers)
        if fraction is None or run.is_done():
            _complete(run, codes)
            break
        stops.append(_describe(run, world_size, how, reached, pids))
        tell(_sentence(number + 1, stops[-1]))
    return _with_return(run, stops)


def _wait_for(run: RunFolder, fraction: float, workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait until the run passes ``fraction`` of its steps, or ends; return the step seen."""
    while all(worker.poll() is None for worker in workers):
        step, num_steps = _progress(run)
        if num_steps and step >= fraction * num_steps:
            return step
        time.sleep(POLL_S)
    return _progress(run)[0]


def _strike(workers: Sequence[subprocess.Popen[bytes]], choose: random.Random, *, kill: bool) -> str:
    """Send the signal; a notice goes to one worker only, as some schedulers do."""
    if kill:
        for worker in workers:
            worker.kill()
        return "kill -9"
    number = choose.choice(NOTICES)
    rank = choose.randrange(len(workers))
    workers[rank].send_signal(number)
    return f"{number.name} to rank {rank}"


def _describe(run: RunFolder, world_size: int, how: str, reached: int, pids: tuple[int, ...]) -> Stop:
    outcome = run.outcome(run.attempts()[-1])
    if outcome is not None and outcome.exit_code not in COME_BACK:
        raise Get3dError(f"attempt {outcome.attempt} failed: {outcome.message}", f"see {run.attempts_dir}")
    left = outcome.end_step if outcome else max(_last_logged(run), run.saved_step())
    return Stop(
        world_size=world_size,
        how=how,
        reached_step=reached,
        left_step=left,
        resumed_step=run.saved_step(),
        saved=outcome is not None,
        pids=pids,
    )


def _with_return(run: RunFolder, stops: list[Stop]) -> tuple[Stop, ...]:
    """Correct where each attempt really resumed by what it logged itself."""
    resumed = {
        row["attempt"]: row["step"]
        for row in read_rows(run.events_path)
        if row["event"] in ("start", "resume")
    }
    return tuple(
        dataclasses.replace(stop, resumed_step=resumed.get(number + 2, stop.resumed_step))
        for number, stop in enumerate(stops)
    )


def _complete(run: RunFolder, codes: list[int]) -> None:
    if not run.is_done():
        attempt = run.attempts()[-1]
        log = run.log_path(attempt, 0)
        raise Get3dError(
            f"attempt {attempt} of {run.path} ended with {codes} instead of finishing", f"see {log}"
        )


def _digest(run: RunFolder) -> str:
    _complete(run, [])
    return str(read_json(run.done_path)["digest"])


def _last_logged(run: RunFolder) -> int:
    return max((row["step"] for row in read_rows(run.metrics_path)), default=0)


def _progress(run: RunFolder) -> tuple[int, int]:
    try:
        data = json.loads(run.progress_path.read_text())
    except (OSError, ValueError):
        return 0, 0
    return max(data["step"], _last_logged(run)), data["num_steps"]


def _sentence(number: int, stop: Stop) -> str:
    lost = f"{stop.steps_lost} steps to do again" if stop.steps_lost else "nothing lost"
    return f"stop {number}: {stop.how} at step {stop.left_step} on {stop.world_size} workers, {lost}"

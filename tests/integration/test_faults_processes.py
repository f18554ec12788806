"""Signals and deaths that need real processes: inside a collective, while leaving, asleep for long."""

import dataclasses
import json
import signal
import sys
import time
from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.local_files import QueueFolder
from tests.launching import launch, status, wait_until
from tests.workers import final_digest, logs, make_run, run_to_end, start, stop, wait, wait_for_step

UNEVEN = "tests.jobs_for_tests.uneven"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of 12 steps on one worker."""
    return run_to_end(make_run(tmp_path_factory.mktemp("uneven") / "run", UNEVEN))


def notices_of(run: RunFolder) -> list[dict]:
    return [row for row in read_rows(run.events_path) if row["event"] == "notice"]


def test_signals_inside_a_collective_and_at_different_moments_stop_all_at_one_step(
    tmp_path: Path, uninterrupted: str
) -> None:
    run = make_run(tmp_path / "run", UNEVEN, "slow_rank=1")
    workers = start(run, 2)
    wait_for_step(run, 2)
    time.sleep(0.1)  # rank 0 waits for the gradient of rank 1, which sleeps
    stop(workers, signal.SIGTERM, ranks=[0])
    time.sleep(0.2)
    stop(workers, signal.SIGTERM, ranks=[1])
    assert wait(workers) == [75, 75], logs(run)
    outcome = run.outcome(1)
    assert outcome is not None
    assert outcome.saved_step == outcome.end_step >= 2
    (notice,) = notices_of(run)
    assert notice["ranks"] == [0, 1]
    assert run_to_end(run) == uninterrupted
    assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 13))


def test_a_worker_that_dies_while_all_leave_costs_at_most_the_steps_since_the_last_save(
    tmp_path: Path, uninterrupted: str
) -> None:
    run = make_run(tmp_path / "run", UNEVEN, "slow_rank=0", "slow_s=0.15", "checkpoint.every_steps=1")
    workers = start(run, 2)
    wait_for_step(run, 3)
    stop(workers, signal.SIGTERM)
    stop(workers, signal.SIGKILL, ranks=[1])
    codes = wait(workers)
    assert codes[1] == -signal.SIGKILL
    outcome = run.outcome(1)
    assert outcome is not None, logs(run)
    assert outcome.cause is Cause.PREEMPTED
    assert outcome.saved_step >= 2
    assert run_to_end(run) == uninterrupted


@pytest.mark.parametrize("asleep_s", [3.0, pytest.param(60.0, marks=pytest.mark.long)])
def test_a_run_that_was_put_to_sleep_goes_on_as_if_nothing_had_been(
    tmp_path: Path, uninterrupted: str, asleep_s: float
) -> None:
    run = make_run(tmp_path / "run", UNEVEN, "step_s=0.3")
    workers = start(run, 2)
    wait_for_step(run, 3)
    stop(workers, signal.SIGSTOP)
    time.sleep(asleep_s)
    stop(workers, signal.SIGCONT)
    assert wait(workers) == [0, 0], logs(run)
    assert final_digest(run) == uninterrupted
    assert notices_of(run) == []


def test_a_thread_that_never_ends_keeps_no_worker_once_all_is_saved(
    tmp_path: Path, uninterrupted: str
) -> None:
    run = make_run(tmp_path / "run", UNEVEN, "thread=true")
    workers = start(run)
    assert wait(workers, 60) == [0], logs(run)
    assert final_digest(run) == uninterrupted


def test_exit_codes_that_are_lost_on_the_way_change_nothing(queue: QueueFolder, tmp_path: Path) -> None:
    swallowing = tmp_path / "python"
    swallowing.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit 0\n')
    swallowing.chmod(0o755)
    run = make_run(tmp_path / "run", "tests.jobs_for_tests.slow_parts", "fail=0@3", "retry.max_crashes=1")
    run.write_spec(dataclasses.replace(run.spec(), python=str(swallowing)))
    assert launch("resume", run.path).returncode == 0
    outcome = wait_until(lambda: run.outcome(1))
    assert (outcome.cause, outcome.exit_code) == (Cause.CRASHED, 1)
    assert "the weather" in outcome.message
    exits = wait_until(lambda: (path := run.attempt_dir(1) / "exit.json").exists() and path.read_text())
    assert json.loads(exits)["codes"] == {"0": 0}
    row = wait_until(lambda: (row := status(run))["state"] == "HELD" and row)
    assert "the weather" in row["why"]
    assert not run.is_done()

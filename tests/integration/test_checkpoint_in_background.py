"""Runs whose checkpoints are written by processes of their own: stopped, killed, their writers killed; same bits."""

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from get3d_cluster.config import find_job, load
from get3d_cluster.runtime.checkpoint import list_checkpoints
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.simulate import Plan, simulate
from tests.launching import wait_until
from tests.workers import PLAIN, logs, make_run, run_to_end, start, stop, wait, wait_for_step

ALWAYS = ("checkpoint.background_mb=0", "checkpoint.every_steps=2", "checkpoint.every_s=0", "num_steps=24")
SLOW = "step_s=0.05"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the same run saved by the worker itself."""
    return run_to_end(make_run(tmp_path_factory.mktemp("straight") / "run", PLAIN, "num_steps=24"))


def saves_of(run: RunFolder) -> list[dict]:
    return [row for row in read_rows(run.events_path) if row["event"] == "save"]


def writers_of(workers: list) -> dict[int, int]:
    """Return the process ids of the writers by those of their workers."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if b"get3d_cluster.runtime.checkpoint_writer" in words:
            found[parent] = int(path.name)
    return {worker.pid: found[worker.pid] for worker in workers if worker.pid in found}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_any_number_of_workers_writes_checkpoints_that_any_other_number_reads(
    tmp_path: Path, uninterrupted: str, world_size: int
) -> None:
    run = make_run(tmp_path / "run", PLAIN, *ALWAYS)
    assert run_to_end(run, world_size) == uninterrupted, logs(run)
    assert {info.state for info in list_checkpoints(run, verify=True)} == {"ok"}
    assert len(saves_of(run)) >= 2
    assert saves_of(run)[-1]["step"] == 24
    files = {path.name for path in (run.checkpoints_dir / "step-000000024").iterdir()}
    assert any("+" in name for name in files) == (world_size > 1)
    assert not any(path.name.startswith(".") for path in run.checkpoints_dir.iterdir())


def test_stopped_and_killed_on_changing_numbers_of_workers_it_ends_with_the_same_bits(
    tmp_path: Path, uninterrupted: str
) -> None:
    config = load(find_job(PLAIN).Config, None, [*ALWAYS, SLOW])
    plan = Plan(stops=3, worlds=(2, 3, 1), kill_ratio=0.5, seed=8)
    verdict = simulate(PLAIN, config, tmp_path, plan, lambda _: None)
    assert verdict.is_exact
    assert verdict.digest == uninterrupted
    assert {stop.how for stop in verdict.stops} > {"kill -9"}
    for stop_ in verdict.stops:
        assert stop_.steps_lost == 0 or stop_.how == "kill -9"


def test_a_notice_is_answered_by_a_save_of_that_very_step(tmp_path: Path, uninterrupted: str) -> None:
    run = make_run(tmp_path / "run", PLAIN, *ALWAYS, SLOW)
    workers = start(run, 2)
    wait_for_step(run, 5)
    stop(workers, signal.SIGTERM, ranks=[1])
    assert wait(workers) == [75, 75], logs(run)
    outcome = run.outcome(1)
    assert outcome is not None
    assert outcome.saved_step == outcome.end_step >= 5
    assert list_checkpoints(run, verify=True)[-1].step == outcome.end_step
    assert run_to_end(run, 3) == uninterrupted


def test_writers_that_are_killed_are_replaced_and_cost_no_step(tmp_path: Path, uninterrupted: str) -> None:
    run = make_run(tmp_path / "run", PLAIN, *ALWAYS, "step_s=0.5")
    workers = start(run, 2)
    killed: set[int] = set()
    while len(killed) < 4:
        for pid in wait_until(lambda: set(writers_of(workers).values()) - killed):
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    assert wait(workers) == [0, 0], logs(run)
    assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 25))
    assert saves_of(run)[-1]["digest"] == uninterrupted


def test_a_stopped_writer_blocks_no_step(tmp_path: Path, uninterrupted: str) -> None:
    run = make_run(tmp_path / "run", PLAIN, *ALWAYS, SLOW)
    workers = start(run)
    wait_for_step(run, 4)
    (pid,) = wait_until(lambda: writers_of(workers).values())
    os.kill(pid, signal.SIGSTOP)
    try:
        before = len(saves_of(run))
        wait_for_step(run, 20)
        assert len(saves_of(run)) <= before + 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert wait(workers) == [0], logs(run)
    assert saves_of(run)[-1]["digest"] == uninterrupted


def test_nothing_is_left_when_a_run_has_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", PLAIN, *ALWAYS, "step_s=0.2")
    workers = start(run, 2)
    writers = wait_until(lambda: len(found := set(writers_of(workers).values())) == 2 and found)
    assert wait(workers) == [0, 0], logs(run)
    assert not any(Path(f"/proc/{pid}").exists() for pid in writers)
    assert dataclasses.asdict(run.outcome(1))["exit_code"] == 0

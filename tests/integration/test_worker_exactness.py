"""The plain job through real workers: whatever stops it, its final state is that of the run never interrupted."""

import os
import random
import signal

import pytest

from get3d_cluster.core.job import Cause
from get3d_cluster.runtime.events import read_rows
from tests.workers import final_digest, logs, make_run, run_to_end, start, stop, wait, wait_for_step

STEPS = "num_steps=30"
SLOW = "step_s=0.05"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Digest of the run on one worker, never interrupted."""
    return run_to_end(make_run(tmp_path_factory.mktemp("plain") / "run", "tests.plain.job", STEPS))


def test_any_number_of_workers_ends_with_the_same_bits(tmp_path, uninterrupted):
    for world_size in (2, 3):
        assert (
            run_to_end(make_run(tmp_path / str(world_size), "tests.plain.job", STEPS), world_size)
            == uninterrupted
        )


def test_a_signal_to_one_rank_stops_all_at_one_step_and_another_number_goes_on(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", "tests.plain.job", STEPS, SLOW)
    workers = start(run, 2)
    wait_for_step(run, 7)
    stop(workers, signal.SIGUSR2, ranks=[1])
    assert wait(workers) == [75, 75], logs(run)
    outcome = run.outcome(1)
    assert outcome is not None
    assert (outcome.cause, outcome.saved_step) == (Cause.PREEMPTED, outcome.end_step)
    assert outcome.saved_step >= 7
    assert run_to_end(run, 1) == uninterrupted
    rows = read_rows(run.events_path)
    resumed = next(row for row in rows if row["event"] == "resume")
    suspended = next(row for row in rows if row["event"] == "suspend")
    assert resumed["step"] == suspended["step"] == outcome.saved_step
    (notice,) = (row for row in rows if row["event"] == "notice")
    assert (notice["cause"], notice["signal"], notice["ranks"]) == ("preempted", "SIGUSR2", [1])
    assert notice["step"] == suspended["step"]
    assert notice["t"] <= suspended["t"]
    assert resumed["digest"] == suspended["digest"] != ""
    assert resumed["pid"] != suspended["pid"]
    assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 31))


def test_kill_9_of_all_workers_loses_at_most_one_checkpoint_interval(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", "tests.plain.job", STEPS, SLOW, "checkpoint.every_steps=5")
    workers = start(run, 2)
    wait_for_step(run, random.randrange(6, 20))
    stop(workers, signal.SIGKILL)
    assert wait(workers) == [-9, -9]
    reached = read_rows(run.metrics_path)[-1]["step"]
    leftover = run.attempt_dir(1) / ".writing-outcome.json-01"
    leftover.write_text("{")
    os.utime(leftover, (1, 1))
    half_sheet = run.samples_dir / ".writing-000000048.png-01"
    half_sheet.parent.mkdir(exist_ok=True)
    half_sheet.write_text("")
    assert run_to_end(run, 2) == uninterrupted
    assert not half_sheet.exists()
    resumed = next(row for row in read_rows(run.events_path) if row["event"] == "resume")
    assert not leftover.exists()
    assert reached - 5 <= resumed["step"] <= reached
    assert [row["step"] for row in read_rows(run.metrics_path)] == list(range(1, 31))


def test_a_notice_in_every_attempt_still_reaches_the_same_end(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", "tests.plain.job", STEPS, SLOW)
    for attempt in range(1, 5):
        workers = start(run)
        wait_for_step(run, 6 * attempt)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            stop(workers, number)
        assert wait(workers) == [75], logs(run)
    assert run_to_end(run) == uninterrupted


def test_a_notice_during_the_imports_loses_nothing(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", "tests.plain.job", STEPS)
    workers = start(run)
    lease = run.lease_path
    while not lease.exists() and workers[0].poll() is None:
        pass
    stop(workers)
    assert wait(workers) == [75], logs(run)
    assert run_to_end(run) == uninterrupted


def test_a_finished_run_starts_no_more(tmp_path):
    run = make_run(tmp_path / "run", "tests.plain.job", "num_steps=2")
    run_to_end(run)
    before = run.done_path.read_text()
    assert wait(start(run)) == [0]
    assert run.done_path.read_text() == before


def test_a_second_copy_by_hand_is_refused_in_two_lines_while_the_first_lives(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", "tests.plain.job", STEPS, SLOW)
    first = start(run)
    wait_for_step(run, 2)
    import subprocess
    import sys

    command = [sys.executable, "-m", "get3d_cluster.worker", str(run.path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 77
    assert 1 <= len(second.stderr.splitlines()) <= 3
    assert str(first[0].pid) in second.stderr
    assert wait(first) == [0], logs(run)
    assert final_digest(run) == uninterrupted


def test_a_newer_attempt_fences_out_the_older_one_which_publishes_nothing_more(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", "tests.plain.job", STEPS, "step_s=0.1", "checkpoint.every_steps=4")
    old = start(run)
    wait_for_step(run, 6)
    assert run_to_end(run) == uninterrupted
    assert wait(old) == [77], logs(run)
    saves = [row for row in read_rows(run.events_path) if row["event"] == "save"]
    newer = next(i for i, row in enumerate(saves) if row["attempt"] == 2)
    assert all(row["attempt"] == 2 for row in saves[newer:])


def test_a_fenced_attempt_leaves_long_before_its_next_save(tmp_path):
    run = make_run(tmp_path / "run", "tests.plain.job", "num_steps=100000", SLOW)
    old = start(run)
    wait_for_step(run, 2)
    new = start(run)
    try:
        assert wait(old, 60) == [77], logs(run)
        assert new[0].poll() is None
    finally:
        stop(new)
    assert wait(new) == [75], logs(run)
    assert not [row for row in read_rows(run.events_path) if row["event"] == "save" and row["attempt"] == 1]


def test_a_dead_worker_ends_the_attempt_and_the_run_comes_back(tmp_path, uninterrupted):
    run = make_run(tmp_path / "run", "tests.plain.job", STEPS, SLOW, "checkpoint.every_steps=3")
    workers = start(run, 2)
    wait_for_step(run, 8)
    stop(workers, signal.SIGKILL, ranks=[1])
    codes = wait(workers)
    assert codes[1] == -9
    assert codes[0] == 1
    outcome = run.outcome(1)
    assert outcome is not None
    assert outcome.cause is Cause.CRASHED
    assert outcome.end_step == read_rows(run.metrics_path)[-1]["step"] >= 8
    assert outcome.saved_step == run.saved_step() >= 6
    assert run_to_end(run, 2) == uninterrupted

"""Workers that hang, and workers that only stand still: real processes, seconds instead of half an hour."""

import signal
import time

import pytest

from get3d_cluster.core.job import Cause, Resources
from get3d_cluster.errors import ExitCode
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.goodput import goodput_of
from get3d_cluster.runtime.watchdog import read_heartbeats, read_verdict, stacks_path
from get3d_cluster.schedulers import open_scheduler
from tests.launching import wait_until
from tests.workers import PLAIN, final_digest, logs, make_run, run_to_end, start, stop, wait, wait_for_step

HANGING = "tests.jobs_for_tests.hanging"
HANG_S = 3.0
HANG = (f"retry.hang_s={HANG_S}", "retry.backoff_s=0.1")


def test_a_hang_is_found_explained_with_all_stacks_and_the_run_comes_back_by_itself(queue, tmp_path):
    run = make_run(tmp_path / "run", HANGING, "hang=1@8", "checkpoint.every_steps=5", *HANG)
    open_scheduler("local").submit(run, Resources(workers_per_node=2))
    outcome = wait_until(lambda: run.outcome(1), 90)
    assert (outcome.cause, outcome.exit_code) == (Cause.HUNG, ExitCode.HUNG), logs(run)
    assert (outcome.saved_step, outcome.end_step) == (5, 7)
    assert "did not come to the exchange of step 8" in outcome.message
    assert outcome.message.startswith("rank 1 on ")
    folder = run.attempt_dir(1)
    assert str(stacks_path(folder, 1)) in outcome.message
    found = read_verdict(folder)
    assert found is not None
    assert (found.ranks, found.hosts) == ((1,), (read_heartbeats(folder)[1].node,))
    assert "in sleep_forever_here" in stacks_path(folder, 1).read_text()
    waiting = stacks_path(folder, 0).read_text()
    assert "in _arrived" in waiting
    assert "in sleep_forever_here" not in waiting
    assert [(beat.rank, beat.is_hung, beat.is_waiting) for beat in read_heartbeats(folder)] == [
        (0, True, True),
        (1, True, False),
    ]
    (hung,) = (row for row in read_rows(run.events_path) if row["event"] == "hung")
    assert (hung["attempt"], hung["ranks"], hung["step"]) == (1, [1], 7)

    assert wait_until(lambda: run.outcome(2), 90).cause is Cause.FINISHED, logs(run)
    assert final_digest(run) == run_to_end(make_run(tmp_path / "whole", PLAIN, "num_steps=12"))
    first = goodput_of(run).attempts[1]
    assert first.other_s >= HANG_S
    assert first.redone_s > 0.0


@pytest.mark.long
def test_a_worker_that_keeps_the_interpreter_to_itself_is_found_by_the_others(tmp_path):
    run = make_run(tmp_path / "run", HANGING, "hang=1@8", "deaf=true", *HANG)
    workers = start(run, 2)
    try:
        assert workers[0].wait(90) == ExitCode.HUNG, logs(run)
        assert "rank 1 on " in run.log_path(1, 0).read_text()
    finally:
        stop(workers, signal.SIGKILL, ranks=[1])
        wait(workers)


def test_workers_that_were_stopped_for_longer_and_go_on_are_not_hung(tmp_path):
    run = make_run(tmp_path / "run", PLAIN, "num_steps=60", "step_s=0.1", *HANG)
    workers = start(run, 2)
    wait_for_step(run, 5)
    stop(workers, signal.SIGSTOP)
    time.sleep(2 * HANG_S)
    stop(workers, signal.SIGCONT)
    assert wait(workers) == [0, 0], logs(run)
    assert "counts as no hang" in run.log_path(1, 0).read_text()
    assert not [row for row in read_rows(run.events_path) if row["event"] == "hung"]
    assert final_digest(run) == run_to_end(make_run(tmp_path / "whole", PLAIN, "num_steps=60"))


def test_the_times_of_a_real_run_add_up_and_its_steps_are_seen(tmp_path):
    run = make_run(tmp_path / "run", PLAIN, "num_steps=40", "step_s=0.1", "checkpoint.every_steps=10")
    begun_t = time.time()
    workers = start(run, 1)
    wait_for_step(run, 15)
    stop(workers, signal.SIGKILL)
    wait(workers)
    middle_s = time.time() - begun_t
    again_t = time.time()
    run_to_end(run)
    last_s = time.time() - again_t

    found = goodput_of(run).attempts
    first, second = found[1], found[2]
    lived = {number: item.wall_s - item.queued_s for number, item in found.items()}
    assert -0.3 < last_s - lived[2] < 0.1 * last_s + 5.0
    assert 0.0 <= middle_s - lived[1] < 10.0  # the last heartbeat may be 5 s old when it is killed
    assert 10 * 0.1 <= first.productive_s <= first.productive_s + first.redone_s < lived[1]
    assert second.productive_s >= 30 * 0.1
    assert second.starting_s > 0.3
    known_s = second.productive_s + second.waiting_s + second.saving_s + second.starting_s
    assert known_s + second.redone_s <= lived[2] + 0.01

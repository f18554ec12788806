"""Jobs that step together on a real SLURM: stopped in every usual way, they end as if nothing had happened."""

from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause
from get3d_cluster.runtime.run_folder import RunFolder
from tests.launching import launch, status
from tests.slurm.cluster import Cluster
from tests.slurm.training import NOTING, Training, reference, started

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

STEPS = 60
PLAIN_60 = (f"num_steps={STEPS}", "step_s=0.1")


def test_four_nodes_preempted_twice_come_back_and_lose_nothing(cluster: Cluster, tmp_path: Path) -> None:
    training = started(cluster, tmp_path / "run", "resources.nodes=4", *PLAIN_60)
    for attempt in (1, 2):
        training.wait_steps(attempt, 5)
        cluster.preempt(4, 0.5)
        training.check_stopped_together(attempt)
    training.wait_done()
    training.check_end(reference(STEPS))
    assert training.causes() == [Cause.PREEMPTED, Cause.PREEMPTED, Cause.FINISHED]
    assert training.lost() == [0, 0, 0]
    assert {training.job(attempt) for attempt in (1, 2, 3)} == {training.job(1)}


def test_a_requeue_by_hand_loses_nothing_and_costs_no_budget(cluster: Cluster, tmp_path: Path) -> None:
    training = started(cluster, tmp_path / "run", "resources.nodes=2", "retry.max_crashes=1", *PLAIN_60)
    training.wait_steps(1, 5)
    cluster.scontrol("requeue", training.job(1))
    training.check_stopped_together(1)
    training.wait_done()
    training.check_end(reference(STEPS))
    assert training.causes() == [Cause.REQUEUED, Cause.FINISHED]
    assert training.lost() == [0, 0]


def test_scancel_by_hand_saves_and_the_run_stays_away_until_resumed(cluster: Cluster, tmp_path: Path) -> None:
    training = started(cluster, tmp_path / "run", "resources.nodes=2", *PLAIN_60)
    training.wait_steps(1, 5)
    cluster.run("scancel", training.job(1))
    training.check_stopped_together(1)
    training.wait_absent()
    assert training.causes() == [Cause.CANCELLED]
    assert status(training.run)["state"] == "CANCELLED"
    assert launch("resume", training.run.path).returncode == 0
    training.wait_done()
    training.check_end(reference(STEPS))
    assert training.lost() == [0, 0]


def test_a_time_limit_saves_comes_back_and_costs_no_budget(cluster: Cluster, tmp_path: Path) -> None:
    overrides = ("resources.nodes=2", "retry.max_crashes=1", "num_steps=350", "step_s=0.1")
    training = started(cluster, tmp_path / "run", *overrides)
    training.wait_steps(1, 5)
    job = training.job(1)
    cluster.scontrol(
        "update", f"JobId={job}", "TimeLimit=1"
    )  # the warning comes at SLURM's next look, each 30 s
    training.check_stopped_together(1)
    training.wait(lambda: cluster.state(job) == "PENDING", "it is queued again")
    cluster.scontrol("update", f"JobId={job}", "TimeLimit=UNLIMITED")
    training.wait_done()
    training.check_end(reference(350))
    assert training.causes() == [Cause.TIME_LIMIT, Cause.FINISHED]
    assert training.lost() == [0, 0]


def test_suspend_and_resume_from_the_command_line(cluster: Cluster, tmp_path: Path) -> None:
    words = ("--cluster", "slurm", "--runs", tmp_path, "--name", "run")
    done = launch("submit", NOTING, "resources.nodes=2", *PLAIN_60, *words)
    assert done.returncode == 0, done.stderr
    training = Training(cluster, RunFolder.open(tmp_path / "run"))
    training.wait_steps(1, 5)
    done = launch("suspend", training.run.path)
    assert done.returncode == 0, training.story()
    training.check_stopped_together(1)
    training.wait_absent()
    assert status(training.run)["state"] == "SUSPENDED"
    assert launch("resume", training.run.path).returncode == 0
    training.wait_done()
    training.check_end(reference(STEPS))
    assert training.causes() == [Cause.SUSPENDED, Cause.FINISHED]
    assert training.lost() == [0, 0]
    assert status(training.run)["state"] == "DONE"

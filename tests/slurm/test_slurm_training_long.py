"""Jobs that step together on a real SLURM, the long way: many preemptions, dead nodes, hangs, inopportune notices."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from get3d_cluster.config import save_text
from get3d_cluster.core.job import Cause, JobSpec
from get3d_cluster.errors import ExitCode
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.runtime.watchdog import stacks_path
from tests import train_setup
from tests.launching import launch, status
from tests.slurm.cluster import Cluster, running
from tests.slurm.training import Training, make_training, reference, started
from tests.workers import run_to_end

pytestmark = [pytest.mark.slurm, pytest.mark.long, pytest.mark.timeout(900)]

STEPS = 60
PLAIN_60 = (f"num_steps={STEPS}", "step_s=0.1")
EVERY = 10
"""Steps between periodic checkpoints: the most that a preemption may cost if there is no time to save."""
PATIENT = "retry.max_without_progress=30"
SLOW = "tests.jobs_for_tests.slow_parts"


@pytest.fixture
def daemons(cluster: Cluster) -> Iterator[None]:
    """Start the daemons again that a test has killed, without which a cluster takes no settings."""
    yield
    for number in range(1, 1 + cluster.nodes):
        cluster.start_slurmd(f"node{number}")


def check_free_losses(training: Training, most: int) -> None:
    """All attempts but the last were preempted, and each lost ``most`` steps at most."""
    assert set(training.causes()[:-1]) == {Cause.PREEMPTED}, training.story()
    assert training.causes()[-1] is Cause.FINISHED
    assert max(training.lost()) <= most, training.story()


# -------------------------------------------------------------------- many preemptions


@pytest.mark.parametrize("grace", [0, 60])
@pytest.mark.parametrize("user_signal", [False, True])
def test_five_preemptions_at_random_moments(
    cluster: Cluster, tmp_path: Path, user_signal: bool, grace: int
) -> None:
    """With GraceTime 0 all signals come within a tenth of a second, and KillWait (5 s) is left to save in."""
    cluster.set_grace("low", grace)
    cluster.set_user_signal(user_signal)
    moments = random.Random(10 * grace + user_signal)
    overrides = (PATIENT, f"checkpoint.every_steps={EVERY}", "num_steps=200", "step_s=0.2")
    training = started(cluster, tmp_path / "run", "resources.nodes=4", *overrides)
    for attempt in range(1, 6):
        training.wait_place(attempt)
        if moments.random() < 0.6:  # the others come while it starts
            training.wait_steps(attempt, 1)
        time.sleep(moments.uniform(0.0, 5.0))
        cluster.preempt(4, 0.5)
        training.wait_outcome(attempt)
    training.wait_done()
    training.check_end(reference(200))
    check_free_losses(training, EVERY if grace == 0 else 0)
    assert len(training.causes()) == 6
    assert sum(outcome.end_step > outcome.start_step for outcome in training.run.outcomes()[:-1]) >= 2


def test_preemption_by_qos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(preempt="qos", nodes=2) as cluster:
        monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        training = started(cluster, tmp_path / "run", "resources.nodes=2", "resources.qos=low", *PLAIN_60)
        for attempt in (1, 2):
            training.wait_steps(attempt, 5)
            cluster.preempt(2, 0.5)
            training.check_stopped_together(attempt)
        training.wait_done()
        training.check_end(reference(STEPS))
        check_free_losses(training, 0)


def test_where_preemption_cancels_a_successor_goes_on_and_dependents_wait_for_done(
    cluster: Cluster, tmp_path: Path
) -> None:
    there = "resources.partition=cancel"
    training = started(cluster, tmp_path / "run", "resources.nodes=2", there, *PLAIN_60)
    later = make_training(cluster, tmp_path / "later", there, "num_steps=5")
    later.submit([training.run])
    for attempt in (1, 2):
        training.wait_steps(attempt, 5)
        cluster.preempt(4, 0.5)
        training.check_stopped_together(attempt)
    training.wait_done()
    training.check_end(reference(STEPS))
    check_free_losses(training, 0)
    assert training.run.attempts() == [1, 2, 3]
    assert len({training.job(attempt) for attempt in (1, 2, 3)}) == 3
    later.wait_done()
    done_t = json.loads(training.run.done_path.read_text())["t"]
    assert later.run.attempts() == [1]
    assert later.wait_place(1).started >= done_t


def test_time_limits_of_one_minute_are_free(cluster: Cluster, tmp_path: Path) -> None:
    overrides = ("resources.time_limit_min=1", "resources.grace_s=10", "retry.max_crashes=1")
    training = started(
        cluster, tmp_path / "run", "resources.nodes=2", *overrides, "num_steps=600", "step_s=0.1"
    )
    training.wait_done(400)
    training.check_end(reference(600))
    *before, last = training.causes()
    assert set(before) == {Cause.TIME_LIMIT}
    assert last is Cause.FINISHED
    assert max(training.lost()) == 0


# -------------------------------------------------------------------- notices at bad moments


@pytest.mark.parametrize("user_signal", [False, True])
def test_a_notice_while_workers_start_loses_nothing(
    cluster: Cluster, tmp_path: Path, user_signal: bool
) -> None:
    cluster.set_user_signal(user_signal)
    training = started(cluster, tmp_path / "run", "resources.nodes=4", PATIENT, *PLAIN_60)
    for attempt, moment_s in enumerate((0.0, 0.3, 0.8, 1.5, 2.5, 4.0), 1):
        training.wait_place(attempt)
        time.sleep(moment_s)
        cluster.preempt(4, 0.5)
        training.wait_outcome(attempt)
    training.wait_done()
    training.check_end(reference(STEPS))
    check_free_losses(training, 0)
    assert list(training.run.attempts_dir.glob("*/early.rank*")), "no signal came before a handler stood"


def test_signals_in_the_first_second_of_a_task_are_kept(cluster: Cluster, tmp_path: Path) -> None:
    """Straight to the tasks, as often as it gets: 50 ms to seconds after the script of the task starts."""
    training = started(cluster, tmp_path / "run", "resources.nodes=2", PATIENT, *PLAIN_60)
    for attempt, moment_s in enumerate((0.05, 0.2, 0.5, 1.0, 2.0), 1):
        place = training.wait_place(attempt)
        log = training.run.log_path(attempt, 1)
        training.wait(log.exists, "the task has started")
        time.sleep(moment_s)
        cluster.run("scancel", "--signal=USR2", place.job)
        training.wait_outcome(attempt)
    training.wait_done()
    training.check_end(reference(STEPS))
    check_free_losses(training, 0)


def test_a_notice_in_the_first_step_is_answered_after_it(cluster: Cluster, tmp_path: Path) -> None:
    training = started(cluster, tmp_path / "run", "resources.nodes=2", "num_steps=6", "step_s=3")
    training.wait(lambda: training.events("start"), "the first step begins")
    cluster.preempt(4, 0.5)
    training.check_stopped_together(1)
    assert training.wait_outcome(1).saved_step == 1
    training.wait_done()
    training.check_end(reference(6))
    check_free_losses(training, 0)


def test_a_notice_inside_a_save_is_answered_after_it(cluster: Cluster, tmp_path: Path) -> None:
    slow = ("slow=[save]", "part_s=4", "checkpoint.every_steps=20", "step_s=0.05", "num_steps=30")
    training = started(cluster, tmp_path / "run", "resources.nodes=2", *slow, job=SLOW)
    training.wait((training.run.path / "in-save").exists, "a save has begun")
    cluster.preempt(4, 0.5)
    training.wait_outcome(1)
    saves = [(row["why"], row["step"]) for row in training.events("save", 1)]
    assert saves == [("periodic", 20), ("notice", 21)], "the save was over before the notice came"
    training.wait_done()
    training.check_end(reference(30, SLOW))
    check_free_losses(training, 0)


def test_a_second_notice_does_not_disturb_the_save_after_the_first(cluster: Cluster, tmp_path: Path) -> None:
    """USR2 at the beginning of the grace; TERM at its end, inside a save for which KillWait leaves the time."""
    cluster.change(user_signal="yes", grace=1, kill_wait=60)
    slow = ("slow=[save]", "part_s=40", "step_s=0.1", "num_steps=30")
    training = started(cluster, tmp_path / "run", "resources.nodes=2", *slow, job=SLOW)
    training.wait_steps(1, 5)
    cluster.preempt(4, 0.5)
    outcome = training.wait_outcome(1)
    assert outcome.exit_code == ExitCode.SUSPENDED
    assert outcome.saved_step == outcome.end_step >= 5
    (told,) = training.events("notice", 1)
    assert "SIGUSR2" in told["signal"]
    output = (training.run.slurm_dir / f"{training.job(1)}_0_log.out").read_text()
    assert "DUE TO PREEMPTION" in output, "TERM did not come while it saved"
    training.wait_done(150)
    training.check_end(reference(30, SLOW))
    check_free_losses(training, 0)


# -------------------------------------------------------------------- nodes, workers, hangs


@pytest.mark.usefixtures("daemons")
@pytest.mark.parametrize(("nodes", "victim"), [(1, 0), (3, 0), (3, 2)])
def test_a_node_whose_daemon_dies_loses_the_run_and_its_worker_publishes_no_more(
    cluster: Cluster, tmp_path: Path, nodes: int, victim: int
) -> None:
    cluster.change(slurmd_timeout=10)
    overrides = ("checkpoint.every_steps=10", "num_steps=500", "step_s=0.1", "retry.max_crashes=1")
    training = started(cluster, tmp_path / "run", f"resources.nodes={nodes}", *overrides)
    training.wait_steps(1, 15)
    node = training.hosts(1)[victim]
    orphan = training.pid(1, victim)
    cluster.kill_slurmd(node)
    training.wait_steps(2, 5, 150)
    assert node not in training.hosts(2)
    training.wait(lambda: not Path(f"/proc/{orphan}/cmdline").exists(), "the orphan leaves")
    if nodes == 1:
        assert training.exits(1) == {0: ExitCode.FENCED}
    training.wait_done()
    training.check_end(reference(500))
    assert training.causes() == [Cause.NODE_FAILURE, Cause.FINISHED]
    assert training.wait_outcome(1).failed_hosts == (node,)
    assert training.lost()[0] <= 10
    assert training.run.attempts() == [1, 2]


@pytest.mark.usefixtures("daemons")
def test_a_node_that_failed_twice_is_left_out(cluster: Cluster, tmp_path: Path) -> None:
    cluster.change(slurmd_timeout=10)
    overrides = ("checkpoint.every_steps=10", "num_steps=600", "step_s=0.1", "resources.exclude=node[3-4]")
    training = started(cluster, tmp_path / "run", *overrides)
    training.wait_steps(1, 12)
    (bad,) = training.hosts(1)
    (good,) = {"node1", "node2"} - {bad}
    lose(training, 1, bad)
    training.wait_steps(2, 12, 150)
    assert training.hosts(2) == (good,)
    revive(cluster, bad)
    high = cluster.preempt(good, 60)  # so long it has to go back to the bad one
    training.wait_steps(3, 12)
    assert training.hosts(3) == (bad,)
    lose(training, 3, bad)
    training.wait(lambda: cluster.nodes_in("down"), "SLURM notices")
    revive(cluster, bad)
    training.wait(lambda: f"without {bad}" in status(training.run)["why"], "status says so", 90)
    cluster.run("scancel", high, ok=False)
    training.wait_done(200)
    training.check_end(reference(600))
    assert training.causes() == [Cause.NODE_FAILURE, Cause.PREEMPTED, Cause.NODE_FAILURE, Cause.FINISHED]
    assert training.run.attempts() == [1, 2, 3, 4]
    assert training.hosts(4) == (good,)


def lose(training: Training, attempt: int, node: str) -> None:
    """Kill a node's daemon and stop its worker, which would go on with the run until another attempt takes over."""
    os.kill(training.pid(attempt, 0), signal.SIGSTOP)
    training.cluster.kill_slurmd(node)


def revive(cluster: Cluster, node: str) -> None:
    """Bring a node back whose daemon was killed, and that nothing of its old job runs on."""
    cluster.start_slurmd(node)
    cluster.wait_until(lambda: node in cluster.nodes_in("idle"), f"{node} is idle", 90)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_named_and_costs_the_crash_budget(
    cluster: Cluster, tmp_path: Path, rank: int
) -> None:
    overrides = ("checkpoint.every_steps=10", "retry.backoff_s=4", "retry.max_crashes=2")
    training = started(cluster, tmp_path / "run", "resources.nodes=2", *overrides, *PLAIN_60)
    training.wait_steps(1, 15)
    os.kill(training.pid(1, rank), signal.SIGKILL)
    outcome = training.wait_outcome(1)
    training.wait(lambda: training.wait_outcome(1).message.startswith(f"rank {rank} was killed"), "named", 20)
    assert "SIGKILL" in training.wait_outcome(1).message
    left_t = (training.run.attempt_dir(1) / "outcome.json").stat().st_mtime
    training.wait_done()
    training.check_end(reference(STEPS))
    assert training.causes() == [Cause.CRASHED, Cause.FINISHED]
    assert 0 <= outcome.end_step - outcome.saved_step <= 10
    assert training.job(2) != training.job(1)
    assert training.wait_place(2).started - left_t >= 3  # begin=now+4, in SLURM's whole seconds


def test_workers_that_are_killed_again_and_again_hold_the_run(cluster: Cluster, tmp_path: Path) -> None:
    overrides = ("retry.backoff_s=1", "retry.max_crashes=2")
    training = started(cluster, tmp_path / "run", "resources.nodes=2", *overrides, *PLAIN_60)
    for attempt in (1, 2):
        training.wait_steps(attempt, 5)
        os.kill(training.pid(attempt, 1), signal.SIGKILL)
        training.wait_outcome(attempt)
    training.wait_absent()
    row = status(training.run)
    assert row["state"] == "HELD", row
    assert "2 crashes" in row["why"]
    assert launch("resume", training.run.path).returncode == 0
    training.wait_done()
    training.check_end(reference(STEPS))
    assert training.causes() == [Cause.CRASHED, Cause.CRASHED, Cause.FINISHED]


def test_a_node_on_which_workers_hang_is_left_out_after_two_times(cluster: Cluster, tmp_path: Path) -> None:
    hang = ("hang_on=node2", "retry.hang_s=3", "retry.backoff_s=1", "checkpoint.every_steps=1")
    training = started(cluster, tmp_path / "run", "resources.nodes=2", *hang, *PLAIN_60)
    for attempt in (1, 2):
        outcome = training.wait_outcome(attempt)
        assert (outcome.cause, outcome.exit_code) == (Cause.HUNG, ExitCode.HUNG), training.story()
        training.wait(
            lambda number=attempt: training.wait_outcome(number).failed_hosts, "its node is named", 20
        )
        assert training.wait_outcome(attempt).failed_hosts == ("node2",)
        assert all(stacks_path(training.run.attempt_dir(attempt), rank).exists() for rank in (0, 1))
    training.wait_place(3)
    assert "node2" not in training.hosts(3)
    training.wait_done()
    training.check_end(reference(STEPS))
    assert training.causes() == [Cause.HUNG, Cause.HUNG, Cause.FINISHED]


# -------------------------------------------------------------------- held, and GET3D itself


@pytest.mark.parametrize("how", ["hold", "requeuehold"])
def test_a_job_held_in_slurm_is_shown_with_the_way_to_release_it(
    cluster: Cluster, tmp_path: Path, how: str
) -> None:
    training = started(cluster, tmp_path / "run", "resources.nodes=2", *PLAIN_60)
    training.wait_steps(1, 5)
    job = training.job(1)
    if how == "hold":
        high = cluster.preempt(4, 60)
        training.wait_outcome(1)
        training.wait(lambda: cluster.state(job) == "PENDING", "it waits")
        cluster.scontrol("hold", job)
        cluster.run("scancel", high)
    else:
        cluster.scontrol("requeuehold", job)
    training.wait(lambda: f"scontrol release {job}" in status(training.run)["why"], "status says how", 30)
    assert training.run.attempts() == [1]
    cluster.scontrol("release", job)
    training.wait_done()
    training.check_end(reference(STEPS))
    assert training.causes() == [Cause.REQUEUED if how == "requeuehold" else Cause.PREEMPTED, Cause.FINISHED]
    assert training.lost() == [0, 0]


def make_get3d(path: Path, data: Path, *overrides: str) -> RunFolder:
    config = train_setup.tiny_config(data, *overrides)
    path.mkdir()
    run = RunFolder(path)
    run.config_path.write_text(save_text(config))
    spec = JobSpec(
        name=path.name, job="train", kind="steps", created="2026-01-01T00:00:00", scheduler="slurm"
    )
    run.write_spec(spec)
    return run


def test_get3d_on_two_nodes_is_preempted_and_ends_with_the_same_weights(
    cluster: Cluster, tmp_path: Path
) -> None:
    data = train_setup.dataset(tmp_path / "data")
    images = "num_images=640"
    whole = make_get3d(tmp_path / "whole", data, images)
    digest = run_to_end(whole)
    training = Training(cluster, make_get3d(tmp_path / "run", data, images, "resources.nodes=2"))
    training.submit()
    for attempt in (1, 2):
        training.wait_steps(attempt, 3)
        cluster.preempt(4, 0.5)
        outcome = training.wait_outcome(attempt)
        assert outcome.saved_step == outcome.end_step > outcome.start_step
    training.wait_done()
    training.check_end(digest)
    check_free_losses(training, 0)

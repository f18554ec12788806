"""Chains of runs: each starts once the one before it is DONE, whatever SLURM made of its jobs meanwhile."""

import itertools
from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import slurm_files
from tests.launching import launch, status
from tests.slurm.cluster import Cluster
from tests.slurm.items import JOB, causes_by_element, check_items, log_of, wait_done

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def submit_chain(runs: Path, *links: tuple[str, ...]) -> list[RunFolder]:
    """Submit runs of items in one command, each a name and words, each after the one before it."""
    words: list[object] = []
    for name, *more in links:
        words += ["--then", JOB, "--name", name, f"out={runs / 'out' / name}", "grace_s=10", *more]
    done = launch("submit", *words[1:], "--cluster", "slurm", "--runs", runs)
    assert done.returncode == 0, done.stderr
    return [RunFolder.open(runs / name) for name, *_ in links]


def node_of(run: RunFolder) -> str:
    return status(run)["hosts"][0]


def first_work_s(run: RunFolder) -> float:
    """Return when a run began its first attempt, by the file system's clock."""
    return (run.attempt_dir(1) / "slurm.json").stat().st_mtime


def check_order(*runs: RunFolder) -> None:
    for parent, child in itertools.pairwise(runs):
        assert first_work_s(child) >= parent.done_path.stat().st_mtime


def test_a_chain_waits_for_a_parent_that_is_preempted_and_requeued(cluster: Cluster, tmp_path: Path) -> None:
    a, b, c = submit_chain(tmp_path, ("a", "items=16", "item_s=0.4"), ("b", "items=2"), ("c", "items=2"))
    cluster.wait_until(lambda: len(log_of(tmp_path / "out" / "a")) > 2, "a is at work")
    assert "waits for run a" in status(b)["why"]
    assert "waits for run b" in status(c)["why"]
    cluster.preempt(node_of(a), 1)
    cluster.wait_until(lambda: a.outcome(1), "a has left")
    assert status(b)["state"] == "PENDING"
    wait_done(cluster, a, b, c)
    assert causes_by_element(a) == {None: [Cause.PREEMPTED, Cause.FINISHED]}
    for run, count in ((a, 16), (b, 2), (c, 2)):
        check_items(run, count)
    assert b.attempts() == c.attempts() == [1]
    check_order(a, b, c)


@pytest.mark.long
def test_a_parent_that_waits_for_a_person_keeps_the_child_waiting_and_status_says_why(
    cluster: Cluster, tmp_path: Path
) -> None:
    needed = tmp_path / "needed"
    a, b, c = submit_chain(
        tmp_path,
        ("a", "items=3", "crash_once=[0]", "retry.max_crashes=1"),
        ("b", "items=2", f"needs={needed}"),
        ("c", "items=2"),
    )
    cluster.wait_until(lambda: len(slurm_files.jobs(b)) > 1, "b has looked and waits on")
    assert status(a)["state"] == "HELD"
    row = status(b)
    assert row["state"] == "PENDING"
    assert row["why"].startswith("waits for run a (held: 1 crash")
    assert b.attempts() == []
    resume(a)
    cluster.wait_until(a.is_done, "a is done")
    cluster.wait_until(lambda: status(b)["state"] == "FAILED", "b refuses to start")
    cluster.wait_until(lambda: "waits for run b (failed: needs=" in status(c)["why"], "c says why it waits")
    assert c.attempts() == []
    needed.touch()
    resume(b)
    wait_done(cluster, a, b, c)
    check_items(a, 3)
    assert causes_by_element(a) == {None: [Cause.CRASHED, Cause.FINISHED]}
    assert causes_by_element(b) == {None: [Cause.REFUSED, Cause.FINISHED]}
    check_order(a, b, c)


@pytest.mark.long
def test_a_chain_survives_a_cancelled_parent_and_parents_requeued_by_hand(
    cluster: Cluster, tmp_path: Path
) -> None:
    a, b, c = submit_chain(
        tmp_path,
        ("a", "items=20", "item_s=0.4"),
        ("b", "items=20", "item_s=0.4", "array=3"),
        ("c", "items=2"),
    )
    cluster.wait_until(lambda: len(log_of(tmp_path / "out" / "a")) > 1, "a is at work")
    assert launch("cancel", a.path).returncode == 0
    cluster.wait_until(lambda: "a (cancelled)" in status(b)["why"], "b says why it waits")
    resume(a)
    cluster.wait_until(lambda: a.attempts() == [1, 2], "a is back")
    cluster.wait_until(lambda: len(log_of(tmp_path / "out" / "a")) > 4, "a is at work")
    cluster.scontrol("requeue", slurm_files.jobs(a)[-1])
    cluster.wait_until(lambda: len(log_of(tmp_path / "out" / "b")) > 4, "b is at work", 120)
    cluster.scontrol("requeue", slurm_files.jobs(b)[-1])
    wait_done(cluster, a, b, c, seconds=150)
    assert causes_by_element(a) == {None: [Cause.CANCELLED, Cause.REQUEUED, Cause.FINISHED]}
    for run, count in ((a, 20), (b, 20), (c, 2)):
        check_items(run, count)
    check_order(a, b, c)


def resume(run: RunFolder) -> None:
    done = launch("resume", run.path)
    assert done.returncode == 0, done.stderr

"""Chains of runs: each starts once the one before it is DONE, whatever SLURM made of its jobs meanwhile."""

import itertools
import time
from pathlib import Path

import pytest

from get3d_cluster.core.job import Cause
from get3d_cluster.runtime.run_folder import RunFolder
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

"""Job arrays: elements share out items, are preempted and come back each alone; one logical run to people."""

import pytest

from get3d_cluster.core.job import Cause
from get3d_cluster.schedulers import slurm_files
from tests.launching import launch, status
from tests.slurm.cluster import Cluster
from tests.slurm.items import (
    Watch,
    attempts_by_element,
    causes_by_element,
    check_items,
    events,
    log_of,
    submit,
    wait_done,
)

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]


def test_two_arrays_of_a_run_are_preempted_in_part_and_every_item_is_made_once(cluster: Cluster, tmp_path):
    cluster.change(max_array=6)
    run = submit(cluster, tmp_path, "a", "items=280", "item_s=0.5", "array=10")
    assert len({row.split("_")[0] for row in cluster.squeue("-o", "%F").split()}) == 2
    watch = Watch(run)
    cluster.wait_until(watch.until(lambda: len(events(run, "start")) == 8), "the elements are at work")
    first = min(slurm_files.jobs(run), key=int)
    last = cluster.run("squeue", "-h", "-j", f"{first}_4", "-o", "%A %N").split()
    assert last[0] == first  # the last element of an array has the number of the array itself
    other = next(node for node in ("node1", "node2") if node != last[1])
    high = cluster.preempt(f"{last[1]},{other}", 1)
    cluster.wait_state(high, "RUNNING", "COMPLETED", "COMPLETING")
    cluster.wait_until(watch.until(run.is_done), "DONE", 90)
    wait_done(cluster, run)
    check_items(run, 280)
    ends = causes_by_element(run)
    assert len(ends) == 10
    preempted = {element: causes for element, causes in ends.items() if "preempted" in causes}
    assert len(preempted) == 4  # two nodes of two CPUs
    assert ["preempted", "finished"] in preempted.values()
    for element, causes in ends.items():  # one that came back after DONE left at once
        assert causes in (["finished"], ["preempted", "finished"], ["preempted"]), element
    assert len(events(run, "finish")) == 1
    _check_rows(watch.rows)
    last = status(run)
    assert (last["state"], last["step"], last["num_steps"], last["preempted"]) == ("DONE", 280, 280, 4)


def _check_rows(rows: list[dict]) -> None:
    """Assert that what people saw meanwhile made sense."""
    assert {row["state"] for row in rows} <= {"PENDING", "RUNNING", "DONE"}
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    assert any(0 < step < 280 for step in steps)
    assert any("8 run, 2 wait" in row["why"] for row in rows)
    assert all(row["failed"] == 0 for row in rows)


def test_an_element_that_crashes_once_comes_back_alone(cluster: Cluster, tmp_path):
    run = submit(
        cluster, tmp_path, "a", "items=90", "item_s=0.6", "array=4", "crash_once=[0]", "retry.backoff_s=1"
    )
    wait_done(cluster, run)
    check_items(run, 90)
    ends = causes_by_element(run)
    [(element, causes)] = [(element, causes) for element, causes in ends.items() if len(causes) > 1]
    assert causes == [Cause.CRASHED, Cause.FINISHED]
    assert attempts_by_element(run) == {0: 1, 1: 1, 2: 1, 3: 1} | {element: 2}
    ranks = {row["rank"] for row in log_of(tmp_path / "out" / "a") if row["attempt"] > 4}
    assert ranks == {element}  # the one that came back did work


@pytest.mark.long
def test_thirty_elements_in_three_arrays_are_suspended_and_resumed(cluster: Cluster, tmp_path):
    cluster.change(max_array=11)
    run = submit(cluster, tmp_path, "a", "items=200", "item_s=0.4", "array=30", "array_limit=3")
    assert len(set(cluster.squeue("-o", "%F").split())) == 3
    out = tmp_path / "out" / "a"
    cluster.wait_until(lambda: len(log_of(out)) > 20, "the elements are at work")
    assert launch("suspend", run.path).returncode == 0
    cluster.wait_until(lambda: not cluster.squeue("-p", "low"), "the queue is empty")
    row = status(run)
    assert row["state"] == "SUSPENDED"
    made = len(log_of(out))
    assert made < 200
    assert row["step"] == made
    assert {causes[-1] for causes in causes_by_element(run).values()} == {Cause.SUSPENDED}
    before = len(run.attempts())
    assert launch("resume", run.path).returncode == 0
    cluster.wait_until(lambda: status(run)["state"] == "RUNNING", "it is back")
    wait_done(cluster, run, seconds=150)
    check_items(run, 200)
    elements = {run.outcome(attempt).element for attempt in run.attempts() if attempt > before}
    assert max(elements) >= 20  # of the third array, too
    assert len(events(run, "finish")) == 1


@pytest.mark.long
def test_a_cancelled_array_stays_away(cluster: Cluster, tmp_path):
    run = submit(cluster, tmp_path, "a", "items=200", "item_s=0.4", "array=12")
    cluster.wait_until(lambda: log_of(tmp_path / "out" / "a"), "the elements are at work")
    assert launch("cancel", run.path).returncode == 0
    cluster.wait_until(lambda: not cluster.squeue("-p", "low"), "the queue is empty")
    assert status(run)["state"] == "CANCELLED"
    made = len(log_of(tmp_path / "out" / "a"))
    assert {cause for causes in causes_by_element(run).values() for cause in causes} == {Cause.CANCELLED}
    cluster.run("sleep", "3")
    assert not cluster.squeue("-p", "low")
    assert len(log_of(tmp_path / "out" / "a")) == made


@pytest.mark.long
def test_an_item_that_always_crashes_spends_the_budget_of_each_element_and_holds_the_run(
    cluster: Cluster, tmp_path
):
    retry = ["retry.max_crashes=2", "retry.backoff_s=1"]
    run = submit(cluster, tmp_path, "a", "items=12", "item_s=0.2", "array=3", "crash=[5]", *retry)
    cluster.wait_until(lambda: run.hold_path.exists(), "an element is held", 120)
    cluster.wait_until(lambda: not cluster.squeue("-p", "low"), "the array ends", 120)
    row = status(run)
    assert row["state"] == "HELD"
    assert "2 crashes without a new checkpoint" in row["why"]
    made = [row["item"] for row in log_of(tmp_path / "out" / "a")]
    assert len(made) == len(set(made)) >= row["step"] > 0
    assert 5 not in made
    ends = causes_by_element(run)
    assert set(ends) == {0, 1, 2}
    assert all(causes[-2:] == ["crashed", "crashed"] for causes in ends.values())


@pytest.mark.long
def test_elements_that_slurm_cancels_to_make_room_come_back_as_successors(cluster: Cluster, tmp_path):
    run = submit(cluster, tmp_path, "a", "items=160", "item_s=0.5", "array=6", "partition=cancel")
    cluster.wait_until(lambda: len(log_of(tmp_path / "out" / "a")) > 10, "the elements are at work")
    nodes = sorted(set(cluster.squeue("-p", "cancel", "-t", "RUNNING", "-o", "%N").split()))[:2]
    high = cluster.preempt(",".join(nodes), 1)
    cluster.wait_state(high, "RUNNING", "COMPLETED", "COMPLETING")
    wait_done(cluster, run)
    cluster.wait_until(lambda: not cluster.squeue("-p", "cancel"), "the queue is empty")
    check_items(run, 160)
    ends = causes_by_element(run)
    preempted = [element for element, causes in ends.items() if "preempted" in causes]
    assert len(preempted) == 4
    assert ["preempted", "finished"] in ends.values()
    jobs = slurm_files.jobs(run)
    assert len(jobs) == 1 + 4
    assert sorted(element for element in preempted for _ in slurm_files.jobs(run, element)) == sorted(
        preempted
    )

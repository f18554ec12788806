"""Job arrays: elements share out items, are preempted and come back each alone; one logical run to people."""

import pytest

from get3d_cluster.core.job import Cause
from get3d_cluster.schedulers import slurm_files
from tests.launching import status
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
    run = submit(cluster, tmp_path, "a", "items=240", "item_s=0.5", "array=10")
    assert len({row.split("_")[0] for row in cluster.squeue("-o", "%F").split()}) == 2
    watch = Watch(run)
    out = tmp_path / "out" / "a"
    cluster.wait_until(watch.until(lambda: len(log_of(out)) > 15), "the elements are at work")
    first = min(slurm_files.jobs(run), key=int)
    last = cluster.run("squeue", "-h", "-j", f"{first}_4", "-o", "%A %N").split()
    assert last[0] == first  # the last element of an array has the number of the array itself
    other = next(node for node in ("node1", "node2") if node != last[1])
    high = cluster.preempt(f"{last[1]},{other}", 1)
    cluster.wait_state(high, "RUNNING", "COMPLETED", "COMPLETING")
    cluster.wait_until(watch.until(run.is_done), "DONE", 90)
    wait_done(cluster, run)
    check_items(run, 240)
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
    assert (last["state"], last["step"], last["num_steps"], last["preempted"]) == ("DONE", 240, 240, 4)


def _check_rows(rows: list[dict]) -> None:
    """Assert that what people saw meanwhile made sense."""
    assert {row["state"] for row in rows} <= {"PENDING", "RUNNING", "DONE"}
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps)
    assert 0 < steps[-2] < 240
    assert any("8 run, 2 wait" in row["why"] for row in rows)
    assert all(row["failed"] == 0 for row in rows)


def test_an_element_that_crashes_once_comes_back_alone(cluster: Cluster, tmp_path):
    run = submit(
        cluster, tmp_path, "a", "items=60", "item_s=0.6", "array=4", "crash_once=[0]", "retry.backoff_s=1"
    )
    wait_done(cluster, run)
    check_items(run, 60)
    ends = causes_by_element(run)
    [(element, causes)] = [(element, causes) for element, causes in ends.items() if len(causes) > 1]
    assert causes == [Cause.CRASHED, Cause.FINISHED]
    assert attempts_by_element(run) == {0: 1, 1: 1, 2: 1, 3: 1} | {element: 2}
    ranks = {row["rank"] for row in log_of(tmp_path / "out" / "a") if row["attempt"] > 4}
    assert ranks == {element}  # the one that came back did work

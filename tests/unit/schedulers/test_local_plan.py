"""Who starts, who is preempted, and what is due, as decisions without processes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from get3d_cluster.core.job import Cause, Resources
from get3d_cluster.errors import UsageError
from get3d_cluster.schedulers.local_plan import (
    Amount,
    Capacity,
    Job,
    check_can_fit,
    due_stop,
    free_gpus,
    kill_time,
    moves,
)

FOUR = Capacity(slots=4, gpus=("0", "1"))


def job(name: str, slots: int = 1, priority: int = 0, sequence: int = 0, **facts) -> Job:
    gpus = facts.pop("gpus_per_worker", 0)
    resources = Resources(workers_per_node=slots, priority=priority, gpus_per_worker=gpus)
    return Job(id=name, run=f"/{name}", resources=resources, sequence=sequence, boot="b", **facts)


def running(name: str, slots: int = 1, priority: int = 0, started: float = 0.0, **facts) -> Job:
    return job(name, slots, priority, attempt=1, started=started, **facts)


def test_priority_goes_before_order_of_submission():
    queue = [job("old", 3, sequence=1), job("new", 3, sequence=2), job("urgent", 3, 9, sequence=3)]
    assert moves(queue, FOUR, {}).starts == ("urgent",)
    assert moves(queue[:2], FOUR, {}).starts == ("old",)


def test_a_smaller_run_passes_one_that_does_not_fit_but_not_into_room_that_is_cleared_for_it():
    big, small = job("big", 4, sequence=1), job("small", 1, sequence=2)
    assert moves([running("a", 3), big, small], FOUR, {}).starts == ("small",)
    leaving = running("a", 3, stop=Cause.PREEMPTED)
    assert moves([leaving, big, small], FOUR, {}).starts == ()


def test_victims_are_the_lowest_then_the_youngest_and_no_more_than_needed():
    runs = [running("old", 1, started=1), running("young", 1, started=2), running("mid", 2, 1, started=3)]
    assert moves([*runs, job("high", 1, 5)], FOUR, {}).preempts == ("young",)
    assert set(moves([*runs, job("high", 2, 5)], FOUR, {}).preempts) == {"young", "old"}
    assert moves([*runs, job("equal", 1, 0)], FOUR, {}).preempts == ()


def test_a_small_victim_is_spared_when_a_larger_one_is_needed_anyway():
    runs = [running("small", 1, 0), running("large", 3, 1)]
    assert moves([*runs, job("high", 3, 5)], FOUR, {}).preempts == ("large",)


def test_nobody_is_preempted_in_vain():
    runs = [running("low", 2, 0), running("peer", 2, 5)]
    assert moves([*runs, job("high", 3, 5)], FOUR, {}).preempts == ()


def test_waiting_run_preempts_nobody_and_keeps_its_reason():
    plan = moves([running("low", 4), job("high", 4, 5)], FOUR, {"high": "waits for run x"})
    assert plan.preempts == ()
    assert plan.whys["high"] == "waits for run x"


def test_gpus_count_besides_cores_and_a_run_without_them_does_not_mind():
    holder = running("holder", 2, gpus_per_worker=1, gpus=("0", "1"))
    plan = moves([holder, job("gpu", 1, gpus_per_worker=1), job("cpu", 2)], FOUR, {})
    assert plan.starts == ("cpu",)
    assert plan.whys["gpu"] == "waits for 1 of 4 slots and 1 of 2 GPUs"
    assert free_gpus([replace(holder, gpus=("1",))], FOUR) == ["0"]


JOBS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 9)),
    max_size=8,
)


def from_drawn(drawn: list[tuple[int, int, bool, bool, int]]) -> list[Job]:
    """Return jobs whose running ones fit on the machine together."""
    jobs: list[Job] = []
    room = FOUR.slots
    for index, (slots, priority, runs, leaves, when) in enumerate(drawn):
        if runs and slots <= room:
            room -= slots
            stop = Cause.PREEMPTED if leaves else None
            jobs.append(running(f"j{index}", slots, priority, when, sequence=index, stop=stop))
        else:
            jobs.append(job(f"j{index}", slots, priority, sequence=index))
    return jobs


@given(JOBS)
def test_any_plan_stays_within_the_machine_and_preempts_only_lower_runs(drawn):
    jobs = {item.id: item for item in from_drawn(drawn)}
    plan = moves(list(jobs.values()), FOUR, {})
    taken = sum((item.need for item in jobs.values() if item.is_running), Amount())
    assert (taken + sum((jobs[name].need for name in plan.starts), Amount())).fits(FOUR.amount)
    assert all(jobs[name].is_running and not jobs[name].stop for name in plan.preempts)
    pending = [item for item in jobs.values() if not item.is_running and item.id not in plan.starts]
    highest = max((item.resources.priority for item in pending), default=-1)
    assert all(jobs[name].resources.priority < highest for name in plan.preempts)
    assert len(set(plan.preempts)) == len(plan.preempts)


@given(JOBS, st.randoms(use_true_random=False))
def test_preemption_settles_whoever_leaves_first(drawn, random):
    """Victims return to the queue one by one; each pass must come closer to the end, never preempt in a circle."""
    jobs = {item.id: item for item in from_drawn(drawn)}
    preemptions = 0
    for _ in range(200):
        plan = moves(list(jobs.values()), FOUR, {})
        preemptions += len(plan.preempts)
        for name in plan.preempts:
            jobs[name] = replace(jobs[name], stop=Cause.PREEMPTED)
        for name in plan.starts:
            jobs[name] = replace(jobs[name], attempt=1, started=100.0)
        leaving = [item for item in jobs.values() if item.is_running and item.stop]
        if leaving:
            one = random.choice(leaving)
            jobs[one.id] = replace(one, attempt=0, stop=None)
        elif not plan.starts:
            break
    else:
        pytest.fail(f"never settles: {jobs}")
    assert preemptions <= 2 * len(jobs)
    pending = [item for item in jobs.values() if not item.is_running]
    free = FOUR.amount - sum((item.need for item in jobs.values() if item.is_running), Amount())
    assert not any(item.need.fits(free) for item in pending)


@pytest.mark.parametrize(
    "resources, key",
    [
        (Resources(workers_per_node=5), "workers_per_node=5"),
        (Resources(workers_per_node=2, cpus_per_worker=3), "cpus_per_worker=3"),
        (Resources(nodes=3, gpus_per_worker=1), "gpus_per_worker=1"),
    ],
)
def test_impossible_request_names_key_and_way_out(resources, key):
    with pytest.raises(UsageError, match=key) as caught:
        check_can_fit(resources, FOUR)
    assert "resources." in caught.value.way_out
    check_can_fit(Resources(workers_per_node=2, cpus_per_worker=2, gpus_per_worker=1), FOUR)


def test_time_limit_is_due_once_and_not_for_one_that_leaves_already():
    limited = replace(running("a", started=100.0), resources=Resources(time_limit_min=2, grace_s=7))
    assert due_stop(limited, 219.9) is None
    assert due_stop(limited, 220.0) is Cause.TIME_LIMIT
    assert due_stop(replace(limited, stop=Cause.SUSPENDED), 999.0) is None
    assert due_stop(running("b"), 1e9) is None
    assert kill_time(limited, 220.0) == 227.0
    assert kill_time(replace(limited, now=True), 220.0) == 220.0

import pytest

from get3d_cluster.core.job import Cause, CheckpointConfig, Outcome, RetryConfig
from get3d_cluster.core.policy import (
    LONGEST_S,
    SHORTEST_S,
    Action,
    after_attempt,
    best_period_s,
    is_save_due,
    to_delete,
)

RETRY = RetryConfig(max_crashes=3, max_without_progress=5, backoff_s=5)


def ended(cause: Cause, *, progress: bool = False) -> Outcome:
    return Outcome(attempt=1, cause=cause, exit_code=0, start_step=10, saved_step=20 if progress else 10)


def test_a_hundred_preemptions_with_progress_each_come_back_at_once():
    decision = after_attempt([ended(Cause.PREEMPTED, progress=True)] * 100, RETRY)
    assert (decision.action, decision.delay_s) == (Action.REQUEUE, 0)


def test_preemptions_without_progress_are_held_after_five():
    outcomes = [ended(Cause.PREEMPTED)] * 4
    assert after_attempt(outcomes, RETRY).action is Action.REQUEUE
    assert after_attempt([*outcomes, ended(Cause.PREEMPTED)], RETRY).action is Action.HOLD


def test_crashes_wait_twice_as_long_each_time_and_the_third_is_held():
    crash = ended(Cause.CRASHED)
    assert [after_attempt([crash] * n, RETRY).delay_s for n in (1, 2)] == [5, 10]
    assert after_attempt([crash] * 3, RETRY).action is Action.HOLD


def test_a_wait_that_has_doubled_a_thousand_times_is_still_ten_minutes():
    many = RetryConfig(max_crashes=9999, max_without_progress=9999, backoff_s=5)
    assert after_attempt([ended(Cause.CRASHED)] * 2000, many).delay_s == 600


def test_progress_refills_the_crash_budget():
    outcomes = [ended(Cause.CRASHED)] * 2 + [ended(Cause.CRASHED, progress=True), ended(Cause.CRASHED)]
    assert after_attempt(outcomes, RETRY).delay_s == 5


def test_a_preemption_between_crashes_does_not_refill_it():
    crash, preempted = ended(Cause.CRASHED), ended(Cause.PREEMPTED)
    assert after_attempt([crash, preempted, crash, crash], RETRY).action is Action.HOLD


@pytest.mark.parametrize(
    "cause", [Cause.FINISHED, Cause.SUSPENDED, Cause.CANCELLED, Cause.FENCED, Cause.REFUSED]
)
def test_what_a_person_or_the_run_itself_decided_stays_decided(cause):
    assert after_attempt([ended(cause)], RETRY).action is Action.STOP


def test_a_resume_by_a_person_starts_the_budget_anew():
    outcomes = [ended(Cause.CRASHED)] * 3 + [ended(Cause.SUSPENDED), ended(Cause.CRASHED)]
    assert after_attempt(outcomes, RETRY).action is Action.REQUEUE


def test_a_save_is_due_by_time_or_steps_but_never_twice_at_one_step():
    config = CheckpointConfig(every_s=60, every_steps=100)
    assert not is_save_due(0, 1e9, config)
    assert is_save_due(1, 60, config)
    assert is_save_due(100, 0, config)
    assert not is_save_due(99, 59, config)
    assert not is_save_due(10**6, 1e9, CheckpointConfig(every_s=0, every_steps=0))


def test_the_newest_and_the_milestones_stay():
    config = CheckpointConfig(keep_last=2, keep_every_steps=100)
    assert to_delete([50, 100, 150, 200, 250], config) == [50, 150]
    assert to_delete([50], config) == []


def test_the_best_period_grows_with_cost_and_with_the_time_between_interruptions():
    assert best_period_s(2.0, 3, 10_800.0) == 120.0
    assert best_period_s(8.0, 3, 10_800.0) == 240.0
    assert best_period_s(2.0, 12, 10_800.0) == 60.0
    assert best_period_s(0.0, 100, 10.0) == SHORTEST_S
    assert best_period_s(1e4, 0, 0.0) == LONGEST_S


def test_what_was_saved_when_all_workers_were_found_equal_stays():
    config = CheckpointConfig(keep_last=2)
    assert to_delete([10, 20, 30, 40, 50], config, agreed_step=20) == [10, 30]
    assert to_delete([10, 20, 30, 40, 50], config, agreed_step=29) == [10, 30]
    assert to_delete([10, 20, 30, 40, 50], config, agreed_step=5) == [10, 20, 30]

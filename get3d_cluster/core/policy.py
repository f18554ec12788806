"""Decisions as pure functions of facts: come back or not, save now or not, what to keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from get3d_cluster.core.job import FREE_CAUSES, Cause, CheckpointConfig, Outcome, RetryConfig

LONGEST_BACKOFF_S = 600.0
SHORTEST_S, LONGEST_S = 30.0, 1800.0
"""Bounds of a period that is chosen by measurement: a save also costs disk, and the rate of stops is a guess."""
UNKNOWN_MTBI_S = 6 * 3600.0
MOST_DOUBLINGS = 64
"""Keeps the wait within what a float holds, however many crashes are allowed."""


class Action(StrEnum):
    """What happens to a run after an attempt."""

    STOP = "stop"
    REQUEUE = "requeue"
    HOLD = "hold"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The action, how long to wait before it, and the reason in one phrase."""

    action: Action
    delay_s: float = 0.0
    why: str = ""


def after_attempt(outcomes: Sequence[Outcome], retry: RetryConfig) -> Decision:
    """Decide from the outcomes so far, oldest first, what happens to the run.

    Preemptions, time limits, node failures and requeues by hand are free while there is progress. Crashes and hangs
    spend a budget that progress refills, with a doubling wait. A request of the user is obeyed.
    """
    last = outcomes[-1]
    if last.cause in (Cause.FINISHED, Cause.SUSPENDED, Cause.CANCELLED, Cause.FENCED, Cause.REFUSED):
        return Decision(action=Action.STOP, why=str(last.cause))
    if last.cause is Cause.DIVERGED:
        return Decision(action=Action.HOLD, why="the training diverged")
    barren = _trailing_without_progress(outcomes)
    crashes = sum(outcome.cause not in FREE_CAUSES for outcome in barren)
    if crashes >= retry.max_crashes:
        return Decision(action=Action.HOLD, why=f"{crashes} crashes without a new checkpoint")
    if len(barren) >= retry.max_without_progress:
        return Decision(action=Action.HOLD, why=f"{len(barren)} attempts without a new checkpoint")
    if last.cause in FREE_CAUSES:
        return Decision(action=Action.REQUEUE, why=str(last.cause))
    delay_s = min(retry.backoff_s * 2 ** min(max(0, crashes - 1), MOST_DOUBLINGS), LONGEST_BACKOFF_S)
    return Decision(action=Action.REQUEUE, delay_s=delay_s, why=f"{last.cause}, waits {delay_s:g} s")


def best_period_s(cost_s: float, interruptions: int, trained_s: float) -> float:
    """Return the period that loses least to saves and to work done again, within ``SHORTEST_S`` and ``LONGEST_S``.

    ``cost_s`` is what a save takes from training. Before the first interruption one is expected per ``UNKNOWN_MTBI_S``.
    Source: Young 1974, "A first order approximation to the optimum checkpoint interval".

    >>> best_period_s(2.0, 3, 10800.0)
    120.0
    """
    between_s = trained_s / interruptions if interruptions else max(trained_s, UNKNOWN_MTBI_S)
    return min(LONGEST_S, max(SHORTEST_S, math.sqrt(2.0 * cost_s * between_s)))


def is_save_due(
    steps_since: int, seconds_since: float, config: CheckpointConfig, every_s: float | None = None
) -> bool:
    """Say whether a periodic checkpoint is due; ``every_s`` is for a period that was found by measurement."""
    period_s = config.every_s if every_s is None else every_s
    by_steps = bool(config.every_steps) and steps_since >= config.every_steps
    by_time = bool(period_s) and seconds_since >= period_s
    return steps_since > 0 and (by_steps or by_time)


def to_delete(
    steps: Sequence[int], config: CheckpointConfig, agreed_step: int | None = None, rollback_every: int = 0
) -> list[int]:
    """Return the steps, oldest first, whose checkpoints may go.

    ``agreed_step`` is when all workers were last found to have equal weights: what was saved later may turn out to be
    wrong, so the newest of then stays. Of the multiples of ``rollback_every`` the newest two stay: a training that
    diverges goes back to the last one, or to the one before if it was diverging already.

    >>> to_delete([10, 20, 30, 40], CheckpointConfig(keep_last=2, keep_every_steps=20))
    [10]
    >>> to_delete([10, 20, 30, 40], CheckpointConfig(keep_last=2), agreed_step=15)
    [20]
    >>> to_delete([10, 20, 30, 40, 44, 48], CheckpointConfig(keep_last=2), rollback_every=20)
    [10, 30]
    """
    kept = set(sorted(steps)[-config.keep_last :])
    if agreed_step is not None:
        kept |= {max((step for step in steps if step <= agreed_step), default=-1)}
    if rollback_every:
        kept |= set(sorted(step for step in steps if step % rollback_every == 0)[-2:])
    every = config.keep_every_steps
    return [step for step in sorted(steps) if step not in kept and not (every and step % every == 0)]


def _trailing_without_progress(outcomes: Sequence[Outcome]) -> list[Outcome]:
    barren: list[Outcome] = []
    for outcome in reversed(outcomes):
        if outcome.made_progress or outcome.cause is Cause.SUSPENDED:
            break
        barren.append(outcome)
    return barren

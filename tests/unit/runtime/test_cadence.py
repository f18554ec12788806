"""The period between saves: as configured, or from what saves were measured to cost and how often work was lost."""

import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.core.job import Cause, CheckpointConfig, JobSpec, Outcome, Position
from get3d_cluster.core.policy import LONGEST_S, SHORTEST_S, UNKNOWN_MTBI_S
from get3d_cluster.runtime import cadence
from get3d_cluster.runtime.cadence import CONTENTION, Cadence, interruptions_of
from get3d_cluster.runtime.checkpoint import Checkpoints
from get3d_cluster.runtime.events import read_rows
from get3d_cluster.runtime.loop import run_steps
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers.base import StopReason
from get3d_cluster.storage import open_storage
from tests.sessions import session_of

AUTO = CheckpointConfig(auto=True, every_s=77.0)
HOUR = 3600.0


def test_without_auto_nothing_that_was_measured_changes_the_period() -> None:
    cadence = Cadence(CheckpointConfig(every_s=77.0), interruptions=50)
    cadence.note(10.0, 20.0)
    assert cadence.period_s(10 * HOUR) == 77.0


def test_before_the_first_save_the_configured_period_holds() -> None:
    assert Cadence(AUTO, interruptions=9).period_s(10 * HOUR) == 77.0


@pytest.mark.parametrize("interruptions", [1, 3, 20])
def test_the_period_is_young_s_of_what_was_measured(interruptions: int) -> None:
    cadence = Cadence(AUTO, interruptions)
    cadence.note(1.0, 3.0)
    cost_s = 1.0 + 2.0 * CONTENTION
    for trained_s in (HOUR, 10 * HOUR):
        best_s = math.sqrt(2 * cost_s * trained_s / interruptions)
        assert cadence.period_s(trained_s) == pytest.approx(min(LONGEST_S, max(SHORTEST_S, best_s)))


def test_a_run_that_was_never_interrupted_counts_on_one_in_a_while() -> None:
    cadence = Cadence(AUTO, 0)
    cadence.note(1.0, 1.0)
    assert cadence.period_s(60.0) == pytest.approx(math.sqrt(2 * UNKNOWN_MTBI_S))
    assert cadence.period_s(100 * HOUR) == pytest.approx(math.sqrt(2 * 100 * HOUR))


def test_the_period_loses_less_than_half_and_twice_of_it() -> None:
    """What Young's formula is for, counted out: time lost to saves, and to work that is done again."""
    cost_s, between_s = 2.0, 5 * HOUR
    cadence = Cadence(AUTO, 4)
    cadence.note(cost_s, cost_s)
    best_s = cadence.period_s(4 * between_s)

    def lost(period_s: float) -> float:
        return cost_s / period_s + (period_s / 2) / between_s

    assert lost(best_s) < min(lost(best_s / 2), lost(2 * best_s), lost(best_s * 1.1), lost(best_s / 1.1))


def test_a_save_that_costs_more_comes_less_often_and_a_cheaper_one_more_often() -> None:
    cadence, periods = Cadence(AUTO, 10), []
    for stall_s in (0.5, 5.0, 0.05):
        cadence.note(stall_s, stall_s)
        periods.append(cadence.period_s(100 * HOUR))
    assert periods[2] < periods[0] < periods[1]


def test_what_is_due_follows_the_period_that_was_found() -> None:
    cadence = Cadence(AUTO, 10)
    cadence.note(0.5, 0.5)
    period_s = cadence.period_s(2 * HOUR)
    assert period_s < 77.0
    assert not cadence.is_due(5, period_s - 1, 2 * HOUR)
    assert cadence.is_due(5, period_s + 1, 2 * HOUR)
    assert not cadence.is_due(0, period_s + 1, 2 * HOUR)


def ended(run: RunFolder, **values: Any) -> None:
    attempt = run.new_attempt()
    if values:
        run.write_outcome(Outcome(attempt=attempt, **{"cause": Cause.PREEMPTED, "exit_code": 75, **values}))


def test_only_what_lost_work_counts_as_an_interruption(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert interruptions_of(run, 1) == 0
    ended(run, end_step=40, saved_step=40)  # told, and saved
    ended(run, cause=Cause.CRASHED, exit_code=1, end_step=55, saved_step=50)
    ended(run)  # killed without a word
    ended(
        run, cause=Cause.CRASHED, exit_code=1, start_step=60, end_step=60, saved_step=60
    )  # while it started
    ended(run, exit_code=76, end_step=70, saved_step=60)  # told too late
    assert interruptions_of(run, 6) == 3
    (run.attempt_dir(1) / "outcome.json").write_text("{")
    assert interruptions_of(run, 6) == 4, "torn"
    (run.attempt_dir(1) / "outcome.json").unlink()
    assert interruptions_of(run, 3) == 2


class Work:
    """Thirty steps of a hundredth of a second."""

    def __init__(self) -> None:
        self.done = 0

    def position(self) -> Position:
        return Position(step=self.done, num_steps=30)

    def is_done(self) -> bool:
        return self.done >= 30

    def step(self) -> None:
        time.sleep(0.01)
        self.done += 1

    def state(self) -> dict[str, Any]:
        return {"done": self.done}

    def load(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def test_a_training_saves_by_what_its_own_saves_and_losses_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int, float]] = []
    run = RunFolder(tmp_path)
    run.write_spec(JobSpec(name="a", job="train", kind="steps", created="2026-01-01T00:00:00"))
    for _ in range(2):
        ended(run)

    def period_s(cost_s: float, interruptions: int, trained_s: float) -> float:
        asked.append((cost_s, interruptions, trained_s))
        return 0.08

    monkeypatch.setattr(cadence, "best_period_s", period_s)
    config = CheckpointConfig(auto=True, every_s=0.03)
    session = session_of(tmp_path, attempt=run.new_attempt())
    checkpoints = Checkpoints(open_storage(run.checkpoints_dir), config, lambda: None)
    run_steps(Work(), session, checkpoints, config, lambda: StopReason(cause=Cause.PREEMPTED, grace_s=None))
    saves = [row for row in read_rows(run.events_path) if row["event"] == "save"]
    begun = [row["t"] - row["seconds"] for row in saves if row["why"] == "periodic"]
    assert saves[0]["step"] <= 5
    assert len(begun) >= 2
    assert all(later - earlier > 0.075 for earlier, later in pairwise(begun))
    costs = {round(cost_s, 4) for cost_s, _, _ in asked}
    assert costs <= {row["stall_s"] for row in saves}, (
        "small states are written while training waits: all of it"
    )
    assert {interruptions for _, interruptions, _ in asked} == {2}
    assert [trained_s for _, _, trained_s in asked] == sorted(trained_s for _, _, trained_s in asked)
    assert 0.01 < asked[0][2] < asked[-1][2]

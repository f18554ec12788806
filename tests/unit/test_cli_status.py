"""What `status` says of a run, as a function of its files and of the scheduler; torn files never break it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from get3d_cluster.cli.entry import run as command
from get3d_cluster.cli.facts import Facts, gather
from get3d_cluster.cli.output import duration, size
from get3d_cluster.cli.status import row_of, state_of
from get3d_cluster.cli.status_table import one_line
from get3d_cluster.core.job import Cause, JobSpec, Outcome, RetryConfig
from get3d_cluster.runtime.run_folder import RunFolder
from get3d_cluster.schedulers import SCHEDULERS
from get3d_cluster.schedulers.base import Standing
from tests.jobs_for_tests.fake_scheduler import FakeScheduler

SPEC = JobSpec(name="a", job="tests.jobs_for_tests.tiny", kind="steps", created="2026-01-01T00:00:00+00:00")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeScheduler.reset()
    monkeypatch.setitem(SCHEDULERS, "local", "tests.jobs_for_tests.fake_scheduler:FakeScheduler")


def outcome(attempt: int, cause: Cause, **values: Any) -> Outcome:
    return Outcome(attempt=attempt, cause=cause, exit_code=1, **values)


def facts(*causes: Cause, standing: str = "absent", **values: Any) -> Facts:
    outcomes = [outcome(number, cause) for number, cause in enumerate(causes, start=1)]
    given = {
        "attempts": range(1, len(causes) + 1),
        "outcomes": outcomes,
        "spec": SPEC,
        "is_done": False,
    } | values
    return Facts(name="a", path="/runs/a", standing=Standing(state=standing), **given)


@pytest.mark.parametrize(
    ("given", "state", "why"),
    [
        (facts(is_done=True), "DONE", ""),
        (facts(Cause.CRASHED, is_done=True, standing="running"), "DONE", ""),
        (facts(), "NEW", "submit"),
        (facts(standing="pending"), "PENDING", ""),
        (facts(Cause.PREEMPTED, standing="pending"), "PENDING", ""),
        (facts(Cause.CRASHED, standing="pending"), "BACKING-OFF", ""),
        (facts(Cause.CRASHED, standing="pending", retry=RetryConfig(backoff_s=0)), "PENDING", ""),
        (facts(Cause.SUSPENDED, standing="running"), "RUNNING", ""),
        (facts(Cause.SUSPENDED), "SUSPENDED", "saved at step 0"),
        (facts(Cause.CANCELLED), "CANCELLED", ""),
        (facts(Cause.REFUSED), "FAILED", ""),
        (facts(Cause.DIVERGED), "HELD", "diverged"),
        (facts(*[Cause.CRASHED] * 3), "HELD", "3 crashes"),
        (facts(Cause.PREEMPTED), "LOST", "left as preempted"),
        (facts(Cause.PREEMPTED, attempts=[1, 2]), "LOST", "attempt 2 left no outcome"),
        (facts(attempts=[1], progress_age_s=2.0), "RUNNING", "started by hand"),
        (facts(attempts=[1], progress_age_s=200.0), "LOST", "attempt 1 left no outcome"),
        (facts(attempts=[1], progress_age_s=2.0, standing="unknown"), "RUNNING", ""),
        (facts(spec=None, standing="unknown"), "LOST", ""),
    ],
)
def test_the_state_follows_from_the_facts(given: Facts, state: str, why: str) -> None:
    found, reason = state_of(given)
    assert str(found) == state
    assert why in reason


def test_a_row_counts_and_estimates() -> None:
    progress = {"step": 25, "num_steps": 100, "epoch": 3, "images": 800, "active_s": 50.0}
    given = facts(
        Cause.PREEMPTED,
        Cause.CRASHED,
        Cause.PREEMPTED,
        Cause.TIME_LIMIT,
        standing="running",
        progress=progress,
    )
    row = row_of(given)
    assert (row.preempted, row.failed, row.attempt, row.percent, row.eta_s) == (2, 1, 4, 25.0, 150.0)
    assert "RUNNING  3 / 25/100  25.0 %  2 min left  attempt 4" in one_line(row)
    assert row_of(facts(standing="running")).percent is None


def test_items_are_timed_from_where_the_attempt_began() -> None:
    items = replace(SPEC, kind="items")
    progress = {"step": 25, "num_steps": 100, "active_s": 50.0}
    before = [outcome(1, Cause.PREEMPTED, saved_step=20)]
    row = row_of(facts(spec=items, outcomes=before, attempts=[1, 2], standing="running", progress=progress))
    assert row.eta_s == 750.0


def make_run(runs: Path, name: str = "a") -> RunFolder:
    run = RunFolder(runs / name)
    run.path.mkdir(parents=True)
    run.write_spec(SPEC)
    run.config_path.write_text("retry: {max_crashes: 1}\n")
    return run


def test_everything_is_read_from_the_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.write_outcome(
        outcome(run.new_attempt(), Cause.CRASHED, message="rank 1: ValueError: bad\nmore", hosts=("n1",))
    )
    (run.checkpoints_dir / "step-000000040").mkdir(parents=True)
    (run.checkpoints_dir / "step-000000030").mkdir()
    (run.checkpoints_dir / ".writing-step-000000050").mkdir()
    row = row_of(gather(run))
    assert (row.state, row.saved_step, row.step, row.hosts) == ("HELD", 40, 40, ("n1",))
    assert row.why == "1 crashes without a new checkpoint: rank 1: ValueError: bad"
    assert row.saved_age_s is not None
    assert row.saved_age_s < 60


def test_the_measured_step_stands_in_for_missing_progress(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.metrics_path.write_text('{"step": 6}\n{"step": 7, "loss": 1}\n{"step": 8, "lo')
    assert row_of(gather(run)).step == 7
    run.progress_path.write_text('{"step": 9, "num_steps": 10, "unit": "steps", "t": 1}')
    assert row_of(gather(run)).percent == 90.0


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"attempt": 1}', "\0\0\0", '{"cause": "unheard-of"}'])
@pytest.mark.parametrize(
    "name", ["progress.json", "metrics.jsonl", "config.yaml", "spec.json", "attempts/0001/outcome.json"]
)
def test_a_torn_file_never_breaks_the_list(
    tmp_path: Path, name: str, torn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "b")
    run = make_run(tmp_path)
    run.new_attempt()
    (run.path / name).write_text(torn)
    assert command(["status", "--runs", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["a", "b"]
    assert rows[0]["state"] == "LOST"
    assert command(["status", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["NAME", "STATE", "EPOCH/STEP"]


def test_a_row_is_one_line_even_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "a-run-with-a-rather-long-name-as-people-like-them")
    run.write_outcome(outcome(run.new_attempt(), Cause.SUSPENDED, message="[red]saved[/red] at step 12"))
    assert command(["status", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "[red]saved[/red] at step 12" in lines[1]
    assert "\033" not in lines[1]


def test_no_runs_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["status", "--runs", str(tmp_path / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert command(["status", "--runs", str(tmp_path / "none"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_an_unknown_scheduler_is_told_in_the_row(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.spec_path.write_text(run.spec_path.read_text().replace('"local"', '"pbs"'))
    assert "pbs" in row_of(gather(run)).why


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2.0 h"), (2e5, "2.3 d")],
)
def test_durations_are_in_the_unit_that_says_enough(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_are_in_words() -> None:
    assert [size(number) for number in (0, 999, 1000, 2.5e6, 3e13)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.5 MB",
        "30.0 TB",
    ]
